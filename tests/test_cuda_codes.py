"""CUDA kernels whose states have 8 bits, compiled for the host: against kernels without codes, to the bit."""

import numpy as np
import pytest
from cuda_cases import MORE, Guards, meant, normal, options_of, row_of, stored
from cuda_jobs import Job, Numbers, Tensor
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import CODES, DTYPES, STORED
from fastopt.kernels.tables import BLOCK
from host_cuda import CODED, STAGES

from fastopt.step.codes import blocks, decode, encode

SIZES = (0, 1, 2, 63, 64, 65, 511, 512, 513, 1000, 2049)  # around packs, blocks and chunks
USUAL = [("adagrad", "float32", ("uint8",)), ("adamw", "float32", ("int8", "uint8"))]
KINDS = dict.fromkeys((name, dtype, states) for name, dtype, *_, states in CODED)
HUGE = 2.0**120

kinds = pytest.mark.parametrize(
    ("name", "dtype", "states"),
    [pytest.param(*kind, marks=[] if kind == USUAL[0] else pytest.mark.exhaustive) for kind in KINDS],
)


def coded(numbers, state):
    """What a state in a kernel's memory is of numbers: elements and scales, which are None without codes."""
    return encode(numbers, state) if state in CODES else (stored(numbers, state), None)


def decoded(array, scales, state):
    """The numbers that it stands for, in float32."""
    return decode(array, scales) if state in CODES else meant(array, state).astype(np.float32)


class Case:
    """A tensor with codes, between guards; and one of the same numbers for the kernel without."""

    def __init__(self, kind, size, rng, offsets=(0, 0), change=lambda numbers: numbers):
        self.name, self.dtype, self.states = kind
        self.guards, real = Guards(), DTYPES[self.dtype].real
        param, grad = (normal(rng, size, self.dtype) for _ in range(2))
        grad = stored(change(meant(grad, self.dtype)), self.dtype)
        average = rng.standard_normal(size).astype(real)
        numbers = [(rng.standard_normal(size) ** 2).astype(np.float32) for _ in self.states]
        kept = [coded(each, state) for each, state in zip(numbers, self.states, strict=True)]
        place = self.guards.place
        self.ours = Tensor(
            place(param, offsets[0]),
            place(grad, offsets[1]),
            [place(array) for array, _ in kept],
            average=place(average),
            scales=tuple(scales if scales is None else place(scales) for _, scales in kept),
        )
        self.plain = Tensor(param.copy(), grad.copy(), [x.astype(real) for x in self.numbers()], average=average.copy())

    def numbers(self):
        """What the states are now, in float32."""
        return [decoded(*each) for each in zip(self.ours.states, self.ours.scales, self.states, strict=True)]

    def step(self, stages=(), seed=0, **more):
        """Take the third step with both kernels, and compare all bits; return how many accesses were wide."""
        rows = [row_of(self.name, options_of(self.name, MORE), 3)]
        more = {"stages": stages, "numbers": Numbers(limit=1.0, gain=0.25), **more}
        moved = Job(self.name, self.dtype, [self.ours], rows, states=self.states, **more).launch(seed)
        Job(self.name, self.dtype, [self.plain], rows, **more).launch()
        for guarded in self.guards.all:
            guarded.assert_kept()
        for got, want in zip(self.arrays(self.ours), self.arrays(self.plain), strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))
        self.assert_stored()
        return moved

    @staticmethod
    def arrays(tensor):
        """What is no state."""
        return tensor.param, tensor.grad, tensor.average

    def assert_stored(self):
        """Assert that each state is what the numbers of the kernel without codes are encoded as."""
        with np.errstate(over="ignore"):
            results = [numbers.astype(np.float32) for numbers in self.plain.states]
        for array, scales, numbers, state in zip(self.ours.states, self.ours.scales, results, self.states, strict=True):
            want, want_scales = coded(numbers, state)
            if state in CODES:
                np.testing.assert_array_equal(array, want)
            else:  # there are many NaNs in 16 bits
                np.testing.assert_array_equal(meant(array, state), meant(want, state))
            if scales is not None:
                np.testing.assert_array_equal(scales.view(np.uint32), want_scales.view(np.uint32))


@kinds
def test_sizes(name, dtype, states):
    """At sizes around packs, blocks and chunks; 16 bytes at once where a pack has as many."""
    width = cuda.pack(dtype)
    pieces = sum(width * STORED[state].itemsize // 16 for state in states)
    for size in SIZES:
        case = Case((name, dtype, states), size, np.random.default_rng(size))
        assert case.step() == size // width * (3 + 2 * pieces)
        assert all(scales is None or scales.size == blocks(size) for scales in case.ours.scales)


@kinds
def test_alignments(name, dtype, states):
    """A parameter or a gradient off the borders of 16 bytes is moved one by one, in the same blocks."""
    for offsets in ((1, 0), (0, 1), (3, 2)):
        assert Case((name, dtype, states), 700, np.random.default_rng(2), offsets).step() == 0


@kinds
def test_with_all_stages(name, dtype, states):
    """Clipped by value, averaged and zeroed; whole packs and a rest."""
    for offsets in ((0, 0), (1, 1)):
        case = Case((name, dtype, states), 3001, np.random.default_rng(3), offsets)
        case.step(STAGES)
        assert not case.ours.grad.any()


@kinds
def test_any_order_and_any_number_of_threads(name, dtype, states):
    """Blocks are those of the tensor, whatever a chunk is, and whoever of a warp is first."""
    for threads, seed in ((32, 1), (64, 2), (512, 3)):
        Case((name, dtype, states), 1111, np.random.default_rng(4)).step(threads=threads, seed=seed)


def extreme(numbers):
    """Replace blocks by zeros, infinity, NaN, numbers that are too large, and those that are nearly zero.

    In one, all others are nearly zero beside the largest.
    """
    for i, number in enumerate((0.0, np.inf, np.nan, HUGE, -(2.0**-130), 1e-19, 1e10)):
        block = numbers[(i + 1) * BLOCK : (i + 2) * BLOCK]
        block[3 if number not in (0.0, 1e-19) else slice(None)] = number
    return numbers


@kinds
def test_extreme_numbers(name, dtype, states):
    """A block with NaN, infinity or a huge number is lost, and no other."""
    case = Case((name, dtype, states), 9 * BLOCK, np.random.default_rng(5), change=extreme)
    case.step()
    for lost in (np.isnan(scales) for scales in case.ours.scales if scales is not None):
        assert lost[[2, 3]].all()
        assert not lost[[0, 1, 5, 6, 8]].any()


def test_nothing_is_written_where_there_is_no_step():
    """Of tensors without a gradient, and where the whole step is skipped."""
    for skip in (None, np.ones(1, np.int32)):
        case = Case(USUAL[1], 200, np.random.default_rng(6))
        tensor = case.ours
        arrays = [tensor.param, *tensor.states, *tensor.scales]
        before = [array.tobytes() for array in arrays]
        tensor.grad = tensor.grad if skip is not None else None
        Job("adamw", "float32", [tensor], [row_of("adamw", MORE, 3)], skip=skip, states=case.states).launch()
        assert [array.tobytes() for array in arrays] == before


def test_several_tensors():
    """Each with scales of its own."""
    cases = [Case(USUAL[1], size, np.random.default_rng(size)) for size in (70, 1, 600)]
    rows = [row_of("adamw", MORE, 3)]
    Job("adamw", "float32", [case.ours for case in cases], rows, states=USUAL[1][2]).launch()
    Job("adamw", "float32", [case.plain for case in cases], rows).launch()
    for case in cases:
        case.assert_stored()


def test_names():
    """A kernel says what its codes are of."""
    name = cuda.Kind("adam", "float32", states=("int8", "uint8")).name
    assert name == "adam_float32_float32_int8_uint8_512"
