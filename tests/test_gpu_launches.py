"""What is put on a GPU's streams, and when: by a stand-in for CuPy that records it, and runs it on the host."""

import sys

import cupy_stand_in as cupy
import gpu_models as models
import numpy as np
import pytest
from fastopt.kernels import tables
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt.schedules import Cosine, Plateau

WORLD = cupy.WORLD
MOMENTUM = "momentum_float32_float32_float32"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """CuPy is the stand-in, with an empty log."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    forget()
    yield
    cupy.synchronize_all()


def forget():
    """Empty the log."""
    WORLD.log.clear()
    WORLD.launches.clear()


def names():
    """What was put on streams, in order."""
    return [name for name, _ in WORLD.log]


def stepped(steps=2, **options):
    """An optimizer with bound gradients after some steps, and an empty log."""
    params, grads = models.model(cupy)
    opt = fastopt.SGD(params, lr=0.1, momentum=0.9, **options)
    opt.bind(grads)
    for _ in range(steps):
        opt.step()
    cupy.synchronize_all()
    forget()
    return opt, params, grads


def test_a_step_with_bound_gradients_is_one_launch():
    """Of one kernel over all tensors, and nothing is sent."""
    opt, _, _ = stepped()
    opt.step()
    assert names() == [MOMENTUM]


def test_new_gradients_are_one_message():
    """Their addresses, a row of the table apart; the same ones again are not sent."""
    opt, params, _ = stepped()
    others = models.model(cupy, seed=5)[1]
    for _ in range(2):
        opt.step(others)
    assert names() == ["send", MOMENTUM, MOMENTUM]
    message = WORLD.launches[0][1][0]
    job = WORLD.launches[1][1][0]
    assert message["to"] == job["tensors"] + tables.TENSOR.fields["grad"][1]
    assert (message["apart"] * 8, message["count"]) == (tables.TENSOR.itemsize, len(params))
    assert message["words"][: len(params)].tolist() == [grad.data.ptr for grad in others]


def test_gradients_that_moved_before_a_step_that_failed_are_sent():
    """An option out of place is found after they were read."""
    opt, params, _ = stepped()
    others = models.model(cupy, seed=5)[1]
    before = [p.get() for p in params]
    opt.param_groups[0]["dampening"] = 0.5
    opt.param_groups[0]["nesterov"] = True
    with pytest.raises(ValueError, match="dampening"):
        opt.step(others)
    opt.param_groups[0].update(dampening=0.0, nesterov=False)
    opt.step(others)
    buffers = [opt.state[i]["momentum_buffer"].get() for i in range(3)]
    for p, old, buffer in zip(params, before, buffers, strict=True):
        assert_close(p.get(), old - 0.1 * buffer.astype(np.float64), TRAJECTORY)


def test_a_schedule_sends_its_row():
    """In the kernel's own type."""
    opt, _, _ = stepped()
    opt.param_groups[0]["lr"] = Cosine(0.1, 50)
    opt.step()
    forget()
    opt.step()
    assert names() == ["send", MOMENTUM]
    message = WORLD.launches[0][1]
    row = message["words"][0, : message["count"][0]].view(np.float32)
    assert row[:4].tolist() == [1.0, 0.0, np.float32(opt.param_groups[0]["lr"]), np.float32(0.9)]


def test_launches_are_of_one_rule_one_format_and_one_device():
    """And there is one for each."""
    small, large = models.model(cupy)[0], models.model(cupy, dtype=np.float64)[0]
    with cupy.Device(1):
        there = models.model(cupy)[0]
    half = models.model(cupy, dtype=np.float16)[0]
    groups = [{"params": small}, {"params": large}, {"params": half}, {"params": there, "momentum": 0.0}]
    opt = fastopt.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(2):
        forget()
        opt.step([[cupy.asarray(p.get()) if p.device.id == 0 else elsewhere(p) for p in g["params"]] for g in groups])
    launched = [(name, device) for name, _, device, _ in WORLD.launches if name != "send"]
    assert launched == [
        (MOMENTUM, 0),
        ("momentum_float64_float64_float64", 0),
        ("momentum_float16_float16_float32", 0),
        ("sgd_float32_float32_float32", 1),
    ]
    assert WORLD.devices == [0]


def elsewhere(array):
    """A copy on the second device."""
    with cupy.Device(1):
        return cupy.asarray(array.get())


def test_work_goes_on_the_current_stream():
    """All of it."""
    opt, _, _ = stepped()
    stream = cupy.Stream()
    forget()
    with stream:
        opt.step(models.model(cupy, seed=3)[1])
    assert {pointer for _, pointer in WORLD.log} == {stream.ptr}


def test_more_tensors_than_a_message_holds():
    """Their gradients take several."""
    count = 2 * tables.WORDS + 7
    params, grads = models.model(cupy, shapes=[(3,)] * count)
    before = [p.get() for p in params]
    opt = fastopt.SGD(params, lr=0.5)
    opt.step(grads)
    others = [cupy.asarray(2 * g.get()) for g in grads]
    cupy.synchronize_all()
    forget()
    opt.step(others)
    assert names() == ["send"] * 3 + ["sgd_float32_float32_float32"]
    for p, old, g in zip(params, before, grads, strict=True):
        assert_close(p.get(), old - 1.5 * g.get().astype(np.float64), TRAJECTORY)


def refused(opt, stream, grads, match):
    """Assert that a capture is refused, with nothing recorded and nothing counted."""
    steps = opt.param_groups[0]["step"]
    forget()
    with pytest.raises(RuntimeError, match=match), cupy.capture(stream):
        opt.step(grads)
    assert names() == []
    assert opt.param_groups[0]["step"] == steps


@pytest.mark.parametrize("schedule", [lambda step: 0.1, Plateau(0.1)], ids=["function", "plateau"])
def test_what_only_python_can_call_is_not_captured(schedule):
    """It would never be asked again."""
    opt, _, grads, stream, _ = models.warm(cupy, lr=schedule)
    refused(opt, stream, grads, "only Python can call")


def test_cold_captures():
    """The first step, one after an assignment, and one with gradients for others."""
    params, grads = models.model(cupy)
    stream = cupy.Stream()
    refused(fastopt.SGD(params, lr=0.1), stream, grads, "warm up")
    opt, _, grads, stream, _ = models.warm(cupy)
    refused(opt, stream, [grads[0], None, grads[2]], "warm up")
    opt.param_groups[0]["lr"] = 0.2
    refused(opt, stream, grads, "warm up")


def test_strided_gradients_and_parameters_on_the_host_are_not_captured():
    """Both would need what a graph cannot do."""
    opt, _, grads, stream, _ = models.warm(cupy)
    turned = cupy.ndarray(np.asfortranarray(grads[0].get()))
    refused(opt, stream, [turned, *grads[1:]], "strides")
    params, grads = models.model(cupy)
    mixed = fastopt.SGD([*params, np.ones(3, np.float32)], lr=0.1)
    grads.append(np.ones(3, np.float32))
    with stream:
        mixed.step(grads)
        mixed.step(grads)
    refused(mixed, stream, grads, "on the CPU")


def test_what_a_graph_uses_stays():
    """After a capture nothing is loaded or added, and gradients are for the same parameters."""
    opt, params, grads, stream, _ = models.warm(cupy)
    saved = opt.state_dict()
    graph = models.captured(opt, stream)
    with pytest.raises(RuntimeError, match="captured"):
        opt.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="captured"), stream:
        opt.step([grads[0], None, grads[2]])
    before = params[1].get()
    graph.launch(stream)
    assert (params[1].get() != before).all()
    assert opt.state[1]["step"] == 3


@pytest.mark.parametrize("wrap", [cupy.Foreign, cupy.DLPackOnly])
def test_arrays_of_other_libraries(wrap):
    """Are updated where they are."""
    p = np.ones(50, np.float32)
    fastopt.SGD([wrap(p)], lr=0.5).step([cupy.asarray(np.ones(50, np.float32))])
    cupy.synchronize_all()
    assert (p == 0.5).all()


def refusal(act, arrays, match, error=(TypeError, ValueError)):
    """Assert that an act raises, and changes nothing."""
    before = [array.get() for array in arrays]
    with pytest.raises(error, match=match):
        act()
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array.get(), old)


def test_errors():
    """Each names what is wrong, before anything has changed."""
    params, grads = models.model(cupy)
    opt = fastopt.SGD(params, lr=0.1)
    wrong = {
        "dtype float64": cupy.asarray(np.ones((3, 5))),
        r"shape \(5, 3\)": cupy.asarray(np.ones((5, 3), np.float32)),
        "not an array on a GPU": np.ones((3, 5), np.float32),
        "is on GPU 1": elsewhere(grads[0]),
        "overlaps": params[0],
    }
    for match, gradient in wrong.items():
        refusal(lambda gradient=gradient: opt.step([gradient, *grads[1:]]), params, match)
    refusal(lambda: opt.step(grads[:2]), params, "3 parameters and 2 gradients")
    refusal(lambda: fastopt.SGD([cupy.asarray(np.ones(3, np.int32))], lr=0.1), params, "dtype int32")
    refusal(lambda: fastopt.SGD([params[0][::2]], lr=0.1), params, "not dense")
    refusal(lambda: fastopt.SGD([params[0], params[0]], lr=0.1), params, "overlap")
    refusal(lambda: fastopt.SGD([cupy.Foreign(np.ones(3, np.float32), True)], lr=0.1), params, "read-only")
    refusal(lambda: fastopt.fused.momentum(params[0], grads[0], grads[1], lr=0.1, momentum=0.9), params, "velocity")


def test_memory_is_given_back():
    """When the optimizer goes, without the garbage collector, and another asks for some."""
    opt, _, _ = stepped()
    held = [opt._plan.courses[0].memory.pointer, opt._plan.launches[0].memory.pointer]
    addresses = {pointer.mem for pointer in held}
    del held, opt
    from fastopt.kernels import device

    assert addresses <= {pointer.mem for pointer in device.RELEASED}
    stepped()
    assert not addresses & {pointer.mem for pointer in device.RELEASED}


def test_without_cupy(monkeypatch):
    """The error names what to install."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"fastopt\[cuda13\]"):
        fastopt.SGD([cupy.Foreign(np.ones(3, np.float32))], lr=0.1)


def test_the_stand_in_is_strict():
    """What CUDA would refuse in a capture, it refuses; and nothing runs before its time."""
    stream = cupy.Stream()
    p = cupy.asarray(np.ones(10, np.float32))
    g = cupy.asarray(np.ones(10, np.float32))
    opt = fastopt.SGD([p], lr=0.5)
    with stream:
        opt.step([g])
    assert (p.host == 1).all()
    assert (p.get() == 0.5).all()
    with cupy.capture(stream):
        for act in (lambda: cupy.Memory(8), stream.synchronize, cupy.Device(0).synchronize):
            with pytest.raises(cupy.CUDARuntimeError):
                act()
        with pytest.raises(RuntimeError, match="warm up"):
            fastopt.SGD([p], lr=0.1)
