// row_chunks.cu: chunks of a table's rows on a GPU, as row_chunks.py makes them on the CPU. `number_rows` makes a key for
// each index; once these are sorted, `cut_rows_float32`, or that of doubles, writes a chunk for each of them. Nobody waits:
// an index that is no row of the table is told to the host, and raises the flag by which the step changes nothing.

#include "tables.h"

namespace fastopt {
namespace cuda {

// A chunk for each key: the row where its first key is, else nothing. Values of a row with several are added up in the
// order of their places, each element by a thread.
template <typename T>
__device__ inline void cut_rows(const fastopt_gpu_rows &job) {
    int64_t at = blockIdx.x, key = job.keys[at], row = key >> job.bits, mask = (int64_t{1} << job.bits) - 1;
    bool begins = key >= 0 && (at == 0 || job.keys[at - 1] >> job.bits != row);
    int64_t end = at + 1;
    while (begins && end < job.n && job.keys[end] >> job.bits == row) ++end;
    bool alone = end == at + 1;
    if (threadIdx.x == 0) {
        fastopt_chunk &chunk = job.chunks[at];
        chunk.tensor = alone ? 0 : 1;
        chunk.rows = begins;
        chunk.offset = begins ? row * job.width : 0;
        chunk.grad_offset = (alone ? key & mask : at) * job.width * static_cast<int64_t>(sizeof(T));
        chunk.length = begins ? job.width : 0;
    }
    if (!begins || alone) return;
    const T *values = static_cast<const T *>(job.values);
    T *sums = static_cast<T *>(job.sums) + at * job.width;
    for (int64_t i = threadIdx.x; i < job.width; i += blockDim.x) {
        T sum = values[(key & mask) * job.width + i];
        for (int64_t k = at + 1; k < end; ++k) sum += values[(job.keys[k] & mask) * job.width + i];
        sums[i] = sum;
    }
}

}  // namespace cuda
}  // namespace fastopt

// One thread for each index. The first wrong one that is told stays until the host has read it.
extern "C" __global__ void number_rows(const __grid_constant__ fastopt_gpu_rows job) {
    int64_t place = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (place >= job.n) return;
    int64_t row = place;
    if (job.indices != nullptr) {
        row = job.wide ? static_cast<const int64_t *>(job.indices)[place] : static_cast<const int32_t *>(job.indices)[place];
    }
    bool right = row >= 0 && row < job.rows;
    job.keys[place] = right ? row << job.bits | place : -1;
    if (right) return;
    job.check->skip = 1;
    if (job.check->found != 0) return;
    job.check->index = row;
    job.check->tensor = job.tensor;
    job.check->found = 1;
}

extern "C" __global__ void cut_rows_float32(const __grid_constant__ fastopt_gpu_rows job) { fastopt::cuda::cut_rows<float>(job); }
extern "C" __global__ void cut_rows_float64(const __grid_constant__ fastopt_gpu_rows job) { fastopt::cuda::cut_rows<double>(job); }
