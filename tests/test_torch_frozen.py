"""A frozen parameter may be of any kind, and change, until it has a gradient and trains."""

import copy
import pickle
import weakref

import pytest
import torch
import torch_cases
from tolerances import TORCH
from torch.nn import Parameter
from torch_cases import ALL, bits, give, states, train

import fastopt.torch as subject


class Foreign(torch.Tensor):
    """A tensor that says what is done with it, as those of quantised models do."""

    @staticmethod
    def __new__(cls, data):
        """Wrap a tensor, without memory of its own."""
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

    def __init__(self, data):
        """Keep the tensor."""
        self.data_inside = data

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Refuse all but what a copy or a print needs."""
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].data_inside)
        raise NotImplementedError(f"{function} of a foreign tensor")


def frozen(tensor):
    """A parameter that does not train."""
    return Parameter(tensor, requires_grad=False)


FROZEN = {
    "uint8": lambda: frozen(torch.zeros(4, dtype=torch.uint8)),
    "int8": lambda: frozen(torch.zeros(4, dtype=torch.int8)),
    "bool": lambda: frozen(torch.zeros(4, dtype=torch.bool)),
    "float8": lambda: frozen(torch.zeros(4).to(torch.float8_e4m3fn)),
    "meta": lambda: frozen(torch.zeros(4, device="meta")),
    "sparse": lambda: frozen(torch.eye(4).to_sparse()),
    "foreign": lambda: frozen(Foreign(torch.zeros(4))),
    "expanded": lambda: frozen(torch.zeros(1).expand(4)),
    "overlapping": lambda: frozen(torch.zeros(5).as_strided((4, 2), (1, 1))),
    "lazy": lambda: torch.nn.parameter.UninitializedParameter(requires_grad=False),
    "conjugated": lambda: frozen(torch.zeros(4, dtype=torch.complex64).conj()),
    "zero": lambda: frozen(torch._efficientzerotensor(4)),
}
KINDS_OF_FROZEN = pytest.mark.parametrize("make", FROZEN.values(), ids=FROZEN)
WITH_GRADIENTS = {  # what is said when one of them has a gradient, or asks for one
    "meta": (lambda: torch.zeros(4, device="meta"), "meta"),
    "sparse": (lambda: torch.eye(4).to_sparse(), "layout"),
    "foreign": (lambda: Foreign(torch.zeros(4)), "Foreign"),
    "expanded": (lambda: torch.zeros(1).expand(4), "overlap"),
    "float8": (lambda: torch.zeros(4).to(torch.float8_e4m3fn), "float8"),
    "conjugated": (lambda: torch.zeros(4, dtype=torch.complex64).conj(), "conjugates"),
    "zero": (lambda: torch._efficientzerotensor(4), "ZeroTensor"),
}


@KINDS_OF_FROZEN
@ALL
def test_beside_a_trained_one(name, options, make):
    """It is left alone, has no state, and the others train as without it: by every way into the optimizer."""
    mine, theirs = torch_cases.parameters(), torch_cases.parameters()
    still = make()
    optimizer = torch_cases.make(name, [still, *mine], **options)
    twin = torch_cases.make(name, theirs, **options)
    train(optimizer, mine, 3)
    train(twin, theirs, 3)
    assert bits(mine) == bits(theirs)
    assert not states(optimizer, still)
    other = make()
    optimizer.add_param_group({"params": [other]})
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, mine, 2, start=3)
    train(twin, theirs, 2, start=3)
    assert bits(mine) == bits(theirs)
    assert not states(optimizer, other)
    assert still.grad is None


@ALL
def test_copies_and_pickles(name, options):
    """A deepcopy, and what comes out of a pickle, trains beside frozen ones as well."""
    params = [frozen(torch.zeros(4, dtype=torch.uint8)), *torch_cases.parameters()]
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params[1:], 2)
    ends = []
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        members = other.param_groups[0]["params"]
        train(other, members[1:], 2, start=2)
        ends.append(bits(members))
    train(optimizer, params[1:], 2, start=2)
    assert ends == [bits(params)] * 2


def test_it_may_change_between_steps():
    """Its dtype, its memory, and what it shares with others; nobody holds it either."""
    p, q = torch_cases.parameters([(4,), (4,)])
    q.requires_grad_(False)
    optimizer = subject.AdamW([p, q], lr=0.1)
    for change in (
        lambda: setattr(q, "data", q.data.to(torch.int32)),
        lambda: setattr(q, "data", torch.empty(0)),
        lambda: setattr(q, "data", torch.zeros(4)),
        lambda: q.untyped_storage().resize_(0),
        lambda: setattr(q, "data", p.data),
    ):
        change()
        give([p], 0)
        optimizer.step()
    assert not states(optimizer, q)

    q.data = torch.zeros(4)
    optimizer.step()
    memory = weakref.ref(q.untyped_storage())
    q.data = torch.empty(0)
    assert memory() is None


@ALL
def test_it_thaws_with_its_first_gradient(name, options):
    """From then on it trains, with a count of its own; a parameter that freezes keeps its state, and goes on later."""
    (p, q), (a, b) = (torch_cases.parameters([(3,), (4, 5)]) for _ in range(2))
    q.requires_grad_(False)
    optimizer, twin = torch_cases.make(name, [p, q], **options), torch_cases.make(name, [a, b], **options)
    for step in range(9):
        give([p], step)
        give([a], step)
        if step == 3:
            q.requires_grad_(True)
        if step == 6:
            q.requires_grad_(False)
            q.grad = b.grad = None
        if 3 <= step < 6 or step == 8:  # a gradient is enough, whatever the flag says
            give([q], step, 1)
            b.grad = q.grad.clone()
        else:
            q.grad = b.grad = None
        optimizer.step()
        twin.step()
        assert bits([p, q]) == bits([a, b])
    assert bits(states(optimizer, q)) == bits(states(twin, b))


@pytest.mark.parametrize("kind", WITH_GRADIENTS)
def test_what_cannot_be_updated_is_refused_with_its_gradient(kind):
    """At the moment that it has one, or asks for one; nothing has changed then, and without it the step goes on."""
    make, words = WITH_GRADIENTS[kind]
    [p] = torch_cases.parameters([(4,)])
    still = frozen(make())
    optimizer = subject.SGD([p, still], lr=0.1, momentum=0.9)
    train(optimizer, [p], 2)
    give([p], 2)
    before = bits([p, states(optimizer, p)])
    still.grad = make()
    with pytest.raises(torch_cases.REFUSAL, match=words):
        optimizer.step()
    assert bits([p, states(optimizer, p)]) == before
    still.grad = None
    optimizer.step()
    assert bits(p) != before[0]
    if still.is_floating_point() or still.is_complex():
        with pytest.raises(torch_cases.REFUSAL, match=words):
            subject.SGD([p, Parameter(make())], lr=0.1)
        with pytest.raises(torch_cases.REFUSAL, match=words):
            optimizer.add_param_group({"params": [Parameter(make())]})
    assert len(optimizer.param_groups) == 1


@ALL
def test_all_of_them(name, options):
    """An optimizer of frozen parameters alone has nothing to do, until one has a gradient."""
    p, q = torch_cases.parameters([(4,), (3,)])
    p.requires_grad_(False)
    optimizer, twin = torch_cases.make(name, [p], **options), torch_cases.make(name, [q], **options)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer.state_dict()["state"]
    with torch.no_grad():
        p.data, q.data = torch.ones(4), torch.ones(4)
    twin = torch_cases.make(name, [q], **options)
    train(optimizer, [p], 2)
    train(twin, [q], 2)
    assert bits(p) == bits(q)


@ALL
def test_states_that_were_saved_for_it(name, options):
    """They are loaded, kept and saved again, and in use when it has a gradient."""
    (p, q), (a, b) = (torch_cases.parameters([(3,), (5,)]) for _ in range(2))
    twin = torch_cases.make(name, [a, b], **options)
    train(twin, [a, b], 3)
    q.requires_grad_(False)
    optimizer = torch_cases.make(name, [p, q], **options)
    with torch.no_grad():
        p.copy_(a)
        q.copy_(b)
    optimizer.load_state_dict(twin.state_dict())
    assert bits(optimizer.state_dict()["state"]) == bits(twin.state_dict()["state"])
    train(optimizer, [p], 1, start=3)
    train(twin, [a, b], 1, start=3, given=lambda step, i: i == 0)
    train(optimizer, [p, q], 2, start=4)
    train(twin, [a, b], 2, start=4)
    assert bits([p, q]) == bits([a, b])
    assert bits(optimizer.state_dict()["state"]) == bits(twin.state_dict()["state"])


def test_fast_steps_look_at_it():
    """A step that repeats the last one still sees the gradient that a frozen parameter has all of a sudden."""
    (p, q), (a, b) = (torch_cases.parameters([(3,), (5,)]) for _ in range(2))
    q.requires_grad_(False)
    optimizer = subject.SGD([p, q], lr=0.1, momentum=0.9)
    twin = torch.optim.SGD([a, b], lr=0.1, momentum=0.9)
    train(optimizer, [p], 6)
    train(twin, [a], 6)
    assert optimizer._stepper.clock.repetition is not None
    train(optimizer, [p, q], 2, start=6)
    train(twin, [a, b], 2, start=6)
    torch_cases.assert_same([p, q], [a, b], optimizer, twin, TORCH)
