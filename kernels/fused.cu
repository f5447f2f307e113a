// fused.cu: the loop that runs any rule over the chunks of a job on a GPU, one block per chunk.
//
// FASTOPT_UPDATE(name, Rule, P, G, S, count) defines a kernel of that name for parameters, gradients and states of these
// types, with a count of words in its argument. cuda.py pastes the headers, this file and such a line into one source, which
// CuPy compiles; the tests compile the same source for the host.

#include "rules.h"
#include "tables.h"

namespace fastopt {
namespace cuda {

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

// Splits the gradient's factor into two. Arithmetic flushes float's subnormals to zero, and 1 over a loss scale of 2^127,
// which GradScaler may reach, is one.
__device__ inline void split(double factor, double &first, double &second) {
    first = factor;
    second = 1.0;
}
__device__ inline void split(float factor, float &first, float &second) {
    unsigned bits = bit_cast<unsigned>(factor), size = bits & 0x7FFFFFFF;
    bool normal = size >= 0x00800000;
    float raised = static_cast<float>(static_cast<int>(size)) * 0x1p-85f;  // size * 2^-149, times 2^64
    first = normal ? factor : bits == size ? raised : -raised;
    second = normal ? 1.0f : 0x1p-64f;
}

// The tensor of a chunk, and its hyper row.
template <class Rule, typename P, typename G, typename S>
struct Update {
    using real = typename Arithmetic<P>::type;
    static_assert(Rule::states <= FASTOPT_STATES && Rule::hypers <= FASTOPT_NUMBERS, "a rule that the tables have no room for");
    static constexpr int kept = Rule::states > 0 ? Rule::states : 1;  // there are no arrays of length 0
    static constexpr int width = 16 / (sizeof(P) < sizeof(G) ? sizeof(P) : sizeof(G));

    // Blocks of a multiprocessor, by which the compiler bounds registers: three (1,536 threads, 40 registers each) if a
    // thread holds at most four packs, or two, with 64; of doubles two if it holds three, or one. More would spill. On an H100, AdaGrad and RMSProp with
    // three are 4 % faster than with two from 2^24 elements on, and 5 % slower, some 0.3 us, up to 2^20.
    static constexpr int packs = 2 + Rule::states * sizeof(S) / sizeof(P);
    static constexpr int resident = sizeof(P) < 8 ? (packs <= 4 ? 3 : 2) : (packs <= 3 ? 2 : 1);

    P *param;
    const G *grad;
    S *states[kept];
    real factor, rest, decay, hypers[Rule::hypers];

    __device__ Update(const fastopt_tensor &tensor, const void *gradient, const real *row) {
        param = static_cast<P *>(tensor.param);
        grad = static_cast<const G *>(gradient);
        for (int i = 0; i < Rule::states; ++i) states[i] = static_cast<S *>(tensor.states[i]);
        split(row[0], factor, rest);
        decay = row[1];
        for (int i = 0; i < Rule::hypers; ++i) hypers[i] = row[FASTOPT_SHARED + i];
    }

    // Updates the elements at to at + N - 1; the caller has loaded their gradients.
    template <int N>
    __device__ void elements(int64_t at, const Pack<G, N> &gradients) const {
        // load parameter and states
        Pack<P, N> p = load<N>(param + at);
        Pack<S, N> kept_before[kept];
        for (int i = 0; i < Rule::states; ++i) kept_before[i] = load<N>(states[i] + at);
        for (int k = 0; k < N; ++k) {
            // widen to the type of the arithmetic
            real state[kept];
            for (int i = 0; i < Rule::states; ++i) state[i] = widen(kept_before[i].lane[k]);
            real x = widen(p.lane[k]);
            // scale the gradient, and add the weight decay
            real g = rest * (factor * static_cast<real>(widen(gradients.lane[k])));
            if (decay != 0) g += decay * x;
            // apply the rule, and round the results
            narrow(Rule::apply(x, g, state, hypers), p.lane[k]);
            for (int i = 0; i < Rule::states; ++i) narrow(state[i], kept_before[i].lane[k]);
        }
        // store parameter and states
        store<N>(param + at, p);
        for (int i = 0; i < Rule::states; ++i) store<N>(states[i] + at, kept_before[i]);
    }

    __device__ bool aligned(int64_t at) const {
        int64_t all = bit_cast<int64_t>(param + at) | bit_cast<int64_t>(grad + at);
        for (int i = 0; i < Rule::states; ++i) all |= bit_cast<int64_t>(states[i] + at);
        return all % 16 == 0;
    }

    // One pack per thread: a loop over several was up to 5 % slower on large tensors, and took up to twice as long on
    // small ones.
    __device__ void run(const fastopt_chunk &chunk) const {
        int length = static_cast<int>(chunk.length);
        int whole = aligned(chunk.offset) ? length / width : 0;
        // one pack per thread
        if (static_cast<int>(threadIdx.x) < whole) {
            int64_t at = chunk.offset + static_cast<int64_t>(threadIdx.x) * width;
            elements<width>(at, load<width>(grad + at));
        }
        // the tail, or everything if addresses are not aligned, one by one
        for (int i = whole * width + threadIdx.x; i < length; i += blockDim.x) {
            elements<1>(chunk.offset + i, load<1>(grad + chunk.offset + i));
        }
    }

    // A tile of a gradient in another storage order. One block walks it row by row, so that later rows find in the cache
    // what the first one has loaded.
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

// A launch's argument: what differs from step to step travels in it, so that nothing has to be sent ahead.
template <int count>
struct Argument {
    fastopt_gpu_job job;
    int64_t words[count];
};

template <class Rule, typename P, typename G, typename S>
__device__ inline void update(const fastopt_gpu_job &job, const int64_t *words) {
    using real = typename Arithmetic<P>::type;
    // return if the whole step is skipped; else count it
    if (job.skip != nullptr && *job.skip != 0) return;
    if (job.taken != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*job.taken;
    // find this block's chunk, its tensor and its gradient, and return if there is none
    const fastopt_chunk &chunk = job.chunks[blockIdx.x];
    const fastopt_tensor &tensor = job.tensors[chunk.tensor];
    const void *grad = tensor.grad;
    if (job.grads != 0) grad = reinterpret_cast<const void *>(words[chunk.tensor]);
    if (grad == nullptr) return;
    // read the tensor's hyper row
    real row[FASTOPT_SHARED + Rule::hypers];
    int64_t at = tensor.hyper * FASTOPT_HYPERS;
    if (job.hypers != nullptr) {
        for (int i = 0; i < FASTOPT_SHARED + Rule::hypers; ++i) row[i] = static_cast<const real *>(job.hypers)[at + i];
    } else {
        const real *rows = reinterpret_cast<const real *>(words + job.grads);
        for (int i = 0; i < FASTOPT_SHARED + Rule::hypers; ++i) row[i] = rows[at + i];
    }
    Update<Rule, P, G, S> update(tensor, grad, row);
    // update the chunk, as a run or as a tile
    if (tensor.layout == nullptr) {
        update.run(chunk);
    } else {
        update.run(chunk, *tensor.layout);
    }
}

}  // namespace cuda
}  // namespace fastopt

#define FASTOPT_UPDATE(name, Rule, P, G, S, count)                                                               \
    extern "C" __global__ void __launch_bounds__(512, (fastopt::cuda::Update<fastopt::Rule, P, G, S>::resident)) \
    name(const __grid_constant__ fastopt::cuda::Argument<count> argument) {                                      \
        fastopt::cuda::update<fastopt::Rule, P, G, S>(argument.job, argument.words);                             \
    }
