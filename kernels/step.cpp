// Repeats a step when only the gradients' addresses and the hyper rows have changed.

#include "step.h"

#include <cmath>

#include "rows.h"

namespace {

void run(const fastopt_launch &launch, const void *parallel, int32_t threads) {
    if (threads > launch.workers) threads = static_cast<int32_t>(launch.workers);
    if (parallel != nullptr) {
        fastopt_run_team(launch.kernel, launch.job, launch.chunks, launch.grain, threads, parallel);
    } else {
        fastopt_run(launch.kernel, launch.job, launch.chunks, launch.grain, threads);
    }
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

int32_t fastopt::launch(fastopt_step &step, const int64_t *grads, int32_t threads) {
    for (int64_t i = 0; grads != nullptr && i < step.n; ++i) *step.grads[i] = grads[i];
    int64_t launched = launch_on_gpus(step);
    if (launched < step.gpu_count) return launched == 0 ? 0 : FASTOPT_TORN;
    for (int64_t i = 0; i < step.rows; ++i) step.carried[i] = step.next[i];
    ++step.taken;
    for (int64_t i = 0; i < step.count; ++i) run(step.launches[i], step.parallel, threads);
    return 1;
}

extern "C" int32_t fastopt_take(fastopt_step *step, const int64_t *grads, int32_t threads) {
    if (!fastopt::write_rows(*step) || !fastopt::gpus_ready(*step)) return 0;
    return fastopt::launch(*step, grads, threads);
}
