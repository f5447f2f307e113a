"""Updates during backward: the ordinary trajectory, one gradient at a time, and what cannot be combined with it."""

import copy
import gc
import io
import math
import os
import subprocess
import sys
import textwrap
import weakref
from itertools import pairwise

import pytest
import torch
import torch.distributed
import torch_cases
from pairs import swept
from tolerances import TORCH, TRAJECTORY
from torch import nn
from torch_cases import ALL, KINDS, assert_near, bits, usual

import fastopt.torch as subject
from fastopt import schedules

DEADLOCK = 60


class Model(nn.Module):
    """Tied weights, a parameter that is used twice, one that is used now and then, one that never is, a frozen one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.randn(6))
        self.sometimes = nn.Linear(6, 6, bias=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)
        self.last = nn.Linear(6, 1)

    def forward(self, x, step=1):
        """Go by the step's number through one layer or not."""
        x = self.second(torch.tanh(self.first(x * self.scale))) * self.scale + self.frozen
        if step % 3:
            x = torch.tanh(self.sometimes(x))
        return self.last(x)


def twins(dtype=torch.float32):
    """The same model twice."""
    model = Model().to(dtype)
    return model, copy.deepcopy(model)


def loss(model, step):
    """The loss of a step, of order 1."""
    dtype = model.scale.dtype
    x, y = (torch_cases.noise((5, n), torch.float64, 10 * step + n).to(dtype) for n in (6, 1))
    return (model(x, step) - y).square().mean()


def train(model, optimizer, steps, start=0):
    """Take ordinary steps, or, without an optimizer, those of backward."""
    for step in range(start, start + steps):
        loss(model, step).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        else:
            assert all(p.grad is None for p in model.parameters())


def assert_equal(handle, model, optimizer, twin):
    """Assert that parameters and states agree to the bit."""
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert bits(p) == bits(q)
        got, want = torch_cases.states(handle, p), torch_cases.states(optimizer, q)
        assert bits(got) == bits(want)


# The trajectory


@swept(1, ids=str, usual=usual, kind=KINDS, dtype=[torch.float32, torch.float64, torch.bfloat16])
def test_the_trajectory_of_the_ordinary_optimizer(kind, dtype):
    """To the bit, with tied weights, late and missing gradients, frozen and unused parameters; no gradient is left."""
    name, options = KINDS[kind]
    model, twin = twins(dtype)
    before = bits([model.frozen, model.unused])
    handle = subject.step_in_backward(model, getattr(subject, name), **options)
    ordinary = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], **options)
    for step in range(8):
        train(model, None, 1, start=step)
        train(twin, ordinary, 1, start=step)
        assert_equal(handle, model, ordinary, twin)
    assert bits([model.frozen, model.unused]) == before
    assert [len(group["params"]) for group in handle.param_groups] == [8]


@ALL
def test_the_trajectory_of_torchs_optimizer(name, options):
    """The same against torch.optim, within its rounding."""
    model, twin = twins(torch.float64)
    options = {**options, "lr": 0.01}
    handle = subject.step_in_backward(model, getattr(subject, name), **options)
    theirs = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], plainest=True, **options)
    train(model, None, 20)
    train(twin, theirs, 20)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_near(p, q, TORCH)
    assert len(handle.state_dict()["param_groups"]) == 1


@ALL
def test_two_backward_passes_are_two_steps(name, options):
    """Also over one graph that is kept, where the second one's gradients are those of the first one's parameters."""
    model, twin = twins()
    subject.step_in_backward(model, getattr(subject, name), **options)
    ordinary = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], **options)
    x = torch_cases.noise((5,), torch.float32, 0)
    for instance, optimizer in ((model, None), (twin, ordinary)):
        value = (instance.last.bias * x).sum()  # whose gradient needs no parameter
        for _ in range(2):
            value.backward(retain_graph=True)
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        value.backward()
        if optimizer is not None:
            optimizer.step()
    assert bits(model.last.bias) == bits(twin.last.bias)


def test_a_graph_that_needs_an_old_value_is_an_error():
    """autograd knows of the write: a second pass does not go on with the wrong value."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    subject.step_in_backward(model, subject.SGD, lr=0.1, momentum=0.9)
    value = model(torch.ones(2, 4)).sum()
    versions = [p._version for p in model.parameters()]
    value.backward(retain_graph=True)
    assert all(p._version > version for p, version in zip(model.parameters(), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@ALL
def test_anomalies_are_looked_for(name, options):
    """Under detect_anomaly it trains as without, and a NaN is found before anything is updated by it."""
    model, twin = twins()
    for instance, anomalous in ((model, True), (twin, False)):
        subject.step_in_backward(instance, getattr(subject, name), **options)
        with torch.autograd.set_detect_anomaly(anomalous):
            train(instance, None, 3)
    assert bits(list(model.parameters())) == bits(list(twin.parameters()))
    before = bits(model.scale)
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="nan"):
        (model.scale * 0.0).sum().sqrt().mul(0.0).backward()
    assert bits(model.scale) == before


def test_gradients_of_a_compiled_model():
    """torch.compile of the model leaves the updates to backward."""
    torch._dynamo.reset()
    model, twin = twins()
    subject.step_in_backward(model, subject.SGD, lr=0.1, momentum=0.9)
    subject.step_in_backward(twin, subject.SGD, lr=0.1, momentum=0.9)
    compiled = torch.compile(model, backend="eager")
    x = torch_cases.noise((5, 6), torch.float32, 1)
    for _ in range(3):
        compiled(x).square().mean().backward()
        twin(x).square().mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_near(p, q, TRAJECTORY)
    torch._dynamo.reset()


def test_gradients_that_were_there():
    """What stood in .grad before counts once, as in torch, and is gone afterwards."""
    model, twin = twins()
    handle = subject.step_in_backward(model, subject.SGD, lr=0.5)
    model.scale.grad, twin.scale.grad = torch.ones(6), torch.ones(6)
    ordinary = subject.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.5)
    train(model, None, 2)
    train(twin, ordinary, 2)
    assert_equal(handle, model, ordinary, twin)


# Options, schedules, state dicts


def test_options_take_effect_at_the_next_update():
    """A rate, a rule, in the group that the handle shows; of two groups' worth of parameters all go by it."""
    model, twin = twins()
    handle = subject.step_in_backward(model, subject.SGD, lr=0.1, momentum=0.9)
    ordinary = subject.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    changes = [
        ("lr", 0.01),
        ("nesterov", True),
        ("lr", 0.3),
        ("nesterov", False),
        ("momentum", 0.0),
        ("maximize", True),
    ]
    for step, (key, value) in enumerate(changes):
        handle.param_groups[0][key] = ordinary.param_groups[0][key] = value
        train(model, None, 1, start=step)
        train(twin, ordinary, 1, start=step)
        assert_equal(handle, model, ordinary, twin)


def test_a_tensors_rate():
    """It may be changed in place."""
    model, twin = twins()
    rate = torch.tensor(0.1)
    subject.step_in_backward(model, subject.SGD, lr=rate)
    ordinary = subject.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        rate.fill_(0.1 / (1 + step))
        ordinary.param_groups[0]["lr"] = rate.item()
        train(model, None, 1, start=step)
        train(twin, ordinary, 1, start=step)
    assert bits(list(model.parameters())) == bits(list(twin.parameters()))


SCHEDULES = {
    "cosine": lambda: {"lr": schedules.Warmup(schedules.Cosine(0.1, 20), 3)},
    "several": lambda: {"lr": schedules.Linear(0.1, 0.0, 15), "weight_decay": schedules.Exponential(0.1, 0.9)},
    "a function": lambda: {"lr": lambda step: 0.1 / (1 + step)},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", torch_cases.NAMES)
def test_schedules_count_iterations(name, schedule):
    """One step a backward pass, however many parameters it has reached."""
    model, twin = twins()
    handle = subject.step_in_backward(model, getattr(subject, name), **SCHEDULES[schedule]())
    ordinary = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], **SCHEDULES[schedule]())
    rate = SCHEDULES[schedule]()["lr"]
    for step in range(10):
        train(model, None, 1, start=1)  # every parameter each time
        train(twin, ordinary, 1, start=1)
        assert handle.param_groups[0]["lr"] == rate(step)
        assert_equal(handle, model, ordinary, twin)
    assert handle.state_dict()["param_groups"][0]["step"] == 10


@pytest.mark.parametrize("uses", [(0, 1), (0, 1, 2), (0, 0, 1), (2, 0)], ids=str)
def test_schedules_count_iterations_that_reach_other_parameters(uses):
    """A pass that reaches none of the last one's parameters is an iteration too, and so is one that reaches more."""
    layers, others = (nn.ModuleList([nn.Linear(3, 1) for _ in range(2)]) for _ in range(2))
    others.load_state_dict(layers.state_dict())
    rate = schedules.Linear(1.0, 0.0, 20)
    handle = subject.step_in_backward(layers, subject.SGD, lr=rate)
    ordinary = subject.SGD(others.parameters(), lr=rate)
    for step in range(6):
        used = uses[step % len(uses)]
        for model in (layers, others):
            chosen = [model[used]] if used < 2 else list(model)
            sum(layer(torch.ones(2, 3)).square().mean() for layer in chosen).backward()
        ordinary.step()
        ordinary.zero_grad()
        assert handle.param_groups[0]["lr"] == rate(step)
        assert bits(list(layers.parameters())) == bits(list(others.parameters()))
    assert handle.state_dict()["param_groups"][0]["step"] == 6


@pytest.mark.parametrize("name", torch_cases.NAMES)
def test_a_schedule_goes_on_from_a_state_dict(name, tmp_path):
    """Saved in the middle, as often as one likes, and opened by torch's defaults: no step is lost or counted twice."""
    rate = schedules.Cosine(0.1, 12)
    model, twin = twins()
    handle = subject.step_in_backward(model, getattr(subject, name), lr=rate)
    ordinary = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], lr=rate)
    for step in range(1, 12):
        train(model, None, 1, start=1)
        train(twin, ordinary, 1, start=1)
        assert [handle.state_dict()["param_groups"][0]["step"] for _ in range(2)] == [step] * 2
        if step % 4 == 0:
            torch.save(handle.state_dict(), tmp_path / "checkpoint.pt")
            handle.remove()
            handle = subject.step_in_backward(model, getattr(subject, name), lr=5.0)
            handle.load_state_dict(torch.load(tmp_path / "checkpoint.pt"))
        if step % 5 == 0:
            handle.load_state_dict(handle.state_dict())
        assert_equal(handle, model, ordinary, twin)


@ALL
def test_state_dicts_of_the_ordinary_optimizer_and_back(name, options):
    """In the middle of a training, in both directions, with parameters that have had no gradient yet."""
    model, twin = twins()
    trained = [p for p in model.parameters() if p.requires_grad]
    reference = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], **options)
    ordinary = torch_cases.make(name, trained, **options)
    train(model, ordinary, 1)
    handle = subject.step_in_backward(model, getattr(subject, name), **{**options, "lr": 9.0})
    handle.load_state_dict(copy.deepcopy(ordinary.state_dict()))
    train(model, None, 3, start=1)
    handle.load_state_dict(copy.deepcopy(handle.state_dict()))
    train(model, None, 2, start=4)
    handle.remove()
    again = torch_cases.make(name, trained, **{**options, "lr": 9.0})
    again.load_state_dict(copy.deepcopy(handle.state_dict()))
    train(model, again, 2, start=6)
    train(twin, reference, 8)
    assert_equal(again, model, reference, twin)


@ALL
def test_state_dicts_of_torchs_optimizer_and_back(name, options):
    """torch.optim can go on with it, and the other way round."""
    model, twin = twins(torch.float64)
    trained = [p for p in model.parameters() if p.requires_grad]
    reference = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], plainest=True, **options)
    theirs = torch_cases.make(name, trained, plainest=True, **options)
    train(model, theirs, 2)
    handle = subject.step_in_backward(model, getattr(subject, name), **options)
    handle.load_state_dict(theirs.state_dict())
    train(model, None, 2, start=2)
    handle.remove()
    theirs.load_state_dict(handle.state_dict())
    train(model, theirs, 2, start=4)
    train(twin, reference, 6)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_near(p, q, TORCH)


def test_a_state_dict_that_is_not_loaded():
    """It is refused, and the training goes on as if nothing had been."""
    model, twin = twins()
    handle = subject.step_in_backward(model, subject.Adagrad, lr=0.1)
    ordinary = subject.Adagrad([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    train(model, None, 2)
    bad = copy.deepcopy(handle.state_dict())
    bad["state"][0]["sum"] = torch.ones(7)
    with pytest.raises(ValueError, match=r"sum of parameter .*shape"):
        handle.load_state_dict(bad)
    train(model, None, 2, start=2)
    train(twin, ordinary, 4)
    assert_equal(handle, model, ordinary, twin)


@pytest.mark.parametrize("way", ["replaced", "popped", "data"])
def test_states_that_users_change(way):
    """What stands in the handle's state is what counts."""
    model, twin = twins()
    handle = subject.step_in_backward(model, subject.SGD, lr=0.1, momentum=0.9)
    ordinary = subject.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for instance, optimizer, given in ((model, handle, None), (twin, ordinary, ordinary)):
        train(instance, given, 2)
        if way == "replaced":
            optimizer.state[instance.scale]["momentum_buffer"] = torch.ones(6)
        elif way == "data":
            optimizer.state[instance.scale]["momentum_buffer"].data = torch.ones(6)
        else:
            optimizer.state.pop(instance.scale)
        train(instance, given, 2, start=2)
    assert_equal(handle, model, ordinary, twin)


def test_parameters_whose_data_is_swapped():
    """The new memory is what is updated; the old one stays."""
    model, twin = twins()
    handle = subject.step_in_backward(model, subject.Adagrad, lr=0.1)
    ordinary = subject.Adagrad([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    for instance, given in ((model, None), (twin, ordinary)):
        train(instance, given, 2)
        old = instance.scale.data
        was = bits(old)
        instance.scale.data = torch.ones(6)
        train(instance, given, 2, start=2)
        assert bits(old) == was
    assert_equal(handle, model, ordinary, twin)


# Ends and errors


@ALL
def test_remove_ends_the_updates(name, options):
    """Gradients stay and accumulate then; removing twice is once."""
    model, twin = twins()
    handle = subject.step_in_backward(model, getattr(subject, name), **options)
    train(model, None, 2)
    twin.load_state_dict(model.state_dict())
    handle.remove()
    handle.remove()
    before = bits([list(model.parameters()), handle.state_dict()["state"]])
    for instance in (model, twin):
        loss(instance, 1).backward()
        loss(instance, 2).backward()
    assert bits([list(model.parameters()), handle.state_dict()["state"]]) == before
    assert model.unused.grad is None
    assert bits([p.grad for p in model.parameters()]) == bits([p.grad for p in twin.parameters()])


def test_what_the_handle_refuses():
    """A step of its own, a norm of all gradients, a scaler's decision: each says why."""
    model, _ = twins()
    handle = subject.step_in_backward(model, subject.SGD, lr=0.1)
    train(model, None, 1)
    before = bits(list(model.parameters()))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    for act, reason in [
        (handle.step, r"updated during backward"),
        (lambda: handle.step(lambda: 3), r"updated during backward"),
        (lambda: handle.clip_grad_norm_(1.0), r"norm"),
        (lambda: scaler.step(handle), r"GradScaler decides after backward"),
        (lambda: torch.amp.GradScaler("cpu", enabled=False).step(handle), r"updated during backward"),
    ]:
        with pytest.raises(RuntimeError, match=reason):
            act()
    assert bits(list(model.parameters())) == before


def test_a_scaler_that_has_scaled_the_loss():
    """It is refused at its step as well, where it is too late for the model, which the error says."""
    model, _ = twins()
    handle = subject.step_in_backward(model, subject.SGD, lr=1e-9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(loss(model, 1)).backward()
    with pytest.raises(RuntimeError, match="by then it has been"):
        scaler.step(handle)


@pytest.mark.parametrize(
    "make",
    [torch.optim.SGD, torch.optim.Adam, "SGD", None, subject.step_in_backward],
    ids=["torch's SGD", "Adam", "a name", "None", "a function"],
)
def test_optimizers_that_are_not_these(make):
    """A class of fastopt.torch is what it takes."""
    with pytest.raises(TypeError, match=r"a class of fastopt\.torch"):
        subject.step_in_backward(nn.Linear(2, 1), make, lr=0.1)


def test_an_optimizer_that_has_been_made():
    """The class is wanted, since the optimizer is the handle's own."""
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"a class of fastopt\.torch"):
        subject.step_in_backward(model, subject.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("model", [[nn.Parameter(torch.ones(2))], nn.Parameter(torch.ones(2)), None, nn.Linear])
def test_models_that_are_none(model):
    """A list of parameters, a parameter, a class: refused by name."""
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        subject.step_in_backward(model, subject.SGD, lr=0.1)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("SGD", {"lr": -1.0}, ValueError),
        ("SGD", {"lr": 0.1, "nesterov": True}, ValueError),
        ("SGD", {"x": 1}, TypeError),
    ],
)
def test_options_that_are_none(name, options, error):
    """Refused as by the optimizer; no hook is left behind."""
    model, _ = twins()
    with pytest.raises(error):
        subject.step_in_backward(model, getattr(subject, name), **options)
    loss(model, 1).backward()
    assert model.scale.grad is not None


def test_models_without_parameters_to_train():
    """As the optimizer has it: an empty list is an error."""
    model = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="empty parameter list"):
        subject.step_in_backward(model, subject.SGD, lr=0.1)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: nn.Sequential(model, nn.Tanh())], ids=["it", "in it"]
)
def test_models_whose_gradients_are_reduced(wrap, tmp_path):
    """DistributedDataParallel, also deep in another module, averages gradients after the hooks of its parameters."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = wrap(nn.parallel.DistributedDataParallel(nn.Linear(2, 1)))
        with pytest.raises(ValueError, match="distributed"):
            subject.step_in_backward(model, subject.SGD, lr=0.1)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("when", ["first", "later"])
@ALL
def test_an_error_inside_an_update(name, options, when):
    """It comes out of backward(); that parameter, its state and its count are as before, and so is what follows it."""
    model, twin = twins()
    handle = subject.step_in_backward(model, getattr(subject, name), **options)
    if when == "later":
        train(model, None, 2)
    before = bits([list(model.parameters()), [torch_cases.states(handle, p) for p in model.parameters()]])
    handle.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        loss(model, 2).backward()
    after = bits([list(model.parameters()), [torch_cases.states(handle, p) for p in model.parameters()]])
    assert after == before
    handle.param_groups[0]["lr"] = 0.1
    model.zero_grad()
    ordinary = torch_cases.make(name, [p for p in twin.parameters() if p.requires_grad], **options)
    twin.load_state_dict(model.state_dict())
    ordinary.load_state_dict(copy.deepcopy(handle.state_dict()))
    train(model, None, 2, start=2)
    train(twin, ordinary, 2, start=2)
    assert_equal(handle, model, ordinary, twin)


@pytest.mark.parametrize("kind", ["momentum", "adagrad"])
def test_an_error_names_the_parameter(kind):
    """By its name in the model; others of the same pass are updated or not, but none halfway."""
    name, options = KINDS[kind]
    model, _ = twins()
    handle = subject.step_in_backward(model, getattr(subject, name), **options)
    train(model, None, 2)
    state = {"momentum": "momentum_buffer", "adagrad": "sum"}[kind]
    handle.state[model.sometimes.weight][state] = torch.ones(7)
    before = bits(model.sometimes.weight)
    with pytest.raises(ValueError, match=rf"{state} of .*sometimes\.weight.* has shape \(7,\)"):
        loss(model, 1).backward()
    assert bits(model.sometimes.weight) == before


def test_sparse_gradients():
    """Rows are updated alone, where the rule allows it; where it does not, backward says so."""
    words = torch.tensor([1, 3, 1])
    for name in ("SGD", "Adagrad"):
        tables = [nn.Embedding.from_pretrained(torch.ones(5, 2), freeze=False, sparse=True) for _ in range(2)]
        subject.step_in_backward(tables[0], getattr(subject, name), lr=0.1)
        ordinary = torch_cases.make(name, tables[1].parameters(), lr=0.1)
        for _ in range(3):
            tables[0](words).sum().backward()
            tables[1](words).sum().backward()
            ordinary.step()
            ordinary.zero_grad()
            assert tables[0].weight.grad is None
        assert bits(tables[0].weight) == bits(tables[1].weight)
    for name, options, error in (("SGD", {"momentum": 0.9}, ValueError), ("Adam", {}, RuntimeError)):
        table = nn.Embedding(5, 2, sparse=True)
        subject.step_in_backward(table, getattr(subject, name), lr=0.1, **options)
        before = bits(table.weight)
        with pytest.raises(error, match="sparse"):
            table(words).sum().backward()
        assert bits(table.weight) == before


# Memory


def test_one_gradient_at_a_time():
    """When a parameter's turn comes, no other one's gradient is alive any more."""
    model = nn.Sequential(*[nn.Linear(50, 50) for _ in range(12)])
    alive, seen = [], []

    def note(p):
        alive.append(sum(1 for gradient in seen if gradient() is not None))
        seen.append(weakref.ref(p.grad))

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(note)
    handle = subject.step_in_backward(model, subject.SGD, lr=0.01, momentum=0.9)
    for _ in range(3):
        model(torch.ones(4, 50)).square().mean().backward()
        assert all(gradient() is None for gradient in seen)
    assert len(alive) == 3 * 24
    assert max(alive) == 0
    handle.remove()
    alive.clear()
    model(torch.ones(4, 50)).square().mean().backward()
    assert alive == list(range(24))  # the test can see what it tests for


MEMORY = """
    import resource, torch, fastopt.torch
    from torch import nn

    torch.set_num_threads(1)
    size, count = 1200, 12
    model = nn.Sequential(*[nn.Linear(size, size) for _ in range(count)])
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    x = torch.ones(4, size)

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

    def iterate(model, optimizer=None):
        for _ in range(2):
            model(x).square().mean().backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

    def more(act):
        # How much higher the peak is afterwards; ballast, so that no earlier one hides it.
        ballast = torch.ones(max(peak() - resident(), 0) // 4 + 1)
        before = peak()
        act()
        return peak() - before

    # What is loaded with the first step, the threads' own memory, and states, which stay, are not counted.
    small = nn.Linear(size, size)
    fastopt.torch.step_in_backward(small, fastopt.torch.SGD, lr=1e-9)
    iterate(small)
    handle = fastopt.torch.step_in_backward(model, fastopt.torch.SGD, lr=1e-9)
    without_state = more(lambda: iterate(model))
    handle.param_groups[0]["momentum"] = 0.9
    model(x).square().mean().backward()
    with_state = more(lambda: iterate(model))
    handle.remove()
    ordinary = more(lambda: iterate(model, fastopt.torch.SGD(model.parameters(), lr=1e-9)))
    assert without_state < gradients / 2 and with_state < gradients / 2, (gradients, without_state, with_state)
    assert ordinary > gradients / 2, ordinary
    print("passed")
"""


@pytest.mark.exhaustive  # a process that fills much memory
def test_memory_of_one_gradient(tmp_path):
    """A deep stack's peak is that of a few layers' gradients, where the ordinary optimizer's is that of all."""
    command = [sys.executable, "-c", textwrap.dedent(MEMORY)]
    # Large blocks go back to the system when they are freed: what glibc keeps of them varies from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLOCK, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "passed\n", "")


@swept(kind=KINDS, hooked=[False, True], removed=[True, False])
def test_dropping_handle_and_model_frees_both(kind, hooked, removed):
    """Hooks, steppers and states go with the model, with or without `remove()`, and with hooks of the user's own."""
    name, options = KINDS[kind]
    model = nn.Linear(5, 5)
    if hooked:
        model.weight.register_hook(lambda gradient: None)
    handle = subject.step_in_backward(model, getattr(subject, name), **options)
    for _ in range(3):
        model(torch.ones(1, 5)).sum().backward()
    states = handle.state[model.weight].values()
    held = [weakref.ref(thing) for thing in (model, model.weight, handle, *states) if not isinstance(thing, float)]
    if removed:
        handle.remove()
    del model, handle, states
    gc.collect()
    assert [thing() for thing in held] == [None] * len(held)


@pytest.mark.parametrize("kept", ["handle", "model", "part", "parameter"])
def test_updates_go_on_while_anything_is_left(kept):
    """Whoever drops the handle, or the model but a part of it, goes on training as if all were kept."""
    model, twin = (nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    handle, _ = (subject.step_in_backward(m, subject.SGD, lr=0.1, momentum=0.9) for m in (model, twin))
    things = {"handle": handle, "model": model, "part": model[0], "parameter": model[0].weight}
    held = things[kept]
    del model, handle, things
    gc.collect()
    weight = {
        "handle": lambda: held.param_groups[0]["params"][0],
        "model": lambda: held[0].weight,
        "part": lambda: held.weight,
        "parameter": lambda: held,
    }[kept]()
    for _ in range(3):
        weight.square().sum().backward()
        twin[0].weight.square().sum().backward()
        assert weight.grad is None
    assert torch.equal(weight, twin[0].weight)


def test_the_model_is_saved_and_copied_without_the_handle():
    """Copies are not updated, and whoever loads the model needs no fastopt."""
    model = nn.Linear(2, 2)
    plain = io.BytesIO()
    torch.save(model, plain)
    handle = subject.step_in_backward(model, subject.SGD, lr=0.1)
    saved = io.BytesIO()
    torch.save(model, saved)
    assert saved.getvalue() == plain.getvalue()
    twin = copy.deepcopy(model)
    twin(torch.ones(1, 2)).sum().backward()
    assert twin.weight.grad is not None
    handle.remove()
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None


def test_the_same_stepper_serves_all_steps():
    """Nothing is searched for, allocated or compiled again while nothing has changed."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1))
    handle = subject.step_in_backward(model, subject.Adagrad, lr=schedules.Cosine(0.1, 20), lr_decay=0.1)
    kept = []
    for _ in range(6):
        model(torch.ones(2, 5)).sum().backward()
        kept.append(dict(handle._steppers))
    for one, next_one in pairwise(kept):
        assert one.keys() == next_one.keys() == {*model.parameters()}
        assert all(one[p] is next_one[p] for p in one)
    assert math.isclose(handle.param_groups[0]["lr"], schedules.Cosine(0.1, 20)(5))


def test_a_parameter_that_was_frozen_while_states_were_loaded():
    """It trains when it thaws, as with an optimizer's own step."""
    model, twin = (torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    handle = subject.step_in_backward(model, subject.Adam, lr=0.1)
    optimizer = subject.Adam(twin.parameters(), lr=0.1)
    for step in range(6):
        frozen = step in (2, 3)
        for each in (model, twin):
            each[0].weight.requires_grad_(not frozen)
        if step == 3:
            handle.load_state_dict(handle.state_dict())
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.zero_grad()
        twin(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_pass_that_was_broken_off_is_counted():
    """Some parameters have taken that step, so that the next pass is another one, for schedules too."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    handle = subject.step_in_backward(model, subject.SGD, lr=schedules.Linear(0.1, 0.0, 10))

    def fail(gradient):
        raise ArithmeticError

    hidden = model[0](torch.ones(4, 3))
    hidden.register_hook(fail)
    with pytest.raises(ArithmeticError):
        model[1](hidden).mean().backward()
    model(torch.ones(4, 3)).mean().backward()
    assert handle.param_groups[0]["step"] == 2
    assert handle.param_groups[0]["lr"] == schedules.Linear(0.1, 0.0, 10)(1)
