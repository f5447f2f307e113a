// codes.h: states in 8 bits on GPUs: codes in blocks with a scale each. cpu.py has the same codes, and says more of them.
//
// A thread has some neighbouring elements of a block, and the threads of a block are neighbours in a warp.

#ifndef FASTOPT_CODES_H
#define FASTOPT_CODES_H

#include "elements.h"

namespace fastopt {
namespace cuda {

// Of numbers with a sign, and of those that are never negative.
struct Signed {
    signed char code;
};
struct Unsigned {
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

constexpr unsigned smallest_scale = 0x10800000, largest_scale = 0x7B000000, no_scale = 0x7FC00000;
constexpr float steps = 255.0f * 255.0f * 255.0f * 255.0f;  // from 0 to the scale, the code being a fourth root

// The last product is not to be contracted with a sum in the rule: the bits are those of the CPU.
__device__ inline float decoded(Signed stored, float scale) {
    float c = stored.code;
    return __fmul_rn(scale, c / (254.0f - fabsf(c)));
}
__device__ inline float decoded(Unsigned stored, float scale) {
    float c = stored.code, square = c * c;
    return __fmul_rn(square * square, scale / steps);
}

// The noise goes from 0 up to 1; a half rounds to nearest.
__device__ inline void encode(float x, float scale, float noise, Signed &stored) {
    float size = fabsf(x), t = 254.0f * size / (scale + size);
    int c = static_cast<int>((t < 127.0f ? t : 127.0f) + noise);  // NaN, too
    if (c > 127) c = 127;
    stored.code = static_cast<signed char>(x < 0 ? -c : c);
}
__device__ inline void keep(float x, int c, Unsigned &stored) {
    stored.code = static_cast<unsigned char>(c == 0 && x > 0 ? 1 : c);  // steps are divided by its root
}
__device__ inline void encode_to_nearest(float x, float scale, Unsigned &stored) {
    float t = sqrtf(sqrtf(x * (steps / scale)));
    keep(x, static_cast<int>((t < 255.0f ? t : 255.0f) + 0.5f), stored);
}
// Rounds up with the probability that makes x the mean of what is stored.
__device__ inline void encode(float x, float scale, float noise, Unsigned &stored) {
    float y = sqrtf(x * (steps / scale)), root = sqrtf(y), t = root < 255.0f ? root : 255.0f;
    int c = static_cast<int>(t);
    float low = static_cast<float>(c), width = static_cast<float>((2 * c + 1) * (2 * c * (c + 1) + 1));
    if (noise * width < (t - low) * (t + low) * (y + low * low) && c < 255) ++c;
    keep(x, c, stored);
}

// The same for lane k of what goes to a place, as it is rounded.
__device__ inline void encode(float x, float scale, const ToNearest &, int, int, Signed &stored) {
    encode(x, scale, 0.5f, stored);
}
__device__ inline void encode(float x, float scale, const ToNearest &, int, int, Unsigned &stored) {
    encode_to_nearest(x, scale, stored);
}
template <typename S>
__device__ inline void encode(float x, float scale, const Stochastically &rounding, int place, int k, S &stored) {
    encode(x, scale, static_cast<float>(rounding.noise(place, k)) * 0x1p-16f, stored);
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
                          int place) const {
        Pack<S, N> stored;
        if constexpr (IsCode<S>::value) {
            encode_all(*scales, share, rounding, place, stored);
        } else {
            for (int k = 0; k < N; ++k) rounding.narrow(first.lane[k], stored.lane[k], place, k);
        }
        store_at(static_cast<S *>(*states), share, stored);
        others.store(states + 1, scales + 1, share, rounding, place + 1);
    }
    __device__ void widen(int k, Real *to) const {
        *to = first.lane[k];
        others.widen(k, to + 1);
    }
    template <class How>  // by which they are rounded when they are stored, and not yet
    __device__ void narrow(int k, const Real *from, const How &rounding, int place) {
        first.lane[k] = *from;
        others.narrow(k, from + 1, rounding, place + 1);
    }

private:
    template <class How>
    __device__ void encode_all(float *scales, const Share &share, const How &rounding, int place,
                               Pack<S, N> &stored) const {
        float numbers[N];
        unsigned largest = smallest_scale;
        for (int k = 0; k < N; ++k) {
            cuda::narrow(first.lane[k], numbers[k]);
            if (k < share.count) largest = larger(largest, bit_cast<unsigned>(numbers[k]) & 0x7FFFFFFF);
        }
        float scale = scale_of<N>(largest);
        if (share.at % FASTOPT_BLOCK == 0 && share.count > 0) scales[share.at / FASTOPT_BLOCK] = scale;
        for (int k = 0; k < N; ++k) encode(numbers[k], scale, rounding, place, k, stored.lane[k]);
    }
};

}  // namespace cuda
}  // namespace fastopt

#endif
