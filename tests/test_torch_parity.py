"""Trajectories against torch.optim in its plainest code: every configuration that torch tests."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch_cases
from pairs import swept, usually
from rule_cases import BY_STATES, HALVES
from tolerances import HALF, TORCH, TORCH_TRAINING
from torch.nn import Parameter
from torch.optim import lr_scheduler, swa_utils
from torch_cases import (
    CARRIED_NAMES,
    KINDS,
    NAMES,
    STATES,
    advance,
    always,
    assert_near,
    assert_same,
    bits,
    late,
    now_and_then,
    train,
)

from fastopt.rules import FAMILIES

STEPS = 30
SCHEDULED = 16  # steps with a scheduler
DB = torch_cases.optim_db()


def rule_of(name, options):
    """The rule that these options choose."""
    return FAMILIES[name].choose(torch_cases.make(name, torch_cases.parameters(), **options).param_groups[0]).name


FLAGS = [
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"fused": False},
    {"foreach": True, "fused": False},
    {"foreach": False, "fused": True},
]
CONFIGURATIONS = [(name, entry.kwargs) for name in NAMES for entry in DB[name].optim_inputs_func("cpu")]
ONCE = list({rule_of(*configuration): configuration for configuration in reversed(CONFIGURATIONS)}.values())
EXTREMES = [
    ("SGD", {"lr": 0.0, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 1.0, "dampening": 1.0}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 1.5, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("SGD", {"lr": 0.05, "dampening": 0.5}),
    ("SGD", {"lr": 0.05, "weight_decay": torch.tensor(0.1), "momentum": 0.9}),
    ("Adagrad", {"lr": 0.1, "eps": 0.0, "lr_decay": 3.0}),
    ("Adagrad", {"lr": 0.1, "eps": 10.0, "initial_accumulator_value": 5.0, "maximize": True}),
    ("Adagrad", {"lr": torch.tensor([0.1], dtype=torch.float64), "lr_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.5, "eps": 1.0, "momentum": 0.9, "centered": True, "maximize": True}),
    ("RMSprop", {"lr": 0.01, "alpha": 1.0, "eps": 1.0}),
    ("Adam", {"lr": 0.1, "betas": (0.0, 0.0), "eps": 1.0}),
    ("Adam", {"lr": torch.tensor(0.1, dtype=torch.float64), "betas": (0.999, 0.5), "amsgrad": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.5, "decoupled_weight_decay": True, "maximize": True}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.0, "eps": 0.1}),
]


def assert_parity(name, dtype, given, **options):
    """Thirty steps agree with torch's."""
    mine, theirs, ours, others = torch_cases.pair(name, dtype, **options)
    train(ours, mine, STEPS, given=given)
    train(others, theirs, STEPS, given=given)
    assert_same(mine, theirs, ours, others, TORCH)


@swept(1, configuration=CONFIGURATIONS + EXTREMES, dtype=[torch.float32, torch.float64])
def test_trajectories(configuration, dtype):
    """Parameters, states and counts, with gradients that miss now and then."""
    name, options = configuration
    assert_parity(name, dtype, now_and_then, **options)


@pytest.mark.parametrize(("name", "options"), usually(ONCE, CONFIGURATIONS + EXTREMES))
def test_foreach_and_fused_change_nothing(name, options):
    """They stand in the groups, as torch.optim has them, and all of them lead to the same bits."""
    ends = []
    for flags in ({}, *FLAGS):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, **options, **flags)
        train(optimizer, params, 6, given=now_and_then)
        given = {key: flag for key, flag in flags.items() if key in optimizer.defaults}
        assert {key: optimizer.param_groups[0][key] for key in given} == given
        ends.append(bits([params, [torch_cases.states(optimizer, p) for p in params]]))
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize(
    ("configuration", "given"),
    usually([(each, late) for each in ONCE], itertools.product(CONFIGURATIONS + EXTREMES, [always, late])),
)
def test_gradients_that_come_always_or_late(configuration, given):
    """A parameter's count, and its first gradient's dampening, are its own."""
    name, options = configuration
    assert_parity(name, torch.float64, given, **options)


@pytest.mark.parametrize(
    ("configuration", "dtype"),
    usually(
        [(each, torch.complex64) for each in ONCE],
        itertools.product(CONFIGURATIONS + EXTREMES, [torch.complex64, torch.complex128]),
    ),
)
def test_complex_parameters(configuration, dtype):
    """Complex numbers are pairs of real ones, AdaGrad's accumulator too."""
    name, options = configuration
    assert_parity(name, dtype, now_and_then, **options)


@swept(1, ids=str, kind=KINDS, flags=[{}, *FLAGS[:3]])
def test_mixed_dtypes_in_one_optimizer(kind, flags):
    """Float32, float64 and complex parameters side by side, each as if it were alone."""
    name, options = KINDS[kind]
    dtypes = [torch.float32, torch.float64, torch.complex64, torch.float32, torch.complex128]
    mine, theirs = ([torch_cases.parameters([(3, 4)], dtype)[0] for dtype in dtypes] for _ in range(2))
    ours, others = torch_cases.make(name, mine, **options, **flags), torch_cases.make(name, theirs, True, **options)
    train(ours, mine, STEPS, given=now_and_then)
    train(others, theirs, STEPS, given=now_and_then)
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_gradients_propagate(kind):
    """Infinity and NaN go where they go in torch; and to the same elements of the states."""
    name, options = KINDS[kind]
    mine, theirs, ours, others = torch_cases.pair(name, shapes=[(40,)], **options)
    for step in range(3):
        for p, optimizer in ((mine[0], ours), (theirs[0], others)):
            torch_cases.give([p], step)
            p.grad[7 * step + 3], p.grad[7 * step + 4], p.grad[7 * step + 5] = math.inf, -math.inf, math.nan
            optimizer.step()
    np.testing.assert_array_equal(mine[0].isnan(), theirs[0].isnan())
    np.testing.assert_array_equal(mine[0].isinf(), theirs[0].isinf())
    assert_near(mine[0].nan_to_num(0.0, 1.0, -1.0), theirs[0].nan_to_num(0.0, 1.0, -1.0), TORCH)
    for state in STATES[kind]:
        got, want = ours.state[mine[0]][state], others.state[theirs[0]][state]
        np.testing.assert_array_equal(got.isfinite(), want.isfinite())  # inf in a lerp is NaN a step later
        assert_near(got.nan_to_num(0.0, 0.0, 0.0), want.nan_to_num(0.0, 0.0, 0.0), TORCH)


# Half precision


@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    usually(
        [(*each, torch.bfloat16) for each in ONCE if rule_of(*each) in BY_STATES],
        [(*configuration, getattr(torch, dtype)) for configuration in CONFIGURATIONS for dtype in HALVES],
    ),
)
def test_half_precision_is_as_good_as_torchs(name, options, dtype):
    """The error against a float64 run with the same gradients is at most twice torch's, over several seeds."""
    errors = np.zeros(2)
    for seed in range(5):
        start = torch_cases.parameters([(300,), (7, 31)], dtype, seed)
        mine, theirs, exact = (
            [Parameter(p.detach().to(kind, copy=True)) for p in start] for kind in (dtype, dtype, torch.float64)
        )
        runs = [
            (mine, torch_cases.make(name, mine, **options)),
            (theirs, torch_cases.make(name, theirs, True, **options)),
            (exact, torch_cases.make(name, exact, True, **options)),
        ]
        for step in range(STEPS):
            grads = [torch_cases.gradient(p, 100 * step + i) for i, p in enumerate(start)]
            for params, optimizer in runs:
                for p, g in zip(params, grads, strict=True):
                    p.grad = g.to(p.dtype)
                optimizer.step()
        for i, params in enumerate((mine, theirs)):
            errors[i] += sum((p.double() - q).square().sum().item() for p, q in zip(params, exact, strict=True))
    assert math.isfinite(errors[0])
    assert math.isnan(errors[1]) or errors[0] <= HALF**2 * errors[1]  # NaN: bug 7


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=[] if torch_cases.usual(kind, dtype) else pytest.mark.exhaustive)
        for kind in KINDS
        for dtype in (torch.float16, torch.bfloat16)
    ],
)
def test_half_precision_has_float32_state(kind, dtype):
    """Parameters keep their dtype, sums of many small numbers need more; the counts are torch's."""
    name, options = KINDS[kind]
    params = torch_cases.parameters(dtype=dtype)
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 3)
    assert {p.dtype for p in params} == {dtype}
    for p in params:
        for state, value in optimizer.state[p].items():
            assert value.dtype == (torch.float64 if state in ("step", *CARRIED_NAMES) else torch.float32)


# Schedulers


class EveryOther(lr_scheduler.LRScheduler):
    """A scheduler of a user's own, on torch's base class."""

    def get_lr(self):
        """Halve the rate at every other step."""
        return [base / (1 + self.last_epoch % 2) for base in self.base_lrs]


def momentum_cycles(optimizer):
    """Whether the optimizer has a momentum to be cycled, as Adam's first beta is."""
    group = optimizer.param_groups[0]
    return group.get("momentum", 0) > 0 or "betas" in group


SCHEDULERS = {
    "LRScheduler": EveryOther,
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.95),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 4, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [3, 9], 0.3),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.2, 5),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.1, 0.8, 10),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.93),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)], [6]
    ),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 12, 0.001),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=2),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 5, cycle_momentum=momentum_cycles(opt)),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 4, 2),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.3, SCHEDULED + 1, cycle_momentum=momentum_cycles(opt)),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 12, 0.9),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.01, anneal_epochs=7),
}


def assert_scheduled(name, options, makes):
    """Two groups, one with a rate of its own, follow the same schedulers; so do their momenta."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters(dtype=torch.float64)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
        optimizer = torch_cases.make(name, groups, plainest, **options)
        schedulers = [make(optimizer) for make in makes]
        seen = []

        def after(step, seen=seen, schedulers=schedulers, optimizer=optimizer):
            advance(schedulers, max(5 - step, 1))
            seen.append([(float(g["lr"]), g.get("momentum"), g.get("betas")) for g in optimizer.param_groups])

        train(optimizer, params, SCHEDULED, given=now_and_then, scheduler=after)
        runs.append((params, optimizer, seen))
    (mine, ours, seen), (theirs, others, wanted) = runs
    assert seen == wanted
    assert_same(mine, theirs, ours, others, TORCH)


@swept(1, scheduler=[*lr_scheduler.__all__, "SWALR"], kind=KINDS)
def test_every_scheduler_of_torch(scheduler, kind):
    """The rates and momenta are torch's, and so is what they lead to; a new scheduler needs a case."""
    name, options = KINDS[kind]
    assert_scheduled(name, options, [SCHEDULERS[scheduler]])
    if name == "Adagrad":
        assert_scheduled(name, {**options, "lr": torch.tensor(0.1, dtype=torch.float64)}, [SCHEDULERS[scheduler]])


@pytest.mark.parametrize(
    ("name", "makes"),
    [(name, makes) for name in NAMES for makes in DB[name].scheduler_inputs],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} of them",  # functions have no names
)
def test_schedulers_that_torch_tests_together(name, makes):
    """Several schedulers on one optimizer."""
    assert_scheduled(name, {"lr": 0.1}, makes)


@pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
def test_weight_averaging(name, options):
    """AveragedModel, SWALR and update_bn, over a model with batch normalisation.

    A bias ahead of that would have gradients of nothing but rounding errors, which Adam makes steps of.
    """
    batches = [torch_cases.gradient(torch.empty(16, 4), seed) for seed in range(6)]
    averages = []
    for plainest in (False, True):
        torch.manual_seed(5)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )
        optimizer = torch_cases.make(name, model.parameters(), plainest, **{**options, "lr": 0.01})
        average, scheduler = swa_utils.AveragedModel(model), swa_utils.SWALR(optimizer, 0.005, anneal_epochs=3)
        for batch in batches:
            optimizer.zero_grad()
            (model(batch) - 1).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
            scheduler.step()
        swa_utils.update_bn(batches, average)
        averages.append([*average.parameters(), *average.buffers()])
    for got, want in zip(*averages, strict=True):
        assert_near(got.float(), want.float(), TORCH)  # the counts of batches too


# A training run

TRAINED = {kind: KINDS[kind] for kind in ("momentum", "nesterov", "adagrad")}


def digits_losses(plainest, name, options):
    """Two epochs of a small convolutional network on scikit-learn's digits: the losses."""
    from sklearn.datasets import load_digits  # takes seconds to import

    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    torch.manual_seed(11)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )
    optimizer = torch_cases.make(name, model.parameters(), plainest, **{**options, "lr": 0.05})
    losses = []
    for epoch in range(2):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "options"), TRAINED.values(), ids=TRAINED)
def test_a_training_run(name, options):
    """The loss curve is torch's, and falls."""
    losses = digits_losses(False, name, options)
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(losses, digits_losses(True, name, options), rtol=TORCH_TRAINING, atol=TORCH_TRAINING)
