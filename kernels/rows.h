// rows.h: hyper rows when Python does not compute them: on a GPU, and in a step that repeats the last one.

#ifndef FASTOPT_ROWS_H
#define FASTOPT_ROWS_H

#include "rules.h"
#include "tables.h"

namespace fastopt {

// The options of a row, `taken` steps after its inputs were written.
FASTOPT_DEVICE inline void resolve(const fastopt_row_inputs &inputs, double taken, double *options) {
    for (int i = 0; i < FASTOPT_OPTIONS; ++i) {
        const double *record = inputs.schedules[i];
        options[i] = record == nullptr ? inputs.options[i] : schedule(record, inputs.schedule_steps + taken);
    }
}

// Advances a rule's carried number by one step, and writes it into the last option.
template <class Rule>
FASTOPT_DEVICE inline auto carried_after(double *options, double step, double *carried, int)
    -> decltype(Rule::carry(options, step, *carried), void()) {
    options[Rule::options - 1] = *carried = Rule::carry(options, step, *carried);
}
// Most rules carry no number.
template <class Rule>
FASTOPT_DEVICE inline void carried_after(double *, double, double *, long) {}

// Writes the hyper row of the next step, `taken` steps after its inputs were written; updates `carried` if the rule has one.
FASTOPT_DEVICE inline void write_row(const fastopt_row_inputs &inputs, int64_t taken, double *carried, double *row) {
    double options[FASTOPT_OPTIONS];
    resolve(inputs, static_cast<double>(taken), options);
    double step = inputs.steps + static_cast<double>(taken) + 1.0;
    bool first = inputs.first != 0 && taken == 0;
    int64_t number = 0;
#define FASTOPT_ROW(name, Rule)                         \
    if (number++ == inputs.rule) {                      \
        carried_after<Rule>(options, step, carried, 0); \
        Rule::row(options, step, first, row);           \
    }
    FASTOPT_RULES(FASTOPT_ROW)
    FASTOPT_ROW(sparse_adam, SparseAdam)
#undef FASTOPT_ROW
}

}  // namespace fastopt

#endif
