/* fastopt.h: the C ABI of fastopt's CPU kernels, and of all else in the extension. Plain C; a kernel is handed a job, which
 * tables.h describes, and a range of its chunks. */
#ifndef FASTOPT_H
#define FASTOPT_H

#include "tables.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cffi reads what stands between the next two marks; no preprocessor there. */
/* begin */

/* Updates the chunks begin to end - 1. Worker is below the number of threads, and different for each. */
typedef void (*fastopt_kernel)(const fastopt_job *job, int64_t begin, int64_t end, int64_t worker);

/* Runs a kernel over all chunks of a job, `grain` of them at a time, on the calling thread and up to threads - 1
 * others, and returns when all is done. From any thread, any number at once. */
void fastopt_run(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads);

/* The same on the threads of an OpenMP runtime, whose GOMP_parallel is `parallel`; in a forked child, which has none, on
 * the calling thread. */
void fastopt_run_team(fastopt_kernel kernel, const fastopt_job *job, int64_t chunks, int64_t grain, int32_t threads,
                      const void *parallel);

/* Updates n elements of an array, and of its states, in place: what fastopt.embed.update gives for a rule. Parameter,
 * gradient and states are all of float, or all of double, as was asked for, aligned as these are, and no two overlap.
 * There are as many states as the rule has; null will do where it has none. `hyper` holds what fastopt.embed.hyper lists,
 * in that order. From any thread, any number at once, on arrays of their own. */
typedef void (*fastopt_update)(void *param, const void *grad, void *const *states, int64_t n, const double *hyper);

/* What an array, or a tensor of PyTorch, is expected to be. */
typedef struct fastopt_shape {
    const int64_t *lengths; /* of the axes */
    const int64_t *strides; /* in bytes; of a tensor, in elements */
    int64_t ndim;           /* -1: as nothing is */
    int64_t itemsize;
    int64_t format; /* 'f' or 'd'; of a tensor, DLPack's code of the type */
    int32_t device_type; /* of a tensor, DLPack's code of the device, */
    int32_t device_id;   /* and its number */
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

/* Python objects that are expected to stay what they are, and tensors that are expected to stay where they are. */
typedef struct fastopt_watched {
    void *dicts;    /* a list of dicts, each of which has a list under `key` */
    void *key;
    void *listed;   /* for each: the dict, the list, and what that holds */
    void *assigned; /* for each: its keys and values */
    void *nested;   /* a dict of dicts */
    void *stated;   /* for each of these: the key, the dict, and its keys and values */
    void *tensors;  /* a list of n tensors of these shapes, at these addresses */
    int64_t n;
    const fastopt_shape *shapes;
    const int64_t *addresses;
    double *counts; /* `counted` numbers, which are to be those in `expected`; null where there are none; */
    double *expected;
    int64_t counted;
    const int64_t *rows; /* null, or for each of these the row of a step whose `carried` stands behind them all */
} fastopt_watched;

/* The gradients of the n tensors in a list, and what each is expected to be. */
typedef struct fastopt_gradients {
    void *tensors;
    void *frozen; /* a list of tensors that are to have none; not looked at where the descriptor is null */
    void *descriptor; /* `grad` of their type; null: the gradients are in their list already */
    void *gradients;  /* a list for them */
    const void *type; /* of each, exactly */
    int64_t n;
    const fastopt_shape *shapes;
    const fastopt_extents *occupied;
    int64_t *addresses;
} fastopt_gradients;

/* One launch of a step. */
typedef struct fastopt_launch {
    fastopt_kernel kernel;
    const fastopt_job *job;
    int64_t chunks;
    int64_t grain;
    int64_t workers; /* how many threads it is worth */
} fastopt_launch;

/* A step that differs from the last one only in where the gradients lie, and in its count. */
typedef struct fastopt_step {
    const fastopt_launch *launches;
    int64_t count;        /* of launches */
    const void *parallel; /* see fastopt_run_team; null: fastopt_run */
    int64_t *const *grads; /* where the address of each gradient goes, */
    int64_t n;             /* of so many */
    const fastopt_row_inputs *inputs; /* of so many hyper rows; null: these stay as they are */
    int64_t rows;
    double *carried; /* see fastopt_clock */
    double *next;    /* room for as many: what they are after the step */
    double *hypers;
    double scale;   /* what gradients are multiplied by */
    double largest; /* the largest number that the kernels compute with */
    int64_t taken;  /* how often it was taken */
} fastopt_step;

/* Takes a step on so many threads at most, with gradients at these addresses; null: where they lay in the last one.
 * All of it is one call: an interrupt comes before it, or after. Returns 0 where a number of a row is too large for the
 * kernels, and nothing was done; else 1. */
int32_t fastopt_take(fastopt_step *step, const int64_t *grads, int32_t threads);

/* Reads where gradients of PyTorch's tensors lie, as fastopt_read does, through DLPack's table of functions. Returns -1
 * where what is watched is no longer as expected, or a frozen tensor has a gradient, -3 where only what is assigned in
 * the dicts is not, -2 where a call of Python raised. Given a step, and a gradient as expected for every tensor, it takes
 * that step, counts it, and returns -4; autograd is told by `increment(written)` before. */
int64_t fastopt_read_tensors(const void *exchange, const fastopt_watched *watched, const fastopt_gradients *gradients,
                             fastopt_step *step, void *increment, void *written, int32_t threads);

/* Lets the CUDA graph that a stream records own something, which has a number: 1, or 0 where it does not, since nobody has
 * loaded the driver by that name, the driver is too old, or the stream records nothing. */
int32_t fastopt_graph_owns(const char *library, void *stream, int64_t number);

/* Writes the numbers, so many at most, of what was owned by graphs that are gone, each once; returns how many. */
int64_t fastopt_graphs_gone(int64_t *numbers, int64_t room);

/* FASTOPT_ABI as compiled. */
int64_t fastopt_abi(void);

/* end */

FASTOPT_SIZE(fastopt_shape, 48);
FASTOPT_SIZE(fastopt_extents, 24);
FASTOPT_SIZE(fastopt_watched, 112);
FASTOPT_SIZE(fastopt_gradients, 72);
FASTOPT_SIZE(fastopt_launch, 40);
FASTOPT_SIZE(fastopt_step, 104);

#ifdef __cplusplus
}
#endif

#endif
