"""A captured graph owns what it uses: replays work without the optimizer, and memory is freed with the graph."""

import gc
import weakref
from pathlib import Path

import cuda_stand_in
import pytest
from fastopt.kernels import driver, graphs
from gpu_steps import arrays, bits, follow, plain, state_arrays, warm
from processes import run_script
from rule_cases import OPTIMIZERS, numbers
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt.schedules import Cosine

WORLD = cuda_stand_in.WORLD
RULES = ["momentum", "adagrad", "rmsprop_centered_momentum", "adamw_amsgrad"]


def recorded(device, opt, stream):
    """A graph of a step."""
    with device.capture(stream) as graph:
        opt.step()
    return graph


def others(device):
    """Allocate what others would in memory that seems free: an optimizer, and arrays."""
    params, grads = arrays(device, seed=3), arrays(device, seed=4)
    opt = fastopt.Adam(params, lr=0.1)
    opt.bind(grads)
    opt.step()
    device.synchronize()
    return opt, params, grads


@pytest.mark.parametrize("name", RULES)
def test_a_graph_goes_on_without_its_optimizer(device, name):
    """States included; and what others have allocated meanwhile stays as it is."""
    optimizer, options = OPTIMIZERS[name]
    options = {**options, "lr": Cosine(0.1, 20)}
    opt, params, grads, stream, trainer = warm(device, optimizer, name, **options)
    graph, states = recorded(device, opt, stream), state_arrays(opt)
    del opt
    gc.collect()
    beside = others(device)
    before = bits(device, [*beside[1], *state_arrays(beside[0])])
    for t in range(2, 6):
        graph.launch()
        follow(device, trainer, name, grads, numbers(options, t))
    for p, want in zip(plain(device, params), trainer.params, strict=True):
        assert_close(p, want, TRAJECTORY)
    wanted = [state for of in trainer.states for state in of or []]
    for state, want in zip(plain(device, states), wanted, strict=True):
        assert_close(state, want, TRAJECTORY)
    assert bits(device, [*beside[1], *state_arrays(beside[0])]) == before


def test_parameters_and_states_stay_for_the_graph(device):
    """Nothing else holds them, and still their memory is not reused."""
    opt, params, grads, stream, _ = warm(device, fastopt.Adam, "adam", lr=0.1)
    graph = recorded(device, opt, stream)
    del opt, params
    gc.collect()
    beside = others(device)
    before = bits(device, [*beside[1], *state_arrays(beside[0])])
    for _ in range(3):
        graph.launch()
    assert bits(device, [*beside[1], *state_arrays(beside[0])]) == before
    assert len(grads) == 3


def test_memory_comes_back_with_the_last_graph(stand_in):
    """At the next call outside of a capture, without the garbage collector."""
    others(stand_in)
    before = WORLD.allocated
    gc.disable()
    try:
        opt, params, grads, stream, _ = warm(stand_in)
        held = [weakref.ref(p) for p in params]
        recordings = [recorded(stand_in, opt, stream) for _ in range(2)]
        del opt, params, _
        for left in (1, 0):
            others(stand_in)
            assert WORLD.allocated > before
            assert [reference() is None for reference in held] == [False] * 3
            recordings[left].launch()
            del recordings[left]
        others(stand_in)
        others(stand_in)
        assert WORLD.allocated == before
        assert [reference() is None for reference in held] == [True] * 3
    finally:
        gc.enable()
    assert len(grads) == 3


def test_nothing_is_given_back_inside_of_a_capture(stand_in):
    """Freeing would invalidate the capture; it happens at the next step."""
    opt, params, _, stream, _ = warm(stand_in)
    reference, graph = weakref.ref(params[0]), recorded(stand_in, opt, stream)
    other, *_ = warm(stand_in)
    del opt, params
    gc.collect()
    del graph
    with stand_in.capture(stream):
        other.step()
        assert reference() is not None
    other.step()
    assert reference() is None


def test_a_capture_that_is_broken_off_keeps_nothing(stand_in):
    """Its graph is gone at once."""
    others(stand_in)
    before = WORLD.allocated
    opt, params, grads, stream, _ = warm(stand_in)

    def broken_off(opt):
        with stand_in.capture(stream):
            opt.step()
            opt.step([None])

    with pytest.raises(ValueError, match="1 gradients"):
        broken_off(opt)
    del opt, params, _
    gc.collect()
    others(stand_in)
    others(stand_in)
    assert WORLD.allocated == before
    assert len(grads) == 3


def test_more_graphs_than_are_counted_at_once(stand_in):
    """All of them are released."""
    opt, _, _, stream, _ = warm(stand_in)
    held = len(graphs._held)
    recordings = [recorded(stand_in, opt, stream) for _ in range(3 * graphs.ROOM + 1)]
    assert len(graphs._held) == held + len(recordings)
    recordings.clear()
    opt.step()
    assert len(graphs._held) == held


@pytest.mark.parametrize("missing", ["extension", "driver", "symbols"])
def test_without_user_objects_all_is_held_for_good(stand_in, monkeypatch, missing):
    """A driver that nobody has loaded, or one that is too old."""
    others(stand_in)
    if missing == "extension":
        monkeypatch.setattr(graphs, "lib", None)
    else:
        monkeypatch.setattr(driver, "LIBRARY", {"driver": "libnone.so.1", "symbols": "libm.so.6"}[missing])
    opt, params, grads, stream, _ = warm(stand_in)
    graph = recorded(stand_in, opt, stream)
    reference = weakref.ref(params[0])
    del opt, params, _
    gc.collect()
    others(stand_in)
    graph.launch()
    stand_in.synchronize()
    del graph
    others(stand_in)
    assert reference() is not None
    assert len(grads) == 3


PROGRAM = """
import cuda_stand_in
from fastopt.kernels import driver, graphs

stand_in, driver.LIBRARY = cuda_stand_in.driver()
stand_in.stand_in_begin(8)
graphs.own(8, [object()])
stand_in.stand_in_destroy_at_exit(stand_in.stand_in_end(8))
"""


def test_a_graph_that_ends_after_the_interpreter(tmp_path):
    """Its destructor does no harm."""
    ended = run_script(PROGRAM, tmp_path, PYTHONPATH=str(Path(__file__).parent))
    assert ended == (0, "destroyed\n", "")
