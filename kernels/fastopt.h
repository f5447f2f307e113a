/* fastopt.h: the C ABI of fastopt's CPU kernels. Plain C; a kernel is handed a job and a range of its chunks.
 *
 * All offsets and lengths count elements unless they say bytes. Reserved fields are zero. */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stdint.h>

#define FASTOPT_ABI 1    /* changes with every change of a struct or a signature below */
#define FASTOPT_STATES 3 /* state arrays that a tensor has room for */
#define FASTOPT_HYPERS 8 /* doubles in a hyper row */

#ifdef __cplusplus
extern "C" {
#endif

/* cffi reads what stands between the next two marks; no preprocessor there. */
/* begin */

/* How a gradient lies whose storage order is not its parameter's. */
typedef struct fastopt_layout {
    int64_t param_row; /* from one row of a tile to the next, in the parameter */
    int64_t grad_row;  /* the same in the gradient, in bytes */
    int64_t grad_item; /* from one element of a row to the next in the gradient, in bytes */
} fastopt_layout;

/* A row of the tensor table. */
typedef struct fastopt_tensor {
    void *param;
    const void *grad; /* null: no gradient this step, the tensor is left alone */
    void *states[3];
    void *auxiliary;              /* reserved: scales, averages */
    const fastopt_layout *layout; /* null: parameter, gradient and states share one storage order */
    int32_t hyper;                /* index of the tensor's hyper row */
    int32_t flags;                /* reserved */
} fastopt_tensor;

/* A row of the chunk table: a run of elements, or a tile of several where the tensor has a layout. */
typedef struct fastopt_chunk {
    int32_t tensor;
    int32_t rows;        /* runs in the tile; 1 without a layout */
    int64_t offset;      /* of the first element, in parameter and states */
    int64_t grad_offset; /* the same in the gradient; in bytes where the tensor has a layout */
    int64_t length;      /* of a run */
} fastopt_chunk;

/* All that a kernel gets. A hyper row holds FASTOPT_HYPERS doubles: the gradient's factor (-1 to maximize), the weight
 * decay, then the rule's own hyperparameters in its order. */
typedef struct fastopt_job {
    int64_t abi;
    const fastopt_tensor *tensors;
    const fastopt_chunk *chunks;
    const double *hypers;
    void *partials; /* reserved: a partial sum for each chunk */
    void *scratch;  /* scratch_bytes for each worker; null where no tensor has a layout */
    int64_t scratch_bytes;
    const int32_t *skip; /* reserved: a flag on which the step changes nothing */
} fastopt_job;

/* Updates the chunks begin to end - 1. Worker is 0 for the calling thread and different for each other. */
typedef void (*fastopt_kernel)(const fastopt_job *job, int64_t begin, int64_t end, int64_t worker);

/* Runs a kernel over all chunks of a job, `grain` of them at a time, on the calling thread and up to threads - 1
 * others, and returns when all is done. From any thread, any number at once. */
void fastopt_run(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads);

/* FASTOPT_ABI as compiled. */
int64_t fastopt_abi(void);

/* end */

#ifdef __cplusplus
}
#endif

#endif
