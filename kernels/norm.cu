// norm.cu: the norm of all gradients of a step on a GPU. A kernel for each dtype sums the squares of each chunk, one block
// per chunk; `total`, one block, adds these sums and decides what becomes of the step. Both add in a fixed order.
//
// FASTOPT_NORM(name, G, count) defines the kernel of that name for gradients of a type, with a count of words in its
// argument, which is that of the update to come. cuda.py pastes such a line behind this file.

#include "block.h"
#include "elements.h"

namespace fastopt {
namespace cuda {

// The sums of a chunk are of squares of gradients as they are, times 2^-600, and times 2^600: squares of doubles may
// overflow or be lost where the gradients themselves are finite and not 0.
constexpr double down = 0x1p-600, up = 0x1p600;

// Squares of the other types do neither in double; at the end, the other two sums follow from the first.
template <typename G>
struct Squares {
    double sums[FASTOPT_POWERS] = {};

    __device__ void add(G element) {
        double g = widen(element);
        sums[0] += g * g;
    }
    __device__ void finish() {
        sums[1] = down * (down * sums[0]);
        sums[2] = up * (up * sums[0]);
    }
};
template <>
struct Squares<double> {
    double sums[FASTOPT_POWERS] = {};

    __device__ void add(double g) {
        double less = down * g, more = up * g;
        sums[0] += g * g;
        sums[1] += less * less;
        sums[2] += more * more;
    }
    __device__ void finish() {}
};

template <typename G>
__device__ inline void square(const fastopt_chunk &chunk, const G *grad, Squares<G> &squares) {
    constexpr int width = 16 / sizeof(G);
    int length = static_cast<int>(chunk.length);
    grad += chunk.grad_offset;
    int whole = bit_cast<int64_t>(grad) % 16 == 0 ? length / width : 0;
    // packs, as the update takes them
    for (int i = threadIdx.x; i < whole; i += blockDim.x) {
        Pack<G, width> pack = load<width>(grad + i * width);
        for (int k = 0; k < width; ++k) squares.add(pack.lane[k]);
    }
    // the tail, or everything if the address is not aligned, one by one
    for (int i = whole * width + threadIdx.x; i < length; i += blockDim.x) squares.add(grad[i]);
}

// A tile of a gradient in another storage order.
template <typename G>
__device__ inline void square(const fastopt_chunk &chunk, const fastopt_layout &layout, const G *grad, Squares<G> &squares) {
    int length = static_cast<int>(chunk.length);
    for (int row = 0; row < chunk.rows; ++row) {
        const char *from = reinterpret_cast<const char *>(grad) + chunk.grad_offset + row * layout.grad_row;
        for (int i = threadIdx.x; i < length; i += blockDim.x) {
            squares.add(*reinterpret_cast<const G *>(from + i * layout.grad_item));
        }
    }
}

// Writes the sums of this block's chunk; they are 0 without a gradient.
template <typename G>
__device__ inline void norm(const fastopt_gpu_job &job, const int64_t *words) {
    const fastopt_chunk &chunk = job.chunks[blockIdx.x];
    const fastopt_layout *layout = job.tensors[chunk.tensor].layout;
    const G *grad = static_cast<const G *>(gradient_of(job, words, chunk));
    Squares<G> squares;
    if (grad != nullptr) {
        if (layout == nullptr) {
            square(chunk, grad, squares);
        } else {
            square(chunk, *layout, grad, squares);
        }
    }
    constexpr int computed = sizeof(G) == 8 ? FASTOPT_POWERS : 1;
    for (int k = 0; k < computed; ++k) squares.sums[k] = of_block(squares.sums[k]);
    squares.finish();
    if (threadIdx.x == 0) {
        for (int k = 0; k < FASTOPT_POWERS; ++k) job.sums[k * job.apart + blockIdx.x] = squares.sums[k];
    }
}

__device__ inline bool finite(double x) { return x - x == 0; }

// The sum over all chunks, for one of the powers. Every thread must come here; each gets it.
__device__ inline double of_chunks(const fastopt_gpu_total &total, int power) {
    double sum = 0.0;
    for (int64_t c = threadIdx.x; c < total.count; c += blockDim.x) sum += total.sums[power * total.apart + c];
    return of_block(sum);
}

// A sum of squares, and what its root is to be multiplied with.
struct Sum {
    double squares, back;
};

// Below 2^-960, the sum for gradients as they are may have lost more than its last bit.
__device__ inline Sum choose(const fastopt_gpu_total &total) {
    double plain = of_chunks(total, 0);
    if (!finite(plain)) return {of_chunks(total, 1), up};
    if (plain < 0x1p-960) return {of_chunks(total, 2), down};
    return {plain, 1.0};
}

// The factor of gradients of this norm, as in torch: it is NaN if the norm is. Where no norm is too large, it is 1.
__device__ inline double coefficient(double max_norm, double norm) {
    if (max_norm - max_norm != 0) return 1.0;
    double factor = max_norm / (norm + 1e-6);
    return factor > 1.0 ? 1.0 : factor;
}

// Writes what becomes of the step.
__device__ inline void decide(const fastopt_gpu_total &total, const Sum &sum) {
    fastopt_gpu_norm &out = *total.norm;
    double scale = total.scale != nullptr ? *total.scale : 1.0;
    bool told = total.skip != nullptr && *total.skip != 0;
    bool skips = !told && total.skips != 0 && !finite(sum.squares);
    out.norm = sqrt(sum.squares) * (total.factor / scale) * sum.back;
    out.coefficient = coefficient(total.max_norm, out.norm);
    out.skip = told || skips;
    if (skips) ++out.skipped;
}

}  // namespace cuda
}  // namespace fastopt

extern "C" __global__ void __launch_bounds__(512) total(const __grid_constant__ fastopt_gpu_total total) {
    if (total.norm != nullptr) {
        fastopt::cuda::Sum sum = fastopt::cuda::choose(total);
        if (threadIdx.x == 0) fastopt::cuda::decide(total, sum);
    } else {
        for (int k = 0; k < FASTOPT_POWERS; ++k) {
            double sum = fastopt::cuda::of_chunks(total, k);
            if (threadIdx.x == 0) total.totals[k] = sum;
        }
    }
}

#define FASTOPT_NORM(name, G, count)                                                                                \
    extern "C" __global__ void __launch_bounds__(512) name(const __grid_constant__ fastopt::cuda::Argument<count> argument) { \
        fastopt::cuda::norm<G>(argument.job, argument.words);                                                       \
    }
