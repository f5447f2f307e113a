"""What autograd, inference mode and torch.compile see of a step."""

import pytest
import torch
import torch_cases
from pairs import swept
from tolerances import TORCH, TRAJECTORY
from torch_cases import ALL, KINDS, NAMES, assert_near, assert_same, give, states, train

import fastopt.torch as subject

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


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
    counts = {"step", optimizer._family.carried}
    versions = {key: state._version for key, state in states(optimizer, p).items() if key not in counts}
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


@swept(1, usual=lambda kind, backend: kind in ("momentum", "adamw_amsgrad"), kind=KINDS, backend=["eager", "aot_eager"])
def test_compiled_training_steps(kind, backend):
    """torch.compile breaks the graph at the step at most; the trajectory is that of eager code."""
    name, options = KINDS[kind]
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


@pytest.mark.parametrize(
    "name", ["SGD", "AdamW", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES[1:-1])]
)
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
