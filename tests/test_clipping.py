"""`grad_norm` and `clip_grad_norm_` for arrays, on the CPU and on a GPU."""

import array as buffers
import math
import sys
import types

import numpy as np
import pytest
import torch
from gradient_layouts import STRIDED
from pairs import usually
from processes import run_script
from tolerances import NORM, ONE_STEP, assert_close

import fastopt
from fastopt.step import chunks
from fastopt.step.norm import coefficient

DTYPES = [np.float16, np.float32, np.float64]


def random(*shapes, dtype=np.float32, seed=0):
    """Random arrays."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def exact(*arrays):
    """The norm in float64."""
    return math.hypot(*(number for array in arrays for number in np.asarray(array, np.float64).ravel().tolist()))


def assert_clipped(arrays, before, most):
    """Assert that arrays are what they were, times the coefficient, rounded once or twice."""
    factor = coefficient(most, exact(*before))
    for got, was in zip(arrays, before, strict=True):
        assert_close(got, was.astype(np.float64) * factor, ONE_STEP, scale=max(np.abs(was).max(initial=0) * factor, 1))


# Containers


def test_nested_containers():
    """As an optimizer's ``step`` takes them; None is left out."""
    a, b, c, d, e = random((3, 4), (5,), (), (2, 2), (7,))
    tree = {"a": a, "of": [{"b": b, "none": None}, (c, None, [])], "of.0.b": d, 7: types.MappingProxyType({"e": e})}
    assert fastopt.grad_norm(tree) == pytest.approx(exact(a, b, c, d, e), rel=NORM)
    before = [array.copy() for array in (a, b, c, d, e)]
    assert fastopt.clip_grad_norm_(tree, 0.5) == pytest.approx(exact(*before), rel=NORM)
    assert_clipped((a, b, c, d, e), before, 0.5)


@pytest.mark.parametrize("form", [list, tuple, iter, lambda arrays: (array for array in arrays), enumerate])
def test_sequences_and_iterables(form):
    arrays = random((3, 4), (5,))
    given = dict(form(arrays)).values() if form is enumerate else form(arrays)
    before = [array.copy() for array in arrays]
    assert fastopt.clip_grad_norm_(given, 1e-3) == pytest.approx(exact(*before), rel=NORM)
    assert_clipped(arrays, before, 1e-3)


@pytest.mark.parametrize("empty", [None, [], {}, [None], {"a": None, "b": [None]}, iter([]), np.zeros(0, np.float32)])
def test_no_gradients(empty):
    assert fastopt.grad_norm(empty) == 0.0
    assert fastopt.clip_grad_norm_(empty, 1.0) == 0.0


def test_other_objects_are_read():
    """NumPy's numbers, and what supports DLPack or the buffer protocol."""
    given = [np.float32(2), np.float64(2), torch.full((2,), 2.0), buffers.array("d", [2.0]), torch.ones(3, 4)[:, ::2]]
    given[4] = given[4] * 0
    result = fastopt.grad_norm(given)
    assert type(result) is float
    assert result == pytest.approx(exact(2, 2, [2, 2], 2), rel=NORM)


# Values


@pytest.mark.parametrize("dtype", usually([np.float32], DTYPES))
@pytest.mark.parametrize("layout", STRIDED)
def test_layouts(dtype, layout):
    """Whatever the strides; the elements between stay."""
    for shape in ((3, 5), (130, 300)):
        (base,) = random(shape, dtype=dtype)
        view = STRIDED[layout](base)
        if not view.flags.writeable:
            continue
        whole = view if view.base is None else view.base
        before, around = view.copy(), whole.copy()
        assert fastopt.clip_grad_norm_([view], 2.0) == pytest.approx(exact(before), rel=NORM)
        assert_clipped([view], [before], 2.0)
        view[...] = before
        np.testing.assert_array_equal(whole, around)


def test_several_dtypes():
    arrays = [array for dtype in DTYPES for array in random((100, 70), (3,), dtype=dtype)]
    before = [array.copy() for array in arrays]
    assert fastopt.clip_grad_norm_(arrays, 1.0) == pytest.approx(exact(*before), rel=NORM)
    assert_clipped(arrays, before, 1.0)
    assert fastopt.grad_norm(arrays) == pytest.approx(1.0, rel=1e-3)  # float16 is rounded


def test_small_gradients_are_not_written():
    """Not even read-only ones; nor where the limit is infinite."""
    (array,) = random((3, 4))
    before = array.copy()
    array.flags.writeable = False
    assert fastopt.clip_grad_norm_(array, exact(array) + 1e-5) == pytest.approx(exact(array), rel=NORM)
    assert fastopt.clip_grad_norm_(array, math.inf) == pytest.approx(exact(array), rel=NORM)
    np.testing.assert_array_equal(array, before)


def test_a_limit_of_0():
    (array,) = random((3, 4))
    fastopt.clip_grad_norm_(array, 0)
    assert (array == 0).all()


def test_the_most_exact_factor():
    """float16 is not multiplied by a factor in float16, nor float32 by a subnormal one in float32."""
    small = np.full(4, 60000, np.float16)
    fastopt.clip_grad_norm_(small, 1e-3)
    assert (small == np.float16(60000 * coefficient(1e-3, 120000))).all()
    large = np.full(4, 3e38, np.float32)
    fastopt.clip_grad_norm_(large, 1e-3)
    np.testing.assert_allclose(large, 5e-4, rtol=ONE_STEP * np.finfo(np.float32).eps)


@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_squares_beyond_float64(value):
    array = np.full(16, value)
    most = value * 2
    assert fastopt.clip_grad_norm_(array, most) == pytest.approx(4 * value, rel=NORM)
    want = value / 2 if value > 1 else value * coefficient(most, 4 * value)
    np.testing.assert_allclose(array, want, rtol=NORM)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_not_finite(value):
    """As torch has it, or an error, and then nothing changes."""
    arrays = random((3, 4), (5000,))
    arrays[1][4500] = value
    ours, theirs = [array.copy() for array in arrays], [torch.zeros(array.shape) for array in arrays]
    for tensor, array in zip(theirs, arrays, strict=True):
        tensor.grad = torch.from_numpy(array.copy())
    with pytest.raises(FloatingPointError, match="error_if_nonfinite"):
        fastopt.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(ours[1], arrays[1])
    norm = fastopt.clip_grad_norm_(ours, 1.0)
    np.testing.assert_array_equal(norm, torch.nn.utils.clip_grad_norm_(theirs, 1.0).numpy())
    for array, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(array, tensor.grad.numpy())
    assert fastopt.clip_grad_norm_(np.ones(3), 9.0, error_if_nonfinite=True) == pytest.approx(math.sqrt(3), rel=NORM)


# Errors


BAD = {
    "a number": (3.0, "grads must be an array, a list or a dict of arrays, not a float"),
    "numbers": ([1.0, 2.0], "grads must be an array, a list or a dict"),
    "a word": ("abc", "grads must be an array, a list or a dict"),
    "a list of numbers inside": ({"w": [[1.0, 2.0], [3.0]]}, r"gradient 'w.0' is a list, not a NumPy array: pass np"),
    "integers": ([np.ones(3), np.ones(3, np.int64)], r"gradient 1 has dtype int64.*astype\(np.float32\)"),
    "complex": (np.ones(3, np.complex64), r"gradient 0 has dtype complex64.*view\(array.real.dtype\)"),
    "foreign bytes": ({"w": np.ones(3, ">f4")}, r"foreign byte order.*astype\(np.float32\)"),
    "masked": ([np.ma.ones(3)], r"masked array.*\.data"),
    "an object": ([object()], "gradient 0 is an object, not a NumPy array"),
}


@pytest.mark.parametrize("call", [fastopt.grad_norm, lambda grads: fastopt.clip_grad_norm_(grads, 1.0)])
@pytest.mark.parametrize(("grads", "words"), BAD.values(), ids=BAD)
def test_what_has_no_norm(call, grads, words):
    with pytest.raises(TypeError, match=words):
        call(grads)


def test_containers_in_themselves():
    inside = [np.ones(3)]
    inside.append(inside)
    with pytest.raises(ValueError, match="grads is nested in itself"):
        fastopt.grad_norm(inside)


@pytest.mark.parametrize("most", [-1.0, math.nan, "1", None, True])
def test_limits_that_are_none(most):
    array = np.ones(3)
    with pytest.raises((TypeError, ValueError), match="max_norm must be a number"):
        fastopt.clip_grad_norm_(array, most)
    assert (array == 1).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.ones(3), r"a torch.Tensor.*fastopt\.torch\.clip_grad_norm_"),
        (np.float32(3), r"a numpy.float32.*np\.array\("),
        (buffers.array("d", [2.0]), r"an array.array.*np\.array\("),
    ],
)
def test_what_cannot_be_written(given, words):
    """It is refused even where it would not be clipped."""
    with pytest.raises(TypeError, match=words):
        fastopt.clip_grad_norm_([np.ones(3), given], 1e9)


def read_only(array):
    array.flags.writeable = False
    return array


REFUSED = {
    "read-only": (lambda g: [g, read_only(np.ones(3))], r"gradient 1 is read-only.*\.copy\(\)"),
    "twice": (lambda g: {"a": g, "b": g}, "gradient 'a' and gradient 'b' overlap"),
    "views": (lambda g: [g[:3], g[2:]], "gradient 0 and gradient 1 overlap"),
    "one for all": (lambda g: np.lib.stride_tricks.as_strided(g, (3, 4), (0, 4)), "two elements of gradient 0 share"),
}


@pytest.mark.parametrize(("of", "words"), REFUSED.values(), ids=REFUSED)
def test_what_must_not_be_multiplied(of, words):
    """It has a norm all the same, and nothing is changed."""
    (g,) = random((12,))
    before, given = g.copy(), of(g)
    norm = fastopt.grad_norm(given)
    assert fastopt.clip_grad_norm_(given, norm + 1) == norm
    with pytest.raises(ValueError, match=words):
        fastopt.clip_grad_norm_(given, norm / 2)
    np.testing.assert_array_equal(g, before)


def test_neighbours_do_not_overlap():
    """Columns of a matrix, halves of a vector."""
    (g,) = random((6, 6))
    before = g.copy()
    fastopt.clip_grad_norm_([g[:, 0], g[:, 1:3], g[:3, 3:], g[3:, 3:]], 1.0)
    assert_clipped([g], [before], 1.0)


def test_containers_that_make_their_arrays(tmp_path):
    """An archive reads its arrays at each access: the clipped ones would be lost."""
    np.savez(tmp_path / "g.npz", w=np.ones(3), b=np.ones(1))
    with np.load(tmp_path / "g.npz") as archive:
        assert fastopt.grad_norm(archive) == 2.0
        assert fastopt.clip_grad_norm_(archive, 3.0) == 2.0
        with pytest.raises(ValueError, match=r"makes another array of gradient 'w'.*dict\(np\.load"):
            fastopt.clip_grad_norm_(archive, 1.0)
        held = dict(archive)
    fastopt.clip_grad_norm_(held, 1.0)
    assert fastopt.grad_norm(held) == pytest.approx(1.0, rel=1e-5)


def test_importing_compiles_nothing(tmp_path):
    """Numba is not imported before a norm is taken."""
    script = """
        import sys, fastopt

        print("numba" in sys.modules, "torch" in sys.modules, "cupy" in sys.modules)
    """
    assert run_script(script, tmp_path) == (0, "False False False\n", "")


def test_many_tensors_are_one_launch(monkeypatch):
    """Tables are cut once for gradients of the same sizes."""
    arrays = random(*[(i % 7 + 1, 3) for i in range(500)])
    want = fastopt.grad_norm(arrays)
    monkeypatch.setattr(chunks, "dense_chunks", lambda *_: sys.exit("cut again"))
    assert fastopt.grad_norm([array.copy() for array in arrays]) == want == pytest.approx(exact(*arrays), rel=NORM)


# On a GPU


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(device, dtype):
    """The norm is an array there."""
    here = random((3, 4), (), (5000,), (0,), dtype=dtype)
    there = [device.array(array) for array in here]
    norm = fastopt.grad_norm({"a": there[0], "of": [*there[1:], None]})
    assert (norm.shape, norm.dtype) == ((), np.float64)
    assert float(device.get(norm)) == pytest.approx(exact(*here), rel=NORM)
    assert float(device.get(fastopt.clip_grad_norm_(there, 2.0))) == pytest.approx(exact(*here), rel=NORM)
    assert_clipped([device.get(array) for array in there], here, 2.0)
    kept = [device.get(array) for array in there]
    fastopt.clip_grad_norm_(there, 1e9)
    for array, was in zip(there, kept, strict=True):
        np.testing.assert_array_equal(device.get(array), was)


@pytest.mark.parametrize("values", [[1e300, 2e300], [1e-300, 2e-300], [math.inf, 1.0], [math.nan, 1.0], [0.0, 0.0]])
def test_extremes_on_a_gpu(device, values):
    norm = fastopt.grad_norm(device.array(np.array(values)))
    np.testing.assert_allclose(device.get(norm), exact(values), rtol=NORM)


def test_without_a_wait(stand_in):
    """All is put on the stream, and nothing has run when the calls return."""
    there = [stand_in.array(array) for array in random((3, 4), (50,))]
    stand_in.synchronize()
    with stand_in.stream() as stream:
        fastopt.grad_norm(there)
        fastopt.clip_grad_norm_(there, 1.0)
        assert stream.queue
        waiting = len(stream.queue)
        there[0][...] = math.nan
        with pytest.raises(FloatingPointError, match="not finite"):
            fastopt.clip_grad_norm_(there, 1.0, error_if_nonfinite=True)
        assert waiting > len(stream.queue)


def test_refused_on_a_gpu(device):
    here, (there, other) = random((3, 4))[0], (device.array(array) for array in random((6,), (6,)))
    with pytest.raises(TypeError, match=r"gradient 1 is a numpy\.ndarray, not an array on a GPU"):
        fastopt.grad_norm([there, here])
    with pytest.raises(ValueError, match="gradient 0 and gradient 2 overlap"):
        fastopt.clip_grad_norm_([there, other, there], 1.0)
    with pytest.raises(TypeError, match="dtype int64"):
        fastopt.grad_norm([device.array(np.ones(3, np.int64))])


def test_several_gpus(stand_in):
    here = stand_in.array(np.ones(3, np.float32))
    with stand_in.cupy.cuda.Device(1):
        there = stand_in.array(np.ones(3, np.float32))
        assert float(stand_in.get(fastopt.grad_norm(here))) == pytest.approx(math.sqrt(3), rel=NORM)
    with pytest.raises(ValueError, match="gradient 'b' is on GPU 1, gradient 'a' on GPU 0"):
        fastopt.grad_norm({"a": here, "b": there})
