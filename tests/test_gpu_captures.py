"""Steps captured in graphs and replayed, on a stand-in for CuPy and on a real GPU, and refused captures."""

import numpy as np
import pytest
from fastopt.bench import oracle
from gpu_steps import (
    DTYPES,
    arrays,
    assert_trained,
    bits,
    follow,
    plain,
    refused_capture,
    state_arrays,
    state_arrays_of,
    warm,
    warmed_up,
)
from rule_cases import OPTIMIZERS, numbers
from schedule_cases import CASES
from tolerances import BFLOAT16, TRAJECTORY, assert_close

import fastopt
from fastopt.schedules import Cosine, Exponential, Linear, OneCycle, Piecewise, Plateau

CAPTURED = {
    "plain": ("momentum", {}),
    "lr": ("momentum", {"lr": Cosine(0.1, 40)}),
    "everything": (
        "momentum",
        {
            "lr": Cosine(0.1, 40),
            "momentum": OneCycle(0.1, 30).momentum(0.5, 0.9),
            "dampening": 0.2,
            "weight_decay": Linear(0.1, 0.0, 20),
        },
    ),
    "nesterov": ("nesterov", {"lr": Linear(0.1, 0.0, 15), "nesterov": True, "maximize": True, "weight_decay": 0.01}),
    "sgd": ("sgd", {"lr": Exponential(0.1, 0.9), "momentum": 0.0}),
    "adagrad": ("adagrad", {"lr": Cosine(0.1, 40), "lr_decay": 0.1, "eps": 1e-3, "initial_accumulator_value": 0.1}),
    "rmsprop": (
        "rmsprop_centered_momentum",
        {"lr": Cosine(0.01, 40), "momentum": OneCycle(0.1, 30).momentum(0.5, 0.9), "centered": True, "alpha": 0.9},
    ),
    "adam": ("adam", {"lr": 0.01}),
    "adam, everything": (
        "adam_amsgrad",
        {
            "lr": Cosine(0.01, 40),
            "weight_decay": Linear(0.1, 0.0, 20),
            "betas": (OneCycle(0.1, 30).momentum(0.5, 0.9), Linear(0.9, 0.99, 25)),
            "amsgrad": True,
        },
    ),
    "adamw": ("adamw", {"lr": Linear(0.01, 0.0, 30), "weight_decay": Linear(0.1, 0.0, 20), "maximize": True}),
    "adamw, beta2 alone": ("adamw", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, Piecewise([0.99, 0.9], [12]))}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), CAPTURED.values(), ids=CAPTURED)
def test_replays(device, name, options, dtype):
    """With steps of the host's own between them; groups, states and counts are right whenever they are asked for."""
    optimizer = OPTIMIZERS[name][0]
    opt, params, grads, stream, trainer = warm(device, optimizer, name, dtype=dtype, **options)
    with device.capture(stream) as graph:
        opt.step()
    assert [opt.param_groups[0]["step"], opt.state[0]["step"]] == [2, 2]  # it has only been recorded
    assert_trained(device, opt, params, trainer)
    others = arrays(device, dtype=dtype, seed=7)
    for t in range(2, 24):
        if t in (7, 8, 15):
            with stream:
                opt.step() if t % 2 else opt.step(others)
            follow(device, trainer, name, grads if t % 2 else others, numbers({**opt_defaults(opt), **options}, t))
        else:
            graph.launch()
            follow(device, trainer, name, grads, numbers({**opt_defaults(opt), **options}, t))
        if t % 5 == 0:
            group = opt.param_groups[0]
            assert {k: group[k] for k in options} == numbers(options, t)
            assert group["step"] == opt.state[1]["step"] == t + 1
    assert_trained(device, opt, params, trainer)
    saved = opt.state_dict()
    group = saved["param_groups"][0]
    assert group["step"] == 24
    assert {k: group[k] for k in options} == numbers(options, 23)
    assert [entry["step"] for entry in saved["state"].values()] == [24] * len(saved["state"])
    assert [device.get(v).tobytes() for v in state_arrays_of(saved)] == bits(device, state_arrays(opt))


def opt_defaults(opt):
    """The momentum that `warm` gives an SGD."""
    return {"lr": 0.1, "momentum": 0.9} if isinstance(opt, fastopt.SGD) else {}


def test_every_schedule_in_replays(device):
    """As if the host had called it, in one graph, with a group for each; the groups show its numbers."""
    chosen = [schedule for schedule in CASES if min(schedule(t) for t in range(14)) >= 0]
    assert len(chosen) > 0.9 * len(CASES)
    params = [device.array(np.zeros(3, np.float32)) for _ in chosen]
    grads = [device.array(np.full(3, -0.5, np.float32)) for _ in chosen]
    opt = fastopt.SGD([{"params": [p], "lr": schedule} for p, schedule in zip(params, chosen, strict=True)])
    opt.bind([[g] for g in grads])
    graph = warmed_up(device, opt)
    for t in range(2, 12):
        graph.launch()
        if t in (2, 5, 11):
            wrong = [s for s, group in zip(chosen, opt.param_groups, strict=True) if group["lr"] != s(t)]
            assert wrong == []
    for p, schedule in zip(params, chosen, strict=True):
        want = np.full(3, 0.5 * sum(schedule(t) for t in range(12)))
        assert_close(device.get(p), want, TRAJECTORY, scale=max(want[0], 1e-30))


LATE = {
    "adagrad": (fastopt.Adagrad, {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.01}),
    "adam": (fastopt.Adam, {"lr": 0.1, "weight_decay": 0.01}),
}


@pytest.mark.parametrize("name", LATE)
def test_replays_with_late_parameters_and_missing_gradients(device, name):
    """Parameters of one group that have taken different numbers of steps, and one that takes part in none."""
    shapes = [(3,), (5,), (600,), (7,)]
    optimizer, options = LATE[name]
    params, grads = arrays(device, shapes), arrays(device, shapes, seed=1)
    trainer = oracle.Trainer(plain(device, params))
    opt = optimizer(params, **options)
    stream = device.stream()
    masks = [[0, 3], [0], [0, 1, 2], [0, 1, 2]]
    for mask in masks:
        some = [g if i in mask else None for i, g in enumerate(grads)]
        with stream:
            opt.step(some)
        follow(device, trainer, name, some, options)
    with device.capture(stream) as graph:
        opt.step(some)
    for _ in range(4):
        graph.launch()
        follow(device, trainer, name, some, options)
    assert trainer.steps == [8, 6, 6, 1]
    assert_trained(device, opt, params, trainer)


def test_groups_with_schedules_of_their_own_in_replays(device):
    """And of several rules and dtypes: several launches in one graph."""
    options = [
        {"lr": Cosine(0.1, 30), "momentum": 0.9, "dampening": 0.1},
        {"lr": Linear(0.0, 0.1, 8), "momentum": OneCycle(0.1, 20).momentum(0.5, 0.9), "nesterov": True},
        {"lr": 0.05, "weight_decay": Exponential(0.1, 0.5)},
        {"lr": Cosine(0.1, 30), "momentum": 0.5},
    ]
    kinds = ["momentum", "nesterov", "sgd", "momentum"]
    dtypes = [np.float32, np.float64, np.float16, np.float64]
    params = [arrays(device, dtype=dtype, seed=i) for i, dtype in enumerate(dtypes)]
    grads = [arrays(device, dtype=dtype, seed=9 + i) for i, dtype in enumerate(dtypes)]
    trainers = [oracle.Trainer(plain(device, p)) for p in params]
    opt = fastopt.SGD([{"params": p, **o} for p, o in zip(params, options, strict=True)])
    opt.bind(grads)
    graph = warmed_up(device, opt)
    for _ in range(10):
        graph.launch()
    for t in range(12):
        for trainer, kind, g, o in zip(trainers, kinds, grads, options, strict=True):
            follow(device, trainer, kind, g, numbers(o, t))
    for group, o in zip(opt.param_groups, options, strict=True):
        assert group["step"] == 12
        assert {k: group[k] for k in o} == numbers(o, 11)
    for p, trainer in zip(params, trainers, strict=True):
        for array, want in zip(p, trainer.params, strict=True):
            assert_close(device.get(array), want, BFLOAT16 if array.dtype == np.float16 else TRAJECTORY)


@pytest.mark.parametrize(("name", "optimizer"), [("adam", fastopt.Adam), ("nadam", fastopt.NAdam)])
def test_rows_computed_side_by_side(device, name, optimizer):
    """Groups with schedules of their own, in each parameters with counts of their own; mixed dtypes, one count."""
    options = [{"lr": Cosine(0.1, 30)}, {"lr": Linear(0.0, 0.1, 8), "weight_decay": 0.1}, {"lr": 0.05}]
    shapes = [(0,), (3,), (600,), (7,)]
    dtypes = [np.float64, np.float32, np.float32]
    params = [arrays(device, shapes, dtype, seed=i) for i, dtype in enumerate(dtypes)]
    grads = [arrays(device, shapes, dtype, seed=9 + i) for i, dtype in enumerate(dtypes)]
    trainers = [oracle.Trainer(plain(device, p)) for p in params]
    opt = optimizer([{"params": p, **o} for p, o in zip(params, options, strict=True)])
    stream = device.stream()
    for t in range(12):
        if t == 4:
            with device.capture(stream) as graph:
                opt.step(grads)
        late = [[g if t >= i else None for i, g in enumerate(each)] for each in grads]
        if t < 4 or t == 9:
            with stream:
                opt.step(late)
        else:
            graph.launch()
        for trainer, given, o in zip(trainers, late, options, strict=True):
            follow(device, trainer, name, given, numbers(o, t))
    for p, trainer in zip(params, trainers, strict=True):
        for array, want in zip(p, trainer.params, strict=True):
            assert_close(device.get(array), want, TRAJECTORY)
    assert [opt.state[i]["step"] for i in range(12)] == 3 * [12, 11, 10, 9]


def test_two_graphs_have_gradients_of_their_own(device):
    """And steps beside them have others again; on another stream, too."""
    schedule = Cosine(0.1, 40)
    opt, params, grads, stream, trainer = warm(device, lr=schedule)
    sets = [grads, arrays(device, seed=11), arrays(device, seed=12)]
    graphs = []
    for each in sets[:2]:
        opt.bind(each)
        with device.capture(stream) as graph:
            opt.step()
        graphs.append(graph)
    other = device.stream()
    for t, which in enumerate([0, 1, 2, 1, 0, 2, 0, 0, 1], 2):
        if which == 2:
            with stream:
                opt.step(sets[2])
        elif t % 3:
            graphs[which].launch()
        else:
            stream.synchronize()
            graphs[which].launch(other)
            other.synchronize()
        follow(device, trainer, "momentum", sets[which], {"lr": schedule(t), "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_a_graph_captured_between_replays_of_another(device):
    """The first one has not been replayed at all, or has; both count on."""
    for early in (0, 2):
        schedule = Cosine(0.1, 30)
        opt, params, grads, stream, trainer = warm(device, lr=schedule, momentum=0.8)
        graphs, t = [], 2
        for launches in (early, 1, 2):
            with device.capture(stream) as graph:
                opt.step()
            graphs.append(graph)
            for one in graphs:
                for _ in range(launches):
                    one.launch()
                    follow(device, trainer, "momentum", grads, {"lr": schedule(t), "momentum": 0.8})
                    t += 1
        assert_trained(device, opt, params, trainer)
        assert opt.param_groups[0]["lr"] == schedule(t - 1)


def test_gradients_written_between_replays(device):
    """Are what the next one reads."""
    opt, params, grads, stream, trainer = warm(device)
    with device.capture(stream) as graph:
        opt.step()
    for t in range(4):
        new = arrays(device, seed=20 + t)
        with stream:
            for g, values in zip(grads, new, strict=True):
                g[...] = values
            graph.launch()
        follow(device, trainer, "momentum", new, {"lr": 0.1, "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_two_optimizers_in_one_graph(device):
    """Each counts its own steps."""
    first, params, grads, stream, trainer = warm(device, lr=Cosine(0.1, 9))
    other = device.array(np.ones(50, np.float32))
    second = fastopt.Adam([other], lr=0.1)
    g = device.array(np.full(50, 0.5, np.float32))
    second.bind([g])
    beside = oracle.Trainer([device.get(other)])
    with stream:
        for _ in range(3):
            second.step()
    with device.capture(stream) as graph:
        first.step()
        second.step()
        first.step()
    for _ in range(2):
        graph.launch()
    for t in range(2, 6):
        follow(device, trainer, "momentum", grads, {"lr": Cosine(0.1, 9)(t), "momentum": 0.9})
    for _ in range(5):
        beside.step("adam", [device.get(g)], {"lr": 0.1})
    assert_trained(device, first, params, trainer)
    assert_trained(device, second, [other], beside)


CHANGES = {
    "rate": {"lr": 0.03},
    "schedule": {"lr": Linear(0.2, 0.0, 30)},
    "end of a schedule": {"momentum": 0.7},
    "weight decay and direction": {"weight_decay": 0.1, "maximize": True},
    "function": {"lr": lambda step: 0.01 * step},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("replayed", [0, 3])
def test_options_assigned_after_a_capture(device, change, replayed):
    """Count from the next step of the host's on, also in all replays after it; until then the old ones do."""
    options = {"lr": Cosine(0.1, 40), "momentum": Linear(0.9, 0.5, 30)}
    opt, params, grads, stream, trainer = warm(device, **options)
    with device.capture(stream) as graph:
        opt.step()
    t = 2

    def replay(times, options):
        nonlocal t
        for _ in range(times):
            graph.launch()
            follow(device, trainer, "momentum", grads, numbers(options, t))
            t += 1

    replay(replayed, options)
    opt.param_groups[0].update(change)
    now = {**options, **change}
    replay(2, options)
    with stream:
        opt.step()
    follow(device, trainer, "momentum", grads, numbers(now, t))
    assert {k: opt.param_groups[0][k] for k in now} == numbers(now, t)
    at, t = t, t + 1
    # Only the host can call a function, so the number at the capture stays.
    replay(3, {k: v if hasattr(v, "record") or not callable(v) else v(at) for k, v in now.items()})
    assert_trained(device, opt, params, trainer)
    assert opt.param_groups[0]["step"] == t


def test_a_count_assigned_after_a_capture(device):
    """Schedules go by it from the next step of the host's on."""
    schedule = Linear(0.1, 0.0, 100)
    opt, params, grads, stream, trainer = warm(device, lr=schedule)
    with device.capture(stream) as graph:
        opt.step()
    graph.launch()
    opt.param_groups[0]["step"] = 50
    with stream:
        opt.step()
    graph.launch()
    for t in (2, 50, 51):
        follow(device, trainer, "momentum", grads, {"lr": schedule(t), "momentum": 0.9})
    assert opt.param_groups[0]["step"] == 52
    assert opt.param_groups[0]["lr"] == schedule(51)
    assert_trained(device, opt, params, trainer)


def test_captures_without_warming_up(device):
    """Of a first step, of one after an assignment, and of one with gradients for other parameters."""
    params, grads = arrays(device), arrays(device, seed=1)
    stream = device.stream()
    fresh = fastopt.SGD(params, lr=0.1, momentum=0.9)
    refused_capture(device, fresh, stream, grads, params, "warm up")
    with stream:
        fresh.step(grads)
        fresh.step(grads)
    with device.capture(stream) as graph:  # now it is warmed up
        fresh.step(grads)
    graph.launch()
    assert fresh.state[0]["step"] == 3
    opt, params, grads, stream, trainer = warm(device)
    watched = [*params, *state_arrays(opt)]
    refused_capture(device, opt, stream, [grads[0], None, grads[2]], watched, "warm up")
    refused_capture(device, opt, stream, [None] * 3, watched, "warm up")
    opt.param_groups[0]["lr"] = 0.2
    refused_capture(device, opt, stream, grads, watched, "warm up")
    with stream:
        opt.step()
    with device.capture(stream) as graph:
        opt.step()
    graph.launch()
    for _ in range(2):
        follow(device, trainer, "momentum", grads, {"lr": 0.2, "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_empty_parameters_are_captured_with_others(device):
    """Also where they are the only ones of their dtype, so that their kernel is never launched."""
    params = [device.array(np.ones(3, np.float32)), device.array(np.ones((0, 3)))]
    grads = [device.array(np.ones(3, np.float32)), device.array(np.ones((0, 3)))]
    opt = fastopt.SGD(params, lr=0.25)
    opt.bind(grads)
    graph = warmed_up(device, opt)
    graph.launch()
    assert (device.get(params[0]) == 0.25).all()
    assert [opt.state[i]["step"] for i in range(2)] == [3, 3]


@pytest.mark.parametrize("schedule", [lambda step: 0.1, Plateau(0.1)], ids=["function", "plateau"])
def test_what_only_python_can_call_is_not_captured(device, schedule):
    """It would never be called again."""
    opt, params, grads, stream, _ = warm(device, lr=schedule)
    refused_capture(device, opt, stream, grads, [*params, *state_arrays(opt)], "only Python can call")


def test_strided_gradients_are_not_captured(device):
    """The first time, and after steps with such."""
    opt, params, grads, stream, trainer = warm(device)
    turned = [device.array(np.asfortranarray(device.get(grads[0]))), *grads[1:]]
    watched = [*params, *state_arrays(opt)]
    refused_capture(device, opt, stream, turned, watched, "strides")
    with stream:
        opt.step(turned)
        opt.step(turned)
    refused_capture(device, opt, stream, turned, watched, "strides")
    for _ in range(2):
        follow(device, trainer, "momentum", grads, {"lr": 0.1, "momentum": 0.9})
    assert_trained(device, opt, params, trainer)


def test_parameters_on_the_host_are_not_captured(device):
    """A graph would not update them."""
    params, grads = arrays(device), arrays(device, seed=1)
    here, there = np.ones(3, np.float32), np.ones(3, np.float32)
    opt = fastopt.SGD([*params, here], lr=0.1, momentum=0.9)
    stream = device.stream()
    with stream:
        opt.step([*grads, there])
        opt.step([*grads, there])
    refused_capture(device, opt, stream, [*grads, there], [*params, here], "on the CPU")


def test_a_capture_of_one_device_of_two_is_refused(stand_in):
    """The other device's stream is not captured: its work would run at once, and never again."""
    cupy = stand_in.cupy
    p, g = [stand_in.array(np.ones(10, np.float32))], [stand_in.array(np.ones(10, np.float32))]
    with cupy.cuda.Device(1):
        p.append(stand_in.array(np.ones(10, np.float32)))
        g.append(stand_in.array(np.ones(10, np.float32)))
    opt = fastopt.SGD(p, lr=0.25)
    stream = stand_in.stream()
    with stream:
        opt.step(g)
        opt.step(g)
    refused_capture(stand_in, opt, stream, g, p, "device|GPU")


def test_counts_are_not_asked_for_inside_a_capture(device):
    """That would wait for work that is only captured."""
    opt, _, _, stream, _ = warm(device, lr=Cosine(0.1, 9))
    with device.capture(stream) as graph:
        opt.step()
        for ask in (lambda: opt.param_groups[0]["lr"], lambda: opt.state, opt.state_dict):
            with pytest.raises(RuntimeError, match="captured"):
                ask()
    graph.launch()
    assert opt.state[0]["step"] == 3


@pytest.mark.parametrize("active", [False, True])
def test_what_a_graph_uses_stays(device, active):
    """After a capture nothing is loaded or added, and gradients are for the same parameters: replays stay right."""
    schedule = Cosine(0.1, 30)
    params, grads = arrays(device), arrays(device, seed=1)
    trainer = oracle.Trainer(plain(device, params))
    opt = fastopt.SGD([{"params": params}], lr=schedule, momentum=0.9)
    opt.bind([grads])
    stream = device.stream()
    with stream:
        opt.step()
        opt.step()
    device.synchronize()
    saved = opt.state_dict()
    device.synchronize()
    saved["param_groups"][0].update(lr=0.7, step=40, schedules={})
    with device.capture(stream) as graph:
        opt.step()
    if active:
        graph.launch()
        with stream:
            opt.step()
    before, buffers = bits(device, [*params, *state_arrays(opt)]), state_arrays(opt)
    turned = device.array(np.asfortranarray(device.get(grads[0])))
    acts = [
        lambda: opt.load_state_dict(saved),
        lambda: opt.add_param_group({"params": [device.array(np.ones(3, np.float32))]}),
        lambda: opt.step([[grads[0], None, grads[2]]]),
        lambda: opt.step([[turned, *grads[1:]]]),
    ]
    for act in acts:
        with pytest.raises(RuntimeError, match="captured"), stream:
            act()
    opt.param_groups[0]["momentum"] = 0.0
    with pytest.raises(RuntimeError, match="another rule"), stream:
        opt.step()
    opt.param_groups[0]["momentum"] = 0.9
    assert len(opt.param_groups) == 1
    assert opt.param_groups[0]["step"] == 2 + 2 * active
    assert opt.param_groups[0]["lr"] == schedule(1 + 2 * active)
    assert [a is b for a, b in zip(buffers, state_arrays(opt), strict=True)] == [True] * 3
    assert bits(device, [*params, *state_arrays(opt)]) == before
    for _ in range(3):
        graph.launch()
    with stream:
        opt.step()
    for t in range(6 + 2 * active):
        follow(device, trainer, "momentum", grads, {"lr": schedule(t), "momentum": 0.9})
    assert_trained(device, opt, params, trainer)
