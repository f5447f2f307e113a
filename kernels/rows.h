// rows.h: the hyper row of a cohort's next step, where Python does not compute it: on a GPU, and in a step that repeats
// the last one.

#ifndef FASTOPT_ROWS_H
#define FASTOPT_ROWS_H

#include "rules.h"
#include "tables.h"

namespace fastopt {

// The options of a cohort, as they are after so many further steps.
FASTOPT_DEVICE inline void resolve(const fastopt_cohort &cohort, double taken, double *options) {
    for (int i = 0; i < FASTOPT_OPTIONS; ++i) {
        const double *record = cohort.schedules[i];
        options[i] = record == nullptr ? cohort.options[i] : schedule(record, cohort.clock + taken);
    }
}

// The hyper row of a cohort's next step.
FASTOPT_DEVICE inline void write_row(const fastopt_cohort &cohort, int64_t taken, double *row) {
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

}  // namespace fastopt

#endif
