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
__device__ inline void narrow(double x, float &out) { out = static_cast<float>(x); }
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

// A master: a parameter of 16 bits and its remainder. cpu.py has the same, and says more.
__device__ inline float joined(Bfloat16 p, int remainder, int shift) {
    float master = bit_cast<float>((static_cast<unsigned>(p.bits) << 16) + (static_cast<unsigned>(remainder) << shift));
    return master == master ? master : widen(p);
}
__device__ inline float joined(Bfloat16 p, int16_t remainder) { return joined(p, remainder, 0); }
__device__ inline float joined(Bfloat16 p, int8_t remainder) { return joined(p, remainder, 8); }
__device__ inline float joined(Float16 p, float master) {
    Float16 seen;
    narrow(master, seen);
    return seen.bits == p.bits ? master : widen(p);
}
template <typename R>
__device__ inline void split(float x, Bfloat16 &p, R &remainder) {
    constexpr int shift = 16 - 8 * sizeof(R);
    constexpr unsigned half = 1u << shift >> 1, mask = 0xFFFFFFFFu << shift;
    unsigned master = x == x ? (bit_cast<unsigned>(x) + half) & mask : 0x7FC00000;
    p.bits = static_cast<unsigned short>((master + 0x8000) >> 16);
    remainder = static_cast<R>(static_cast<int16_t>(master) >> shift);
}
__device__ inline void split(float x, Float16 &p, float &master) {
    narrow(x, p);
    master = x;
}

// Stochastic rounding: random bits are added to those that are cut off. cpu.py has the same, to the bit, and says more.
__device__ inline void narrow(float x, float &out, unsigned) { out = x; }
__device__ inline void narrow(double x, float &out, unsigned) { out = static_cast<float>(x); }
__device__ inline void narrow(double x, double &out, unsigned) { out = x; }
__device__ inline void narrow(float x, Bfloat16 &out, unsigned noise) {
    unsigned rounded = (bit_cast<unsigned>(x) + noise) >> 16;
    out.bits = static_cast<unsigned short>(x == x ? rounded : 0x7FC0);
}
__device__ inline void narrow(float x, Float16 &out, unsigned noise) {
    constexpr unsigned largest = (127u + 16) << 23, least = (127u - 14) << 23;  // exponents: of infinity and of 2^-14
    unsigned bits = bit_cast<unsigned>(x), size = bits & 0x7FFFFFFF;
    if (size > largest) size = largest;
    unsigned exponent = size & 0x7F800000;
    if (exponent < least) exponent = least;
    float scaled = bit_cast<float>(size) * bit_cast<float>(((254u + 26) << 23) - exponent);
    unsigned units = (static_cast<unsigned>(scaled) + noise) >> 16;
    unsigned half = x == x ? (exponent >> 13) - ((127u - 14) << 10) + units : 0x7E00u;
    out.bits = static_cast<unsigned short>(half | ((bits >> 16) & 0x8000));
}

// Whether what is computed is rounded to a type. What is rounded, of the parameter and the states, has a number.
template <typename S>
struct IsRounded {
    static constexpr int value = sizeof(S) < sizeof(float);
};

// How the elements of a pack are rounded when they are stored: lane k of what has a number.
struct ToNearest {
    __device__ ToNearest(const fastopt_gpu_job &, int64_t, int64_t) {}
    template <typename From, typename To>
    __device__ void narrow(From x, To &out, int, int) const {
        cuda::narrow(x, out);
    }
};
struct Stochastically {
    unsigned low, high, start;  // 64 bits for the tensor and the step, and the index of the pack's first element

    __device__ Stochastically(const fastopt_gpu_job &job, int64_t tensor, int64_t at) {
        auto count = static_cast<uint64_t>(job.count + (job.counted != nullptr ? *job.counted : 0));
        uint64_t x = static_cast<uint64_t>(job.storages[tensor].key + (at >> 32)) + count * 0x9E3779B97F4A7C15u;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
        low = static_cast<unsigned>(x);
        high = static_cast<unsigned>(x >> 32);
        start = static_cast<unsigned>(at);
    }
    __device__ unsigned noise(int number, int k) const {
        unsigned x = (start + k) ^ low;
        x = (x ^ (x >> 17)) * 0xED5AD4BBu + (high ^ (number > 1 ? 0x9E3779B9u : 0u));
        x = (x ^ (x >> 11)) * 0xAC4C1B51u;
        x = (x ^ (x >> 15)) * 0x31848BABu;
        x ^= x >> 14;
        return number % 2 != 0 ? x >> 16 : x & 0xFFFF;
    }
    template <typename From, typename To>
    __device__ void narrow(From x, To &out, int number, int k) const {
        cuda::narrow(x, out, noise(number, k));
    }
};
template <bool random>
struct Rounding {
    using type = ToNearest;
};
template <>
struct Rounding<true> {
    using type = Stochastically;
};

// Several elements, moved by one load or store. They bypass the L1 cache, since an update reads nothing twice. (The
// intrinsics also say that the memory is global.)
template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T lane[N];
};

// What moves a pack of so many bytes: it is a multiple of 16, or smaller.
template <int bytes>
struct Piece {
    using type = uint4;
};
template <>
struct Piece<8> {
    using type = uint2;
};
template <>
struct Piece<4> {
    using type = unsigned;
};
template <>
struct Piece<2> {
    using type = unsigned short;
};

template <int N, typename T>
__device__ inline Pack<T, N> load(const T *at) {
    Pack<T, N> pack;
    if (N == 1) {
        pack.lane[0] = *at;
    } else {
        using Whole = typename Piece<sizeof pack>::type;
        constexpr int pieces = sizeof pack / sizeof(Whole);
        Whole piece[pieces > 0 ? pieces : 1];
        for (int i = 0; i < pieces; ++i) piece[i] = __ldcg(reinterpret_cast<const Whole *>(at) + i);
        memcpy(&pack, piece, sizeof pack);
    }
    return pack;
}

template <int N, typename T>
__device__ inline void store(T *at, const Pack<T, N> &pack) {
    if (N == 1) {
        *at = pack.lane[0];
    } else {
        using Whole = typename Piece<sizeof pack>::type;
        constexpr int pieces = sizeof pack / sizeof(Whole);
        Whole piece[pieces > 0 ? pieces : 1];
        memcpy(piece, &pack, sizeof pack);
        for (int i = 0; i < pieces; ++i) __stcg(reinterpret_cast<Whole *>(at) + i, piece[i]);
    }
}

// The same at an index. `Share` in codes.h is another way to say where, for as many elements as there are.
template <int N, typename T>
__device__ inline Pack<T, N> load(const T *from, int64_t at) {
    return load<N>(from + at);
}
template <int N, typename T>
__device__ inline void store_at(T *to, int64_t at, const Pack<T, N> &pack) {
    store<N>(to + at, pack);
}

// A pack of parameters, with their remainders if these have a type.
template <int N, typename P, typename R>
struct Params {
    static constexpr int rounded = 0;
    Pack<P, N> seen;
    Pack<R, N> rest;

    template <class At>
    __device__ Params(const P *param, const void *remainder, const At &at)
        : seen(load<N>(param, at)), rest(load<N>(static_cast<const R *>(remainder), at)) {}
    __device__ float widen(int k) const { return joined(seen.lane[k], rest.lane[k]); }
    template <class How>
    __device__ void narrow(int k, float x, const How &) {
        split(x, seen.lane[k], rest.lane[k]);
    }
    template <class At>
    __device__ void store(P *param, void *remainder, const At &at) const {
        store_at(param, at, seen);
        store_at(static_cast<R *>(remainder), at, rest);
    }
};
template <int N, typename P>
struct Params<N, P, void> {
    static constexpr int rounded = IsRounded<P>::value;
    Pack<P, N> seen;

    template <class At>
    __device__ Params(const P *param, const void *, const At &at) : seen(load<N>(param, at)) {}
    __device__ typename Arithmetic<P>::type widen(int k) const { return cuda::widen(seen.lane[k]); }
    template <class How>
    __device__ void narrow(int k, typename Arithmetic<P>::type x, const How &rounding) {
        rounding.narrow(x, seen.lane[k], 0, k);
    }
    template <class At>
    __device__ void store(P *param, void *, const At &at) const {
        store_at(param, at, seen);
    }
};

// Bytes of an element, 0 if there is none.
template <typename T>
struct Bytes {
    static constexpr int of = sizeof(T);
};
template <>
struct Bytes<void> {
    static constexpr int of = 0;
};

// The types of a rule's states: one for each or, if only one is given, that for all.
template <typename... S>
struct States {
    static constexpr int bytes = (0 + ... + static_cast<int>(sizeof(S)));  // of an element of each
};
template <int count, typename S, typename... Same>
struct Repeated : Repeated<count - 1, S, S, Same...> {};
template <typename S, typename... Same>
struct Repeated<0, S, Same...> {
    using type = States<Same...>;
};
template <int count, typename... S>
struct StatesOf {
    static_assert(sizeof...(S) == count, "a type for each state");
    using type = States<S...>;
};
template <int count, typename S>
struct StatesOf<count, S> : Repeated<count, S> {};

// A pack of each of the states.
template <int N, typename Types>
struct Packs {
    __device__ void load(void *const *, int64_t) {}
    __device__ void store(void *const *, int64_t) const {}
    template <typename Real>
    __device__ void widen(int, Real *) const {}
    template <typename Real, class How>
    __device__ void narrow(int, const Real *, const How &, int) {}
};
template <int N, typename S, typename... Others>
struct Packs<N, States<S, Others...>> {
    Pack<S, N> first;
    Packs<N, States<Others...>> others;

    __device__ void load(void *const *states, int64_t at) {
        first = cuda::load<N>(static_cast<const S *>(*states) + at);
        others.load(states + 1, at);
    }
    __device__ void store(void *const *states, int64_t at) const {
        cuda::store<N>(static_cast<S *>(*states) + at, first);
        others.store(states + 1, at);
    }
    // Reads lane k of all states, or writes it.
    template <typename Real>
    __device__ void widen(int k, Real *to) const {
        *to = cuda::widen(first.lane[k]);
        others.widen(k, to + 1);
    }
    template <typename Real, class How>
    __device__ void narrow(int k, const Real *from, const How &rounding, int number) {
        rounding.narrow(*from, first.lane[k], number, k);
        others.narrow(k, from + 1, rounding, number + IsRounded<S>::value);
    }
};

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
