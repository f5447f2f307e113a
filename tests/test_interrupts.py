"""A step is atomic: an interrupt, wherever it comes, finds nothing done or all, and training goes on from there.

So do loading, adding parameters and assigning options. `interrupts.py` interrupts at every point; timers and threads do
at some.
"""

import functools
import math
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from interrupts import EVERYWHERE, check, locked
from pairs import usually
from processes import DEADLOCK
from torch.nn import Parameter
from torch_cases import bits

import fastopt
import fastopt.torch
from fastopt.schedules import Constant, Linear, Plateau

SHAPES = ((2, 3), (4, 3), (5,))
BEFORE = (0, 1, 3)  # steps: the first one is interrupted, the second, and one that is like those before it
RATE = Linear(0.5, 0.1, 4)
INTERRUPTS = 25  # of each kind, at random moments


@functools.cache
def drawn(number, i, shape):
    """Random numbers for the gradient of a parameter in a step."""
    return np.random.default_rng([number, i]).standard_normal(shape)


def always(number, i):
    """Every parameter has a gradient."""
    return True


def by_turns(number, i):
    """Each parameter has a gradient in every other step, others in turn."""
    return (number + i) % 2 == 0


class OfNumpy:
    """Arrays under an optimizer; with groups, each is one by itself, with these options."""

    def __init__(self, name, dtypes=("f4", "f4"), groups=(), given=always, order="C", bound=False, **options):
        params = [np.full(shape, 0.5, dtype) for shape, dtype in zip(SHAPES, dtypes, strict=False)]
        self.grouped = [{"params": [p], **more} for p, more in zip(params, groups, strict=True)] if groups else None
        self.optimizer = getattr(fastopt, name)(self.grouped or params, **options)
        self.given, self.order = given, order
        self.bound = [np.zeros_like(p) for p in params] if bound else None
        if bound:
            self.optimizer.bind(self.bound)

    def params(self):
        """Those of all groups, also of one that was added."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def another(self):
        """A parameter that is none of them."""
        return np.full(SHAPES[-1], 0.5)

    def step(self, number):
        """Take a step with its own gradients."""
        grads = [
            drawn(number, i, p.shape).astype(p.dtype, self.order) if self.given(number, i) else None
            for i, p in enumerate(self.params())
        ]
        if self.bound:
            for array, grad in zip(self.bound, grads, strict=True):
                array[...] = grad
            self.optimizer.step()
        else:
            self.optimizer.step([[grad] for grad in grads] if self.grouped else grads)

    def seen(self):
        """Parameters, states, counts and options, by name."""
        seen = {f"parameter {i}": p.tobytes() for i, p in enumerate(self.params())}
        for i, group in enumerate(self.optimizer.param_groups):
            seen |= {f"{name} of group {i}": repr(value) for name, value in group.options().items()}
        for key, entry in self.optimizer.state.items():
            seen |= {f"{name} of {key}": np.asarray(value).tobytes() for name, value in entry.items()}
        return seen


class OfTorch:
    """Parameters of torch under an optimizer; with groups, each is one by itself, with these options."""

    def __init__(
        self,
        name,
        dtypes=(torch.float32, torch.float32),
        groups=(),
        given=always,
        transposed=False,
        gaps=False,
        sparse=False,
        **options,
    ):
        values = [torch.full(shape, 0.5, dtype=dtype) for shape, dtype in zip(SHAPES, dtypes, strict=False)]
        params = [Parameter(value.repeat_interleave(2, -1)[..., ::2] if gaps else value) for value in values]
        grouped = [{"params": [p], **more} for p, more in zip(params, groups, strict=True)] if groups else params
        self.optimizer = getattr(fastopt.torch, name)(grouped, **options)
        self.given, self.transposed, self.sparse = given, transposed, sparse

    def params(self):
        """Those of all groups, also of one that was added."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def another(self):
        """A parameter that is none of them."""
        return Parameter(torch.full(SHAPES[-1], 0.5, dtype=F8))

    def gradient(self, number, i, p):
        """A parameter's gradient in a step; only the first one's is sparse."""
        if not self.given(number, i):
            return None
        dense = torch.from_numpy(drawn(number, i, tuple(p.shape))).to(p.dtype)
        if self.sparse and i == 0:
            return torch.sparse_coo_tensor([[1]], dense[1:2], p.shape, check_invariants=False)
        return dense.t().contiguous().t() if self.transposed else dense.clone()

    def step(self, number):
        """Take a step with its own gradients."""
        for i, p in enumerate(self.params()):
            p.grad = self.gradient(number, i, p)
        self.optimizer.step()

    def seen(self):
        """Parameters, states, counts and options, by name; and whether autograd records."""
        params = self.params()
        seen = {f"parameter {i}": bits(p) for i, p in enumerate(params)}
        for i, group in enumerate(self.optimizer.param_groups):
            seen |= {f"{name} of group {i}": repr(value) for name, value in group.items() if name != "params"}
        numbers = {id(p): i for i, p in enumerate(params)}
        for p, entry in self.optimizer.state.items():
            seen |= {f"{name} of {numbers[id(p)]}": bits(value) for name, value in entry.items()}
        return {**seen, "autograd": torch.is_grad_enabled()}


F4, F8 = torch.float32, torch.float64
MOMENTUM, ADAM = {"lr": 0.5, "momentum": 0.9}, {"lr": 0.5, "eps": 1e-3}
TWO_RULES = ({"momentum": 0.0}, {"momentum": 0.5})

# In each: what is different about a step.
NUMPY = {
    "one launch": functools.partial(OfNumpy, "SGD", **MOMENTUM),
    "bound": functools.partial(OfNumpy, "SGD", bound=True, **MOMENTUM),
    "two dtypes": functools.partial(OfNumpy, "SGD", ("f4", "f8"), **MOMENTUM),
    "two rules": functools.partial(OfNumpy, "SGD", groups=TWO_RULES, lr=0.5),
    "counts": functools.partial(OfNumpy, "Adam", **ADAM),
    "a schedule": functools.partial(OfNumpy, "SGD", lr=RATE, momentum=0.9),
    "a function": functools.partial(OfNumpy, "NAdam", lr=lambda step: 0.5 / (step + 1), eps=1e-3),
    "missing gradients": functools.partial(OfNumpy, "Adam", ("f4", "f8"), given=by_turns, **ADAM),
    "transposed gradients": functools.partial(OfNumpy, "SGD", order="F", **MOMENTUM),
}
TORCH = {
    "one launch": functools.partial(OfTorch, "SGD", **MOMENTUM),
    "two dtypes": functools.partial(OfTorch, "SGD", (F4, F8), **MOMENTUM),
    "two rules": functools.partial(OfTorch, "SGD", groups=TWO_RULES, lr=0.5),
    "counts": functools.partial(OfTorch, "Adam", **ADAM),
    "a schedule": functools.partial(OfTorch, "Adam", lr=RATE, eps=1e-3),
    "missing gradients": functools.partial(OfTorch, "Adam", (F4, F8), given=by_turns, **ADAM),
    "transposed gradients": functools.partial(OfTorch, "Adam", transposed=True, **ADAM),
    "gaps": functools.partial(OfTorch, "Adam", gaps=True, **ADAM),
    "sparse gradients": functools.partial(OfTorch, "Adagrad", sparse=True, lr=0.5, eps=1e-3),
}
KINDS = {
    **{f"numpy, {name}": make for name, make in NUMPY.items()},
    **{f"torch, {name}": make for name, make in TORCH.items()},
}
# Most of the differences, each in one of the two.
USUAL = [f"numpy, {name}" for name in ("bound", "two rules", "a function", "a schedule", "transposed gradients")]
USUAL += [f"torch, {name}" for name in ("two dtypes", "counts", "missing gradients", "sparse gradients")]

ALL = pytest.param(1, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("every", [3, ALL])
@pytest.mark.parametrize("kind", usually(USUAL, KINDS))
def test_a_step_is_one_moment(kind, every):
    """By default of three points one, in each kind another one: what all kinds go through is met everywhere."""
    check(KINDS[kind], BEFORE[-1], every=every, first=1 + [*KINDS].index(kind) % every)


SOME = [20, ALL]  # of so many points one, where there are many


@pytest.mark.parametrize("every", SOME)
@pytest.mark.parametrize("before", usually(BEFORE[:1], BEFORE[:-1]))
@pytest.mark.parametrize("kind", usually(USUAL, KINDS))
def test_so_is_a_step_that_makes_states(kind, before, every):
    check(KINDS[kind], before, every=every)


@pytest.mark.parametrize("every", [3, ALL])
@pytest.mark.parametrize("kind", ["numpy, one launch", "numpy, counts", "torch, one launch"])
def test_so_is_a_step_after_an_assignment(kind, every):
    def assigned():
        subject = KINDS[kind]()
        for number in range(4):
            subject.step(number)
            subject.optimizer.param_groups[0]["lr"] = 0.25 * number
        return subject

    check(assigned, every=every)


@pytest.mark.exhaustive
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_one_moment_whatever_it_calls(kind, before):
    """Interrupted inside of NumPy and torch too, and each time that an instruction is reached."""
    check(KINDS[kind], before, folders=EVERYWHERE, once=False)


def load(make):
    """Load the state of a similar subject after more steps."""
    subject = make()
    for number in range(5):
        subject.step(number)
    saved = subject.optimizer.state_dict()
    return lambda subject: subject.optimizer.load_state_dict(saved)


def save(make):
    """Ask for the state."""
    return lambda subject: subject.optimizer.state_dict()


def add(make):
    """Add a group."""
    return lambda subject: subject.optimizer.add_param_group({"params": [subject.another()], "lr": 0.25})


ACTS = [
    ("numpy, two rules", save),
    ("numpy, two rules", load),
    ("numpy, a schedule", load),
    ("numpy, two rules", add),
    ("torch, two rules", save),
    ("torch, two rules", load),
    ("torch, a schedule", load),
    ("torch, two rules", add),
]


@pytest.mark.parametrize("every", SOME)
@pytest.mark.parametrize("before", usually([2], [0, 2]))
@pytest.mark.parametrize(("kind", "act"), ACTS, ids=[f"{kind}, {act.__name__}" for kind, act in ACTS])
def test_so_are_loading_saving_and_adding(kind, act, before, every):
    check(KINDS[kind], before, act(KINDS[kind]), every)


def assign(subject):
    """Assign numbers: one of them ends a schedule, where there is one."""
    subject.optimizer.param_groups[0].update({"lr": 0.25, "weight_decay": 0.5})


def drive(subject):
    """Assign a number and a schedule."""
    subject.optimizer.param_groups[0].update({"weight_decay": 0.5, "lr": Linear(0.25, 0.0, 6)})


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("act", [assign, drive])
@pytest.mark.parametrize("kind", ["numpy, two rules", "numpy, a schedule"])
def test_so_is_assigning(kind, act, before):
    check(KINDS[kind], before, act)


def assigned(make, act):
    """A subject of torch, which takes over only later what was assigned."""
    subject = make()
    for number in range(BEFORE[-1]):
        subject.step(number)
    act(subject)
    return subject


@pytest.mark.parametrize("every", [3, ALL])
@pytest.mark.parametrize("act", [assign, drive])
@pytest.mark.parametrize("kind", ["torch, two rules", "torch, a schedule"])
def test_so_is_taking_over_what_was_assigned(kind, act, every):
    check(functools.partial(assigned, KINDS[kind], act), act=save(None), every=every)


def with_a_plateau():
    """A subject of torch whose schedule has a memory that no description holds yet."""
    plateau = Plateau(0.5, patience=0)
    subject = OfTorch("SGD", lr=plateau)
    subject.step(0)
    plateau.update(1.0)
    plateau.update(2.0)
    return subject


def test_so_is_describing_the_memory_of_a_plateau():
    check(with_a_plateau, act=save(None))


class Toy:
    """An optimizer with two counts, and whether signals are held back between them."""

    def __init__(self, waits):
        self.optimizer = self
        self.waits = waits
        self.counts = [0, 0]

    def step(self, number):
        """Count here, and count there."""
        if not self.waits:
            return self.count()
        came = []
        before = signal.signal(signal.SIGINT, lambda *given: came.append(given))
        try:
            self.count()
        finally:
            signal.signal(signal.SIGINT, before)
            for given in came:
                before(*given)

    def count(self):
        """Between the two a signal may come."""
        self.counts[0] = max(0, self.counts[0] + 1)
        self.counts[1] = max(0, self.counts[1] + 1)

    def seen(self):
        """Both counts."""
        return {"here": self.counts[0], "there": self.counts[1]}

    def state_dict(self):
        """No lock is held."""


def test_what_is_torn_is_found_and_what_is_not_is_not():
    check(functools.partial(Toy, waits=True), 1, folders=(__file__,))
    with pytest.raises(AssertionError, match=r"torn at 1 places:\n  .*\(count\): done: here; not done: there$"):
        check(functools.partial(Toy, waits=False), 1, folders=(__file__,))


class Silent(Toy):
    """A toy that has no state dict."""

    def state_dict(self):
        """Fail."""
        raise ValueError("it says nothing")


def test_every_subject_is_asked_for_its_state_dict():
    """Also after one that fails, and each failure is a fault."""
    subjects = [("first", Silent(True)), ("second", Toy(True)), ("third", Silent(True))]
    words = "its state dict in another thread: ValueError: it says nothing"
    assert locked(subjects) == {"first": words, "third": words}


def large_in_numpy():
    """Arrays of two dtypes: a step, and the counts of steps that can be told from what it writes."""
    params = [np.zeros(2**20, "f4"), np.zeros(2**19)]
    grads = [np.ones_like(p) for p in params]
    optimizer = fastopt.SGD(params, lr=1.0)

    def counts():
        own = [entry["step"] for entry in optimizer.state.values()]
        return [*own, optimizer.param_groups[0]["step"], *(-end for p in params for end in (p.min(), p.max()))]

    return lambda: optimizer.step(grads), counts


def large_in_torch():
    """The same in torch, where a group with a schedule counts."""
    params = [Parameter(torch.zeros(2**20)), Parameter(torch.zeros(2**19, dtype=F8))]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = fastopt.torch.SGD(params, lr=Constant(1.0))

    def counts():
        return [optimizer.param_groups[0]["step"], *(-float(end) for p in params for end in p.detach().aminmax())]

    return optimizer.step, counts


def large_in_torch_with_states():
    """With gradients of 1, transposed here, AdaGrad's accumulator is the step count."""
    p = Parameter(torch.zeros(1024, 1024))
    p.grad = torch.ones(1024, 1024).t()
    optimizer = fastopt.torch.Adagrad([p], lr=1.0)
    state = optimizer.state[p]
    return optimizer.step, lambda: [float(state["step"]), *map(float, state["sum"].aminmax())]


def large_in_torch_with_gaps():
    """With momentum 1 and gradients of 1 the buffer counts steps, and the parameter moves by 1, 2, 3."""
    p = Parameter(torch.zeros(1024, 1024)[:, ::2])
    p.grad = torch.ones(1024, 512)
    optimizer = fastopt.torch.SGD([p], lr=1.0, momentum=1.0)

    def counts():
        buffers = [entry["momentum_buffer"] for entry in optimizer.state.values()]
        moved = [(math.sqrt(1 - 8 * float(end)) - 1) / 2 for end in p.detach().aminmax()]
        return [*moved, *(float(end) for buffer in buffers for end in buffer.aminmax())]

    return optimizer.step, counts


def by_timer(seconds):
    """Let SIGALRM come."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def by_thread(seconds):
    """Let another thread send SIGINT."""
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@pytest.fixture
def raising():
    """Both signals raise KeyboardInterrupt, for a while."""
    before = [(number, signal.signal(number, signal.default_int_handler)) for number in (signal.SIGINT, signal.SIGALRM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


LARGE = [large_in_numpy, large_in_torch, large_in_torch_with_states, large_in_torch_with_gaps]


@pytest.mark.usefixtures("raising")
@pytest.mark.parametrize("interrupt", [by_timer, by_thread])
@pytest.mark.parametrize("large", LARGE, ids=lambda large: large.__name__)
def test_signals_at_random_moments_find_all_counts_equal(large, interrupt):
    step, counts = large()
    step()
    rng, torn = random.Random(0), []
    for _ in range(INTERRUPTS):
        deadline = time.monotonic() + DEADLOCK
        try:
            interrupt(rng.uniform(0.0005, 0.01))
            while time.monotonic() < deadline:
                step()
        except KeyboardInterrupt:
            found = [float(count) for count in counts()]
            if len(set(found)) > 1:
                torn.append(found)
                step, counts = large()
                step()
        else:
            pytest.fail("the interrupt was lost")
    assert not torn, f"{len(torn)} of {INTERRUPTS} interrupts tore a step, such as {torn[0]}"
