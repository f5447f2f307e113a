"""What is put on a GPU's streams, and when: by a stand-in for CuPy that records it, and runs it on the host."""

import sys

import cupy_stand_in as cupy
import numpy as np
import oracle
import pytest
from fastopt.kernels import tables
from hypothesis import given, settings
from hypothesis import strategies as st
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
    others = model(seed=5)[1]
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
    small, large = model()[0], model(dtype=np.float64)[0]
    with cupy.Device(1):
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
        opt.step(model(seed=3)[1])
    assert {pointer for _, pointer in WORLD.log} == {stream.ptr}


def test_more_tensors_than_a_message_holds():
    """Their gradients take several."""
    count = 2 * tables.WORDS + 7
    params, grads = model(shapes=[(3,)] * count)
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_layouts(dtype):
    """Parameters in any order of axes; gradients with any strides."""
    rng = np.random.default_rng(1)
    params = [np.asfortranarray(rng.standard_normal((5, 7))), rng.standard_normal((4, 3, 2)).transpose(2, 0, 1)]
    grads = [rng.standard_normal((5, 14))[:, ::2], rng.standard_normal((2, 4, 3))[::-1]]
    params = [p.astype(dtype) for p in params]  # astype keeps the order of axes
    trainer = oracle.Trainer(params)
    mine = [cupy.ndarray(p) for p in params]
    stored = [g.astype(dtype) for g in grads]
    given = [np.repeat(stored[0], 2, axis=1)[:, ::2], np.ascontiguousarray(stored[1][::-1])[::-1]]
    opt = fastopt.SGD(mine, lr=0.1, momentum=0.9)
    for _ in range(3):
        opt.step([cupy.ndarray(g) for g in given])
        trainer.step("momentum", stored, {"lr": 0.1, "momentum": 0.9})
    for p, want in zip(mine, trainer.params, strict=True):
        assert_close(p.get(), want, TRAJECTORY)


def captured(opt, stream):
    """A graph of one step."""
    with cupy.capture(stream) as recorded:
        opt.step()
    return recorded.graph


def warm(**options):
    """An optimizer that can be captured, its stream, and the oracle's trainer at the same point."""
    params, grads = model()
    trainer = oracle.Trainer([p.get() for p in params])
    opt = fastopt.SGD(params, **{"lr": 0.1, "momentum": 0.9, **options})
    opt.bind(grads)
    stream = cupy.Stream()
    with stream:
        for _ in range(2):
            opt.step()
    for t in range(2):
        trainer.step("momentum", [g.get() for g in grads], numbers(options, t))
    return opt, params, grads, stream, trainer


def numbers(options, t):
    """Options as numbers at a step."""
    options = {"lr": 0.1, "momentum": 0.9, **options}
    return {name: value(t) if callable(value) else value for name, value in options.items()}


OPTIONS = {
    "plain": {},
    "lr": {"lr": Cosine(0.1, 40)},
    "everything": {"lr": Cosine(0.1, 40), "momentum": 0.5 * Cosine(1.8, 90), "dampening": 0.2, "weight_decay": 0.01},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replays(options):
    """Between steps of the host's own, with groups, states and counts as they should be."""
    opt, params, grads, stream, trainer = warm(**options)
    graph = captured(opt, stream)
    arrays = [g.get() for g in grads]
    for t in range(2, 20):
        if t % 7 == 0:
            with stream:
                opt.step()
        else:
            graph.launch(stream)
        trainer.step("momentum", arrays, numbers(options, t))
        if t % 5 == 0:
            assert opt.param_groups[0]["lr"] == numbers(options, t)["lr"]
            assert opt.param_groups[0]["step"] == opt.state[1]["step"] == t + 1
    for i, (p, want) in enumerate(zip(params, trainer.params, strict=True)):
        assert_close(p.get(), want, TRAJECTORY)
        assert_close(opt.state_dict()["state"][i]["momentum_buffer"].get(), trainer.states[i][0], TRAJECTORY)


def test_two_graphs_have_gradients_of_their_own():
    """And steps beside them have others again."""
    opt, params, grads, stream, trainer = warm(lr=Cosine(0.1, 40))
    sets = [grads, model(seed=11)[1], model(seed=12)[1]]
    graphs = []
    for each in sets[:2]:
        opt.bind(each)
        graphs.append(captured(opt, stream))
    for t, which in enumerate([0, 1, 2, 1, 0, 2, 0], 2):
        if which == 2:
            with stream:
                opt.step(sets[2])
        else:
            graphs[which].launch(stream)
        trainer.step("momentum", [g.get() for g in sets[which]], numbers({"lr": Cosine(0.1, 40)}, t))
    for p, want in zip(params, trainer.params, strict=True):
        assert_close(p.get(), want, TRAJECTORY)


def test_an_option_assigned_after_the_capture():
    """Counts from the next step outside of the graph, and in all replays from there."""
    opt, params, grads, stream, trainer = warm()
    graph = captured(opt, stream)
    arrays = [g.get() for g in grads]
    graph.launch(stream)
    trainer.step("momentum", arrays, numbers({}, 0))
    opt.param_groups[0]["lr"] = 0.02
    graph.launch(stream)
    trainer.step("momentum", arrays, numbers({}, 0))
    with stream:
        opt.step()
    graph.launch(stream)
    for _ in range(2):
        trainer.step("momentum", arrays, numbers({"lr": 0.02}, 0))
    for p, want in zip(params, trainer.params, strict=True):
        assert_close(p.get(), want, TRAJECTORY)
    assert opt.param_groups[0]["step"] == 6


RULES = {
    "momentum": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "nesterov": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adagrad": (fastopt.Adagrad, {"lr": 0.1, "lr_decay": 0.05, "eps": 1e-3}),
}
ACTIONS = st.lists(st.sampled_from(["replay", "step", "other gradients", "rate", "schedule", "read"]), max_size=14)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(RULES)), ACTIONS, ACTIONS)
def test_anything_before_and_after_a_capture(rule, before, after):
    """Steps, replays, assignments and looks in any order. What is assigned counts from the next step of the host's."""
    make, options = RULES[rule]
    params, grads = model()
    others = model(seed=4)[1]
    trainer = oracle.Trainer([p.get() for p in params])
    opt = make(params, **options)
    opt.bind(grads)
    stream, graph = cupy.Stream(), None
    assigned = in_force = options["lr"]
    taken = 0

    def follow(gradients):
        nonlocal taken
        rate = in_force(taken) if callable(in_force) else in_force
        trainer.step(rule, [g.get() for g in gradients], {**options, "lr": rate})
        taken += 1

    for action in [*before, "step", "step", "capture", *after, "read"]:
        with stream:
            if action == "replay" and graph is not None:
                graph.launch(stream)
                follow(grads)
            elif action in ("step", "other gradients"):
                in_force = assigned
                opt.step(*([] if action == "step" else [others]))
                follow(grads if action == "step" else others)
            elif action == "capture":
                graph = captured(opt, stream)
            elif action in ("rate", "schedule"):
                assigned = opt.param_groups[0]["lr"] = 0.07 if action == "rate" else Cosine(0.2, 30)
            elif action == "read":
                assert [opt.state[i]["step"] if taken else 0 for i in range(3)] == [taken] * 3
                assert opt.param_groups[0]["step"] == taken
    for i, (p, want) in enumerate(zip(params, trainer.params, strict=True)):
        assert_close(p.get(), want, TRAJECTORY)
        (name,) = opt.state[i].keys() - {"step"}
        assert_close(opt.state[i][name].get(), trainer.states[i][0], TRAJECTORY)


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
    opt, _, grads, stream, _ = warm(lr=schedule)
    refused(opt, stream, grads, "only Python can call")


def test_cold_captures():
    """The first step, one after an assignment, and one with gradients for others."""
    params, grads = model()
    stream = cupy.Stream()
    refused(fastopt.SGD(params, lr=0.1), stream, grads, "warm up")
    opt, _, grads, stream, _ = warm()
    refused(opt, stream, [grads[0], None, grads[2]], "warm up")
    opt.param_groups[0]["lr"] = 0.2
    refused(opt, stream, grads, "warm up")


def test_strided_gradients_and_parameters_on_the_host_are_not_captured():
    """Both would need what a graph cannot do."""
    opt, _, grads, stream, _ = warm()
    turned = cupy.ndarray(np.asfortranarray(grads[0].get()))
    refused(opt, stream, [turned, *grads[1:]], "strides")
    params, grads = model()
    mixed = fastopt.SGD([*params, np.ones(3, np.float32)], lr=0.1)
    grads.append(np.ones(3, np.float32))
    with stream:
        mixed.step(grads)
        mixed.step(grads)
    refused(mixed, stream, grads, "on the CPU")


def test_what_a_graph_uses_stays():
    """After a capture nothing is loaded or added, and gradients are for the same parameters."""
    opt, params, grads, stream, _ = warm()
    saved = opt.state_dict()
    graph = captured(opt, stream)
    with pytest.raises(RuntimeError, match="captured"):
        opt.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="captured"), stream:
        opt.step([grads[0], None, grads[2]])
    before = params[1].get()
    graph.launch(stream)
    assert (params[1].get() != before).all()
    assert opt.state[1]["step"] == 3


def test_parameters_on_both_sides():
    """One optimizer over the GPU's and the host's."""
    params, grads = model()
    here = np.ones(1000, np.float32)
    trainer = oracle.Trainer([*(p.get() for p in params), here])
    opt = fastopt.Adagrad([*params, here], lr=0.1)
    given = [*grads, np.full(1000, 0.5, np.float32)]
    for _ in range(3):
        opt.step(given)
        trainer.step("adagrad", [*(g.get() for g in grads), given[-1]], {"lr": 0.1})
    for p, want in zip([*(p.get() for p in params), here], trainer.params, strict=True):
        assert_close(p, want, TRAJECTORY)


@pytest.mark.parametrize("wrap", [cupy.Foreign, cupy.DLPackOnly])
def test_arrays_of_other_libraries(wrap):
    """Are updated where they are."""
    p = np.ones(50, np.float32)
    fastopt.SGD([wrap(p)], lr=0.5).step([cupy.asarray(np.ones(50, np.float32))])
    cupy.synchronize_all()
    assert (p == 0.5).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_single_calls(dtype):
    """As with NumPy; the same kind again, and on another stream."""
    real = np.float64 if dtype == np.float64 else np.float32
    p, g = cupy.asarray(np.ones(60, dtype)), cupy.asarray(np.full(60, 0.5, dtype))
    v, s = cupy.asarray(np.zeros(60, real)), cupy.asarray(np.zeros(60, real))
    want = np.ones(60)
    for stream in (cupy.STREAMS[0], cupy.Stream(), cupy.STREAMS[0]):
        cupy.synchronize_all()
        with stream:
            fastopt.fused.sgd(p, g, lr=0.25)
            fastopt.fused.momentum(p, g, v, lr=0.25, momentum=0.0)
            fastopt.fused.adagrad(p, g, s, lr=0.0)
        want -= 0.25
    np.testing.assert_array_equal(p.get(), want.astype(dtype))
    np.testing.assert_array_equal(s.get(), np.full(60, 0.75, real))


def refusal(act, arrays, match, error=(TypeError, ValueError)):
    """Assert that an act raises, and changes nothing."""
    before = [array.get() for array in arrays]
    with pytest.raises(error, match=match):
        act()
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array.get(), old)


def test_errors():
    """Each names what is wrong, before anything has changed."""
    params, grads = model()
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


def test_states_go_there_and_back():
    """Also by way of NumPy; what does not fit is refused."""
    opt, params, grads = stepped(steps=3)
    saved = opt.state_dict()
    plain = {i: {n: v if n == "step" else v.get() for n, v in state.items()} for i, state in saved["state"].items()}
    for state in (saved["state"], plain):
        other = fastopt.SGD([cupy.asarray(p.get()) for p in params], lr=0.1, momentum=0.9)
        other.load_state_dict({**saved, "state": state})
        other.step(grads)
        assert other.state[0]["step"] == 4
        want = 0.9 * plain[1]["momentum_buffer"] + grads[1].get()
        assert_close(other.state[1]["momentum_buffer"].get(), want, TRAJECTORY)
    bad = {**saved, "state": {**plain, 0: {"step": 3, "momentum_buffer": np.ones((3, 5))}}}
    refusal(lambda: opt.load_state_dict(bad), params, "dtype float64")


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
