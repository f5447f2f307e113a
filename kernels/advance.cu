// advance.cu: the two small kernels ahead of an update: `send` writes into tables, `advance` counts a step and computes
// its hyper rows, in double, where the host does not see whether the step is taken.

#include "rows.h"

extern "C" __global__ void send(const __grid_constant__ fastopt_message message) {
    if (message.edition != nullptr && *message.edition >= message.number) return;
    for (int64_t i = threadIdx.x; i < message.count; i += blockDim.x) {
        message.to[i * message.apart] = message.words[i];
    }
}

// One thread: there is a cohort for each group, as a rule.
extern "C" __global__ void advance(const __grid_constant__ fastopt_course course) {
    if (course.skip != nullptr && *course.skip != 0) return;
    for (int64_t i = 0; i < course.n; ++i) {
        double *row = course.hypers + i * FASTOPT_HYPERS;
        float *rounded = course.rounded + i * FASTOPT_HYPERS;
        fastopt::write_row(course.cohorts[i], *course.taken, row);
        if (course.scale != nullptr) row[0] *= 1.0 / *course.scale;
        for (int k = 0; k < FASTOPT_HYPERS; ++k) rounded[k] = static_cast<float>(row[k]);
    }
    ++*course.taken;
}
