"""Stochastic rounding of tensors on the CPU: against the same steps over arrays, and after copies and checkpoints."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_torch_storages import give, saved_and_loaded, states_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch_cases import bits

import fastopt
import fastopt.torch as subject

SHAPES = [(50, 100), (70, 80), (3,)]
EVERY_SIZE = {"min_quantized_size": 0}


def parameters(dtype=torch.bfloat16, *, transposed=False):
    """Parameters, the first one perhaps in another storage order than its gradients."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    if transposed:
        made[0] = made[0].t().contiguous().t()
    return [torch.nn.Parameter(tensor) for tensor in made]


def make(params, name="SGD", **options):
    """An optimizer that rounds stochastically."""
    return getattr(subject, name)(params, lr=0.1, stochastic_rounding=True, **options)


def train(params, optimizer, steps, begin=0):
    """Take steps."""
    for seed in range(begin, begin + steps):
        give(params, seed)
        optimizer.step()


def everything(params, optimizer):
    """The bits of parameters and states."""
    return [bits(tensor) for tensor in (*params, *states_of(optimizer))]


def as_array(tensor):
    """A copy of a tensor, in its storage order, as an array of half precision."""
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if tensor.dtype is torch.bfloat16 else np.float16
    return tensor.detach().clone(memory_format=torch.preserve_format).view(torch.int16).numpy().view(dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("SGD", torch.bfloat16), pytest.param("AdamW", torch.float16, marks=pytest.mark.exhaustive)],
    ids=str,
)
def test_the_same_bits_as_over_arrays(name, dtype):
    """For frozen parameters among them, too, which have their numbers."""
    params = parameters(dtype, transposed=True)
    frozen = torch.nn.Parameter(torch.zeros(5, dtype=dtype), requires_grad=False)
    ours = make([params[0], frozen, *params[1:]], name, seed=4)
    twins = [as_array(param) for param in (params[0], frozen, *params[1:])]
    theirs = getattr(fastopt, name)(twins, lr=0.1, stochastic_rounding=True, seed=4)
    for seed in range(4):
        give(params, seed)
        ours.step()
        grads = [as_array(param.grad) for param in params]
        theirs.step([grads[0], None, *grads[1:]])
    for param, twin in zip((params[0], frozen, *params[1:]), twins, strict=True):
        np.testing.assert_array_equal(as_array(param).view(np.int16), twin.view(np.int16))


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("how", ["checkpoint", "deepcopy", "pickle"])
def test_resumed(how, at):
    """After none, one or three of four steps: from a state dict with its seed, and as a copy, while C repeats steps."""
    whole, parts = parameters(), parameters()
    once = make([{"params": whole[:1]}, {"params": whole[1:], "weight_decay": 0.1}], momentum=0.9, seed=6)
    train(whole, once, 4)
    first = make([{"params": parts[:1]}, {"params": parts[1:], "weight_decay": 0.1}], momentum=0.9, seed=6)
    train(parts, first, at)
    if how == "checkpoint":
        copies = [torch.nn.Parameter(param.detach().clone()) for param in parts]
        second = make([{"params": copies[:1]}, {"params": copies[1:]}], momentum=0.9, seed=1)
        second.load_state_dict(saved_and_loaded(first.state_dict()))
    else:
        second = copy.deepcopy(first) if how == "deepcopy" else copy.copy(saved_whole(first))
        copies = [param for group in second.param_groups for param in group["params"]]
    assert [group["step"] for group in second.param_groups] == [at, at]
    assert [group["seed"] for group in second.param_groups] == [6, 6]
    train(copies, second, 4 - at, at)
    assert everything(copies, second) == everything(whole, once)


def saved_whole(optimizer):
    """An optimizer through torch.save."""
    import io

    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_the_count_is_shown():
    """In the groups, also while the extension takes the steps, and in state dicts."""
    params = parameters()
    optimizer = make(params)
    assert optimizer.param_groups[0]["step"] == 0
    train(params, optimizer, 5)
    assert optimizer._stepper.clock.repetition.taken == 3
    assert optimizer.param_groups[0]["step"] == 5
    train(params, optimizer, 5)
    assert optimizer._stepper.clock.repetition is not None
    assert optimizer.state_dict()["param_groups"][0]["step"] == 10


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_where_it_is_the_default():
    """Where squares are in bfloat16 or 8 bits, unless somebody says no; a group that comes later has its own."""
    params = parameters()
    optimizer = subject.Adam(params[:1], state_dtype=torch.bfloat16)
    optimizer.add_param_group({"params": params[1:2], "stochastic_rounding": False})
    optimizer.add_param_group({"params": params[2:], "state_dtype": {"exp_avg": "int8"}})
    assert [group.get("stochastic_rounding") for group in optimizer.param_groups] == [True, False, None]
    assert optimizer.param_groups[0]["step"] == 0
    train(params, optimizer, 2)
    assert optimizer.state_dict()["param_groups"][0]["step"] == 2
    assert "stochastic_rounding" not in subject.SGD(params, momentum=0.9, state_dtype="int8").param_groups[0]


def test_torch_loads_it_and_it_loads_torchs():
    """SGD's state dict, which has no count in torch."""
    params = parameters()
    mine = make(params, momentum=0.9)
    train(params, mine, 2)
    theirs = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    theirs.load_state_dict(mine.state_dict())
    theirs.step()
    back = make(parameters(), momentum=0.9, seed=3)
    back.load_state_dict(theirs.state_dict())
    assert (back.param_groups[0]["step"], back.param_groups[0]["seed"]) == (2, 0)
    plain = make(parameters(), momentum=0.9, seed=3)
    plain.load_state_dict(torch.optim.SGD(parameters(), lr=0.1, momentum=0.9).state_dict())
    assert (plain.param_groups[0]["step"], plain.param_groups[0]["seed"]) == (0, 3)


def test_with_a_schedule():
    """The count is the same one."""
    whole, parts = parameters(), parameters()
    schedule = fastopt.schedules.Linear(0.1, 0.01, 10)
    once = subject.SGD(whole, lr=schedule, stochastic_rounding=True)
    train(whole, once, 5)
    first = subject.SGD(parts, lr=schedule, stochastic_rounding=True)
    train(parts, first, 2)
    second = subject.SGD(parts, lr=schedule, stochastic_rounding=True)
    second.load_state_dict(first.state_dict())
    train(parts, second, 3, 2)
    assert everything(parts, second) == everything(whole, once)


def test_steps_in_backward():
    """Each parameter for itself has the bits that it has in a step of all."""
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(64, 30), torch.nn.Linear(30, 5)).bfloat16() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(16, 64).bfloat16()
    handle = subject.step_in_backward(models[0], subject.SGD, lr=0.1, stochastic_rounding=True, seed=2)
    optimizer = make(models[1].parameters(), seed=2)
    for _ in range(4):
        models[0](x).square().mean().backward()
        optimizer.zero_grad()
        models[1](x).square().mean().backward()
        optimizer.step()
        assert [*map(bits, models[0].parameters())] == [*map(bits, models[1].parameters())]
    assert handle.state_dict()["param_groups"][0]["step"] == 4


def test_a_step_that_grad_scaler_skips_takes_no_bits():
    """One whose gradients are not finite is not counted."""
    found = []
    for skips in (0, 2):
        params = parameters(torch.float16)
        optimizer = make(params, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
        for seed in range(3):
            for broken in (*[True] * skips, False):
                give(params, seed)
                if broken:
                    params[0].grad[0] = torch.inf
                scaler.scale(torch.ones(()))
                scaler.step(optimizer)
                scaler.update(4.0)
        found.append(everything(params, optimizer))
    assert found[0] == found[1]


def test_sparse_gradients():
    """The rows that a gradient has are rounded at random: a quarter of a last bit moves a quarter of them."""
    param = torch.nn.Parameter(torch.ones(3000, 8, dtype=torch.bfloat16))
    optimizer = subject.SGD([param], lr=1.0, stochastic_rounding=True)
    rows = torch.arange(0, 3000, 3)[None]
    moved = []
    for _ in range(2):
        with torch.no_grad():
            param.fill_(1.0)
        values = torch.full((1000, 8), -(2.0**-9), dtype=torch.bfloat16)
        param.grad = torch.sparse_coo_tensor(rows, values, (3000, 8))
        optimizer.step()
        moved.append((param.detach() != 1).float())
    untouched = torch.ones(3000, dtype=torch.bool)
    untouched[rows[0]] = False
    assert not any(bool(one[untouched].any()) for one in moved)
    assert all(abs(float(one[rows[0]].mean()) - 0.25) < 4 * 0.433 / 8000**0.5 for one in moved)
    assert not torch.equal(*moved)


def part_on(rank, placements):
    """Which part a process of four has of a parameter that is spread over a mesh of two by two."""
    dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2, 2))
        param = DTensor.from_local(torch.zeros(4, 4, dtype=torch.bfloat16), mesh, placements, run_check=False)
        optimizer = make([param.requires_grad_()])  # a Parameter would have the mesh of the first of these processes
        return optimizer._adopt().parameters[0].part
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("placements", "parts"),
    [
        ([Shard(0), Shard(1)], [0, 1, 2, 3]),
        ([Replicate(), Shard(0)], [0, 1, 0, 1]),
        ([Shard(1), Replicate()], [0, 0, 1, 1]),
        ([Replicate(), Replicate()], [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_parts_of_distributed_parameters(placements, parts):
    """Shards have random bits of their own, and copies the same ones."""
    assert [part_on(rank, placements) for rank in range(4)] == parts
