"""NumPy's arrays of 16 bits, float16 and ml_dtypes' bfloat16: the same bits as tensors of torch."""

import ml_dtypes
import numpy as np
import pytest
import torch
from halves import rounded
from pairs import usually
from torch_cases import KINDS

import fastopt
import fastopt.torch

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SHAPES = [(70, 80), (3,), (), (0, 2)]
STEPS = 4

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arrays(dtype, seed):
    """Arrays of a dtype, one of them in Fortran's order."""
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal(shape).astype(np.float32).astype(DTYPES[dtype]) for shape in SHAPES]
    return [np.asfortranarray(array) for array in made]


def tensor_of(array):
    """A tensor with the same numbers."""
    return torch.from_numpy(array.astype(np.float32)).to(getattr(torch, array.dtype.name))


def bits(values):
    """The bits of arrays or tensors of 16 bits."""
    return [
        np.ascontiguousarray(value).view(np.uint16).tobytes()
        if isinstance(value, np.ndarray)
        else value.detach().contiguous().view(torch.int16).numpy().tobytes()
        for value in values
    ]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(
            kind,
            dtype,
            marks=[] if (kind, dtype) in (("momentum", "bfloat16"), ("sgd", "float16")) else pytest.mark.exhaustive,
        )
        for kind in KINDS
        for dtype in DTYPES
    ],
)
def test_the_same_bits_as_tensors(kind, dtype):
    """New and bound gradients, in both storage orders, one of them missing now and then; states are float32."""
    name, options = KINDS[kind]
    params = arrays(dtype, 0)
    tensors = [torch.nn.Parameter(tensor_of(array)) for array in params]
    bound = arrays(dtype, 0)
    mine, also = getattr(fastopt, name)(params, **options), getattr(fastopt, name)(bound, **options)
    theirs = getattr(fastopt.torch, name)(tensors, **options)
    kept = [np.empty_like(param) for param in bound]
    also.bind(kept)
    for seed in range(STEPS):
        grads = arrays(dtype, 1 + seed)
        mine.step([np.ascontiguousarray(g) for g in grads])
        for place, g in zip(kept, grads, strict=True):
            place[...] = g
        also.step()
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = tensor_of(g)
        theirs.step()
        assert bits(params) == bits(bound) == bits(tensors)
    for i, tensor in enumerate(tensors):
        for state, value in theirs.state[tensor].items():
            if value.dim() and value.dtype != torch.float64:
                assert mine.state[i][state].dtype == np.float32
                np.testing.assert_array_equal(mine.state[i][state], value.numpy())


@pytest.mark.parametrize("dtype", usually(["bfloat16"], ["bfloat16", "float16"]))
def test_stages_and_states(dtype):
    """Clipping, averages in float32, states of 16 bits, zeroed gradients, a swap that goes back to the bit."""
    options = {"lr": 0.1, "max_grad_norm": 1.0, "ema_decay": 0.5, "state_dtype": dtype, "min_quantized_size": 0}
    params = arrays(dtype, 0)
    tensors = [torch.nn.Parameter(tensor_of(array)) for array in params]
    mine, theirs = fastopt.Adam(params, **options), fastopt.torch.Adam(tensors, **options)
    for seed in range(STEPS):
        grads = arrays(dtype, 1 + seed)
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = tensor_of(g)
        mine.step(grads, zero_grads=True)
        theirs.step()
        assert bits(params) == bits(tensors)
        assert not any(g.astype(np.float32).any() for g in grads)
        assert mine.grad_norm == pytest.approx(float(theirs.grad_norm), rel=1e-12)
    assert mine.state[0]["ema"].dtype == np.float32
    assert mine.state[0]["exp_avg"].dtype.name == dtype
    before = bits(params)
    with mine.swap_ema_weights(), theirs.swap_ema_weights():
        assert bits(params) == bits(tensors) != before
    assert bits(params) == before


@pytest.mark.parametrize("dtype", usually(["bfloat16"], DTYPES))
def test_state_dicts(dtype):
    """What is saved goes on to the same bits."""
    params = arrays(dtype, 0)
    mine = fastopt.AdamW(params, lr=0.1, amsgrad=True)
    mine.step(arrays(dtype, 1))
    others = [param.copy(order="K") for param in params]
    loaded = fastopt.AdamW(others, lr=0.1, amsgrad=True)
    loaded.load_state_dict(mine.state_dict())
    for optimizer in (mine, loaded):
        optimizer.step(arrays(dtype, 2))
    assert bits(params) == bits(others)


@pytest.mark.parametrize("dtype", usually(["bfloat16"], DTYPES))
def test_single_calls(dtype):
    """With a state in float32, in the parameter's order or in another one."""
    p, g = arrays(dtype, 0)[0], arrays(dtype, 1)[0]
    twin = p.copy(order="K")
    optimizer = fastopt.SGD(twin, lr=0.1, momentum=0.9)
    for order in ("F", "C"):
        velocity = np.zeros(p.shape, np.float32, order)
        mine = p.copy(order="K")
        fastopt.fused.momentum(mine, g, velocity, lr=0.1, momentum=0.9)
        if order == "F":
            optimizer.step(g)
        assert bits([mine]) == bits([twin])
        np.testing.assert_array_equal(velocity, optimizer.state[0]["momentum_buffer"])
    with pytest.raises(TypeError, match=r"velocity has dtype \w*16, p float32"):
        fastopt.fused.momentum(p, g, np.zeros_like(p), lr=0.1, momentum=0.9)


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_gradients_in_other_dtypes():
    """The error says how to make them, and that works; float32 ones will do."""
    p = np.zeros(5, ml_dtypes.bfloat16)
    optimizer = fastopt.SGD(p, lr=1.0)
    with pytest.raises(TypeError, match=r"pass \.astype\(ml_dtypes\.bfloat16\) of it"):
        optimizer.step(np.ones(5))
    with pytest.raises(TypeError, match="int16"):
        optimizer.step(np.ones(5, np.int16))  # as the bits are held here
    optimizer.step(np.ones(5, np.float32))
    with pytest.raises(TypeError, match="torch") as error:
        optimizer.step(torch.ones(5, dtype=torch.bfloat16))
    assert "pass .to(torch.bfloat16).view(torch.int16).numpy(force=True).view(ml_dtypes.bfloat16) of it" in str(
        error.value
    )
    there = torch.ones(5, dtype=torch.float64)
    optimizer.step(there.to(torch.bfloat16).view(torch.int16).numpy(force=True).view(ml_dtypes.bfloat16))
    assert p.tolist() == [-2.0] * 5


def test_what_is_rounded():
    """A step of half a unit in the last place, or less, is lost, and a larger one is not."""
    for dtype, digits in (("float16", 10), ("bfloat16", 7)):
        for step, moved in ((2.0**-digits, True), (2.0 ** -(digits + 2), False)):
            p = np.full(100, 1.0).astype(DTYPES[dtype])
            fastopt.SGD(p, lr=step).step(np.full(100, -1.0).astype(DTYPES[dtype]))
            want = rounded(np.float32([1.0 + step]), dtype)[0]
            assert (p.view(np.uint16) == want).all()
            assert (p.astype(np.float32) != 1.0).all() == moved
