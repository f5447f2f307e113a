"""Stages of fastopt.torch against torch: clip_grad_norm_, clip_grad_value_, torch.optim and AveragedModel."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch_cases
from pairs import usually
from rule_cases import HALVES
from stage_cases import AVERAGE, NORM, TOGETHER, VALUE, each_with_stages
from tolerances import BFLOAT16, TORCH, TORCH_TRAINING, assert_close
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_cases import (
    KINDS,
    NAMES,
    assert_near,
    assert_refused,
    assert_same,
    bits,
    give,
    real,
    states,
    without_gradients,
)

import fastopt.torch as subject
from fastopt.options import STAGE_OPTIONS
from fastopt.schedules import Linear
from fastopt.step.chunks import CHUNK_ELEMENTS
from fastopt.step.clock import Clock

SHAPES = [*torch_cases.SHAPES, (CHUNK_ELEMENTS + 1,)]
STEPS = 8
EPS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


class Reference:
    """Torch's optimizer, with clipping ahead of its steps, and an average that starts at the parameters.

    AveragedModel copies the parameters at its first update: here that comes before the first step.
    """

    def __init__(self, optimizer, params, max_grad_norm=None, clip_grad_value=None, ema_decay=None):
        self.optimizer, self.params = optimizer, params
        self.max_norm, self.limit, self.norm, self.averages = max_grad_norm, clip_grad_value, None, None
        if ema_decay is not None:
            self.model = torch.nn.ParameterList(params)
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
            self.averaged.update_parameters(self.model)
            self.averages = [*self.averaged.parameters()]

    def step(self):
        """Clip by value, then by the norm from before that; step; average."""
        norms = [torch.linalg.vector_norm(p.grad) for p in self.params if p.grad is not None]
        self.norm = torch.linalg.vector_norm(torch.stack(norms))
        if self.limit is not None:
            clip_grad_value_(self.params, self.limit)
        if self.max_norm is not None:
            for p in self.params:
                if p.grad is not None:
                    p.grad.mul_((self.max_norm / (self.norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        if self.averages is not None:
            self.averaged.update_parameters(self.model)


def twins(kind, dtype=torch.float32, shapes=SHAPES, **stages):
    """An optimizer with stages, and the reference, over equal parameters."""
    name, options = KINDS[kind]
    mine, theirs, _, others = torch_cases.pair(name, dtype, shapes, **options)
    return mine, subject_of(name, mine, **options, **stages), Reference(others, theirs, **stages)


def subject_of(name, params, **options):
    """An optimizer under test."""
    return torch_cases.make(name, params, **options)


def train(mine, ours, reference, steps=STEPS, given=torch_cases.always, start=0):
    """Take steps with equal gradients; ours stay as they are."""
    for step in range(start, start + steps):
        give(mine, step, given=given)
        give(reference.params, step, given=given)
        before = bits([p.grad for p in mine])
        ours.step()
        reference.step()
        assert bits([p.grad for p in mine]) == before
        if ours.grad_norm is not None:
            assert (ours.grad_norm.dtype, ours.grad_norm.shape) == (torch.float64, ())
            assert float(ours.grad_norm) == pytest.approx(float(reference.norm), rel=1e-5)


def check(mine, ours, reference):
    """Compare parameters, states and averages."""
    assert_same(mine, reference.params, ours, reference.optimizer, TORCH)
    for i, p in enumerate(mine):
        if "ema" in states(ours, p):
            assert_near(ours.state[p]["ema"], reference.averages[i], TORCH)
        else:
            assert reference.averages is None or not states(ours, p)


# Against torch


@each_with_stages(KINDS)
def test_trajectories(rule, stages):
    """Of every optimizer, with parameters that miss gradients."""
    mine, ours, reference = twins(rule, **stages)
    train(mine, ours, reference, given=torch_cases.now_and_then)
    check(mine, ours, reference)


OTHERS = [
    *[(kind, dtype, NORM) for kind in KINDS for dtype in (torch.float64, torch.complex64)],
    *[(kind, torch.float64, TOGETHER) for kind in ("momentum", "adamw_amsgrad")],
    *[(kind, torch.complex64, {**NORM, **AVERAGE}) for kind in ("momentum", "adagrad", "adamw_amsgrad")],
    ("momentum", torch.complex128, NORM),
]


@pytest.mark.parametrize(
    ("kind", "dtype", "stages"),
    usually(
        [case for case in OTHERS if case[2] == NORM] + [("momentum", torch.complex64, {**NORM, **AVERAGE})], OTHERS
    ),
)
def test_other_dtypes(kind, dtype, stages):
    """A complex number counts by its size; of its average, both parts."""
    mine, ours, reference = twins(kind, dtype, **stages)
    train(mine, ours, reference)
    check(mine, ours, reference)


IN_HALVES = [*[(kind, NORM) for kind in KINDS], ("momentum", TOGETHER), ("adamw_amsgrad", TOGETHER)]


@pytest.mark.parametrize(
    ("kind", "stages", "dtype"),
    usually(
        [("momentum", NORM, torch.bfloat16)],
        [(kind, stages, getattr(torch, dtype)) for kind, stages in IN_HALVES for dtype in HALVES],
    ),
    ids=str,
)
def test_half_precision(kind, stages, dtype):
    """As float32 parameters that are rounded after each step; clipping does not round, and averages are float32."""
    name, options = KINDS[kind]
    mine = torch_cases.parameters(SHAPES, dtype)
    theirs = [Parameter(p.detach().float()) for p in mine]
    ours = subject_of(name, mine, **options, **stages)
    reference = Reference(torch_cases.make(name, theirs, plainest=True, **options), theirs, **stages)
    for step in range(STEPS):
        give(mine, step)
        for p, q in zip(mine, theirs, strict=True):
            q.grad = p.grad.float()
        ours.step()
        reference.step()
        with torch.no_grad():
            for q in theirs:
                q.copy_(q.to(dtype))
    ratio = EPS[dtype] / torch.finfo(torch.float32).eps
    for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
        assert_close(real(p.float()), real(q), BFLOAT16 * ratio)
        if reference.averages is not None:
            assert ours.state[p]["ema"].dtype == torch.float32
            assert_close(real(ours.state[p]["ema"]), real(reference.averages[i]), BFLOAT16 * ratio)


def test_several_groups_with_late_gradients():
    """They have one norm, and rates of their own."""
    mine, theirs = torch_cases.parameters(SHAPES), torch_cases.parameters(SHAPES)
    own = [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.2, "betas": (0.5, 0.9)}, {"lr": 0.05, "maximize": True}]

    def grouped(params):
        return [{"params": params[i::3], **options} for i, options in enumerate(own)]

    ours = subject.AdamW(grouped(mine), **TOGETHER)
    reference = Reference(torch_cases.make("AdamW", grouped(theirs), plainest=True), theirs, **TOGETHER)
    for start, given in ((0, torch_cases.late), (9, torch_cases.always), (12, torch_cases.now_and_then)):
        train(mine, ours, reference, 4, given, start)
        check(mine, ours, reference)


def test_groups_must_agree():
    """At the next step, with a way out that works."""
    p, q = torch_cases.parameters([(3,), (4,)])
    optimizer = subject.SGD([{"params": [p]}, {"params": [q], "max_grad_norm": 0.5}], lr=0.1)
    give([p, q], 0)
    assert_refused(optimizer, optimizer.step, r"assign it to the optimizer, as in opt\.max_grad_norm = ", ValueError)
    optimizer.max_grad_norm = 0.5
    optimizer.step()
    optimizer.param_groups[0]["max_grad_norm"] = 0.7
    assert_refused(optimizer, optimizer.step, "max_grad_norm belongs to the optimizer as a whole", ValueError)
    optimizer.param_groups[1]["max_grad_norm"] = 0.7
    optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("kind", usually(["momentum"], ["momentum", "adamw_amsgrad"]))
def test_repeated_steps_have_the_bits_of_others(kind, monkeypatch):
    """Of those that are taken in full, also where options are switched on and off, and steps are skipped."""
    ends = []
    for repeats in (True, False):
        with monkeypatch.context() as patch:
            if not repeats:
                patch.setattr(Clock, "start_repeating", lambda self: None)
            mine = torch_cases.parameters(SHAPES)
            ours = subject_of(KINDS[kind][0], mine, **KINDS[kind][1], skip_nonfinite=True, **TOGETHER)
            norms = []
            for step in range(30):
                give(mine, step)
                if step % 7 == 5:
                    mine[-1].grad[-1] = math.nan
                for at, name, value in (
                    (9, "ema_decay", None),
                    (12, "clip_grad_value", None),
                    (15, "max_grad_norm", Linear(1.0, 0.1, 40)),
                    (18, "max_grad_norm", None),
                    (21, "clip_grad_value", 0.3),
                    (24, "ema_decay", 0.5),
                ):
                    if step == at:
                        setattr(ours, name, value)
                before = bits(mine)
                ours.step()
                norms.append(str(ours.grad_norm))
                assert (bits(mine) == before) == (step % 7 == 5)
            assert ours.skipped_steps == 4
            ends.append((without_gradients(ours)[:2], norms))
    assert ends[0] == ends[1]


# Gradients and parameters of other kinds


def sparse(shape, rows, seed):
    """A gradient with these rows."""
    values = torch_cases.noise((len(rows), *shape[1:]), torch.float32, seed).clone()
    return torch.sparse_coo_tensor([rows], values, shape, check_invariants=True)


@pytest.mark.parametrize(
    ("kind", "stages"),
    usually(
        [("sgd", NORM), ("sgd", TOGETHER), ("adagrad", NORM)],
        itertools.product(["sgd", "adagrad"], [NORM, VALUE, {**VALUE, **AVERAGE}, TOGETHER]),
    ),
    ids=str,
)
def test_sparse_gradients(kind, stages):
    """They count in the norm, are clipped, and their parameters averaged: as dense gradients with the same rows."""
    name, options = KINDS[kind]
    options = {**options, "lr": 0.1, "weight_decay": 0.0}
    shapes = [(9, 4), (5, 3)]
    mine, theirs, ours, others = torch_cases.pair(name, torch.float32, shapes, **options)
    ours = subject_of(name, mine, **options, **stages)
    reference = Reference(others, theirs, **stages)
    for step, rows in enumerate(([0, 3, 3], [8], [], [1, 2, 5], None, [0, 8])):
        give(mine, step)
        give(theirs, step)
        mine[0].grad = None if rows is None else sparse(shapes[0], rows, step)
        theirs[0].grad = None if rows is None else mine[0].grad.to_dense()
        before = bits(mine[0].grad)
        ours.step()
        reference.step()
        assert bits(mine[0].grad) == before
        if ours.grad_norm is not None:
            assert float(ours.grad_norm) == pytest.approx(float(reference.norm), rel=1e-5)
    for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
        assert_near(p, q, TORCH)
        if reference.averages is not None:
            assert_near(ours.state[p]["ema"], reference.averages[i], TORCH)


def test_a_sparse_gradient_that_is_not_finite():
    """Its step is skipped, for all parameters."""
    p, q = torch_cases.parameters([(9, 4), (3,)])
    optimizer = subject.SGD([p, q], lr=0.1, skip_nonfinite=True, **AVERAGE)
    for number in range(1, 4):
        give([q], number)
        p.grad = sparse((9, 4), [0, 2], number)
        p.grad._values()[1, 1] = math.inf
        assert_same_after(optimizer, optimizer.step)
        assert optimizer.skipped_steps == number
        p.grad = sparse((9, 4), [0, 2], number)
        optimizer.step()
        assert {"ema"} <= {*optimizer.state[p]}


def assert_same_after(optimizer, act):
    """Assert that an act changes nothing."""
    before = without_gradients(optimizer)
    act()
    assert without_gradients(optimizer) == before


@pytest.mark.parametrize("stages", [NORM, TOGETHER], ids=["norm", "all"])
@pytest.mark.parametrize("kind", usually(["momentum"], ["momentum", "adamw_amsgrad"]))
def test_parameters_with_gaps_and_other_orders(kind, stages):
    """Every other column, a transposed one, and gradients in other orders; without gradients now and then."""
    name, options = KINDS[kind]
    plain = torch_cases.parameters([(6, 8), (5, 70), (4, 3)])
    lays = [lambda p: p.repeat_interleave(2, 1)[:, ::2], lambda p: p.t().contiguous().t(), torch.clone]
    mine = [Parameter(lay(p.detach())) for lay, p in zip(lays, plain, strict=True)]
    assert not mine[0].is_contiguous()
    ours = subject_of(name, mine, **options, **stages)
    reference = Reference(torch_cases.make(name, plain, plainest=True, **options), plain, **stages)
    for step in range(STEPS):
        give(plain, step, given=torch_cases.now_and_then)
        for i, (p, q) in enumerate(zip(mine, plain, strict=True)):
            p.grad = None
            if q.grad is not None:
                p.grad = (
                    q.grad.clone()
                    if (i + step) % 2
                    else torch.empty_strided(p.shape, p.t().stride()[::-1]).copy_(q.grad)
                )
        if step == 5:  # by hand: the average follows where no gradient comes too
            with torch.no_grad():
                mine[0].mul_(0.5)
                plain[0].mul_(0.5)
        ours.step()
        reference.step()
    check_near(mine, plain, ours, reference)


def check_near(mine, theirs, ours, reference):
    """Compare parameters and averages."""
    for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
        assert_near(p, q, TORCH)
        if reference.averages is not None:
            assert_near(ours.state[p]["ema"], reference.averages[i], TORCH)


def test_complex_numbers_are_not_clipped_by_value():
    """torch cannot do it either. By the constructor, when it is assigned, and when it is loaded."""
    message = "clip_grad_value does not go with complex numbers, which parameter 1 has"
    params = [*torch_cases.parameters([(3,)]), *torch_cases.parameters([(3,)], torch.complex64)]
    with pytest.raises(TypeError, match=message):
        subject.SGD(params, lr=0.1, clip_grad_value=1.0)
    optimizer = subject.SGD(params, lr=0.1, max_grad_norm=1.0)
    for _ in range(3):  # steps are repeated from the second one on
        give(params, 0)
        optimizer.step()
        optimizer.clip_grad_value = 1.0
        assert_refused(optimizer, optimizer.step, message, TypeError)
        optimizer.clip_grad_value = None
    saved = optimizer.state_dict()
    saved["param_groups"][0]["clip_grad_value"] = 1.0
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), message, TypeError)
    optimizer.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize(
    "dtype",
    usually(
        [torch.float32, torch.bfloat16], [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
    ),
    ids=str,
)
def test_skipped_steps(dtype, bad):
    """Whatever the dtype; nothing is changed, made or counted."""
    mine = torch_cases.parameters(SHAPES, dtype)
    ours = subject.SGD(mine, lr=0.1, momentum=0.9, skip_nonfinite=True)
    for step in range(5):
        give(mine, step)
        mine[-1].grad[CHUNK_ELEMENTS - step] = bad
        assert_same_after(ours, ours.step)
        assert not math.isfinite(ours.grad_norm)
        assert ours.skipped_steps == step + 1
        give(mine, step)
        ours.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_without_skipping_it_goes_on_as_in_torch(bad):
    mine, ours, reference = twins("momentum", **NORM)
    train(mine, ours, reference, 2)
    give(mine, 2)
    give(reference.params, 2)
    for params in (mine, reference.params):
        params[-1].grad[5] = bad
    ours.step()
    reference.step()
    for p, q in zip(mine, reference.params, strict=True):
        torch.testing.assert_close(p, q, equal_nan=True, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler(fused):
    """The norm is that of unscaled gradients; where the scaler skips a step, it is not ours that is skipped."""
    mine, ours, reference = twins("momentum", **TOGETHER)
    ours = subject.SGD(mine, **KINDS["momentum"][1], **TOGETHER, fused=fused, skip_nonfinite=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    for step in range(STEPS):
        give(reference.params, step)
        for p, q in zip(mine, reference.params, strict=True):
            p.grad = q.grad * scaler.get_scale()
        scaler.scale(torch.ones(()))
        if step == 3:
            mine[0].grad[0] = math.inf
            assert_same_after(ours, lambda: scaler.step(ours))
        else:
            scaler.step(ours)
            reference.step()
            assert float(ours.grad_norm) == pytest.approx(float(reference.norm), rel=1e-5)
        scaler.update()
    assert ours.skipped_steps == 0
    check(mine, ours, reference)


# State dicts and copies


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("SGD", "AdamW") else pytest.mark.exhaustive) for name in NAMES]
)
def test_state_dicts_from_and_to_torch(name):
    """torch.optim loads ours and goes on alike without stages; ours loads torch's, and keeps its own options."""
    mine, theirs = torch_cases.parameters(), torch_cases.parameters()
    options = {"lr": 0.1} | ({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})
    ours, others = (
        torch_cases.make(name, mine, **options, **TOGETHER),
        torch_cases.make(name, theirs, plainest=True, **options),
    )
    torch_cases.train(ours, mine, 3)
    with torch.no_grad():
        for p, q in zip(mine, theirs, strict=True):
            q.copy_(p)
    others.load_state_dict(ours.state_dict())
    again = [Parameter(p.detach().clone()) for p in theirs]
    back = torch_cases.make(name, again, **options, **TOGETHER)
    back.load_state_dict(others.state_dict())
    assert {option: getattr(back, option) for option in TOGETHER} == TOGETHER
    torch_cases.train(ours, mine, 2, start=3)
    torch_cases.train(back, again, 2, start=3)
    for p, q in zip(mine, again, strict=True):
        assert bits([p, ours.state[p]["ema"]]) == bits([q, back.state[q]["ema"]])
    plain = torch.optim.Optimizer.state_dict(torch_cases.make(name, torch_cases.parameters(), plainest=True, **options))
    back.load_state_dict(plain)
    assert {option: getattr(back, option) for option in TOGETHER} == TOGETHER
    ours.max_grad_norm = ours.clip_grad_value = None
    torch_cases.train(ours, mine, 1, start=7)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "state dict": lambda pair: loaded(pair, lambda optimizer: torch_saved(optimizer.state_dict())),
    "distributed checkpoint": lambda pair: checkpointed(pair),
}


def torch_saved(value):
    """A value after `torch.save` and the default `torch.load`."""
    import io

    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


def loaded(pair, saved):
    """A new pair that has loaded."""
    model, optimizer = pair
    other = copy.deepcopy(model)
    fresh = subject.AdamW(other.parameters(), lr=0.5)
    fresh.load_state_dict(saved(optimizer))
    return other, fresh


def checkpointed(pair):
    """A new pair that has loaded through torch.distributed.checkpoint's functions."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model, optimizer = pair
    saved = torch_saved(get_optimizer_state_dict(model, optimizer))
    other = copy.deepcopy(model)
    fresh = subject.AdamW(other.parameters(), lr=0.5, **dict.fromkeys(TOGETHER, 0.25))
    set_optimizer_state_dict(other, fresh, saved)
    return other, fresh


def learn(model, optimizer, start, steps=3):
    """Train with gradients from backward."""
    for step in range(start, start + steps):
        x = torch_cases.noise((4, 6), torch.float32, step)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("rate", [0.01, Linear(0.1, 0.0, 20)], ids=["number", "schedule"])
@pytest.mark.parametrize("way", COPIES)
def test_copies_go_on_alike(way, rate):
    """To the bit: averages, options and their schedules are part of what is copied."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    stages = {**TOGETHER, "max_grad_norm": Linear(2.0, 0.5, 9)} if callable(rate) else TOGETHER
    optimizer = subject.AdamW(model.parameters(), lr=rate, **stages)
    learn(model, optimizer, 0)
    other, copied = COPIES[way]((model, optimizer))
    if way == "distributed checkpoint":
        assert {name: getattr(copied, name) for name in TOGETHER} == {
            name: getattr(optimizer, name) for name in TOGETHER
        }
    learn(model, optimizer, 3)
    learn(other, copied, 3)
    assert without_gradients(copied)[:2] == without_gradients(optimizer)[:2]
    assert str(copied.grad_norm) == str(optimizer.grad_norm)
    assert [getattr(copied, name) for name in STAGE_OPTIONS] == [getattr(optimizer, name) for name in STAGE_OPTIONS]


# Averages in the parameters' place


@pytest.mark.parametrize(
    "dtype", usually([torch.float32, torch.complex64], [torch.float32, torch.bfloat16, torch.complex64]), ids=str
)
def test_averages_stand_in_the_parameters_place(dtype):
    """To the bit back, after an exception too; the tensors stay the same, also those with gaps."""
    params = torch_cases.parameters([(5,), (2, 3), (4,)], dtype)
    params.append(Parameter(torch_cases.parameters([(4, 6)], dtype)[0].detach()[:, ::2]))
    optimizer = subject.AdamW(params, **AVERAGE)
    for step in range(3):
        give(params, step, given=lambda step, i: i != 2)
        optimizer.step()
    with torch.no_grad():
        params[0][0] = math.nan
        params[1][0, 0] = -0.0
    before, pointers = without_gradients(optimizer), [p.data_ptr() for p in params]
    for error in (None, ZeroDivisionError, KeyboardInterrupt):
        try:
            with optimizer.swap_ema_weights():
                for p in params:
                    want = p if p is params[2] else optimizer.state[p]["ema"].to(dtype)
                    assert bits(p.detach().clone()) == bits(want.detach().clone())
                for act in (
                    optimizer.step,
                    lambda: optimizer.load_state_dict(optimizer.state_dict()),
                    lambda: optimizer.add_param_group({"params": torch_cases.parameters([(2,)])}),
                    optimizer.swap_ema_weights().__enter__,
                ):
                    with pytest.raises(RuntimeError, match=r"leave the block of swap_ema_weights\(\)"):
                        act()
                if error is not None:
                    raise error
        except (ZeroDivisionError, KeyboardInterrupt):
            pass
        assert without_gradients(optimizer) == before
        assert [p.data_ptr() for p in params] == pointers
    give(params, 4)
    optimizer.step()


def test_a_swap_right_after_loading():
    """Nothing was stepped yet: the averages are those that were loaded."""
    params = torch_cases.parameters()
    optimizer = subject.AdamW(params, **AVERAGE)
    torch_cases.train(optimizer, params, 2)
    others = torch_cases.parameters()
    fresh = subject.AdamW(others, **AVERAGE)
    with pytest.raises(RuntimeError, match="there are no averages yet"), fresh.swap_ema_weights():
        pass
    fresh.load_state_dict(optimizer.state_dict())
    with fresh.swap_ema_weights():
        for p, q in zip(params, others, strict=True):
            assert bits(q.detach()) == bits(optimizer.state[p]["ema"])
    for p, q in zip(torch_cases.parameters(), others, strict=True):
        assert bits(p) == bits(q)


# Options


@pytest.mark.parametrize("name", STAGE_OPTIONS)
def test_bad_options_are_refused(name):
    """By the constructor and the attribute at once; in a group and in a state dict before anything is changed."""
    for bad in ("1", [1.0, 2.0], -0.5, math.nan):
        params = torch_cases.parameters()
        with pytest.raises((TypeError, ValueError), match=name):
            subject.AdamW(params, **{name: bad})
        with pytest.raises((TypeError, ValueError), match=name):
            subject.AdamW([{"params": params, name: bad}])
        optimizer = subject.AdamW(params, **AVERAGE)
        torch_cases.train(optimizer, params, 3)
        with pytest.raises((TypeError, ValueError), match=name):
            setattr(optimizer, name, bad)
        torch_cases.train(optimizer, params, 2)
        saved = optimizer.state_dict()
        saved["param_groups"][0][name] = bad
        assert_refused(optimizer, lambda o=optimizer, saved=saved: o.load_state_dict(saved), name)
        before = optimizer.param_groups[0].get(name, None)
        optimizer.param_groups[0][name] = bad
        assert_refused(optimizer, optimizer.step, name)
        optimizer.param_groups[0][name] = before or (False if name == "skip_nonfinite" else None)
        torch_cases.train(optimizer, params, 2)


# A real run


def test_a_real_run():
    """Digits, clipped by norm and averaged: losses, and those of the averages, are torch's."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    curves = []
    for make in (subject.AdamW, torch.optim.AdamW):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
        own = make is subject.AdamW
        optimizer = make(model.parameters(), lr=3e-3, **({"max_grad_norm": 0.5, "ema_decay": 0.95} if own else {}))
        if not own:
            averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
            averaged.update_parameters(model)
        losses = []
        for step in range(112):
            batch = slice(step * 32 % 1792, step * 32 % 1792 + 32)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            if not own:
                clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            if not own:
                averaged.update_parameters(model)
            losses.append(float(loss.detach()))
        with torch.no_grad():
            if own:
                with optimizer.swap_ema_weights():
                    losses.append(float(torch.nn.functional.cross_entropy(model(x), y)))
            else:
                losses.append(float(torch.nn.functional.cross_entropy(averaged(x), y)))
        curves.append(losses)
    ours, torchs = curves
    assert ours == pytest.approx(torchs, rel=TORCH_TRAINING, abs=TORCH_TRAINING)
    assert ours[-1] < 0.5 * ours[0]
