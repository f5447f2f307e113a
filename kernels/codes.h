// codes.h: states in 8 bits on GPUs: codes in blocks with a scale each. cpu.py has the same codes, and says more of them.
//
// A thread has some neighbouring elements of a block, and the threads of a block are neighbours in a warp.

#ifndef FASTOPT_CODES_H
#define FASTOPT_CODES_H

#include "elements.h"

namespace fastopt {
namespace cuda {

// Of numbers with a sign, and of those that are never negative; each with its bias, the bits that are cut off, and the
// last code.
struct Signed {
    static constexpr float bias = 22.0f / 64.0f;
    static constexpr unsigned bits_of_bias = 0x3EB00000, cut = 17, last = 126;
    signed char code;
};
struct Unsigned {
    static constexpr float bias = 1.125f * 0x1p-32f;
    static constexpr unsigned bits_of_bias = 0x2F900000, cut = 20, last = 255;
    unsigned char code;
};

template <typename S>
struct IsCode {
    static constexpr bool value = false;
};
template <>
struct IsCode<Signed> {
    static constexpr bool value = true;
};
template <>
struct IsCode<Unsigned> {
    static constexpr bool value = true;
};
template <typename Types>
struct HasCodes;
template <typename... S>
struct HasCodes<States<S...>> {
    static constexpr bool value = (false || ... || IsCode<S>::value);
};

constexpr unsigned smallest_scale = 0x12800000, largest_scale = 0x7B000000, no_scale = 0x7FC00000;
constexpr unsigned half = 0x8000;  // the noise that rounds to nearest

// Products are not to be contracted with a sum, here or in the rule: the bits are those of the CPU.
template <typename S>
__device__ inline float decoded_size(unsigned code, float scale) {
    return __fmul_rn(scale, bit_cast<float>((code << S::cut) + S::bits_of_bias) - S::bias);
}
__device__ inline float decoded(Signed stored, float scale) {
    float size = decoded_size<Signed>(stored.code < 0 ? -stored.code : stored.code, scale);
    return stored.code < 0 ? -size : size;
}
__device__ inline float decoded(Unsigned stored, float scale) { return decoded_size<Unsigned>(stored.code, scale); }

template <typename S>
__device__ inline unsigned encoded_size(float size, float inverse, unsigned noise) {
    unsigned above = bit_cast<unsigned>(__fmul_rn(size, inverse) + S::bias) - S::bits_of_bias;
    unsigned code = (above + (noise << (S::cut - 16))) >> S::cut;
    return code < S::last ? code : S::last;  // of NaN, the last
}
__device__ inline void encode(float x, float inverse, unsigned noise, Signed &stored) {
    int code = encoded_size<Signed>(fabsf(x), inverse, noise);
    stored.code = static_cast<signed char>(x < 0 ? -code : code);
}
__device__ inline void encode(float x, float inverse, unsigned noise, Unsigned &stored) {
    unsigned code = encoded_size<Unsigned>(x, inverse, noise);
    stored.code = static_cast<unsigned char>(code == 0 && x > 0 ? 1 : code);  // steps are divided by its root
}

// The noise for lane k of what has a number, as it is rounded.
__device__ inline unsigned noise_or_half(const ToNearest &, int, int) { return half; }
__device__ inline unsigned noise_or_half(const Stochastically &rounding, int number, int k) {
    return rounding.noise(number, k);
}

__device__ inline unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }

// The scale of a thread's block, by the bits of its largest magnitude. Every thread of a warp must come here.
template <int N>
__device__ inline float scale_of(unsigned largest) {
    for (int apart = FASTOPT_BLOCK / N / 2; apart > 0; apart /= 2) {
        largest = larger(largest, __shfl_xor_sync(0xFFFFFFFF, largest, apart));
    }
    return bit_cast<float>(largest > largest_scale ? no_scale : largest);
}

// What a thread has of an array: N elements, moved at once if they are whole, or the first few of them, one by one.
struct Share {
    int64_t at;
    int count;
    bool whole;
};

template <int N, typename T>
__device__ inline Pack<T, N> load(const T *from, const Share &share) {
    if (share.whole) return load<N>(from + share.at);
    Pack<T, N> pack{};
    for (int k = 0; k < N; ++k) {
        if (k < share.count) pack.lane[k] = from[share.at + k];
    }
    return pack;
}

template <int N, typename T>
__device__ inline void store_at(T *to, const Share &share, const Pack<T, N> &pack) {
    if (share.whole) {
        store<N>(to + share.at, pack);
    } else {
        for (int k = 0; k < N; ++k) {
            if (k < share.count) to[share.at + k] = pack.lane[k];
        }
    }
}

// The numbers that a thread has of each state, where some states are codes: as `Packs`, but for its share.
template <int N, typename Real, typename Types>
struct Numbers {
    __device__ void load(void *const *, float *const *, const Share &) {}
    template <class How>
    __device__ void store(void *const *, float *const *, const Share &, const How &, int) const {}
    __device__ void widen(int, Real *) const {}
    template <class How>
    __device__ void narrow(int, const Real *, const How &, int) {}
};
template <int N, typename Real, typename S, typename... Others>
struct Numbers<N, Real, States<S, Others...>> {
    Pack<Real, N> first;
    Numbers<N, Real, States<Others...>> others;

    __device__ void load(void *const *states, float *const *scales, const Share &share) {
        Pack<S, N> stored = cuda::load<N>(static_cast<const S *>(*states), share);
        if constexpr (IsCode<S>::value) {
            float scale = share.count > 0 ? (*scales)[share.at / FASTOPT_BLOCK] : 0.0f;
            for (int k = 0; k < N; ++k) first.lane[k] = decoded(stored.lane[k], scale);
        } else {
            for (int k = 0; k < N; ++k) first.lane[k] = cuda::widen(stored.lane[k]);
        }
        others.load(states + 1, scales + 1, share);
    }
    template <class How>
    __device__ void store(void *const *states, float *const *scales, const Share &share, const How &rounding,
                          int number) const {
        Pack<S, N> stored;
        if constexpr (IsCode<S>::value) {
            encode_all(*scales, share, rounding, number, stored);
        } else {
            for (int k = 0; k < N; ++k) rounding.narrow(first.lane[k], stored.lane[k], number, k);
        }
        store_at(static_cast<S *>(*states), share, stored);
        others.store(states + 1, scales + 1, share, rounding, number + IsRounded<S>::value);
    }
    __device__ void widen(int k, Real *to) const {
        *to = first.lane[k];
        others.widen(k, to + 1);
    }
    template <class How>  // by which they are rounded when they are stored, and not yet
    __device__ void narrow(int k, const Real *from, const How &rounding, int) {
        first.lane[k] = *from;
        others.narrow(k, from + 1, rounding, 0);
    }

private:
    template <class How>
    __device__ void encode_all(float *scales, const Share &share, const How &rounding, int number,
                               Pack<S, N> &stored) const {
        float numbers[N];
        unsigned largest = smallest_scale;
        for (int k = 0; k < N; ++k) {
            cuda::narrow(first.lane[k], numbers[k]);
            if (k < share.count) largest = larger(largest, bit_cast<unsigned>(numbers[k]) & 0x7FFFFFFF);
        }
        float scale = scale_of<N>(largest);
        if (share.at % FASTOPT_BLOCK == 0 && share.count > 0) scales[share.at / FASTOPT_BLOCK] = scale;
        float inverse = 1.0f / scale;
        for (int k = 0; k < N; ++k) encode(numbers[k], inverse, noise_or_half(rounding, number, k), stored.lane[k]);
    }
};

}  // namespace cuda
}  // namespace fastopt

#endif
