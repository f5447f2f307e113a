// vectors.h: SIMD vectors for the loops of rules.h on the host.
//
// Loops over single numbers were much slower. g++ vectorises little at -O2, and at no level a loop that calls std::sqrt,
// which may set errno, unless it gets -fno-math-errno: AdaGrad took four times as long, and eight with AVX.

#ifndef FASTOPT_VECTORS_H
#define FASTOPT_VECTORS_H

#if defined(__GNUC__) && !defined(__CUDACC__)  // compilers with GCC's vector extension
#define FASTOPT_VECTORS

// Inline into every caller: two files of one program, one compiled for a newer processor, must not share one copy.
#define FASTOPT_INLINE __attribute__((always_inline))

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#else
#include <cmath>
#endif

#if defined(__AVX512F__)
#define FASTOPT_VECTOR_BYTES 64
#elif defined(__AVX__)
#define FASTOPT_VECTOR_BYTES 32
#else
#define FASTOPT_VECTOR_BYTES 16
#endif

#else
#define FASTOPT_INLINE
#endif

namespace fastopt {
namespace vectors {

// The vector of a type; without the extension the type itself, a vector of one.
template <typename T>
struct Vector {
    typedef T type;
};

#ifdef FASTOPT_VECTORS

typedef float Floats __attribute__((vector_size(FASTOPT_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(FASTOPT_VECTOR_BYTES)));

template <>
struct Vector<float> {
    typedef Floats type;
};
template <>
struct Vector<double> {
    typedef Doubles type;
};

#if defined(__AVX512F__)  // masked: g++ 12 warns of an uninitialised value in the plain ones
FASTOPT_INLINE inline Floats sqrt(Floats x) { return _mm512_maskz_sqrt_ps(0xFFFF, x); }
FASTOPT_INLINE inline Doubles sqrt(Doubles x) { return _mm512_maskz_sqrt_pd(0xFF, x); }
#elif defined(__AVX__)
FASTOPT_INLINE inline Floats sqrt(Floats x) { return _mm256_sqrt_ps(x); }
FASTOPT_INLINE inline Doubles sqrt(Doubles x) { return _mm256_sqrt_pd(x); }
#elif defined(__SSE2__)
FASTOPT_INLINE inline Floats sqrt(Floats x) { return _mm_sqrt_ps(x); }
FASTOPT_INLINE inline Doubles sqrt(Doubles x) { return _mm_sqrt_pd(x); }
#elif defined(__aarch64__)
FASTOPT_INLINE inline Floats sqrt(Floats x) { return (Floats)vsqrtq_f32((float32x4_t)x); }
FASTOPT_INLINE inline Doubles sqrt(Doubles x) { return (Doubles)vsqrtq_f64((float64x2_t)x); }
#else
template <typename Real>
FASTOPT_INLINE inline Real roots(Real x) {
    for (unsigned i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = std::sqrt(x[i]);
    return x;
}
FASTOPT_INLINE inline Floats sqrt(Floats x) { return roots(x); }
FASTOPT_INLINE inline Doubles sqrt(Doubles x) { return roots(x); }
#endif

#endif

}  // namespace vectors
}  // namespace fastopt

#endif
