"""Constructors, groups and what is assigned to them, and schedules: as in torch.optim."""

import copy
import inspect

import pytest
import torch
import torch_cases
from tolerances import TORCH, TRAJECTORY
from torch.nn import Parameter
from torch_cases import (
    ALL,
    NAMES,
    assert_near,
    assert_refused,
    assert_same,
    bits,
    give,
    states,
    train,
    victim,
    with_gradient,
)

import fastopt.torch as subject
from fastopt import schedules
from fastopt.options import ADDED_DEFAULTS

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


# Construction and groups


@ALL
def test_it_is_an_optimizer_of_torch(name, options):
    """A subclass, with torch's name, options and defaults in its groups."""
    [p] = torch_cases.parameters([(3,)])
    mine, theirs = getattr(subject, name)([p]), getattr(torch.optim, name)([p])
    assert isinstance(mine, torch.optim.Optimizer)
    for key, value in theirs.param_groups[0].items():
        assert mine.param_groups[0][key] is value or mine.param_groups[0][key] == value, key
    assert theirs.defaults.keys() <= mine.defaults.keys()
    mine = getattr(subject, name)([p], **options)
    for key, value in options.items():
        assert mine.param_groups[0][key] == mine.defaults[key] == value


BY_POSITION = {
    "SGD": (0.1, 0.9, 0.0, 0.2, True),
    "Adagrad": (0.1, 0.2, 0.3, 0.4, 0.5, True),
    "RMSprop": (0.1, 0.2, 0.3, 0.4, 0.5, True, False, True, True, False),
    "Adam": (0.1, (0.2, 0.3), 0.4, 0.5, True),
    "AdamW": (0.1, [0.2, 0.3], 0.4, 0.5, True),
    "NAdam": (0.1, (0.2, 0.3), 0.4, 0.5, 0.6, True),
}


@pytest.mark.parametrize("name", NAMES)
def test_constructors_take_what_torchs_do(name):
    """The same options in the same order, by position or by keyword, with the same defaults; each arrives.

    RMSprop and NAdam take ``fused`` besides, which is what GradScaler goes by, and all take those of every optimizer.
    """

    def taken(module):
        return [(p.name, p.kind, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]

    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [("fused", keyword, None)] if name in ("RMSprop", "NAdam") else []
    more += [(option, keyword, default) for option, default in ADDED_DEFAULTS.items()]
    assert taken(subject) == taken(torch.optim) + more
    [p] = torch_cases.parameters([(3,)])
    kinds = [kind for _, kind, _ in taken(subject)]
    assert len(BY_POSITION[name]) + 1 == kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)  # that is all of them
    mine, theirs = (getattr(module, name)([p], *BY_POSITION[name]).param_groups[0] for module in (subject, torch.optim))
    assert {key: mine[key] for key in theirs} == theirs


def test_adagrad_has_its_state_from_the_start():
    """As torch's; complex accumulators start at both parts; a group's own value counts, added later too."""
    p, q, r = torch_cases.parameters([(2, 3), (4,), (5,)])
    z = Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = subject.Adagrad(
        [{"params": [p]}, {"params": [q], "initial_accumulator_value": 2.0}, {"params": [z]}],
        initial_accumulator_value=0.5,
    )
    optimizer.add_param_group({"params": [r], "initial_accumulator_value": 3.0})
    for param, value in ((p, 0.5), (q, 2.0), (z, 0.5 + 0.5j), (r, 3.0)):
        assert bits(optimizer.state[param]["sum"]) == bits(torch.full_like(param, value))
        assert bits(optimizer.state[param]["step"]) == bits(torch.zeros((), dtype=torch.float64))


def test_sgd_makes_its_buffer_at_the_first_gradient():
    """With the parameter's dtype; and none at all without momentum."""
    p, q = torch_cases.parameters([(2, 3), (4,)], torch.float64)
    optimizer = subject.SGD([p, q], **MOMENTUM)
    assert "momentum_buffer" not in states(optimizer, p)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert bits(optimizer.state[p]["momentum_buffer"]) == bits(torch.ones_like(p))
    assert states(optimizer, q).get("momentum_buffer") is None
    plain = subject.SGD([p])
    plain.step()
    assert not any(plain.state.values())


LAZY = [
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {"amsgrad": True}),
]


@pytest.mark.parametrize(("name", "options"), LAZY)
def test_states_begin_with_the_first_gradient(name, options):
    """In torch's order, the count first; a parameter that has had no gradient has nothing, not even a count."""
    mine, theirs, ours, others = torch_cases.pair(name, **options)
    ours.step()
    assert ours.state == {}
    for start, steps in ((0, 2), (2, 4)):
        train(ours, mine, steps, start=start, given=torch_cases.late)
        train(others, theirs, steps, start=start, given=torch_cases.late)
        assert [p in ours.state for p in mine] == [p in others.state for p in theirs]
        ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        for p, q in zip(mine, theirs, strict=True):
            assert list(states(ours, p)) == list(states(others, q))
            assert {s.dtype for key, s in states(ours, p).items() if key == "step"} <= {torch.float64}
    assert mine[-1] not in ours.state
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_in_a_list(name):
    """Assigned, and changed in place between steps; a list that the constructor got may be used for something else."""
    runs = []
    for plainest in (False, True):
        betas, others = [0.8, 0.99], [0.7, 0.95]
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, betas=betas)
        betas[0] = 0.1
        train(optimizer, params, 3)
        optimizer.param_groups[0]["betas"] = others
        train(optimizer, params, 3, start=3)
        others[1] = 0.6
        train(optimizer, params, 3, start=6)
        assert optimizer.param_groups[0]["betas"] is others
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)
    others = runs[0][1].param_groups[0]["betas"]
    others[0] = torch.tensor(0.9)
    assert_refused(runs[0][1], runs[0][1].step, r"betas\[0\] is a tensor", TypeError)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_with_decoupled_weight_decay_is_adamw(amsgrad):
    """To the bit; and in a group alone."""
    ends = []
    decoupled = {"decoupled_weight_decay": True}
    for cls, option, of_group in (
        (subject.AdamW, {}, {}),
        (subject.Adam, decoupled, {}),
        (subject.Adam, {}, decoupled),
    ):
        params = torch_cases.parameters()
        optimizer = cls([{"params": params, **of_group}], lr=0.1, weight_decay=0.1, amsgrad=amsgrad, **option)
        train(optimizer, params, 6, given=torch_cases.now_and_then)
        ends.append(bits([params, [states(optimizer, p) for p in params]]))
    assert ends[0] == ends[1] == ends[2]


@ALL
def test_a_group_that_is_added(name, options):
    """In the middle of a training, with an option of its own, and gradients from then on."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params[:3], plainest, **options)
        train(optimizer, params[:3], 5)
        optimizer.add_param_group({"params": params[3:], "lr": 0.01})
        train(optimizer, params, 5, start=5)
        assert [group["lr"] for group in optimizer.param_groups] == [options["lr"], 0.01]
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_a_group_that_is_not_added(name, options):
    """It shares a parameter, misses its parameters, or has options out of range: nothing has changed."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 2)
    fresh = Parameter(torch.ones(3))
    for group, error in [
        ({"params": [params[0]]}, ValueError),
        ({"params": {fresh}}, TypeError),
        ({"params": [3.0]}, TypeError),
        ({"params": [fresh * 2]}, ValueError),
        ([fresh], TypeError),
        ({"params": [("weight", fresh)]}, ValueError),
    ]:
        assert_refused(optimizer, lambda group=group: optimizer.add_param_group(group), error=error)
    assert len(optimizer.param_groups) == 1
    assert fresh not in optimizer.state


def test_named_parameters():
    """torch's param_names stand in the groups and in the state dict."""
    model = torch.nn.Linear(3, 2)
    optimizer = subject.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    optimizer.add_param_group({"params": [("extra", Parameter(torch.ones(2)))]})
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == ["extra"]
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert_near(model.weight, before - 0.1, TRAJECTORY)


@ALL
def test_maximize(name, options):
    """It is minimizing the opposite."""
    up, down = torch_cases.parameters([(5,)])[0], torch_cases.parameters([(5,)])[0]
    climb = torch_cases.make(name, [up], **{**options, "maximize": True, "weight_decay": 0.0})
    fall = torch_cases.make(name, [down], **{**options, "weight_decay": 0.0})
    for step in range(5):
        give([up], step)
        down.grad = -up.grad
        climb.step()
        fall.step()
    assert bits(up) == bits(down)


@pytest.mark.parametrize(
    "lr", [torch.tensor(0.1), torch.tensor([0.1]), torch.tensor(0.1, dtype=torch.float64)], ids=str
)
@ALL
def test_a_tensors_rate(name, options, lr):
    """It may be changed in place between steps, and is not changed by them."""
    runs = []
    for plainest in (False, True):
        rate = lr.clone()
        params = torch_cases.parameters(dtype=lr.dtype)
        cls = getattr(torch.optim if plainest else subject, name)
        optimizer = cls(params, **{**options, "lr": rate, "foreach": False})
        optimizer = torch_cases.exact(optimizer) if plainest else optimizer
        for step in range(10):
            rate.fill_(0.1 / (1 + step))
            train(optimizer, params, 1, start=step)
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.item() == torch.tensor(0.01, dtype=lr.dtype).item()
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@pytest.mark.parametrize("see", [lambda optimizer: optimizer.step(), lambda optimizer: optimizer.state_dict()],
                         ids=["step", "state_dict"])  # fmt: skip
def test_a_tensor_that_replaces_a_rate(see):
    """It counts as it is at each step, whoever has seen first that it was assigned; and no more once it is replaced."""
    p = Parameter(torch.zeros(1))
    optimizer, rate = subject.SGD([p], lr=0.1), torch.tensor(1.0)
    p.grad = torch.ones(1)
    for _ in range(3):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = rate
    see(optimizer)
    rate.fill_(4.0)
    assert moved(optimizer, p) == -4.0
    rate.fill_(8.0)
    assert moved(optimizer, p) == -8.0
    optimizer.param_groups[0]["lr"] = 2.0
    see(optimizer)
    rate.fill_(16.0)
    assert moved(optimizer, p) == -2.0


def moved(optimizer, p):
    """How far one step moves a parameter that is 0."""
    p.data.zero_()
    optimizer.step()
    return p.item()


@ALL
def test_options_that_change_between_steps(name, options):
    """Every option that is assigned to a group takes effect at the next step."""
    changes = {
        "SGD": [
            ("momentum", 0.5),
            ("weight_decay", 0.1),
            ("nesterov", False),
            ("dampening", 0.3),
            ("maximize", True),
            ("momentum", 0.0),
            ("momentum", 0.9),
            ("foreach", True),
            ("lr", 0.01),
        ],
        "Adagrad": [
            ("lr_decay", 0.5),
            ("weight_decay", 0.1),
            ("eps", 0.1),
            ("maximize", True),
            ("foreach", True),
            ("lr", 0.01),
        ],
        "RMSprop": [
            ("alpha", 0.9),
            ("weight_decay", 0.1),
            ("momentum", 0.5),
            ("centered", False),
            ("eps", 0.1),
            ("maximize", True),
            ("momentum", 0.0),
            ("centered", True),
            ("momentum", 0.9),
            ("lr", 0.1),
        ],
        "AdamW": [
            ("betas", (0.8, 0.9)),
            ("weight_decay", 0.2),
            ("eps", 0.1),
            ("decoupled_weight_decay", False),
            ("amsgrad", False),
            ("maximize", True),
            ("amsgrad", True),
            ("betas", [0.5, 0.99]),
            ("lr", 0.01),
        ],
        "NAdam": [
            ("betas", (0.8, 0.9)),
            ("weight_decay", 0.2),
            ("eps", 0.1),
            ("momentum_decay", 0.1),
            ("decoupled_weight_decay", False),
            ("maximize", True),
            ("lr", 0.01),
        ],
    }
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters(dtype=torch.float64)
        optimizer = torch_cases.make(name, params, plainest, **options)
        for step, (key, value) in enumerate(changes[name]):
            optimizer.param_groups[0][key] = value
            train(optimizer, params, 2, start=2 * step)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_two_groups_with_options_of_their_own(name, options):
    """Each parameter goes by its group's."""
    own = {"lr": 0.02, "weight_decay": 0.1, **({"momentum": 0.0, "nesterov": False} if name == "SGD" else {"eps": 0.1})}
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        groups = [{"params": params[::2]}, {"params": params[1::2], **own}]
        optimizer = torch_cases.make(name, groups, plainest, **options)
        train(optimizer, params, 10, given=torch_cases.now_and_then)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_a_groups_parameters_may_be_edited(name, options):
    """As torch allows: taken out, put in again, replaced."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params[:4], plainest, **options)
        group = optimizer.param_groups[0]
        train(optimizer, params, 3)
        taken = group["params"].pop(1)
        train(optimizer, params, 3, start=3)
        group["params"].append(taken)
        train(optimizer, params, 3, start=6)
        group["params"] = [*group["params"], params[4]] if name == "SGD" else list(reversed(group["params"]))
        train(optimizer, params, 3, start=9)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


# Schedules


def test_a_schedule_drives_a_group():
    """group["lr"] is always the current number; before the first step, that of step 0."""
    lr, momentum = schedules.Linear(0.1, 0.0, 10), schedules.Linear(0.5, 0.9, 5)
    p, q = torch_cases.parameters([(4,)], torch.float64) + torch_cases.parameters([(4,)], torch.float64)
    optimizer = subject.SGD([p], lr=lr, momentum=momentum, weight_decay=schedules.Constant(0.01))
    theirs = torch.optim.SGD([q], lr=0.1, momentum=0.5, weight_decay=0.01, foreach=False)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["step"]) == (0.1, 0.5, 0.01, 0)
    assert group["schedules"] == {
        "lr": lr.to_dict(),
        "momentum": momentum.to_dict(),
        "weight_decay": schedules.Constant(0.01).to_dict(),
    }
    for step in range(12):
        theirs.param_groups[0].update(lr=lr(step), momentum=momentum(step))
        train(optimizer, [p], 1, start=step)
        train(theirs, [q], 1, start=step)
        assert (group["lr"], group["momentum"], group["step"]) == (lr(step), momentum(step), step + 1)
    assert_same([p], [q], optimizer, theirs, TORCH)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_ends_the_schedule(name):
    """Assigned to the option; a torch scheduler may take over."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, lr=schedules.Exponential(0.1, 0.5))
    group = optimizer.param_groups[0]
    train(optimizer, params, 3)
    group["lr"] = 0.3
    train(optimizer, params, 2, start=3)
    assert group["lr"] == 0.3
    assert "lr" not in group.get("schedules", {})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    scheduler.step()
    assert group["lr"] == 0.15


def test_schedules_by_group():
    """A group may have its own, or a number; each counts its own steps."""
    p, q, r = torch_cases.parameters([(2,), (3,), (4,)])
    slow = schedules.Linear(1.0, 0.0, 100)
    optimizer = subject.Adagrad([{"params": [p], "lr": slow}, {"params": [q], "lr": 0.5}], lr=schedules.Constant(0.2))
    train(optimizer, [p, q], 3)
    optimizer.add_param_group({"params": [r], "lr": slow})
    train(optimizer, [p, q, r], 2, start=3)
    assert [group["lr"] for group in optimizer.param_groups] == [slow(4), 0.5, slow(1)]
    assert [optimizer.param_groups[i]["step"] for i in (0, 2)] == [5, 2]


def test_our_schedules_as_torchs_schedulers():
    """On these optimizers as on any other of torch."""
    schedule = schedules.Warmup(schedules.Cosine(0.1, 20), 5)
    params, optimizer = victim(steps=0)
    scheduler = schedule.torch_scheduler(optimizer)
    for step in range(10):
        assert optimizer.param_groups[0]["lr"] == schedule(step)
        train(optimizer, params, 1, start=step)
        scheduler.step()


@pytest.mark.parametrize("how", ["at once", "from a state dict"])
def test_a_schedule_after_one_that_has_ended(how):
    """Is asked for all steps that were taken, those without a schedule included."""
    w = Parameter(torch.ones(30))
    w.grad = torch.ones(30)
    optimizer = subject.SGD([w], lr=0.1, momentum=schedules.Linear(0.9, 0.5, 10))
    for step in range(9):
        if step == 3:
            optimizer.param_groups[0]["momentum"] = 0.5
        optimizer.step()
    if how == "from a state dict":
        saved, optimizer = optimizer.state_dict(), subject.SGD([w], lr=0.1, momentum=0.5)
        assert saved["param_groups"][0]["step"] == 9
        optimizer.load_state_dict(saved)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = schedules.Cosine(0.1, 100)
    optimizer.step()
    taken = 9 if how == "at once" else 10
    assert optimizer.param_groups[0]["lr"] == schedules.Cosine(0.1, 100)(taken)
    assert optimizer.param_groups[0]["step"] == taken + 1


def test_a_step_that_fails_counts_nothing():
    """The group's count, and with it the schedule, go on as if it had not been."""
    lr = schedules.Linear(0.1, 0.0, 10)
    params, optimizer = victim("adagrad", lr=lr)
    give(params, 2)
    with_gradient(params[1], params[1].detach())
    assert_refused(optimizer, optimizer.step)
    assert (optimizer.param_groups[0]["step"], optimizer.param_groups[0]["lr"]) == (2, lr(1))
