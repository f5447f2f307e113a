// Takes a step that differs from the last one only in where the gradients lie, and in its count.

#include "fastopt.h"
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

}  // namespace

extern "C" void fastopt_take(fastopt_step *step, const int64_t *grads, int32_t threads) {
    for (int64_t i = 0; grads != nullptr && i < step->n; ++i) *step->grads[i] = grads[i];
    for (int64_t i = 0; step->inputs != nullptr && i < step->rows; ++i) {
        double *row = step->hypers + i * FASTOPT_HYPERS;
        fastopt::write_row(step->inputs[i], step->taken, step->carried + i, row);
        row[0] *= step->scale;
    }
    ++step->taken;
    for (int64_t i = 0; i < step->count; ++i) run(step->launches[i], step->parallel, threads);
}
