// fused.cu: the loop that runs any rule over the chunks of a job on a GPU, one block per chunk.
//
// FASTOPT_UPDATE(name, Rule, stages, count, P, R, G, S...) defines a kernel of that name for parameters, their remainders
// (void if there are none), gradients and states of these types, with these stages beside the rule, and a count of words in
// its argument. cuda.py pastes the headers, this file and such a line into one source, which CuPy compiles; the tests
// compile the same source for the host.

#include "block.h"
#include "codes.h"
#include "elements.h"
#include "rules.h"

namespace fastopt {
namespace cuda {

// The stages that a kernel may have beside the rule, as bits, in the order in which they come; whether each row of a table
// has one number, whose rule is AdaGrad's; and how it rounds.
struct Stage {
    enum : int { none = 0, value = 1, average = 2, zero = 4, rowwise = 8, stochastic = 16 };
};

// Arithmetic flushes float's subnormals to zero, and 1 over a loss scale of 2^127, which GradScaler may reach, is one.
// Factors of gradients are therefore computed in double, and split into two.
__device__ inline double exact(double x) { return x; }
__device__ inline double exact(float x) {
    unsigned bits = bit_cast<unsigned>(x), size = bits & 0x7FFFFFFF;
    double subnormal = static_cast<int>(size) * 0x1p-149;
    return size >= 0x00800000 ? x : bits == size ? subnormal : -subnormal;
}
__device__ inline void split(double factor, double &first, double &second) {
    first = factor;
    second = 1.0;
}
__device__ inline void split(double factor, float &first, float &second) {
    bool normal = !(fabs(factor) < 0x1p-126);  // NaN, too
    first = static_cast<float>(normal ? factor : factor * 0x1p64);
    second = normal ? 1.0f : 0x1p-64f;
}

// The rule of elements: where rows have a number, its own rate for each row.
template <class Rule, bool rowwise>
struct OfElements {
    using type = Rule;
};
template <class Rule>
struct OfElements<Rule, true>;
template <>
struct OfElements<Adagrad, true> {
    using type = Sgd;
};

// The tensor of a chunk, its hyper row, and the numbers of its stages. The rule is that of elements.
template <int stages, class Rule, typename P, typename R, typename G, typename... S>
struct Update {
    using real = typename Arithmetic<P>::type;
    using Types = typename StatesOf<Rule::states, S...>::type;
    using Rounds = typename Rounding<(stages & Stage::stochastic) != 0>::type;
    static constexpr bool clips = stages & Stage::value, averages = stages & Stage::average, zeroes = stages & Stage::zero;
    static_assert(Rule::states <= FASTOPT_STATES && Rule::hypers <= FASTOPT_NUMBERS, "a rule that the tables have no room for");
    static constexpr int kept = Rule::states > 0 ? Rule::states : 1;  // there are no arrays of length 0
    static constexpr int width = 16 / (sizeof(P) < sizeof(G) ? sizeof(P) : sizeof(G));
    static constexpr bool has_codes = HasCodes<Types>::value;

    // Blocks of a multiprocessor, by which the compiler bounds registers. Of types of at most 4 bytes three (1,536 threads,
    // 40 registers each) if a thread holds at most four packs, else two, with 64; with stages one less, as with a remainder,
    // with a gradient of another size, where few packs have states of another type than the arithmetic's, or where more than
    // five have codes among them. Of doubles two if it holds three, else one. With more, registers spill. On an H100,
    // AdaGrad and RMSProp with three are 4 % faster than with two from 2^24 elements on, and 5 % slower, some 0.3 us, up
    // to 2^20.
    static constexpr int bytes = sizeof(P) + Bytes<R>::of + sizeof(G) + (Rule::states + averages) * sizeof(real);
    static constexpr int packs = bytes * width / 16;
    static constexpr bool few = packs <= 4, converts = Types::bytes != Rule::states * static_cast<int>(sizeof(real));
    static constexpr bool mixed = Bytes<R>::of != 0 || sizeof(G) != sizeof(P);
    static constexpr bool crowded = mixed || (few && converts) || (has_codes && packs > 5);
    static constexpr int resident = sizeof(P) < 8 ? (few ? 3 : 2) - (stages != 0 || crowded) : (packs <= 3 ? 2 : 1);

    P *param;
    void *remainder;
    const G *grad;
    void *states[kept];
    float *scales[kept];  // of those that are codes
    real *mean;
    real factor, rest, decay, hypers[Rule::hypers];
    real limit, gain;
    const fastopt_gpu_job &job;
    int64_t number;  // of the tensor

    __device__ Update(const fastopt_gpu_job &job, int64_t number, const fastopt_tensor &tensor, const void *gradient,
                      const real *row)
        : job(job), number(number) {
        param = static_cast<P *>(tensor.param);
        remainder = Bytes<R>::of != 0 ? job.storages[number].remainder : nullptr;
        grad = static_cast<const G *>(gradient);
        for (int i = 0; i < Rule::states; ++i) states[i] = tensor.states[i];
        for (int i = 0; has_codes && i < Rule::states; ++i) scales[i] = job.storages[number].scales[i];
        double coefficient = job.coefficient != nullptr ? *job.coefficient : 1.0;
        split(coefficient * exact(row[0]), factor, rest);
        decay = row[1];
        for (int i = 0; i < Rule::hypers; ++i) hypers[i] = row[FASTOPT_SHARED + i];
        if (clips) limit = static_cast<real>(job.scale != nullptr ? job.limit * *job.scale : job.limit);
        if (averages) {
            mean = static_cast<real *>(tensor.average);
            gain = static_cast<real>(job.gain);
        }
    }

    // A gradient as the rule gets it, of an element that is x.
    __device__ real for_rule(G gradient, real x) const {
        real g = widen(gradient);
        // scale the gradient, and add the weight decay
        if (clips) g = clipped(g, limit);
        g = rest * (factor * g);
        if (decay != 0) g += decay * x;
        return g;
    }

    // Averages some elements of a parameter.
    template <int N>
    __device__ Pack<real, N> moved(Pack<real, N> e, const Params<N, P, R> &p) const {
        for (int k = 0; k < N; ++k) e.lane[k] = averaged<real>(e.lane[k], p.widen(k), gain);
        return e;
    }

    // Updates some elements, and what is stored of their states.
    template <int N, class Stored>
    __device__ void apply(const Pack<G, N> &gradients, Params<N, P, R> &p, Stored &stored, const Rounds &rounding) const {
        for (int k = 0; k < N; ++k) {
            // widen to the type of the arithmetic
            real state[kept];
            stored.widen(k, state);
            real x = p.widen(k);
            real g = for_rule(gradients.lane[k], x);
            // apply the rule, and round the results
            p.narrow(k, Rule::apply(x, g, state, hypers), rounding);
            stored.narrow(k, state, rounding, Params<N, P, R>::rounded);
        }
    }

    // Updates the elements at to at + N - 1, whose gradients are at an address.
    template <int N>
    __device__ void elements(int64_t at, const G *gradient) const {
        Pack<G, N> gradients = load<N>(gradient);
        // load parameter and states
        Params<N, P, R> p(param, remainder, at);
        Packs<N, Types> stored;
        stored.load(states, at);
        apply(gradients, p, stored, Rounds(job, number, at));
        // store parameter and states
        p.store(param, remainder, at);
        stored.store(states, at);
        if (averages) store<N>(mean + at, moved(load<N>(mean + at), p));
        if (zeroes) store<N>(const_cast<G *>(gradient), Pack<G, N>{});
    }

    __device__ bool aligned(int64_t at) const {
        int64_t all = bit_cast<int64_t>(param + at) | bit_cast<int64_t>(grad + at);
        for (int i = 0; i < Rule::states; ++i) all |= bit_cast<int64_t>(states[i]);  // their elements may be smaller
        if (averages) all |= bit_cast<int64_t>(mean + at);
        if (Bytes<R>::of != 0) all |= bit_cast<int64_t>(remainder) + at * Bytes<R>::of;
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
            elements<width>(at, grad + at);
        }
        // the tail, or everything if addresses are not aligned, one by one
        for (int i = whole * width + threadIdx.x; i < length; i += blockDim.x) {
            elements<1>(chunk.offset + i, grad + chunk.offset + i);
        }
    }

    // The same where states are codes. Every thread of a warp comes here, perhaps with no elements: it holds a block of
    // the states together with its neighbours. A chunk begins where a block does.
    __device__ void run_with_codes(const fastopt_chunk &chunk) const {
        int first = static_cast<int>(threadIdx.x) * width, left = static_cast<int>(chunk.length) - first;
        int count = left < width ? (left > 0 ? left : 0) : width;
        Share share = {chunk.offset + first, count, count == width && aligned(chunk.offset)};
        Pack<G, width> gradients = load<width>(grad, share);
        Params<width, P, R> p(param, remainder, share);
        Numbers<width, real, Types> stored;
        stored.load(states, scales, share);
        const Rounds rounding(job, number, share.at);
        apply(gradients, p, stored, rounding);
        p.store(param, remainder, share);
        stored.store(states, scales, share, rounding, Params<width, P, R>::rounded);
        if (averages) store_at(mean, share, moved(load<width>(mean, share), p));
        if (zeroes) store_at(const_cast<G *>(grad), share, Pack<G, width>{});
    }

    // A tile of a gradient in another storage order. One block walks it row by row, so that later rows find in the cache
    // what the first one has loaded.
    __device__ void run(const fastopt_chunk &chunk, const fastopt_layout &layout) const {
        int length = static_cast<int>(chunk.length);
        for (int row = 0; row < chunk.rows; ++row) {
            const char *from = reinterpret_cast<const char *>(grad) + chunk.grad_offset + row * layout.grad_row;
            for (int i = threadIdx.x; i < length; i += blockDim.x) {
                elements<1>(chunk.offset + row * layout.param_row + i,
                            reinterpret_cast<const G *>(from + i * layout.grad_item));
            }
        }
    }

    // A row of a table, whose gradient lies in one piece, at the rate that the block finds for it. All threads of the block
    // go the same way.
    __device__ void run_row(const fastopt_chunk &chunk, void *of_rows, const real *hyper) {
        int length = static_cast<int>(chunk.length);
        if (length == 0) return;  // the row has no gradient here, or no elements
        const G *from = reinterpret_cast<const G *>(reinterpret_cast<const char *>(grad) + chunk.grad_offset);
        real *number = static_cast<real *>(of_rows) + chunk.offset / length;
        real s = *number, sum = 0;
        for (int i = threadIdx.x; i < length; i += blockDim.x) {
            Params<1, P, R> p(param, remainder, chunk.offset + i);
            real g = for_rule(from[i], p.widen(0));
            sum += g * g;
        }
        hypers[0] = rate_of_row(of_block(sum) / static_cast<real>(length), s, hyper);
        if (threadIdx.x == 0) *number = s;  // all have read it before their squares were added
        for (int i = threadIdx.x; i < length; i += blockDim.x) elements<1>(chunk.offset + i, from + i);
    }
};

// The update of a chunk by a rule.
template <int stages, class Rule, typename P, typename R, typename G, typename... S>
using Updating = Update<stages, typename OfElements<Rule, (stages & Stage::rowwise) != 0>::type, P, R, G, S...>;

// Averages a chunk of a parameter that has no gradient.
template <typename P, typename R>
__device__ inline void average_alone(const fastopt_gpu_job &job, const fastopt_chunk &chunk, const fastopt_tensor &tensor) {
    using real = typename Arithmetic<P>::type;
    const void *remainder = Bytes<R>::of != 0 ? job.storages[chunk.tensor].remainder : nullptr;
    real *mean = static_cast<real *>(tensor.average) + chunk.offset;
    for (int i = threadIdx.x; i < static_cast<int>(chunk.length); i += blockDim.x) {
        Params<1, P, R> p(static_cast<const P *>(tensor.param), remainder, chunk.offset + i);
        mean[i] = averaged<real>(mean[i], p.widen(0), static_cast<real>(job.gain));
    }
}

template <int stages, class Rule, typename P, typename R, typename G, typename... S>
__device__ inline void update(const fastopt_gpu_job &job, const int64_t *words) {
    using real = typename Arithmetic<P>::type;
    // return if the whole step is skipped; else count it
    if (job.skip != nullptr && *job.skip != 0) return;
    if (job.taken != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*job.taken;
    // find this block's chunk, its tensor and its gradient, and return if there is none
    const fastopt_chunk &chunk = job.chunks[blockIdx.x];
    const fastopt_tensor &tensor = job.tensors[chunk.tensor];
    const void *grad = gradient_of(job, words, chunk);
    if (grad == nullptr) {
        if ((stages & Stage::average) && tensor.average != nullptr) average_alone<P, R>(job, chunk, tensor);
        return;
    }
    // read the tensor's hyper row
    real row[FASTOPT_SHARED + Rule::hypers];
    int64_t at = tensor.hyper * FASTOPT_HYPERS;
    if (job.hypers != nullptr) {
        for (int i = 0; i < FASTOPT_SHARED + Rule::hypers; ++i) row[i] = static_cast<const real *>(job.hypers)[at + i];
    } else {
        const real *rows = reinterpret_cast<const real *>(words + job.grads);
        for (int i = 0; i < FASTOPT_SHARED + Rule::hypers; ++i) row[i] = rows[at + i];
    }
    using ThisUpdate = Updating<stages, Rule, P, R, G, S...>;
    ThisUpdate update(job, chunk.tensor, tensor, grad, row);
    // update the chunk, as a row, as a run or as a tile
    if constexpr ((stages & Stage::rowwise) != 0) {
        update.run_row(chunk, tensor.states[0], row + FASTOPT_SHARED);
    } else if constexpr (ThisUpdate::has_codes) {
        update.run_with_codes(chunk);  // there are no tiles: Python copies gradients in another order
    } else if (tensor.layout == nullptr) {
        update.run(chunk);
    } else {
        update.run(chunk, *tensor.layout);
    }
}

}  // namespace cuda
}  // namespace fastopt

#define FASTOPT_UPDATE(name, Rule, stages, count, ...)                                                               \
    extern "C" __global__ void                                                                                       \
    __launch_bounds__(512, (fastopt::cuda::Updating<stages, fastopt::Rule, __VA_ARGS__>::resident))                  \
    name(const __grid_constant__ fastopt::cuda::Argument<count> argument) {                                          \
        fastopt::cuda::update<stages, fastopt::Rule, __VA_ARGS__>(argument.job, argument.words);                     \
    }
