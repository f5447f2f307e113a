"""Kernels that are not updates, for tests of the pool; no tests here."""

from fastopt.kernels import cpu
from numba import cfunc, types
from numba.extending import intrinsic


@intrinsic
def fetch_add(typing_context, address, value):
    """Add to an int64 in memory, atomically, and return what was there; adding 0 reads."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int64)))
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def waiting_kernel(gates):
    """Make a kernel that says it is inside and waits until it may leave, without ever asking for the GIL."""
    inside, leave = (int(gates[i : i + 1].ctypes.data) for i in range(2))

    @cfunc(cpu.SIGNATURE)
    def wait(job, begin, end, worker):
        fetch_add(inside, 1)
        for _ in range(2**31):  # some ten seconds
            if fetch_add(leave, 0) != 0:
                return
        fetch_add(inside, 1 << 32)

    return wait
