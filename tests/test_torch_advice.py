"""Messages of fastopt.torch that give advice: each is followed, and then it works."""

import pytest
import torch
import torch_cases
from torch.nn import Parameter
from torch_cases import REFUSAL

import fastopt.torch as subject
from fastopt.schedules import Linear


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
        lambda: sgd(Parameter(torch.ones(1).expand(3).clone(memory_format=torch.contiguous_format))),
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
        r"pass \.to_dense\(\) of it, or use Adagrad, or torch\.optim\.SparseAdam",
        lambda: stepped(sparse, make=subject.Adagrad) or stepped(sparse, make=torch.optim.SparseAdam),
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
}


@pytest.mark.parametrize(("wrong", "words", "right"), CASES.values(), ids=CASES)
def test_advice_is_good(wrong, words, right):
    """The message says it, and what it says works."""
    with pytest.raises(REFUSAL, match=words):
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
