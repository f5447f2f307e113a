"""Parameters, gradients, training and comparison with torch.optim, for the tests of fastopt.torch; no tests here."""

import functools
import inspect
import sys
import types
import unittest
from collections.abc import Mapping

import pytest
import torch
from fastopt.bench.cases import case
from tolerances import CARRIED_TORCH, assert_close
from torch.nn import Parameter
from torch.optim import lr_scheduler

import fastopt.torch as subject
from fastopt.rules import FAMILIES, RULES

SHAPES = [(4, 3), (), (17,), (2, 3, 5), (1, 1)]
NAMES = [name for name in FAMILIES if hasattr(torch.optim, name)]
# Rules with as many states as there are: SGD's, and of every other class the last one, which does the most. Options
# change what they do.
OF_KIND = {
    "sgd": {},
    "momentum": {"dampening": 0.1},
    "nesterov": {"weight_decay": 0.01},
    "adagrad": {"lr_decay": 0.01},
    "rmsprop_centered_momentum": {"lr": 0.01},
}
LAST = dict.fromkeys(FAMILIES[name].rules[-1].name for name in NAMES)
KINDS = {
    kind: case(kind, **{"lr": 0.1, **OF_KIND.get(kind, {"weight_decay": 0.1})})
    for kind in dict.fromkeys([*OF_KIND, *LAST])
}
ALL = pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
IN_16_BITS = {torch.bfloat16: ("sgd", "momentum", "adagrad", "adamw_amsgrad"), torch.float16: ("sgd",)}
STATES = {kind: RULES[kind].states for kind in KINDS}
# One of each, but no average of gradients: torch gives NaN if it does not fit the average of squares.
ONE_STATE_EACH = [(kind, names[len(names) // 2]) for kind, names in STATES.items() if names]
ALL_STATES = {state for family in FAMILIES.values() for state in family.states}
CARRIED_NAMES = {family.carried for family in FAMILIES.values() if family.carried}
REFUSAL = (RuntimeError, TypeError, ValueError)  # whichever fits best


def usual(kind, dtype, **others):
    """Whether a kind is usually tested in a dtype: in 16 bits few are, since each is a kernel that compiles long."""
    return dtype not in IN_16_BITS or kind in IN_16_BITS[dtype]


def all_in(dtype):
    """Parametrize a test by name and options as `ALL` does, usually by the kinds of a dtype."""
    marks = {kind: [] if usual(kind, dtype) else pytest.mark.exhaustive for kind in KINDS}
    cases = [pytest.param(*KINDS[kind], id=kind, marks=marks[kind]) for kind in KINDS]
    return pytest.mark.parametrize(("name", "options"), cases)


def all_with(*dtypes):
    """Parametrize a test by name, options and dtype, usually by the kinds of each dtype."""
    cases = [
        pytest.param(
            *KINDS[kind], dtype, id=f"{kind}-{dtype}", marks=[] if usual(kind, dtype) else pytest.mark.exhaustive
        )
        for kind in KINDS
        for dtype in dtypes
    ]
    return pytest.mark.parametrize(("name", "options", "dtype"), cases)


class Decorators(types.ModuleType):
    """A module of decorators for torch's own tests, which the table mentions and nothing here applies."""

    def __getattr__(self, name):
        """A decorator that takes anything."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **keywords: None})


@functools.cache
def optim_db():
    """torch's own table of optimizers under test.

    Its module asks for expecttest and two of decorators, which the table does not need, and which import thousands of
    functions of torch's for seconds.
    """
    names = ("device_type", "methods_invocations")
    stubs = {f"torch.testing._internal.common_{name}": Decorators(name) for name in names}
    stubs["expecttest"] = types.ModuleType("expecttest")
    stubs["expecttest"].TestCase = unittest.TestCase
    stubs = {name: stub for name, stub in stubs.items() if name not in sys.modules}
    sys.modules.update(stubs)
    try:
        from torch.testing._internal import common_optimizers
    finally:
        for name in stubs:
            del sys.modules[name]
    return {info.name: info for info in common_optimizers.optim_db if info.name in NAMES}


def parameters(shapes=SHAPES, dtype=torch.float32, seed=7):
    """Parameters of a small model, the same for a seed in every dtype, but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.complex128 if dtype.is_complex else torch.float64
    return [Parameter(torch.randn(shape, dtype=exact, generator=generator).to(dtype)) for shape in shapes]


@functools.cache
def noise(shape, dtype, seed):
    """Random numbers, which many tests share."""
    exact = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=exact, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradient(p, seed):
    """A gradient for a parameter."""
    return noise(p.shape, p.dtype, seed).clone()


def always(step, i):
    """Every parameter has a gradient at every step."""
    return True


def now_and_then(step, i):
    """Each parameter misses a gradient now and then, the first one also at the first step."""
    return (step + i) % 4 != 0


def late(step, i):
    """Parameters get their first gradient one after the other, the last one never."""
    return 3 * i <= step and i < len(SHAPES) - 1


def give(params, step, seed=0, given=always):
    """Give parameters the gradients of a step, the same ones for the same shapes and seed."""
    for i, p in enumerate(params):
        p.grad = gradient(p, 10_000 * seed + 100 * step + i) if given(step, i) else None


def train(optimizer, params, steps, seed=0, start=0, given=always, scheduler=None):
    """Take steps with random gradients; `start` is the first one's number."""
    for step in range(start, start + steps):
        give(params, step, seed, given)
        optimizer.step()
        if scheduler is not None:
            scheduler(step)


def advance(schedulers, metric):
    """Step schedulers; plateaus go by the metric."""
    for scheduler in schedulers:
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(metric)
        else:
            scheduler.step()


FLAGS = ("foreach", "fused")  # of torch, for other code that does the same
FUSED = [name for name in NAMES if "fused" in inspect.signature(getattr(torch.optim, name)).parameters]


def in_float64(optimizer, args, kwargs):
    """Have torch hand numbers on in float64: its own float32 is as far off as a float32 parameter."""
    family = next(FAMILIES[cls.__name__] for cls in type(optimizer).__mro__ if cls.__name__ in FAMILIES)
    for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        state = optimizer.state[p]
        if not state:
            averages = {name: torch.zeros_like(p) for name in family.states}
            state.update(
                {"step": torch.tensor(0.0), family.carried: torch.tensor(1.0, dtype=torch.float64), **averages}
            )
        state[family.carried] = state[family.carried].double()


def exact(reference):
    """Torch's optimizer, which hands numbers on in float64 where it hands any on."""
    if FAMILIES[type(reference).__name__].carried is not None:
        reference.register_step_pre_hook(in_float64)
    return reference


def make(name, params, plainest=False, **options):
    """An optimizer under test; or torch's, in its plainest code, without a flag that it does not have."""
    options = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    if plainest:
        options |= dict.fromkeys(FLAGS, False)
    if plainest:
        if name not in FUSED:
            options.pop("fused", None)
        return exact(getattr(torch.optim, name)(params, **options))
    return getattr(subject, name)(params, **options)


def pair(name, dtype=torch.float32, shapes=SHAPES, **options):
    """The same model twice, under the optimizer under test and under torch's plainest."""
    mine, theirs = parameters(shapes, dtype), parameters(shapes, dtype)
    return mine, theirs, make(name, mine, **options), make(name, theirs, plainest=True, **options)


def victim(kind="momentum", steps=2, shapes=SHAPES, dtype=torch.float32, **more):
    """Parameters and an optimizer that has taken steps."""
    name, options = KINDS[kind]
    params = parameters(shapes, dtype)
    optimizer = make(name, params, **{**options, **more})
    train(optimizer, params, steps)
    return params, optimizer


def with_gradient(p, g):
    """Give a parameter a gradient past torch's checks: through the memory of one that fits."""
    p.grad = torch.zeros_like(p)
    p.grad.data = g


def real(tensor):
    """A tensor as a NumPy array of real numbers."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).numpy()


def states(optimizer, p):
    """A parameter's states, without asking for them: torch's mapping makes what is missing."""
    return optimizer.state.get(p, {})


def assert_near(got, want, count):
    """Assert that tensors have one dtype and shape, and values within `count` epsilons."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert want.detach().isfinite().all()  # else nothing would be compared
    if got.dtype == torch.bfloat16:  # which NumPy does not have: float32 with a larger epsilon
        assert_close(real(got.float()), real(want.float()), count * 2**16)
    else:
        assert_close(real(got), real(want), count)


def assert_same(mine, theirs, ours, others, count):
    """Assert that two optimizers' parameters and states agree within `count` epsilons, and their counts exactly."""
    for p, q in zip(mine, theirs, strict=True):
        assert_near(p, q, count)
        got, want = states(ours, p), states(others, q)
        for name in ALL_STATES:
            assert (got.get(name) is None) == (want.get(name) is None)
            if want.get(name) is not None:
                assert_near(got[name], want[name], count)
        assert float(got.get("step", 0)) == float(want.get("step", 0))
        for name in CARRIED_NAMES:
            assert float(got.get(name, 1)) == pytest.approx(float(want.get(name, 1)), rel=CARRIED_TORCH)


def bits(value):
    """A value, with all tensors in it, as something that can be compared to the bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.is_sparse:
            return bits([value.shape, value.is_coalesced(), value._indices(), value._values()])
        plain = torch.empty(0 if value.is_meta else value.numel(), dtype=value.dtype)
        raw = b"" if value.is_meta else plain.copy_(value.reshape(-1)).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), value.stride(), raw
    if isinstance(value, Mapping):
        return {key: bits(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [bits(entry) for entry in value]
    return type(value), repr(value)


def snapshot(optimizer):
    """All that an error must not change: parameters, gradients, states and groups."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    return bits([params, [p.grad for p in params], [states(optimizer, p) for p in params], groups])


def without_gradients(optimizer):
    """Parameters, states and groups as they are, to the bit."""
    params, _, *rest = snapshot(optimizer)
    return [params, *rest]


def assert_refused(optimizer, act, match=None, error=REFUSAL):
    """Assert that an act raises an error that says what it must, and changes nothing."""
    before = snapshot(optimizer)
    with pytest.raises(error, match=match):
        act()
    assert snapshot(optimizer) == before
