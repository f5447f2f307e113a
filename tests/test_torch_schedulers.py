"""A schedule in an optimizer beside another library's scheduler: where that starts, and who is warned."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch_cases
from pairs import swept
from schedule_cases import CASES
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR
from torch_cases import NAMES, give

import fastopt.torch as subject
from fastopt.schedules import Constant, Cosine, Linear, OneCycle, Plateau, Warmup

RISING = Warmup(Cosine(0.1, 100), 10)  # from 0


def rising(step):
    """A rate that begins with 0."""
    return 0.02 * step


def kept(optimizer):
    """The optimizer itself."""
    return optimizer


def reloaded(optimizer):
    """Another one, with its state dict."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    other = type(optimizer)(params, lr=optimizer.param_groups[0]["lr"])
    if optimizer._groups[0].schedules["lr"] is rising:
        other = type(optimizer)(params, lr=rising)
    other.load_state_dict(optimizer.state_dict())
    return other


WAYS = {
    "constructor": kept,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "load_state_dict": reloaded,
}
SCHEDULERS = {  # each goes on from where it begins: its factor of the base in the third step
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 1, 0.5), 0.25),
    "MultiStepLR": (lambda o: lr_scheduler.MultiStepLR(o, [1, 2], 0.5), 0.25),
    "ExponentialLR": (lambda o: lr_scheduler.ExponentialLR(o, 0.5), 0.25),
    "LinearLR": (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.5, 4), 0.75),
    "ConstantLR": (lambda o: lr_scheduler.ConstantLR(o, 0.5, 9), 0.5),
    "PolynomialLR": (lambda o: lr_scheduler.PolynomialLR(o, 4), 0.5),
    "CosineAnnealingLR": (lambda o: lr_scheduler.CosineAnnealingLR(o, 4), 0.5),
    "CosineAnnealingWarmRestarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4), 0.5),
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 - step / 4), 0.5),  # as transformers makes them
    "MultiplicativeLR": (lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.5), 0.25),
    "SequentialLR": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.5, 1.0, 2), lr_scheduler.ExponentialLR(o, 0.5)], [9]
        ),
        1.0,
    ),
    "ChainedScheduler": (
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(o, 1, 0.5), lr_scheduler.ExponentialLR(o, 0.5)]),
        0.0625,
    ),
}


def rates_beside(optimizer, make, steps=3):
    """Train with a scheduler; return the rates of the steps, and the warnings."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    rates = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler = make(optimizer)
        for step in range(steps):
            give(params, step)
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    ours = [warning for warning in caught if "torch_scheduler" in str(warning.message)]
    assert {warning.filename for warning in ours} <= {__file__}  # points at the user's line
    return rates, [str(warning.message) for warning in ours]


@swept(scheduler=SCHEDULERS, schedule=[RISING, rising], way=WAYS)
def test_a_scheduler_starts_from_the_peak(scheduler, schedule, way):
    """Not from step 0's rate, which would train nothing; and one warning names the way out."""
    make, factor = SCHEDULERS[scheduler]
    optimizer = WAYS[way](subject.AdamW(torch_cases.parameters(), lr=schedule))
    base = 0.1 if schedule is RISING else 0.02
    rates, messages = rates_beside(optimizer, make)
    assert rates[2] == pytest.approx(factor * base)
    assert min(rates) > 0
    assert optimizer.param_groups[0]["initial_lr"] == base
    [message] = messages
    assert "lr of group 0" in message
    assert "torch_scheduler(optimizer)" in message


@pytest.mark.parametrize("name", NAMES)
def test_the_way_that_the_warning_names(name):
    """A number in the optimizer, and the schedule as a scheduler: no warning, and the schedule's own rates."""
    optimizer = torch_cases.make(name, torch_cases.parameters(), lr=RISING(0))
    rates, messages = rates_beside(optimizer, RISING.torch_scheduler, 20)
    assert rates == [RISING(step) for step in range(20)]
    assert messages == []
    assert optimizer.param_groups[0]["initial_lr"] == 0


def test_one_warning_for_all_groups():
    """It names one of them; each goes on from its own peak, also one that is added later."""
    params = torch_cases.parameters()
    optimizer = subject.SGD(
        [
            {"params": params[:1]},
            {"params": params[1:2], "lr": Warmup(Cosine(0.3, 50), 5)},
            {"params": params[2:3], "lr": 0.7},
        ],
        lr=RISING,
    )
    optimizer.add_param_group({"params": params[3:], "lr": rising})
    _, messages = rates_beside(optimizer, SCHEDULERS["CosineAnnealingLR"][0])
    assert len(messages) == 1
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 0.3, 0.7, 0.02]


@pytest.mark.parametrize("way", [kept, copy.deepcopy], ids=["optimizer", "deepcopy"])
def test_a_number_of_yours_ends_a_schedule_without_a_word(way):
    """That is what it is for: also before a copy's first step, and with a scheduler that is made after it."""
    optimizer = way(subject.SGD(torch_cases.parameters(), lr=RISING))
    optimizer.param_groups[0]["lr"] = 0.5
    rates, messages = rates_beside(optimizer, SCHEDULERS["StepLR"][0])
    assert rates == [0.5, 0.25, 0.125]
    assert messages == []
    assert optimizer.param_groups[0]["initial_lr"] == 0.5


def test_timms_schedulers_and_those_that_cycle():
    """timm asks for the base as torch does; OneCycleLR writes rate and momentum, each of which a schedule may drive."""
    optimizer = subject.AdamW(torch_cases.parameters(), lr=RISING)
    [group] = optimizer.param_groups
    assert group.setdefault("initial_lr", group["lr"]) == 0.1
    cycle = OneCycle(0.1, 100)
    optimizer = subject.SGD(torch_cases.parameters(), lr=cycle, momentum=cycle.momentum())
    rates, messages = rates_beside(optimizer, lambda o: lr_scheduler.OneCycleLR(o, 0.2, 100))
    assert rates[0] == pytest.approx(0.2 / 25)
    assert len(messages) == 1
    assert optimizer.param_groups[0]["schedules"] == {}


@pytest.mark.parametrize("way", [kept, copy.deepcopy], ids=["optimizer", "deepcopy"])
@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, 2, 2, cycle_momentum=False),
    ],
    ids=["ReduceLROnPlateau", "CyclicLR"],
)
def test_schedulers_that_ask_for_no_base(make, way):
    """They write, and so end the schedule; that shows which one did."""
    optimizer = way(subject.SGD(torch_cases.parameters(), lr=Warmup(Cosine(0.1, 10), 3, start=0.5)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler = make(optimizer)
        for step in range(4):
            give([p for group in optimizer.param_groups for p in group["params"]], step)
            optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    assert len([1 for warning in caught if "lr of group 0" in str(warning.message)]) == 1
    assert optimizer.param_groups[0]["schedules"] == {}


def test_a_schedule_that_has_ended_is_no_base():
    """Though its last number is put back later, a scheduler starts from that number, without a word."""
    optimizer = subject.SGD(torch_cases.parameters(), lr=Cosine(0.1, 10))
    [group] = optimizer.param_groups
    torch_cases.train(optimizer, group["params"], 5)
    last = group["lr"]
    for rate in (0.5, last):
        group["lr"] = rate
        torch_cases.train(optimizer, group["params"], 1)
    rates, messages = rates_beside(optimizer, lambda o: lr_scheduler.StepLR(o, 100))
    assert rates == [last] * 3
    assert messages == []


def test_a_number_of_yours_beside_a_scheduler():
    """Reading the base, or an existing scheduler, does not make it the scheduler's."""
    optimizer = subject.SGD(torch_cases.parameters(), lr=RISING)
    [group] = optimizer.param_groups
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert group["initial_lr"] == group.get("initial_lr") == 0.1
        group["lr"] = 0.3
        torch_cases.train(optimizer, group["params"], 2)
        RISING.torch_scheduler(optimizer)
        torch_cases.train(optimizer, group["params"], 2)
        group["lr"] = Cosine(0.1, 100)
        torch_cases.train(optimizer, group["params"], 2)
        group["lr"] = 0.3
        torch_cases.train(optimizer, group["params"], 2)
    assert group["lr"] == 0.3


def test_swalr_beside_a_schedule():
    """It begins where the schedule peaks, and the warning says that the schedule is over."""
    optimizer = subject.SGD(torch_cases.parameters(), lr=RISING)
    rates, messages = rates_beside(optimizer, lambda o: SWALR(o, 0.05, 2, "linear"), 4)
    assert rates[-1] == pytest.approx(0.05)
    assert len(messages) == 1


def test_who_only_looks_changes_nothing():
    """The peak can be read, by any way of reading; the schedule goes on, and torch.optim loads what was saved."""
    params = torch_cases.parameters()
    optimizer = subject.AdamW(params, lr=RISING)
    [group] = optimizer.param_groups
    assert group["initial_lr"] == group.get("initial_lr") == 0.1
    assert "initial_lr" in group
    assert "initial_lr" not in optimizer.state_dict()["param_groups"][0]  # reading stores nothing
    with pytest.raises(KeyError, match="momentum"):
        group["momentum"]
    assert "initial_lr" not in subject.AdamW(params, lr=0.1).param_groups[0]
    torch_cases.train(optimizer, params, 3)
    assert group["lr"] == RISING(2)
    torch.optim.AdamW(params).load_state_dict(optimizer.state_dict())


def test_a_resumed_scheduler_has_a_base():
    """torch's, made with ``last_epoch``, asks whether there is one."""
    optimizer = subject.AdamW(torch_cases.parameters(), lr=RISING)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 0.5, last_epoch=4)
    assert scheduler.get_last_lr() == [0.05]


@pytest.mark.parametrize("schedule", CASES, ids=repr)
def test_the_peak_of_every_schedule(schedule):
    """The highest of all values in its span, if it has few enough steps to evaluate each."""
    span = min(schedule._span(), 5000)
    highest = schedule(np.arange(span + 1)).max()
    assert schedule.maximum() == highest if span < 5000 else schedule.maximum() >= highest * 0.999


def test_the_peak_of_what_is_long_or_no_schedule():
    """A long one is evaluated at some steps; a Plateau and a function at the first with a rate above 0."""
    assert Warmup(Cosine(0.1, 10**9), 10**6).maximum() == pytest.approx(0.1, rel=1e-3)
    for lr, want in ((Plateau(0.3), 0.3), (lambda step: 0.0 if step < 5000 else 0.2, 0.2), (lambda step: 0.0, 0.0)):
        optimizer = subject.SGD(torch_cases.parameters([(2,)]), lr=lr)
        assert optimizer.param_groups[0]["initial_lr"] == want
    assert Constant(0.0).maximum() == 0.0
    assert Linear(0.0, 0.7, 10).maximum() == 0.7
