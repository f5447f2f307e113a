"""Losses that torch.amp.GradScaler has scaled, on the CPU."""

import math

import pytest
import torch
import torch_cases
from pairs import swept
from tolerances import TRAJECTORY
from torch_cases import ALL, KINDS, all_in, assert_same, bits, give, usual, without_gradients

from fastopt import schedules


def scaled_run(name, options, dtype, scaled, unscale=False, overflow=()):
    """Train with or without a scaler, with some steps that overflow; return parameters and optimizer."""
    params = torch_cases.parameters([(40,), (3, 5)], dtype)
    optimizer = torch_cases.make(name, params, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled=scaled)
    for step in range(12):
        targets = [torch_cases.gradient(p, 100 * step + i).float() for i, p in enumerate(params)]
        loss = sum(((p.float() - t) ** 2).mean() for p, t in zip(params, targets, strict=True))
        scaler.scale(loss).backward()
        if step in overflow:
            params[1].grad[0, 0] = math.inf
            before, scale = without_gradients(optimizer), scaler.get_scale()
        if unscale:
            scaler.unscale_(optimizer)
        if step in overflow:
            gradients = bits([p.grad for p in params])
        scaler.step(optimizer)
        scaler.update()
        if step in overflow:
            assert without_gradients(optimizer) == before
            if unscale or options.get("fused"):
                assert bits([p.grad for p in params]) == gradients
            assert scaler.get_scale() == scale / 2
        assert not hasattr(optimizer, "grad_scale")
        optimizer.zero_grad()
    return params, optimizer


@swept(ids=str, kind=KINDS, unscale=[False, True], flags=[{}, {"fused": True}])
def test_scaled_losses(kind, unscale, flags):
    """In float32 a power of two changes nothing; with unscale_ first, too."""
    name, options = KINDS[kind]
    mine, ours = scaled_run(name, {**options, **flags}, torch.float32, True, unscale)
    theirs, others = scaled_run(name, {**options, **flags}, torch.float32, False)
    assert_same(mine, theirs, ours, others, TRAJECTORY)


@ALL
def test_scaled_losses_of_mixed_precision(name, options):
    """autocast to bfloat16, float32 parameters: with a scaler as without."""
    runs = []
    for scaled in (True, False):
        torch.manual_seed(4)
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimizer = torch_cases.make(name, model.parameters(), **{**options, "lr": 0.01})
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        for step in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch_cases.gradient(torch.empty(16, 5), step)).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append((list(model.parameters()), optimizer))
    assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TRAJECTORY)


@swept(
    ids=str,
    usual=usual,
    kind=KINDS,
    dtype=[torch.float32, torch.bfloat16],
    unscale=[False, True],
    flags=[{}, {"fused": True}],
)
def test_overflows_change_nothing(kind, dtype, unscale, flags):
    """Not at the first step, where no state is made, nor later; counts and schedules stand still too."""
    name, options = KINDS[kind]
    options = {**options, **flags, "lr": schedules.Linear(0.1, 0.01, 10)}
    _, optimizer = scaled_run(name, options, dtype, True, unscale, overflow=(0, 1, 5))
    assert optimizer.param_groups[0]["step"] == 9
    if optimizer._family.counts:
        assert {float(state["step"]) for state in optimizer.state.values()} == {9.0}


@all_in(torch.float16)
def test_float16_gradients_are_unscaled_by_the_step(name, options):
    """torch's scaler does not unscale float16 gradients: with fused=True the step does it, and leaves them alone."""
    params, optimizer = victim_of(name, {**options, "fused": True}, torch.float16)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    twins, twin = victim_of(name, options, torch.float16)
    for step in range(5):
        give(params, step)
        give(twins, step)
        for p in params:
            p.grad = p.grad * 8
        scaler.scale(torch.zeros(()))
        kept = bits([p.grad for p in params])
        scaler.step(optimizer)
        scaler.update()
        twin.step()
        assert bits([p.grad for p in params]) == kept
    assert bits(params) == bits(twins)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_scaled_sparse_gradients(name, unscale):
    """They are unscaled as dense ones are; and an overflow in them changes nothing."""
    runs = []
    for scaled in (True, False):
        embedding = torch.nn.Embedding.from_pretrained(torch.ones(9, 4), freeze=False, sparse=True)
        optimizer = torch_cases.make(name, embedding.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        for words in ([1, 3, 1], [0, 3, 8], [2, 2, 2]):
            optimizer.zero_grad()
            scaler.scale((embedding(torch.tensor(words)) * torch.arange(1.0, 5.0)).sum()).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        runs.append((embedding.weight, optimizer))
        if scaled:
            before = without_gradients(optimizer)
            scaler.scale(embedding(torch.tensor([4])).sum() * math.inf).backward()
            scaler.step(optimizer)
            assert without_gradients(optimizer) == before
    assert_same([runs[0][0]], [runs[1][0]], runs[0][1], runs[1][1], TRAJECTORY)


def victim_of(name, options, dtype):
    """Parameters of a dtype and a new optimizer over them."""
    params = torch_cases.parameters([(40,), (3, 5)], dtype)
    return params, torch_cases.make(name, params, **options)
