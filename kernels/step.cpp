// Repeats a step when only the gradients' addresses and the hyper rows have changed.

#include "step.h"

#include <cmath>

#include "pool.h"
#include "rows.h"

namespace {

constexpr double DOWN = 0x1p-600, UP = 0x1p600, LOST = 0x1p-960, EPS = 1e-6;

// OpenMP's threads stay awake of themselves.
void run(fastopt_kernel kernel, const fastopt_launch &launch, const void *parallel, int32_t threads,
         bool another_follows) {
    if (threads > launch.workers) threads = static_cast<int32_t>(launch.workers);
    if (parallel != nullptr) {
        fastopt_run_team(kernel, launch.job, launch.chunks, launch.grain, threads, parallel);
    } else {
        fastopt::run_pool(kernel, launch.job, launch.chunks, launch.grain, threads, another_follows);
    }
}

// The sum of squares of all gradients times a power of two, added up in the order of launches and chunks.
double sum_squares(const fastopt_step &step, int32_t threads, double power) {
    double total = 0.0;
    for (int64_t i = 0; i < step.count; ++i) {
        const fastopt_launch &launch = step.launches[i];
        launch.job->power = power;
        run(launch.norm, launch, step.parallel, threads, true);
        for (int64_t c = 0; c < launch.chunks; ++c) total += launch.job->sums[c];
    }
    return total;
}

// Whether kernels can compute with all numbers of a row; NaN is none that they can.
bool fits(const double *row, double largest) {
    for (int i = 0; i < FASTOPT_HYPERS; ++i) {
        if (!(std::fabs(row[i]) <= largest)) return false;
    }
    return true;
}

}  // namespace

bool fastopt::write_rows(fastopt_step &step) {
    if (step.inputs == nullptr) return true;
    for (int64_t i = 0; i < step.rows; ++i) {
        double *row = step.hypers + i * FASTOPT_HYPERS;
        step.next[i] = step.carried[i];
        fastopt::write_row(step.inputs[i], step.taken, step.next + i, row);
        if (!fits(row, step.largest)) return false;
        row[0] *= step.scale;
    }
    return true;
}

// As norm.py does it: the squares of float64 may overflow, or get lost, where the gradients do not.
bool fastopt::goes_on(fastopt_step &step, const int64_t *grads, int32_t threads) {
    for (int64_t i = 0; grads != nullptr && i < step.n; ++i) *step.grads[i] = grads[i];
    if (step.clip == nullptr) return true;
    fastopt_clip &clip = *step.clip;
    double power = 1.0, total = sum_squares(step, threads, power);
    bool overflows = total == HUGE_VAL;
    if (overflows || total < LOST) {
        power = overflows ? DOWN : UP;
        total = sum_squares(step, threads, power);
    }
    clip.norm = std::sqrt(total) * (std::fabs(clip.factor) / power);
    if (clip.skips != 0 && !std::isfinite(total)) {
        ++clip.skipped;
        return false;
    }
    double factor = clip.max_norm / (clip.norm + EPS);
    double coefficient = clip.max_norm == HUGE_VAL || factor > 1.0 ? 1.0 : factor;
    for (int64_t i = 0; i < step.count; ++i) step.launches[i].job->coefficient = coefficient;
    return true;
}

// From the last chunk to the first, which the cache still has after the norm's pass, is no faster: 0.995 to 1.01.
int32_t fastopt::launch(fastopt_step &step, int32_t threads) {
    int64_t launched = launch_on_gpus(step);
    if (launched < step.gpu_count) return launched == 0 ? 0 : FASTOPT_TORN;
    for (int64_t i = 0; i < step.rows; ++i) step.carried[i] = step.next[i];
    ++step.taken;
    for (int64_t i = 0; i < step.count; ++i) {
        ++step.launches[i].job->count;
        run(step.launches[i].kernel, step.launches[i], step.parallel, threads, i + 1 < step.count);
    }
    return 1;
}

extern "C" int32_t fastopt_take(fastopt_step *step, const int64_t *grads, int32_t threads) {
    if (!fastopt::write_rows(*step) || !fastopt::gpus_ready(*step)) return 0;
    if (!fastopt::goes_on(*step, grads, threads)) return FASTOPT_SKIPPED;
    return fastopt::launch(*step, threads);
}
