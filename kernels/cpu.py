"""Every update rule as a scalar function, and the loop that runs any of them over the chunks of a job.

A rule takes a parameter, its gradient, its states and its hyperparameters, and returns the new parameter and states.
It casts hyperparameters to the parameter's type, float32 or float64: Numba would compute a float32 array with a Python
float in float64, at half the speed. (An integer parameter would turn them into integers.) Rules are ordered from the
simplest to the hardest. They never see float16 and bfloat16: the loop widens what it reads to float32, and narrows what
it writes.

Your own Numba loops can call the rules, each rule's update of whole arrays, `clipped` and `averaged`, and `schedule`,
whose formulas are in ``schedules.py``; C loops call what `update_for_c` returns.

Rules, conversions and the loop stay in this one file: Numba's disk cache notices changes only in the file of the cached
function.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]  # numba exports carray dynamically
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload
from numba.np.numpy_support import from_dtype

from . import cache
from .dtypes import CODES, DTYPES, ROUNDED, STORED, dtype_of
from .lock import lock
from .schedules import schedule as schedule
from .tables import (
    ABI,
    BLOCK,
    CHUNK,
    HYPERS,
    JOB,
    LAYOUT,
    NORM,
    NUMBERS,
    PIECE,
    SHARED,
    STATES,
    STORAGE,
    TENSOR,
    check_limits,
)

# With Python's error model, square roots and divisions stay scalar. No fastmath: it changes divisions and NaN.
compiled = njit(error_model="numpy")
# For what Python never calls: its wrapper would take as long to compile as a small function.
inner: Any = njit(  # type: ignore[call-overload]  # whose stubs lack the last two
    error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
inlined: Any = njit(  # type: ignore[call-overload]  # likewise; for what is only fast as a part of its caller
    error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)

STATES_OF: dict = {}  # name of a rule -> how many states it has
FUNCTIONS: list = []  # the rules' functions, in the same order


def rule(states):
    """Register a scalar function as a rule with this number of states."""

    def register(function):
        numbers = len(inspect.signature(function).parameters) - 2 - states
        check_limits(function.__name__, states=(states, STATES), numbers=(numbers, NUMBERS))
        STATES_OF[function.__name__] = states
        FUNCTIONS.append(compiled(function))
        return FUNCTIONS[-1]

    return register


def over_arrays(function):
    """Compile a function that updates whole arrays by a rule, for users' own loops."""
    function.__doc__ = "Update arrays in place by the rule of that name; `update_each` says what they may be."
    return njit(error_model="numpy", forceinline=True)(function)


def arguments_of(function):
    """Return the names of a rule's arguments: those for arrays (p, g and the states), and the hyperparameters."""
    names, arrays = list(inspect.signature(function).parameters), 2 + STATES_OF[function.__name__]
    return names[:arrays], names[arrays:]


def number_of(name):
    """Return a rule's number, its index in FUNCTIONS."""
    return list(STATES_OF).index(name)


def counts_of(name):
    """Return how many states and how many hyperparameters a rule has."""
    return STATES_OF[name], len(arguments_of(FUNCTIONS[number_of(name)])[1])


@rule(states=0)
def sgd(p, g, lr):
    real = type(p)
    return p - real(lr) * g


@over_arrays
def update_sgd(p, g, lr):
    update_each("sgd", p, g, (), (lr,))


@rule(states=1)
def momentum(p, g, v, lr, momentum):
    real = type(p)
    v = real(momentum) * v + g
    return p - real(lr) * v, v


@over_arrays
def update_momentum(p, g, v, lr, momentum):
    update_each("momentum", p, g, (v,), (lr, momentum))


@rule(states=1)
def nesterov(p, g, v, lr, momentum):
    real = type(p)
    v = real(momentum) * v + g
    return p - real(lr) * (g + real(momentum) * v), v


@over_arrays
def update_nesterov(p, g, v, lr, momentum):
    update_each("nesterov", p, g, (v,), (lr, momentum))


@rule(states=1)
def adagrad(p, g, s, lr, eps):
    real = type(p)
    s = s + g * g
    return p - real(lr) * g / (np.sqrt(s) + real(eps)), s


@over_arrays
def update_adagrad(p, g, s, lr, eps):
    update_each("adagrad", p, g, (s,), (lr, eps))


@inner
def average(old, new, gain):
    """(1 - gain) * old + gain * new; with old + gain * (new - old), infinity would give NaN."""
    real = type(old)
    return (real(1) - real(gain)) * old + real(gain) * new


@inner
def average_of_squares(old, g, gain):
    """The same of squares, multiplied in torch's order: g * g alone could overflow when the average does not."""
    real = type(old)
    return (real(1) - real(gain)) * old + real(gain) * g * g


@rule(states=1)
def rmsprop(p, g, s, lr, gain, eps):
    real = type(p)
    s = average_of_squares(s, g, gain)
    return p - real(lr) * g / (np.sqrt(s) + real(eps)), s


@over_arrays
def update_rmsprop(p, g, s, lr, gain, eps):
    update_each("rmsprop", p, g, (s,), (lr, gain, eps))


@rule(states=2)
def rmsprop_momentum(p, g, s, v, lr, gain, eps, momentum):
    real = type(p)
    s = average_of_squares(s, g, gain)
    v = real(momentum) * v + g / (np.sqrt(s) + real(eps))
    return p - real(lr) * v, s, v


@over_arrays
def update_rmsprop_momentum(p, g, s, v, lr, gain, eps, momentum):
    update_each("rmsprop_momentum", p, g, (s, v), (lr, gain, eps, momentum))


@inner
def deviation(s, a):
    """The standard deviation, from averages of squares and of values; their difference is below 0 only by rounding."""
    variance = s - a * a
    return np.sqrt(type(s)(0) if variance < 0 else variance)


@rule(states=2)
def rmsprop_centered(p, g, s, a, lr, gain, eps):
    real = type(p)
    s, a = average_of_squares(s, g, gain), average(a, g, gain)
    return p - real(lr) * g / (deviation(s, a) + real(eps)), s, a


@over_arrays
def update_rmsprop_centered(p, g, s, a, lr, gain, eps):
    update_each("rmsprop_centered", p, g, (s, a), (lr, gain, eps))


@rule(states=3)
def rmsprop_centered_momentum(p, g, s, v, a, lr, gain, eps, momentum):
    real = type(p)
    s, a = average_of_squares(s, g, gain), average(a, g, gain)
    v = real(momentum) * v + g / (deviation(s, a) + real(eps))
    return p - real(lr) * v, s, v, a


@over_arrays
def update_rmsprop_centered_momentum(p, g, s, v, a, lr, gain, eps, momentum):
    update_each("rmsprop_centered_momentum", p, g, (s, v, a), (lr, gain, eps, momentum))


# For Adam, the hyper row has the bias corrections in lr and eps.


@rule(states=2)
def adam(p, g, m, v, lr, gain1, gain2, eps):
    real = type(p)
    m, v = average(m, g, gain1), average_of_squares(v, g, gain2)
    return p - real(lr) * m / (np.sqrt(v) + real(eps)), m, v


@over_arrays
def update_adam(p, g, m, v, lr, gain1, gain2, eps):
    update_each("adam", p, g, (m, v), (lr, gain1, gain2, eps))


@rule(states=3)
def adam_amsgrad(p, g, m, v, w, lr, gain1, gain2, eps):
    real = type(p)
    m, v = average(m, g, gain1), average_of_squares(v, g, gain2)
    w = w if v < w else v  # NaN, too
    return p - real(lr) * m / (np.sqrt(w) + real(eps)), m, v, w


@over_arrays
def update_adam_amsgrad(p, g, m, v, w, lr, gain1, gain2, eps):
    update_each("adam_amsgrad", p, g, (m, v, w), (lr, gain1, gain2, eps))


@rule(states=2)
def adamw(p, g, m, v, lr, gain1, gain2, eps, keep):
    return adam(type(p)(keep) * p, g, m, v, lr, gain1, gain2, eps)


@over_arrays
def update_adamw(p, g, m, v, lr, gain1, gain2, eps, keep):
    update_each("adamw", p, g, (m, v), (lr, gain1, gain2, eps, keep))


@rule(states=3)
def adamw_amsgrad(p, g, m, v, w, lr, gain1, gain2, eps, keep):
    return adam_amsgrad(type(p)(keep) * p, g, m, v, w, lr, gain1, gain2, eps)


@over_arrays
def update_adamw_amsgrad(p, g, m, v, w, lr, gain1, gain2, eps, keep):
    update_each("adamw_amsgrad", p, g, (m, v, w), (lr, gain1, gain2, eps, keep))


@inner
def sign(x):
    """1 or -1, and 0 where it is 0; NaN stays NaN."""
    real = type(x)
    return real(1) if x > 0 else real(-1) if x < 0 else x


@rule(states=1)
def lion(p, g, m, lr, gain1, gain2, keep):
    real = type(p)
    return real(keep) * p - real(lr) * sign(average(m, g, gain1)), average(m, g, gain2)


@over_arrays
def update_lion(p, g, m, lr, gain1, gain2, keep):
    update_each("lion", p, g, (m,), (lr, gain1, gain2, keep))


# NAdam's lr1 is the rate of the gradient, lr2 that of the average, both with the bias corrections, as in Adam.


@rule(states=2)
def nadam(p, g, m, v, lr1, lr2, gain1, gain2, eps):
    real = type(p)
    m, v = average(m, g, gain1), average_of_squares(v, g, gain2)
    return p - (real(lr1) * g + real(lr2) * m) / (np.sqrt(v) + real(eps)), m, v


@over_arrays
def update_nadam(p, g, m, v, lr1, lr2, gain1, gain2, eps):
    update_each("nadam", p, g, (m, v), (lr1, lr2, gain1, gain2, eps))


@rule(states=2)
def nadamw(p, g, m, v, lr1, lr2, gain1, gain2, eps, keep):
    return nadam(type(p)(keep) * p, g, m, v, lr1, lr2, gain1, gain2, eps)


@over_arrays
def update_nadamw(p, g, m, v, lr1, lr2, gain1, gain2, eps, keep):
    update_each("nadamw", p, g, (m, v), (lr1, lr2, gain1, gain2, eps, keep))


# Conversions are integer arithmetic on bits, which vectorises: eight elements at once. LLVM's own need a processor with
# F16C, or call a function that Numba does not link, which ends the process. They also work when the processor flushes
# float32's subnormals to zero (`torch.set_flush_denormal`): float16's subnormals survive that.


@inner
def bits(x):
    return np.float32(x).view(np.uint32)


@inner
def from_bits(pattern):
    return np.uint32(pattern).view(np.float32)


@inner
def from_float16(pattern):
    """Move exponent and mantissa to where float32 has them, then correct the exponent's bias and subnormals.

    The bias is corrected in two steps: up until the largest exponent is float32's largest, of infinity and NaN, then
    down by a product. Fabian Giesen's "half_to_float_fast" and Marat Dukhan's FP16 do much the same.
    """
    magnitude = pattern & 0x7FFF
    normal = from_bits((magnitude << 13) + ((255 - 31) << 23)) * np.float32(2.0**-112)
    subnormal = np.float32(np.int32(magnitude)) * np.float32(2.0**-24)
    value = normal if magnitude >= 0x0400 else subnormal
    return from_bits(bits(value) | (pattern & 0x8000) << 16)


@inner
def to_float16(x):
    """Round by adding a power of two so large that the sum's last bit is float16's last bit.

    The mantissas of sum and power then differ by the size in units of that bit: 1024 to 2048, or less for subnormals.
    Added to the exponent minus one, a full mantissa carries into the next exponent, and finally into infinity. Fabian
    Giesen's "float_to_half_fast3_rtne" adds so for subnormals, Marat Dukhan's FP16 for all numbers.
    """
    size = min(abs(x), np.float32(2.0**16))  # 2**16 becomes infinity, as does everything above it
    # Cast to uint32: Numba would continue in 64 bits, and the loop take twice as long.
    exponent = np.uint32(max(bits(size) & 0x7F800000, (127 - 14) << 23))
    power = exponent + (13 << 23)
    units = bits(size + from_bits(power)) - power
    half = (exponent >> 13) - ((127 - 14) << 10) + units
    return np.uint16((half if x == x else 0x7E00) | ((bits(x) >> 16) & 0x8000))


@inner
def from_bfloat16(pattern):
    """The upper half of a float32's bits."""
    return from_bits(pattern << 16)


@inner
def to_bfloat16(x):
    """Add half of the last bit, or a little less if that bit is even; a carry into the exponent is right.

    NaN is a special case: its mantissa may lie entirely in the half that is cut off, or carry into the sign.
    """
    pattern = bits(x)
    rounded = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16
    return np.int16(rounded if x == x else 0x7FC0)


# Stochastic rounding: x goes up or down to a neighbour, with the probabilities that make x the mean of what is stored.
# The random bits of an element are a function of the tensor's key, the count of steps, the element's index and the
# array that is written: the same in CUDA, on any number of threads, and after loading a checkpoint.


@inner
def mixed(key, count):
    """Mix a tensor's key, the count of steps and the upper half of an index into 64 bits, as SplitMix64 does."""
    x = np.uint64(key) + np.uint64(count) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inner
def random_bits(index, low, high):
    """32 random bits for an element, from 64 mixed ones, by the steps of Chris Wellons' "triple32".

    With two multiplications, as in his "lowbias32", bits of elements some powers of two apart depended on each other.
    """
    x = np.uint32(index) ^ low
    x = np.uint32(np.uint32((x ^ (x >> 17)) * np.uint32(0xED5AD4BB)) + high)
    x = np.uint32((x ^ (x >> 11)) * np.uint32(0xAC4C1B51))
    x = np.uint32((x ^ (x >> 15)) * np.uint32(0x31848BAB))
    return np.uint32(x ^ (x >> 14))


@inner
def noise_of(place, i, random):
    """16 random bits for element i of a run, to round what goes to this place: 0 is the parameter, then the states.

    ``random`` has 64 mixed bits, in halves, the index of the run's first element, and `numbers_of` the places: two that
    are rounded share 32 bits.
    """
    low, high, start, numbers = random
    number = (numbers >> (4 * place)) & 15
    x = random_bits(np.uint32(start + np.uint32(i)), low, np.uint32(high ^ np.uint32(0x9E3779B9 * (number // 2))))
    return np.uint32((x >> 16) if number % 2 else (x & 0xFFFF))


@inner
def to_bfloat16_by(x, noise):
    """Add the noise to the half that is cut off.

    The casts are needed: of an unsigned and a signed number of 64 bits, Numba would choose a float64.
    """
    rounded = np.uint32((bits(x) + noise) >> 16)
    return np.int16(rounded if x == x else np.uint32(0x7FC0))


@inner
def to_float16_by(x, noise):
    """Add the noise to the 16 bits below float16's last bit, and cut these off. 2**16 becomes infinity."""
    size = min(abs(np.float32(x)), np.float32(2.0**16))
    exponent = np.uint32(max(bits(size) & 0x7F800000, (127 - 14) << 23))
    # 2**(10 + 16) over the power of two in the exponent: units of the last bit are left, times 2**16
    scaled = size * from_bits(np.uint32(((254 + 26) << 23) - exponent))
    units = np.uint32((np.uint32(np.int32(scaled)) + noise) >> 16)
    half = np.uint32((exponent >> 13) - ((127 - 14) << 10) + units)
    return np.uint16((half if x == x else np.uint32(0x7E00)) | ((bits(x) >> 16) & 0x8000))


# For each dtype: what widens it, what narrows to nearest, and what narrows stochastically.
CONVERSIONS = {
    "float16": (from_float16, to_float16, to_float16_by),
    "bfloat16": (from_bfloat16, to_bfloat16, to_bfloat16_by),
}
HALVES = {from_dtype(np.dtype(DTYPES[name].stored)): functions for name, functions in CONVERSIONS.items()}


def widen(x):
    """Convert an element to the number to compute with; `_widen` has the code for each type."""
    raise TypeError("widen() exists in compiled code only")


@overload(widen)
def _widen(x):
    if x not in HALVES:
        return lambda x: x
    function = HALVES[x][0]
    return lambda x: function(x)


def narrow(x, array, place, i, random):
    """Convert a number to an element of an array; `_narrow` has the code for each type.

    It is rounded to nearest even or, where there are random bits, stochastically; `noise_of` says what these are.
    """
    raise TypeError("narrow() exists in compiled code only")


@overload(narrow)
def _narrow(x, array, place, i, random):
    if array.dtype not in HALVES:
        return lambda x, array, place, i, random: x
    _, nearest, by_noise = HALVES[array.dtype]
    if isinstance(random, types.NoneType):
        return lambda x, array, place, i, random: nearest(x)
    return lambda x, array, place, i, random: by_noise(x, noise_of(place, i, random))


# A master: a parameter in float32 of which 16 bits are the parameter that everybody sees. Behind a bfloat16 parameter,
# the remainder is the difference of the bits, 16 of them or the upper 8; the parameter is the master rounded half up.
# Behind a float16 parameter it is the master itself, which begins anew where somebody has written another parameter.


@inner
def joined(pattern, remainder, shift):
    """Return the master of a bfloat16 parameter; the remainder's last bit is the master's bit number ``shift``.

    Where somebody has written into the parameter, the remainder is that of another number: the sum rounds to what was
    written all the same, but for 0 and infinity, beyond which the bits are those of NaN. There it does not count.
    """
    master = from_bits(np.uint32((np.int32(pattern) << 16) + (np.int32(remainder) << shift)))
    return master if master == master else from_bfloat16(pattern)


@inner
def split(x, shift):
    """Split a master, rounded half up to the bits that are kept, into a bfloat16 parameter and its remainder.

    The remainder is the lower half of the master's bits, with a sign: rounding up by half takes 1 from the upper half.
    """
    half, mask = np.uint32(1 << shift >> 1), np.uint32(0xFFFFFFFF << shift)
    finite = np.uint32(np.uint32(bits(x) + half) & mask)  # cast before the choice, which would be one of 64 bits
    kept = finite if x == x else np.uint32(0x7FC00000)
    return np.int16(np.uint32(kept + 0x8000) >> 16), np.int16(kept) >> shift


@inner
def current(pattern, master):
    """Return the master of a float16 parameter: this one, unless somebody has written into the parameter since."""
    return master if to_float16(master) == pattern else from_float16(pattern)


SHIFTS = {types.int16: 0, types.int8: 8}  # of the remainders beside bfloat16, by their dtype


# Codes: a state in 8 bits, in blocks with a scale each, the block's largest magnitude. A number's share of the scale,
# from 0 to 1, plus a bias is a float32; its code is how far the first bits of that lie above those of the bias. So
# codes are even up to the bias, and above it each power of two has as many. That takes additions and shifts, and no
# division; between two codes the bits are even, so that noise added to them rounds without bias. docs/benchmarks.md
# compares these codes with others.
#
# A block that has NaN, infinity or more than 2**119 has NaN for its scale; with the smallest scale, no number that a
# code stands for is subnormal.

SMALLEST_SCALE, LARGEST_SCALE, NO_SCALE = np.uint32(0x12800000), np.uint32(0x7B000000), np.uint32(0x7FC00000)
# Bias, bits that are cut off, and the last code, which is the scale itself: of averages, and of what is never negative.
SIGNED = np.float32(22 / 64), np.uint32(17), np.int32(126)
UNSIGNED = np.float32(1.125 * 2.0**-32), np.uint32(20), np.int32(255)
HALF = np.uint32(0x8000)  # the noise that rounds to nearest


@inner
def share_of(code, kind):
    """Decode 0 or more, as a share of the scale."""
    bias, cut, _ = kind
    return from_bits(np.uint32(np.uint32(code << cut) + bits(bias))) - bias


@inner
def code_of_share(share, kind, noise):
    """Encode a share of the scale, with 16 bits of noise."""
    bias, cut, last = kind
    above = np.uint32(bits(share + bias) - bits(bias))
    return min(np.int32(np.uint32(above + np.uint32(noise << np.uint32(cut - 16))) >> cut), last)  # of NaN, the last


def number_of_code(code, scale):
    """Decode an element; `_number_of_code` has the code for each type."""
    raise TypeError("number_of_code() exists in compiled code only")


@overload(number_of_code)
def _number_of_code(code, scale):
    if code == types.uint8:
        return lambda code, scale: scale * share_of(np.uint32(code), UNSIGNED)

    def signed(code, scale):
        size = scale * share_of(np.uint32(abs(np.int32(code))), SIGNED)
        return from_bits(bits(size) | np.uint32(np.uint32(np.int32(code)) & np.uint32(0x80000000)))

    return signed


def code_of(x, inverse, codes, noise):
    """Encode a number for an array of codes; `_code_of` has the code for each type.

    What is positive is at least 1 where codes have no sign, since steps are divided by its root.
    """
    raise TypeError("code_of() exists in compiled code only")


@overload(code_of)
def _code_of(x, inverse, codes, noise):
    if codes.dtype == types.uint8:
        return lambda x, inverse, codes, noise: np.uint8(
            max(code_of_share(x * inverse, UNSIGNED, noise), min(np.int32(bits(x)), np.int32(1)))
        )

    def signed(x, inverse, codes, noise):
        code = code_of_share(abs(x) * inverse, SIGNED, noise)
        return np.int8(-code if x < 0 else code)

    return signed


def noise_or_half(place, i, random):
    """Return the noise of an element, as `noise_of` does, or what rounds to nearest."""
    raise TypeError("noise_or_half() exists in compiled code only")


@overload(noise_or_half)
def _noise_or_half(place, i, random):
    if isinstance(random, types.NoneType):
        return lambda place, i, random: HALF
    return lambda place, i, random: noise_of(place, i, random)


def from_element(random, start):
    """Return what `noise_of` needs for a part of a run."""
    raise TypeError("from_element() exists in compiled code only")


@overload(from_element)
def _from_element(random, start):
    if isinstance(random, types.NoneType):
        return lambda random, start: None
    return lambda random, start: (random[0], random[1], np.uint32(random[2] + np.uint32(start)), random[3])


# A block is a place in an array and not a slice of it, for which Numba would count references: that took six times as
# long as the arithmetic. Whole blocks have a constant length: with a variable one, steps took more than twice as long.


@inlined
def decode_block(codes, at, numbers, first, scale, size):
    for i in range(size):
        numbers.flat[first + i] = number_of_code(codes.flat[at + i], scale)


@inlined
def scale_of_block(numbers, first, size):
    """The largest magnitude, as an integer maximum, which vectorises; one of floats does not, for the sake of NaN."""
    largest = SMALLEST_SCALE
    for i in range(size):
        largest = max(largest, np.uint32(bits(numbers.flat[first + i]) & 0x7FFFFFFF))
    return from_bits(NO_SCALE if largest > LARGEST_SCALE else largest)


@inlined
def encode_block(codes, at, numbers, first, scale, size, place, random):
    inverse, mine = np.float32(1) / scale, from_element(random, at)
    for i in range(size):
        codes.flat[at + i] = code_of(numbers.flat[first + i], inverse, codes, noise_or_half(place, i, mine))


@inner
def decode(codes, scales, numbers, start):
    """Decode so many elements as there are numbers, from one that begins a block."""
    whole = numbers.size - numbers.size % BLOCK
    for first in range(0, whole, BLOCK):
        at = start + first
        decode_block(codes, at, numbers, first, scales.flat[at // BLOCK], BLOCK)
    if whole < numbers.size:
        at = start + whole
        decode_block(codes, at, numbers, whole, scales.flat[at // BLOCK], numbers.size - whole)


@inner
def encode(codes, scales, numbers, start, place, random):
    """Encode all these numbers, from an element on that begins a block; first all scales, which take long to find."""
    whole = numbers.size - numbers.size % BLOCK
    for first in range(0, whole, BLOCK):
        scales.flat[(start + first) // BLOCK] = scale_of_block(numbers, first, BLOCK)
    for first in range(0, whole, BLOCK):
        at = start + first
        encode_block(codes, at, numbers, first, scales.flat[at // BLOCK], BLOCK, place, random)
    if whole < numbers.size:
        at, size = start + whole, numbers.size - whole
        scale = scale_of_block(numbers, whole, size)
        scales.flat[at // BLOCK] = scale
        encode_block(codes, at, numbers, whole, scale, size, place, random)


# The loop exists once, for any number of states: `each` unrolls what is done with each of them. Overloads that recurse
# over the states were as fast, but kernels took a third to a half longer to compile, and five times as long with
# inline="always".


@intrinsic
def each(typing_context, function, tuples, shared):
    """Return ``tuple(function(*items, *shared) for items in zip(*tuples))``, for a compiled function."""
    calls = [function.get_call_type(typing_context, (*items, *shared), {}) for items in zip(*tuples, strict=True)]

    def generate(context, builder, signature, arguments):
        rows, common = (cgutils.unpack_tuple(builder, argument) for argument in arguments[1:])
        columns = zip(*(cgutils.unpack_tuple(builder, row) for row in rows), strict=True)
        results = [
            context.get_function(function, call)(builder, (*items, *common))
            for call, items in zip(calls, columns, strict=True)
        ]
        return context.make_tuple(builder, signature.return_type, results)

    return types.Tuple([call.return_type for call in calls])(function, tuples, shared), generate


def load(array, i):
    """Return element i of an array as a number to compute with; `flat` does not check for a negative index.

    Of a pair, parameter and remainder, it is an element of the master.
    """
    raise TypeError("load() exists in compiled code only")


@overload(load)
def _load(array, i):
    if not isinstance(array, types.BaseTuple):
        return lambda array, i: widen(array.flat[i])
    if array[1].dtype == types.float32:
        return lambda array, i: current(array[0].flat[i], array[1].flat[i])
    shift = SHIFTS[array[1].dtype]
    return lambda array, i: joined(array[0].flat[i], array[1].flat[i], shift)


@inner
def load_state(array, i, p):
    """The same of a state, which may be stored in another dtype than the rule computes in, that of p."""
    return type(p)(widen(array.flat[i]))


def store(array, value, place, i, random):
    """Write a number as element i of an array, or of a master; `narrow` says what place and random are."""
    raise TypeError("store() exists in compiled code only")


@overload(store)
def _store(array, value, place, i, random):
    if not isinstance(array, types.BaseTuple):

        def write(array, value, place, i, random):
            array.flat[i] = narrow(value, array, place, i, random)

    elif array[1].dtype == types.float32:

        def write(array, value, place, i, random):
            array[0].flat[i], array[1].flat[i] = to_float16(value), value

    else:
        shift = SHIFTS[array[1].dtype]

        def write(array, value, place, i, random):
            array[0].flat[i], array[1].flat[i] = split(value, shift)

    return write


def as_tuple(returned):
    """Return a rule's result as a tuple; a rule without states returns a number. `_as_tuple` is the compiled code."""
    raise TypeError("as_tuple() exists in compiled code only")


@overload(as_tuple, inline="always")
def _as_tuple(returned):
    return (lambda returned: returned) if isinstance(returned, types.BaseTuple) else (lambda returned: (returned,))


PLACES = tuple(range(1 + STATES))  # of the parameter and its states, for `noise_of`


def apply(rule, i, p, g, states, hypers, random):
    """Update element i of p and of its states by the rule with this number; `_apply` is the compiled code."""
    raise TypeError("apply() exists in compiled code only")


@overload(apply, prefer_literal=True, inline="always")
def _apply(rule, i, p, g, states, hypers, random):
    function = FUNCTIONS[rule.literal_value]
    places = PLACES[: 1 + len(states)]

    def element(rule, i, p, g, states, hypers, random):
        old = load(p, i)
        updated = as_tuple(function(old, g, *each(load_state, (states,), (i, old)), *hypers))
        each(store, ((p, *states), updated, places), (i, random))

    return element


def update_each(name, p, g, states, hypers):
    """Update every element of an array and of its states in place by a rule, in a user's own loop.

    Parameters
    ----------
    name : str
        The rule's name, a literal.
    p, g : ndarray of float32 or float64, any shape
        Parameter and gradient, of one dtype and shape. The loop is vectorised if all arrays are C-contiguous, and
        slower otherwise.
    states : tuple of ndarray, dtype and shape of p
    hypers : tuple of float
        Of any number type; the rule converts them to p's.

    Raises
    ------
    TypingError
        When the caller is compiled: if these are not arrays of one dtype and dimension, p and states writable.
    ValueError
        If their shapes differ; nothing has changed then. Overlaps are not checked.
    """
    # This runs when NUMBA_DISABLE_JIT has switched Numba off; compiled code runs `_update_each`.
    function = FUNCTIONS[number_of(name)]
    if any(array.shape != p.shape for array in (g, *states)):
        raise ValueError(shapes_differ(function))
    for i in np.ndindex(p.shape):
        updated = function(p[i], g[i], *(state[i] for state in states), *hypers)
        for array, value in zip((p, *states), updated if states else (updated,), strict=True):
            array[i] = value


def shapes_differ(function):
    """Return the message for arrays of different shapes."""
    return f"update_{function.__name__}: {', '.join(arguments_of(function)[0])} must have one shape"


@inner
def has_shape(array, shape):
    return array.shape == shape


@overload(update_each, prefer_literal=True, jit_options={"error_model": "numpy", "forceinline": True})
def _update_each(name, p, g, states, hypers):
    if not isinstance(name, types.StringLiteral):
        return None
    number = number_of(name.literal_value)
    function = FUNCTIONS[number]
    check_arrays(f"update_{name.literal_value}", dict(zip(arguments_of(function)[0], (p, g, *states), strict=True)))
    unlike = shapes_differ(function)

    def loop(name, p, g, states, hypers):
        if False in each(has_shape, ((g, *states),), (p.shape,)):
            raise ValueError(unlike)
        for i in range(p.size):
            apply(number, i, p, g.flat[i], states, hypers, None)

    return loop


def check_arrays(function, arrays):
    """Raise TypingError if the types of the arguments do not allow the loop to be compiled."""
    p = arrays["p"]
    for name, given in arrays.items():
        if not isinstance(given, types.Array):
            raise TypingError(f"{function}: {name} must be an array, not {given}")
        if given.dtype not in (types.float32, types.float64):
            raise TypingError(f"{function}: {name} must hold float32 or float64, not {given.dtype}")
        if (given.dtype, given.ndim) != (p.dtype, p.ndim):
            raise TypingError(f"{function}: {name} must have dtype and number of axes of p, {p}; it is {given}")
        if name != "g" and not given.mutable:
            raise TypingError(f"{function}: {name} is updated in place; it must be writable")


STOCHASTIC = "stochastic"  # a rounding

# Stages: what may happen to an element beside the rule. A kernel has the stages that it is compiled for, as bits of a
# literal, in this order.
# The last two are none: chunks are rows of a table, and each row has one number, whose rule is AdaGrad's.
STAGES = ("value", "average", "zero", "rows", "rowwise")


def bits_of(stages):
    """Return a number with a bit for each of these stages."""
    return sum(1 << STAGES.index(stage) for stage in stages)


def has(stage, stages):
    """Say whether a literal type of such bits has a stage."""
    return bool(stages.literal_value & bits_of([stage]))


@inner
def clipped(g, limit):
    """The stage "value": a gradient, or the limit with its sign if it is larger; NaN stays NaN."""
    limit = type(g)(limit)
    return limit if g > limit else -limit if g < -limit else g


@inner
def averaged(e, p, gain):
    """The stage "average": the moving average of a parameter."""
    return average(e, p, gain)


def before(stages, g, numbers):
    """Apply the stages before the rule to a gradient; `_before` is the compiled code.

    ``numbers`` are the gradients' factor, the largest size of an element before it, and the average's gain.
    """
    raise TypeError("before() exists in compiled code only")


@overload(before, prefer_literal=True, inline="always")
def _before(stages, g, numbers):
    if not has("value", stages):
        return lambda stages, g, numbers: numbers[0] * g
    return lambda stages, g, numbers: numbers[0] * clipped(g, numbers[1])


def after(stages, i, p, g, e, numbers):
    """Apply the stages after the rule to element i of average and gradient; `_after` is the compiled code."""
    raise TypeError("after() exists in compiled code only")


@overload(after, prefer_literal=True, inline="always")
def _after(stages, i, p, g, e, numbers):
    averages, zeroes = has("average", stages), has("zero", stages)

    def element(stages, i, p, g, e, numbers):
        if averages:
            e.flat[i] = averaged(e.flat[i], load(p, i), numbers[2])
        if zeroes:
            g.flat[i] = 0

    return element if averages or zeroes else lambda stages, i, p, g, e, numbers: None


def update(rule, stages, p, g, states, e, numbers, decay, hypers, random):
    """Update one run of elements. The test for weight decay is outside the loop, where it costs nothing."""
    if decay == 0:
        for i in range(g.size):
            apply(rule, i, p, before(stages, load_state(g, i, decay), numbers), states, hypers, random)
            after(stages, i, p, g, e, numbers)
    else:
        for i in range(g.size):
            decayed = before(stages, load_state(g, i, decay), numbers) + decay * load(p, i)
            apply(rule, i, p, decayed, states, hypers, random)
            after(stages, i, p, g, e, numbers)


def opened(state, start, size):
    """Return a state's numbers from an element on: a part of its array, or what its codes decode to."""
    raise TypeError("opened() exists in compiled code only")


@overload(opened)
def _opened(state, start, size):
    if not isinstance(state, types.BaseTuple):
        return lambda state, start, size: state[start : start + size]

    def numbers(state, start, size):
        codes, scales, buffer = state
        decode(codes, scales, buffer[:size], start)
        return buffer[:size]

    return numbers


def closed(state, numbers, place, start, random):
    """Write a state's numbers from an element on, unless they are a part of its array."""
    raise TypeError("closed() exists in compiled code only")


@overload(closed)
def _closed(state, numbers, place, start, random):
    if not isinstance(state, types.BaseTuple):
        return lambda state, numbers, place, start, random: None
    return lambda state, numbers, place, start, random: encode(state[0], state[1], numbers, start, place, random)


def part(array, start, size):
    """Return a part of an array, or of both arrays of a master."""
    raise TypeError("part() exists in compiled code only")


@overload(part)
def _part(array, start, size):
    if isinstance(array, types.BaseTuple):
        return lambda array, start, size: (array[0][start : start + size], array[1][start : start + size])
    return lambda array, start, size: array[start : start + size]


def update_by_pieces(places):
    """Return what updates a run of elements where some states are codes; ``places`` are the states', for `noise_of`."""

    def loop(rule, stages, p, g, states, e, numbers, decay, hypers, random):
        for start in range(0, g.size, PIECE):
            size = min(PIECE, g.size - start)
            pieces = each(opened, (states,), (start, size))
            mine, gradient, average = part(p, start, size), part(g, start, size), part(e, start, size)
            noise = from_element(random, start)
            update(rule, stages, mine, gradient, pieces, average, numbers, decay, hypers, noise)
            each(closed, (states, pieces, places), (start, random))

    return loop


# Inlining is forced: whether LLVM would inline the loop by itself depends on rule and dtype, and on what the process
# has compiled before. If it does not, what runs is Numba's code for `update` alone, which is not vectorised and took
# three times as long. The price: in float64, loops of AMSGrad and of RMSProp with momentum are vectorised from 16
# elements on, not from 8.
@overload(update, prefer_literal=True, jit_options={"error_model": "numpy", "forceinline": True})
def _update(rule, stages, p, g, states, e, numbers, decay, hypers, random):
    coded = any(isinstance(state, types.BaseTuple) for state in states)
    return update_by_pieces(PLACES[1 : 1 + len(states)]) if coded else update


def left_alone(stages, p, e, gain):
    """Average parameters that have no gradient, if that is a stage; `_left_alone` is the compiled code."""
    raise TypeError("left_alone() exists in compiled code only")


@overload(left_alone, prefer_literal=True)
def _left_alone(stages, p, e, gain):
    alone = bits_of(["average"])

    def loop(stages, p, e, gain):
        for i in range(e.size):
            after(alone, i, p, p, e, (gain, gain, gain))

    return loop if has("average", stages) else lambda stages, p, e, gain: None


@intrinsic
def pointer(typing_context, address):
    """Convert an address from a table to a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


# Rows of a table lie anywhere in memory: a kernel for them has the lines of a chunk fetched while those before it are
# updated. Others do not, for which 2,000 small tensors took a fourth longer.
AHEAD = 8  # chunks
LINE = 64  # bytes


@intrinsic
def prefetch(typing_context, address):
    """Have the processor fetch the line at an address, which will be written."""

    def generate(context, builder, signature, arguments):
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        numbers = [ir.Constant(number, value) for value in (1, 3, 1)]  # to write, into all caches, data
        builder.call(function, [builder.inttoptr(arguments[0], byte), *numbers])
        return context.get_dummy_value()

    return types.void(address), generate


@inner
def fetch(start, size):
    """Have the processor fetch so many bytes."""
    for at in range(start & -LINE, start + size, LINE):
        prefetch(at)


@inner
def fetch_state(index, stored, size, addresses, offset, length):
    fetch(addresses[index] + offset * size, length * size)


# Columns of a transposed tile that are read side by side, so that their cache misses overlap: for a large transposed
# gradient a third less time than with one column; 16 were slower than 8.
COLUMNS = 8


@inner
def gather(out, grad, rows, length, row_stride, item_stride, stored):
    """Copy a tile of a gradient into the parameter's order, along the axis with the smaller stride in the gradient."""
    if abs(row_stride) < abs(item_stride):
        whole = length - length % COLUMNS
        for start in range(0, whole, COLUMNS):
            for r in range(rows):
                at = grad + r * row_stride + start * item_stride
                for i in range(COLUMNS):
                    out[r * length + start + i] = carray(pointer(at + i * item_stride), 1, stored)[0]
        for i in range(whole, length):
            for r in range(rows):
                out[r * length + i] = carray(pointer(grad + r * row_stride + i * item_stride), 1, stored)[0]
    else:
        for r in range(rows):
            for i in range(length):
                out[r * length + i] = carray(pointer(grad + r * row_stride + i * item_stride), 1, stored)[0]


SIGNATURE = types.void(types.intp, types.int64, types.int64, types.int64)  # fastopt_kernel
make_cfunc = functools.partial(cfunc, SIGNATURE, error_model="numpy")


# Numbers and states are read at constant indices: a slice, or `to_fixed_tuple`, took 2 to 5 ns more for each chunk.
@inner
def number_at(index, row, real):
    """Return one number of a hyper row, in the type that kernels compute in."""
    return real(row[index])


@inner
def state_at(index, stored, size, addresses, offset, length):
    """Return a state's array, from an element on."""
    return carray(pointer(addresses[index] + offset * size), length, stored)


def state_places(name, dtype, stored=()):
    """Return what `state_at` needs of all states: their indices, types in memory and bytes of an element."""
    dtypes = [STORED[each] for each in stored] or [dtype_of(dtype_of(dtype).real)] * STATES_OF[name]
    return tuple(range(len(dtypes))), tuple(each.stored for each in dtypes), tuple(each.itemsize for each in dtypes)


@inner
def storage_of(job, tensor):
    """Return a tensor's row of the table of storages."""
    return carray(pointer(job.storages), tensor + 1, STORAGE)[tensor]


def param_at(job, tensor, param, at, length, stored, size, kept, kept_size):
    """Return a parameter's array from an element on, with that of its remainder if the kernel is for masters."""
    raise TypeError("param_at() exists in compiled code only")


@overload(param_at)
def _param_at(job, tensor, param, at, length, stored, size, kept, kept_size):
    if isinstance(kept, types.NoneType):

        def array(job, tensor, param, at, length, stored, size, kept, kept_size):
            return carray(pointer(param + at * size), length, stored)

    else:

        def array(job, tensor, param, at, length, stored, size, kept, kept_size):
            remainder = storage_of(job, tensor).remainder + at * kept_size
            return carray(pointer(param + at * size), length, stored), carray(pointer(remainder), length, kept)

    return array


def numbers_of(stored):
    """Number the places that are rounded, by the dtypes in which they are stored: 4 bits for each place."""
    rounded = [name in ROUNDED for name in stored]
    return sum(sum(rounded[:place]) << (4 * place) for place in range(len(stored)))


def random_of(stochastic, job, tensor, at, numbers):
    """Return what `noise_of` needs for a run that begins with this element; None if the kernel rounds to nearest."""
    raise TypeError("random_of() exists in compiled code only")


@overload(random_of, prefer_literal=True)
def _random_of(stochastic, job, tensor, at, numbers):
    if not stochastic.literal_value:
        return lambda stochastic, job, tensor, at, numbers: None
    numbered = numbers.literal_value

    def random(stochastic, job, tensor, at, numbers):
        mix = mixed(storage_of(job, tensor).key + (at >> 32), job.count)
        return np.uint32(mix), np.uint32(mix >> np.uint64(32)), np.uint32(at), np.uint32(numbered)

    return random


def with_scales(coded, states, job, tensor, worker, at):
    """Return the states' arrays, those of codes with their scales, and a buffer for what they decode to."""
    raise TypeError("with_scales() exists in compiled code only")


@overload(with_scales, prefer_literal=True)
def _with_scales(coded, states, job, tensor, worker, at):
    if not coded.literal_value:
        return lambda coded, states, job, tensor, worker, at: states
    places = PLACES[: len(states)]

    def found(coded, states, job, tensor, worker, at):
        scratch = job.scratch + worker * job.scratch_bytes
        return each(with_scale, (states, places), (storage_of(job, tensor).scales, scratch, at))

    return found


def with_scale(state, place, scales, scratch, at):
    """Return a state's array; of codes, with what `with_scales` says."""
    raise TypeError("with_scale() exists in compiled code only")


@overload(with_scale)
def _with_scale(state, place, scales, scratch, at):
    if state.dtype not in (types.int8, types.uint8):
        return lambda state, place, scales, scratch, at: state

    def codes(state, place, scales, scratch, at):
        of_blocks = carray(pointer(scales[place] + at // BLOCK * 4), (state.size + BLOCK - 1) // BLOCK, np.float32)
        return state, of_blocks, carray(pointer(scratch + place * PIECE * 4), PIECE, np.float32)

    return codes


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def sum_of_row(p, g, scale, decay):
    """The sum of squares of a row's gradients, with their factor and weight decay."""
    total = type(scale)(0)
    for i in range(g.size):
        x = scale * widen(g[i]) + (decay * load(p, i) if decay != 0 else type(scale)(0))
        total += x * x
    return total


@inner
def rate_of_row(s, p, g, scale, decay, lr, eps):
    """AdaGrad's rate of a row that has one number s: s + mean(g * g), then lr / (sqrt(s) + eps)."""
    real = type(scale)
    s[0] += sum_of_row(p, g, scale, decay) / real(g.size)
    return lr / (np.sqrt(s[0]) + eps)


def make_kernel(name, dtype, stages=(), states=(), gradient="", master="", rounding=""):
    """Define the kernel of a rule for a dtype, with these stages: a plain function, for ``cfunc``.

    States have the dtypes given, or all that in which the kernel computes. `kernel` says what the others are.

    It closes over plain constants only, since a closure over a compiled function never hits Numba's cache. Its name is
    unique, since functions that share a name share a cache index, in which two processes can mistake one for another.
    """
    of_rows, rowwise = "rows" in stages, "rowwise" in stages
    element = "sgd" if rowwise else name  # the rule of elements, at the rate of their row
    number, given, bits = number_of(element), dtype_of(dtype), bits_of(stages)
    places, number_indices = state_places(element, dtype, states), tuple(range(SHARED, SHARED + counts_of(element)[1]))
    stored, real, of_grad = given.stored, given.real, dtype_of(gradient or dtype).stored
    stored_size, real_size = given.itemsize, np.dtype(real).itemsize  # and the average's
    grad_size, stochastic = np.dtype(of_grad).itemsize, int(rounding == STOCHASTIC)
    coded = int(any(state in CODES for state in states))
    kept = np.dtype(master).type if master else None
    kept_size = np.dtype(kept).itemsize if master else 0
    numbers = numbers_of(("float32" if master else given.name, *states))

    def kernel(job_address, begin, end, worker):
        job = carray(pointer(job_address), 1, JOB)[0]
        chunks = carray(pointer(job.chunks), end, CHUNK)
        limit, gain = real(job.limit), real(job.gain)
        for c in range(begin, end):
            if of_rows:
                coming = chunks[min(c + AHEAD, end - 1)]
                owner = carray(pointer(job.tensors), coming.tensor + 1, TENSOR)[coming.tensor]
                fetch(owner.param + coming.offset * stored_size, coming.length * stored_size)
                fetch(owner.grad + coming.grad_offset * grad_size, coming.length * grad_size)
                each(fetch_state, places, (owner.states, coming.offset, coming.length))
                if rowwise and coming.length:
                    fetch(owner.states[0] + coming.offset // coming.length * real_size, real_size)
            chunk = chunks[c]
            tensor = carray(pointer(job.tensors), chunk.tensor + 1, TENSOR)[chunk.tensor]
            runs, length, step = 1, chunk.length, 0
            if rowwise and length == 0:  # there is no mean of nothing
                continue
            place = job, chunk.tensor, tensor.param
            if tensor.grad == 0:
                if tensor.average != 0:
                    left_alone(
                        bits,
                        param_at(*place, chunk.offset, length, stored, stored_size, kept, kept_size),
                        carray(pointer(tensor.average + chunk.offset * real_size), length, real),
                        gain,
                    )
                continue
            row = carray(pointer(job.hypers), (tensor.hyper + 1, HYPERS), np.float64)[tensor.hyper]
            scale, decay = real(row[0]) * real(job.coefficient), real(row[1])
            hypers = each(number_at, (number_indices,), (row, real))
            grad = tensor.grad + chunk.grad_offset * grad_size
            if rowwise:
                hypers = (
                    rate_of_row(
                        carray(pointer(tensor.states[0] + chunk.offset // length * real_size), 1, real),
                        param_at(*place, chunk.offset, length, stored, stored_size, kept, kept_size),
                        carray(pointer(grad), length, of_grad),
                        scale,
                        decay,
                        real(row[SHARED]),
                        real(row[SHARED + 1]),
                    ),
                )
            if tensor.layout != 0:
                layout = carray(pointer(tensor.layout), 1, LAYOUT)[0]
                runs, step = chunk.rows, layout.param_row
                grad = job.scratch + worker * job.scratch_bytes
                gather(
                    carray(pointer(grad), runs * length, of_grad),
                    tensor.grad + chunk.grad_offset,
                    runs,
                    length,
                    layout.grad_row,
                    layout.grad_item,
                    of_grad,
                )
                if step == length:  # whole rows: the tile is one run
                    runs, length = 1, runs * length
            for r in range(runs):
                at = chunk.offset + r * step
                update(
                    number,
                    bits,
                    param_at(*place, at, length, stored, stored_size, kept, kept_size),
                    carray(pointer(grad + r * length * grad_size), length, of_grad),
                    with_scales(
                        coded, each(state_at, places, (tensor.states, at, length)), job, chunk.tensor, worker, at
                    ),
                    carray(pointer(tensor.average + at * real_size), length, real),
                    (scale, limit, gain),
                    decay,
                    hypers,
                    random_of(stochastic, job, chunk.tensor, at, numbers),
                )

    others = (gradient, master, rounding)
    parts = (name, given.name, *states, *stages, *(part for part in others if part), f"abi{ABI}")
    kernel.__name__ = kernel.__qualname__ = "_".join(parts)
    return kernel


# The norm of gradients. Only the sum may be reordered, which vectorises it: were its squares in the same function,
# LLVM could compute power * power by itself, which is infinite. Nothing here assumes that numbers are finite.
@njit(error_model="numpy", forceinline=True, fastmath={"contract"})
def square(x, power):
    """The square of power * x, in float64."""
    scaled = np.float64(x) * power
    return scaled * scaled


@njit(error_model="numpy", forceinline=True, fastmath={"reassoc", "contract"})
def sum_of_squares(g, power):
    """The sum of squares of a run."""
    total = 0.0
    for i in range(g.size):
        total += square(widen(g[i]), power)
    return total


@inner
def sum_of_tile(grad, rows, length, row_stride, item_stride, power, stored, stored_size):
    """The same of a tile of a gradient, along the axis with the smaller stride."""
    if rows > 1 and abs(row_stride) < abs(item_stride):
        rows, length, row_stride, item_stride = length, rows, item_stride, row_stride
    total = 0.0
    for r in range(rows):
        start = grad + r * row_stride
        if item_stride == stored_size:
            total += sum_of_squares(carray(pointer(start), length, stored), power)
        else:
            for i in range(length):
                total += square(widen(carray(pointer(start + i * item_stride), 1, stored)[0]), power)
    return total


def make_norm(dtype):
    """Define the kernel that writes each chunk's sum of squares for a dtype, for ``cfunc``, like `make_kernel`'s.

    A chunk's sum is computed by one thread, in an order that depends on nothing but its length and its layout.
    """
    given = dtype_of(dtype)
    stored, stored_size = given.stored, given.itemsize

    def kernel(job_address, begin, end, worker):
        job = carray(pointer(job_address), 1, JOB)[0]
        chunks = carray(pointer(job.chunks), end, CHUNK)
        sums = carray(pointer(job.sums), end, np.float64)
        for c in range(begin, end):
            chunk = chunks[c]
            tensor = carray(pointer(job.tensors), chunk.tensor + 1, TENSOR)[chunk.tensor]
            if tensor.grad == 0:
                sums[c] = 0.0
            elif tensor.layout == 0:
                grad = tensor.grad + chunk.grad_offset * stored_size
                sums[c] = sum_of_squares(carray(pointer(grad), chunk.length, stored), job.power)
            else:
                layout = carray(pointer(tensor.layout), 1, LAYOUT)[0]
                sums[c] = sum_of_tile(
                    tensor.grad + chunk.grad_offset,
                    chunk.rows,
                    chunk.length,
                    layout.grad_row,
                    layout.grad_item,
                    job.power,
                    stored,
                    stored_size,
                )

    kernel.__name__ = kernel.__qualname__ = f"norm_{given.name}_abi{ABI}"
    return kernel


UPDATE = types.void(types.intp, types.intp, types.intp, types.int64, types.intp)  # fastopt_update
make_cfunc_of_update = functools.partial(cfunc, UPDATE, error_model="numpy")


def make_update(name, dtype):
    """Define the function that C calls to update one array by a rule, for ``cfunc``, like `make_kernel`'s."""
    number, given = number_of(name), dtype_of(dtype)
    numbers = counts_of(name)[1]
    places, number_indices = state_places(name, dtype), tuple(range(numbers))
    states, real = len(places[0]), given.real

    def function(param, grad, state_addresses, n, hyper):
        addresses = carray(pointer(state_addresses), states, np.int64)
        row = carray(pointer(hyper), numbers, np.float64)
        update(
            number,
            0,
            carray(pointer(param), n, real),
            carray(pointer(grad), n, real),
            each(state_at, places, (addresses, 0, n)),
            carray(pointer(param), n, real),  # no average
            (real(1), real(1), real(1)),
            real(0),
            each(number_at, (number_indices,), (row, real)),
            None,
        )

    function.__name__ = function.__qualname__ = f"update_{name}_{given.name}_abi{ABI}"
    return function


def make_coder(name):
    """Define the function that encodes float32 numbers as codes of this name, or decodes them, for ``cfunc``."""
    stored = STORED[name].stored

    def function(numbers, codes, scales, n, encodes):
        numbers = carray(pointer(numbers), n, np.float32)
        codes = carray(pointer(codes), n, stored)
        scales = carray(pointer(scales), (n + BLOCK - 1) // BLOCK, np.float32)
        if encodes:
            encode(codes, scales, numbers, 0, 0, None)
        else:
            decode(codes, scales, numbers, 0)

    function.__name__ = function.__qualname__ = f"coder_{name}_abi{ABI}"
    return function


_kernels: dict = {}
_updates: dict = {}
_coders: dict = {}


def kernel(
    name: str, dtype: Any, stages: Any = (), states: Any = (), gradient: str = "", master: str = "", rounding: str = ""
) -> Any:
    """Return a rule's compiled kernel for a dtype, a Numba ``CFunc``; it lives as long as the process.

    The name NORM stands for the kernel that writes the sums of squares of gradients; of the others it has none.

    Parameters
    ----------
    name : str
    dtype
        That of parameters: anything NumPy accepts, or "bfloat16".
    stages : sequence of str
        In the order of STAGES.
    states : sequence of str
        Names of the states' dtypes; nothing where all are what the kernel computes in, float32 for half precision.
    gradient : str
        The dtype of gradients, if it is not that of parameters.
    master : str
        The dtype of the remainder behind a parameter: "int16" or "int8" for bfloat16, "float32" for float16.
    rounding : str
        STOCHASTIC for what has 16 or 8 bits and no remainder; "" is to nearest.
    """
    others = ((), ()) if name == NORM else (tuple(stages), tuple(states), gradient, master, rounding)
    return compiled_once(_kernels, (name, dtype_of(dtype).name, *others), make_any, make_cfunc)


def make_any(name, dtype, *others):
    """Define the kernel of a rule, or of the norm."""
    return make_norm(dtype) if name == NORM else make_kernel(name, dtype, *others)


def update_for_c(name: str, dtype: Any) -> Any:
    """Return a rule's compiled update of one array, for C; all arrays are float32, or all are float64."""
    return compiled_once(_updates, (name, dtype_of(dtype).name), make_update, make_cfunc_of_update)


def coder(name: str) -> Any:
    """Return the compiled coder of "int8" or "uint8": ``(numbers, codes, scales, n, encodes)``, addresses and ints."""
    return compiled_once(_coders, (name,), make_coder, make_cfunc_of_update)


def compiled_once(known, key, make, wrap):
    """Return ``known[key]``, after compiling ``make(*key)`` with ``wrap(cache=...)`` if it is missing."""
    if key not in known:
        with lock, cache.one_process_at_a_time():
            if key not in known:
                known[key] = cache.compile_kept(make(*key), wrap)
    return known[key]


def cached(name: str, dtype: Any, *others: Any) -> bool:
    """Say whether the cache has a rule's kernel for a dtype, as it is now and for this processor."""
    return cache.kept(make_any(name, dtype, *others), SIGNATURE)
