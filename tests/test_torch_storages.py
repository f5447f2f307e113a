"""States in other dtypes than kernels compute in, of tensors: against steps whose float32 states are rounded."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from pairs import usually
from torch_cases import KINDS, bits

import fastopt.torch as subject

SHAPES = [(50, 100), (70, 80), (3,)]  # the last is below the smallest size
HALVES = [torch.bfloat16, torch.float16]
WITH_STATES = [kind for kind in KINDS if kind != "sgd"]
USUAL = [("momentum", torch.bfloat16)]


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0):
    """Parameters, one of them in another storage order."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    made[0] = made[0].t().contiguous().t()
    return [torch.nn.Parameter(tensor) for tensor in made]


def give(params, seed):
    """Give them gradients."""
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def states_of(optimizer):
    """The states that have a parameter's shape."""
    return [
        value for state in optimizer.state.values() for name, value in state.items() if value.dim() and name != "step"
    ]


def assert_same(some, others):
    """Assert that tensors hold the same numbers, to the bit."""
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.to(torch.float64), other.to(torch.float64))


def round_states(optimizer, dtype):
    """Round the states of all large parameters."""
    for param, state in optimizer.state.items():
        for value in state.values() if param.numel() >= 4096 else ():
            if value.dim():
                value.copy_(value.to(dtype))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=[] if (kind, dtype) in USUAL else pytest.mark.exhaustive)
        for kind in WITH_STATES
        for dtype in HALVES
    ],
    ids=str,
)
def test_steps_are_those_of_float32_states_that_are_rounded(kind, dtype):
    """New and repeated steps, gradients in both orders."""
    name, options = KINDS[kind]
    params, twins = parameters(), parameters()
    mine = getattr(subject, name)(params, state_dtype=dtype, stochastic_rounding=False, **options)
    theirs = getattr(subject, name)(twins, **options)
    for seed in range(4):
        for optimizer, given in ((mine, params), (theirs, twins)):
            give(given, seed)
            optimizer.step()
        round_states(theirs, dtype)
        assert_same(states_of(mine), states_of(theirs))
    assert_same(params, twins)
    assert {value.dtype for value in states_of(mine)} == {dtype, torch.float32}


@pytest.mark.parametrize(
    "dtype", usually([torch.float64, torch.complex64], [torch.bfloat16, torch.float64, torch.complex64]), ids=str
)
def test_other_parameters(dtype):
    """Of half and double precision; complex ones keep their states."""
    params, twins = parameters(dtype), parameters(dtype)
    mine = subject.SGD(params, lr=0.1, momentum=0.9, state_dtype="bfloat16")
    theirs = subject.SGD(twins, lr=0.1, momentum=0.9)
    for seed in range(3):
        for optimizer, given in ((mine, params), (theirs, twins)):
            give(given, seed)
            optimizer.step()
        if dtype.is_complex:
            assert {value.dtype for value in states_of(mine)} == {dtype}
        else:
            round_states(theirs, torch.bfloat16)
            assert mine.state[params[0]]["momentum_buffer"].dtype == torch.bfloat16
    assert [bits(param) for param in params] == [bits(twin) for twin in twins]


def test_sparse_gradients():
    """The rows that a gradient has are updated in their dtype."""
    params, twins = ([torch.nn.Parameter(torch.ones(1000, 8))] for _ in range(2))
    mine, theirs = (
        subject.Adagrad(params, state_dtype=torch.bfloat16, stochastic_rounding=False),
        subject.Adagrad(twins),
    )
    for seed in range(3):
        rows = torch.tensor([[seed, 5, 999]])
        for optimizer, given in ((mine, params), (theirs, twins)):
            given[0].grad = torch.sparse_coo_tensor(rows, torch.full((3, 8), 0.3 + seed), (1000, 8))
            optimizer.step()
        round_states(theirs, torch.bfloat16)
    assert_same([*params, *states_of(mine)], [*twins, *states_of(theirs)])


def test_steps_in_backward():
    """A parameter at a time, as all together."""
    models = [torch.nn.Linear(64, 100) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"lr": 0.1, "state_dtype": "bfloat16"}
    subject.step_in_backward(models[0], subject.Adam, **options)
    together = subject.Adam(models[1].parameters(), **options)
    for _ in range(3):
        for model in models:
            together.zero_grad()
            model(torch.ones(1, 64)).square().sum().backward()
        together.step()
    assert {value.dtype for value in states_of(together)} == {torch.bfloat16, torch.float32}
    assert_same(models[0].parameters(), models[1].parameters())


def saved_and_loaded(state):
    """What torch.save and torch.load make of a state dict, with their safe defaults."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    ("before", "after"),
    usually(
        [(None, torch.bfloat16), (torch.bfloat16, None), (torch.bfloat16, torch.bfloat16)],
        itertools.product([None, *HALVES], repeat=2),
    ),
    ids=str,
)
def test_loading_converts(before, after):
    """An optimizer keeps the states in its own dtypes, whatever was saved."""
    params = parameters()
    saving = subject.AdamW(params, state_dtype=before)
    give(params, 0)
    saving.step()
    loading = subject.AdamW(parameters(), state_dtype=after)
    loading.load_state_dict(saved_and_loaded(saving.state_dict()))
    for mine, given in zip(states_of(saving), states_of(loading), strict=True):
        assert given.dtype == (torch.float32 if after is None or given.numel() < 4096 else after)
        assert torch.equal(mine.to(given.dtype), given)


def test_torch_loads_them_and_they_load_torchs():
    """In torch.optim, float32 parameters get float32 states."""
    params = parameters()
    mine = subject.AdamW(params, lr=0.1, state_dtype="bfloat16")
    give(params, 0)
    mine.step()
    theirs = torch.optim.AdamW(parameters(), lr=0.1)
    theirs.load_state_dict(mine.state_dict())
    assert {value.dtype for value in states_of(theirs)} == {torch.float32}
    assert_same(states_of(mine), states_of(theirs))
    back = subject.AdamW(parameters(), lr=0.1, state_dtype=torch.float16)
    back.load_state_dict(theirs.state_dict())
    assert_same(
        states_of(back), [value.to(torch.float16) if value.numel() >= 4096 else value for value in states_of(theirs)]
    )


def test_copies_keep_the_dtypes():
    """Those of the optimizer, by pickle and deepcopy, with the next step the same."""
    params = parameters()
    mine = subject.SGD(params, lr=0.1, momentum=0.9, state_dtype="bfloat16")
    give(params, 0)
    mine.step()
    copied = copy.deepcopy(mine)
    others = copied.param_groups[0]["params"]
    for optimizer, given in ((mine, params), (copied, others)):
        give(given, 1)
        optimizer.step()
    assert_same([*params, *states_of(mine)], [*others, *states_of(copied)])
    assert [value.dtype for value in states_of(copied)] == [value.dtype for value in states_of(mine)]


def test_groups_of_their_own():
    """A group may have float32 states, or a dict, and a group that comes later, too."""
    first, second, third = parameters(seed=1), parameters(seed=2), parameters(seed=3)
    optimizer = subject.SGD(
        [{"params": first}, {"params": second, "state_dtype": "float32"}], lr=0.1, momentum=0.9, state_dtype="bfloat16"
    )
    optimizer.add_param_group({"params": third, "state_dtype": {"momentum_buffer": torch.float16}})
    give([*first, *second, *third], 0)
    optimizer.step()
    found = [optimizer.state[param[0]]["momentum_buffer"].dtype for param in (first, second, third)]
    assert found == [torch.bfloat16, torch.float32, torch.float16]
    groups = saved_and_loaded(optimizer.state_dict())["param_groups"]
    assert [group["state_dtype"] for group in groups] == ["bfloat16", "float32", {"momentum_buffer": "float16"}]


def test_states_keep_their_dtypes():
    """An assignment says at the next step what to do instead, and changes nothing."""
    params = parameters()
    optimizer = subject.SGD(params, lr=0.1, momentum=0.9)
    for _ in range(2):
        give(params, 0)
        optimizer.step()
    before = [bits(param) for param in params]
    optimizer.param_groups[0]["state_dtype"] = "bfloat16"
    with pytest.raises(ValueError, match=r"state_dtype of group 0 is fixed.* make another optimizer"):
        optimizer.step()
    assert [bits(param) for param in params] == before
    optimizer.param_groups[0]["state_dtype"] = None
    optimizer.step()
    assert {value.dtype for value in states_of(optimizer)} == {torch.float32}


@pytest.mark.parametrize("bad", ["int4", torch.float64, 3, {"velocity": "bfloat16"}], ids=str)
def test_bad_dtypes(bad):
    """In the constructor, and of a group."""
    for groups, options in ((parameters(), {"state_dtype": bad}), ([{"params": parameters(), "state_dtype": bad}], {})):
        with pytest.raises((TypeError, ValueError), match="Invalid state_dtype"):
            subject.SGD(groups, lr=0.1, momentum=0.9, **options)


def test_memory():
    """Bytes of what is trained; a frozen parameter takes none."""
    params = [*parameters(), torch.nn.Parameter(torch.ones(9), requires_grad=False)]
    large, small = 50 * 100 + 70 * 80, 3
    found = subject.AdamW(params, state_dtype={"exp_avg": "bfloat16"}, ema_decay=0.9).memory()
    all_of_one = 4 * (large + small)
    others = {"scales": 0, "masters": 0}
    assert found == {"parameters": all_of_one, "gradients": all_of_one, "states": 10 * large + 12 * small, **others}
    assert np.prod(SHAPES[0]) >= 4096
