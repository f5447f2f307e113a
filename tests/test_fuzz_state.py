"""State dicts with errors: loading raises a documented error and changes nothing, or the optimizer goes on.

Each seed is a case, and runs alone as it runs among the others.
"""

import contextlib
import copy
import random

import numpy as np
import pytest
import torch
import torch_cases
from pairs import swept
from torch.nn import Parameter

import fastopt
import fastopt.torch
from fastopt import schedules

SEEDS = [range(40), pytest.param(range(40, 400), marks=pytest.mark.exhaustive)]  # for each optimizer


def endless():
    """A list that contains itself."""
    found = []
    found.append(found)
    return found


def deep(kind):
    """A container within containers, deeper than Python's calls."""
    found = kind()
    for _ in range(20_000):
        found = {"name": "Warmup", "schedule": found, "steps": 2} if kind is dict else [found]
    return found


DEEP = [deep(dict), deep(list)]  # one for all: to take such a thing apart is slow
NUMBERS = [0, 1, -1, 3, 0.5, -0.5, 1e39, -0.0, float("nan"), float("inf"), 10**400, 2**51, 2**62, 2**63 - 1, 2**64]
OTHERS = [None, True, "word", "", b"bytes", (), 1j, {1, 2}, object, len, np.float32(0.5), np.int64(3), np.bool_(True)]
ARRAYS = [
    lambda: np.array(0.5),
    lambda: np.ones(3, np.float32),
    lambda: np.ones((2, 3), np.float32),
    lambda: np.ones((2, 3)),
    lambda: np.ones((2, 3), object),
    lambda: np.zeros((2, 3), "U3"),
    lambda: np.full((2, 3), np.nan, np.float32)[:, ::-1],
    lambda: torch.tensor(2.0),
    lambda: torch.ones(2, 3),
    lambda: torch.ones(2, 3, dtype=torch.complex64),
    lambda: torch.ones(2, 3, device="meta"),
    lambda: torch.ones(2, 3).to_sparse(),
]
SCHEDULES = [
    lambda: {"lr": {"name": "callable"}},
    lambda: {"lr": {"name": "Constant", "lr": 0.1}, "momentum": schedules.Linear(0.9, 0.5, 10).to_dict()},
    lambda: {"lr": schedules.Plateau(0.1).to_dict()},
    lambda: {"lr": {"name": "Linear", "lr": 0.1, "end": 1e39, "steps": 3}},
    lambda: {"eps": {"name": "Constant", "lr": 0.1}},
    lambda: {"betas": [{"name": "Constant", "lr": 0.9}, 0.99]},
    lambda: {"betas": [{"name": "Linear", "lr": 0.9, "end": 1.5, "steps": 3}, {"name": "callable"}]},
]


def drawn(rng):
    """A value that is valid nowhere, or elsewhere."""
    pool = rng.choice([NUMBERS, NUMBERS, OTHERS, ARRAYS, SCHEDULES, [list, dict, endless], DEEP])
    found = rng.choice(pool)
    return found() if pool in (ARRAYS, SCHEDULES) or found in (list, dict, endless) else found


def places(plain, depth=6):
    """List every place in nested dicts and lists, as (container, key)."""
    keys = list(plain) if isinstance(plain, dict) else range(len(plain)) if isinstance(plain, list) else []
    found = [(plain, key) for key in keys]
    for key in keys if depth else ():
        found += places(plain[key], depth - 1)
    return found


NAMES = ["lr", "step", "momentum_buffer", "sum", "exp_avg", 0, 1, ("a",), None]


def mutate(rng, plain):
    """Change something in nested dicts and lists: an entry, its name, its position, or its container."""
    container, key = rng.choice(places(plain))
    act = rng.choice(["replace", "replace", "replace", "delete", "add", "rename", "swap", "convert"])
    if act == "replace":
        container[key] = drawn(rng)
    elif act == "delete":
        del container[key]
    elif act == "add" and isinstance(container, dict):
        container[rng.choice(["new", 7])] = drawn(rng)
    elif act == "add":
        container.append(drawn(rng))
    elif act == "rename" and isinstance(container, dict):
        container[rng.choice(NAMES)] = container.pop(key)
    elif act == "swap":
        other, place = rng.choice(places(plain))
        container[key], other[place] = copy.copy(other[place]), copy.copy(container[key])
    elif isinstance(container[key], dict | list):
        container[key] = rng.choice([list, tuple, dict.fromkeys])(container[key])


def mutated(seed, plain):
    """A state dict with one to three things changed, by a seed."""
    rng = random.Random(seed)
    whole = [plain]
    for _ in range(rng.choice([1, 1, 2, 3])):
        with contextlib.suppress(TypeError, IndexError, KeyError):  # what is left is no container, or empty
            mutate(rng, whole if rng.random() < 0.02 else whole[0])
    return whole[0] if whole else None


def refuses(optimizer, given):
    """Load a state dict, and return whether it was refused; the error must be documented and not too long."""
    try:
        optimizer.load_state_dict(given)
    except (TypeError, ValueError) as error:
        message = str(error)
    else:
        return False
    assert 0 < len(message) < 1000
    return True


VALUES = [np.full((2, 3), 1.0, np.float32), np.arange(4.0)]
GRADIENTS = [np.full((2, 3), 0.5, np.float32), np.arange(4.0)[::-1].copy()]
KINDS = {  # what an optimizer is made of, and with; parameters are a and b
    "sgd": ("SGD", "groups", {"lr": schedules.Warmup(schedules.Cosine(0.1, 20), 3), "momentum": 0.9}),
    "adagrad": ("Adagrad", "names", {"lr": 0.1, "initial_accumulator_value": 0.5}),
    "rmsprop": ("RMSprop", "list", {"lr": lambda step: 0.1, "momentum": 0.5, "centered": True}),
    "adam": ("Adam", "groups", {"lr": 0.1, "weight_decay": 0.1}),
    "adam_plateau": ("Adam", "groups", {}),
    "adam_betas": ("Adam", "groups", {"lr": 0.1, "betas": (schedules.Linear(0.85, 0.95, 10), 0.99)}),
    "adamw": ("AdamW", "list", {"lr": 0.1, "amsgrad": True}),
}


def options_of(kind):
    """Its options; a Plateau has a memory of its own each time."""
    options = KINDS[kind][2]
    return options or {"lr": schedules.Plateau(0.1)}


@pytest.mark.parametrize("make", ["constructor", "dict", "list"])
def test_schedules_that_are_nested_too_deeply(make):
    """Fifty levels are shown, saved, compared and read again; one more is none, nor is a schedule within itself."""
    schedule = schedules.Constant(0.1)
    for _ in range(schedules.DEEPEST - 1):
        schedule = schedules.Warmup(schedule, 2)
    assert schedules.from_dict(schedule.to_dict()) == copy.deepcopy(schedule) == schedule
    assert len(repr(schedule)) > len("Warmup()") * schedules.DEEPEST
    assert hash(schedule) == hash(copy.copy(schedule))
    assert 0 < schedule(100) <= 0.1
    assert (2.0 * schedules.Constant(0.5) * schedules.Product((1.0, 0.5)))(3) == 0.5
    itself = {"name": "Warmup", "steps": 2}
    itself["schedule"] = itself if make == "dict" else endless()
    makes = {
        "constructor": [lambda: schedules.PerEpoch(schedule, 2), lambda: schedules.Sequence([0.1, schedule], [5])],
        "dict": [lambda: schedules.from_dict(itself), lambda: schedules.from_dict(DEEP[0])],
        "list": [lambda: schedules.from_dict(itself), lambda: schedules.from_dict(DEEP[1])],
    }
    for act in makes[make]:
        with pytest.raises(ValueError, match=r"50|nested too deeply"):
            act()


def test_metrics_beyond_all_floats():
    """A Plateau takes none, nor the memory of one; nothing has changed then."""
    plateau = schedules.Plateau(0.1)
    plateau.update(3.0)
    memory = plateau.state_dict()
    for act in (
        lambda: plateau.update(10**400),
        lambda: plateau.load_state_dict({**memory, "best": -(10**400)}),
        lambda: plateau.load_state_dict({**memory, "bad": 2**63 - 1}),
    ):
        with pytest.raises(ValueError, match=r"beyond all floats|below 2\*\*62"):
            act()
        assert plateau.state_dict() == memory


@pytest.mark.parametrize("step", [2**51, 2**62 - 1])
def test_counts_beyond_a_schedules_are_refused_at_once(step):
    """Not at the next step, whether assigned or loaded; a function of one's own may go further."""
    p = np.ones(3)
    optimizer = fastopt.SGD(p, lr=schedules.Linear(0.1, 0.2, 10))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["step"] = step
    for act in (lambda: optimizer.load_state_dict(saved), lambda: optimizer.param_groups[0].update({"step": step})):
        with pytest.raises(ValueError, match=r"below 2\*\*51"):
            act()
        assert optimizer.param_groups[0]["step"] == 0
    optimizer.param_groups[0]["lr"] = lambda count: 0.5
    optimizer.param_groups[0]["step"] = step
    optimizer.step(np.ones(3))
    assert (p[0], optimizer.param_groups[0]["step"]) == (0.5, step + 1)
    with pytest.raises(ValueError, match=r"below 2\*\*62"):
        optimizer.param_groups[0]["step"] = 2**62


class Arrays:
    """An optimizer for NumPy that has taken some steps, and what it trains."""

    def __init__(self, kind, steps):
        name, form, _ = KINDS[kind]
        self.params = [value.copy() for value in VALUES]
        named = dict(zip("ab", self.params, strict=True))
        forms = {"list": self.params, "names": named, "groups": [{"params": p} for p in self.params]}
        self.optimizer = getattr(fastopt, name)(forms[form], **options_of(kind))
        grads = dict(zip("ab", GRADIENTS, strict=True)) if form == "names" else GRADIENTS
        for _ in range(steps):
            self.optimizer.step(grads)
        self.step = lambda: self.optimizer.step(grads)

    def contents(self):
        """All that an error must not change; as text, in which NaN equals itself."""
        saved = self.optimizer.state_dict()
        states = {
            key: [np.asarray(value).tobytes() for value in state.values()] for key, state in saved["state"].items()
        }
        return [p.tobytes() for p in self.params], states, repr(saved["param_groups"])


class Tensors:
    """The same for torch."""

    def __init__(self, kind, steps):
        name, form, _ = KINDS[kind]
        self.params = [Parameter(torch.from_numpy(value.copy())) for value in VALUES]
        for p, gradient in zip(self.params, GRADIENTS, strict=True):
            p.grad = torch.from_numpy(gradient)
        named = list(zip("ab", self.params, strict=True))
        forms = {"list": self.params, "names": named, "groups": [{"params": [p]} for p in self.params]}
        self.optimizer = getattr(fastopt.torch, name)(forms[form], **options_of(kind))
        for _ in range(steps):
            self.optimizer.step()
        self.step = self.optimizer.step

    def contents(self):
        """All that an error must not change."""
        return torch_cases.snapshot(self.optimizer), torch_cases.bits(self.optimizer.state_dict())


@pytest.mark.parametrize("seeds", SEEDS, ids=["few", "many"])
@swept(1, kind=KINDS, make=[Arrays, Tensors])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_state_dicts(make, kind, seeds):
    """What is loaded can be stepped, and saved and loaded again; what is refused has changed nothing."""
    saved = make(kind, 3).optimizer.state_dict()
    subject, twin, refused = make(kind, 1), make(kind, 1), 0
    for seed in seeds:
        if refuses(subject.optimizer, mutated(seed, copy.deepcopy(saved))):
            refused += 1
            if refused % 10 == 0:  # all that is saved and shown is compared each time
                subject.step()
                twin.step()
            assert subject.contents() == twin.contents(), seed
        else:
            subject.step()
            make(kind, 0).optimizer.load_state_dict(subject.optimizer.state_dict())
            subject, twin = make(kind, 1), make(kind, 1)
    assert len(seeds) / 4 < refused < len(seeds)
