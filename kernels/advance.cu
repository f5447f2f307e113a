// advance.cu: the small kernels beside an update. `send` writes into tables; `advance` computes hyper rows, in double, ahead
// of a step of which the host cannot know whether it is taken; `count` counts such a step if no update does.

#include "rows.h"

extern "C" __global__ void send(const __grid_constant__ fastopt_message message) {
    if (message.version != nullptr && *message.version >= message.number) return;
    for (int64_t i = threadIdx.x; i < message.count; i += blockDim.x) {
        message.to[i * message.apart] = message.words[i];
    }
}

// Rounds a double to float, subnormals included, which the conversion instruction would flush to zero.
__device__ inline float narrow(double x) {
    double size = x < 0 ? -x : x;
    if (!(size < 0x1p-126) || size == 0) return static_cast<float>(x);
    unsigned bits = static_cast<unsigned>(rint(size * 0x1p149)) | (x < 0 ? 0x80000000u : 0u);
    float narrowed;
    memcpy(&narrowed, &bits, sizeof narrowed);
    return narrowed;
}

// One thread for each row. None of them counts, since the others may not have read the count yet: an update does, later.
extern "C" __global__ void advance(const __grid_constant__ fastopt_clock clock) {
    if (clock.skip != nullptr && *clock.skip != 0) return;
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= clock.n) return;
    double *row = clock.hypers + i * FASTOPT_HYPERS;
    float *rounded = clock.rounded + i * FASTOPT_HYPERS;
    if (i < clock.given && *clock.taken == 0) clock.carried[i] = clock.start[i];
    fastopt::write_row(clock.inputs[i], clock.ahead + *clock.taken, clock.carried + i, row);
    if (clock.scale != nullptr) row[0] *= 1.0 / *clock.scale;
    for (int k = 0; k < FASTOPT_HYPERS; ++k) rounded[k] = narrow(row[k]);
}

// One thread, behind all updates of a step in which none has elements.
extern "C" __global__ void count(const __grid_constant__ fastopt_clock clock) {
    if (clock.skip != nullptr && *clock.skip != 0) return;
    ++*clock.taken;
}
