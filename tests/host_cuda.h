// host_cuda.h: the names of CUDA that the kernels use, for g++, which compiles behind it the very source that CuPy gets.
// Threads run one after another, in order or, with a seed, in any other; none of them can wait for another.

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

static thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;
static thread_local int64_t wide_accesses;  // of 16 bytes at once
static thread_local bool misaligned;        // one of them, where a GPU would fault

static bool wide_access(const uint4 *at) {
    bool faults = reinterpret_cast<uintptr_t>(at) % 16 != 0;
    misaligned |= faults;
    ++wide_accesses;
    return !faults;
}

inline uint4 __ldcg(const uint4 *at) {
    uint4 value = {0, 0, 0, 0};
    if (wide_access(at)) memcpy(&value, static_cast<const void *>(at), 16);
    return value;
}

inline void __stcg(uint4 *at, uint4 value) {
    if (wide_access(at)) memcpy(static_cast<void *>(at), &value, 16);
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

template <typename... Arguments, size_t... I>
void host_call(void (*kernel)(Arguments...), void *const *arguments, std::index_sequence<I...>) {
    kernel(*static_cast<Arguments *>(arguments[I])...);
}

// Runs every thread of every block on arguments at these addresses, as cuLaunchKernel takes them; returns how many
// accesses were wide, or -1 where one was misaligned.
template <typename... Arguments>
int64_t host_launch(void (*kernel)(Arguments...), void *const *arguments, unsigned grid, unsigned block, unsigned seed) {
    std::vector<unsigned> order(static_cast<size_t>(grid) * block);
    std::iota(order.begin(), order.end(), 0u);
    if (seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    wide_accesses = 0;
    misaligned = false;
    Flushing flushing;
    for (unsigned number : order) {
        blockIdx = {number / block, 0, 0};
        threadIdx = {number % block, 0, 0};
        host_call(kernel, arguments, std::index_sequence_for<Arguments...>());
    }
    return misaligned ? -1 : wide_accesses;
}

// The bytes of a kernel's arguments.
template <typename... Arguments>
int64_t host_size(void (*)(Arguments...)) {
    return (int64_t{0} + ... + static_cast<int64_t>(sizeof(Arguments)));
}

// What follows the source: a kernel's launcher, the size of its arguments, and the two conversions of a half.
#define HOST_LAUNCHER(name)                                                                                      \
    extern "C" int64_t launch_##name(void *const *arguments, unsigned grid, unsigned block, unsigned seed) {     \
        return host_launch(name, arguments, grid, block, seed);                                                  \
    }                                                                                                            \
    extern "C" int64_t size_##name() { return host_size(name); }
#define HOST_CONVERSIONS(name, Half)                                               \
    extern "C" void widen_##name(const Half *from, float *to, int64_t n) {         \
        for (int64_t i = 0; i < n; ++i) to[i] = fastopt::cuda::widen(from[i]);     \
    }                                                                              \
    extern "C" void narrow_##name(const float *from, Half *to, int64_t n) {        \
        for (int64_t i = 0; i < n; ++i) fastopt::cuda::narrow(from[i], to[i]);     \
    }
