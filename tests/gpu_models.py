"""The same model on the pretended GPU and on the host, each with an optimizer of fastopt.torch; no tests here."""

import contextlib
import gc

import cuda_stand_in
import cuda_tensors
import torch
import torch_cases
from cuda_tensors import on_gpu, on_host
from devices import StandIn
from tolerances import BFLOAT16, ONE_STEP

from fastopt.step.gpu import Gpu

KINDS = torch_cases.KINDS
SHAPES = [(4, 3), (), (700,), (0,), (2, 3, 5)]
DEVICE = StandIn()
FLAGS = {"skipped": 1.0, "taken": 0.0}


@contextlib.contextmanager
def uncollected():
    """Turn the garbage collector off: freeing memory on a device would wait for it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def give(there, here, step, dtype=None, given=torch_cases.always, scale=1.0):
    """Give both models the gradients of a step, the one on the GPU multiplied by a scale.

    The old ones are not given back before the GPU has read them, which torch's allocator sees to on a real one.
    """
    cuda_stand_in.synchronize_all()
    for i, (p, q) in enumerate(zip(there, here, strict=True)):
        q.grad = torch_cases.gradient(q, 100 * step + i) if given(step, i) else None
        p.grad = None if q.grad is None else on_gpu(q.grad * scale)


def assert_equal(there, here, ours, others):
    """Assert that both models, their states and counts are the same: the kernels' arithmetic is the same here."""
    for p, q in zip(there, here, strict=True):
        torch_cases.assert_near(on_host(p), q.detach(), ONE_STEP if q.dtype != torch.bfloat16 else BFLOAT16)
        got, want = ours.state.get(p, {}), others.state.get(q, {})
        assert got.keys() == want.keys()
        for name in got:
            if name in ("step", *torch_cases.CARRIED_NAMES):
                assert got[name] == want[name]
            else:
                torch_cases.assert_near(on_host(got[name]), want[name], ONE_STEP)


def train(there, here, ours, others, steps, given=torch_cases.always):
    """Take steps on both sides, with new gradients in each."""
    for step in steps:
        give(there, here, step, given=given)
        ours.step()
        others.step()


def warm_up(there, here, ours, others, stream):
    """Take the steps that come before a capture, with the gradients that it is to read."""
    give(there, here, 0)
    with stream:
        for _ in range(3):
            ours.step()
            others.step()


def model(kind, dtype=torch.float32, shapes=SHAPES, **more):
    """A model on the GPU and on the host, with optimizers."""
    name, options = KINDS[kind]
    tensors = [p.detach() for p in torch_cases.parameters(shapes, dtype)]
    return cuda_tensors.pair(name, tensors, **{**options, **more})


def scaled_step(optimizer, flag, scale=8.0, gpu=True):
    """Take a step as GradScaler asks for one."""
    wrap = on_gpu if gpu else torch.clone
    optimizer.grad_scale = None if scale is None else wrap(torch.tensor(scale))
    optimizer.found_inf = wrap(torch.tensor(FLAGS[flag]))
    optimizer.step()
    cuda_stand_in.synchronize_all()  # before the two are given back, as above
    del optimizer.grad_scale, optimizer.found_inf


def at_once(monkeypatch):
    """Have single updates done at once: torch's own operations around them do not wait here."""
    update = Gpu.update

    def now(*arguments):
        cuda_stand_in.synchronize_all()
        update(*arguments)
        cuda_stand_in.synchronize_all()

    monkeypatch.setattr(Gpu, "update", now)


def both(ours, others, there, here, flags, after=lambda step: None):
    """Take steps on both sides by a scaler's flags, with something after each."""
    for step, flag in enumerate(flags):
        give(there, here, step, scale=8.0)
        scaled_step(ours, flag)
        if flag == "taken":
            others.step()
        after(step)


def captured(optimizer, stream):
    """Capture a step."""
    with DEVICE.capture(stream) as graph:
        optimizer.step()
    return graph
