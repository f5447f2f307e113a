// The pool: threads that run a kernel over the chunks of a job.
//
// Its one idea: the caller never waits for a sleeping thread. It publishes the job, wakes the sleepers, and starts on the
// chunks itself. A job ends when all its claims are done, not when all threads have come, so a worker that wakes too late
// finds nothing left.
//
// One 64-bit ticket holds threads | total | next. A claim is a compare-and-swap of next to next + 1, valid only while
// next < total in the same word, and a job cannot end while a claim is not done. So a worker may read the job after its
// claim, however long it slept before, without a lock or an epoch.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif

#include "pool.h"

namespace {

constexpr int kClaimBits = 24;
constexpr uint64_t kClaimMask = (uint64_t{1} << kClaimBits) - 1;
constexpr int kMaxThreads = 1024;
constexpr int kSpins = 2000;  // tens of microseconds: so long a thread waits, before it yields its core or sleeps

constexpr uint64_t pack(uint64_t threads, uint64_t total) {
    return threads << (2 * kClaimBits) | total << kClaimBits;
}
constexpr uint64_t next_of(uint64_t ticket) { return ticket & kClaimMask; }
constexpr uint64_t total_of(uint64_t ticket) { return ticket >> kClaimBits & kClaimMask; }
constexpr uint64_t threads_of(uint64_t ticket) { return ticket >> (2 * kClaimBits); }

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    __asm__ __volatile__("yield");
#endif
}

struct Job {
    fastopt_kernel kernel;
    const fastopt_job *job;
    int64_t chunks;
    int64_t grain;

    void run(uint64_t claim, int64_t worker) const {
        int64_t begin = static_cast<int64_t>(claim) * grain;
        int64_t end = begin + grain < chunks ? begin + grain : chunks;
        kernel(job, begin, end, worker);
    }
};

// New threads inherit this mask: signals are for the interpreter's own threads.
class SignalsBlocked {
#if !defined(_WIN32)
public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

private:
    sigset_t before_;
#endif
};

// A worker's bed. The caller touches its mutex only when the worker lies down or sleeps, never while it works.
class Bed {
public:
    // Announces the wish to sleep: from here on either a caller that publishes a job sees it, or the worker sees the job.
    void announce() { asleep_.store(true, std::memory_order_seq_cst); }

    // Takes the announcement back; false if a caller has answered it already, and its signal must be consumed.
    bool withdraw() { return asleep_.exchange(false, std::memory_order_seq_cst); }

    void sleep() {
        std::unique_lock<std::mutex> lock(mutex_);
        signal_.wait(lock, [this] { return signalled_; });
        signalled_ = false;
    }

    void wake() {
        if (!asleep_.exchange(false, std::memory_order_seq_cst)) return;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            signalled_ = true;
        }
        signal_.notify_one();
    }

private:
    std::atomic<bool> asleep_{false};
    std::mutex mutex_;
    std::condition_variable signal_;
    bool signalled_ = false;
};

class Pool {
public:
    void run(const Job &job, int threads, bool another_follows) {
        start(threads - 1);
        if (threads > workers_ + 1) threads = workers_ + 1;
        uint64_t total = static_cast<uint64_t>((job.chunks + job.grain - 1) / job.grain);
        job_ = job;
        another_follows_.store(another_follows, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(pack(static_cast<uint64_t>(threads), total), std::memory_order_seq_cst);
        for (int worker = 1; worker < threads && static_cast<uint64_t>(worker) < total; ++worker) beds_[worker]->wake();
        work(0);
        for (int spins = 0; done_.load(std::memory_order_acquire) < total; ++spins) {
            if (spins < kSpins) {
                relax();
            } else {
                std::this_thread::yield();
            }
        }
    }

private:
    // Runs claims until none is left for this worker.
    void work(int worker) {
        uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
        while (open(ticket, worker)) {
            if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
                job_.run(next_of(ticket), worker);
                done_.fetch_add(1, std::memory_order_release);
                ticket = ticket_.load(std::memory_order_acquire);
            }
        }
    }

    static bool open(uint64_t ticket, int worker) {
        return next_of(ticket) < total_of(ticket) && static_cast<uint64_t>(worker) < threads_of(ticket);
    }

    // Waits for a job, awake, for tens of microseconds; false if none came.
    bool wait(int worker) {
        for (int spins = 0; spins < kSpins; ++spins) {
            if (open(ticket_.load(std::memory_order_seq_cst), worker)) return true;
            relax();
        }
        return false;
    }

    void serve(int worker, Bed *bed) {
        for (;;) {
            work(worker);
            if (another_follows_.load(std::memory_order_relaxed) && wait(worker)) continue;
            bed->announce();
            // Whoever published a job between work() and announce() saw nobody asleep: check once more.
            if (open(ticket_.load(std::memory_order_seq_cst), worker) && bed->withdraw()) continue;
            bed->sleep();
        }
    }

    // Starts workers up to a count, or as many as the system allows. They are detached and never end, since the process
    // may exit at any time; their pool is never freed.
    void start(int count) {
        if (count >= kMaxThreads) count = kMaxThreads - 1;
        if (workers_ >= count) return;
        SignalsBlocked blocked;
        while (workers_ < count) {
            int worker = workers_ + 1;
            try {
                Bed *bed = beds_[worker] ? beds_[worker] : new Bed;
                beds_[worker] = bed;
                std::thread([this, worker, bed] { serve(worker, bed); }).detach();
            } catch (const std::exception &) {
                return;
            }
            workers_ = worker;
        }
    }

    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<uint64_t> done_{0};
    std::atomic<bool> another_follows_{false};
    alignas(64) Job job_{};
    int workers_ = 0;
    Bed *beds_[kMaxThreads] = {};
};

// One job at a time has the workers; other callers run alone instead of waiting.
std::atomic<bool> busy{false};
Pool *pool = nullptr;  // touched only by the thread that has set busy

#if !defined(_WIN32)
// The child has none of the threads, and locks that they held stay locked: it starts a new pool and leaks the parent's.
void after_fork_in_child() {
    pool = nullptr;
    busy.store(false);
}

[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif

}  // namespace

void fastopt::run_pool(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads,
                       bool another_follows) {
    int64_t smallest = (chunks + static_cast<int64_t>(kClaimMask) - 1) / static_cast<int64_t>(kClaimMask);
    if (grain < smallest) grain = smallest;
    if (threads < 2 || chunks <= grain || busy.exchange(true, std::memory_order_acquire)) {
        kernel(job, 0, chunks, 0);
        return;
    }
    if (pool == nullptr) pool = new (std::nothrow) Pool;
    if (pool != nullptr) {
        pool->run(Job{kernel, job, chunks, grain}, threads, another_follows);
    } else {
        kernel(job, 0, chunks, 0);
    }
    busy.store(false, std::memory_order_release);
}

extern "C" void fastopt_run(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain,
                            int32_t threads) {
    fastopt::run_pool(kernel, job, chunks, grain, threads, false);
}

extern "C" int64_t fastopt_abi(void) { return FASTOPT_ABI; }
