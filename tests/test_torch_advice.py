"""Messages of fastopt.torch that give advice: each is followed, and then it works."""

import cuda_stand_in
import pytest
import torch
import torch_cases
from cuda_tensors import on_gpu, on_host
from gpu_models import DEVICE, captured
from test_torch_frozen import Foreign
from torch.nn import Parameter
from torch_cases import REFUSAL

import fastopt.torch as subject
from fastopt.schedules import Constant, Linear, Plateau


def sgd(*params, **options):
    """Make an optimizer, and take a step with gradients of ones."""
    optimizer = subject.SGD(params, **{"lr": 0.1, **options})
    for p in params:
        if p.grad is None:
            p.grad = torch.ones_like(p)
    optimizer.step()


def stepped(gradient, options=None, make=subject.SGD):
    """Step with a gradient, which a function makes of the parameter."""
    p = Parameter(torch.ones(4, 3))
    optimizer = make([p], lr=0.1, **(options or {}))
    p.grad = gradient(p)
    optimizer.step()


def assigned(**entries):
    """Assign entries of a group, and step."""
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = subject.Adam([p], lr=0.1)
    optimizer.param_groups[0].update(entries)
    optimizer.step()


def without(name):
    """Delete an entry of a group, and step; then do as the message says."""
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = subject.Adam([p], lr=0.1)
    del optimizer.param_groups[0][name]
    return optimizer


def sparse(p):
    """A gradient of two rows."""
    return torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 3), p.shape, check_invariants=True)


def followed_without():
    """Assign the default."""
    optimizer = without("eps")
    optimizer.param_groups[0]["eps"] = optimizer.defaults["eps"]
    optimizer.step()


class Lazy(torch.nn.Module):
    """A model whose shapes are known after its first run."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.LazyLinear(2)

    def forward(self, x):
        """Apply the layer."""
        return self.layer(x)


def lazy(run):
    """Optimize a lazy model, before or after its first run."""
    model = Lazy()
    if run:
        model(torch.ones(1, 3))
    sgd(*model.parameters())


def scaled(dtype, autocast=False, **options):
    """Train under a GradScaler for a step."""
    model = torch.nn.Linear(3, 1).to(dtype)
    optimizer = subject.SGD(model.parameters(), lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = model.weight.detach().clone()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        loss = model(torch.ones(2, 3, dtype=dtype)).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert not torch.equal(model.weight, before)


def resumed(*names):
    """Step with a state that has these entries."""
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = subject.Adam([p], lr=0.1)
    optimizer.state[p] = {name: torch.tensor(100.0) if name == "step" else torch.ones(3) for name in names}
    optimizer.step()


CONJUGATE = torch.ones(3, dtype=torch.complex64).conj()
CASES = {  # what is wrong, what the message says, what it advises
    "a layout": (
        lambda: sgd(Parameter(torch.eye(3).to_sparse())),
        r"pass \.to_dense\(\) of it",
        lambda: sgd(Parameter(torch.eye(3).to_sparse().to_dense())),
    ),
    "elements that overlap": (
        lambda: sgd(Parameter(torch.ones(1).expand(3))),
        r"pass a \.clone\(\) of it",
        lambda: sgd(Parameter(torch.ones(1).expand(3).clone())),
    ),
    "a conjugate": (
        lambda: sgd(Parameter(CONJUGATE)),
        r"make it with \.resolve_conj\(\)\.resolve_neg\(\)",
        lambda: sgd(Parameter(CONJUGATE.resolve_conj().resolve_neg())),
    ),
    "a ZeroTensor": (
        lambda: sgd(Parameter(torch._efficientzerotensor(3))),
        r"pass a \.clone\(\) of it",
        lambda: sgd(Parameter(torch._efficientzerotensor(3).clone())),
    ),
    "no shape yet": (lambda: lazy(False), "run the model once before", lambda: lazy(True)),
    "a device": (
        lambda: sgd(Parameter(torch.ones(3, device="meta"))),
        r"tensors on the CPU and on CUDA devices",
        lambda: sgd(Parameter(torch.ones(3, device="cpu"))),
    ),
    "a gradient that overlaps": (
        lambda: stepped(lambda p: p.detach()),
        r"assign a \.clone\(\) of it",
        lambda: stepped(lambda p: p.detach().clone()),
    ),
    "a sparse gradient with momentum": (
        lambda: stepped(sparse, {"momentum": 0.9}),
        r"pass \.to_dense\(\) of it, or put the parameter into a group without",
        lambda: stepped(lambda p: sparse(p).to_dense(), {"momentum": 0.9}) or stepped(sparse),
    ),
    "a sparse gradient for Adam": (
        lambda: stepped(sparse, make=subject.Adam),
        r"pass \.to_dense\(\) of it, or use Adagrad or SparseAdam",
        lambda: stepped(sparse, make=subject.Adagrad) or stepped(sparse, make=subject.SparseAdam),
    ),
    "a beta that is a tensor": (
        lambda: assigned(betas=(torch.tensor(0.5), 0.9)),
        r"pass its \.item\(\)",
        lambda: assigned(betas=(torch.tensor(0.5).item(), 0.9)),
    ),
    "an option that is gone": (lambda: without("eps").step(), "assign it, perhaps its default", followed_without),
    "Nesterov with a dampening": (
        lambda: sgd(Parameter(torch.ones(3)), momentum=0.9, nesterov=True, dampening=0.1),
        "requires a momentum and zero dampening",
        lambda: sgd(Parameter(torch.ones(3)), momentum=0.9, nesterov=True, dampening=0.0),
    ),
    "a tensor of several numbers": (
        lambda: assigned(lr=torch.ones(2)),
        "1-element",
        lambda: assigned(lr=torch.ones(1)),
    ),
    "a beta that is a Plateau": (
        lambda: assigned(betas=(Plateau(0.5), 0.9)),
        "use a schedule that goes by the step, or a function that asks the Plateau",
        lambda: assigned(betas=(Constant(0.5), 0.9)) or assigned(betas=(lambda step: PLATEAU.lr, 0.9)),
    ),
    "a memory of its own": (
        lambda: sgd(Parameter(Foreign(torch.ones(3)))),
        r"use torch\.optim for it",
        lambda: torch.optim.SGD([Parameter(Foreign(torch.ones(3)))], lr=0.1),
    ),
    "a captured optimizer": (
        lambda: assigned(capturable=True),
        r"use torch\.optim for that",
        lambda: torch.optim.Adam([Parameter(torch.ones(3))], capturable=True),
    ),
    "float16 under a scaler": (
        lambda: scaled(torch.float16),
        "make the optimizer with fused=True, so that the kernel does, or keep the parameters in float32 and use",
        lambda: scaled(torch.float16, fused=True) or scaled(torch.float32, autocast=True),
    ),
    "states without a count": (
        lambda: resumed("exp_avg", "exp_avg_sq"),
        r"no 'step': put the count .* state\['step'\] = torch\.tensor\(100\.0\), or take the others out as well",
        lambda: resumed("step", "exp_avg", "exp_avg_sq") or resumed(),
    ),
    "a count without a state": (
        lambda: resumed("step", "exp_avg"),
        "put that there, or take 'step' out as well",
        lambda: resumed("step", "exp_avg", "exp_avg_sq") or resumed(),
    ),
    "a class that is not here": (
        lambda: subject.LBFGS,
        r"use torch\.optim\.LBFGS",
        lambda: torch.optim.LBFGS([Parameter(torch.ones(3))]),
    ),
}


PLATEAU = Plateau(0.5)


@pytest.mark.parametrize(("wrong", "words", "right"), CASES.values(), ids=CASES)
def test_advice_is_good(wrong, words, right):
    """The message says it, and what it says works."""
    with pytest.raises((*REFUSAL, AttributeError), match=words):
        wrong()
    right()


def test_a_function_that_cannot_be_saved():
    """It is assigned to the group before loading, or taken out of the description."""
    [p] = torch_cases.parameters([(3,)])
    saved = subject.SGD([p], lr=lambda step: 0.1).state_dict()
    optimizer = subject.SGD([p], lr=0.3)
    with pytest.raises(ValueError, match="assign it to the group before loading, or delete 'lr' from 'schedules'"):
        optimizer.load_state_dict(saved)
    optimizer.param_groups[0]["lr"] = lambda step: 0.5
    optimizer.load_state_dict(saved)
    other = subject.SGD([p], lr=0.3)
    del saved["param_groups"][0]["schedules"]["lr"]
    other.load_state_dict(saved)
    for each, rate in ((optimizer, 0.5), (other, 0.1)):
        p.grad = torch.ones(3)
        each.step()
        assert each.param_groups[0]["lr"] == rate


def test_a_scheduler_beside_a_schedule():
    """The warning's way is followed in test_torch_schedulers.py; this one is the other: no scheduler at all."""
    [p] = torch_cases.parameters([(3,)])
    optimizer = subject.SGD([p], lr=Linear(0.2, 0.0, 4))
    torch_cases.train(optimizer, [p], 3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_plateau_of_two_groups():
    """Each has its own before loading, where the state dict has another one for each."""
    params = torch_cases.parameters([(3,), (4,)])
    groups = lambda *rates: [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)]  # noqa: E731
    saved = subject.SGD(groups(Plateau(0.1), Plateau(0.2))).state_dict()
    shared = Plateau(0.3)
    optimizer = subject.SGD(groups(shared, shared))
    with pytest.raises(ValueError, match="give each group its own before loading"):
        optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        group["lr"] = Plateau(0.3)
    optimizer.load_state_dict(saved)
    torch_cases.train(optimizer, params, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


# Updates in backward


def backward(act):
    """Train a model by updates in backward, then act as one would with an optimizer."""
    model = torch.nn.Linear(3, 1)
    handle = subject.step_in_backward(model, subject.SGD, lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    act(model, handle)


def own_step(act, dtype=torch.float32):
    """Train it by the optimizer's own step, before which one acts."""
    model = torch.nn.Linear(3, 1).to(dtype)
    optimizer = subject.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 3, dtype=dtype)).sum().backward()
    act(model, optimizer)
    optimizer.step()


def reduced(make):
    """Make an optimizer of a model whose gradients are averaged over processes, of which there is one, and train."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
        optimizer = make(model)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    finally:
        torch.distributed.destroy_process_group()


def scaler_step(model, optimizer):
    """Let a GradScaler take the step."""
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)


BACKWARD = {
    "clipping": (
        lambda: backward(lambda model, handle: handle.clip_grad_norm_(1.0)),
        r"to clip by the norm, use the optimizer's own step\(\)",
        lambda: own_step(lambda model, optimizer: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)),
    ),
    "a scaler": (
        lambda: backward(scaler_step),
        r"use the optimizer's own step\(\), or bfloat16, which needs no scaling",
        lambda: own_step(scaler_step) or own_step(lambda model, optimizer: None, torch.bfloat16),
    ),
    "a distributed model": (
        lambda: reduced(lambda model: subject.step_in_backward(model, subject.SGD, lr=0.1)),
        r"use the optimizer's step\(\)",
        lambda: reduced(lambda model: subject.SGD(model.parameters(), lr=0.1)),
    ),
}


@pytest.mark.parametrize(("wrong", "words", "right"), BACKWARD.values(), ids=BACKWARD)
def test_advice_on_updates_in_backward(wrong, words, right):
    """What they cannot do, the optimizer's own step can."""
    with pytest.raises((ValueError, RuntimeError), match=words):
        wrong()
    right()


# Captures


def on_the_gpu(make=subject.SGD, **options):
    """A parameter there with its gradient, its optimizer, and a stream."""
    p = Parameter(on_gpu(torch.ones(4, 3)))
    p.grad = on_gpu(torch.ones(4, 3))
    return p, make([p], **{"lr": 0.25, **options}), cuda_stand_in.Stream()


def warm(stream, step):
    """Take two steps on a stream."""
    with stream:
        step()
        step()


def refused_there(words, stream, step):
    """Assert that a capture of a step is refused in these words."""
    with pytest.raises(RuntimeError, match=words), DEVICE.capture(stream):
        step()


def assert_replays(graph, p):
    """Assert that a graph changes the parameter."""
    before = on_host(p)
    graph.launch()
    assert (on_host(p) != before).all()


@pytest.mark.parametrize("rate", [Linear(0.25, 0.1, 40), 0.5], ids=["schedule", "number"])
def test_a_captured_rate_that_is_a_tensor(pretended, rate):
    """One of fastopt.schedules, or a number."""
    p, optimizer, stream = on_the_gpu(lr=on_gpu(torch.tensor(0.25)))
    warm(stream, optimizer.step)
    refused_there(r"assign one of fastopt\.schedules, or a number", stream, optimizer.step)
    optimizer.param_groups[0]["lr"] = rate
    refused_there("Take two steps like it before", stream, optimizer.step)
    warm(stream, optimizer.step)
    assert_replays(captured(optimizer, stream), p)


def test_a_captured_gradient_that_lies_otherwise(pretended):
    """It is copied into a tensor like the parameter."""
    p, optimizer, stream = on_the_gpu()
    p.grad = on_gpu(torch.ones(3, 4).T)
    warm(stream, optimizer.step)
    refused_there(r"as zeros_like\(p\) makes one, and take two steps with these", stream, optimizer.step)
    gradient = torch.zeros_like(p.detach())
    p.grad = gradient.copy_(p.grad)
    warm(stream, optimizer.step)
    assert_replays(captured(optimizer, stream), p)


def test_a_captured_scale_that_the_host_knows(pretended):
    """It stays on the GPU, beside found_inf."""
    p, optimizer, stream = on_the_gpu()
    warm(stream, optimizer.step)
    optimizer.grad_scale = torch.tensor(4.0)
    refused_there("leave it on the GPU, and found_inf beside it", stream, optimizer.step)
    optimizer.grad_scale, optimizer.found_inf = on_gpu(torch.tensor(4.0)), on_gpu(torch.tensor(0.0))
    warm(stream, optimizer.step)
    assert_replays(captured(optimizer, stream), p)


def test_a_captured_step_under_a_scaler(pretended):
    """By an optimizer with fused=True."""
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    scaler.scale(on_gpu(torch.zeros(())))

    def step():
        scaler.step(optimizer)
        scaler.update()

    p, optimizer, stream = on_the_gpu()
    warm(stream, step)
    refused_there("make the optimizer with fused=True, so that the kernel does both", stream, step)
    p, optimizer, stream = on_the_gpu(fused=True)
    warm(stream, step)
    with DEVICE.capture(stream) as graph:
        step()
    assert_replays(graph, p)


def test_captured_updates_in_backward(pretended):
    """The optimizer's own step instead."""
    p, optimizer, stream = on_the_gpu()
    model = torch.nn.ParameterList([Parameter(on_gpu(torch.ones(4, 3)))])
    subject.step_in_backward(model, subject.SGD, lr=0.25)
    refused_there(r"capture the optimizer's own step\(\)", stream, lambda: model[0].sum().backward())
    warm(stream, optimizer.step)
    assert_replays(captured(optimizer, stream), p)
