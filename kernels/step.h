// step.h: a step that differs from the last one only in where the gradients lie, and in its hyper rows.

#ifndef FASTOPT_STEP_H
#define FASTOPT_STEP_H

#include "fastopt.h"

namespace fastopt {

// Writes the hyper rows of the step, if they are described; false where a number is too large, which is for Python to
// explain: then it has to compute the rows again, and nothing else has happened.
bool write_rows(fastopt_step &step);

// Counts the step, and launches it, with gradients at these addresses; null: where they lay in the last one.
void launch(fastopt_step &step, const int64_t *grads, int32_t threads);

}  // namespace fastopt

#endif
