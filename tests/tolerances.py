"""The tolerances of all tests, each with its reason.

Rounding errors are counted in units of the dtype's epsilon, relative to the largest magnitude among an update's terms:
where a parameter nearly cancels, its own magnitude says nothing about the rounding on the way.
"""

import numpy as np

# One update rounds at most eight times (factor, weight decay, state, direction, root, sum, division, subtraction), each
# by half an epsilon, and a term is at most twice the result's scale.
ONE_STEP = 8

# Errors of a step are carried on by the state: with momentum 0.9 they pile up at most tenfold, over any number of
# steps, and random signs keep them well below.
TRAJECTORY = 80

# torch works in the same dtype, with its own order of operations and fused multiply-adds: twice our own distance.
TORCH = 2 * TRAJECTORY

# Schedules, as relative errors. A closed form of some ten operations on doubles is within 1e-14 of the oracle, and a
# power within 1e-13, whose exponent is rounded first; what a step, a period or a share cancels shows far above 1e-9.
SCHEDULE = 1e-9

# Below it, doubles have fewer bits, or none: what is smaller may be anything as small.
SCHEDULE_TINY = 1e-300

# torch's closed forms are as good as ours, but cancel: the position in a cycle, and 1 + cos(x) near its end.
SCHEDULE_TORCH = 1e-9

# Its recursive ones multiply hundreds of rounded quotients, the last ones of which are nearly 0 / 0.
SCHEDULE_TORCH_RECURSIVE = 1e-7


def assert_close(got, want, count, scale=None):
    """Assert that a result is within `count` epsilons of float64 values, at their scale or a given one."""
    got = np.asarray(got)
    want = np.asarray(want, np.float64)
    assert got.shape == want.shape
    scale = max(np.max(np.abs(want), initial=0.0), 1.0) if scale is None else scale
    atol = count * np.finfo(got.dtype).eps * scale
    np.testing.assert_allclose(got, want, rtol=0.0, atol=atol)
