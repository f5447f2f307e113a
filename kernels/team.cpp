// Runs a job on the threads of an OpenMP runtime that another library has loaded: they are awake, and ours would have to
// compete with them for the cores. Nothing here links to OpenMP; the caller passes the runtime's function that runs a
// parallel region.

#include <atomic>
#include <cstdint>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "fastopt.h"

namespace {

// GOMP_parallel, which the runtimes of GNU, LLVM and Intel have.
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

// Each thread of the team claims chunks until none are left. The team may be larger than the job wants; the threads that
// come last then have no scratch memory, and return.
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

// A forked child has no team, and would wait for it forever.
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
    // The region ends with a barrier, so everything that its threads wrote is visible here.
    // Zero asks for a team as large as torch's own regions have: after a smaller one the runtime would end the spare
    // threads, and start new ones for torch's next region.
    reinterpret_cast<Parallel>(const_cast<void *>(parallel))(work, &region, 0, 0);
}
