"""Trajectories against torch.optim, schedules against its schedulers, and the bugs that fastopt must not share."""

import warnings

import numpy as np
import pytest
import torch
from pairs import usually
from tolerances import CARRIED, TORCH, assert_close
from torch_cases import CARRIED_NAMES, NAMES, exact

import fastopt
from fastopt import schedules

SGD_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1, "maximize": True},
    {"momentum": 1.5},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
]
ADAGRAD_OPTIONS = [
    {},
    {"lr_decay": 0.2},
    {"weight_decay": 0.1, "maximize": True},
    {"initial_accumulator_value": 0.1, "eps": 1e-4},
    {"lr_decay": 0.2, "weight_decay": 0.1, "eps": 1e-3},
]
RMSPROP_OPTIONS = [
    {},
    {"alpha": 0.5, "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9},
    {"centered": True},
    {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
]
ADAM_OPTIONS = [
    {},
    {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
    {"betas": (0.0, 0.0), "weight_decay": 0.0},
    {"amsgrad": True, "weight_decay": 0.1},
]
NADAM_OPTIONS = [
    {},
    {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
    {"momentum_decay": 0.3, "weight_decay": 0.1, "decoupled_weight_decay": True},
]
CASES = [("SGD", options) for options in SGD_OPTIONS] + [("Adagrad", options) for options in ADAGRAD_OPTIONS]
CASES += [("RMSprop", options) for options in RMSPROP_OPTIONS]
CASES += [(name, options) for name in ("Adam", "AdamW") for options in ADAM_OPTIONS]
CASES += [("NAdam", options) for options in NADAM_OPTIONS]
SHAPES = [(4, 3), (), (17,), (2, 3, 5)]


def pair(name, options, dtype, seed=7):
    """The same model twice: NumPy arrays under fastopt, tensors under torch.optim, with its plainest code."""
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    mine = getattr(fastopt, name)(params, lr=0.05, **options)
    theirs = exact(getattr(torch.optim, name)(tensors, lr=0.05, foreach=False, **options))
    return rng, params, tensors, mine, theirs


@pytest.mark.parametrize("dtype", usually([np.float32], [np.float32, np.float64]))
@pytest.mark.parametrize(("name", "options"), CASES)
def test_trajectories(name, options, dtype):
    """Thirty steps, gradients missing now and then, a rate that changes; parameters and states."""
    rng, params, tensors, mine, theirs = pair(name, options, dtype)
    steps = 6 if options.get("momentum", 0) > 1 else 30
    for step in range(steps):
        grads = [rng.standard_normal(p.shape).astype(dtype) if (step + i) % 4 else None for i, p in enumerate(params)]
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad = None if g is None else torch.from_numpy(np.asarray(g))
        mine.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.05 / (1 + step)
        mine.step(grads)
        theirs.step()
    for i, (p, tensor) in enumerate(zip(params, tensors, strict=True)):
        assert_close(p, tensor.detach().numpy(), TORCH)
        for state, want in theirs.state[tensor].items():
            if state in CARRIED_NAMES:
                assert mine.state[i][state] == pytest.approx(want.item(), rel=CARRIED)
            elif state != "step" and want is not None:
                assert_close(mine.state[i][state], want.numpy(), TORCH)


def test_every_class_of_torchs_is_compared():
    """All that both have."""
    assert {name for name, _ in CASES} == {*NAMES}


def test_a_groups_initial_accumulator_value_counts():
    """torch.optim.Adagrad ignores it (bug 1)."""
    p = np.zeros(1)
    opt = fastopt.Adagrad([{"params": [p], "initial_accumulator_value": 3.0}], lr=1.0, eps=0.0)
    opt.step([[np.ones(1)]])
    assert p[0] == -0.5


def test_a_failed_first_step_leaves_no_state():
    """torch's fused SGD leaves a buffer uninitialised when its first step is skipped (bug 2)."""
    p = [np.zeros(2), np.zeros(2)]
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5, dampening=0.5)
    with pytest.raises(ValueError, match="shape"):
        opt.step([np.ones(2), np.ones(3)])
    assert opt.state == {}
    opt.step([np.ones(2), np.ones(2)])
    assert (opt.state[0]["momentum_buffer"] == 1).all()


def test_a_first_gradient_may_come_late():
    """torch's fused SGD raises TypeError (bug 3)."""
    p = [np.zeros(2), np.zeros(2)]
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5)
    opt.step([np.ones(2), None])
    opt.step([np.ones(2), np.ones(2)])
    assert (p[0] == -2.5).all()
    assert (p[1] == -1).all()


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW"])
def test_elements_pair_by_index_whatever_the_strides(name):
    """torch's fused CPU kernels pair them by storage order (bug 4)."""
    rng = np.random.default_rng(8)
    g = rng.standard_normal((5, 7))
    p, q = np.zeros((5, 7)), np.zeros((5, 7))
    getattr(fastopt, name)(p, lr=0.1).step(g)
    getattr(fastopt, name)(q, lr=0.1).step(np.asfortranarray(g))
    np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("options", [{"nesterov": True, "momentum": 0.9}, {"weight_decay": 0.1, "maximize": True}])
def test_gradients_are_never_written(options):
    """torch's foreach Nesterov overwrites them (bug 5); here even read-only ones will do."""
    p, g = np.ones(50, np.float32), np.full(50, 0.5, np.float32)
    g.flags.writeable = False
    opt = fastopt.SGD(p, lr=0.1, **options)
    for _ in range(3):
        opt.step(g)
    assert (g == 0.5).all()


@pytest.mark.parametrize("make", [fastopt.Adagrad, fastopt.RMSprop, fastopt.Adam, fastopt.AdamW])
def test_steps_count_past_the_integers_of_float32(make):
    """A float32 step stops at 2**24 (bug 9)."""
    p = np.zeros(1)
    opt = make(p)
    opt.step(np.ones(1))
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2**24
    opt.load_state_dict(saved)
    for _ in range(3):
        opt.step(np.ones(1))
    assert opt.state[0]["step"] == 2**24 + 3


def test_a_momentum_that_reaches_zero_changes_the_rule():
    """As in torch: without momentum there is no buffer; what there was is taken up again later."""
    p, q = np.zeros(1), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    momentum = schedules.Piecewise((0.9, 0.0, 0.5), (2, 4))
    mine, theirs = fastopt.SGD(p, lr=1.0, momentum=momentum), torch.optim.SGD([q], lr=1.0, momentum=0.9)
    for step in range(7):
        mine.step(np.ones(1))
        theirs.param_groups[0]["momentum"] = momentum(step)
        q.grad = torch.ones_like(q)
        theirs.step()
        assert p[0] == pytest.approx(q.item(), rel=1e-15)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=5.0),
    "Adam": lambda p: torch.optim.Adam(p, lr=5.0),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=5.0),
    "a tensor lr": lambda p: torch.optim.SGD(p, lr=torch.tensor(5.0, dtype=torch.float64)),
    "two groups": lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 3.0}, {"params": p[1:]}], lr=5.0),
}
SCHEDULE = schedules.Warmup(schedules.Cosine(0.1, 20, dips=2), 5)


def model(name):
    """Two parameters with gradients, under an optimizer of torch."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones(3)
    return OPTIMIZERS[name](params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_as_torchs_scheduler(name):
    """A genuine one, for any optimizer; every group has the closed form's value at every step, and past the end."""
    optimizer = model(name)
    scheduler = SCHEDULE.torch_scheduler(optimizer)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    for step in range(40):
        assert [float(group["lr"]) for group in optimizer.param_groups] == [SCHEDULE(step)] * len(scheduler.base_lrs)
        assert list(map(float, scheduler.get_last_lr())) == [SCHEDULE(step)] * len(scheduler.base_lrs)
        optimizer.step()
        scheduler.step()


def test_it_resumes_from_its_state_dict(tmp_path):
    """Saved and opened by torch's defaults, into one that was made for another schedule."""
    optimizer = model("Adam")
    scheduler = SCHEDULE.torch_scheduler(optimizer)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt")
    optimizer = model("Adam")
    scheduler = schedules.Constant(1.0).torch_scheduler(optimizer)
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    assert optimizer.param_groups[0]["lr"] == SCHEDULE(7)
    assert scheduler.schedule == SCHEDULE
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == SCHEDULE(8)


def test_it_resumes_from_last_epoch():
    """As torch counts: the next value is that of the step after; on a fresh optimizer too, and without a warning."""
    for optimizer in (model("SGD"), model("two groups"), model("a tensor lr")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler = SCHEDULE.torch_scheduler(optimizer, last_epoch=9)
            assert optimizer.param_groups[0]["lr"] == SCHEDULE(10)
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == SCHEDULE(11)
        assert scheduler.base_lrs[-1] == 5.0


def test_it_takes_its_place_among_torchs_schedulers():
    """In a SequentialLR it runs on its own clock."""
    optimizer = model("SGD")
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    mine = SCHEDULE.torch_scheduler(optimizer)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [constant, mine], milestones=[4])
    seen = []
    for _ in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == [5.0] * 4 + [SCHEDULE(step) for step in range(8)]


def test_what_no_scheduler_can_be_made_of():
    """An optimizer that is none, and a schedule that is none."""
    with pytest.raises(TypeError, match="Optimizer"):
        SCHEDULE.torch_scheduler(fastopt.SGD(np.ones(1)))
    for wrong in (schedules.Plateau(0.1), schedules.Cosine, lambda step: 0.1, 0.1, None):
        optimizer = model("SGD")
        with pytest.raises(TypeError, match=r"is not one of fastopt\.schedules with a closed form$"):
            fastopt.torch.Scheduler(optimizer, wrong, last_epoch=9)
        assert "initial_lr" not in optimizer.param_groups[0]
    for last_epoch, error in [(2.5, TypeError), ("a", TypeError), (-5, ValueError)]:
        optimizer = model("SGD")
        with pytest.raises(error, match="last_epoch"):
            SCHEDULE.torch_scheduler(optimizer, last_epoch)
        assert "initial_lr" not in optimizer.param_groups[0]


def test_state_dicts_that_are_no_schedulers():
    """They are refused, and nothing has changed."""
    scheduler = SCHEDULE.torch_scheduler(model("SGD"))
    state = scheduler.state_dict()
    torchs = torch.optim.lr_scheduler.StepLR(model("SGD"), 3).state_dict()
    for wrong, error in [({}, ValueError), (torchs, ValueError), ({**state, "last_epoch": "x"}, TypeError)]:
        with pytest.raises(error, match="last_epoch"):
            scheduler.load_state_dict(wrong)
    assert scheduler.state_dict() == state
