"""Tensors for the CUDA kernels, with guards around them, and what a step should make of them; no tests here."""

import numpy as np
from cuda_jobs import Tensor, computed
from fastopt.bench import oracle
from guarded import Guarded
from halves import DIGITS, LEAST, rounded, values
from rule_cases import OPTIONS
from tolerances import ONE_STEP, assert_close, assert_rounded

from fastopt.rules import RULES

MORE = {**OPTIONS, "dampening": 0.3, "weight_decay": 0.01, "maximize": True}
OF_BITS = {np.dtype(np.uint16): "float16"}  # or bfloat16: both are computed in float32


def stored(x, dtype):
    """Numbers as they lie in memory: halves as bits."""
    return rounded(x.astype(np.float32), dtype) if dtype in DIGITS else x.astype(dtype)


def meant(array, dtype):
    """The numbers that lie there, in float64."""
    return (values(array, dtype) if dtype in DIGITS else array).astype(np.float64)


def normal(rng, shape, dtype):
    """Random numbers, as they lie in memory."""
    return stored(rng.standard_normal(shape), dtype)


def options_of(name, options):
    """Options that the rule may have: dampening is 0 with Nesterov."""
    return {**options, "dampening": 0.0} if name == "nesterov" else options


class Guards:
    """Makes tensors whose arrays lie between guards, each at its own alignment."""

    def __init__(self):
        self.all = []

    def place(self, array, offset=0):
        """Copy an array between guards."""
        self.all.append(Guarded(array, offset))
        return self.all[-1].array

    def tensor(self, name, p, g, offsets=(0, 0, 0), hyper=0, state=0.0):
        """Place a parameter, its gradient if there is one and no stride in it, and states that begin with a number."""
        states = [np.full(p.shape, state, computed(OF_BITS.get(p.dtype, p.dtype.name))) for _ in RULES[name].states]
        if g is not None and g.flags.c_contiguous:
            g = self.place(g, offsets[1])
        return Tensor(self.place(p, offsets[0]), g, [self.place(state, offsets[2]) for state in states], hyper)

    def launch(self, job, seed=0):
        """Launch, and assert that no gradient has changed, and nothing beside an array."""
        gradients = [tensor.grad for tensor in job.tensors if tensor.grad is not None]
        before = [gradient.tobytes() for gradient in gradients]
        wide = job.launch(seed)
        for guarded in self.all:
            guarded.assert_kept()
        assert [gradient.tobytes() for gradient in gradients] == before
        return wide


def before(tensor, dtype):
    """A tensor's parameter, gradient and states in float64."""
    return [meant(tensor.param, dtype), meant(tensor.grad, dtype), *(s.astype(np.float64) for s in tensor.states)]


def assert_updated(name, dtype, tensor, was, options, count):
    """Assert that a tensor is what the oracle makes of what it was, in the step of that count."""
    want, want_states = oracle.RULES[name](*was[:2], was[2:] if count > 1 else None, count, options)
    if dtype in DIGITS:
        assert_rounded(meant(tensor.param, dtype), want, DIGITS[dtype], LEAST[dtype], ONE_STEP)
    else:
        assert_close(tensor.param, want, ONE_STEP)
    for state, expected, old in zip(tensor.states, want_states, was[2:], strict=True):
        scale = np.max(np.abs([expected, old]), initial=1.0)  # momentum and what comes to it may cancel
        assert_close(state, expected, ONE_STEP, scale)


def assert_same(tensors, others):
    """Assert that parameters and states have the same bits."""
    for tensor, other in zip(tensors, others, strict=True):
        for array, another in zip((tensor.param, *tensor.states), (other.param, *other.states), strict=True):
            assert array.tobytes() == another.tobytes()


def row_of(name, options, count):
    """The hyper row of a step, its first or a later one."""
    return RULES[name].row(options, count, count == 1)


def model(name, dtype, rng, guards):
    """Several tensors of three groups: sizes around chunks, gradients in both orders, and two that are missing."""
    sizes = [5, 1024, 9000, 1, 0, 300, 2 * 1024 + 1, 77]
    tensors = []
    for i, size in enumerate(sizes):
        g = None if i in (2, 7) else normal(rng, size, dtype)
        tensors.append(guards.tensor(name, normal(rng, size, dtype), g, hyper=i % 3, state=0.5))
    p = normal(rng, (67, 45), dtype)
    tensors.append(guards.tensor(name, p, np.asfortranarray(normal(rng, p.shape, dtype)), hyper=2, state=0.5))
    tensors.append(guards.tensor(name, p, None, hyper=1, state=0.5))
    return tensors


THREE_GROUPS = [MORE, OPTIONS, {**OPTIONS, "lr": 0.01, "weight_decay": 0.1, "momentum": 0.5, "eps": 1e-3}]
