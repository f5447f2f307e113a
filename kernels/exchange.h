// exchange.h: the parts of DLPack 1.x that we use, https://github.com/dmlc/dlpack, include/dlpack/dlpack.h.

#ifndef FASTOPT_EXCHANGE_H
#define FASTOPT_EXCHANGE_H

#include <cstdint>

namespace fastopt {

constexpr int32_t ON_CUDA = 2;  // DLPack's number for the kind of device

// A tensor's description.
struct Tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

// The table of functions that a library publishes, its DLPackExchangeAPI.
struct Exchange {
    uint32_t major, minor;
    const void *older;
    int (*allocate)();
    int (*export_managed)();
    int (*import_managed)();
    int (*borrow)(void *object, Tensor *tensor);  // dltensor_from_py_object_no_sync; its only copy is the struct
    int (*stream)(int32_t device_type, int32_t device_id, void **stream);  // current_work_stream
};

}  // namespace fastopt

#endif
