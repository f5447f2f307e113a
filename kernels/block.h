// block.h: what the threads of a block do together.

#ifndef FASTOPT_BLOCK_H
#define FASTOPT_BLOCK_H

namespace fastopt {
namespace cuda {

constexpr int block_threads = 512, warp_threads = 32;

// Adds a number of each thread of a block, in a fixed order, and returns the sum to all of them. Every thread must come
// here, and a block be of whole warps.
template <typename T>
__device__ inline T of_block(T x) {
    __shared__ T of_warps[block_threads / warp_threads];
    for (int apart = warp_threads / 2; apart > 0; apart /= 2) x += __shfl_down_sync(0xFFFFFFFF, x, apart);
    __syncthreads();  // all have read what was there before
    if (threadIdx.x % warp_threads == 0) of_warps[threadIdx.x / warp_threads] = x;
    __syncthreads();
    T sum = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x) / warp_threads; ++i) sum += of_warps[i];
    return sum;
}

}  // namespace cuda
}  // namespace fastopt

#endif
