/* fastopt.h: the C ABI of fastopt's CPU kernels, and of everything else in the extension. Plain C. A kernel gets a job,
 * which tables.h describes, and a range of its chunks. */
#ifndef FASTOPT_H
#define FASTOPT_H

#include "tables.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cffi reads the text between the next two marks; no preprocessor directives there. */
/* begin */

/* Updates the chunks begin to end - 1. `worker` is below the number of threads, and different for each thread. */
typedef void (*fastopt_kernel)(const fastopt_job *job, int64_t begin, int64_t end, int64_t worker);

/* Runs a kernel over all chunks of a job, `grain` of them at a time, on the calling thread and up to threads - 1
 * others, and returns when all chunks are done. Thread-safe. */
void fastopt_run(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads);

/* The same on the threads of the OpenMP runtime whose GOMP_parallel is `parallel`; in a forked child, which has no such
 * threads, on the calling thread. */
void fastopt_run_team(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads,
                      const void *parallel);

/* Updates n elements of an array and of its states in place; fastopt.embed.update returns one for a rule. Parameter,
 * gradient and states are all float or all double, as requested, aligned accordingly, and no two overlap. `states` has as
 * many as the rule has, and may be null if it has none. `hyper` holds what fastopt.embed.hyper lists, in that order.
 * Thread-safe for different arrays. */
typedef void (*fastopt_update)(void *param, const void *grad, void *const *states, int64_t n, const double *hyper);

/* What an array, or a PyTorch tensor, is expected to be. */
typedef struct fastopt_shape {
    const int64_t *lengths; /* of the axes */
    const int64_t *strides; /* in bytes; for a tensor, in elements */
    int64_t ndim;           /* -1: matches nothing */
    int64_t itemsize;
    int64_t code;        /* 'f' or 'd'; for a tensor, DLPack's code of the dtype; for an array of CuPy, its dtype's id */
    int32_t device_type; /* for a tensor or an array of CuPy, DLPack's code of the device, */
    int32_t device_id;   /* and its number */
} fastopt_shape;

/* Ranges of addresses, sorted by their starts; ends[i] is the furthest end of the ranges 0 to i. */
typedef struct fastopt_extents {
    int64_t count;
    const int64_t *starts;
    const int64_t *ends;
} fastopt_extents;

/* Reads the addresses of the n items of a Python list. Each item should have exactly its type, its shape, and no overlap
 * with the occupied ranges. Writes 0 for None and -1 for anything else; returns how many are -1, and writes how many are
 * None to addresses[n]. An item's type is the first of `types`, NumPy's. Where its shape's device_type is not 0, it is the
 * second, CuPy's; then follow that type's descriptors of dtype, shape, strides and data, and the data's type's of ptr and
 * device_id. */
int64_t fastopt_read(void *list, void *const *types, int64_t n, const fastopt_shape *shapes,
                     const fastopt_extents *occupied, int64_t *addresses);

/* The same for n contiguous float or double arrays of one shape, all but the second writable, none overlapping another.
 * Returns the size of an element in bytes and writes the number of elements; returns 0 if anything else is found. */
int64_t fastopt_read_alike(void *list, const void *type, int64_t n, int64_t *addresses, int64_t *elements);

/* Python objects, and addresses of tensors, that must not have changed. */
typedef struct fastopt_watched {
    void *dicts;    /* a list of dicts, each of which has a list under `key` */
    void *key;
    void *listed;   /* for each dict: the dict, the list, and the list's items */
    void *assigned; /* for each dict: its keys and values */
    void *nested;   /* a dict of dicts */
    void *stated;   /* for each of these: the key, the dict, and its keys and values */
    void *tensors;  /* a list of n tensors with these shapes and addresses */
    int64_t n;
    const fastopt_shape *shapes;
    const int64_t *addresses;
    const int64_t *behind; /* two addresses for each: where its objects in C++ lie, to fetch them; nothing is read there */
    double *counts; /* `counted` numbers, which must equal those in `expected`; may be null if there are none */
    double *expected;
    int64_t counted;
    const int64_t *rows; /* null, or for each of these the row of a step whose `carried` stands behind them all */
    void *distributed; /* a list of distributed tensors */
    void *parts;       /* for each of these: its local part and its spec */
    void *local;       /* the descriptors of these two; null if no tensor is distributed */
    void *spec;
} fastopt_watched;

/* The gradients of the n tensors in a list, and what each is expected to be. */
typedef struct fastopt_gradients {
    void *tensors;
    void *frozen;     /* a list of tensors that must have none; not checked if the descriptor is null */
    void *descriptor; /* `grad` of their type; null: `gradients` is filled already */
    void *gradients;  /* a list for them */
    void *specs;      /* a list: how each is distributed; None if it is not */
    const void *type; /* the exact type of each */
    int64_t n;
    const fastopt_shape *shapes;
    const fastopt_extents *occupied;
    int64_t *addresses;
} fastopt_gradients;

/* One launch of a step on the CPU. */
typedef struct fastopt_launch {
    fastopt_kernel kernel;
    fastopt_kernel norm; /* writes the job's sums; only for steps that have a fastopt_clip */
    fastopt_job *job;
    int64_t chunks;
    int64_t grain;
    int64_t workers; /* the most threads that are worth using */
} fastopt_launch;

/* What becomes of a step by the norm of all its gradients. */
typedef struct fastopt_clip {
    double factor;   /* of the gradients as they are, before the norm is taken */
    double max_norm; /* of the gradients that the rules get; may be infinite */
    int64_t skips;   /* whether the step is skipped if the norm is not finite */
    double norm;     /* of the last step's gradients, before clipping */
    int64_t skipped; /* how many steps were */
} fastopt_clip;

#define FASTOPT_TORN -5   /* a launch failed after others of its step */
#define FASTOPT_SKIPPED 2 /* the norm of the gradients is not finite */

/* Functions of the CUDA driver that is loaded. */
typedef struct fastopt_driver {
    const void *launch;       /* cuLaunchKernel */
    const void *is_capturing; /* cuStreamIsCapturing */
    const void *get_context;  /* cuCtxGetCurrent */
    const void *push_context; /* cuCtxPushCurrent_v2 */
    const void *pop_context;  /* cuCtxPopCurrent_v2 */
} fastopt_driver;

/* A GPU, and the stream on which work goes there. */
typedef struct fastopt_gpu {
    void *context;
    const void *exchange; /* DLPack's table of functions of a library, which says what its current stream is; or null, */
    int64_t number;       /* of the device there */
    void *stream;         /* and the caller has written it here */
} fastopt_gpu;

/* One launch of a step on a GPU. */
typedef struct fastopt_gpu_launch {
    const fastopt_gpu *gpu;
    void *kernel;    /* a CUfunction */
    void *argument;  /* a fastopt_gpu_job and its words */
    void *rows;      /* where among these the hyper rows are */
    int64_t rounded; /* whether they are float; else they are double */
    int64_t blocks;
    int64_t threads; /* of a block */
} fastopt_gpu_launch;

/* A step that differs from the last one only in the gradients' addresses and the hyper rows. */
typedef struct fastopt_step {
    const fastopt_launch *launches;
    int64_t count;         /* of launches */
    const fastopt_gpu_launch *gpu_launches;
    int64_t gpu_count;
    fastopt_gpu *const *gpus; /* each of theirs once */
    int64_t gpu_n;
    const fastopt_driver *driver;
    const void *parallel;  /* see fastopt_run_team; null: fastopt_run */
    int64_t *const *grads; /* the fields for the gradients' addresses, */
    int64_t n;             /* one for each gradient */
    const fastopt_row_inputs *inputs; /* one for each hyper row; null: the rows stay as they are */
    int64_t rows;
    double *carried; /* see fastopt_clock */
    double *next;    /* what they are after the step */
    double *hypers;
    double scale;   /* the factor of the gradients */
    double largest; /* the largest number that the kernels compute with */
    int64_t taken;  /* how often the step was taken */
    fastopt_clip *clip; /* null: nobody asks for the norm */
    int64_t error;  /* what the driver has returned where it refused a launch, after others of the same step */
} fastopt_step;

/* Takes a step on at most `threads` threads, with gradients at these addresses; null: the same ones as in the last step.
 * All of it is one call: a Python interrupt comes before or after it. Returns 1; 0 if a number of a row is too large for
 * the kernels, a stream is capturing, or the driver refuses the first launch: then nothing was done, except that the caller
 * has to compute the rows and to write the addresses again; FASTOPT_TORN if it refuses a later one; FASTOPT_SKIPPED if the
 * step is skipped. */
int32_t fastopt_take(fastopt_step *step, const int64_t *grads, int32_t threads);

/* Reads the addresses of PyTorch gradients as fastopt_read does, through DLPack's table of functions. Returns -1 if
 * anything watched has changed or a frozen tensor has a gradient, -3 if entries of the dicts have changed, -2 if a call of
 * Python raised. Given a step, and the expected gradient for every tensor, it calls `increment(written)` for autograd,
 * takes and counts the step, unless it is skipped, and returns -4, or FASTOPT_TORN. */
int64_t fastopt_read_tensors(const void *exchange, const fastopt_watched *watched, const fastopt_gradients *gradients,
                             fastopt_step *step, void *increment, void *written, int32_t threads);

/* Puts None in the place of each gradient in the list. Assigning a slice of many would allocate memory for the old ones, for
 * which the allocator tidies up after all that backward has freed. */
void fastopt_release_tensors(const fastopt_gradients *gradients);

/* Lets the CUDA graph that a stream is capturing own the object with this number. Returns 1; or 0 if no driver of that name
 * is loaded, the driver is too old, or the stream is not capturing. */
int32_t fastopt_graph_owns(const char *library, void *stream, int64_t number);

/* Writes the numbers, `room` at most, of objects whose graphs are gone, each once; returns how many. */
int64_t fastopt_graphs_gone(int64_t *numbers, int64_t room);

/* FASTOPT_ABI as compiled. */
int64_t fastopt_abi(void);

/* end */

FASTOPT_SIZE(fastopt_shape, 48);
FASTOPT_SIZE(fastopt_extents, 24);
FASTOPT_SIZE(fastopt_watched, 152);
FASTOPT_SIZE(fastopt_gradients, 80);
FASTOPT_SIZE(fastopt_launch, 48);
FASTOPT_SIZE(fastopt_clip, 40);
FASTOPT_SIZE(fastopt_driver, 40);
FASTOPT_SIZE(fastopt_gpu, 32);
FASTOPT_SIZE(fastopt_gpu_launch, 56);
FASTOPT_SIZE(fastopt_step, 160);

#ifdef __cplusplus
}
#endif

#endif
