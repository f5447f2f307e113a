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


def assert_close(got, want, count, scale=None):
    """Assert that a result is within `count` epsilons of float64 values, at their scale or a given one."""
    got = np.asarray(got)
    want = np.asarray(want, np.float64)
    assert got.shape == want.shape
    scale = max(np.max(np.abs(want), initial=0.0), 1.0) if scale is None else scale
    atol = count * np.finfo(got.dtype).eps * scale
    np.testing.assert_allclose(got, want, rtol=0.0, atol=atol)
