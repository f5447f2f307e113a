"""Any layout: dense parameters in any order, gradients with any strides, paired by index."""

import numpy as np
import pytest
from fastopt.bench import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt.step.chunks import CHUNK_ELEMENTS, TILE, TILE_ELEMENTS, WHOLE_ROW, Strides, chunk_table


@st.composite
def laid_out(draw, shape, dense):
    """An array of a shape in some layout: axes permuted, reversed, and, unless dense, spaced out or broadcast."""
    order = draw(st.permutations(range(len(shape))))
    gaps = [1 if dense else draw(st.sampled_from([1, 1, 2, 3])) for _ in shape]
    offset = 0 if dense else draw(st.sampled_from([0, 0, 1]))
    kind = draw(st.sampled_from(["spaced", "spaced", "broadcast", "unaligned"])) if not dense else "spaced"
    dtype = draw(st.shared(st.sampled_from([np.float32, np.float64]), key="dtype"))
    base = np.zeros(tuple(shape[axis] * gaps[axis] + offset for axis in order), dtype)
    if kind == "unaligned":
        base = np.zeros(base.nbytes + 1, np.uint8)[1:].view(dtype).reshape(base.shape)
    base[...] = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(base.shape)
    array = base.transpose(np.argsort(order))
    array = array[tuple(slice(offset, offset + n * gap, gap) for n, gap in zip(shape, gaps, strict=True))]
    if kind == "broadcast" and len(shape):
        axis = draw(st.integers(0, len(shape) - 1))
        array = np.broadcast_to(array.take([0], axis) if shape[axis] else array, shape)
    reverse = tuple(draw(st.sampled_from([slice(None), slice(None, None, -1)])) for _ in shape)
    array = array[(..., *reverse)]
    if not dense and draw(st.booleans()):
        array.flags.writeable = False
    return array


shapes = st.lists(st.sampled_from([0, 1, 2, 3, 5, 66, 130]), max_size=4).filter(lambda s: np.prod(s) <= 50_000)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), shape=shapes.map(tuple))
def test_any_parameter_with_any_gradient(data, shape):
    """Two steps, the second with another gradient in another layout, equal the oracle; gradients stay as they were."""
    p = data.draw(laid_out(shape, dense=True))
    gradients = [data.draw(laid_out(shape, dense=False)) for _ in range(2)]
    before = [g.copy() for g in gradients]
    trainer = oracle.Trainer([p])
    opt = fastopt.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01)
    for g in gradients:
        opt.step([g])
        trainer.step("momentum", [g], {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
    assert_close(p, trainer.params[0], TRAJECTORY)
    assert_close(opt.state[0]["momentum_buffer"], trainer.states[0][0], TRAJECTORY)
    for g, was in zip(gradients, before, strict=True):
        np.testing.assert_array_equal(g, was)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=shapes.map(tuple))
def test_single_calls_with_any_gradient(data, shape):
    """The same for fused calls, with state in the parameter's layout."""
    p = data.draw(laid_out(shape, dense=True))
    g = data.draw(laid_out(shape, dense=False))
    backwards = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in p.strides)
    s = np.zeros_like(p[(..., *backwards)])[(..., *backwards)]  # np.zeros_like forgets which axes run backwards
    trainer = oracle.Trainer([p])
    fastopt.fused.adagrad(p, g, s, lr=0.1)
    trainer.step("adagrad", [g], {"lr": 0.1})
    assert_close(p, trainer.params[0], TRAJECTORY)
    assert_close(s, trainer.states[0][0], TRAJECTORY)


LARGE = [
    ("transposed", (700, 900), lambda g: g.reshape(900, 700).T),
    ("transposed, narrow", (60_000, 3), lambda g: g.reshape(3, 60_000).T),
    ("channels last", (128, 64, 3, 3), lambda g: g.reshape(128, 3, 3, 64).transpose(0, 3, 1, 2)),
    ("axes reversed", (40, 50, 60), lambda g: g.reshape(60, 50, 40).T),
    ("every second", (200_000,), lambda g: np.repeat(g, 2)[::2]),
    ("columns of a wider array", (500, 300), lambda g: np.repeat(g.reshape(500, 300), 2, axis=1)[:, 300:]),
    ("backwards", (500, 300), lambda g: g.reshape(500, 300)[::-1, ::-1]),
    ("one row for all", (500, 300), lambda g: np.broadcast_to(g[:300], (500, 300))),
    ("one number for all", (500, 300), lambda g: np.broadcast_to(g[:1], (500, 300))),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("shape", "lay"), [row[1:] for row in LARGE], ids=[row[0] for row in LARGE])
def test_large_gradients_in_tiles_on_threads(shape, lay, threads):
    """Bound and stepped, with a dense neighbour, on one thread and on several."""
    rng = np.random.default_rng(6)
    p = [rng.standard_normal(shape).astype(np.float32), rng.standard_normal(100_000).astype(np.float32)]
    g = [lay(rng.standard_normal(p[0].size).astype(np.float32)), rng.standard_normal(100_000).astype(np.float32)]
    trainer = oracle.Trainer(p)
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(threads)
    try:
        opt = fastopt.SGD(p, lr=0.1, momentum=0.9, nesterov=True)
        opt.bind(g)
        for _ in range(3):
            opt.step()
            trainer.step("nesterov", g, {"lr": 0.1, "momentum": 0.9})
    finally:
        fastopt.set_num_threads(before)
    for x, want in zip(p, trainer.params, strict=True):
        assert_close(x, want, TRAJECTORY)


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 3 * CHUNK_ELEMENTS), max_size=6))
def test_dense_chunks_cover_every_element_once(sizes):
    """In pieces of at most a chunk, at offsets that are multiples of 256."""
    chunks, _ = chunk_table(sizes, {})
    covered = [np.zeros(size, int) for size in sizes]
    for chunk in chunks:
        assert chunk["offset"] == chunk["grad_offset"]
        assert chunk["offset"] % 256 == 0
        assert 0 < chunk["length"] <= CHUNK_ELEMENTS
        assert chunk["offset"] + chunk["length"] <= sizes[chunk["tensor"]]  # a slice would end there by itself
        covered[chunk["tensor"]][chunk["offset"] : chunk["offset"] + chunk["length"]] += 1
    assert all((count == 1).all() for count in covered)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, TILE, TILE + 1, WHOLE_ROW, WHOLE_ROW + 1, 500]), min_size=1, max_size=4)
    .filter(lambda s: np.prod(s) <= 100_000)
    .map(tuple),
    order=st.randoms(use_true_random=False),
)
def test_tiles_cover_every_element_once_and_find_its_gradient(shape, order):
    """With the gradient's axes in any order."""
    axes = list(range(len(shape)))
    order.shuffle(axes)
    assert_tiles_cover(shape, axes)


def test_axes_that_only_look_like_one():
    """The stride of the second is that of the third times its own length, not times the third's."""
    assert_tiles_cover((2, 6, 3), [1, 0, 2])


def assert_tiles_cover(shape, axes):
    """Cut a gradient whose element is its own index, and which lies with these axes from slow to fast."""
    gradient = np.arange(np.prod(shape), dtype=np.float64).reshape([shape[axis] for axis in axes])
    gradient = gradient.transpose(np.argsort(axes))
    chunks, layouts = chunk_table([gradient.size], {0: Strides.of(gradient)})
    found = np.full(gradient.size, -1)
    layout = layouts[0]
    for chunk in chunks:
        assert 0 < chunk["rows"] * chunk["length"] <= TILE_ELEMENTS
        for row in range(chunk["rows"]):
            start = chunk["offset"] + row * layout["param_row"]
            source = chunk["grad_offset"] + row * layout["grad_row"] + np.arange(chunk["length"]) * layout["grad_item"]
            assert (found[start : start + chunk["length"]] == -1).all()
            found[start : start + chunk["length"]] = source // gradient.itemsize
    np.testing.assert_array_equal(found, gradient.ravel())


def test_states_of_single_calls_may_lie_otherwise_than_the_parameter():
    """They are paired by index as well, by way of a copy."""
    p, s = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32, order="F")
    g = np.arange(12, dtype=np.float32).reshape(3, 4)
    fastopt.fused.momentum(p, g, s, lr=1.0, momentum=0.5)
    np.testing.assert_array_equal(p, 1 - g)
    np.testing.assert_array_equal(s, g)
