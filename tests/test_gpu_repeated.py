"""Steps on GPUs that repeat the last one, which the extension launches; on a stand-in, and on a real GPU."""

import threading

import cuda_stand_in
import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import driver, extension, repetition
from gpu_steps import DTYPES, arrays, assert_trained, bits, follow, plain, warm
from rule_cases import OPTIMIZERS, numbers
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt.schedules import Cosine

WORLD = cuda_stand_in.WORLD


def taken(opt):
    """How many steps the extension has taken."""
    last = opt._stepper.clock.repetition
    return 0 if last is None else last.taken


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule(device, name, dtype):
    """With other gradients at each step, under a schedule, against the oracle."""
    make, options = OPTIMIZERS[name]
    options = {**options, "lr": Cosine(0.01, 30)}
    params = arrays(device, dtype=dtype)
    trainer = oracle.Trainer(plain(device, params))
    opt = make(params, **options)
    kept = []
    for step in range(8):
        kept.append(arrays(device, dtype=dtype, seed=step + 1))
        opt.step(kept[-1])
        follow(device, trainer, name, kept[-1], numbers(options, step))
    assert taken(opt) == 7
    assert_trained(device, opt, params, trainer)


def test_several_kernels(device):
    """Three dtypes, each with a launch of its own."""
    params = [array for dtype in DTYPES for array in arrays(device, dtype=dtype)]
    grads = [array for dtype in DTYPES for array in arrays(device, dtype=dtype, seed=1)]
    twins = [array.copy() for array in params]
    opt, twin = fastopt.Adam(params, lr=0.1), fastopt.Adam(twins, lr=0.1)
    for _ in range(5):
        opt.step(grads)
        twin.step(grads)
        twin.param_groups[0]["lr"] = 0.1  # so that its steps are taken in Python
    assert (taken(opt), taken(twin)) == (4, 0)
    assert bits(device, params) == bits(device, twins)


def test_beside_the_cpu(device):
    """Arrays of NumPy and arrays on a GPU in one optimizer: one call takes both."""
    here, there = [np.ones(700, np.float32)], [device.array(np.ones(700, np.float32))]
    grads = [np.full(700, 0.5, np.float32)], [device.array(np.full(700, 0.5, np.float32))]
    opt = fastopt.Adam([*here, *there], lr=0.1)
    for _ in range(5):
        opt.step([*grads[0], *grads[1]])
    assert taken(opt) == 4
    assert_close(device.get(there[0]), here[0].astype(np.float64), TRAJECTORY)


def test_a_function_and_an_option_that_is_assigned(device):
    """A rate that only Python can compute is no reason to launch in Python; an assignment takes a step in full."""
    params, grads = arrays(device), arrays(device, seed=1)
    opt = fastopt.SGD(params, lr=lambda step: 0.1 / (step + 1), momentum=0.9)
    trainer = oracle.Trainer(plain(device, params))
    for step in range(9):
        if step == 5:
            opt.param_groups[0]["lr"] = 0.25
        opt.step(grads)
        rate = 0.1 / (step + 1) if step < 5 else 0.25
        trainer.step("momentum", plain(device, grads), {"lr": rate, "momentum": 0.9})
        assert taken(opt) == (step if step < 5 else step - 1)
    assert_trained(device, opt, params, trainer)


def test_the_stream_is_the_current_one(device):
    """At each step anew."""
    opt, params, grads, stream, trainer = warm(device)
    other = device.stream()
    for number in range(6):
        with other if number % 2 else stream:
            opt.step()
        device.synchronize()  # streams do not wait for each other
        follow(device, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    assert taken(opt) == 7
    assert_trained(device, opt, params, trainer)


def test_a_thread_without_a_context(device):
    """It has launched nothing before."""
    opt, params, grads, stream, trainer = warm(device)
    stream.synchronize()
    errors = []

    def step():
        try:
            opt.step()
        except BaseException as error:
            errors.append(error)

    for _ in range(3):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        follow(device, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    assert not errors
    assert taken(opt) == 4
    assert_trained(device, opt, params, trainer)


def test_two_devices(stand_in):
    """Each launch goes to its own device, whichever is current."""
    params = arrays(stand_in, shapes=[(700,)])
    with cuda_stand_in.Device(1):
        params += arrays(stand_in, shapes=[(700,)])
    grads = [p.copy() for p in params[:1]]
    with cuda_stand_in.Device(1):
        grads.append(params[1].copy())
    opt = fastopt.SGD(params, lr=0.5)
    for _ in range(2):
        opt.step(grads)
    for current in (0, 1):
        WORLD.launches.clear()
        with cuda_stand_in.Device(current):
            opt.step(grads)
        assert [device for _, _, device, _ in WORLD.launches] == [0, 1]
    assert taken(opt) == 3
    cuda_stand_in.synchronize_all()
    for p, g in zip(params, grads, strict=True):
        assert_close(p.get(), g.get() * (1 - 4 * 0.5), TRAJECTORY)


def test_a_capture_in_between(device):
    """The extension does not launch into one; afterwards GPUs count."""
    opt, params, grads, stream, trainer = warm(device)
    with stream:
        opt.step()
    follow(device, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    assert taken(opt) == 2
    with device.capture(stream) as graph:
        opt.step()
    for _ in range(3):
        graph.launch()
        follow(device, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    with stream:
        opt.step()
    follow(device, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    device.synchronize()
    assert_trained(device, opt, params, trainer)


def test_state_dicts_and_counts(device):
    """Whoever reads a count gets that of all steps, and loading goes on from there."""
    params, grads = arrays(device), arrays(device, seed=1)
    opt = fastopt.Adam(params, lr=Cosine(0.1, 40))
    trainer = oracle.Trainer(plain(device, params))
    for step in range(6):
        opt.step(grads)
        trainer.step("adam", plain(device, grads), numbers({"lr": Cosine(0.1, 40)}, step))
        assert opt.param_groups[0]["step"] == opt.state[0]["step"] == step + 1
        assert opt.param_groups[0]["lr"] == Cosine(0.1, 40)(step)
    assert taken(opt) == 5
    opt.load_state_dict(opt.state_dict())
    for step in range(6, 9):
        opt.step(grads)
        trainer.step("adam", plain(device, grads), numbers({"lr": Cosine(0.1, 40)}, step))
    assert_trained(device, opt, params, trainer)


@pytest.mark.parametrize("missing", ["extension", "driver", "symbols"])
def test_without_the_driver_cupy_launches(stand_in, monkeypatch, missing):
    """As it does in a step that is no repetition."""
    if missing == "extension":
        monkeypatch.setattr(driver, "lib", None)
        driver._functions.cache_clear()
    else:
        monkeypatch.setattr(driver, "LIBRARY", {"driver": "libnone.so.1", "symbols": "libm.so.6"}[missing])
    opt, params, grads, stream, trainer = warm(stand_in)
    with stream:
        opt.step()
    follow(stand_in, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    assert taken(opt) == 0
    assert_trained(stand_in, opt, params, trainer)
    driver._functions.cache_clear()


def refusing(opt, after):
    """Let the driver refuse a launch of an optimizer's repetition, after so many: its kernel is none."""
    opt._stepper.clock.repetition.tables[1]["kernel"][after] = 1


def test_a_launch_that_is_refused_is_made_by_cupy(stand_in):
    """Nothing is done before; CuPy raises what it has to."""
    opt, params, grads, stream, trainer = warm(stand_in)
    refusing(opt, 0)
    with stream:
        opt.step()
    follow(stand_in, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    assert_trained(stand_in, opt, params, trainer)


def test_an_earlier_fault_is_raised_by_cupy(stand_in):
    """With CUDA's name for it; the counts stay."""
    opt, *_ = warm(stand_in)
    stand_in.synchronize()
    WORLD.fault = RuntimeError("stale")
    with pytest.raises(cuda_stand_in.CUDARuntimeError, match="IllegalAddress"):
        opt.step()
    WORLD.fault = None
    assert opt.param_groups[0]["step"] == 2


def test_a_later_launch_that_is_refused_is_said(stand_in):
    """Parameters of one dtype are updated, and those of another are not: no error of CuPy's would say that."""
    params = arrays(stand_in) + arrays(stand_in, dtype=np.float64)
    grads = [p.copy() for p in params]
    opt = fastopt.SGD(params, lr=0.1)
    for _ in range(2):
        opt.step(grads)
    refusing(opt, 1)
    with pytest.raises(RuntimeError, match="in the midst of a step, with the CUDA driver's error 400"):
        opt.step(grads)
    assert extension.lib.FASTOPT_TORN == repetition.TORN
