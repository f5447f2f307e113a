"""Everything around the step: groups, hooks, scaling, compilation, autograd, threads, and what is refused."""

import contextlib
import copy
import inspect
import math
import pickle
import threading

import pytest
import torch
import torch_cases
from tolerances import ONE_STEP, TORCH, TRAJECTORY
from torch.nn import Parameter
from torch.optim import optimizer as torch_optimizer
from torch_cases import KINDS, NAMES, assert_near, assert_refused, assert_same, bits, give, snapshot, states, train

import fastopt.torch as subject
from fastopt import schedules
from fastopt.rules import HYPERPARAMETERS

ALL = pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
ONE = [Parameter(torch.ones(1))]


def victim(kind="momentum", steps=2, shapes=torch_cases.SHAPES, dtype=torch.float32, **more):
    """Parameters and an optimizer that has taken steps."""
    name, options = KINDS[kind]
    params = torch_cases.parameters(shapes, dtype)
    optimizer = torch_cases.make(name, params, **{**options, **more})
    train(optimizer, params, steps)
    return params, optimizer


def without_gradients(optimizer):
    """Parameters, states and groups as they are, to the bit."""
    params, _, *rest = snapshot(optimizer)
    return [params, *rest]


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
}


@pytest.mark.parametrize("name", NAMES)
def test_constructors_take_what_torchs_do(name):
    """The same options in the same order, by position or by keyword, with the same defaults; each arrives.

    RMSprop takes ``fused`` besides, which is what GradScaler goes by.
    """

    def taken(module):
        return [(p.name, p.kind, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]

    more = [("fused", inspect.Parameter.KEYWORD_ONLY, None)] if name == "RMSprop" else []
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
        for step in range(10):
            rate.fill_(0.1 / (1 + step))
            train(optimizer, params, 1, start=step)
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.item() == torch.tensor(0.01, dtype=lr.dtype).item()
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


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


# Closures, hooks, the profiler


@ALL
def test_closures(name, options):
    """The loss is returned, and the closure may call backward."""
    [p] = torch_cases.parameters([(4,)])
    optimizer = torch_cases.make(name, [p], **options)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert optimizer.step() is None
    assert optimizer.step(closure=lambda: 5) == 5


@ALL
def test_step_hooks(name, options):
    """An optimizer's own and the global ones, in torch's order; removed ones are called no more."""

    def calls(optimizer, p):
        seen = []
        registers = [
            optimizer.register_step_post_hook,
            torch_optimizer.register_optimizer_step_post_hook,
            optimizer.register_step_pre_hook,
            torch_optimizer.register_optimizer_step_pre_hook,
        ]
        handles = []
        for i, register in enumerate(registers):

            def hook(instance, args, kwargs, i=i):
                assert instance is optimizer
                seen.append((i, p.detach().clone().tolist(), len(args), dict(kwargs)))

            handles.append(register(hook))
        p.grad = torch.ones_like(p)
        with contextlib.ExitStack() as stack:
            for handle in handles:
                stack.callback(handle.remove)
            optimizer.step()
        optimizer.step()
        return [call[0] for call in seen], [call[2:] for call in seen], [call[1] for call in seen]

    [p], [q] = torch_cases.parameters([(2,)]), torch_cases.parameters([(2,)])
    mine = calls(torch_cases.make(name, [p], **options), p)
    theirs = calls(torch_cases.make(name, [q], True, **options), q)
    assert mine[:2] == theirs[:2]
    assert mine[0] == [3, 2, 0, 1]
    assert_near(torch.tensor(mine[2]), torch.tensor(theirs[2]), TORCH)


def test_hooks_may_change_the_arguments():
    """A pre-hook's arguments are what the step gets; what is neither None nor a pair is refused."""
    _, optimizer = victim()
    handle = optimizer.register_step_pre_hook(lambda instance, args, kwargs: (args, {"closure": lambda: 7}))
    assert optimizer.step() == 7
    handle.remove()
    assert optimizer.step() is None
    optimizer.register_step_pre_hook(lambda instance, args, kwargs: "nonsense")
    assert_refused(optimizer, optimizer.step, "must return None or a tuple", RuntimeError)


def test_hooks_may_change_gradients_and_groups():
    """What a pre-hook sets is what the step goes by."""
    [p] = torch_cases.parameters([(3,)])
    before = p.detach().clone()
    optimizer = subject.SGD([p], lr=1.0)
    p.grad = torch.zeros(3)

    def hook(instance, args, kwargs):
        p.grad = torch.ones(3)
        instance.param_groups[0]["lr"] = 2.0

    optimizer.register_step_pre_hook(hook)
    optimizer.step()
    assert_near(p, before - 2, TRAJECTORY)


@pytest.mark.parametrize("name", NAMES)
def test_the_profiler_sees_the_step(name):
    """Under the name that torch's has."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, lr=0.1)
    give(params, 0)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.step()
        optimizer.zero_grad()
    events = {event.key: event.count for event in profile.key_averages()}
    assert events[f"Optimizer.step#{name}.step"] == 2
    assert events[f"Optimizer.zero_grad#{name}.zero_grad"] == 1


def test_subclasses_that_override_the_step():
    """super().step() works, and hooks are called."""

    class Counting(subject.SGD):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            return super().step(closure)

    [p] = torch_cases.parameters([(3,)])
    before = p.detach().clone()
    optimizer = Counting([p], lr=1.0)
    seen = []
    optimizer.register_step_post_hook(lambda *call: seen.append(call))
    p.grad = torch.ones(3)
    assert optimizer.step(lambda: 3) == 3
    assert_near(p, before - 1, TRAJECTORY)
    assert optimizer.calls == 1
    assert seen


# Copies


@ALL
def test_deep_copies(name, options):
    """A model and its optimizer that are copied together go on like the originals, apart from them."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 3)
    others, twin = copy.deepcopy((params, optimizer))
    assert without_gradients(twin) == without_gradients(optimizer)
    before = snapshot(optimizer)
    train(twin, others, 3, start=3)
    assert snapshot(optimizer) == before
    train(optimizer, params, 3, start=3)
    assert snapshot(twin) == snapshot(optimizer)


@ALL
def test_pickles(name, options):
    """The same through pickle, schedule and all."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, **{**options, "lr": schedules.Linear(0.1, 0.0, 10)})
    train(optimizer, params, 3)
    others, twin = pickle.loads(pickle.dumps((params, optimizer)))
    train(twin, others, 3, start=3)
    train(optimizer, params, 3, start=3)
    assert snapshot(twin) == snapshot(optimizer)


@ALL
def test_zero_grad(name, options):
    """To None by default, or to zeros in place."""
    params, theirs, optimizer, others = torch_cases.pair(name, **options)
    for instance, own in ((optimizer, params), (others, theirs)):
        give(own, 0)
        kept = own[0].grad
        instance.step()
        instance.zero_grad(set_to_none=False)
        assert own[0].grad is kept
        assert not any(p.grad.any() for p in own)
        instance.step()
        instance.zero_grad()
        assert all(p.grad is None for p in own)
        instance.step()
    assert_same(params, theirs, optimizer, others, TORCH)


@ALL
def test_the_text(name, options):
    """Class, groups and options, as torch shows them."""
    [p] = torch_cases.parameters([(3,)])
    text = repr(torch_cases.make(name, [p], **options))
    assert text.startswith(f"{name} (\nParameter Group 0\n")
    for line in repr(torch_cases.make(name, [p], True, **options)).splitlines():
        assert line in text or line.strip().split(":")[0] in ("foreach", "fused")


# Scaled losses


def scaled_run(name, options, dtype, scaled, unscale=False, overflow=()):
    """Train with or without a scaler, of which steps overflow some; return parameters and optimizer."""
    params = torch_cases.parameters([(40,), (3, 5)], dtype)
    optimizer = torch_cases.make(name, params, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled=scaled)
    for step in range(12):
        targets = [torch_cases.gradient(p, 100 * step + i).float() for i, p in enumerate(params)]
        loss = sum(((p.float() - t) ** 2).mean() for p, t in zip(params, targets, strict=True))
        scaler.scale(loss).backward()
        if step in overflow:
            params[1].grad[0, 0] = math.inf
            before, scale = without_gradients(optimizer), scaler.get_scale()
        if unscale:
            scaler.unscale_(optimizer)
        if step in overflow:
            gradients = bits([p.grad for p in params])
        scaler.step(optimizer)
        scaler.update()
        if step in overflow:
            assert without_gradients(optimizer) == before
            if unscale or options.get("fused"):
                assert bits([p.grad for p in params]) == gradients
            assert scaler.get_scale() == scale / 2
        assert not hasattr(optimizer, "grad_scale")
        optimizer.zero_grad()
    return params, optimizer


@pytest.mark.parametrize("flags", [{}, {"fused": True}], ids=str)
@pytest.mark.parametrize("unscale", [False, True])
@ALL
def test_scaled_losses(name, options, unscale, flags):
    """In float32 a power of two changes nothing; with unscale_ first, too."""
    mine, ours = scaled_run(name, {**options, **flags}, torch.float32, True, unscale)
    theirs, others = scaled_run(name, {**options, **flags}, torch.float32, False)
    assert_same(mine, theirs, ours, others, TRAJECTORY)


@ALL
def test_scaled_losses_of_mixed_precision(name, options):
    """autocast to bfloat16, float32 parameters: with a scaler as without."""
    runs = []
    for scaled in (True, False):
        torch.manual_seed(4)
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimizer = torch_cases.make(name, model.parameters(), **{**options, "lr": 0.01})
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        for step in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch_cases.gradient(torch.empty(16, 5), step)).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append((list(model.parameters()), optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TRAJECTORY)


@pytest.mark.parametrize("flags", [{}, {"fused": True}], ids=str)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@ALL
def test_overflows_change_nothing(name, options, dtype, unscale, flags):
    """Not at the first step, where no state is made, nor later; counts and schedules stand still too."""
    options = {**options, **flags, "lr": schedules.Linear(0.1, 0.01, 10)}
    _, optimizer = scaled_run(name, options, dtype, True, unscale, overflow=(0, 1, 5))
    assert optimizer.param_groups[0]["step"] == 9
    if optimizer._family.counts:
        assert {float(state["step"]) for state in optimizer.state.values()} == {9.0}


@ALL
def test_float16_gradients_are_unscaled_by_the_step(name, options):
    """torch's scaler does not unscale float16 gradients: with fused=True the step does it, and leaves them alone."""
    params, optimizer = victim_of(name, {**options, "fused": True}, torch.float16)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    twins, twin = victim_of(name, options, torch.float16)
    for step in range(5):
        give(params, step)
        give(twins, step)
        for p in params:
            p.grad = p.grad * 8
        scaler.scale(torch.zeros(()))
        kept = bits([p.grad for p in params])
        scaler.step(optimizer)
        scaler.update()
        twin.step()
        assert bits([p.grad for p in params]) == kept
    assert bits(params) == bits(twins)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_scaled_sparse_gradients(name, unscale):
    """They are unscaled as dense ones are; and an overflow in them changes nothing."""
    runs = []
    for scaled in (True, False):
        embedding = torch.nn.Embedding.from_pretrained(torch.ones(9, 4), freeze=False, sparse=True)
        optimizer = torch_cases.make(name, embedding.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        for words in ([1, 3, 1], [0, 3, 8], [2, 2, 2]):
            optimizer.zero_grad()
            scaler.scale((embedding(torch.tensor(words)) * torch.arange(1.0, 5.0)).sum()).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        runs.append((embedding.weight, optimizer))
        if scaled:
            before = without_gradients(optimizer)
            scaler.scale(embedding(torch.tensor([4])).sum() * math.inf).backward()
            scaler.step(optimizer)
            assert without_gradients(optimizer) == before
    assert_same([runs[0][0]], [runs[1][0]], runs[0][1], runs[1][1], TRAJECTORY)


def victim_of(name, options, dtype):
    """Parameters of a dtype and a new optimizer over them."""
    params = torch_cases.parameters([(40,), (3, 5)], dtype)
    return params, torch_cases.make(name, params, **options)


# Autograd


@ALL
def test_autograd_notices_the_write(name, options):
    """A tensor that backward needs and a step has changed is an error, not a wrong gradient."""
    [p] = torch_cases.parameters([(5,)])
    optimizer = torch_cases.make(name, [p], **options)
    y = (p * p).sum()
    p.grad = torch.ones(5)
    version = p._version
    optimizer.step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_autograd_notices_sparse_and_scaled_writes():
    """The other ways through the step; what was not written keeps its version."""
    p, q = torch_cases.parameters([(5,), (5,)])
    optimizer = subject.SGD([p, q], lr=0.1)
    p.grad = torch.sparse_coo_tensor([[1]], [1.0], (5,), check_invariants=True)
    versions = p._version, q._version
    optimizer.step()
    assert p._version > versions[0]
    assert q._version == versions[1]


@ALL
def test_states_written_are_noticed_too(name, options):
    """A state's version counts as torch's does, for whoever differentiates through it."""
    [p] = torch_cases.parameters([(5,)])
    optimizer = torch_cases.make(name, [p], **options)
    train(optimizer, [p], 1)
    versions = {key: state._version for key, state in states(optimizer, p).items() if key != "step"}
    train(optimizer, [p], 1, start=1)
    for key, version in versions.items():
        assert optimizer.state[p][key]._version > version


@pytest.mark.parametrize("enabled", [True, False])
@ALL
def test_the_grad_mode_stays(name, options, enabled):
    """A step leaves it as it was, with an error as well, and needs neither."""
    [p] = torch_cases.parameters([(5,)])
    optimizer = torch_cases.make(name, [p], **options)
    p.grad = torch.ones(5)
    with torch.set_grad_enabled(enabled):
        optimizer.step()
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        assert torch.is_grad_enabled() is enabled
    assert p.requires_grad
    assert p.is_leaf
    assert not any(s.requires_grad for s in states(optimizer, p).values())


def test_gradients_that_require_grad():
    """create_graph leaves them so; the step reads their values."""
    [p] = torch_cases.parameters([(5,)])
    before = p.detach().clone()
    optimizer = subject.SGD([p], **MOMENTUM)
    p.pow(3).sum().backward(create_graph=True)
    optimizer.step()
    assert not optimizer.state[p]["momentum_buffer"].requires_grad
    assert_near(p, before - 0.3 * before**2, TRAJECTORY)
    p.grad = None  # or the graph would keep itself alive


@ALL
def test_inference_mode(name, options):
    """Where torch.optim steps, in inference mode and on tensors made in it, so do these."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        train(optimizer, params, 1)
        with torch.inference_mode():
            train(optimizer, params, 1, start=1)
        train(optimizer, params, 1, start=2)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_tensors_of_inference_mode(name, options):
    """Parameters that were made in it can be trained in it, as by torch, and have no version to count."""
    runs = []
    for plainest in (False, True):
        with torch.inference_mode():
            params = torch_cases.parameters()
            optimizer = torch_cases.make(name, params, plainest, **options)
            train(optimizer, params, 3)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@ALL
def test_compiled_training_steps(name, options, backend):
    """torch.compile breaks the graph at the step at most; the trajectory is that of eager code."""
    torch._dynamo.reset()
    runs = []
    for compiled in (True, False):
        torch.manual_seed(1)
        model = torch.nn.Linear(4, 3)
        optimizer = torch_cases.make(name, model.parameters(), **options)

        def iteration(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        take = torch.compile(iteration, backend=backend) if compiled else iteration
        losses = [take(torch_cases.gradient(torch.empty(6, 4), step)).item() for step in range(5)]
        runs.append((list(model.parameters()), optimizer, losses))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TRAJECTORY)
    assert runs[0][2] == pytest.approx(runs[1][2], rel=1e-5)
    torch._dynamo.reset()


def graph_breaks(cls):
    """How often a compiled training step leaves the graph; what is before the step is compiled."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = torch.nn.Linear(4, 3)
    optimizer = cls(model.parameters(), lr=0.1)

    def iteration(x):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    take = torch.compile(iteration, backend="eager")
    for _ in range(3):
        take(torch.ones(6, 4))
    assert counters["stats"]["unique_graphs"] > 0
    broken = sum(counters["graph_break"].values())
    torch._dynamo.reset()
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_breaks_the_graph_no_more_than_torchs(name):
    """torch's own optimizers leave it too, before and after the step."""
    assert graph_breaks(getattr(subject, name)) <= graph_breaks(getattr(torch.optim, name))


@ALL
def test_a_compiled_step_alone(name, options):
    """torch.compile(optimizer.step), as torch's recipes have it."""
    torch._dynamo.reset()
    params = torch_cases.parameters()
    twins = torch_cases.parameters()
    optimizer, twin = torch_cases.make(name, params, **options), torch_cases.make(name, twins, **options)
    step = torch.compile(optimizer.step, backend="eager")
    for i in range(4):
        give(params, i)
        step()
    train(twin, twins, 4)
    assert_same(params, twins, optimizer, twin, TRAJECTORY)
    torch._dynamo.reset()


# What users do to parameters, gradients and states


@ALL
def test_parameters_whose_data_is_swapped(name, options):
    """`p.data = ...` is the new memory from then on; the old one is left alone."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        train(optimizer, params, 2)
        old = params[0].data
        was = bits(old)
        params[0].data = torch.full_like(old, 0.5)
        train(optimizer, params, 3, start=2)
        assert bits(old) == was
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_frozen_parameters(name, options):
    """Without a gradient a parameter rests, and its state and count with it."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        train(optimizer, params, 2)
        params[1].requires_grad_(False)
        params[1].grad = None
        resting = bits([params[1], states(optimizer, params[1])])
        for step in range(2, 5):
            give([p for p in params if p.requires_grad], step)
            optimizer.step()
        assert bits([params[1], states(optimizer, params[1])]) == resting
        params[1].requires_grad_(True)
        train(optimizer, params, 2, start=5)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_gradients_in_place_and_replaced(name, options):
    """A gradient's memory may stay or be another one; its address tells nothing of its values."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        for step in range(8):
            new = [torch_cases.gradient(p, step) for p in params]
            for p, g in zip(params, new, strict=True):
                if step % 3 == 0 or p.grad is None:
                    p.grad = g
                elif step % 3 == 1:
                    p.grad.copy_(g)
                else:
                    p.grad.data = g
            optimizer.step()
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@ALL
def test_empty_and_scalar_parameters(name, options):
    """They step and count like all others; alone, too."""
    for shapes in ([(0,), (3, 0), (), (1,)], [(0,)], [()]):
        mine, theirs, ours, others = torch_cases.pair(name, shapes=shapes, **options)
        train(ours, mine, 3)
        train(others, theirs, 3)
        assert_same(mine, theirs, ours, others, TORCH)


def test_steps_without_any_gradient():
    """Nothing happens to the parameters, nothing is made."""
    for kind in KINDS:
        params, optimizer = victim(kind, steps=0)
        before = bits([params, [states(optimizer, p) for p in params]])
        optimizer.step()
        assert bits([params, [states(optimizer, p) for p in params]]) == before


# One of each, but no average of gradients: with one that does not go with that of the squares, torch makes NaN.
STATES = [(kind, names[len(names) // 2]) for kind, names in torch_cases.STATES.items() if names]


@pytest.mark.parametrize("way", ["replaced", "data", "in place", "cleared", "popped"])
@pytest.mark.parametrize(("kind", "state"), STATES)
def test_states_that_users_change(kind, state, way):
    """Replaced, with other memory, in place, or taken away: what stands in the optimizer's state is what counts."""
    name, options = KINDS[kind]
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, plainest, **options)
        train(optimizer, params, 3)
        for p in params:
            new = torch.full_like(p, 0.25).detach()
            if way == "replaced":
                optimizer.state[p][state] = new
            elif way == "data":
                optimizer.state[p][state].data = new
            elif way == "in place":
                optimizer.state[p][state].fill_(0.25)
            elif way == "popped":
                optimizer.state.pop(p)
        if way == "cleared":
            optimizer.state.clear()
        train(optimizer, params, 3, start=3)
        if way == "replaced":
            train(optimizer, params, 1, start=6)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


def test_a_momentum_that_reaches_zero_changes_the_rule():
    """As in torch: without momentum there is no buffer; what there was is taken up again later."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters(dtype=torch.float64)
        optimizer = torch_cases.make("SGD", params, plainest, **MOMENTUM)
        for step in range(9):
            optimizer.param_groups[0]["momentum"] = (0.9, 0.0, 0.5)[step // 3]
            train(optimizer, params, 1, start=step)
        runs.append((params, optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


def test_shared_memory():
    """Adagrad's accumulators can be moved into memory that processes share, and go on from there."""
    runs = []
    for shared in (True, False):
        params, optimizer = victim("adagrad")
        if shared:
            optimizer.share_memory()
        train(optimizer, params, 2, start=2)
        assert all(state["sum"].is_shared() is shared for state in optimizer.state.values())
        runs.append(bits([params, [states(optimizer, p) for p in params]]))
    assert runs[0] == runs[1]


# What is refused before anything is changed


BAD_GRADIENTS = {
    "dtype": lambda p: torch.ones(p.shape, dtype=torch.float64),
    "half": lambda p: torch.ones(p.shape, dtype=torch.bfloat16),
    "integers": lambda p: torch.ones(p.shape, dtype=torch.int64),
    "complex": lambda p: torch.ones(p.shape, dtype=torch.complex64),
    "shape": lambda p: torch.ones(17, 1),
    "fewer": lambda p: torch.ones(16),
    "scalar": lambda p: torch.ones(()),
    "the parameter itself": lambda p: p.detach(),
    "a part of the parameter": lambda p: p.detach()[:1].expand(17),
}


def with_gradient(p, g):
    """Give a parameter a gradient past torch's checks: through the memory of one that fits."""
    p.grad = torch.zeros_like(p)
    p.grad.data = g


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
def test_gradients_that_do_not_fit(bad, kind, steps):
    """Refused before anything is changed, with the parameter's index; those before it have not moved."""
    params, optimizer = victim(kind, steps)
    give(params, 5)
    with_gradient(params[2], BAD_GRADIENTS[bad](params[2]))
    assert_refused(optimizer, optimizer.step, r"\b2\b")
    twins, twin = victim(kind, steps)
    train(optimizer, params, 2, start=6)
    train(twin, twins, 2, start=6)
    assert bits(params) == bits(twins)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_another_device(kind):
    """There is no memory here to be updated: an error says so, at the latest at the step."""
    name, options = KINDS[kind]
    params, optimizer = victim(kind)
    bad = Parameter(torch.ones(3, device="meta"))
    assert_refused(optimizer, lambda: optimizer.add_param_group({"params": [bad]}), "meta|device")
    bad.grad = torch.ones(3, device="meta")
    with pytest.raises(torch_cases.REFUSAL, match=r"meta|device"):
        torch_cases.make(name, [bad], **options).step()
    train(optimizer, params, 1, start=2)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_memory_that_is_written(kind):
    """Another parameter's, or a state's, in whatever order they come: refused. Two may share one gradient."""
    params, optimizer = victim(kind)
    written = [params[3], *(s for s in states(optimizer, params[3]).values() if s.dim())]
    for bad in written:
        give(params, 5)
        with_gradient(params[2], bad.detach().reshape(-1)[:17])
        assert_refused(optimizer, optimizer.step, r"\b2\b")
    twins = [Parameter(torch.ones(3)) for _ in range(2)]
    twins[0].grad = twins[1].grad = torch.full((3,), 0.5)
    torch_cases.make(KINDS[kind][0], twins, lr=0.1).step()
    assert bits(twins[0]) == bits(twins[1])


def test_a_parameter_that_has_a_name_is_named():
    """In errors, where the optimizer was given names."""
    params = torch_cases.parameters([(3,), (4,)])
    optimizer = subject.SGD(zip(["first.weight", "second.bias"], params, strict=True), **MOMENTUM)
    give(params, 0)
    with_gradient(params[1], params[1].detach())
    assert_refused(optimizer, optimizer.step, "second.bias")


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_share_memory(kind):
    """Each element is updated once or not at all: parts that overlap are refused, disjoint ones are not."""
    name, options = KINDS[kind]
    for parts in [(slice(0, 6), slice(4, 10)), (slice(0, 10), slice(3, 4)), (slice(0, 10, 2), slice(4, 6))]:
        whole = torch_cases.gradient(torch.empty(10), 1)
        before = bits(whole)

        def act(whole=whole, parts=parts):
            params = [Parameter(whole[part]) for part in parts]
            optimizer = torch_cases.make(name, params, **options)
            give(params, 0)
            optimizer.step()

        with pytest.raises(ValueError, match=r"overlap|shar|memory"):
            act()
        assert bits(whole) == before
    for parts in [(slice(0, 5), slice(5, 10)), (slice(0, 10, 2), slice(1, 10, 2))]:
        runs = []
        for plainest in (False, True):
            whole = torch_cases.gradient(torch.empty(10), 1)
            params = [Parameter(whole[part]) for part in parts]
            optimizer = torch_cases.make(name, params, plainest, **options)
            train(optimizer, params, 3)
            runs.append((params, optimizer))
        assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_cannot_be_had(kind, dtype):
    """Integers have no gradients, and eight bits no kernel: an error says so, at the latest at the step."""
    name, options = KINDS[kind]
    p = torch.zeros(4).to(dtype)

    def act():
        optimizer = torch_cases.make(name, [p], **options)
        p.grad = torch.zeros(4).to(dtype)
        optimizer.step()

    with pytest.raises(torch_cases.REFUSAL):
        act()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@ALL
def test_models_that_change_their_dtype(name, options, dtype):
    """model.double() or .half() in the middle of a training: the states follow, and go on from what they were."""
    model = torch.nn.Linear(3, 2)
    params = list(model.parameters())
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 2)
    model.to(dtype)
    others = [Parameter(p.detach().double().clone()) for p in params]
    reference = torch_cases.make(name, others, True, **options)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    give(params, 2)
    for p, q in zip(params, others, strict=True):
        q.grad = p.grad.double()
    optimizer.step()
    reference.step()
    for p, q in zip(params, others, strict=True):
        assert p.dtype == dtype
        assert_near(p.detach(), q.detach().to(dtype), ONE_STEP)
        for state in {"momentum_buffer", "sum"} & states(optimizer, p).keys():
            kept = optimizer.state[p][state]
            assert kept.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert_near(kept.float(), reference.state[q][state].float(), ONE_STEP)


def test_models_that_change_their_dtype_before_the_first_step():
    """Without any state there is nothing to fit."""
    model = torch.nn.Linear(3, 2)
    optimizer = subject.SGD(model.parameters(), **MOMENTUM)
    model.double()
    train(optimizer, list(model.parameters()), 2)
    assert optimizer.state[model.weight]["momentum_buffer"].dtype == torch.float64


BAD_STATES = {
    "shape": lambda s: s.new_zeros(s.shape[0] + 1),
    "dtype": lambda s: s.to(torch.int32),
    "device": lambda s: torch.ones(s.shape, device="meta"),
    "a list": lambda s: s.tolist(),
}


@pytest.mark.parametrize("bad", BAD_STATES)
@pytest.mark.parametrize(("kind", "state"), STATES)
def test_states_that_do_not_fit(kind, state, bad):
    """What users put in a state's place is looked at before anything is changed."""
    params, optimizer = victim(kind)
    give(params, 2)
    optimizer.state[params[2]][state] = BAD_STATES[bad](optimizer.state[params[2]][state])
    assert_refused(optimizer, optimizer.step, r"\b2\b")


@pytest.mark.parametrize("layout", ["expanded", "strided", "reversed axes", "float64"])
@pytest.mark.parametrize(("kind", "state"), STATES)
def test_states_in_another_form(kind, state, layout):
    """Another layout or precision is taken up by value."""
    forms = {
        "expanded": lambda s: torch.full((), 0.25).expand(s.shape),
        "strided": lambda s: torch.full((*s.shape, 2), 0.25)[..., 0],
        "reversed axes": lambda s: torch.full(s.shape[::-1], 0.25).permute(tuple(reversed(range(s.dim())))),
        "float64": lambda s: torch.full(s.shape, 0.25, dtype=torch.float64),
    }
    runs = []
    for form in (forms[layout], lambda s: torch.full(s.shape, 0.25)):
        params, optimizer = victim(kind)
        for p in params:
            optimizer.state[p][state] = form(optimizer.state[p][state])
        train(optimizer, params, 3, start=2)
        runs.append(bits(params))
    assert runs[0] == runs[1]


def test_states_that_share_memory():
    """With a parameter, with a gradient, or with each other: refused."""
    params, optimizer = victim("momentum")
    give(params, 2)
    good = optimizer.state[params[2]]["momentum_buffer"]
    for bad in (params[2].detach(), params[2].grad, optimizer.state[params[3]]["momentum_buffer"].reshape(-1)[:17]):
        optimizer.state[params[2]]["momentum_buffer"] = bad
        assert_refused(optimizer, optimizer.step, r"\b[23]\b")
    optimizer.state[params[2]]["momentum_buffer"] = good
    optimizer.step()


BAD_OPTIONS = [
    ("momentum", {"lr": -0.1}, "lr"),
    ("momentum", {"lr": math.nan}, "lr"),
    ("momentum", {"lr": "fast"}, "lr"),
    ("momentum", {"momentum": -1.0}, "momentum"),
    ("momentum", {"weight_decay": -1.0}, "weight_decay"),
    ("nesterov", {"dampening": 0.5}, "dampening|Nesterov"),
    ("nesterov", {"momentum": 0.0}, "momentum|Nesterov"),
    ("momentum", {"differentiable": True}, "differentiable"),
    ("momentum", {"capturable": True}, "capturable"),
    ("adagrad", {"eps": -1.0}, "eps"),
    ("adagrad", {"lr_decay": math.inf}, "lr_decay"),
    ("rmsprop_centered_momentum", {"alpha": 1.5}, "alpha"),
    ("rmsprop_centered_momentum", {"centered": "yes"}, "centered"),
    ("adamw_amsgrad", {"betas": (0.9, 1.0)}, "beta parameter at index 1"),
    ("adamw_amsgrad", {"betas": (0.9,)}, "betas must be a pair"),
    ("adamw_amsgrad", {"amsgrad": 2}, "amsgrad"),
    ("adamw_amsgrad", {"capturable": True}, "capturable"),
]


@pytest.mark.parametrize(("kind", "options", "words"), BAD_OPTIONS)
def test_options_out_of_range_in_a_group(kind, options, words):
    """torch goes on with what is assigned to a group; here it is refused, at the latest at the next step."""
    params, optimizer = victim(kind)
    give(params, 2)
    before = bits([params, [states(optimizer, p) for p in params]])

    def act():
        optimizer.param_groups[0].update(options)
        optimizer.step()

    with pytest.raises(torch_cases.REFUSAL, match=f"(?i){words}"):
        act()
    assert bits([params, [states(optimizer, p) for p in params]]) == before


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in NAMES for option in HYPERPARAMETERS if option in getattr(subject, name)(ONE).defaults],
)
def test_options_that_are_none(name, option):
    """Refused by their name when the optimizer is made, and in a group later; never taken for a NaN."""
    with pytest.raises(TypeError, match=option):
        getattr(subject, name)(torch_cases.parameters(), **{option: None})
    params = torch_cases.parameters()
    optimizer = getattr(subject, name)(params)
    train(optimizer, params, 2)
    optimizer.param_groups[0][option] = None
    assert_refused(optimizer, optimizer.step, option, TypeError)


def test_a_step_that_fails_counts_nothing():
    """The group's count, and with it the schedule, go on as if it had not been."""
    lr = schedules.Linear(0.1, 0.0, 10)
    params, optimizer = victim("adagrad", lr=lr)
    give(params, 2)
    with_gradient(params[1], params[1].detach())
    assert_refused(optimizer, optimizer.step)
    assert (optimizer.param_groups[0]["step"], optimizer.param_groups[0]["lr"]) == (2, lr(1))


# Threads


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_in_several_threads(kind):
    """Each in a Python thread of its own: every trajectory is what it is alone."""
    name, options = KINDS[kind]
    shapes = [(300, 200), (17,), ()]
    runs = [torch_cases.parameters(shapes, seed=seed) for seed in range(4)]
    optimizers = [torch_cases.make(name, params, **options) for params in runs]
    failures = []

    def work(i):
        try:
            train(optimizers[i], runs[i], 10, seed=i)
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for i, params in enumerate(runs):
        alone = torch_cases.parameters(shapes, seed=i)
        train(torch_cases.make(name, alone, **options), alone, 10, seed=i)
        assert bits([p[:2] if p.dim() else p for p in params]) == bits([p[:2] if p.dim() else p for p in alone])
        assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


def test_an_optimizer_in_backward():
    """Steps from hooks of backward, one optimizer a parameter, as torch's tutorial has it."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    twin = copy.deepcopy(model)
    optimizers = {p: subject.SGD([p], **MOMENTUM) for p in model.parameters()}

    def hook(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    reference = subject.SGD(twin.parameters(), **MOMENTUM)
    for step in range(3):
        x = torch_cases.gradient(torch.empty(5, 4), step)
        model(x).square().mean().backward()
        reference.zero_grad()
        twin(x).square().mean().backward()
        reference.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_near(p, q, TRAJECTORY)


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
