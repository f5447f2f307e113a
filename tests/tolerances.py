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

# float16 and bfloat16 are the result of float32 arithmetic, rounded once: off by at most half a unit in the last place.
ROUNDED = 0.5

# Adam's bias corrections, relative: 1 - beta ** step cancels if the power is near 1, whose last bit is 1e-16. The
# smallest correction tested is 2**-32.
BIAS = 1e-6

# torch works in the same dtype, with its own order of operations and fused multiply-adds: twice our own distance.
TORCH = 2 * TRAJECTORY

# A number that a rule carries from step to step, relative: NAdam's mu_product is float64, and each step rounds the
# power in its factor, the factor and the product, by half an epsilon, here and in the oracle: 4e-14 after 60 steps.
CARRIED = 4e-14

# torch's is float32: each step rounds the factor and the product by half an epsilon, 1.2e-7 together, which 80 steps
# would need to add up to this; no comparison takes as many.
CARRIED_TORCH = 1e-5

# Half precision, as a ratio of errors against float64: both round the parameter to its dtype at each step, which is
# most of the error; the factor leaves room for chance, and no more.
HALF = 2.0

# bfloat16 parameters against float32 ones that are rounded alike after each step: the same but where a last bit of
# float32 tips a rounding, by one epsilon; momentum, and a later tip, may bring a second one.
BFLOAT16 = 2

# float32 states of float16 parameters, where these may be off by a tipped rounding: by weight decay, of 0.1 at most,
# and momentum, by which that piles up tenfold, a state follows what its parameter is off.
STATE_OF_HALF = BFLOAT16 * 2**13

# States of 16 bits by kernels for CPUs and GPUs, in epsilons of float32: a last bit may tip a rounding, by one of
# bfloat16, 2**-7; a few such tips, times a rate of 0.1, are what parameters may be off.
TIPPED = 2**17
TIPPED_TIMES_RATE = 2**14

# Losses of a network in training, absolute and relative: each step feeds rounding errors into the next one's gradients,
# and they grow: 5e-6 was measured after two epochs.
TORCH_TRAINING = 1e-4

# The same, and parameters, under autocast: the last bits of float32 parameters tip roundings of 2**-8 in activations,
# and so change gradients. After eight steps of 1e-2 at most, differences of 1e-4 were measured.
AUTOCAST_TRAINING = 1e-3

# The norm, relative: a chunk adds 16,384 squares at most in float64, one after the other if they lie apart, and each
# addition rounds by half an epsilon, 1.1e-16; the root halves what adds up.
NORM = 1e-12

# Schedules, as relative errors. A closed form of some ten operations on doubles is within 1e-14 of the oracle, and a
# power within 1e-13, whose exponent is rounded first; what a step, a period or a share cancels shows far above 1e-9.
SCHEDULE = 1e-9

# Below it, doubles have fewer bits, or none: any value as small will do.
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


def assert_rounded(got, want, digits, least, count):
    """Assert that halves, given as float64, are float64 values rounded once after `count` epsilons of float32.

    A half has so many binary digits behind the first, and fewer below 2 to the power of `least`.
    """
    assert got.shape == want.shape
    scale = max(np.max(np.abs(want), initial=0.0), 1.0)
    exponent = np.where(want == 0.0, least, np.maximum(np.frexp(want)[1] - 1, least))
    atol = ROUNDED * 2.0 ** (exponent - digits) + count * np.finfo(np.float32).eps * scale
    far = np.abs(got - want) > atol
    assert not far.any(), (got[far], want[far])
