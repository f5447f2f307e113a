"""Options of the stages, and training with them beside the oracle; no tests here.

What a stage does to an element depends neither on the rule nor on the other stages. All of them meet on the rules in
`ALL_MEET`; on the others a few pairs do, since each combination is a kernel of its own.
"""

import math

import numpy as np
import pytest
from fastopt.bench import oracle
from rule_cases import BY_STATES, OPTIMIZERS, numbers
from tolerances import TRAJECTORY, assert_close

from fastopt.options import STAGE_OPTIONS
from fastopt.rules import RULES
from fastopt.step.chunks import CHUNK_ELEMENTS

ALL_MEET = ("momentum", "adamw")
SIZES = [(CHUNK_ELEMENTS + 1,), (), (3, 5), (0,)]

# Options that change something at every step with gradients around 1.
NORM, VALUE, AVERAGE = {"max_grad_norm": 0.5}, {"clip_grad_value": 0.7}, {"ema_decay": 0.9}
TOGETHER = {**NORM, **VALUE, **AVERAGE}


def rarely(*values, id=None):
    """Values of a test that is exhaustive."""
    return pytest.param(*values, id=id, marks=pytest.mark.exhaustive)


def each_with_stages(rules):
    """Parametrize a test by rules and stages: the norm with all rules, kernels with stages usually with a few."""
    named = {"norm": NORM, "value and average": {**VALUE, **AVERAGE}, "all": TOGETHER}
    cases = [
        case(rule, stages, id=f"{rule}-{name}")
        for name, stages in named.items()
        for rule in rules
        for case in [pytest.param if rule in ALL_MEET or (rule in BY_STATES and name == "norm") else rarely]
    ]
    return pytest.mark.parametrize(("rule", "stages"), cases)


def arrays(shapes=SIZES, dtype=np.float32, seed=7):
    """Arrays of random numbers."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def gradients(params, seed):
    """A gradient for each parameter."""
    rng = np.random.default_rng(1000 + seed)
    return [rng.standard_normal(p.shape).astype(p.dtype) for p in params]


class Twins:
    """An optimizer over arrays, and the oracle's trainer of the same ones.

    Parameters
    ----------
    rule : str
    params : list of array
    **stages
        Options of the stages; the oracle asks schedules for each step.
    """

    def __init__(self, rule, params, **stages):
        self.rule, self.params = rule, params
        make, self.options = OPTIMIZERS[rule]
        self.optimizer = make(params, **self.options, **stages)
        self.trainer = oracle.Trainer(params)

    @property
    def stages(self):
        """The options of the stages as the next step has them, by the attributes and the schedules."""
        group = self.optimizer.param_groups[0]
        given = {name: group.schedules.get(name, getattr(self.optimizer, name)) for name in STAGE_OPTIONS}
        return numbers(given, group["step"])

    def step(self, grads, zero_grads=False):
        """Take a step with both; gradients are only read, or are zero afterwards."""
        before, stages = [None if g is None else g.copy() for g in grads], self.stages
        self.optimizer.step(grads, zero_grads=zero_grads)
        self.trainer.step(self.rule, before, self.options, stages)
        for g, was in zip(grads, before, strict=True):
            if g is not None:
                np.testing.assert_array_equal(g, np.zeros_like(g) if zero_grads else was)
        if stages["max_grad_norm"] is not None or stages["skip_nonfinite"]:
            self.check_norm()

    def check_norm(self):
        """Check the norm, which is summed in float64 whatever the dtype."""
        got, want = self.optimizer.grad_norm, self.trainer.norm
        assert type(got) is float
        assert math.isfinite(got) == math.isfinite(want)
        if math.isfinite(want):
            assert_close(got / (want or 1.0), 1.0 if want else 0.0, TRAJECTORY)

    def check(self):
        """Compare everything."""
        state, trainer = self.optimizer.state, self.trainer
        assert self.optimizer.skipped_steps == trainer.skipped
        for i, p in enumerate(self.params):
            assert_close(p, trainer.params[i], TRAJECTORY)
            assert state.get(i, {"step": 0})["step"] == trainer.steps[i]
            for name, want in zip(RULES[self.rule].states, trainer.states[i] or (), strict=False):
                assert_close(state[i][name], want, TRAJECTORY)
            assert ("ema" in state.get(i, {})) == (trainer.averages[i] is not None)
            if trainer.averages[i] is not None:
                assert_close(state[i]["ema"], trainer.averages[i], TRAJECTORY)


def seen(optimizer):
    """All that steps change, to the bit."""
    state = {key: {name: np.asarray(x).tobytes() for name, x in of.items()} for key, of in optimizer.state.items()}
    params = [p.tobytes() for group in optimizer.param_groups for p in group.tree.arrays]
    steps = [group["step"] for group in optimizer.param_groups]
    return params, state, steps
