"""Masters of tensors of 16 bits: steps against float32 parameters, checkpoints, and what others write meanwhile."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from pairs import usually
from torch_cases import KINDS, bits

import fastopt
import fastopt.torch as subject

SHAPES = [(50, 100), (70, 80), (3,), ()]
HALVES = [torch.bfloat16, torch.float16]


def tensors(seed, dtype=torch.bfloat16, shapes=SHAPES):
    """Tensors, one of them in another storage order."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    made[0] = made[0].t().contiguous().t()
    return made


def parameters(seed=0, dtype=torch.bfloat16):
    """Parameters, and float32 ones with the same numbers."""
    made = tensors(seed, dtype)
    return [torch.nn.Parameter(t) for t in made], [torch.nn.Parameter(t.float()) for t in made]


def give(params, seed, dtype=torch.bfloat16):
    """Give parameters gradients of a dtype, in the parameter's."""
    for param, grad in zip(params, tensors(100 + seed, dtype), strict=True):
        param.grad = grad.to(param.dtype)


def step_both(mine, theirs, seed, dtype=torch.bfloat16):
    """Take a step in 16 bits, and one with the same gradients in float32."""
    for optimizer in (mine, theirs):
        give([p for group in optimizer.param_groups for p in group["params"]], seed, dtype)
        optimizer.step()


def assert_masters(optimizer, singles):
    """Assert that the masters are these float32 parameters to the bit."""
    for found, single in zip(optimizer.master_state_dict().values(), singles, strict=True):
        assert found.dtype is torch.float32
        assert bits(found) == bits(single)


USUAL = [("momentum", torch.bfloat16)]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=[] if (kind, dtype) in USUAL else pytest.mark.exhaustive)
        for kind in KINDS
        for dtype in HALVES
    ],
    ids=str,
)
def test_masters_are_float32_parameters(kind, dtype):
    """New and repeated steps are those of float32 parameters, to the bit, and nothing is adopted in between."""
    name, options = KINDS[kind]
    params, singles = parameters(dtype=dtype)
    mine = getattr(subject, name)(params, master_weights=True, **options)
    theirs = getattr(subject, name)(singles, **options)
    for seed in range(5):
        step_both(mine, theirs, seed, dtype)
        assert_masters(mine, singles)
    stepper = mine._stepper
    step_both(mine, theirs, 6, dtype)
    assert mine._stepper is stepper


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_arrays_and_tensors_have_the_same_bits():
    """NumPy's and torch's, with 24 bits, and the state dicts of one for the other."""
    from ml_dtypes import bfloat16

    made = tensors(0)
    arrays = [t.float().numpy().astype(bfloat16) for t in made]
    params = [torch.nn.Parameter(t) for t in made]
    options = {"lr": 0.01, "max_grad_norm": 1.0, "ema_decay": 0.9}
    mine, theirs = (
        subject.AdamW(params, master_weights=24, **options),
        fastopt.AdamW(arrays, master_weights=24, **options),
    )
    for seed in range(4):
        give(params, seed)
        mine.step()
        theirs.step([param.grad.float().numpy().astype(bfloat16) for param in params])
        for i, param in enumerate(params):
            assert theirs.state[i]["master"].tobytes() == mine.state[param]["master"].numpy().tobytes("C")
            np.testing.assert_array_equal(theirs.state[i]["ema"], mine.state[param]["ema"].numpy())
            np.testing.assert_array_equal(theirs.master_state_dict()[i], mine.master_state_dict()[i].numpy())
        assert theirs.master_state_dict()[0].dtype == np.float32


def test_what_others_write_counts():
    """load_state_dict of a model, re-initialisation, writing through .data, and new memory."""
    model = torch.nn.Linear(30, 40, dtype=torch.bfloat16)
    optimizer = subject.SGD(model.parameters(), lr=1e-3, master_weights=True)
    first = copy.deepcopy(model.state_dict())

    def step(size):
        for param in model.parameters():
            param.grad = torch.full_like(param, size)
        optimizer.step()

    for _ in range(3):
        step(0.37)
    masters = optimizer.master_state_dict()
    assert not all(torch.equal(m, p.float()) for m, p in zip(masters.values(), model.parameters(), strict=True))
    for change in (
        lambda: model.load_state_dict(first),
        lambda: [torch.nn.init.zeros_(param) for param in model.parameters()],
        lambda: [param.data.fill_(-2.5) for param in model.parameters()],
        lambda: [setattr(param, "data", torch.full_like(param, 7.0)) for param in model.parameters()],
    ):
        step(0.37)
        change()
        written = [param.detach().clone() for param in model.parameters()]
        step(0.0)
        assert [bits(param) for param in model.parameters()] == [bits(tensor) for tensor in written]
        for master, tensor in zip(optimizer.master_state_dict().values(), written, strict=True):
            near = torch.maximum(tensor.float().abs() * 2**-8, torch.tensor(1e-38))
            assert ((master - tensor.float()).abs() <= near).all()


@pytest.mark.exhaustive  # compiles four kernels
def test_sparse_gradients():
    """Only the rows that one touches change, in their masters too; averages are those of the masters."""
    start = torch.randn(1000, 8).bfloat16()
    params, singles = [torch.nn.Parameter(start.clone())], [torch.nn.Parameter(start.float())]
    for name in ("SGD", "Adagrad"):
        make = getattr(subject, name)
        mine = make(params, lr=0.01, master_weights=True, ema_decay=0.5)
        theirs = make(singles, lr=0.01, ema_decay=0.5)
        singles[0].data.copy_(params[0].data)
        for seed in range(3):
            rows = torch.tensor([[seed, 5, 999]])
            for optimizer, (param,) in ((mine, params), (theirs, singles)):
                values = torch.full((3, 8), 0.3 + seed).bfloat16().to(param.dtype)
                param.grad = torch.sparse_coo_tensor(rows, values, (1000, 8))
                optimizer.step()
            assert_masters(mine, singles)
            assert bits(mine.state[params[0]]["ema"]) == bits(theirs.state[singles[0]]["ema"])


@pytest.mark.exhaustive  # compiles a kernel of its own
def test_steps_in_backward():
    """A parameter at a time, as all together, with the masters."""
    models = [torch.nn.Linear(64, 100, dtype=torch.bfloat16) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"lr": 0.01, "master_weights": 24}
    handle = subject.step_in_backward(models[0], subject.Adam, **options)
    together = subject.Adam(models[1].named_parameters(), **options)
    for _ in range(3):
        for model in models:
            together.zero_grad()
            model(torch.ones(1, 64, dtype=torch.bfloat16)).square().sum().backward()
        together.step()
    masters = handle.master_state_dict(), together.master_state_dict()
    assert [*masters[0]] == [*masters[1]] == ["weight", "bias"]
    assert all(torch.equal(masters[0][name], masters[1][name]) for name in masters[0])
    single = torch.nn.Linear(64, 100)
    single.load_state_dict(masters[0])
    assert torch.equal(single.weight, masters[0]["weight"])


def saved_and_loaded(state):
    """What torch.save and torch.load make of a state dict, with their safe defaults."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()))


KEPT = [False, True, 24]


@pytest.mark.parametrize(
    ("before", "after"),
    usually([(True, 24), (24, True), (False, True), (True, False)], itertools.product(KEPT, repeat=2)),
    ids=str,
)
def test_loading_converts(before, after):
    """Both ways; a training that is resumed goes on to the same bits."""
    params, _ = parameters()
    saving = subject.SGD(params, lr=0.01, momentum=0.9, master_weights=before)
    give(params, 0)
    saving.step()
    others = copy.deepcopy(params)
    loading = subject.SGD(others, lr=0.01, momentum=0.9, master_weights=after)
    loading.load_state_dict(saved_and_loaded(saving.state_dict()))
    for i, param in enumerate(params):
        want, got = saving.master_state_dict()[i], loading.master_state_dict()[i]
        if not before or not after:
            want = param.detach().float()
        apart = (want.view(torch.int32) - got.view(torch.int32)).abs()
        assert (apart <= (128 if (before, after) == (True, 24) else 0)).all()
        assert ("master" in loading.state[others[i]]) == bool(after)
    if before == after:
        for optimizer, given in ((saving, params), (loading, others)):
            give(given, 1)
            optimizer.step()
        assert_masters(loading, saving.master_state_dict().values())


def test_torch_loads_them_and_they_load_torchs():
    """torch.optim makes no use of remainders, and rounds them: afterwards masters begin at the parameters."""
    params, _ = parameters()
    mine = subject.AdamW(params, lr=0.1, master_weights=True)
    give(params, 0)
    mine.step()
    theirs = torch.optim.AdamW(copy.deepcopy(params), lr=0.1)
    theirs.load_state_dict(mine.state_dict())
    give(theirs.param_groups[0]["params"], 1)
    theirs.step()
    given = theirs.param_groups[0]["params"]
    back = subject.AdamW(given, lr=0.1, master_weights=True)
    back.load_state_dict(theirs.state_dict())
    assert_masters(back, [param.detach().float() for param in given])
    give(given, 2)
    back.step()


def test_copies():
    """By pickle and deepcopy: the next step is the same."""
    params, _ = parameters()
    mine = subject.SGD(params, lr=0.01, momentum=0.9, master_weights=True)
    give(params, 0)
    mine.step()
    copied = copy.deepcopy(mine)
    others = copied.param_groups[0]["params"]
    for optimizer, given in ((mine, params), (copied, others)):
        give(given, 1)
        optimizer.step()
    assert_masters(copied, mine.master_state_dict().values())


def test_other_parameters():
    """float32, complex and frozen ones have no masters, and are all the same among them."""
    made = [torch.ones(3), torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.bfloat16)]
    params = [torch.nn.Parameter(tensor) for tensor in made]
    frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
    optimizer = subject.SGD([*params, frozen], lr=0.25, master_weights=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert ["master" in optimizer.state[param] for param in params] == [False, False, True]
    found = [*optimizer.master_state_dict().values()]
    assert [value.dtype for value in found] == [torch.float32, torch.complex64, torch.float32, torch.float32]
    assert all((value.real == 0.75).all() for value in found[:3])
    assert (found[3] == 1).all()


def test_gaps():
    """A parameter that is not dense is updated as a copy, beside a remainder that is."""
    start = torch.randn(40, 30).bfloat16()
    param, single = torch.nn.Parameter(start[:, ::2]), torch.nn.Parameter(start[:, ::2].float())
    mine, theirs = subject.SGD([param], lr=0.01, master_weights=True), subject.SGD([single], lr=0.01)
    for _ in range(3):
        param.grad, single.grad = torch.full_like(param, 0.3), torch.full_like(param, 0.3).float()
        mine.step()
        theirs.step()
    assert torch.equal(mine.master_state_dict()[0], single)


def test_memory():
    """A remainder of 8 bits takes a byte: with states of 16 bits, 9 bytes a parameter in all."""
    params, _ = parameters()
    numbers = sum(param.numel() for param in params)
    options = {"state_dtype": "bfloat16", "min_quantized_size": 0}
    found = subject.AdamW(params, master_weights=24, **options).memory()
    expected = {"parameters": 2, "gradients": 2, "states": 4, "scales": 0, "masters": 1}
    assert found == {name: count * numbers for name, count in expected.items()}


def test_masters_stay():
    """An assignment says at the next step what to do instead."""
    params, _ = parameters()
    optimizer = subject.SGD(params, lr=0.1)
    give(params, 0)
    optimizer.param_groups[0]["master_weights"] = True
    with pytest.raises(ValueError, match="master_weights of group 0 is fixed"):
        optimizer.step()
