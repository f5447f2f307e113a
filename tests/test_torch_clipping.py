"""`fastopt.torch.clip_grad_norm_`, beside torch's own."""

import copy
import math
import warnings

import pytest
import torch
from torch.nn.utils import clip_grad_norm_ as of_torch

from fastopt.torch import clip_grad_norm_

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
LAYOUTS = {
    "dense": lambda g: g,
    "transposed": lambda g: g.t().contiguous().t(),
    "every other": lambda g: g.repeat_interleave(2, 1)[:, ::2],
    "a slice": lambda g: torch.cat([g, g])[len(g) :],
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def parameters(*gradients):
    """Parameters with these gradients; None for those without one."""
    made = []
    for gradient in gradients:
        made.append(torch.nn.Parameter(torch.zeros(2) if gradient is None else torch.zeros_like(gradient.detach())))
        made[-1].grad = gradient
    return made


def random(*shapes, dtype=torch.float32, seed=0):
    """Random gradients."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.complex128).to(dtype) if dtype.is_complex
            else torch.randn(shape, generator=generator).to(dtype) for shape in shapes]  # fmt: skip


def assert_like_torch(gradients, *arguments, **options):
    """Assert that norm, gradients and errors are torch's; torch rounds a factor to halves."""
    ours, theirs = (parameters(*copies) for copies in (gradients, [same(gradient) for gradient in gradients]))
    got, want = clip_grad_norm_(ours, *arguments, **options), of_torch(theirs, *arguments, **options)
    assert (got.dtype, got.shape, got.device, got.requires_grad) == (want.dtype, want.shape, want.device, False)
    half = any(gradient is not None and gradient.itemsize == 2 for gradient in gradients)
    tolerances = {"rtol": 2e-2, "atol": 1e-3} if half else {}
    torch.testing.assert_close(got, want, equal_nan=True, **tolerances)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, equal_nan=True, **tolerances)
    return ours, got


def same(gradient):
    """A copy that lies as a gradient does."""
    return None if gradient is None else copy.deepcopy(gradient)


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("most", [0.5, 1e4])
def test_layouts(dtype, layout, most):
    assert_like_torch([LAYOUTS[layout](g) for g in random((30, 50), (3, 4), (0, 3), dtype=dtype)], most)


def test_channels_last():
    gradients = [g.to(memory_format=torch.channels_last) for g in random((4, 3, 5, 5), (2, 8, 3, 3))]
    assert_like_torch(gradients, 1.0)


def test_several_dtypes():
    """The norm has the dtype that torch would stack them in."""
    for dtypes in (DTYPES[:2], [torch.float16, torch.bfloat16], [torch.bfloat16, torch.bfloat16], DTYPES[2:5], DTYPES):
        assert_like_torch([g for dtype in dtypes for g in random((3, 4), (5000,), dtype=dtype)], 1.0)


@pytest.mark.parametrize("norm_type", [2, 2.0, "2", 1, 3.5, math.inf, "inf", -math.inf, 0])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_norms(norm_type, foreach):
    assert_like_torch(random((3, 4), (), (500,)), 0.3, norm_type, False, foreach)


@pytest.mark.parametrize("most", [0, 1, -1.0, math.inf, math.nan, torch.tensor(0.5), "0.5"], ids=str)
def test_limits(most):
    assert_like_torch(random((3, 4), (500,)), most)


def test_parameters_without_gradients():
    assert_like_torch([None, *random((3,)), None], 0.1)
    assert_like_torch([None, None], 0.1)
    assert_like_torch([], 0.1)


@pytest.mark.parametrize(
    "form", [iter, tuple, set, lambda given: (p for p in given), lambda given: dict.fromkeys(given)]
)
def test_iterables(form):
    given, other = (parameters(*random((3, 4), (50,))) for _ in range(2))
    torch.testing.assert_close(clip_grad_norm_(form(given), 1.0), of_torch(other, 1.0))
    torch.testing.assert_close(of_torch(given, 10.0), torch.tensor(1.0))


def test_one_tensor():
    (p,) = parameters(*random((3, 4)))
    clip_grad_norm_(p, 0.25)
    torch.testing.assert_close(p.grad.norm(), torch.tensor(0.25))


@pytest.mark.parametrize("clip", [clip_grad_norm_, of_torch])
def test_an_empty_generator_is_warned_of(clip):
    """At the caller's line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert clip((p for p in ()), 1.0).item() == 0.0
        assert clip(iter(()), 1.0).item() == 0.0
    assert [(str(each.message)[:37], each.filename) for each in caught] == [
        ("`parameters` is an empty generator, n", __file__)
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("clip", [clip_grad_norm_, of_torch])
def test_not_finite(value, clip):
    """All becomes NaN or 0; or an error, and nothing."""
    gradients = random((3, 4), (5000,))
    gradients[1][4500] = value
    given = parameters(*map(same, gradients))
    with pytest.raises(RuntimeError, match=r"total norm of order 2\.0 .* is non-finite"):
        clip(given, 1.0, error_if_nonfinite=True)
    for p, gradient in zip(given, gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0, equal_nan=True)
    assert_like_torch(gradients, 1.0)


def test_finite_gradients_count_as_finite():
    """Where torch's sum overflows, in float32 and in half precision."""
    for dtype, value in ((torch.float32, 1e30), (torch.float16, 6e4), (torch.bfloat16, 1e30), (torch.float64, 1e300)):
        (p,) = parameters(torch.full((100,), value, dtype=dtype))
        norm = clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
        assert norm.isfinite() or dtype is torch.float16  # in which the norm itself has no place
        torch.testing.assert_close(p.grad, torch.full((100,), 0.1, dtype=dtype))


@pytest.mark.parametrize("seed", range(5))
def test_no_less_exact_than_torch(seed):
    """Neither the norm nor the clipped gradients."""
    gradients = random((300, 300), (70_001,), (5,), seed=seed)
    want = math.sqrt(math.fsum(x * x for g in gradients for x in g.double().flatten().tolist()))
    ours, theirs = (parameters(*map(same, gradients)) for _ in range(2))
    got, other = clip_grad_norm_(ours, 1.0), of_torch(theirs, 1.0)
    assert abs(got.double() - want) <= abs(other.double() - want)
    clipped = torch.cat([g.double().flatten() for g in gradients]) / (want + 1e-6)
    far, further = ((torch.cat([p.grad.flatten() for p in given]).double() - clipped).abs().max()
                    for given in (ours, theirs))  # fmt: skip
    assert far <= further


def test_versions():
    """Autograd sees what is written; nothing is where nothing is clipped."""
    given = parameters(*random((3, 4), (50,)))
    before = [p.grad._version for p in given]
    clip_grad_norm_(given, 1e9)
    assert [p.grad._version for p in given] == before
    clip_grad_norm_(given, 1.0)
    assert [p.grad._version for p in given] == [version + 1 for version in before]


def test_a_gradient_that_backward_needs():
    """Autograd refuses to go through a gradient that was clipped since."""
    (p,) = parameters(*random((3, 4)))
    weight = torch.ones(3, 4, requires_grad=True)
    loss = (weight * p.grad).sum()
    clip_grad_norm_(p, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("clip", [clip_grad_norm_, of_torch])
def test_gradients_with_a_graph(clip):
    """Clipping is not recorded."""
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    (p.grad,) = torch.autograd.grad((p**2).sum(), p, create_graph=True)
    graph = p.grad.grad_fn
    norm = clip([p], 1.0)
    assert norm.item() == 10.0
    assert not norm.requires_grad
    assert p.grad.grad_fn is graph
    torch.testing.assert_close(p.grad.detach(), torch.tensor([0.6, 0.8]))


def test_one_gradient_twice():
    """It counts twice, and is multiplied twice, as by torch."""
    (p,), (q,) = (parameters(g) for g in random((3, 4)) + random((3, 4)))
    torch.testing.assert_close(clip_grad_norm_([p, p], 1.0), of_torch([q, q], 1.0))
    torch.testing.assert_close(p.grad, q.grad)


def outcome(clip, gradient):
    """What becomes of a gradient: the norm, and the gradient; or the type of the error."""
    (p,) = parameters(gradient)
    try:
        return clip(p, 0.1), p.grad
    except (RuntimeError, NotImplementedError) as error:
        return type(error), None


class Named(torch.Tensor):
    """A subclass, which may mean something else."""


OTHERS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "no memory": lambda: torch._efficientzerotensor((3,)),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch._neg_view(torch.ones(3)),
    "another device": lambda: torch.ones(3, device="meta"),
    "a subclass": lambda: torch.ones(3).as_subclass(Named),
    "another dtype": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "one for all": lambda: torch.ones(1).expand(3),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_is_left_to_torch(make):
    """Whatever it does with that."""
    (got, clipped), (want, expected) = (outcome(clip, make()) for clip in (clip_grad_norm_, of_torch))
    assert type(got) is type(want)
    if isinstance(want, type) or want.is_meta:
        assert got is want or got.is_meta
    else:
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(clipped, expected)


def test_default_devices_and_threads():
    """The norm is where the gradients are, and nothing of torch's settings changes."""
    threads = torch.get_num_threads()
    with torch.device("meta"):
        norm = clip_grad_norm_(parameters_on_cpu(), 1.0)
    assert norm.device.type == "cpu"
    assert torch.get_num_threads() == threads


def parameters_on_cpu():
    """One parameter, whatever the default device."""
    p = torch.nn.Parameter(torch.zeros(3, device="cpu"))
    p.grad = torch.ones(3, device="cpu")
    return [p]


@pytest.mark.filterwarnings("ignore")
def test_under_compile():
    """torch.compile leaves the function alone."""
    given, other = parameters(*random((3, 4))), parameters(*random((3, 4)))

    def clipped(parameters):
        return clip_grad_norm_(parameters, 1.0) * 2

    torch.testing.assert_close(torch.compile(clipped, backend="eager")(given), of_torch(other, 1.0) * 2)
    torch.testing.assert_close(given[0].grad, other[0].grad)
