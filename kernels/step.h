// step.h: a step that differs from the last one only in where the gradients lie, and in its hyper rows.

#ifndef FASTOPT_STEP_H
#define FASTOPT_STEP_H

#include "fastopt.h"

namespace fastopt {

// Writes the hyper rows of the step, if they are described; false where a number is too large, which is for Python to
// explain: then it has to compute the rows again, and nothing else has happened.
bool write_rows(fastopt_step &step);

// Asks for the streams of all GPUs; false if one does not take launches now.
bool gpus_ready(const fastopt_step &step);

// Launches what goes on GPUs, with the hyper rows; returns how many launches the driver has taken, up to one that failed.
int64_t launch_on_gpus(fastopt_step &step);

// Writes the addresses of the gradients (null: they lie where they lay in the last step), and takes their norm if somebody
// asks for it; false if the step is to be skipped.
bool goes_on(fastopt_step &step, const int64_t *grads, int32_t threads);

// Launches the step, and counts it; returns what fastopt_take does.
int32_t launch(fastopt_step &step, int32_t threads);

}  // namespace fastopt

#endif
