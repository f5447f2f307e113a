"""Steps, assignments, captures and replays on a GPU in any order, against the oracle."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fastopt.bench import oracle
from gpu_steps import DTYPES, arrays, follow, normal, plain
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rule_cases import OPTIMIZERS, numbers
from tolerances import BFLOAT16, STATE_OF_HALF, TRAJECTORY, assert_close

import fastopt
from fastopt.schedules import Constant, Cosine, Linear

KIND_OPTIONS = {
    "sgd": {"weight_decay": 0.01},
    "momentum": {"dampening": 0.3},
    "nesterov": {"maximize": True},
    "adagrad": {"lr_decay": 0.1},
    "adam_amsgrad": {"betas": (0.8, 0.99), "maximize": True},
}
KINDS = st.one_of(
    st.tuples(st.just(fastopt.SGD), st.lists(st.sampled_from(["sgd", "momentum", "nesterov"]), min_size=1, max_size=3)),
    st.tuples(st.just(fastopt.Adagrad), st.lists(st.just("adagrad"), min_size=1, max_size=3)),
    st.tuples(st.just(fastopt.Adam), st.lists(st.sampled_from(["adam", "adam_amsgrad"]), min_size=1, max_size=3)),
    st.tuples(st.just(fastopt.AdamW), st.lists(st.sampled_from(["adamw", "adamw_amsgrad"]), min_size=1, max_size=3)),
)
VALUES = st.sampled_from(
    [("lr", 0.05), ("lr", Cosine(0.1, 12)), ("lr", Linear(0.0, 0.1, 9)), ("lr", Constant(0.02)), ("weight_decay", 0.1),
     ("weight_decay", Linear(0.1, 0.0, 10)), ("maximize", False)]
)  # fmt: skip
ACTIONS = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 511), st.sampled_from(["dense", "Fortran"])),
    st.tuples(st.just("again"), st.integers(1, 3)),
    st.tuples(st.just("assign"), st.integers(0, 2), VALUES),
    st.tuples(st.just("capture")),
    st.tuples(st.just("replay"), st.integers(0, 3), st.integers(1, 3)),
    st.tuples(st.just("check")),
    st.tuples(st.just("load")),
)
SIZES = st.sampled_from([(), (0,), (1,), (2, 3), (17,), (600,)])


@dataclass
class Machine:
    """An optimizer on a device, and the oracle's result for it."""

    device: Any
    optimizer: Any
    kinds: list[str]
    shapes: list[list[tuple[int, ...]]]
    dtypes: list[Any]
    seed: int = 0
    graphs: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self.groups = [
            arrays(self.device, shapes, dtype, seed=i)
            for i, (shapes, dtype) in enumerate(zip(self.shapes, self.dtypes, strict=True))
        ]
        self.assigned = [{**OPTIMIZERS[kind][1], **KIND_OPTIONS.get(kind, {})} for kind in self.kinds]
        given_ = [{"params": p, **o} for p, o in zip(self.groups, self.assigned, strict=True)]
        self.opt = self.optimizer(given_)
        self.in_force = [dict(o) for o in self.assigned]
        self.trainers = [oracle.Trainer(plain(self.device, p)) for p in self.groups]
        self.stream, self.t = self.device.stream(), 0
        self.captured = False
        self.changed = False  # whether options were assigned since the last step of the host's
        self.mask, self.last = None, None
        self.step(2**9 - 1, "dense")

    def follow(self, grads):
        """Let the oracle take a step."""
        for trainer, kind, g, o in zip(self.trainers, self.kinds, grads, self.in_force, strict=True):
            follow(self.device, trainer, kind, g, numbers(o, self.t))
        self.t += 1

    def step(self, mask, order):
        """Take a step with new gradients, some of which are missing, or lie otherwise."""
        self.seed += 1
        rng, grads, i = np.random.default_rng(self.seed), [], 0
        for shapes, dtype in zip(self.shapes, self.dtypes, strict=True):
            row = []
            for shape in shapes:
                g = normal(rng, shape, dtype)
                g = g.copy(order="F") if order == "Fortran" else g
                row.append(self.device.array(g) if mask >> i & 1 else None)
                i += 1
            grads.append(row)
        taking = [[g is not None for g in row] for row in grads]
        strided = order == "Fortran" and any(g is not None and len(g.shape) == 2 for row in grads for g in row)
        if self.captured and (taking != self.mask or strided):
            with pytest.raises(RuntimeError, match="captured"), self.stream:
                self.opt.step(grads)
            event("refused after a capture")
            return
        self.mask, self.last = taking, grads
        self.take(grads)

    def take(self, grads):
        """Take a step of the host's, with what is assigned by now."""
        if self.opt._stepper.clock.resting and any(callable(value) for o in self.assigned for value in o.values()):
            self.refused(grads)
        with self.stream:
            self.opt.step(grads)
        self.in_force, self.changed = [dict(o) for o in self.assigned], False
        self.follow(grads)

    def refused(self, grads):
        """Be refused a schedule, which a graph that computes no numbers would not follow, and take it back."""
        with pytest.raises(RuntimeError, match="captured while its numbers stayed the same"), self.stream:
            self.opt.step(grads)
        event("a schedule refused after a capture")
        for group, o in zip(self.opt.param_groups, self.in_force, strict=True):
            group.update({"weight_decay": 0.0, "maximize": False, **o})
        self.assigned = [dict(o) for o in self.in_force]

    def again(self, times):
        """Take the last step again."""
        for _ in range(times):
            self.take(self.last)

    def assign(self, group, change):
        """Assign an option."""
        group %= len(self.kinds)
        self.opt.param_groups[group][change[0]] = change[1]
        self.assigned[group][change[0]] = change[1]
        self.changed = True

    def capture(self):
        """Record the last step, if it is warm."""
        self.last = [[None if g is None else self.dense(g) for g in row] for row in self.last]
        self.again(2)
        with self.device.capture(self.stream) as graph:
            self.opt.step(self.last)
        self.graphs.append((graph, self.last))
        self.captured = True
        event(f"graphs: {len(self.graphs)}")

    def dense(self, g):
        """The same gradient in its parameter's layout."""
        return self.device.array(np.ascontiguousarray(self.device.get(g)).reshape(g.shape))

    def replay(self, which, times):
        """Replay one of the graphs."""
        for _ in range(times if self.graphs else 0):
            graph, grads = self.graphs[which % len(self.graphs)]
            graph.launch()
            self.follow(grads)

    def check(self):
        """Compare everything."""
        for group, o in zip(self.opt.param_groups, self.assigned, strict=True):
            assert group["step"] == self.t
            if not self.changed:
                assert {k: group[k] for k in o} == numbers(o, self.t - 1)
        i = 0
        for trainer, params in zip(self.trainers, self.groups, strict=True):
            for p, want, states, steps in zip(params, trainer.params, trainer.states, trainer.steps, strict=True):
                got = self.device.get(p)
                assert_close(got, want, BFLOAT16 if got.dtype == np.float16 else TRAJECTORY)
                entry = dict(self.opt.state.get(i, {"step": 0}))
                assert entry.pop("step") == steps
                for state, expected in zip(entry.values(), states or [], strict=True):
                    half = got.dtype == np.float16
                    assert_close(self.device.get(state), expected, STATE_OF_HALF if half else TRAJECTORY)
                i += 1

    def load(self):
        """Go on from a state dict, unless a graph forbids it."""
        self.device.synchronize()
        saved = self.opt.state_dict()
        self.device.synchronize()
        if self.captured:
            return
        self.opt.load_state_dict(saved)
        self.device.synchronize()


@pytest.mark.exhaustive  # takes ten seconds
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kinds=KINDS, actions=st.lists(ACTIONS, min_size=4, max_size=20))
def test_anything_in_any_order(device, data, kinds, actions):
    """Steps with any gradients missing, assignments, captures, replays, checks, of groups of any rules and dtypes."""
    optimizer, names = kinds
    shapes = [[(3,), *data.draw(st.lists(SIZES, max_size=2))] for _ in names]
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in names]
    machine = Machine(device, optimizer, names, shapes, dtypes)
    for name, *arguments in [*actions, ("capture",), ("replay", 0, 2), ("again", 1), ("replay", 1, 1), ("check",)]:
        getattr(machine, name)(*arguments)
