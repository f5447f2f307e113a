"""What runs around a step: closures, hooks, the profiler, subclasses, copies, threads."""

import contextlib
import copy
import pickle
import threading

import pytest
import torch
import torch_cases
from tolerances import TORCH, TRAJECTORY
from torch.optim import optimizer as torch_optimizer
from torch_cases import (
    ALL,
    KINDS,
    NAMES,
    assert_near,
    assert_refused,
    assert_same,
    bits,
    give,
    snapshot,
    train,
    victim,
    without_gradients,
)

import fastopt.torch as subject
from fastopt import schedules

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


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
