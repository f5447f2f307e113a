"""The oracle: every rule in float64 NumPy, written from the papers' formulas and not from the kernels.

`RULES` maps a rule's name to a function of (p, g, states, step, options) that returns the new parameter and the new
states. The states are None before a parameter's first gradient; `step` counts from 1. The stages, clipping, skipping
and averaging, are a `Trainer`'s. This file does not import fastopt: the tests, and the benchmark's checks on GPUs,
compare fastopt with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
States = tuple[Array, ...]
Updated = tuple[Array, States]
Options = Mapping[str, Any]

NONE: Options = {}


def regularised(p: Array, g: npt.ArrayLike, options: Options) -> Array:
    """The gradient after maximize and weight decay, in float64."""
    g = np.asarray(g, np.float64)
    if options.get("maximize", False):
        g = -g
    penalty: Array = options.get("weight_decay", 0.0) * p
    return g + penalty


def sgd(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Gradient descent."""
    return p - options["lr"] * regularised(p, g, options), ()


def buffer(p: Array, g: Array, states: States | None, options: Options) -> Array:
    """The momentum buffer after a gradient; the first gradient is not dampened."""
    g = regularised(p, g, options)
    if states is None:
        return g
    v: Array = options["momentum"] * states[0] + (1.0 - options.get("dampening", 0.0)) * g
    return v


def momentum(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Heavy-ball momentum, with the learning rate outside the buffer."""
    v = buffer(p, g, states, options)
    return p - options["lr"] * v, (v,)


def nesterov(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Nesterov's momentum as torch and Sutskever et al. have it."""
    v = buffer(p, g, states, options)
    return p - options["lr"] * (regularised(p, g, options) + options["momentum"] * v), (v,)


def adagrad(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """AdaGrad with eps outside the root."""
    g = regularised(p, g, options)
    s = np.full_like(p, options.get("initial_accumulator_value", 0.0)) if states is None else states[0]
    s = s + g**2
    lr = options["lr"] / (1.0 + (step - 1) * options.get("lr_decay", 0.0))
    return p - lr * g / (np.sqrt(s) + options.get("eps", 1e-10)), (s,)


def zeros(p: Array, states: States | None, count: int) -> States:
    """The states, or `count` zeros before the first gradient."""
    return tuple(np.zeros_like(p) for _ in range(count)) if states is None else states


def mean_square(s: Array, g: Array, options: Options) -> Array:
    """The moving average of squared gradients."""
    alpha: float = options.get("alpha", 0.99)
    return alpha * s + (1.0 - alpha) * g * g


def variance(s: Array, a: Array, g: Array, options: Options) -> tuple[Array, Array]:
    """Graves's variance, the mean square minus the square of the mean, but not below 0; and that mean."""
    alpha = options.get("alpha", 0.99)
    a = alpha * a + (1.0 - alpha) * g
    return np.maximum(s - a**2, 0.0), a


def rmsprop(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Tieleman and Hinton's RMSProp, with eps outside the root."""
    g, (s,) = regularised(p, g, options), zeros(p, states, 1)
    s = mean_square(s, g, options)
    return p - options["lr"] * g / (np.sqrt(s) + options.get("eps", 1e-8)), (s,)


def rmsprop_momentum(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """RMSProp with a momentum buffer of scaled gradients."""
    g, (s, v) = regularised(p, g, options), zeros(p, states, 2)
    s = mean_square(s, g, options)
    v = options["momentum"] * v + g / (np.sqrt(s) + options.get("eps", 1e-8))
    return p - options["lr"] * v, (s, v)


def rmsprop_centered(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Graves's RMSProp, which divides by the standard deviation."""
    g, (s, a) = regularised(p, g, options), zeros(p, states, 2)
    s = mean_square(s, g, options)
    var, a = variance(s, a, g, options)
    return p - options["lr"] * g / (np.sqrt(var) + options.get("eps", 1e-8)), (s, a)


def rmsprop_centered_momentum(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Graves's RMSProp with a momentum buffer."""
    g, (s, v, a) = regularised(p, g, options), zeros(p, states, 3)
    s = mean_square(s, g, options)
    var, a = variance(s, a, g, options)
    v = options["momentum"] * v + g / (np.sqrt(var) + options.get("eps", 1e-8))
    return p - options["lr"] * v, (s, v, a)


def moments(g: Array, m: Array, v: Array, options: Options) -> tuple[Array, Array]:
    """Kingma and Ba's two moving averages."""
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    return beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g * g


def adam_step(p: Array, m: Array, v: Array, step: int, options: Options) -> Array:
    """The rest of Adam's algorithm 1: both averages corrected for their bias towards zero."""
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    corrected_m, corrected_v = m / (1.0 - beta1**step), v / (1.0 - beta2**step)
    move: Array = options["lr"] * corrected_m / (np.sqrt(corrected_v) + options.get("eps", 1e-8))
    return p - move


def adam(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Adam with an L2 penalty."""
    g, (m, v) = regularised(p, g, options), zeros(p, states, 2)
    m, v = moments(g, m, v, options)
    return adam_step(p, m, v, step, options), (m, v)


def adam_amsgrad(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """AMSGrad (Reddi, Kale and Kumar) as in torch: the largest average is bias-corrected as if it were this step's."""
    g, (m, v, w) = regularised(p, g, options), zeros(p, states, 3)
    m, v = moments(g, m, v, options)
    w = np.maximum(w, v)
    return adam_step(p, m, w, step, options), (m, v, w)


def decayed(p: Array, options: Options) -> tuple[Array, Options]:
    """Loshchilov and Hutter's weight decay, and the options without it."""
    return p - options["lr"] * options.get("weight_decay", 0.0) * p, {**options, "weight_decay": 0.0}


def adamw(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Adam on a parameter that has decayed by itself."""
    p, options = decayed(p, options)
    return adam(p, g, states, step, options)


def adamw_amsgrad(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """AMSGrad on a parameter that has decayed by itself."""
    p, options = decayed(p, options)
    return adam_amsgrad(p, g, states, step, options)


def lion(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Chen et al.'s Algorithm 2: a parameter decays by itself, and moves by the sign of an average alone."""
    p, options = decayed(p, options)
    g, (m,) = regularised(p, g, options), zeros(p, states, 1)
    beta1, beta2 = options.get("betas", (0.9, 0.99))
    move: Array = options["lr"] * np.sign(beta1 * m + (1.0 - beta1) * g)
    return p - move, (beta2 * m + (1.0 - beta2) * g,)


def nadam_momentum(step: int, options: Options) -> float:
    """Dozat's momentum of a step, with which torch has it grow."""
    beta1: float = options.get("betas", (0.9, 0.999))[0]
    momentum: float = beta1 * (1.0 - 0.5 * 0.96 ** (step * options.get("momentum_decay", 4e-3)))
    return momentum


def nadam(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """Dozat's NAdam: Nesterov's momentum in Adam; ``mu_product`` multiplies the momenta up to this step."""
    g, (m, v) = regularised(p, g, options), zeros(p, states, 2)
    m, v = moments(g, m, v, options)
    mu, upcoming, product = nadam_momentum(step, options), nadam_momentum(step + 1, options), options["mu_product"]
    ahead = upcoming * m / (1.0 - product * upcoming) + (1.0 - mu) * g / (1.0 - product)
    corrected_v = v / (1.0 - options.get("betas", (0.9, 0.999))[1] ** step)
    return p - options["lr"] * ahead / (np.sqrt(corrected_v) + options.get("eps", 1e-8)), (m, v)


def nadamw(p: Array, g: Array, states: States | None, step: int, options: Options) -> Updated:
    """NAdam on a parameter that has decayed by itself."""
    p, options = decayed(p, options)
    return nadam(p, g, states, step, options)


RULES: dict[str, Callable[[Array, Array, States | None, int, Options], Updated]] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "rmsprop_momentum": rmsprop_momentum,
    "rmsprop_centered": rmsprop_centered,
    "rmsprop_centered_momentum": rmsprop_centered_momentum,
    "adam": adam,
    "adam_amsgrad": adam_amsgrad,
    "adamw": adamw,
    "adamw_amsgrad": adamw_amsgrad,
    "lion": lion,
    "nadam": nadam,
    "nadamw": nadamw,
}


# Of rules that hand a number on from step to step, which begins with 1: its name among the options, and what a step
# multiplies it by.
CARRIED: dict[str, tuple[str, Callable[[int, Options], float]]] = dict.fromkeys(
    ("nadam", "nadamw"), ("mu_product", nadam_momentum)
)


# The stages


def norm_of(grads: Sequence[Any]) -> float:
    """The norm of all gradients together; not finite only if one of them is not, and NaN if one is."""
    flat = np.concatenate([np.zeros(1), *(np.asarray(g, np.float64).ravel() for g in grads if g is not None)])
    return math.nan if np.isnan(flat).any() else math.hypot(*flat.tolist())


def clipped_by_value(g: Array, options: Options) -> Array:
    """A gradient with each element at the limit that is beyond it; NaN stays NaN."""
    limit = options.get("clip_grad_value")
    return g if limit is None else np.where(np.abs(g) > limit, limit * np.sign(g), g)


def coefficient(norm: float, options: Options) -> float:
    """The factor that clips gradients by their norm, as torch's clip_grad_norm_ has it."""
    if options.get("max_grad_norm") is None:
        return 1.0
    return float(np.minimum(options["max_grad_norm"] / (norm + 1e-6), 1.0))  # NaN if the norm is


def averaged(e: Array, p: Array, options: Options) -> Array:
    """The moving average of a parameter."""
    decay: float = options["ema_decay"]
    return decay * e + (1.0 - decay) * p


class Trainer:
    """Trains float64 copies of parameters by the oracle's rules; each parameter counts its own steps."""

    def __init__(self, params: Sequence[npt.ArrayLike]) -> None:
        self.params: list[Array] = [np.array(p, np.float64) for p in params]
        self.states: list[States | None] = [None] * len(self.params)
        self.averages: list[Array | None] = [None] * len(self.params)
        self.steps = [0] * len(self.params)
        self.carried = [1.0] * len(self.params)
        self.norm, self.skipped = 0.0, 0

    def step(
        self, rule: str, grads: Sequence[Any], options: Options | Sequence[Options], stages: Options = NONE
    ) -> None:
        """Take one step; `options` is one dict for all parameters, or a list with a dict for each."""
        self.norm = norm_of(grads) if stages else 0.0
        if stages.get("skip_nonfinite", False) and not math.isfinite(self.norm):
            self.skipped += 1
            return
        factor = coefficient(self.norm, stages)
        for i, g in enumerate(grads):
            if g is not None:
                with np.errstate(invalid="ignore"):  # 0 * inf
                    g = factor * clipped_by_value(np.asarray(g, np.float64), stages)
                self.update(i, rule, g, options if isinstance(options, Mapping) else options[i], stages)
            if stages.get("ema_decay") is not None and (e := self.averages[i]) is not None:
                self.averages[i] = averaged(e, self.params[i], stages)

    def update(self, i: int, rule: str, g: Array, options: Options, stages: Options) -> None:
        """Update one parameter; its average begins with it, if one is asked for."""
        if stages.get("ema_decay") is not None and self.averages[i] is None:
            self.averages[i] = self.params[i]
        self.steps[i] += 1
        if rule in CARRIED and CARRIED[rule][0] not in options:
            name, factor = CARRIED[rule]
            self.carried[i] *= factor(self.steps[i], options)
            options = {**options, name: self.carried[i]}
        self.params[i], self.states[i] = RULES[rule](self.params[i], g, self.states[i], self.steps[i], options)
