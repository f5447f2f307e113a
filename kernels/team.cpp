// Runs a job on the threads of an OpenMP runtime that is in the process already, another library's: its threads are
// awake where ours would have to fight them for the cores. Nothing here links to OpenMP; the runtime's function that
// runs a parallel region is handed in.

#include <atomic>
#include <cstdint>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "fastopt.h"

namespace {

// GOMP_parallel, which GNU's runtime has, and those of LLVM and Intel as well.
using Parallel = void (*)(void (*region)(void *), void *data, unsigned threads, unsigned flags);

struct Region {
    fastopt_kernel kernel;
    const fastopt_job *job;
    int64_t chunks;
    int64_t grain;
    int64_t threads;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> workers{0};
};

// What each thread of the team does: claim chunks until there are none. The team has a size of its own; where it is
// larger than the job wants, those that come last have no scratch, and leave the work to the others.
void work(void *data) {
    Region &region = *static_cast<Region *>(data);
    int64_t worker = region.workers.fetch_add(1, std::memory_order_relaxed);
    if (worker >= region.threads) return;
    for (;;) {
        int64_t begin = region.next.fetch_add(region.grain, std::memory_order_relaxed);
        if (begin >= region.chunks) return;
        int64_t end = begin + region.grain < region.chunks ? begin + region.grain : region.chunks;
        region.kernel(region.job, begin, end, worker);
    }
}

// A forked child has no team, and waits for it forever.
std::atomic<bool> forked{false};

#if !defined(_WIN32)
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

}  // namespace

extern "C" void fastopt_run_team(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain,
                                 int32_t threads, const void *parallel) {
    if (threads < 2 || chunks <= grain || forked.load()) {
        kernel(job, 0, chunks, 0);
        return;
    }
    Region region{kernel, job, chunks, grain, threads};
    // The region's end is a barrier of the runtime, so that all that was written is seen here.
    // Zero asks for a team of the size that torch's own regions have: the runtime would end the threads that a smaller
    // one leaves over, and start others for torch's next region.
    reinterpret_cast<Parallel>(const_cast<void *>(parallel))(work, &region, 0, 0);
}
