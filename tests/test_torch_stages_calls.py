"""What trainers do with the stages of fastopt.torch: clipping between backward and step, and exporting averages."""

import math

import pytest
import torch
import torch_cases
from pairs import usually
from tolerances import TORCH
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch_cases import KINDS, assert_near, assert_refused, assert_same, bits, give, without_gradients

import fastopt.torch as subject
from fastopt.step.chunks import CHUNK_ELEMENTS

SHAPES = [*torch_cases.SHAPES, (CHUNK_ELEMENTS + 1,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("kind", ["momentum", "adamw_amsgrad"])
def test_clipping_between_backward_and_step(kind, dtype):
    """As torch's function does it, but that gradients stay: in some steps, the first too, with late gradients."""
    name, options = KINDS[kind]
    mine, theirs, ours, others = torch_cases.pair(name, dtype, SHAPES, **options)
    for step in range(12):
        for params in (mine, theirs):
            give(params, step, given=torch_cases.now_and_then if step < 5 else torch_cases.always)
        before = bits([p.grad for p in mine])
        if step % 4 != 3:
            got, want = ours.clip_grad_norm_(0.5), clip_grad_norm_(theirs, 0.5)
            assert got.shape == ()
            assert float(got) == pytest.approx(float(want), rel=1e-5)
        ours.step()
        others.step()
        assert bits([p.grad for p in mine]) == before
    assert_same(mine, theirs, ours, others, TORCH)


def test_the_second_call_replaces_the_first():
    """And zero_grad drops it; a step uses it up."""
    mine, theirs, ours, others = torch_cases.pair("SGD", lr=0.1, momentum=0.9)
    for step in range(4):
        give(mine, step)
        give(theirs, step)
        ours.clip_grad_norm_(0.01)
        ours.clip_grad_norm_(1.0)
        clip_grad_norm_(theirs, 1.0)
        ours.step()
        others.step()
    give(mine, 5)
    ours.clip_grad_norm_(0.01)
    ours.zero_grad()
    for step in (6, 7):
        give(mine, step)
        give(theirs, step)
        ours.step()
        others.step()
    assert_same(mine, theirs, ours, others, TORCH)


def test_it_goes_with_the_other_stages():
    """The option clips what is left; value comes before both; a skipped step leaves nothing behind."""
    mine, theirs = torch_cases.parameters(SHAPES), torch_cases.parameters(SHAPES)
    ours, others = subject.SGD(mine, lr=0.1, max_grad_norm=0.5, skip_nonfinite=True), torch.optim.SGD(theirs, lr=0.1)
    for step in range(6):
        give(mine, step)
        give(theirs, step)
        if step == 3:
            mine[0].grad[0] = math.nan
            before = without_gradients(ours)
            assert math.isnan(ours.clip_grad_norm_(2.0))
            ours.step()
            assert without_gradients(ours) == before
            continue
        ours.clip_grad_norm_(2.0)
        clip_grad_norm_(theirs, 2.0)
        assert float(clip_grad_norm_(theirs, 0.5)) == pytest.approx(2.0, rel=1e-5)
        ours.step()
        others.step()
        assert float(ours.grad_norm) == pytest.approx(2.0, rel=1e-5)
    assert ours.skipped_steps == 1
    for p, q in zip(mine, theirs, strict=True):
        assert_near(p, q, TORCH)


def test_after_a_scaler_has_unscaled():
    """Which is when trainers clip."""
    mine, theirs, ours, others = torch_cases.pair("SGD", lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for step in range(4):
        give(mine, step)
        give(theirs, step)
        for p in mine:
            p.grad *= 64.0
        scaler.scale(torch.ones(()))
        scaler.unscale_(ours)
        assert float(ours.clip_grad_norm_(0.5)) == pytest.approx(float(clip_grad_norm_(theirs, 0.5)), rel=1e-5)
        scaler.step(ours)
        scaler.update(64.0)
        others.step()
    assert_same(mine, theirs, ours, others, TORCH)


def test_sparse_gradients_count():
    """In the norm, and are clipped."""
    mine, theirs, ours, others = torch_cases.pair("SGD", shapes=[(6, 3), (4,)], lr=0.1)
    for step in range(3):
        give(mine, step)
        give(theirs, step)
        theirs[0].grad[1:] = 0
        mine[0].grad = theirs[0].grad.to_sparse(1)
        want = clip_grad_norm_(theirs, 0.5)
        assert float(ours.clip_grad_norm_(0.5)) == pytest.approx(float(want), rel=1e-5)
        ours.step()
        others.step()
    for p, q in zip(mine, theirs, strict=True):
        assert_near(p, q, TORCH)


@pytest.mark.parametrize("bad", [-1.0, math.nan, "1"])
def test_what_cannot_be_clipped(bad):
    """Nothing changes, and the next step is not clipped."""
    params, optimizer = torch_cases.victim()
    give(params, 3)
    assert_refused(optimizer, lambda: optimizer.clip_grad_norm_(bad), "max_norm")
    params[0].grad.view(-1)[0] = math.inf
    assert_refused(
        optimizer, lambda: optimizer.clip_grad_norm_(1.0, error_if_nonfinite=True), "not finite", RuntimeError
    )
    twins, twin = torch_cases.victim()
    for of, opt in ((params, optimizer), (twins, twin)):
        give(of, 3)
        opt.step()
    assert without_gradients(optimizer) == without_gradients(twin)


class Counted(torch.nn.Module):
    """A model with buffers, tied and frozen parameters, and a state of its own that is no tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)

    def forward(self, x):
        """Run the layers."""
        return self.second(self.norm(self.first(x)))

    def get_extra_state(self):
        """Return what is no tensor."""
        return {"seen": 3}

    def set_extra_state(self, state):
        """Take it back."""
        assert state == {"seen": 3}


@pytest.mark.parametrize("dtype", usually([torch.bfloat16], [torch.float32, torch.bfloat16]), ids=str)
def test_averages_are_exported(dtype):
    """As a state dict of the model, which loads it: copies of averages, and of all else as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model, other = Counted().to(dtype), Counted().to(dtype)
    optimizer = subject.AdamW(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="set ema_decay, and take a step"):
        optimizer.ema_state_dict(model)
    optimizer.ema_decay = 0.5
    for step in range(3):
        optimizer.zero_grad()
        model(torch_cases.noise((5, 4), dtype, step)).square().sum().backward()
        optimizer.step()
    before = bits(model.state_dict())
    exported = optimizer.ema_state_dict(model)
    other.load_state_dict(exported)
    with optimizer.swap_ema_weights():
        assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
        assert bits(model.state_dict()) != before
    for value in exported.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    assert bits(model.state_dict()) == before


def test_a_clip_before_one_step_leaves_later_norms_alone():
    """Steps that repeat the one before which it was asked for have norms of their own."""
    p = Parameter(torch.zeros(100))
    optimizer = subject.SGD([p], lr=1.0, max_grad_norm=10.0)
    for step in range(6):
        p.grad = torch.full((100,), 2.0)
        if step == 3:
            assert float(optimizer.clip_grad_norm_(5.0)) == pytest.approx(20)
        before = p.detach().clone()
        optimizer.step()
        assert float(optimizer.grad_norm) == pytest.approx(5 if step == 3 else 20)
        assert float((before - p.detach()).norm()) == pytest.approx(5 if step == 3 else 10)
