// elements.h: what the kernels on GPUs have in common: elements as they are in memory, packs of them, and the argument.

#ifndef FASTOPT_ELEMENTS_H
#define FASTOPT_ELEMENTS_H

#include "tables.h"

#ifndef __CUDACC_RTC__
#include <cstring>
#endif

namespace fastopt {
namespace cuda {

#ifndef __CUDACC_RTC__
using std::memcpy;
#endif

// The 16-bit types as they are in memory. Their arithmetic is float's.
struct Float16 {
    unsigned short bits;
};
struct Bfloat16 {
    unsigned short bits;
};

template <typename T>
struct Arithmetic {
    using type = T;
};
template <>
struct Arithmetic<Float16> {
    using type = float;
};
template <>
struct Arithmetic<Bfloat16> {
    using type = float;
};

template <typename To, typename From>
__device__ inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(Bfloat16 x) { return bit_cast<float>(static_cast<unsigned>(x.bits) << 16); }
__device__ inline float widen(Float16 x) {
#ifdef __CUDACC__
    float wide;  // in assembly, since not every machine with a GPU has the headers for it
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#else
    return bit_cast<_Float16>(x.bits);
#endif
}

// Rounds to nearest even.
__device__ inline void narrow(float x, float &out) { out = x; }
__device__ inline void narrow(double x, double &out) { out = x; }
__device__ inline void narrow(float x, Bfloat16 &out) {
    unsigned bits = bit_cast<unsigned>(x);
    unsigned rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // sm_75 has no instruction for this
    out.bits = static_cast<unsigned short>(x == x ? rounded : 0x7FC0);
}
__device__ inline void narrow(float x, Float16 &out) {
#ifdef __CUDACC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    out.bits = bit_cast<unsigned short>(static_cast<_Float16>(x));
#endif
}

// Several elements, moved by one load or store. They bypass the L1 cache, since an update reads nothing twice. (The
// intrinsics also say that the memory is global.)
template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T lane[N];
};

template <int N, typename T>
__device__ inline Pack<T, N> load(const T *at) {
    Pack<T, N> pack;
    if (N == 1) {
        pack.lane[0] = *at;
    } else {
        constexpr int pieces = N * sizeof(T) / 16;
        uint4 piece[pieces > 0 ? pieces : 1];
        for (int i = 0; i < pieces; ++i) piece[i] = __ldcg(reinterpret_cast<const uint4 *>(at) + i);
        memcpy(&pack, piece, sizeof pack);
    }
    return pack;
}

template <int N, typename T>
__device__ inline void store(T *at, const Pack<T, N> &pack) {
    if (N == 1) {
        *at = pack.lane[0];
    } else {
        constexpr int pieces = N * sizeof(T) / 16;
        uint4 piece[pieces > 0 ? pieces : 1];
        memcpy(piece, &pack, sizeof pack);
        for (int i = 0; i < pieces; ++i) __stcg(reinterpret_cast<uint4 *>(at) + i, piece[i]);
    }
}

// A launch's argument: what differs from step to step travels in it, so that nothing has to be sent ahead.
template <int count>
struct Argument {
    fastopt_gpu_job job;
    int64_t words[count];
};

// The address of a tensor's gradient: in the argument's words, if they have it.
__device__ inline const void *gradient_of(const fastopt_gpu_job &job, const int64_t *words, const fastopt_chunk &chunk) {
    if (job.grads == 0) return job.tensors[chunk.tensor].grad;
    return reinterpret_cast<const void *>(words[chunk.tensor]);
}

}  // namespace cuda
}  // namespace fastopt

#endif
