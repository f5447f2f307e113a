// pool.h: what the pool offers to the rest of the extension.

#ifndef FASTOPT_POOL_H
#define FASTOPT_POOL_H

#include "fastopt.h"

namespace fastopt {

// As fastopt_run. If another job follows at once, the threads wait for it awake, for tens of microseconds: to wake one takes
// as long as a small job.
void run_pool(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads,
              bool another_follows);

}  // namespace fastopt

#endif
