/* tables.h: the tables that kernels read, on the CPU and in a GPU's memory; tables.py has the same in NumPy. Plain C.
 *
 * All offsets and lengths count elements unless they say bytes. */
#ifndef FASTOPT_TABLES_H
#define FASTOPT_TABLES_H

#ifdef __CUDACC_RTC__ /* NVRTC has no headers */
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

/* cffi reads the text between the next two marks; its only preprocessor directive is #define of an integer. */
/* begin */

#define FASTOPT_ABI 9      /* changes with every change of a struct or a signature below */
#define FASTOPT_STATES 3   /* states that a rule may have */
#define FASTOPT_SHARED 2   /* numbers that every hyper row begins with: the gradient's factor, the weight decay */
#define FASTOPT_NUMBERS 6  /* numbers of its own that a rule may have in a hyper row, after those */
#define FASTOPT_OPTIONS 8  /* options from which a rule may compute its row */
#define FASTOPT_WORDS 496  /* int64 in a message; the whole message fits in the 4 KB of a launch's arguments */
#define FASTOPT_CARRIED 48 /* carried numbers that travel in a clock, which then has at most 512 bytes */
#define FASTOPT_NDIM 64    /* axes that an array may have */
#define FASTOPT_POWERS 3   /* sums of squares on a GPU: of gradients, of their 2^-600th, of 2^600 times as much */
#define FASTOPT_BLOCK 64   /* elements of a state in 8 bits that share a scale */

/* The strides of a gradient whose storage order differs from its parameter's. */
typedef struct fastopt_layout {
    int64_t param_row; /* from one row of a tile to the next, in the parameter */
    int64_t grad_row;  /* the same in the gradient, in bytes */
    int64_t grad_item; /* from one element of a row to the next in the gradient, in bytes */
} fastopt_layout;

/* A row of the tensor table. */
typedef struct fastopt_tensor {
    void *param;
    const void *grad;             /* null: no gradient this step, the tensor is left alone */
    void *states[FASTOPT_STATES]; /* of the parameter's type, or float if that has 16 bits */
    void *average;                /* of the parameter, of the states' type, for kernels with that stage; null: it has none */
    const fastopt_layout *layout; /* null: parameter, gradient and states share one storage order */
    int64_t hyper;                /* index of the tensor's hyper row */
} fastopt_tensor;

/* What a row of the tensor table lacks, for kernels whose storages need it: a table of its own, with the same rows. */
typedef struct fastopt_storage {
    float *scales[FASTOPT_STATES]; /* of the blocks of states in 8 bits */
    void *remainder;               /* what the master has beyond a parameter of 16 bits, or the master itself */
    int64_t key;                   /* for stochastic rounding: the tensor's random bits in all steps come from it */
} fastopt_storage;

/* A row of the chunk table: a run of elements, or a tile of several where the tensor has a layout. */
typedef struct fastopt_chunk {
    int32_t tensor;
    int32_t rows;        /* runs in the tile; 1 without a layout */
    int64_t offset;      /* of the first element, in parameter and states */
    int64_t grad_offset; /* the same in the gradient; in bytes if the tensor has a layout */
    int64_t length;      /* of a run; without a layout, on a GPU, at most a pack of 16 bytes per thread of a block */
} fastopt_chunk;

/* The argument of a kernel on the CPU. A hyper row holds FASTOPT_HYPERS numbers: the gradient's factor (-1 to maximize),
 * the weight decay, then the rule's own hyperparameters in its order. */
typedef struct fastopt_job {
    int64_t abi; /* FASTOPT_ABI of the code that wrote this, for kernels compiled elsewhere */
    const fastopt_tensor *tensors;
    const fastopt_chunk *chunks;
    const double *hypers;
    void *scratch; /* scratch_bytes for each worker, if any tensor has a layout */
    int64_t scratch_bytes;
    double *sums;       /* for the norm: the sum of squares of each chunk's gradient, */
    double power;       /* times this one's square: a power of two, lest squares overflow */
    double coefficient; /* of all gradients: 1 unless they are clipped by their norm */
    double limit;       /* for clipping by value: the largest size of an element of a gradient, before any factor */
    double gain;        /* for the average: the weight of the new parameter */
    const fastopt_storage *storages; /* null, or a row for each tensor */
    int64_t count;                   /* for stochastic rounding: steps taken before this one */
} fastopt_job;

/* The argument of a kernel on a GPU begins with this. Behind it are as many words, of 8 bytes, as the kernel was compiled
 * for: the addresses of the gradients, one for each tensor, then the hyper rows. */
typedef struct fastopt_gpu_job {
    const fastopt_tensor *tensors;
    const fastopt_chunk *chunks;
    const void *hypers;  /* rows of the type that the kernel computes in; null: they are in the words */
    const int32_t *skip; /* null, or a flag: if it is not 0, the step changes nothing */
    int64_t grads;       /* how many words are addresses of gradients; 0: the tensor table has them */
    int64_t *taken;      /* null, or a count of steps to which this launch adds one, unless the step is skipped */
    double *sums;        /* for the norm: FASTOPT_POWERS sums of squares of each chunk's gradient, */
    int64_t apart;       /* a chunk's so far apart, from one power to the next */
    const double *coefficient; /* null, or that of all gradients, which are clipped by their norm */
    const float *scale;  /* for clipping by value: null, or what gradients are divided by before; their factor lacks it, */
    double limit;        /* and the largest size that they keep */
    double gain;         /* for the average: the weight of the new parameter */
    const fastopt_storage *storages; /* null, or a row for each tensor */
    int64_t count;                   /* for stochastic rounding: steps taken before this one, */
    const int64_t *counted;          /* and null, or a number to add to them, which this launch does not change */
} fastopt_gpu_job;

/* What becomes of a step by the norm of all its gradients, in a GPU's memory. */
typedef struct fastopt_gpu_norm {
    double norm;        /* of the gradients, before clipping */
    double coefficient; /* of all gradients: at most 1 */
    int64_t skipped;    /* how many steps were, since their norm was not finite */
    int32_t skip;       /* whether this step is, also by AMP */
    int32_t reserved;
} fastopt_gpu_norm;

/* The argument of `total`, a kernel of one block that runs after the norm's kernels and before `advance`. */
typedef struct fastopt_gpu_total {
    const double *sums; /* as in a job: those of all launches */
    int64_t count;
    int64_t apart;
    fastopt_gpu_norm *norm; /* what is found; or null, */
    double *totals;         /* and the sum for each power goes here, for a step on several GPUs */
    const float *scale;     /* null, or the number that gradients are divided by before their norm is taken */
    const int32_t *skip;    /* null, or a flag: if it is not 0, the step is skipped in any case */
    double factor;          /* of gradients, besides */
    double max_norm;        /* of the gradients that the rules get; infinite if they are not clipped */
    int64_t skips;          /* whether the step is skipped if the norm is not finite */
} fastopt_gpu_total;

/* What a GPU has found of the indices of sparse gradients, in its memory. */
typedef struct fastopt_gpu_check {
    int64_t found;    /* whether an index was no row of its table, until the host has read it: */
    int64_t index;    /* that index, */
    int64_t tensor;   /* and the number of its parameter */
    int32_t skip;     /* whether this step has such an index, so that it changes nothing */
    int32_t reserved;
} fastopt_gpu_check;

/* The argument of the kernels that make chunks of a table's rows. A key is a row's number in its upper bits, and a place
 * among the indices in its lower ones; -1 where an index is no row. */
typedef struct fastopt_gpu_rows {
    const void *indices;    /* rows of the table, int64 or int32; null: all of them, in order, */
    int64_t wide;           /* whether they are int64, */
    int64_t n;              /* and how many there are */
    int64_t bits;           /* of a place */
    int64_t rows;           /* of the table, */
    int64_t width;          /* and elements of one */
    int64_t *keys;          /* n, which are sorted before the chunks are made */
    const void *values;     /* of the gradient: n lines, float32 or float64 */
    void *sums;             /* of those that belong to the same row: as many */
    fastopt_chunk *chunks;  /* n, of tensor 0 with its gradient in the values, or 1 with it in the sums, in bytes */
    fastopt_gpu_check *check;
    int64_t tensor;         /* the parameter's number, for the check */
} fastopt_gpu_rows;

/* What a hyper row is computed from when Python does not compute it: in a step that repeats the last one, and on a GPU,
 * for steps that the host cannot count: replays of a captured graph, and steps that may be skipped. */
typedef struct fastopt_row_inputs {
    int64_t rule;  /* its index in FASTOPT_RULES; SparseAdam comes behind these */
    int64_t first; /* whether the next step is the states' first */
    double steps;  /* taken before this was written */
    double schedule_steps;                    /* the same, as schedules count */
    double options[FASTOPT_OPTIONS];          /* in the rule's order */
    const double *schedules[FASTOPT_OPTIONS]; /* the record that drives each option; null: the option is constant */
} fastopt_row_inputs;

/* The argument of `advance`, a kernel that runs ahead of the updates of a step with a thread for each row, and of `count`,
 * which runs behind them where none of them counts. */
typedef struct fastopt_clock {
    const fastopt_row_inputs *inputs;
    int64_t n;
    int64_t *taken;      /* steps that were counted here, */
    int64_t ahead;       /* and those between the inputs and the first of them */
    double *carried;     /* n numbers that rules may carry from step to step, one for each row */
    double *hypers;      /* n rows, */
    float *rounded;      /* and the same in float32 */
    const float *scale;  /* null, or the number to divide gradients by */
    const int32_t *skip; /* as in a GPU's job */
    int64_t given;       /* for so many rows, the carried number before the first step that is counted is not in memory, */
    double start[FASTOPT_CARRIED]; /* but here */
} fastopt_clock;

/* Numbers for a table in a GPU's memory. They are arguments of a launch: nothing reads the host's memory later. A graph
 * sends its message again at each replay, and the version keeps it from overwriting newer numbers. */
typedef struct fastopt_message {
    int64_t *to;
    int64_t apart;          /* from one number to the next in the table, in int64 */
    int64_t count;          /* of numbers, at most FASTOPT_WORDS */
    const int64_t *version; /* null, or the table's version: the numbers are written only if it is below */
    int64_t number;         /* this one */
    int64_t words[FASTOPT_WORDS];
} fastopt_message;

/* end */

#define FASTOPT_HYPERS (FASTOPT_SHARED + FASTOPT_NUMBERS) /* numbers in a hyper row */

/* Does not compile if a struct's size is not the one in tables.py. */
#ifdef __cplusplus
#define FASTOPT_SIZE(type, bytes) static_assert(sizeof(type) == bytes, #type " has another size")
#elif __STDC_VERSION__ >= 201112L
#define FASTOPT_SIZE(type, bytes) _Static_assert(sizeof(type) == bytes, #type " has another size")
#else
#define FASTOPT_SIZE(type, bytes) typedef char type##_has_another_size[sizeof(type) == bytes ? 1 : -1]
#endif

FASTOPT_SIZE(fastopt_layout, 24);
FASTOPT_SIZE(fastopt_tensor, 40 + 8 * FASTOPT_STATES);
FASTOPT_SIZE(fastopt_chunk, 32);
FASTOPT_SIZE(fastopt_storage, 16 + 8 * FASTOPT_STATES);
FASTOPT_SIZE(fastopt_job, 104);
FASTOPT_SIZE(fastopt_gpu_job, 120);
FASTOPT_SIZE(fastopt_gpu_norm, 32);
FASTOPT_SIZE(fastopt_gpu_total, 80);
FASTOPT_SIZE(fastopt_gpu_check, 32);
FASTOPT_SIZE(fastopt_gpu_rows, 96);
FASTOPT_SIZE(fastopt_row_inputs, 32 + 16 * FASTOPT_OPTIONS);
FASTOPT_SIZE(fastopt_clock, 80 + 8 * FASTOPT_CARRIED);
FASTOPT_SIZE(fastopt_message, 40 + 8 * FASTOPT_WORDS);

#endif
