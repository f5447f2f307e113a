"""Optimizers through files of safetensors, which hold tensors by name: the rest goes beside them as JSON."""

import json
import math

import numpy as np
import pytest
import torch
from pairs import swept, usually
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors
from torch_cases import bits

import fastopt.torch
from fastopt.schedules import Cosine, Warmup

OPTIONS = {"lr": Warmup(Cosine(0.05, 8), 3), "max_grad_norm": math.inf}  # no number of JSON's standard
STORAGES = [None, "bfloat16", "float16", {"exp_avg": "float16"}, "int8"]
LATER = ["bfloat16", {"exp_avg": "float16"}, None, "float16", "int8"]  # by default most become others


def through_tensors(saved, path):
    """Save and load a state dict of fastopt.torch."""
    states = saved["state"].items()
    tensors = {f"{i}.{name}": value.contiguous() for i, state in states for name, value in state.items()}
    save_tensors(tensors, path, {"param_groups": json.dumps(saved["param_groups"])})
    with safe_open(path, "pt") as file:
        loaded = {"state": {}, "param_groups": json.loads(file.metadata()["param_groups"])}
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            i, name = key.split(".")
            loaded["state"].setdefault(int(i), {})[name] = file.get_tensor(key)
    return loaded


def through_arrays(saved, path):
    """Save and load a state dict of fastopt."""
    arrays = {}
    for key, state in saved["state"].items():
        for name in [name for name, value in state.items() if isinstance(value, np.ndarray)]:
            arrays[f"{key}.{name}"] = state.pop(name).copy()
    save_arrays(arrays, path, {"rest": json.dumps(saved)})
    with safe_open(path, "np") as file:
        loaded = json.loads(file.metadata()["rest"])
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            parameter, name = key.rsplit(".", 1)
            loaded["state"][parameter][name] = file.get_tensor(key)
    return loaded


def parameters():
    """Parameters in several orders, a large one among them in each; small and empty ones, one without axes."""
    generator = torch.Generator().manual_seed(1)
    shapes = (70, 80), (80, 70), (8, 8, 9, 9), (3,), (0,), ()
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[1] = made[1].t().contiguous().t()
    made[2] = made[2].to(memory_format=torch.channels_last)
    return made


def step(optimizer, params, seed):
    """Take a step."""
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    optimizer.step()


def plain(groups):
    """Groups without their parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]


def compiled_elsewhere(before, after, **others):
    """Whether other tests need the kernels, too."""
    return "float16" not in (before, after)


@swept(1, ids=str, usual=compiled_elsewhere, before=STORAGES, after=LATER)
def test_tensors(before, after, tmp_path):
    """An optimizer gets from the file what it gets from the state dict itself, whatever the dtypes of both."""
    params = [torch.nn.Parameter(tensor) for tensor in parameters()]
    saving = fastopt.torch.AdamW(params, state_dtype=before, **OPTIONS)
    for seed in range(2):
        step(saving, params, seed)
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    direct, loading = (fastopt.torch.AdamW(each, state_dtype=after) for each in (params, others))
    direct.load_state_dict(saving.state_dict())
    loading.load_state_dict(through_tensors(saving.state_dict(), tmp_path / "file"))
    assert plain(loading.param_groups) == plain(direct.param_groups)
    for _ in range(2):
        for param, other in zip(params, others, strict=True):
            assert bits(param.detach()) == bits(other.detach())
            mine, theirs = direct.state[param], loading.state[other]
            assert {name: (value.dtype, bits(value)) for name, value in mine.items()} == {
                name: (value.dtype, bits(value)) for name, value in theirs.items()
            }
        step(direct, params, 3)
        step(loading, others, 3)


@pytest.mark.exhaustive  # compiles a kernel of its own
@pytest.mark.parametrize(("before", "after"), usually([(True, True)], [(True, True), (24, True), (True, 24)]))
def test_masters(before, after, tmp_path):
    """Remainders too, of a model in bfloat16 whose states are in 8 bits."""
    params = [torch.nn.Parameter(tensor.bfloat16()) for tensor in parameters()]
    saving = fastopt.torch.AdamW(params, master_weights=before, state_dtype="int8")
    step(saving, params, 0)
    saved = through_tensors(saving.state_dict(), tmp_path / "file")
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    direct, loading = (fastopt.torch.AdamW(each, master_weights=after, state_dtype="int8") for each in (params, others))
    direct.load_state_dict(saving.state_dict())
    loading.load_state_dict(saved)
    for _ in range(2):
        for mine, theirs in zip(*(opt.master_state_dict().values() for opt in (direct, loading)), strict=True):
            assert bits(mine) == bits(theirs)
        step(direct, params, 3)
        step(loading, others, 3)


def test_tensors_of_torch(tmp_path):
    """Those of torch.optim too, both ways."""
    params = [torch.nn.Parameter(tensor) for tensor in parameters()]
    theirs = torch.optim.AdamW(params)
    mine = fastopt.torch.AdamW(params, state_dtype="bfloat16")
    step(theirs, params, 0)
    mine.load_state_dict(through_tensors(theirs.state_dict(), tmp_path / "theirs"))
    for param in params:
        here = mine.state[param]["exp_avg"]
        assert here.dtype == (torch.bfloat16 if param.numel() >= 4096 else torch.float32)
        assert torch.equal(here, theirs.state[param]["exp_avg"].to(here.dtype))
    step(mine, params, 1)
    theirs.load_state_dict(through_tensors(mine.state_dict(), tmp_path / "mine"))
    for param in params:
        assert torch.equal(theirs.state[param]["exp_avg"], mine.state[param]["exp_avg"].float())
        assert theirs.state[param]["step"] == 2


@swept(1, ids=str, usual=compiled_elsewhere, before=STORAGES, after=LATER, keys=["names", "numbers"])
def test_arrays(before, after, keys, tmp_path):
    """The same, with bfloat16 of ml_dtypes; by names with dots, or by numbers."""

    def nested(arrays):
        return {"layer.w": arrays[:1], "rest": arrays[1:]} if keys == "names" else arrays

    def gradients(seed):
        rng = np.random.default_rng(seed)
        return nested([rng.standard_normal(param.shape).astype(np.float32) for param in params])

    params = [tensor.numpy() for tensor in parameters() if tensor.dim()]
    assert params[1].flags.f_contiguous
    saving = fastopt.AdamW(nested(params), state_dtype=before, **OPTIONS)
    for seed in range(2):
        saving.step(gradients(seed))
    others = [param.copy(order="K") for param in params]
    direct, loading = (fastopt.AdamW(nested(each), state_dtype=after) for each in (params, others))
    direct.load_state_dict(saving.state_dict())
    loading.load_state_dict(through_arrays(saving.state_dict(), tmp_path / "file"))
    assert plain(loading.param_groups) == plain(direct.param_groups)
    for _ in range(2):
        for mine, theirs in zip(direct.state.values(), loading.state.values(), strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine.keys() - {"step"}:
                assert mine[name].dtype == theirs[name].dtype
                assert mine[name].tobytes() == theirs[name].tobytes()
            assert mine["step"] == theirs["step"]
        for param, other in zip(params, others, strict=True):
            assert param.tobytes() == other.tobytes()
        direct.step(gradients(3))
        loading.step(gradients(3))
