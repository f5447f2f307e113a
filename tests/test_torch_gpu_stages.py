"""The stages of steps in torch on a GPU, which is a stand-in here."""

import cuda_stand_in
import pytest
import torch
from cuda_tensors import on_host, pair
from gpu_models import DEVICE, SHAPES, assert_equal, captured, give, scaled_step, warm_up
from torch_cases import now_and_then

pytestmark = pytest.mark.usefixtures("pretended")
STAGES = {
    "norm": {"max_grad_norm": 1.0},
    "skip": {"skip_nonfinite": True},
    "all": {"clip_grad_value": 0.3, "max_grad_norm": 1.0, "ema_decay": 0.9, "skip_nonfinite": True},
}
each = pytest.mark.parametrize("stages", STAGES)


def both(stages, **options):
    """A model on the pretended GPU and its twin on the host, with their optimizers."""
    torch.manual_seed(0)
    return pair("AdamW", [torch.randn(shape) for shape in SHAPES], **STAGES[stages], **options)


@each
def test_as_on_the_host(stages):
    """Also where a gradient is missing now and then, or not finite where that is skipped."""
    there, here, ours, others = both(stages)
    for step in range(8):
        give(there, here, step, given=now_and_then)
        if step in (1, 5) and "skip_nonfinite" in STAGES[stages]:
            with torch.no_grad():
                for p in (there[2], here[2]):
                    if p.grad is not None:
                        p.grad[5] = torch.nan
        ours.step()
        others.step()
        if others.grad_norm is not None:
            assert float(on_host(ours.grad_norm)) == pytest.approx(float(others.grad_norm), nan_ok=True)
    assert_equal(there, here, ours, others)
    assert ours.skipped_steps == others.skipped_steps


def test_clip_grad_norm_of_the_optimizer():
    """The GPU's norm is a tensor there, and the next step divides by it without waiting."""
    there, here, ours, others = both("norm")
    ours.max_grad_norm = others.max_grad_norm = None
    for step in range(6):
        give(there, here, step)
        norms = [float(on_host(opt.clip_grad_norm_(0.5))) for opt in (ours, others)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        if step == 3:  # no step takes these
            for opt in (ours, others):
                opt.zero_grad()
            continue
        before = cuda_stand_in.WORLD.waits
        ours.step()
        assert step < 2 or cuda_stand_in.WORLD.waits == before
        others.step()
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("flag", ["skipped", "taken"])
@each
def test_under_a_scaler(stages, flag):
    """The norm is that of unscaled gradients; a step that AMP skips is not one that `skipped_steps` counts."""
    there, here, ours, others = both(stages, fused=True)
    for step in range(4):
        skipped = step == 2 and flag == "skipped"
        give(there, here, step, scale=1024.0)
        scaled_step(ours, "skipped" if skipped else "taken", 1024.0)
        if not skipped:
            others.step()
    assert_equal(there, here, ours, others)
    assert ours.skipped_steps == 0


@each
def test_captured(stages):
    """Replays do all of it."""
    there, here, ours, others = both(stages)
    stream = DEVICE.stream()
    warm_up(there, here, ours, others, stream)
    graph = captured(ours, stream)
    for _ in range(3):
        with stream:
            graph.launch(stream)
        others.step()
    assert_equal(there, here, ours, others)
