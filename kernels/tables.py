"""The tables that kernels read: the structs of ``tables.h`` and ``fastopt.h`` as NumPy dtypes; the kinds of schedules.

The headers say what every constant and field means; a test compares names, sizes and offsets.
"""

import numpy as np

ABI = 9
NORM = "norm"  # the kernel that writes a job's sums; all others have the names of rules
STATES = 3
SHARED = 2
NUMBERS = 6
HYPERS = SHARED + NUMBERS
OPTIONS = 8
WORDS = 496
CARRIED = 48
POWERS = 3
BLOCK = 64
PIECE = 1024  # elements whose states the CPU decodes at once: they stay in its L1 cache


def check_limits(rule: str, **counts: tuple[int, int]) -> None:
    """Raise ValueError if a rule has more of something than the tables have room for: what=(how many, limit)."""
    for what, (count, limit) in counts.items():
        if count > limit:
            raise ValueError(
                f"rule {rule!r} has {count} {what}; the tables have room for {limit}: raise {what.upper()} in "
                f"kernels/tables.py, FASTOPT_{what.upper()} in kernels/tables.h, and ABI in both"
            )


TENSOR = np.dtype(
    [
        ("param", np.int64),
        ("grad", np.int64),
        ("states", np.int64, (STATES,)),
        ("average", np.int64),
        ("layout", np.int64),
        ("hyper", np.int64),
    ]
)
STORAGE = np.dtype([("scales", np.int64, (STATES,)), ("remainder", np.int64), ("key", np.int64)])
LAYOUT = np.dtype([("param_row", np.int64), ("grad_row", np.int64), ("grad_item", np.int64)])
CHUNK = np.dtype(
    [
        ("tensor", np.int32),
        ("rows", np.int32),
        ("offset", np.int64),
        ("grad_offset", np.int64),
        ("length", np.int64),
    ]
)
SHAPE = np.dtype(
    [
        ("lengths", np.int64),
        ("strides", np.int64),
        ("ndim", np.int64),
        ("itemsize", np.int64),
        ("code", np.int64),
        ("device_type", np.int32),
        ("device_id", np.int32),
    ]
)
EXTENTS = np.dtype([("count", np.int64), ("starts", np.int64), ("ends", np.int64)])
WATCHED = np.dtype(
    [
        ("dicts", np.int64),
        ("key", np.int64),
        ("listed", np.int64),
        ("assigned", np.int64),
        ("nested", np.int64),
        ("stated", np.int64),
        ("tensors", np.int64),
        ("n", np.int64),
        ("shapes", np.int64),
        ("addresses", np.int64),
        ("behind", np.int64),
        ("counts", np.int64),
        ("expected", np.int64),
        ("counted", np.int64),
        ("rows", np.int64),
        ("distributed", np.int64),
        ("parts", np.int64),
        ("local", np.int64),
        ("spec", np.int64),
    ]
)
GRADIENTS = np.dtype(
    [
        ("tensors", np.int64),
        ("frozen", np.int64),
        ("descriptor", np.int64),
        ("gradients", np.int64),
        ("specs", np.int64),
        ("type", np.int64),
        ("n", np.int64),
        ("shapes", np.int64),
        ("occupied", np.int64),
        ("addresses", np.int64),
    ]
)
LAUNCH = np.dtype(
    [
        ("kernel", np.int64),
        ("norm", np.int64),
        ("job", np.int64),
        ("chunks", np.int64),
        ("grain", np.int64),
        ("workers", np.int64),
    ]
)
CLIP = np.dtype(
    [
        ("factor", np.float64),
        ("max_norm", np.float64),
        ("skips", np.int64),
        ("norm", np.float64),
        ("skipped", np.int64),
    ]
)
DRIVER = np.dtype(
    [
        ("launch", np.int64),
        ("is_capturing", np.int64),
        ("get_context", np.int64),
        ("push_context", np.int64),
        ("pop_context", np.int64),
    ]
)
GPU = np.dtype(
    [
        ("context", np.int64),
        ("exchange", np.int64),
        ("number", np.int64),
        ("stream", np.int64),
    ]
)
GPU_LAUNCH = np.dtype(
    [
        ("gpu", np.int64),
        ("kernel", np.int64),
        ("argument", np.int64),
        ("rows", np.int64),
        ("rounded", np.int64),
        ("blocks", np.int64),
        ("threads", np.int64),
    ]
)
STEP = np.dtype(
    [
        ("launches", np.int64),
        ("count", np.int64),
        ("gpu_launches", np.int64),
        ("gpu_count", np.int64),
        ("gpus", np.int64),
        ("gpu_n", np.int64),
        ("driver", np.int64),
        ("parallel", np.int64),
        ("grads", np.int64),
        ("n", np.int64),
        ("inputs", np.int64),
        ("rows", np.int64),
        ("carried", np.int64),
        ("next", np.int64),
        ("hypers", np.int64),
        ("scale", np.float64),
        ("largest", np.float64),
        ("taken", np.int64),
        ("clip", np.int64),
        ("error", np.int64),
    ]
)
JOB = np.dtype(
    [
        ("abi", np.int64),
        ("tensors", np.int64),
        ("chunks", np.int64),
        ("hypers", np.int64),
        ("scratch", np.int64),
        ("scratch_bytes", np.int64),
        ("sums", np.int64),
        ("power", np.float64),
        ("coefficient", np.float64),
        ("limit", np.float64),
        ("gain", np.float64),
        ("storages", np.int64),
        ("count", np.int64),
    ]
)
GPU_JOB = np.dtype(
    [
        ("tensors", np.int64),
        ("chunks", np.int64),
        ("hypers", np.int64),
        ("skip", np.int64),
        ("grads", np.int64),
        ("taken", np.int64),
        ("sums", np.int64),
        ("apart", np.int64),
        ("coefficient", np.int64),
        ("scale", np.int64),
        ("limit", np.float64),
        ("gain", np.float64),
        ("storages", np.int64),
        ("count", np.int64),
        ("counted", np.int64),
    ]
)
GPU_NORM = np.dtype(
    [
        ("norm", np.float64),
        ("coefficient", np.float64),
        ("skipped", np.int64),
        ("skip", np.int32),
        ("reserved", np.int32),
    ]
)
GPU_TOTAL = np.dtype(
    [
        ("sums", np.int64),
        ("count", np.int64),
        ("apart", np.int64),
        ("norm", np.int64),
        ("totals", np.int64),
        ("scale", np.int64),
        ("skip", np.int64),
        ("factor", np.float64),
        ("max_norm", np.float64),
        ("skips", np.int64),
    ]
)
GPU_CHECK = np.dtype(
    [
        ("found", np.int64),
        ("index", np.int64),
        ("tensor", np.int64),
        ("skip", np.int32),
        ("reserved", np.int32),
    ]
)
GPU_ROWS = np.dtype(
    [
        ("indices", np.int64),
        ("wide", np.int64),
        ("n", np.int64),
        ("bits", np.int64),
        ("rows", np.int64),
        ("width", np.int64),
        ("keys", np.int64),
        ("values", np.int64),
        ("sums", np.int64),
        ("chunks", np.int64),
        ("check", np.int64),
        ("tensor", np.int64),
    ]
)
ROW_INPUTS = np.dtype(
    [
        ("rule", np.int64),
        ("first", np.int64),
        ("steps", np.float64),
        ("schedule_steps", np.float64),
        ("options", np.float64, (OPTIONS,)),
        ("schedules", np.int64, (OPTIONS,)),
    ]
)
CLOCK = np.dtype(
    [
        ("inputs", np.int64),
        ("n", np.int64),
        ("taken", np.int64),
        ("ahead", np.int64),
        ("carried", np.int64),
        ("hypers", np.int64),
        ("rounded", np.int64),
        ("scale", np.int64),
        ("skip", np.int64),
        ("given", np.int64),
        ("start", np.float64, (CARRIED,)),
    ]
)
MESSAGE = np.dtype(
    [
        ("to", np.int64),
        ("apart", np.int64),
        ("count", np.int64),
        ("version", np.int64),
        ("number", np.int64),
        ("words", np.int64, (WORDS,)),
    ]
)

# A schedule's record has the index of a word for the word itself: kinds of schedules, shapes and modes.
KINDS = (
    "constant",
    "linear",
    "polynomial",
    "exponential",
    "step_decay",
    "multi_step",
    "piecewise",
    "inverse_sqrt",
    "cosine",
    "warm_restarts",
    "one_cycle",
    "cyclic",
    "warmup_stable_decay",
    "warmup",
    "sequence",
    "per_epoch",
)
SHAPES = ("linear", "cosine", "1-sqrt")
MODES = ("triangular", "triangular2", "exp_range")

STEP_LIMIT = 2**51  # for schedules: below it, steps and the floors of their quotients are exact in a double
