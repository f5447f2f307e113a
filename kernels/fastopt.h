/* fastopt.h: the C ABI of fastopt's CPU kernels. Plain C; a kernel is handed a job and a range of its chunks.
 *
 * All offsets and lengths count elements unless they say bytes. Reserved fields are zero. */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stdint.h>

#define FASTOPT_ABI 1    /* changes with every change of a struct or a signature below */
#define FASTOPT_STATES 3 /* state arrays that a tensor has room for */
#define FASTOPT_HYPERS 8 /* doubles in a hyper row */

#define FASTOPT_NDIM 64  /* axes of an array, at most */

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
    void *states[3];              /* of the parameter's type; float where that has 16 bits */
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
    int64_t abi; /* FASTOPT_ABI of whoever wrote it, for kernels that were compiled elsewhere */
    const fastopt_tensor *tensors;
    const fastopt_chunk *chunks;
    const double *hypers;
    void *partials; /* reserved: a partial sum for each chunk */
    void *scratch;  /* scratch_bytes for each worker, if any tensor has a layout */
    int64_t scratch_bytes;
    const int32_t *skip; /* reserved: a flag on which the step changes nothing */
} fastopt_job;

/* Updates the chunks begin to end - 1. Worker is below the number of threads, and different for each. */
typedef void (*fastopt_kernel)(const fastopt_job *job, int64_t begin, int64_t end, int64_t worker);

/* Runs a kernel over all chunks of a job, `grain` of them at a time, on the calling thread and up to threads - 1
 * others, and returns when all is done. From any thread, any number at once. */
void fastopt_run(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads);

/* The same on the threads of an OpenMP runtime, whose GOMP_parallel is `parallel`; in a forked child, which has none, on
 * the calling thread. */
void fastopt_run_team(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads,
                      const void *parallel);

/* What an array, or a tensor of PyTorch, is expected to be. */
typedef struct fastopt_shape {
    const int64_t *lengths; /* of the axes */
    const int64_t *strides; /* in bytes; of a tensor, in elements */
    int64_t ndim;           /* -1: as nothing is */
    int64_t itemsize;
    int64_t format; /* 'f' or 'd'; of a tensor, DLPack's code of the type */
} fastopt_shape;

/* Ranges of addresses, in order of their starts; `ends` says how far each, and all before it, reach. */
typedef struct fastopt_extents {
    int64_t count;
    const int64_t *starts;
    const int64_t *ends;
} fastopt_extents;

/* Reads the addresses of the n items of a Python list, each expected to be exactly of a type, of its shape, and off all
 * that is occupied: 0 for None, -1 for whatever is not as expected. Returns how many are -1, and writes how many are
 * None to addresses[n]. */
int64_t fastopt_read(void *list, const void *type, int64_t n, const fastopt_shape *shapes,
                     const fastopt_extents *occupied, int64_t *addresses);

/* The same for n contiguous arrays of one shape, of float or double, all writable but the second, none overlapping
 * another. Returns the size of an element in bytes and writes the number of elements; 0 if anything is not so. */
int64_t fastopt_read_alike(void *list, const void *type, int64_t n, int64_t *addresses, int64_t *elements);

/* What an optimizer of PyTorch is expected to hold, as Python objects. */
typedef struct fastopt_holdings {
    void *groups;   /* a list of dicts, of which each has a list by the key `params` */
    void *params;
    void *listed;   /* for each group: the dict, the list, and what that holds */
    void *assigned; /* for each group: its keys and values */
    void *states;   /* a dict of dicts */
    void *stated;   /* for each: the key, the dict, and its keys and values */
    void *tensors; /* a list of n tensors of these shapes, at these addresses */
    int64_t n;
    const fastopt_shape *shapes;
    const int64_t *addresses;
    double *counts; /* `counted` numbers, which are to be those in `expected`; null where there are none */
    double *expected;
    int64_t counted;
} fastopt_holdings;

/* The gradients of the n tensors in a list, and what each is expected to be. */
typedef struct fastopt_gradients {
    void *tensors;
    void *descriptor; /* `grad` of their type; null: the gradients are in their list already */
    void *gradients;  /* a list for them */
    const void *type; /* of each, exactly */
    int64_t n;
    const fastopt_shape *shapes;
    const fastopt_extents *occupied;
    int64_t *addresses;
} fastopt_gradients;

/* A step that differs from the last one only in where the gradients lie. */
typedef struct fastopt_repetition {
    fastopt_kernel kernel;
    const fastopt_job *job;
    int64_t chunks;
    int64_t grain;
    int64_t workers;
    const void *parallel; /* see fastopt_run_team; null: fastopt_run */
    int64_t *grads;       /* where the first gradient's address goes, */
    int64_t apart;        /* and how many int64 on the next one's */
    void *increment;      /* called with `written`, to tell autograd */
    void *written;
    int64_t times; /* how often it was taken */
} fastopt_repetition;

/* Reads where gradients of PyTorch's tensors lie, as fastopt_read does, through DLPack's table of functions. Returns -1
 * where the holdings are no longer as expected, -3 where only what is assigned in groups is not, -2 where a call of
 * Python raised. Given a repetition, and a gradient as expected for every tensor, it takes that step on so many threads
 * at most, and returns -4. */
int64_t fastopt_read_tensors(const void *exchange, const fastopt_holdings *holdings, const fastopt_gradients *gradients,
                             fastopt_repetition *repetition, int32_t threads);

/* FASTOPT_ABI as compiled. */
int64_t fastopt_abi(void);

/* end */

#ifdef __cplusplus
}
#endif

#endif
