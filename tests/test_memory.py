"""Lifetimes: an optimizer keeps what it uses alive and nothing else, and no address outlives its array."""

import contextlib
import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest
from rule_cases import BY_STATES, OPTIMIZERS

import fastopt
from fastopt.rules import RULES

KINDS = ("sgd", "momentum", "nesterov", "adagrad")
STATE = {"momentum": "momentum_buffer", "nesterov": "momentum_buffer", "adagrad": "sum"}
DEADLOCK = 60


def make(kind, params, **options):
    """Make an optimizer of a kind."""
    optimizer, defaults = OPTIMIZERS[kind]
    return optimizer(params, **{**defaults, **options})


def plain_step(kind, p, g, state):
    """One step of plain NumPy in the arrays' own precision, not in place: the new parameter and state."""
    lr, momentum = p.dtype.type(0.1), p.dtype.type(0.9)
    if kind == "sgd":
        return p - lr * g, state
    if kind == "adagrad":
        state = state + g * g
        return p - lr * g / (np.sqrt(state) + p.dtype.type(1e-10)), state
    state = momentum * state + g
    return p - lr * (state if kind == "momentum" else g + momentum * state), state


def collect():
    """Collect all garbage, cycles in cycles too."""
    for _ in range(3):
        gc.collect()


def churn(like, count=50):
    """Allocate and drop arrays of this size, so that memory freed by mistake is written by others."""
    for value in range(count):
        np.full_like(like, 1000 + value)


# What the optimizer holds


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_arrays_live_on(kind):
    """Parameters, states and bound gradients that only the optimizer still holds."""
    optimizer = make(kind, {"a": np.ones(5000), "b": np.ones((50, 40), order="F")})
    optimizer.bind({"a": np.ones(5000), "b": np.ones((50, 40))})
    collect()
    p, state = np.ones(()), np.zeros(())
    for _ in range(5):
        churn(np.ones(5000))
        optimizer.step()
        p, state = plain_step(kind, p, np.ones(()), state)
    params = optimizer.param_groups[0]["params"]
    for name in ("a", "b"):
        np.testing.assert_array_equal(params[name], p)
        if kind in STATE:
            np.testing.assert_array_equal(optimizer.state[name][STATE[kind]], state)


def test_containers_may_be_emptied():
    """The list and dict that parameters and gradients came in are the user's again."""
    params, grads = {"a": np.ones(100), "b": np.ones(200)}, {"a": np.ones(100), "b": np.ones(200)}
    optimizer = fastopt.SGD(params, lr=0.5)
    optimizer.bind(grads)
    a = params.pop("a")
    params["b"] = None
    grads.clear()
    collect()
    churn(np.ones(200))
    optimizer.step()
    np.testing.assert_array_equal(a, 0.5)
    np.testing.assert_array_equal(optimizer.param_groups[0]["params"]["b"], 0.5)


def owner(array):
    """The array at the end of the chain, which owns the memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def assert_cannot_be_resized(array):
    """Neither the array nor the owner of its memory, by any method."""
    before = array.copy()
    for target in (array, owner(array)):
        for size in (0, target.size + 1, target.size * 1000):
            with pytest.raises(ValueError, match="resize"):
                target.resize(size, refcheck=False)
    np.testing.assert_array_equal(array, before)


FORMS = {
    "own": lambda: np.ones(600),
    "view": lambda: np.ones(1200)[300:900],
    "view of a view": lambda: np.ones(2000)[100:][50:1250][300:900],
    "Fortran": lambda: np.ones((20, 30), order="F"),
    "transposed": lambda: np.ones((20, 30)).T,
    "reversed": lambda: np.ones(600)[::-1],
    "reshaped": lambda: np.ones(600).reshape(20, 30),
    "matrix": lambda: np.ones((20, 30)).view(np.matrix),
    "view of a matrix": lambda: np.asarray(np.ones((20, 30)).view(np.matrix)),
    "record's field alone": lambda: np.ones(600).view([("x", float)])["x"],
    "0-d": lambda: np.ones(()),
    "one": lambda: np.ones(1),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@forms
@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
def test_parameters_cannot_be_resized(kind, form):
    """From construction on, before the first step and after it, the array itself or its base."""
    p = form()
    optimizer = make(kind, p)
    assert_cannot_be_resized(p)
    optimizer.step(np.ones(p.shape))
    optimizer.load_state_dict(optimizer.state_dict())
    assert_cannot_be_resized(p)
    optimizer.step(np.ones(p.shape))


@pytest.mark.parametrize("kind", STATE)
@pytest.mark.parametrize("form", [FORMS["own"], FORMS["Fortran"], FORMS["reversed"], FORMS["0-d"]])
def test_states_cannot_be_resized(kind, form):
    """After the first step, later ones, and loading, which makes new ones."""
    p = form()
    optimizer = make(kind, p)
    for _ in range(2):
        optimizer.step(np.ones(p.shape))
        assert_cannot_be_resized(optimizer.state[0][STATE[kind]])
        optimizer.load_state_dict(optimizer.state_dict())
        assert_cannot_be_resized(optimizer.state[0][STATE[kind]])


@pytest.mark.parametrize("name", BY_STATES)
def test_all_states_of_a_rule_cannot_be_resized(name):
    """However many it has, and those that begin later."""
    p = np.ones(8)
    make, options = OPTIMIZERS[name]
    optimizer = make(p, **options)
    optimizer.step(np.ones(8))
    if name.endswith("_amsgrad"):
        optimizer.param_groups[0]["amsgrad"] = False
        optimizer.step(np.ones(8))
        optimizer.param_groups[0]["amsgrad"] = True
        optimizer.step(np.ones(8))
    for state in RULES[name].states:
        assert_cannot_be_resized(optimizer.state[0][state])


@forms
def test_bound_gradients_cannot_be_resized(form):
    """While they are bound; a failed bind and steps with others leave them so."""
    p, gradient = np.ones(form().shape), form()
    optimizer = fastopt.SGD(p, lr=0.5)
    optimizer.bind(gradient)
    assert_cannot_be_resized(gradient)
    optimizer.step()
    optimizer.step(np.zeros(p.shape))
    with pytest.raises(TypeError):
        optimizer.bind(3)
    assert_cannot_be_resized(gradient)
    optimizer.step()
    np.testing.assert_array_equal(p, 0)


def test_what_a_running_step_uses_stays(monkeypatch):
    """A gradient that is dropped while another thread is inside the kernel lives until the step ends."""
    p, gradient = np.ones(600), np.ones(600)
    optimizer = fastopt.SGD(p, lr=0.5)
    for _ in range(2):  # after which the extension takes the steps
        optimizer.step(np.zeros(600))
    inside, leave = threading.Event(), threading.Event()
    repetition = optimizer._stepper.clock.repetition
    take = repetition.take

    def waits(*arguments):
        inside.set()
        assert leave.wait(DEADLOCK)
        return take(*arguments)

    monkeypatch.setattr(repetition, "take", waits)
    thread = threading.Thread(target=optimizer.step, args=[gradient])
    thread.start()
    assert inside.wait(DEADLOCK)
    try:
        assert_cannot_be_resized(p)
        del gradient
        collect()
        churn(p)
    finally:
        leave.set()
        thread.join(DEADLOCK)
    np.testing.assert_array_equal(p, 0.5)


# What it does not hold


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [False, True])
def test_optimizers_can_be_collected(kind, schedule):
    """An optimizer that is dropped goes, and its arrays are free again: parameters, states, gradients."""
    p, gradient = np.ones(600), np.ones(600)
    optimizer = make(kind, {"p": p}, **({"lr": lambda step: 0.1} if schedule else {}))
    optimizer.bind({"p": gradient})
    optimizer.step()
    optimizer.step({"p": np.ones(600)})
    states = [array for name, array in optimizer.state["p"].items() if name != "step"]
    arrays = [p, gradient, *states]
    optimizer_gone, plan_gone = weakref.ref(optimizer), weakref.ref(optimizer._stepper.plan)
    del optimizer, states
    collect()
    assert optimizer_gone() is None
    assert plan_gone() is None
    for array in arrays:
        array.resize(700, refcheck=False)


def test_optimizers_need_no_garbage_collector():
    """There is no cycle: a large state goes at once."""
    optimizer = fastopt.SGD(np.ones(10), momentum=0.9)
    optimizer.step(np.ones(10))
    gone = weakref.ref(optimizer.state[0]["momentum_buffer"])
    gc.disable()
    try:
        del optimizer
        assert gone() is None
    finally:
        gc.enable()


def test_gradients_bound_before_are_free_again():
    """Binding others lets go of them."""
    optimizer = fastopt.SGD(np.ones(600))
    first, second = np.ones(600), np.ones(600)
    optimizer.bind(first)
    optimizer.step()
    optimizer.bind(second)
    optimizer.step()
    first.resize(700, refcheck=False)
    assert_cannot_be_resized(second)


def test_states_before_a_load_are_free_again():
    """Loading makes new arrays and lets go of the old."""
    optimizer = fastopt.SGD(np.ones(600), momentum=0.9)
    optimizer.step(np.ones(600))
    gone = weakref.ref(optimizer.state[0]["momentum_buffer"])
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(np.ones(600))
    collect()
    assert gone() is None


@pytest.mark.parametrize("layout", ["C", "F"])
def test_gradients_of_a_step_are_not_kept(layout):
    """Not until the next step, not for good, and not where the step fails."""
    rate = 0.1
    optimizer = fastopt.SGD(np.ones((30, 20)), lr=lambda step: rate, momentum=0.9)
    for rate in (0.1, 0.1, -1.0):
        gradient = np.ones((30, 20), order=layout)
        gone = weakref.ref(gradient)
        if rate > 0:
            optimizer.step(gradient)
        else:
            with pytest.raises(ValueError, match="lr"):
                optimizer.step(gradient)
        del gradient
        collect()
        assert gone() is None


@pytest.mark.parametrize("size", [0, 5, 1_000_000])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_single_calls_keep_nothing(size, layout):
    """No reference, no hindrance to resizing, right after the call, the first and later ones, failed ones too."""
    for _ in range(3):
        p, state = np.ones((2, size)), np.zeros((2, size))
        gradient = np.ones((2, size), order=layout)
        counts = [sys.getrefcount(array) for array in (p, gradient, state)]
        fastopt.fused.sgd(p, gradient, lr=0.1)
        fastopt.fused.momentum(p, gradient, state, lr=0.1, momentum=0.9)
        fastopt.fused.adagrad(p, gradient, state, lr=0.1)
        for bad in (gradient.astype(np.float32), p, gradient[0]):
            if size:
                with pytest.raises((TypeError, ValueError)):
                    fastopt.fused.momentum(p, bad, state, lr=0.1, momentum=0.9)
        del bad
        assert [sys.getrefcount(array) for array in (p, gradient, state)] == counts
        for array in (p, gradient, state):
            assert weakref.getweakrefcount(array) == 0
            array.resize((3, size), refcheck=False)


def test_single_calls_after_their_arrays_have_gone():
    """Tables that are kept for the next call of a size have no old address in use."""
    for round_ in range(50):
        p, gradient, velocity = np.ones(600), np.full(600, float(round_)), np.zeros(600)
        if round_ % 3 == 0:
            gradient = np.full((600, 2), float(round_))[:, 0]
        if round_ % 2:
            fastopt.fused.momentum(p, gradient, velocity, lr=1.0, momentum=0.5)
            np.testing.assert_array_equal(velocity, round_)
        else:
            fastopt.fused.sgd(p, gradient, lr=1.0)
        np.testing.assert_array_equal(p, 1 - round_)
        del p, gradient, velocity


# Addresses that change


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_new_addresses_each_step(kind):
    """Freed and allocated anew, in C or Fortran order or with gaps, missing now and then: as plain NumPy."""
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (700,), ()]
    params = [rng.standard_normal(shape) for shape in shapes]
    params[0] = np.asfortranarray(params[0])
    expected, states = [p.copy() for p in params], [np.zeros(p.shape) for p in params]
    optimizer = make(kind, params)
    kept = []
    for step in range(200):
        grads = [rng.standard_normal(shape) for shape in shapes]
        if step % 3 == 0:
            grads[0] = np.asfortranarray(grads[0])
        if step % 5 == 0:
            grads[1] = np.repeat(grads[1], 2)[::2]
        grads[2] = np.float64(grads[2]) if step % 2 else np.asarray(grads[2])
        if step % 7 == 3:
            grads[step % 3] = None
        for i, gradient in enumerate(grads):
            if gradient is not None:
                expected[i], states[i] = plain_step(kind, expected[i], gradient, states[i])
        optimizer.step(grads)
        kept.append(grads[step % 3])  # addresses are reused in turn
        del grads, gradient
    for got, want in zip(params, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", STATE)
def test_a_state_as_gradient_where_a_gradient_was_before(kind):
    """An address that was a gradient's once is refused when it is a state's or a parameter's now."""
    p = np.ones(600)
    optimizer = make(kind, p)
    optimizer.step(np.ones(600))
    for _ in range(3):
        buffer = optimizer.state[0][STATE[kind]]
        fine = np.ones(600)
        optimizer.step(fine)
        optimizer.bind(fine)
        for bad in (buffer, buffer[:], p, p[:], buffer[::-1]):
            with pytest.raises(ValueError, match="overlaps"):
                optimizer.step(bad)
            with pytest.raises(ValueError, match="overlaps"):
                optimizer.bind(bad)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step(buffer)  # which is no longer in use: a gradient like any other
        with pytest.raises(ValueError, match="overlaps"):
            optimizer.step(optimizer.state[0][STATE[kind]])


def test_a_gradient_where_a_parameter_was_added_later():
    """An array that has been a gradient becomes a parameter: as a gradient it is refused from then on."""
    p, other = np.ones(600), np.ones(600)
    optimizer = fastopt.SGD([{"params": p}], lr=0.1)
    optimizer.step([other])
    optimizer.bind([other])
    optimizer.add_param_group({"params": other})
    with pytest.raises(ValueError, match="overlaps parameter 1"):
        optimizer.step([other, np.ones(600)])
    with pytest.raises(RuntimeError, match="bind"):
        optimizer.step()
    optimizer.step([np.ones(600), np.ones(600)])
    np.testing.assert_allclose(p, 0.8)
    np.testing.assert_allclose(other, 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_bound_gradients_after_loading(kind):
    """Loading replaces the states under a binding, which stays; the next bound step uses the new ones."""
    p, gradient = np.ones(600), np.ones(600)
    optimizer = make(kind, p)
    optimizer.bind(gradient)
    optimizer.step()
    saved, start = optimizer.state_dict(), p.copy()
    results = []
    for _ in range(2):
        p[:] = start
        optimizer.load_state_dict(saved)
        collect()
        churn(p)
        gradient[:] = 2
        optimizer.step()
        gradient[:] = 3
        optimizer.step()
        results.append(p.copy())
    np.testing.assert_array_equal(*results)
    expected, state = plain_step(kind, np.ones(()), np.ones(()), np.zeros(()))
    for value in (2.0, 3.0):
        expected, state = plain_step(kind, expected, np.array(value), state)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    assert saved["param_groups"][0]["step"] == 1


INSIDE = """
    import gc, numpy as np, fastopt

    def act_inside_a_step(act):
        # As a signal's handler would, in the thread that steps, after the tables are written and before they are used.
        p = np.ones(1000)
        opt = fastopt.SGD([{"params": [p]}], lr=1.0, momentum=0.5)
        opt.step([[np.ones(1000)]])
        launch = opt._stepper.plan.launches[0]
        run, saved, others = launch.run, opt.state_dict(), []

        def interrupted(*arguments):
            launch.run = run
            try:
                act(opt, saved)
            except RuntimeError as error:
                assert "step" in str(error), error
            gc.collect()
            others.extend(np.full(1000, 7.0) for _ in range(100))
            run(*arguments)

        launch.run = interrupted
        opt.param_groups[0]["momentum"] = lambda step: 0.5  # so that the step is no repetition
        opt.step([[np.full(1000, 2.0)]])
        assert launch.run is run
        opt.state_dict()
        opt.step([[np.zeros(1000)]] + [[np.zeros(10)]] * (len(opt.param_groups) - 1))
        assert others and all((other == 7).all() for other in others), "foreign memory was written"
        assert len(set(p)) == 1 and np.isfinite(p).all()
        assert opt.param_groups[0]["step"] == opt.state[0]["step"]

    act_inside_a_step(lambda opt, saved: opt.state_dict())
    act_inside_a_step(lambda opt, saved: opt.load_state_dict(saved))
    act_inside_a_step(lambda opt, saved: opt.step([[np.full(1000, 3.0)]]))
    act_inside_a_step(lambda opt, saved: opt.add_param_group({"params": [np.ones(10)]}))
    act_inside_a_step(lambda opt, saved: opt.bind([[np.ones(1000)]]))
    print("passed")
"""


def assert_passes(script, folder):
    """Assert that a script, in a process of its own, ends with "passed" and without a word of complaint."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLOCK, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "passed\n", "")


def test_acts_from_inside_a_step(tmp_path):
    """Whatever a signal's handler does to the optimizer that is stepping: it works or raises, and no memory is lost."""
    assert_passes(INSIDE, tmp_path)


# Gradient lists that change


LISTS = """
    import numpy as np, fastopt

    class Shrinking(list):
        # Another thread changes a list between two reads of it.
        def __iter__(self):
            self.pop()
            return super().__iter__()

    class Growing(list):
        def __iter__(self):
            self.append(self[0])
            return super().__iter__()

    class Emptied(list):
        def __len__(self):
            return 3

    for groups in (False, True):
        for kind in (Shrinking, Growing, Emptied):
            params = [np.ones(100) for _ in range(3)]
            opt = fastopt.SGD([{"params": params}] if groups else params, lr=0.5)
            opt.step([[np.ones(100)] * 3] if groups else [np.ones(100)] * 3)
            grads = kind([] if kind is Emptied else [np.ones(100) for _ in range(3)])
            for act in (opt.step, opt.bind):
                try:
                    act([grads] if groups else grads)
                except ValueError as error:
                    assert "gradients" in str(error), error
            assert all((p == params[0]).all() for p in params)
            opt.step([[np.zeros(100)] * 3] if groups else [np.zeros(100)] * 3)
    print("passed")
"""


def test_lists_that_change_while_they_are_read(tmp_path):
    """A list of gradients that is shorter at the second read than at the first is an error, not a crash."""
    assert_passes(LISTS, tmp_path)


def test_lists_that_other_threads_change():
    """Gradients are replaced, dropped and put back all the time; each step uses some of them to its end."""
    params = [np.zeros(2000) for _ in range(20)]
    optimizer = fastopt.SGD(params, lr=1.0)
    grads = [np.ones(2000) for _ in params]
    stop = threading.Event()

    def mutate():
        while not stop.is_set():
            for i in range(len(params)):
                with contextlib.suppress(IndexError):  # the other thread holds it at the moment
                    grads[i] = np.full(2000, 1.0)
            taken = grads.pop()
            grads.append(taken)
            grads.reverse()

    threads = [threading.Thread(target=mutate, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    steps = tries = 0
    end = time.monotonic() + DEADLOCK
    try:
        while (tries < 500 or steps == 0) and time.monotonic() < end:
            tries += 1
            with contextlib.suppress(ValueError):  # one gradient was missing just then
                optimizer.step(grads)
                steps += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLOCK)
    assert steps > 0
    for p in params:
        np.testing.assert_array_equal(p, -steps)


# Arrays of all kinds


@pytest.mark.parametrize("kind", KINDS)
def test_views_of_one_buffer(kind):
    """Parameters and gradients that are pieces of two flat buffers; what lies between is left alone."""
    rng = np.random.default_rng(0)
    flat, flat_gradient = rng.standard_normal(1000), rng.standard_normal(1000)
    before = flat.copy()
    pieces = [slice(0, 100), slice(100, 400), slice(401, 999)]
    shapes = [(100,), (30, 10), (598,)]
    optimizer = make(kind, [flat[piece].reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)])
    optimizer.bind([flat_gradient[piece].reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)])
    expected, state = before, np.zeros(1000)
    for _ in range(3):
        optimizer.step()
        expected, state = plain_step(kind, expected, flat_gradient, state)
    for left in (400, 999):
        expected[left] = before[left]
    np.testing.assert_allclose(flat, expected, rtol=1e-12)
    assert flat[400] == before[400]
    assert_cannot_be_resized(flat)


def test_memory_mapped_parameters(tmp_path):
    """They train in the file, stay alive when dropped, and cannot be read-only."""
    path = tmp_path / "weights"
    np.ones(5000, np.float32).tofile(path)
    optimizer = fastopt.SGD([np.memmap(path, np.float32, "r+")], lr=0.5)
    collect()
    gradients = np.memmap(tmp_path / "gradients", np.float32, "w+", shape=(5000,))
    gradients[:] = 1
    optimizer.bind([gradients])
    optimizer.step()
    optimizer.step([np.memmap(tmp_path / "gradients", np.float32, "r", shape=(5000,))])
    optimizer.param_groups[0]["params"][0].flush()
    np.testing.assert_array_equal(np.fromfile(path, np.float32), np.float32(0))
    with pytest.raises(ValueError, match="read-only"):
        fastopt.SGD([np.memmap(path, np.float32, "r")])


class Tagged(np.ndarray):
    """A subclass that does as it likes with ufuncs and views."""

    def __array_finalize__(self, source):
        """Have an attribute."""
        self.tag = getattr(source, "tag", "new")

    def __array_ufunc__(self, *arguments, **options):
        """Refuse arithmetic."""
        raise RuntimeError("no arithmetic here")


@pytest.mark.parametrize("subclass", [np.matrix, Tagged, np.recarray])
@pytest.mark.parametrize("kind", KINDS)
def test_subclasses_are_updated_as_arrays(kind, subclass):
    """Parameters, gradients and single calls' states may be of any subclass that is no masked array."""
    p, q = np.ones((20, 30)), np.ones((20, 30))
    g = np.full((20, 30), 0.5)
    optimizer = make(kind, [p.view(subclass)])
    twin = make(kind, [q])
    for _ in range(2):
        optimizer.step([g.view(subclass)])
        twin.step([g])
    optimizer.bind([g.view(subclass)])
    optimizer.step()
    twin.step([g])
    np.testing.assert_array_equal(p, q)
    for entry in optimizer.state.values():
        assert all(type(value) in (int, np.ndarray) for value in entry.values())
    with pytest.raises(ValueError, match="overlaps parameter 0"):
        optimizer.step([p.view(subclass)])
    velocity, plain_velocity = np.zeros((20, 30)), np.zeros((20, 30))
    fastopt.fused.momentum(p.view(subclass), g.view(subclass), velocity.view(subclass), lr=0.1, momentum=0.9)
    fastopt.fused.momentum(q, g, plain_velocity, lr=0.1, momentum=0.9)
    np.testing.assert_array_equal(p, q)
    np.testing.assert_array_equal(velocity, plain_velocity)


@pytest.mark.parametrize("buffer", [bytearray(4800), memoryview(bytearray(4800)), (4800).to_bytes(4800, "little")])
def test_memory_of_others(buffer):
    """Arrays over a bytearray are parameters, and keep it; over immutable bytes they are gradients only."""
    array = np.frombuffer(buffer, np.float64)
    if isinstance(buffer, bytes):
        with pytest.raises(ValueError, match="read-only"):
            fastopt.SGD(array)
        p = np.zeros(600)
        fastopt.fused.sgd(p, array, lr=1.0)
        np.testing.assert_array_equal(p, -array)
        return
    optimizer = fastopt.SGD(array, lr=1.0)
    del array
    collect()
    if isinstance(buffer, bytearray):
        with pytest.raises(BufferError):
            buffer.extend(b"more")
    optimizer.step(np.ones(600))
    np.testing.assert_array_equal(np.frombuffer(buffer, np.float64), -1)


@pytest.mark.parametrize("form", ["C", "F", "reversed", "turned"])
def test_states_of_single_calls_are_made_as_advised(form):
    """np.zeros_like(p) makes a state that fits, however p lies, as the docstring's zeros do."""
    p = {
        "C": np.ones((4, 5, 6)),
        "F": np.ones((4, 5, 6), order="F"),
        "reversed": np.ones((4, 5, 6))[::-1],
        "turned": np.ones((4, 5, 6)).transpose(1, 2, 0),
    }[form]
    velocity = np.zeros_like(p)
    gradient = np.arange(120.0).reshape(p.shape)
    fastopt.fused.momentum(p, gradient, velocity, lr=1.0, momentum=0.5)
    np.testing.assert_array_equal(p, 1 - gradient)
    np.testing.assert_array_equal(velocity, gradient)
