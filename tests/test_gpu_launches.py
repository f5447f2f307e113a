"""What is put on a GPU's streams, and when, as recorded by a stand-in for CuPy that runs it on the host."""

import sys

import cuda_stand_in
import cupy_stand_in as cupy
import host_cuda
import numpy as np
import pytest
from fastopt.kernels import cuda, tables
from fastopt.kernels.stream import Stream
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt.rules import ADAM
from fastopt.schedules import Cosine
from fastopt.step.gpu_launch import TILE_THREADS, block_threads

WORLD = cuda_stand_in.WORLD
MOMENTUM = cuda.Kind("momentum", "float32").name


pytestmark = pytest.mark.usefixtures("stand_in")


def forget():
    """Empty the log."""
    WORLD.log.clear()
    WORLD.launches.clear()


def names():
    """What was put on streams, in order."""
    return [name for name, _ in WORLD.log]


def model(shapes=((3, 5), (700,), ()), dtype=np.float32, seed=0):
    """Parameters and gradients on the device."""
    rng = np.random.default_rng(seed)
    return [[cupy.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes] for _ in range(2)]


def stepped(steps=2, **options):
    """An optimizer with bound gradients after some steps, and an empty log."""
    params, grads = model()
    opt = fastopt.SGD(params, lr=0.1, momentum=0.9, **options)
    opt.bind(grads)
    for _ in range(steps):
        opt.step()
    cuda_stand_in.synchronize_all()
    forget()
    return opt, params, grads


def test_a_step_with_bound_gradients_is_one_launch():
    """Of one kernel over all tensors, and nothing is sent."""
    opt, _, _ = stepped()
    opt.step()
    assert names() == [MOMENTUM]


def travelled(number=-1):
    """The gradients' addresses, and the rows in float32, that travelled in the argument of a launch."""
    argument = WORLD.launches[number][1]
    job, words = host_cuda.fields("", argument), host_cuda.words(argument)
    return words[: job["grads"]].tolist(), words[job["grads"] :].view(np.float32)


def test_new_gradients_travel_with_the_launch():
    """Their addresses are in its argument."""
    opt, _, _ = stepped()
    others = model(seed=5)[1]
    forget()
    for _ in range(2):
        opt.step(others)
    assert names() == [MOMENTUM, MOMENTUM]
    for number in range(2):
        addresses, rows = travelled(number)
        assert addresses == [grad.data.ptr for grad in others]
        assert rows[:4].tolist() == [1.0, 0.0, np.float32(0.1), np.float32(0.9)]


def test_gradients_that_moved_before_a_step_that_failed_are_read():
    """An invalid option is found after they were read."""
    opt, params, _ = stepped()
    others = model(seed=5)[1]
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


def test_gradients_of_a_captured_step_are_those_of_one_outside_as_well(stand_in):
    """Each has its own argument."""
    opt, params, _ = stepped()
    others = model(seed=5)[1]
    stream = cuda_stand_in.Stream()
    with stream:
        opt.step()
        opt.step()
        cuda_stand_in.synchronize_all()
        before = [p.get() for p in params]
        buffers = [opt.state[i]["momentum_buffer"].get() for i in range(3)]
    with stand_in.capture(stream):
        opt.step(others)
    with stream:
        opt.step(others)
    cuda_stand_in.synchronize_all()
    for p, old, buffer, grad in zip(params, before, buffers, others, strict=True):
        want = old - 0.1 * (0.9 * buffer.astype(np.float64) + grad.get())
        assert_close(p.get(), want, TRAJECTORY)


def test_the_row_of_a_schedule_travels():
    """In the kernel's own type."""
    opt, _, _ = stepped()
    opt.param_groups[0]["lr"] = Cosine(0.1, 50)
    opt.step()
    forget()
    opt.step()
    assert names() == [MOMENTUM]
    _, row = travelled()
    assert row[:4].tolist() == [1.0, 0.0, np.float32(opt.param_groups[0]["lr"]), np.float32(0.9)]


def test_a_row_of_each_step_travels():
    """Adam's, with the bias corrections, so that the kernel computes none of it."""
    params, grads = model()
    opt = fastopt.Adam(params, lr=0.1)
    opt.bind(grads)
    opt.step()
    for step in range(2, 5):
        cuda_stand_in.synchronize_all()
        forget()
        opt.step()
        assert names() == [cuda.Kind("adam", "float32").name]
        _, row = travelled()
        want = ADAM.row(opt.param_groups[0], step, False)
        assert row[: len(want)].tolist() == np.array(want, np.float32).tolist()


def test_launches_are_of_one_rule_one_format_and_one_device():
    """And there is one for each."""
    small, large = model()[0], model(dtype=np.float64)[0]
    with cuda_stand_in.Device(1):
        there = model()[0]
    half = model(dtype=np.float16)[0]
    groups = [{"params": small}, {"params": large}, {"params": half}, {"params": there, "momentum": 0.0}]
    opt = fastopt.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(2):
        forget()
        opt.step([[cupy.asarray(p.get()) if p.device.id == 0 else elsewhere(p) for p in g["params"]] for g in groups])
    launched = [(name, device) for name, _, device, _ in WORLD.launches if name != "send"]
    assert launched == [
        (MOMENTUM, 0),
        (cuda.Kind("momentum", "float64").name, 0),
        (cuda.Kind("momentum", "float16").name, 0),
        (cuda.Kind("sgd", "float32").name, 1),
    ]
    assert WORLD.devices == [0]


@pytest.mark.parametrize(("packs", "threads"), [(0, 128), (2**18 - 1, 128), (2**18, 256), (2**22, 512), (2**40, 512)])
def test_threads_of_a_block_by_the_work(packs, threads):
    """As measured."""
    assert block_threads(packs) == threads
    assert f"__launch_bounds__({cuda.MOST_THREADS}, " in cuda.inlined("fused.cu")
    assert threads <= cuda.MOST_THREADS


@pytest.mark.parametrize(("dtype", "elements"), [(np.float16, 1024), (np.float32, 512), (np.float64, 256)])
def test_a_chunk_is_a_pack_for_each_thread(dtype, elements):
    """Of 16 bytes; gradients that lie otherwise have tiles, and the others of that launch the same small blocks."""
    params, grads = model(shapes=[(3 * elements + 1,), (130, 7)], dtype=dtype)
    opt = fastopt.SGD(params, lr=0.1)
    opt.step(grads)
    (launch,) = opt._stepper.plan.launches
    assert (launch.block, launch.count) == (128, 4 + -(-910 // elements))
    opt.step([grads[0], grads[1].copy(order="F")])
    assert (launch.block, launch.count) == (TILE_THREADS, 4 + 1)


def elsewhere(array):
    """A copy on the second device."""
    with cuda_stand_in.Device(1):
        return cupy.asarray(array.get())


def test_work_goes_on_the_current_stream():
    """All of it."""
    opt, _, _ = stepped()
    stream = cuda_stand_in.Stream()
    forget()
    with stream:
        opt.step(model(seed=3)[1])
    assert {pointer for _, pointer in WORLD.log} == {stream.ptr}
    stream.synchronize()  # before the parameters go, which are the default stream's


ROW = tables.HYPERS // 2  # words, in float32
MOST = cuda.words(cuda.SIZES[-1]) - ROW


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (cuda.words(512) - ROW, 512),
        (cuda.words(512) - ROW + 1, 4096),
        (cuda.words(4096) - ROW, 4096),
        (cuda.words(4096) - ROW + 1, 32_760),
        pytest.param(MOST, 32_760, marks=pytest.mark.exhaustive),
    ],
)
def test_an_argument_is_as_large_as_it_has_to_be(count, size):
    """Of three sizes, the smallest that has room for gradients and rows."""
    params, grads = model(shapes=[(2,)] * count)
    before = [p.get() for p in params]
    opt = fastopt.SGD(params, lr=0.5)
    for _ in range(3):
        forget()
        opt.step(grads)
        assert cuda.Kind("sgd", "float32", size).name in names()
    assert len(names()) == 1
    assert travelled()[0] == [g.data.ptr for g in grads]
    for p, old, g in zip(params, before, grads, strict=True):
        assert_close(p.get(), old - 1.5 * g.get().astype(np.float64), TRAJECTORY)


@pytest.mark.parametrize("old", ["driver", "nvrtc"])
def test_an_old_cuda_takes_4_kb(old, monkeypatch):
    """From 12.1 on NVRTC and the driver take more."""
    monkeypatch.setattr(WORLD, old, {"driver": 12000, "nvrtc": (12, 0)}[old])
    cuda.largest_argument.cache_clear()
    params, grads = model(shapes=[(2,)] * cuda.words(4096))
    opt = fastopt.SGD(params, lr=0.5)
    opt.step(grads)
    forget()
    opt.step(grads)
    assert names() == [cuda.Kind("sgd", "float32").name]  # all was sent before
    cuda.largest_argument.cache_clear()


def test_a_capture_takes_no_more_than_4_kb(stand_in):
    """Its gradients are sent ahead; with larger arguments, captures have crashed."""
    params, grads = model(shapes=[(2,)] * cuda.words(4096))
    before = [p.get() for p in params]
    opt = fastopt.SGD(params, lr=0.5)
    opt.bind(grads)
    stream = cuda_stand_in.Stream()
    with stream:
        for _ in range(2):
            opt.step()
    assert names()[-1] == cuda.Kind("sgd", "float32", cuda.SIZES[-1]).name
    with stand_in.capture(stream) as graph:
        forget()
        opt.step()
    assert names() == ["send", "send", cuda.Kind("sgd", "float32").name]
    graph.launch()
    cuda_stand_in.synchronize_all()
    for p, old, g in zip(params, before, grads, strict=True):
        assert_close(p.get(), old - 1.5 * g.get().astype(np.float64), TRAJECTORY)


def test_more_tensors_than_an_argument_holds():
    """Their gradients, and the rows, take several messages."""
    count = MOST + 1
    params, grads = model(shapes=[(3,)] * count)
    before = [p.get() for p in params]
    opt = fastopt.SGD(params, lr=0.5)
    opt.step(grads)
    others = [cupy.asarray(2 * g.get()) for g in grads]
    cuda_stand_in.synchronize_all()
    forget()
    opt.step(others)
    assert names() == ["send"] * -(-count // tables.WORDS) + [cuda.Kind("sgd", "float32").name]
    for p, old, g in zip(params, before, grads, strict=True):
        assert_close(p.get(), old - 1.5 * g.get().astype(np.float64), TRAJECTORY)


def test_without_cupy(monkeypatch):
    """The error names what to install."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"fastopt\[cuda13\]"):
        fastopt.SGD([cupy.Foreign(np.ones(3, np.float32))], lr=0.1)


class OutOfMemoryError(Exception):
    """What a device raises that has no memory left, or Ctrl-C."""


def failing(monkeypatch, name):
    """Let one of the stream's methods, or the allocation of memory, fail once."""
    owner, method = (cupy.cuda, "Memory") if name == "Memory" else (Stream, name)
    before = getattr(owner, method)

    def fail(*arguments, **more):
        monkeypatch.setattr(owner, method, before)
        raise OutOfMemoryError

    monkeypatch.setattr(owner, method, fail)


def test_a_kernel_that_does_not_compile_changes_nothing(monkeypatch):
    """All are compiled ahead of the first launch."""
    (params, grads), (exact, others) = model(), model(dtype=np.float64)
    params, grads = params + exact, grads + others
    before = [p.get() for p in params]
    opt = fastopt.SGD(params, lr=0.5)
    kernel = cuda.kernel

    def fail(cupy, kind):
        if kind.dtype == "float64":
            raise OutOfMemoryError
        return kernel(cupy, kind)

    with monkeypatch.context() as patch:
        patch.setattr(cuda, "kernel", fail)
        with pytest.raises(OutOfMemoryError):
            opt.step(grads)
    cuda_stand_in.synchronize_all()
    assert [p.get().tobytes() for p in params] == [old.tobytes() for old in before]
    assert opt.param_groups[0]["step"] == 0
    opt.step(grads)
    cuda_stand_in.synchronize_all()
    for p, old, g in zip(params, before, grads, strict=True):
        assert_close(p.get(), old - 0.5 * g.get().astype(np.float64), TRAJECTORY)


def twins(**options):
    """Two optimizers with the same parameters and gradients, and a function that compares them."""
    (opt, params, grads), (twin, others, _) = stepped(**options), stepped(**options)

    def compare():
        cuda_stand_in.synchronize_all()
        for p, q in zip(params, others, strict=True):
            assert p.get().tobytes() == q.get().tobytes()

    return opt, twin, grads, compare


@pytest.mark.parametrize("what", ["Memory", "write"])
def test_a_cut_that_fails_is_made_again(what, monkeypatch):
    """The step changes nothing; the next one finds no table that is half of the old gradients' strides."""
    opt, twin, grads, compare = twins()
    strided = [grads[0], cupy.asarray(np.ones((700, 2), np.float32))[:, 0], grads[2]]
    failing(monkeypatch, what)
    with pytest.raises(OutOfMemoryError):
        opt.step(strided)
    for gradients in (grads, strided, grads):
        opt.step(gradients)
        twin.step(gradients)
        compare()


def test_room_for_rows_that_fails_is_made_again(monkeypatch):
    """Parameters with other counts need another hyper row."""
    opt, twin, grads, compare = twins()
    late = [grads[0], None, None]
    opt.step(late)
    twin.step(late)
    failing(monkeypatch, "Memory")
    with pytest.raises(OutOfMemoryError):
        opt.step()
    for _ in range(2):
        opt.step()
        twin.step()
        compare()


@pytest.mark.parametrize("what", ["Memory", "write"])
def test_a_schedule_that_could_not_be_copied_is_copied_later(what, monkeypatch):
    """Captured steps read it in the GPU's memory."""
    opt, twin, _, compare = twins()
    for optimizer in (opt, twin):
        optimizer.param_groups[0]["lr"] = Cosine(0.1, 20)
    failing(monkeypatch, what)
    with pytest.raises(OutOfMemoryError):
        opt.step()
    for optimizer in (opt, twin):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            for _ in range(2):
                optimizer.step()
            stream.begin_capture()
            optimizer.step()
            graph = stream.end_capture()
        for _ in range(2):
            graph.launch(stream)
    compare()
    assert opt.param_groups[0]["lr"] == twin.param_groups[0]["lr"] == Cosine(0.1, 20)(5)


def test_a_function_is_noticed_where_a_schedule_could_not_be_copied(monkeypatch):
    """A graph would never call it."""
    opt, _, _, _ = twins()
    opt.param_groups[0].update({"lr": lambda step: 0.1, "weight_decay": Cosine(0.1, 20)})
    failing(monkeypatch, "Memory")
    with pytest.raises(OutOfMemoryError):
        opt.step()
    for _ in range(2):
        opt.step()
    assert opt._stepper.clock.needs_python


def test_a_single_update_is_not_captured():
    """The first one on a stream neither; warming up would not help."""
    params, grads = model()
    stream = cupy.cuda.Stream(non_blocking=True)
    for _ in range(2):
        with stream:
            stream.begin_capture()
            try:
                with pytest.raises(RuntimeError, match="make an optimizer, and capture its step"):
                    fastopt.fused.sgd(params[1], grads[1], lr=0.1)
            finally:
                stream.end_capture()
            fastopt.fused.sgd(params[1], grads[1], lr=0.1)
    cuda_stand_in.synchronize_all()
