// host_cuda.h: the names of CUDA that the kernels use, for g++, which compiles behind it the very source that CuPy gets.
// Threads run one after another, in order or, with a seed, in any other. Where they wait for each other, those of a block
// run in turns, each up to the next place where it waits, on a stack of its own.

#include <stdint.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#define __device__
#define __global__
#define __shared__ static thread_local
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// One for all files of a library, which share the templates that read them.
inline thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;
inline thread_local int64_t wide_accesses;  // of 16 bytes at once
inline thread_local bool misaligned;        // one of them, where a GPU would fault

template <typename T>
bool whole_access(const T *at) {
    bool faults = reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0;
    misaligned |= faults;
    wide_accesses += sizeof(T) == 16;
    return !faults;
}

// Of uint4, uint2, unsigned and unsigned short.
template <typename T>
T __ldcg(const T *at) {
    T value = {};
    if (whole_access(at)) memcpy(&value, static_cast<const void *>(at), sizeof(T));
    return value;
}

template <typename T>
void __stcg(T *at, T value) {
    if (whole_access(at)) memcpy(static_cast<void *>(at), &value, sizeof(T));
}

// Small numbers are zero while this lives, as CuPy compiles kernels; double's too, which on a GPU are not.
class Flushing {
public:
#if defined(__SSE2__)
    Flushing() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // results, and what is read
    ~Flushing() { _mm_setcsr(before_); }

private:
    unsigned before_;
#endif
};

// Puts numbers into an order that a seed decides. <random> and <functional> take longer to compile than most kernels.
class Shuffler {
public:
    explicit Shuffler(unsigned seed) : state_(seed) {}

    void shuffle(std::vector<unsigned> &order) {
        for (size_t left = order.size(); left > 1; --left) std::swap(order[left - 1], order[next() % left]);
    }

private:
    // Of a linear congruential generator (Knuth's MMIX), the upper half.
    uint64_t next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return state_ >> 32;
    }

    uint64_t state_;
};

// A block whose threads wait for each other. What would hang on a GPU, or is not defined there, aborts.
class Block {
public:
    enum Wait { finished, block, warp };
    static constexpr unsigned warp_threads = 32;

    // What each thread does is body(argument).
    Block(void (*body)(void *), void *argument, unsigned threads)
        : body_(body), argument_(argument), threads_(threads), contexts_(threads), waits_(threads),
          stacks_(new char[threads * stack_bytes]) {}
    ~Block() { delete[] stacks_; }
    Block(const Block &) = delete;
    Block &operator=(const Block &) = delete;

    // Runs the threads in turns: of each turn in order, or shuffled.
    void run(Shuffler *shuffler) {
        std::vector<unsigned> order(threads_);
        std::iota(order.begin(), order.end(), 0u);
        current = this;
        for (unsigned i : order) start(i);
        while (!order.empty()) {
            if (shuffler != nullptr) shuffler->shuffle(order);
            for (unsigned i : order) resume(i);
            order.erase(std::remove_if(order.begin(), order.end(), [this](unsigned i) { return waits_[i] == finished; }),
                        order.end());
            for (unsigned i : order) {
                bool alike = std::all_of(order.begin(), order.end(), [&](unsigned k) {
                    bool together = waits_[i] == block || k / warp_threads == i / warp_threads;
                    return !together || waits_[k] == waits_[i];
                });
                if (!alike) abort();
            }
        }
        current = nullptr;
    }

    // Called by a thread: the others run before it goes on.
    static void wait(Wait kind) {
        if (current == nullptr) abort();  // the launcher does not know that these threads wait
        unsigned i = threadIdx.x;
        current->waits_[i] = kind;
        swapcontext(&current->contexts_[i], &current->scheduler_);
    }

    // Called by a thread that waited with its warp.
    static void check_whole_warp() {
        unsigned first = threadIdx.x / warp_threads * warp_threads;
        for (unsigned i = first; i < first + warp_threads; ++i) {
            if (current->waits_[i] != warp) abort();
        }
    }

    // What a thread of the warp gave, at most 8 bytes.
    static double &given(unsigned i) {
        static thread_local double numbers[1024];
        return numbers[i];
    }

private:
    static constexpr size_t stack_bytes = 1 << 16;

    void start(unsigned i) {
        getcontext(&contexts_[i]);
        contexts_[i].uc_stack.ss_sp = stacks_ + i * stack_bytes;
        contexts_[i].uc_stack.ss_size = stack_bytes;
        contexts_[i].uc_link = &scheduler_;
        makecontext(&contexts_[i], thread, 0);
    }
    static void thread() {
        unsigned i = threadIdx.x;
        current->body_(current->argument_);
        current->waits_[i] = finished;
    }
    void resume(unsigned i) {
        threadIdx = {i, 0, 0};
        swapcontext(&scheduler_, &contexts_[i]);
    }

    static thread_local Block *current;
    void (*body_)(void *);
    void *argument_;
    unsigned threads_;
    ucontext_t scheduler_;
    std::vector<ucontext_t> contexts_;
    std::vector<Wait> waits_;
    char *stacks_;  // not zeroed
};
inline thread_local Block *Block::current = nullptr;

inline void __syncthreads() { Block::wait(Block::block); }

// What another thread of the warp gives at the same place, all of whose threads must be there: none has finished.
template <typename T>
T taken_from(unsigned from, unsigned mask, T x) {
    if (mask != 0xFFFFFFFF || blockDim.x % Block::warp_threads != 0) abort();
    memcpy(&Block::given(threadIdx.x), &x, sizeof x);
    Block::wait(Block::warp);
    Block::check_whole_warp();
    T taken;
    memcpy(&taken, &Block::given(from), sizeof taken);
    Block::wait(Block::warp);
    return taken;
}

template <typename T>
T __shfl_down_sync(unsigned mask, T x, unsigned apart) {
    unsigned i = threadIdx.x, from = i % Block::warp_threads + apart < Block::warp_threads ? i + apart : i;
    return taken_from(from, mask, x);
}

inline unsigned __shfl_xor_sync(unsigned mask, unsigned x, int apart) {
    if (apart < 0 || apart >= static_cast<int>(Block::warp_threads)) abort();
    return taken_from(threadIdx.x ^ static_cast<unsigned>(apart), mask, x);
}

// Not contracted with anything.
inline float __fmul_rn(float a, float b) { return a * b; }

template <typename... Arguments, size_t... I>
void host_call(void (*kernel)(Arguments...), void *const *arguments, std::index_sequence<I...>) {
    kernel(*static_cast<Arguments *>(arguments[I])...);
}

// Runs every thread of every block on arguments at these addresses, as cuLaunchKernel takes them; returns how many
// accesses were wide, or -1 where one was misaligned.
template <typename... Arguments>
int64_t host_launch(void (*kernel)(Arguments...), void *const *arguments, unsigned grid, unsigned block, unsigned seed,
                    bool waits) {
    unsigned together = waits ? block : 1;  // threads that are one piece of work
    std::vector<unsigned> order(static_cast<size_t>(grid) * (block / together));
    std::iota(order.begin(), order.end(), 0u);
    Shuffler shuffler(seed);
    if (seed != 0) shuffler.shuffle(order);
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    wide_accesses = 0;
    misaligned = false;
    Flushing flushing;
    auto call = [&] { host_call(kernel, arguments, std::index_sequence_for<Arguments...>()); };
    for (unsigned number : order) {
        blockIdx = {number * together / block, 0, 0};
        threadIdx = {number * together % block, 0, 0};
        if (waits) {
            Block([](void *it) { (*static_cast<decltype(call) *>(it))(); }, &call, block).run(seed != 0 ? &shuffler : nullptr);
        } else {
            call();
        }
    }
    return misaligned ? -1 : wide_accesses;
}

// The bytes of a kernel's arguments.
template <typename... Arguments>
int64_t host_size(void (*)(Arguments...)) {
    return (int64_t{0} + ... + static_cast<int64_t>(sizeof(Arguments)));
}

// What follows the source: a kernel's launcher, with whether its threads wait, the size of its arguments, and the two
// conversions of a half.
#define HOST_LAUNCHER(name, waits)                                                                               \
    extern "C" int64_t launch_##name(void *const *arguments, unsigned grid, unsigned block, unsigned seed) {     \
        return host_launch(name, arguments, grid, block, seed, waits);                                           \
    }                                                                                                            \
    extern "C" int64_t size_##name() { return host_size(name); }
#define HOST_CONVERSIONS(name, Half)                                               \
    extern "C" void widen_##name(const Half *from, float *to, int64_t n) {         \
        for (int64_t i = 0; i < n; ++i) to[i] = fastopt::cuda::widen(from[i]);     \
    }                                                                              \
    extern "C" void narrow_##name(const float *from, Half *to, int64_t n) {        \
        for (int64_t i = 0; i < n; ++i) fastopt::cuda::narrow(from[i], to[i]);     \
    }
