// advance.cu: the two small kernels ahead of an update: `send` writes into tables, `advance` counts a step and computes
// its hyper rows, in double, where the host does not see whether the step is taken.

#include "rules.h"
#include "tables.h"

namespace fastopt {
namespace cuda {

// The options of a cohort, as they are after so many further steps.
__device__ inline void resolve(const fastopt_cohort &cohort, double taken, double *options) {
    for (int i = 0; i < FASTOPT_OPTIONS; ++i) {
        const double *record = cohort.schedules[i];
        options[i] = record == nullptr ? cohort.options[i] : schedule(record, cohort.clock + taken);
    }
}

// The hyper row of a cohort's next step.
__device__ inline void write_row(const fastopt_cohort &cohort, int64_t taken, double *row) {
    double options[FASTOPT_OPTIONS];
    resolve(cohort, static_cast<double>(taken), options);
    double step = cohort.steps + static_cast<double>(taken) + 1.0;
    bool first = cohort.first != 0 && taken == 0;
    int64_t number = 0;
#define FASTOPT_ROW(name, Rule) \
    if (number++ == cohort.rule) Rule::row(options, step, first, row);
    FASTOPT_RULES(FASTOPT_ROW)
#undef FASTOPT_ROW
}

}  // namespace cuda
}  // namespace fastopt

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
        fastopt::cuda::write_row(course.cohorts[i], *course.taken, row);
        if (course.scale != nullptr) row[0] *= 1.0 / *course.scale;
        for (int k = 0; k < FASTOPT_HYPERS; ++k) rounded[k] = static_cast<float>(row[k]);
    }
    ++*course.taken;
}
