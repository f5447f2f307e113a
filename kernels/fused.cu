// fused.cu: the loop that runs any rule over the chunks of a job on a GPU, one block a chunk.
//
// FASTOPT_UPDATE(name, Rule, P, G, S) defines a kernel by that name, for parameters, gradients and states of these types.
// cuda.py puts the headers, this file and such a line into one source, which CuPy compiles; the tests compile the same
// source for the host.

#include "rules.h"
#include "tables.h"

namespace fastopt {
namespace cuda {

// Halves as they lie in memory. Their arithmetic is float's.
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
    float wide;  // the instruction itself: the headers that name it are not on every machine with a GPU
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#else
    return bit_cast<_Float16>(x.bits);
#endif
}

// Rounds to the nearest, and to even between two.
__device__ inline void narrow(float x, float &out) { out = x; }
__device__ inline void narrow(double x, double &out) { out = x; }
__device__ inline void narrow(float x, Bfloat16 &out) {
    unsigned bits = bit_cast<unsigned>(x);
    unsigned rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // sm_75 has no instruction for it
    out.bits = static_cast<unsigned short>(x == x ? rounded : 0x7FC0);
}
__device__ inline void narrow(float x, Float16 &out) {
#ifdef __CUDACC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    out.bits = bit_cast<unsigned short>(static_cast<_Float16>(x));
#endif
}

// Several elements, as one load moves them. Nothing that an update touches is read again before the next one, so that
// the nearest cache has no use for it. (The intrinsics also say that the memory is the device's own.)
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

// Writes the gradient's factor as a product. Arithmetic takes what is below float's normal numbers for zero, as 1 over a
// scale of 2^127 is, which GradScaler may come to.
__device__ inline void split(double factor, double &first, double &second) {
    first = factor;
    second = 1.0;
}
__device__ inline void split(float factor, float &first, float &second) {
    unsigned bits = bit_cast<unsigned>(factor), size = bits & 0x7FFFFFFF;
    bool normal = size >= 0x00800000;
    float raised = static_cast<float>(static_cast<int>(size)) * 0x1p-85f;  // size times 2^-149, and 2^64 more
    first = normal ? factor : bits == size ? raised : -raised;
    second = normal ? 1.0f : 0x1p-64f;
}

// A chunk's tensor, and the numbers that all of its elements share.
template <class Rule, typename P, typename G, typename S>
struct Update {
    using real = typename Arithmetic<P>::type;
    static_assert(Rule::states <= FASTOPT_STATES && Rule::hypers <= FASTOPT_NUMBERS, "a rule that the tables have no room for");
    static constexpr int kept = Rule::states > 0 ? Rule::states : 1;  // there are no arrays of length 0
    static constexpr int width = 16 / (sizeof(P) < sizeof(G) ? sizeof(P) : sizeof(G));

    // How many blocks a multiprocessor is to hold at once, by which the compiler bounds registers: three of 40 registers a
    // thread, where no more than four packs are held and there is room for 1,536 threads; else two of 64, or one. More
    // would spill. On an H100 three gain 4 % over two for AdaGrad and RMSProp from 2^24 elements on, and take 5 % more, some
    // 0.3 us, up to 2^20.
    static constexpr int packs = 2 + Rule::states * sizeof(S) / sizeof(P);
    static constexpr int resident = sizeof(P) < 8 ? (packs <= 4 ? 3 : 2) : (packs <= 4 ? 2 : 1);

    P *param;
    const G *grad;
    S *states[kept];
    real factor, rest, decay, hypers[Rule::hypers];

    __device__ Update(const fastopt_tensor &tensor, const real *row) {
        param = static_cast<P *>(tensor.param);
        grad = static_cast<const G *>(tensor.grad);
        for (int i = 0; i < Rule::states; ++i) states[i] = static_cast<S *>(tensor.states[i]);
        split(row[0], factor, rest);
        decay = row[1];
        for (int i = 0; i < Rule::hypers; ++i) hypers[i] = row[FASTOPT_SHARED + i];
    }

    // Elements at to at + N - 1, of gradients that lie somewhere.
    template <int N>
    __device__ void elements(int64_t at, const Pack<G, N> &gradients) const {
        Pack<P, N> p = load<N>(param + at);
        Pack<S, N> kept_before[kept];
        for (int i = 0; i < Rule::states; ++i) kept_before[i] = load<N>(states[i] + at);
        for (int k = 0; k < N; ++k) {
            real state[kept];
            for (int i = 0; i < Rule::states; ++i) state[i] = widen(kept_before[i].lane[k]);
            real x = widen(p.lane[k]);
            real g = rest * (factor * static_cast<real>(widen(gradients.lane[k])));
            if (decay != 0) g += decay * x;
            narrow(Rule::apply(x, g, state, hypers), p.lane[k]);
            for (int i = 0; i < Rule::states; ++i) narrow(state[i], kept_before[i].lane[k]);
        }
        store<N>(param + at, p);
        for (int i = 0; i < Rule::states; ++i) store<N>(states[i] + at, kept_before[i]);
    }

    __device__ bool aligned(int64_t at) const {
        int64_t all = bit_cast<int64_t>(param + at) | bit_cast<int64_t>(grad + at);
        for (int i = 0; i < Rule::states; ++i) all |= bit_cast<int64_t>(states[i] + at);
        return all % 16 == 0;
    }

    // One pack for each thread, and no more: a loop over several was up to 5 % slower on large tensors, and takes up to
    // twice as long on small ones.
    __device__ void run(const fastopt_chunk &chunk) const {
        int length = static_cast<int>(chunk.length);
        int whole = aligned(chunk.offset) ? length / width : 0;
        if (static_cast<int>(threadIdx.x) < whole) {
            int64_t at = chunk.offset + static_cast<int64_t>(threadIdx.x) * width;
            elements<width>(at, load<width>(grad + at));
        }
        for (int i = whole * width + threadIdx.x; i < length; i += blockDim.x) {
            elements<1>(chunk.offset + i, load<1>(grad + chunk.offset + i));
        }
    }

    // A tile whose gradient lies otherwise. One block walks it row by row, so that what the first row has brought into
    // the cache serves the next ones.
    __device__ void run(const fastopt_chunk &chunk, const fastopt_layout &layout) const {
        int length = static_cast<int>(chunk.length);
        for (int row = 0; row < chunk.rows; ++row) {
            const char *from = reinterpret_cast<const char *>(grad) + chunk.grad_offset + row * layout.grad_row;
            for (int i = threadIdx.x; i < length; i += blockDim.x) {
                const G *gradient = reinterpret_cast<const G *>(from + i * layout.grad_item);
                elements<1>(chunk.offset + row * layout.param_row + i, load<1>(gradient));
            }
        }
    }
};

template <class Rule, typename P, typename G, typename S>
__device__ inline void update(const fastopt_job &job) {
    using real = typename Arithmetic<P>::type;
    if (job.skip != nullptr && *job.skip != 0) return;
    const fastopt_chunk &chunk = job.chunks[blockIdx.x];
    const fastopt_tensor &tensor = job.tensors[chunk.tensor];
    if (tensor.grad == nullptr) return;
    const real *row = static_cast<const real *>(job.hypers) + tensor.hyper * FASTOPT_HYPERS;
    Update<Rule, P, G, S> update(tensor, row);
    if (tensor.layout == nullptr) {
        update.run(chunk);
    } else {
        update.run(chunk, *tensor.layout);
    }
}

}  // namespace cuda
}  // namespace fastopt

#define FASTOPT_UPDATE(name, Rule, P, G, S)                                                                      \
    extern "C" __global__ void __launch_bounds__(512, (fastopt::cuda::Update<fastopt::Rule, P, G, S>::resident)) \
    name(const __grid_constant__ fastopt_job job) {                                                              \
        fastopt::cuda::update<fastopt::Rule, P, G, S>(job);                                                      \
    }
