"""Other people's programs on arrays of NumPy: gradients from jax and autograd."""

import importlib

import numpy as np
import pytest
from tolerances import TRAJECTORY, assert_close

import fastopt

pytestmark = pytest.mark.clients

F32 = np.float32


def network(dtype=F32):
    """Layers of (W, b), with one between that has no parameters, as in stax; and data."""
    rng = np.random.default_rng(0)
    params = [(rng.standard_normal((4, 5)).astype(dtype), np.zeros(5, dtype)), (),
              {"w": rng.standard_normal((5, 2)).astype(dtype), "b": np.zeros(2, dtype)}]  # fmt: skip
    return params, rng.standard_normal((8, 4)).astype(dtype), rng.standard_normal((8, 2)).astype(dtype)


def loss_with(tanh, mean):
    """A network's loss in the functions of a library."""

    def loss(params, x, y):
        (w, b), _, last = params
        return mean((tanh(x @ w + b) @ last["w"] + last["b"] - y) ** 2)

    return loss


def by_hand(params, x, y):
    """The gradient of that loss, in NumPy."""
    (w, b), _, last = params
    hidden = np.tanh(x @ w + b)
    delta = 2 * (hidden @ last["w"] + last["b"] - y) / y.size
    inner = (delta @ last["w"].T) * (1 - hidden**2)
    return [(x.T @ inner, inner.sum(0)), (), {"w": hidden.T @ delta, "b": delta.sum(0)}]


def flat(params):
    """The arrays of the network."""
    return [*params[0], *params[2].values()]


@pytest.fixture
def jax():
    """Real jax, on the CPU."""
    return importlib.import_module("jax")


def test_gradients_of_jax(jax):
    """A pytree of NumPy arrays is trained by the gradients that jax returns for it, as by NumPy's."""
    (params, x, y), (twin, _, _) = network(), network()
    opt, other = (fastopt.SGD(form, lr=0.1, momentum=0.9) for form in (params, twin))
    gradient = jax.jit(jax.grad(loss_with(jax.numpy.tanh, jax.numpy.mean)))
    for _ in range(5):
        opt.step(gradient(params, x, y))
        other.step(by_hand(twin, x, y))
    for ours, wanted in zip(flat(params), flat(twin), strict=True):
        assert_close(ours, wanted.astype(np.float64), TRAJECTORY)
    assert list(opt.state) == ["0.0", "0.1", "2.w", "2.b"]


def test_arrays_of_jax_are_not_copied(jax):
    """A gradient is read where jax keeps it."""
    p = np.ones(1000, F32)
    g = jax.numpy.full(1000, 2, F32)
    opt = fastopt.SGD([p], lr=0.25)
    from fastopt.backends.foreign import borrowed

    assert borrowed(g).__array_interface__["data"][0] == g.unsafe_buffer_pointer()
    opt.step([g])
    fastopt.fused.sgd(p, g, lr=0.25)
    assert (p == 0).all()
    assert (np.asarray(g) == 2).all()


def test_gradients_of_jax_in_float16(jax):
    """They are taken as they are, as NumPy's."""
    p = np.ones(3, F32)
    fastopt.SGD(p, lr=0.5).step(jax.numpy.ones(3, "float16"))
    assert (p == 0.5).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int32"])
def test_gradients_of_jax_of_other_dtypes(jax, dtype):
    """The advice works."""
    p = np.ones(3, F32)
    opt = fastopt.SGD(p, lr=0.5)
    g = jax.numpy.ones(3, dtype)
    with pytest.raises(TypeError, match=r"pass np\.asarray\(\.\.\., np\.float32\) of it"):
        opt.step(g)
    opt.step(np.asarray(g, F32))
    assert (p == 0.5).all()


def test_arrays_of_jax_as_parameters(jax):
    """They cannot be written: a copy of NumPy's is trained, and jax computes with that."""
    given = {"w": jax.numpy.ones(3, F32)}
    with pytest.raises(TypeError, match=r"pass np\.array\(\.\.\., np\.float32\) of it"):
        fastopt.SGD(given)
    with pytest.raises(TypeError, match=r"pass np\.array\(\.\.\., np\.float32\) of it"):
        fastopt.SGD(given["w"])
    params = jax.tree.map(lambda x: np.array(x, F32), given)
    opt = fastopt.SGD(params, lr=0.25)
    for _ in range(3):
        opt.step(jax.grad(lambda p: (p["w"] ** 2).sum())(params))
    np.testing.assert_array_equal(params["w"], F32(0.125))
    with pytest.raises(TypeError, match=r"bind np\.array\(\.\.\.\) of it"):
        opt.bind(given)


def test_gradients_of_autograd():
    """A nested structure as autograd returns it, for its own vector spaces of lists, tuples and dicts."""
    autograd = importlib.import_module("autograd")
    numpy = importlib.import_module("autograd.numpy")
    (params, x, y), (twin, _, _) = network(np.float64), network(np.float64)
    opt, other = fastopt.SGD(params, lr=0.1, momentum=0.9), fastopt.SGD(twin, lr=0.1, momentum=0.9)
    gradient = autograd.grad(loss_with(numpy.tanh, numpy.mean))
    for _ in range(5):
        opt.step(gradient(params, x, y))
        other.step(by_hand(twin, x, y))
    for ours, wanted in zip(flat(params), flat(twin), strict=True):
        assert_close(ours, wanted, TRAJECTORY)
