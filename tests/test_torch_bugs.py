"""Bugs in torch.optim that fastopt must not have, each with torch's own behaviour beside ours."""

import math

import pytest
import torch
import torch_cases
from mpmath import mpf, sqrt
from pairs import usually
from tolerances import TORCH, TRAJECTORY, assert_close
from torch.nn import Parameter
from torch_cases import FUSED, assert_same, bits, now_and_then, train

import fastopt.torch as subject

BUGGY = torch.__version__.startswith("2.13")  # where the bugs were seen; elsewhere only our own behaviour is asserted


def test_bug_1_a_groups_initial_accumulator_value_counts():
    """torch's takes the constructor's for every group."""
    p = Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    optimizer = subject.Adagrad([{"params": [p], "initial_accumulator_value": 3.0}], lr=1.0, eps=0.0)
    assert optimizer.state[p]["sum"] == 3.0
    optimizer.step()
    assert p.item() == -0.5
    if BUGGY:
        theirs = torch.optim.Adagrad([{"params": [p], "initial_accumulator_value": 3.0}])
        assert theirs.state[p]["sum"] == 0.0


def skipped(optimizer, p):
    """The state after a first step that an overflow has skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    p.grad = torch.full_like(p, math.inf)
    scaler.scale(torch.zeros(()))  # makes the scale
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    return torch_cases.states(optimizer, p)


def test_bug_2_a_skipped_first_step_leaves_no_state():
    """torch's fused SGD leaves a buffer uninitialised, and uses it next."""
    p = Parameter(torch.zeros(4))
    options = {"lr": 1.0, "momentum": 0.5, "dampening": 0.5, "fused": True}
    optimizer = subject.SGD([p], **options)
    assert "momentum_buffer" not in skipped(optimizer, p)
    p.grad = torch.ones(4)
    optimizer.step()
    assert (optimizer.state[p]["momentum_buffer"] == 1).all()
    if BUGGY:
        assert "momentum_buffer" in skipped(torch.optim.SGD([p], **options), p)


def test_bug_3_a_first_gradient_may_come_late():
    """torch's fused SGD raises TypeError."""

    def take(optimizer):
        p.grad, q.grad = torch.ones(2), None
        optimizer.step()
        q.grad = torch.ones(2)
        optimizer.step()

    p, q = (Parameter(torch.zeros(2)) for _ in range(2))
    take(subject.SGD([p, q], lr=1.0, momentum=0.5, fused=True))
    assert (p == -2.5).all()
    assert (q == -1).all()
    if BUGGY:
        with pytest.raises(TypeError, match="NoneType"):
            take(torch.optim.SGD([p, q], lr=1.0, momentum=0.5, fused=True))


@pytest.mark.parametrize("name", FUSED)
def test_bug_4_elements_pair_by_index_whatever_the_strides(name):
    """torch's fused CPU kernels pair them by storage order."""

    def update(make, turned):
        g = torch.arange(1.0, 36.0).reshape(5, 7)
        p = Parameter(torch.zeros(5, 7))
        p.grad = torch.empty(7, 5).t().copy_(g) if turned else g
        optimizer = make([p], lr=0.1, weight_decay=0.0, fused=True)
        optimizer.step()
        p.grad = g
        optimizer.step()
        return p.detach()

    assert bits(update(getattr(subject, name), True)) == bits(update(getattr(subject, name), False))
    if BUGGY:
        make = getattr(torch.optim, name)
        assert not torch.equal(update(make, True), update(make, False))


def test_bug_5_gradients_are_never_written():
    """torch's foreach Nesterov overwrites them where weight decay is 0."""

    def given(make):
        p = Parameter(torch.zeros(50))
        p.grad = g = torch.full((50,), 0.5)
        optimizer = make([p], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
        for _ in range(3):
            optimizer.step()
        assert p.grad is g
        return g

    assert (given(subject.SGD) == 0.5).all()
    if BUGGY:
        assert not (given(torch.optim.SGD) == 0.5).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bug_6_no_element_of_half_precision_is_left_out(dtype):
    """torch's fused CPU SGD skips whole blocks of vectors (pytorch#191763)."""

    def update(make):
        p = Parameter(torch.zeros(1000, dtype=dtype))
        p.grad = torch.ones_like(p)
        make([p], lr=1.0, fused=True).step()
        return p.detach()

    assert (update(subject.SGD) == -1).all()
    if BUGGY and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert (update(torch.optim.SGD) == 0).any()


def ones_after_a_step(optim, name, gradient):
    """Ones of float16 after a step with gradients of this size."""
    p = Parameter(torch.ones(40, dtype=torch.float16))
    p.grad = torch.full_like(p, gradient)
    getattr(optim, name)([p], lr=2.0**-6, weight_decay=0.0, foreach=False).step()
    return p.detach()


@pytest.mark.parametrize("name", usually(["Adam"], ["Adagrad", "RMSprop", "Adam", "AdamW"]))
def test_bug_7_a_zero_gradient_of_float16_is_no_nan(name):
    """In torch's float16 accumulator eps is 0, and 0 / 0 follows."""
    assert (ones_after_a_step(subject, name, 0.0) == 1).all()
    if BUGGY:
        assert ones_after_a_step(torch.optim, name, 0.0).isnan().all()


@pytest.mark.parametrize(("name", "times"), usually([("Adam", 1)], [("RMSprop", 10), ("Adam", 1), ("AdamW", 1)]))
def test_a_small_gradient_of_float16_is_no_infinity(name, times):
    """In torch's float16 its share in the average of the squares is 0, and eps is 0 as well: bug 7 again."""
    assert (ones_after_a_step(subject, name, 1e-3) == 1 - times * 2.0**-6).all()
    if BUGGY:
        assert ones_after_a_step(torch.optim, name, 1e-3).isinf().all()


def test_bug_8_loading_keeps_the_states_own_dtype():
    """torch's casts floating-point state to the parameter's dtype."""

    def loaded(make):
        p = Parameter(torch.ones(3, dtype=torch.bfloat16))
        p.grad = torch.ones_like(p)
        saved = subject.Adagrad([p]).state_dict()
        saved["state"][0]["sum"] = torch.full((3,), 1.0 + 2.0**-20)
        optimizer = make([p])
        optimizer.load_state_dict(saved)
        return optimizer.state[p]["sum"]

    assert bits(loaded(subject.Adagrad)) == bits(torch.full((3,), 1.0 + 2.0**-20))
    if BUGGY:
        assert loaded(torch.optim.Adagrad).dtype == torch.bfloat16


def far_on(optim, name, steps, dtype=torch.float32, **options):
    """A parameter that begins at 0, after steps beyond the 2**24 that torch has saved, and its state."""
    p = Parameter(torch.zeros(1, dtype=dtype))
    p.grad = torch.ones(1, dtype=dtype)
    theirs = getattr(torch.optim, name)([p], **{**options, "lr": 0.0})
    theirs.step()
    saved = theirs.state_dict()
    saved["param_groups"][0].update(options)
    saved["state"][0]["step"] = torch.tensor(2.0**24)
    optimizer = getattr(optim, name)([p])
    optimizer.load_state_dict(saved)
    for _ in range(steps):
        optimizer.step()
    return p.item(), optimizer.state[p]


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "Adam", "AdamW"])
def test_bug_9_steps_count_past_the_integers_of_float32(name):
    """torch's float32 step stops at 2**24; one that was saved by torch goes on here."""
    assert far_on(subject, name, 3)[1]["step"] == 2**24 + 3
    if BUGGY:
        assert far_on(torch.optim, name, 3)[1]["step"] == 2**24


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_corrections_of_the_bias_go_on_with_the_count(name):
    """With betas so near to 1 that they are not over by 2**24; torch's stand still there, by bug 9."""
    betas, steps = (1 - 2.0**-25, 1 - 2.0**-26), 20
    m, v, want = mpf(1 - betas[0]), mpf(1 - betas[1]), mpf(0)  # after a step with a gradient of 1
    for step in range(2**24 + 1, 2**24 + 1 + steps):
        m, v = betas[0] * m + (1 - betas[0]), betas[1] * v + (1 - betas[1])
        want -= m / (1 - mpf(betas[0]) ** step) / sqrt(v / (1 - mpf(betas[1]) ** step))
    options = {"dtype": torch.float64, "lr": 1.0, "betas": betas, "eps": 0.0, "weight_decay": 0.0}
    assert_close(far_on(subject, name, steps, **options)[0], float(want), TRAJECTORY)
    if BUGGY:
        with pytest.raises(AssertionError):
            assert_close(far_on(torch.optim, name, steps, **options)[0], float(want), TRAJECTORY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_bug_10_a_gradient_that_stays_the_same_is_no_nan(momentum, dtype):
    """Its variance is 0, and where rounding makes it negative, torch's centered RMSprop takes the root all the same."""

    def train_on(optim):
        p = Parameter(torch.zeros(500, dtype=dtype))
        optimizer = optim.RMSprop([p], lr=0.01, eps=1.0, alpha=0.5, centered=True, momentum=momentum)
        p.grad = torch_cases.gradient(p, 1)
        for _ in range(100):
            optimizer.step()
        return p.detach()

    assert (train_on(subject).sign() == -torch_cases.gradient(torch.empty(500, dtype=dtype), 1).sign()).all()
    if BUGGY:
        assert train_on(torch.optim).isnan().any()


def test_bug_11_an_average_of_bfloat16_fades():
    """In torch's bfloat16, 0.999 times a number is that number."""

    def share(optim):
        p = Parameter(torch.zeros(5, dtype=torch.bfloat16))
        optimizer = optim.Adam([p], foreach=False)
        p.grad = torch.ones_like(p)
        optimizer.step()
        first = optimizer.state[p]["exp_avg_sq"].clone()
        p.grad = torch.zeros_like(p)
        for _ in range(1000):
            optimizer.step()
        return (optimizer.state[p]["exp_avg_sq"] / first).double()

    assert (share(subject) - 0.999**1000).abs().max() < 1e-3
    if BUGGY:
        assert (share(torch.optim) == 1).all()


@pytest.mark.parametrize(
    ("name", "option", "value", "state"),
    [
        ("RMSprop", "momentum", 0.9, "momentum_buffer"),
        ("RMSprop", "centered", True, "grad_avg"),
        ("Adam", "amsgrad", True, "max_exp_avg_sq"),
        ("AdamW", "amsgrad", True, "max_exp_avg_sq"),
    ],
)
def test_bug_12_what_needs_another_state_may_begin_later(name, option, value, state):
    """It begins with zeros; torch raises KeyError, and goes on where somebody puts them there."""
    mine, theirs, ours, others = torch_cases.pair(name, torch.float64)
    for params, optimizer in ((mine, ours), (theirs, others)):
        train(optimizer, params, 5)
        optimizer.param_groups[0][option] = value
    if BUGGY:
        with pytest.raises(KeyError, match=state):
            others.step()
    for q in theirs:
        others.state[q][state] = torch.zeros_like(q)
    for params, optimizer in ((mine, ours), (theirs, others)):
        train(optimizer, params, 5, start=5, given=now_and_then)
    assert_same(mine, theirs, ours, others, TORCH)
