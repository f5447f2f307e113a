"""Any layout: parameters and gradients with any strides, paired by index; memory between elements is left alone."""

import numpy as np
import pytest
import torch
import torch_cases
from fastopt.bench import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import swept
from tolerances import TRAJECTORY, assert_close
from torch.nn import Parameter
from torch_cases import KINDS, STATES, bits, states, usual

SHAPE = (4, 3, 5, 6)


def strided(values, strides, offset=0):
    """Values at some strides of a larger memory, which is full of other numbers."""
    reach = offset + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True)) + 1 if values.numel() else 0
    memory = torch.randn(reach + 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(values.dtype)
    laid = memory.as_strided(values.shape, strides, offset)
    laid.copy_(values)
    return laid


def ordered(values, order, gaps=None):
    """Values stored with their axes in another order, the last one the densest, with gaps along each of them."""
    strides, size = [0] * values.dim(), 1
    for place, axis in enumerate(reversed(order)):
        strides[axis] = size * (gaps[place] if gaps else 1)
        size = strides[axis] * max(values.shape[axis], 1)
    return strided(values, strides)


LAYOUTS = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "axes reversed": lambda x: ordered(x, [3, 2, 1, 0]),
    "every second column": lambda x: strided(x, (180, 60, 12, 2)),
    "a part of each axis": lambda x: strided(x, (7 * 8 * 9, 8 * 9, 9, 1), 83),
    "rows apart, transposed": lambda x: ordered(x, [2, 0, 3, 1], [1, 2, 1, 3]),
}
DENSE = ["contiguous", "channels last", "transposed", "axes reversed"]
BROADCAST = {
    "expanded": lambda x: x[:, :1].expand(SHAPE),
    "expanded to all": lambda x: x[:1, :1, :1, :1].expand(SHAPE),
    "a sum's": lambda x: x.new_ones(()).expand(SHAPE),
}


def values(shape, seed, dtype=torch.float32):
    """Random values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def memory_between(laid):
    """What lies around a tensor's elements in its memory."""
    whole = laid.detach().as_strided((laid.untyped_storage().nbytes() // laid.element_size(),), (1,), 0)
    taken = torch.zeros(whole.shape, dtype=torch.bool)
    taken.as_strided(laid.shape, laid.stride(), laid.storage_offset()).fill_(True)
    return whole[~taken]


def assert_stepped(kind, p, gradients):
    """Steps with these gradients agree with the oracle by index; nothing else was written, nor any stride changed."""
    name, options = KINDS[kind]
    param = Parameter(p)
    assert param.stride() == p.stride()
    trainer = oracle.Trainer([p.numpy()])
    optimizer = torch_cases.make(name, [param], **options)
    strides, between = param.stride(), bits(memory_between(p))
    for g in gradients:
        before, around = bits(g), bits(memory_between(g))
        param.grad = g
        optimizer.step()
        assert param.grad is g
        assert bits(g) == before
        assert bits(memory_between(g)) == around
        trainer.step(kind, [g.numpy()], options)
    assert param.stride() == strides
    assert bits(memory_between(p)) == between
    assert_close(param.detach().numpy(), trainer.params[0], TRAJECTORY)
    for state, want in zip(STATES[kind], trainer.states[0] or (), strict=True):
        assert_close(states(optimizer, param)[state].numpy(), want, TRAJECTORY)
    return optimizer, param


@swept(1, layout=LAYOUTS, kind=KINDS)
def test_parameters_and_gradients_of_all_layouts(layout, kind):
    """Each layout of a parameter with each layout of its gradient, from one step to the next."""
    gradients = [*LAYOUTS.values(), *BROADCAST.values()]
    assert_stepped(
        kind, LAYOUTS[layout](values(SHAPE, 0)), [lay(values(SHAPE, 1 + i)) for i, lay in enumerate(gradients)]
    )


@swept(1, layout=LAYOUTS, kind=KINDS)
def test_each_pair_of_layouts_by_itself(layout, kind):
    """The first gradient's layout is not what the following ones must have."""
    for i, lay in enumerate([*LAYOUTS.values(), *BROADCAST.values()]):
        assert_stepped(kind, LAYOUTS[layout](values(SHAPE, 0)), [lay(values(SHAPE, 1 + i))])


@swept(1, layout=DENSE, kind=["momentum", "rmsprop_centered_momentum", "adamw_amsgrad"])
def test_states_are_laid_out_like_their_parameter(layout, kind):
    """As torch's preserve_format has it, whatever the gradient's layout: the next steps go through memory in order."""
    for other in DENSE:
        p = LAYOUTS[layout](values(SHAPE, 0))
        optimizer, param = assert_stepped(kind, p, [LAYOUTS[other](values(SHAPE, 1))])
        assert all(optimizer.state[param][state].stride() == p.stride() for state in STATES[kind])


@swept(1, ids=str, usual=usual, kind=KINDS, dtype=[torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_layouts_of_other_dtypes(kind, dtype):
    """They give to the bit what contiguous parameters give."""
    name, options = KINDS[kind]
    for layout in LAYOUTS:
        laid, plain = (Parameter(LAYOUTS[way](values(SHAPE, 0, dtype))) for way in (layout, "contiguous"))
        optimizers = [torch_cases.make(name, [p], **options) for p in (laid, plain)]
        for step, way in enumerate(("contiguous", layout, "rows apart, transposed")):
            g = values(SHAPE, 1 + step, dtype)
            laid.grad, plain.grad = LAYOUTS[way](g), g
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(laid, plain)
        for state in STATES[kind]:
            assert torch.equal(optimizers[0].state[laid][state], optimizers[1].state[plain][state])


LARGE = {
    "transposed": ((130, 170), [1, 0], None),
    "narrow": ((9000, 3), [1, 0], None),
    "wide": ((3, 9000), [1, 0], None),
    "channels last": ((48, 32, 3, 3), [0, 2, 3, 1], None),
    "every second": ((20_000,), [0], [2]),
    "columns of a wider matrix": ((150, 90), [0, 1], [1, 2]),
}


@swept(1, case=LARGE, kind=["momentum", "adagrad"])
def test_large_tensors(case, kind):
    """More elements than are worked on at a time, in the parameter's layout, the gradient's or both."""
    shape, order, gaps = LARGE[case]
    plain, laid = (lambda x: x), (lambda x: ordered(x, order, gaps))
    for of_parameter, of_gradient in ((plain, laid), (laid, plain), (laid, laid)):
        assert_stepped(
            kind, of_parameter(values(shape, 0)), [of_gradient(values(shape, 1)), of_gradient(values(shape, 2))]
        )


@st.composite
def laid_out(draw, shape, seed, broadcast):
    """Values in some layout: axes permuted, spaced out, broadcast, somewhere in their memory."""
    x = values(shape, seed)
    order = draw(st.permutations(range(len(shape))))
    gaps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in shape]
    laid = ordered(x, order, gaps) if len(shape) else strided(x, (), draw(st.integers(0, 3)))
    for axis, n in enumerate(shape):
        if n == 1:  # of an axis of one element the stride says nothing
            strides = [draw(st.integers(0, 99)) if i == axis else s for i, s in enumerate(laid.stride())]
            laid = laid.as_strided(shape, strides, laid.storage_offset())
        elif broadcast and n and draw(st.integers(0, 4)) == 0:
            laid = laid.narrow(axis, 0, 1).expand(shape)
    return laid


shapes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 17, 40]), max_size=5).filter(
    lambda shape: np.prod(shape) <= 20_000
)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), shape=shapes.map(tuple), kind=st.sampled_from(list(KINDS)))
def test_any_parameter_with_any_gradient(data, shape, kind):
    """Over shapes, orders of axes, gaps, broadcasts and odd strides of axes of one element."""
    p = data.draw(laid_out(shape, 0, broadcast=False))
    assert_stepped(kind, p, [data.draw(laid_out(shape, 1 + i, broadcast=True)) for i in range(2)])


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_and_empty_tensors(kind):
    """Of no axes, and of none or one element, with strides that say nothing."""
    assert_stepped(kind, strided(values((), 0), (), 3), [strided(values((), 1), (), 2), values((), 2)])
    for shape, strides in [
        ((0,), (5,)),
        ((3, 0), (0, 0)),
        ((0, 3), (1, 7)),
        ((1, 1), (0, 99)),
        ((3, 1, 4), (4, 99, 1)),
    ]:
        p, g = (torch.empty_strided(shape, strides).copy_(values(shape, seed)) for seed in (0, 1))
        assert_stepped(kind, p, [g, g.contiguous()])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_odd_addresses(kind):
    """Memory that another library has handed over need not be aligned."""
    g = torch.frombuffer(bytearray(4 * 50 + 1), dtype=torch.float32, offset=1)
    g.copy_(values((50,), 1))
    assert g.data_ptr() % 4
    assert_stepped(kind, values((50,), 0), [g, values((50,), 2)])


@pytest.mark.parametrize("kind", KINDS)
def test_lazy_conjugates_and_negatives(kind):
    """torch may leave it to the reader to conjugate or negate; the memory alone is not the value."""
    name, options = KINDS[kind]
    z = values((20,), 1, torch.complex64) + 1j * values((20,), 2)
    conjugate, negative = z.conj(), z.conj().imag
    assert conjugate.is_conj()
    assert negative.is_neg()
    for lazy, dtype in ((conjugate, torch.complex64), (negative, torch.float32)):
        p, q = (Parameter(values((20,), 0, dtype)) for _ in range(2))
        p.grad, q.grad = lazy, lazy.resolve_conj().resolve_neg()
        for param in (p, q):
            torch_cases.make(name, [param], **options).step()
        assert bits(p) == bits(q)


OVERLAPPING = {
    "expanded": ((7,), (0,)),
    "rows of one row": ((3, 4), (0, 1)),
    "windows": ((4, 3), (1, 1)),
    "crossing strides": ((4, 3), (2, 3)),
}


@swept(1, case=OVERLAPPING, kind=KINDS)
def test_parameters_that_overlap_themselves(case, kind):
    """An element that would be updated several times is refused, before anything is changed."""
    name, options = KINDS[kind]
    shape, strides = OVERLAPPING[case]
    memory = values((20,), 0)
    before = bits(memory)

    def act():
        p = Parameter(memory.as_strided(shape, strides))
        optimizer = torch_cases.make(name, [p], **options)
        p.grad = values(shape, 1)
        optimizer.step()

    with pytest.raises(ValueError, match=r"overlap|memory|more than once|stride"):
        act()
    assert bits(memory) == before
