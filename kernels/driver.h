// driver.h: the types of CUDA's driver that the extension calls, which is built without CUDA.

#ifndef FASTOPT_DRIVER_H
#define FASTOPT_DRIVER_H

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define FASTOPT_CUDA __stdcall
#else
#define FASTOPT_CUDA
#endif

namespace fastopt {

// Each returns 0, or the number of an error.
using LaunchKernel = int(FASTOPT_CUDA *)(void *kernel, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z,
                                         unsigned threads_x, unsigned threads_y, unsigned threads_z, unsigned shared,
                                         void *stream, void **arguments, void **extra);
using IsCapturing = int(FASTOPT_CUDA *)(void *stream, int *status);
using GetContext = int(FASTOPT_CUDA *)(void **context);
using PushContext = int(FASTOPT_CUDA *)(void *context);
using PopContext = int(FASTOPT_CUDA *)(void **context);

using Destructor = void(FASTOPT_CUDA *)(void *);
using CreateObject = int(FASTOPT_CUDA *)(void **object, void *pointer, Destructor, unsigned references, unsigned flags);
using RetainObject = int(FASTOPT_CUDA *)(void *graph, void *object, unsigned count, unsigned flags);
using CaptureInfo2 = int(FASTOPT_CUDA *)(void *stream, int *status, uint64_t *id, void **graph, const void ***nodes,
                                         size_t *count);
using CaptureInfo3 = int(FASTOPT_CUDA *)(void *stream, int *status, uint64_t *id, void **graph, const void ***nodes,
                                         const void **edges, size_t *count);

constexpr int NOT_CAPTURING = 0, CAPTURING = 1;
constexpr unsigned NO_DESTRUCTOR_SYNC = 1, MOVE = 1;

}  // namespace fastopt

#endif
