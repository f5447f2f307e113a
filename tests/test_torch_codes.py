"""States in 8 bits, of tensors: against steps whose float32 states are encoded after each."""

import copy
import io

import numpy as np
import pytest
import torch
from eight_bits import decoded, name_of, through
from torch_cases import KINDS

import fastopt.torch as subject

SHAPES = [(50, 100), (8, 16, 9, 9), (3,)]  # the last is below the smallest size
USUAL = ["momentum", "adamw"]


def parameters(dtype=torch.float32):
    """Parameters, two of them in other storage orders."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    made[0], made[1] = made[0].t().contiguous().t(), made[1].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(tensor) for tensor in [*made, torch.randn(4160, generator=generator).to(dtype)]]


def give(params, seed):
    """Give them gradients, contiguous ones."""
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def stored(tensor):
    """View a dense tensor as an array with its axes in storage order."""
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    return tensor.permute(order).numpy()


def numbers(state, name):
    """The numbers of a state, in the order of the tensor's axes."""
    value, scales = state[name], state.get(f"{name}_scale")
    if scales is None:
        return value
    plain = torch.empty_like(value, dtype=torch.float32)
    view = stored(plain)
    view[...] = decoded(stored(value).ravel(), scales.numpy()).reshape(view.shape)
    return plain


def names_of(state):
    return [name for name, value in state.items() if value.dim() and name != "step" and not name.endswith("_scale")]


def encode_states(optimizer):
    """Replace the states of all large parameters by what their codes decode to."""
    for param, state in optimizer.state.items():
        for name in names_of(state) if param.numel() >= 4096 else ():
            view = stored(state[name])
            view[...] = through(view.ravel(), name_of(name)).reshape(view.shape)


def assert_same(mine, theirs):
    """Assert that parameters and states hold the same numbers."""
    for one, other in zip(mine.state.items(), theirs.state.items(), strict=True):
        assert torch.equal(one[0], other[0])
        for name in names_of(other[1]):
            assert torch.equal(numbers(one[1], name), numbers(other[1], name))


def train_both(mine, theirs, steps=3):
    """Take steps with codes, and with float32 states that are encoded after each, and compare all."""
    for seed in range(steps):
        for optimizer in (mine, theirs):
            give(optimizer.param_groups[0]["params"], seed)
            optimizer.step()
        encode_states(theirs)
        assert_same(mine, theirs)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[] if k in USUAL else pytest.mark.exhaustive) for k in KINDS if k != "sgd"],
)
def test_steps_are_those_of_float32_states_that_are_encoded(kind):
    """In all layouts, for gradients in another one, and for repeated steps."""
    name, options = KINDS[kind]
    make = getattr(subject, name)
    mine = make(parameters(), state_dtype="int8", stochastic_rounding=False, **options)
    train_both(mine, make(parameters(), **options), steps=4)


def test_steps_in_backward():
    """A parameter at a time, as all together."""
    models = [torch.nn.Linear(64, 100) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"lr": 0.1, "momentum": 0.9, "state_dtype": "int8"}
    subject.step_in_backward(models[0], subject.SGD, **options)
    together = subject.SGD(models[1].parameters(), **options)
    for _ in range(3):
        for model in models:
            together.zero_grad()
            model(torch.ones(1, 64)).square().sum().backward()
        together.step()
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_sparse_gradients_are_refused():
    """Rows would cut blocks across; nothing has changed."""
    table = torch.nn.Parameter(torch.ones(1000, 10))
    optimizer = subject.Adagrad([table], state_dtype="int8")
    table.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, 10), (1000, 10), check_invariants=True)
    with pytest.raises(ValueError, match=r'sparse, and its states are in 8 bits.*state_dtype="float32"'):
        optimizer.step()
    assert (table == 1).all()


# State dicts


def saved_and_loaded(state):
    """A state dict that has gone through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.exhaustive  # compiles a kernel of its own
@pytest.mark.parametrize("compress", [True, False])
def test_state_dicts(compress):
    """Codes and scales where the layout is contiguous, else float32; both load into either kind."""
    options = {"state_dtype": "int8", "stochastic_rounding": False}
    saving = subject.AdamW(parameters(), compress_state_dict=compress, **options)
    train_both(saving, subject.AdamW(parameters()))
    saved = saved_and_loaded(saving.state_dict())
    dtypes = [saved["state"][i]["exp_avg_sq"].dtype for i in range(4)]
    assert dtypes == [torch.float32] * 3 + [torch.uint8 if compress else torch.float32]
    for dtype in ("int8", None, "bfloat16"):
        loading = subject.AdamW(parameters(), state_dtype=dtype)
        loading.load_state_dict(saved)
        for mine, theirs in zip(saving.state.values(), loading.state.values(), strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                tolerance = 2**-8 if dtype == "bfloat16" else 1e-6
                torch.testing.assert_close(numbers(theirs, name).float(), numbers(mine, name), rtol=tolerance, atol=0)


def test_torch_loads_them_and_they_load_torchs():
    """Without compression; torch goes on from the same numbers."""
    mine = subject.AdamW(parameters(), state_dtype="int8", compress_state_dict=False)
    theirs = torch.optim.AdamW(parameters())
    for optimizer in (mine, theirs):
        give(optimizer.param_groups[0]["params"], 0)
        optimizer.step()
    other, another = torch.optim.AdamW(parameters()), subject.AdamW(parameters(), state_dtype="int8")
    other.load_state_dict(mine.state_dict())
    another.load_state_dict(theirs.state_dict())
    for param, twin in zip(other.param_groups[0]["params"], mine.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(other.state[param]["exp_avg"], numbers(mine.state[twin], "exp_avg"))
    encode_states(theirs)
    for one, two in zip(another.state.values(), theirs.state.values(), strict=True):
        assert torch.equal(numbers(one, "exp_avg_sq"), two["exp_avg_sq"])


def test_copies_keep_the_codes():
    """A deep copy goes on from the same codes."""
    optimizer = subject.SGD(parameters(), lr=0.1, momentum=0.9, state_dtype="int8")
    train_both(optimizer, subject.SGD(parameters(), lr=0.1, momentum=0.9))
    twin = copy.deepcopy(optimizer)
    for one in (optimizer, twin):
        give(one.param_groups[0]["params"], 9)
        one.step()
    assert_same(optimizer, twin)
    assert {state["momentum_buffer"].dtype for state in twin.state.values()} == {torch.int8, torch.float32}


def test_without_scales():
    """Codes alone cannot be loaded, and the optimizer stays as it is."""
    optimizer = subject.SGD(parameters(), lr=0.1, momentum=0.9, state_dtype="int8")
    train_both(optimizer, subject.SGD(parameters(), lr=0.1, momentum=0.9), steps=1)
    saved = optimizer.state_dict()
    saved["state"][3] = {"momentum_buffer": saved["state"][3]["momentum_buffer"]}
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="momentum_buffer of parameter 3 is in 8 bits, and needs its scales"):
        optimizer.load_state_dict(saved)
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before["state"][key][name]) for name, value in state.items())


def test_memory():
    """Codes take a byte, and 64 of them share a scale."""
    found = subject.AdamW(parameters(), state_dtype="int8").memory()
    large = sum(int(np.prod(shape)) for shape in [*SHAPES[:2], (4160,)])
    assert found["states"] == 2 * large + 2 * 4 * 3
    assert found["scales"] == 2 * 4 * (79 + 162 + 65)
