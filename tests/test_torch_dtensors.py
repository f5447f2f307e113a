"""Distributed parameters in the fast path: a mesh of this process alone, and what is noticed between two steps."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch_cases
from fastopt.kernels.tensors import REPEATED
from tolerances import TORCH, assert_close
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import Parameter
from torch_cases import KINDS, bits

import fastopt.torch as subject
from fastopt.backends.torch import stepper as steppers

SHAPES = [(4, 3), (17,), (2, 3, 5), (1, 1)]
STATEFUL = {"momentum": "momentum_buffer", "adamw_amsgrad": "exp_avg_sq"}


@pytest.fixture(scope="module")
def mesh():
    """A mesh of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.fixture(params=["in one call", "one by one"])
def _readers(request, monkeypatch):
    """With torch's table of functions, and without it."""
    if request.param == "one by one":
        monkeypatch.setattr(steppers, "TABLE", 0)


both_readers = pytest.mark.usefixtures("_readers")


@pytest.fixture
def results(monkeypatch):
    """What the steps that may repeat the last one came to; with each, nobody calls `to_local`."""
    found = []
    take = steppers.Watch.take

    def taken(*given):
        with pytest.MonkeyPatch.context() as within:
            within.setattr(DTensor, "to_local", None)
            found.append(take(*given))
        return found[-1]

    monkeypatch.setattr(steppers.Watch, "take", taken)
    return found


def spread(tensor, mesh):
    """Distribute a tensor, which is none of autograd's."""
    return distribute_tensor(tensor.detach().clone(), mesh, [Shard(0)])


def give(params, step, mesh=None):
    """Give parameters the gradients of a step: new tensors, which share their parameter's spec, as in FSDP2."""
    for i, p in enumerate(params):
        g = torch_cases.noise(p.shape, torch.float32, 100 * step + i).clone()
        p.grad = g if mesh is None else DTensor(g, p._spec, requires_grad=False)


class Pair:
    """Distributed parameters under fastopt, and whole ones under torch.optim."""

    def __init__(self, kind, mesh, steps=4):
        name, options = KINDS[kind]
        whole = torch_cases.parameters(SHAPES)
        self.mesh, self.step = mesh, 0
        self.params, self.twins = [Parameter(spread(p, mesh)) for p in whole], whole
        self.optimizer = torch_cases.make(name, self.params, **options)
        self.twin = torch_cases.make(name, self.twins, True, **options)
        self.train(steps)

    def give(self):
        """Give both the gradients of the next step."""
        self.step += 1
        give(self.params, self.step, self.mesh)
        give(self.twins, self.step)

    def train(self, steps):
        """Take steps of both."""
        for _ in range(steps):
            self.give()
            self.optimizer.step()
            self.twin.step()

    def assert_same(self):
        """Assert that parameters agree, and so do states."""
        for p, twin in zip(self.params, self.twins, strict=True):
            assert_close(p._local_tensor.numpy(), twin.detach().numpy(), TORCH)
            for name, state in self.twin.state[twin].items():
                mine = self.optimizer.state[p][name]
                here = mine._local_tensor if isinstance(mine, DTensor) else mine
                assert_close(here.float().numpy(), torch.as_tensor(state).float().numpy(), TORCH)

    def bits(self):
        """All memory that a step may write."""
        states = [state for p in self.params for state in self.optimizer.state[p].values()]
        return bits([t._local_tensor if isinstance(t, DTensor) else t for t in (*self.params, *states)])

    def assert_refused(self, words):
        """Assert that the step is refused, twice, and nothing is changed."""
        before = self.bits()
        for _ in range(2):
            with pytest.raises(ValueError, match=words):
                self.optimizer.step()
            assert self.bits() == before


@both_readers
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_whole_parameters(kind, mesh, results):
    """With new gradients in each; the extension repeats them."""
    pair = Pair(kind, mesh, 8)
    pair.assert_same()
    assert not steppers.TABLE or results.count(REPEATED) >= 5


@pytest.mark.parametrize("kind", STATEFUL)
def test_gradients_with_specs_of_their_own_are_repeated(kind, mesh, results):
    """Equal ones, as autograd makes them; in a place where another kind of gradient was before, too."""
    pair = Pair(kind, mesh)
    results.clear()
    for _ in range(3):
        pair.give()
        for p in pair.params:
            p.grad._spec = copy.copy(p._spec)
        pair.optimizer.step()
        pair.twin.step()
    pair.assert_same()
    assert not steppers.TABLE or results == [REPEATED] * 3


@both_readers
@pytest.mark.parametrize("kind", STATEFUL)
def test_the_norm_of_a_mesh_of_one(kind, mesh, results):
    """Nobody else has a part: steps are repeated, and the optimizer reads the norm by their tables."""
    pair = Pair(kind, mesh, 1)
    pair.optimizer.max_grad_norm = 0.5
    for step in range(10):
        pair.give()
        norm = torch.nn.utils.clip_grad_norm_(pair.twins, 0.5)
        if step == 6:
            pair.optimizer.max_grad_norm = None
        if step >= 6:
            found = pair.optimizer.clip_grad_norm_(0.5)
        pair.optimizer.step()
        pair.twin.step()
        assert float(found if step >= 6 else pair.optimizer.grad_norm) == pytest.approx(float(norm), rel=1e-6)
    pair.assert_same()
    assert not steppers.TABLE or results.count(REPEATED) >= 6


# Gradients that are placed otherwise

OTHERWISE = "is not distributed as its parameter is"
REFUSED = {
    "replicated": (lambda g, p, mesh: DTensor.from_local(g, mesh, [Replicate()]), OTHERWISE),
    "partial": (lambda g, p, mesh: DTensor.from_local(g, mesh, [Partial()]), OTHERWISE),
    "by columns": (lambda g, p, mesh: DTensor.from_local(g, mesh, [Shard(1)]), OTHERWISE),
    "another mesh": (
        lambda g, p, mesh: DTensor.from_local(g, init_device_mesh("cpu", (1,), mesh_dim_names=("other",)), [Shard(0)]),
        "is distributed over another mesh than its parameter",
    ),
    "whole": (lambda g, p, mesh: g, "is not distributed, and its parameter is"),
    "shape": (lambda g, p, mesh: DTensor(g[:2], p._spec, requires_grad=False), "has shape"),
    "the parameter's memory": (lambda g, p, mesh: DTensor(p._local_tensor, p._spec, requires_grad=False), "overlaps"),
}


@both_readers
@pytest.mark.parametrize("bad", REFUSED)
@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.parametrize("steps", [0, 4])
def test_refusals(steps, kind, bad, mesh):
    """At the first step and after steps that repeat: nothing is changed, and it goes on as if it had not been."""
    pair = Pair(kind, mesh, steps)
    pair.give()
    make, words = REFUSED[bad]
    p, good = pair.params[0], pair.params[0].grad
    p.grad = None
    given = make(good._local_tensor, p, mesh)
    if isinstance(given, DTensor) and given.shape != p.shape:
        p.grad = good
        p.grad._local_tensor = given._local_tensor
    else:
        p.grad = given
    pair.assert_refused(f"gradient of parameter 0.*{words}")
    pair.step -= 1
    pair.train(3)
    pair.assert_same()


@both_readers
@pytest.mark.parametrize("steps", [0, 4])
def test_a_distributed_gradient_of_a_plain_parameter_is_refused(steps, mesh):
    """After steps that repeat, too."""
    params = [Parameter(torch.ones(3)), Parameter(spread(torch.ones(3), mesh))]
    optimizer = subject.SGD(params, lr=0.5, momentum=0.9)
    for _ in range(steps):
        params[0].grad, params[1].grad = torch.ones(3), spread(torch.ones(3), mesh)
        optimizer.step()
    before = bits([params[0].detach(), params[1]._local_tensor])
    params[0].grad = None
    params[0].grad, params[1].grad = (spread(torch.ones(3), mesh) for _ in params)
    with pytest.raises(ValueError, match="gradient of parameter 0 is distributed, and its parameter is not"):
        optimizer.step()
    assert bits([params[0].detach(), params[1]._local_tensor]) == before


# What is noticed between two steps


def swap_local(tensor, other):
    """Replace a local tensor, as FSDP2 does where its parameters were moved."""
    tensor._local_tensor = other


def swap_data(tensor, other):
    """Give the local tensor other memory."""
    tensor._local_tensor.data = other


def swap_outside(tensor, other):
    """Assign ``data`` of the distributed tensor itself, which torch does not pass on to the local one."""
    tensor.data = DTensor(other, tensor._spec, requires_grad=False)


def swap_in_place(tensor, other):
    """Write into the memory, through the distributed tensor."""
    with torch.no_grad():
        tensor.copy_(DTensor(other, tensor._spec, requires_grad=False))


@both_readers
@pytest.mark.parametrize("swap", [swap_local, swap_data, swap_in_place, swap_outside])
@pytest.mark.parametrize("what", ["parameter", "state"])
@pytest.mark.parametrize("kind", STATEFUL)
def test_other_memory_is_updated_from_then_on(kind, what, swap, mesh):
    """The old one is left alone; where memory stays, that is updated."""
    pair = Pair(kind, mesh)
    mine, theirs = pair.params[0], pair.twins[0]
    if what == "state":
        mine, theirs = pair.optimizer.state[mine][STATEFUL[kind]], pair.twin.state[theirs][STATEFUL[kind]]
    old = mine._local_tensor.detach()
    swap(mine, torch.full((4, 3), 0.5))
    stays = swap in (swap_in_place, swap_outside)
    if swap is not swap_outside:
        theirs.data.fill_(0.5)
    was = bits([old])
    pair.train(3)
    pair.assert_same()
    assert (bits([old]) == was) is not stays


@both_readers
@pytest.mark.parametrize("kind", STATEFUL)
def test_a_replaced_parameter_is_found(kind, mesh):
    """Swapped in place by torch, as `Module.to` swaps distributed parameters."""
    pair = Pair(kind, mesh)
    new = Parameter(spread(torch.full((4, 3), 0.5), mesh))
    old = pair.params[0]._local_tensor
    pair.params[0].grad = None
    torch.utils.swap_tensors(pair.params[0], new)
    pair.twins[0].data.fill_(0.5)
    was = bits([old])
    pair.train(3)
    pair.assert_same()
    assert bits([old]) == was


@both_readers
@pytest.mark.parametrize("kind", STATEFUL)
def test_a_parameter_that_is_placed_otherwise(kind, mesh):
    """An equal spec changes nothing; with another, gradients must be distributed as that says; sums are refused."""
    pair = Pair(kind, mesh)
    p = pair.params[0]
    p._spec = copy.copy(p._spec)
    pair.train(2)
    pair.assert_same()
    was = p._spec
    replicated = DTensor.from_local(torch.ones(4, 3), mesh, [Replicate()])._spec
    pair.give()
    p._spec = replicated
    pair.assert_refused("gradient of parameter 0 is not distributed as its parameter")
    p.grad._spec = replicated
    pair.optimizer.step()
    pair.twin.step()
    pair.assert_same()
    pair.give()
    p._spec = DTensor.from_local(torch.ones(4, 3), mesh, [Partial()])._spec
    pair.assert_refused("parameter 0 is distributed as partial sums")
    p._spec = was
    p.grad._spec = was
    pair.optimizer.step()
    pair.twin.step()
    pair.assert_same()


@both_readers
@pytest.mark.parametrize("kind", STATEFUL)
def test_gradients_that_are_missing(kind, mesh):
    """Their parameters rest, and the other ones do not."""
    pair = Pair(kind, mesh)
    for missing in (0, 2, 0):
        pair.give()
        pair.params[missing].grad = pair.twins[missing].grad = None
        pair.optimizer.step()
        pair.twin.step()
    pair.train(2)
    pair.assert_same()


# What a collective is still writing


class Pending(collectives.AsyncCollectiveTensor):
    """A tensor that a collective is still writing: its values are there once somebody has waited."""

    def wait(self):
        """Write the values."""
        self.elem.copy_(self.values)
        return super().wait()


def pending(values):
    """A tensor whose memory will have these values."""
    tensor = Pending(torch.full_like(values, torch.nan))
    tensor.values = values
    return tensor


@both_readers
@pytest.mark.parametrize("kind", STATEFUL)
def test_collectives_are_waited_for(kind, mesh):
    """In a gradient of a distributed parameter, at any step; by torch's own class, too."""
    pair = Pair(kind, mesh, 0)
    for step in range(6):
        pair.give()
        g = pair.params[0].grad
        if step in (0, 3, 4):
            g._local_tensor = pending(g._local_tensor)
        else:
            g._local_tensor = collectives.all_reduce(g._local_tensor, "sum", mesh)
            assert type(g._local_tensor) is collectives.AsyncCollectiveTensor
        pair.optimizer.step()
        pair.twin.step()
    pair.assert_same()


@both_readers
def test_collectives_are_waited_for_in_plain_gradients_and_in_parameters():
    """Wherever they are."""
    plain = Parameter(torch.ones(3))
    plain.grad = pending(torch.full((3,), 2.0))
    subject.SGD([plain], lr=0.5).step()
    assert bits([plain.detach()]) == bits([torch.zeros(3)])


@both_readers
def test_parameters_that_a_collective_writes(mesh):
    """They are waited for where the optimizer is made, and then updated in place."""
    p = Parameter(spread(torch.zeros(3), mesh))
    p._local_tensor = pending(torch.ones(3))
    optimizer = subject.SGD([p], lr=0.5)
    for _ in range(3):
        p.grad = DTensor(torch.ones(3), p._spec, requires_grad=False)
        optimizer.step()
    assert bits([p._local_tensor.elem]) == bits([torch.full((3,), -0.5)])
