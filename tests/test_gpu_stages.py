"""The stages of steps on GPUs: the norm is taken there, and decides there; on a stand-in, and on a real GPU."""

import cuda_stand_in
import numpy as np
import pytest
from gpu_steps import arrays, plain
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt.schedules import Cosine

WORLD = cuda_stand_in.WORLD
STAGES = {
    "value": {"clip_grad_value": 0.3},
    "norm": {"max_grad_norm": 1.0},
    "average": {"ema_decay": 0.9},
    "skip": {"skip_nonfinite": True},
    "all": {"clip_grad_value": 0.3, "max_grad_norm": 1.0, "ema_decay": 0.9, "skip_nonfinite": True},
}
OPTIMIZERS = {"momentum": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9}), "adamw": (fastopt.AdamW, {"lr": 0.01})}


def twins(device, name, stages, **options):
    """An optimizer on a device, and one over copies on the host."""
    make, given = OPTIMIZERS[name]
    params = arrays(device)
    host = [array.copy() for array in plain(device, params)]
    return make(params, **given, **stages, **options), make(host, **given, **stages, **options), params, host


def assert_same(device, opt, twin, params, host):
    """Assert that both optimizers have come to the same parameters, averages and counts."""
    for there, here in zip(params, host, strict=True):
        assert_close(device.get(there), here.astype(np.float64), TRAJECTORY)
    for key, entry in twin.state.items():
        assert opt.state[key]["step"] == entry["step"]
        for state in entry.keys() - {"step"}:
            assert_close(device.get(opt.state[key][state]), entry[state].astype(np.float64), TRAJECTORY)
    assert opt.skipped_steps == twin.skipped_steps


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_on_the_host(device, name, stages):
    """With new gradients at each step, one of them missing once, and one not finite where that is skipped."""
    opt, twin, params, host = twins(device, name, STAGES[stages])
    for step in range(8):
        grads = plain(device, arrays(device, seed=step + 1))
        if step == 3:
            grads[1] = None
        if step in (0, 5) and "skip_nonfinite" in STAGES[stages]:
            grads[0][1, 2] = np.inf
        opt.step([None if g is None else device.array(g) for g in grads])
        twin.step(grads)
        if twin.grad_norm is not None:
            assert float(device.get(opt.grad_norm)) == pytest.approx(twin.grad_norm, rel=1e-6, nan_ok=True)
    assert_same(device, opt, twin, params, host)


def test_nobody_waits(device):
    """For the norm, for what it decides, or for the norm as an array."""
    opt, _, _, _ = twins(device, "adamw", STAGES["all"])
    grads = arrays(device, seed=1)
    for _ in range(3):
        opt.step(grads)
    before = WORLD.waits
    opt.step(grads)
    norm = opt.grad_norm
    assert WORLD.waits == before
    assert float(device.get(norm)) > 0


def test_options_may_change(device):
    """Between steps: from one stage to another, and back to none."""
    opt, twin, params, host = twins(device, "momentum", {})
    changes = {2: ("max_grad_norm", 0.5), 4: ("clip_grad_value", 0.1), 6: ("max_grad_norm", None)}
    changes[8] = "ema_decay", 0.5
    for step in range(11):
        for each in (opt, twin):
            if step in changes:
                setattr(each, *changes[step])
        grads = arrays(device, seed=step)
        opt.step(grads)
        twin.step(plain(device, grads))
    assert_same(device, opt, twin, params, host)


def test_schedules_of_stages(device):
    """Of the norm's limit and the average's decay."""
    stages = {"max_grad_norm": Cosine(1.0, 10, end=0.1), "ema_decay": Cosine(0.5, 10, end=0.9)}
    opt, twin, params, host = twins(device, "adamw", stages)
    for step in range(6):
        grads = arrays(device, seed=step)
        opt.step(grads)
        twin.step(plain(device, grads))
    assert_same(device, opt, twin, params, host)


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_captured(device, name, stages):
    """Replays do all of it, with other gradients in the same memory, and skip what is not finite."""
    opt, twin, params, host = twins(device, name, STAGES[stages])
    grads = arrays(device, seed=1)
    opt.bind(grads)
    stream = device.stream()
    for _ in range(2):
        with stream:
            opt.step()
        stream.synchronize()
        twin.step(plain(device, grads))
    with stream:
        stream.begin_capture()
        opt.step()
        graph = stream.end_capture()
    for step in range(5):
        with stream:
            for array, new in zip(grads, plain(device, arrays(device, seed=step + 5)), strict=True):
                if step == 2 and "skip_nonfinite" in STAGES[stages] and new.size > 1:
                    new.flat[1] = np.nan
                array[...] = device.array(new)
            graph.launch(stream)
        stream.synchronize()
        twin.step(plain(device, grads))
    assert_same(device, opt, twin, params, host)


def warmed_up(device, stages):
    """An optimizer that could be captured, and its stream."""
    opt, _, _, _ = twins(device, "momentum", stages)
    opt.bind(arrays(device, seed=1))
    stream = device.stream()
    for _ in range(2):
        with stream:
            opt.step()
    return opt, stream


def test_a_captured_step_keeps_its_numbers(device):
    """Another limit would be in no replay."""
    opt, stream = warmed_up(device, STAGES["norm"])
    with stream:
        stream.begin_capture()
        opt.step()
        stream.end_capture()
        opt.max_grad_norm = 2.0
        with pytest.raises(RuntimeError, match="captured with other numbers"):
            opt.step()


def test_a_schedule_of_a_stage_is_not_captured(device):
    """A replay would keep its number."""
    opt, stream = warmed_up(device, {"max_grad_norm": Cosine(1.0, 10)})
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="max_grad_norm is a schedule"):
            opt.step()
        stream.end_capture()


def test_beside_the_cpu(device):
    """Parameters on both sides have one norm; the host takes it."""
    here, there = np.ones(700, np.float32), device.array(np.ones(700, np.float32))
    opt = fastopt.SGD([here, there], lr=1.0, max_grad_norm=1.0)
    opt.step([np.full(700, 3.0, np.float32), device.array(np.full(700, 4.0, np.float32))])
    assert opt.grad_norm == pytest.approx(5 * 700**0.5)
    assert_close(here, np.full(700, 1 - 0.6 / 700**0.5), TRAJECTORY)
    assert_close(device.get(there), np.full(700, 1 - 0.8 / 700**0.5), TRAJECTORY)


def test_zeroed_gradients(device):
    """In the same pass; also where the GPU skips the step."""
    opt, twin, params, host = twins(device, "momentum", {"skip_nonfinite": True})
    for step in range(4):
        grads = arrays(device, seed=step + 1)
        if step == 2:
            grads[1] = device.array(np.full(700, np.nan, np.float32))
        twin.step(plain(device, grads))
        opt.step(grads, zero_grads=True)
        assert all((device.get(g) == 0).all() for g in grads)
    assert_same(device, opt, twin, params, host)


def test_large_and_small_float64(device):
    """Squares that overflow or get lost are no reason to skip."""
    for size in (1e300, 1e-300):
        w = device.array(np.ones(5000))
        opt = fastopt.SGD(w, lr=1.0, max_grad_norm=1.0, skip_nonfinite=True)
        opt.step(device.array(np.full(5000, size)))
        assert float(device.get(opt.grad_norm)) == pytest.approx(size * 5000**0.5)
        assert opt.skipped_steps == 0


def test_gradients_that_share_memory_are_not_zeroed(device):
    """One kernel would write what another part of it still reads."""
    params, shared = arrays(device, [(5,), (5,)]), device.array(np.ones(8, np.float32))
    opt = fastopt.SGD(params, lr=0.1)
    with pytest.raises(ValueError, match="the gradient of parameter 0 and the gradient of parameter 1 overlap"):
        opt.step([shared[:5], shared[3:]], zero_grads=True)
    assert (device.get(shared) == 1).all()
