"""The oracle: every rule in float64 NumPy, written from the papers' formulas and not from the kernels.

`RULES` maps a rule's name to a function of (p, g, states, step, options) that returns the new parameter and the new
states, which are None before a parameter's first gradient; `step` counts from 1. Nothing here imports fastopt.
"""

import numpy as np


def regularised(p, g, options):
    """The gradient after maximize and weight decay, in float64."""
    g = np.asarray(g, np.float64)
    if options.get("maximize", False):
        g = -g
    return g + options.get("weight_decay", 0.0) * p


def sgd(p, g, states, step, options):
    """Gradient descent."""
    return p - options["lr"] * regularised(p, g, options), ()


def buffer(p, g, states, options):
    """The momentum buffer after a gradient; the first gradient is taken whole."""
    g = regularised(p, g, options)
    if states is None:
        return g
    return options["momentum"] * states[0] + (1.0 - options.get("dampening", 0.0)) * g


def momentum(p, g, states, step, options):
    """Heavy-ball momentum, the rate outside the buffer."""
    v = buffer(p, g, states, options)
    return p - options["lr"] * v, (v,)


def nesterov(p, g, states, step, options):
    """Nesterov's momentum as torch and Sutskever et al. have it."""
    v = buffer(p, g, states, options)
    return p - options["lr"] * (regularised(p, g, options) + options["momentum"] * v), (v,)


def adagrad(p, g, states, step, options):
    """AdaGrad with eps outside the root."""
    g = regularised(p, g, options)
    s = np.full_like(p, options.get("initial_accumulator_value", 0.0)) if states is None else states[0]
    s = s + g**2
    lr = options["lr"] / (1.0 + (step - 1) * options.get("lr_decay", 0.0))
    return p - lr * g / (np.sqrt(s) + options.get("eps", 1e-10)), (s,)


RULES = {"sgd": sgd, "momentum": momentum, "nesterov": nesterov, "adagrad": adagrad}


class Trainer:
    """Trains float64 copies of parameters by the oracle's rules, each counting its own steps."""

    def __init__(self, params):
        self.params = [np.array(p, np.float64) for p in params]
        self.states = [None] * len(self.params)
        self.steps = [0] * len(self.params)

    def step(self, rule, grads, options):
        """Take one step; options is one dict for all, or a list with one for each parameter."""
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.steps[i] += 1
            chosen = options[i] if isinstance(options, list) else options
            self.params[i], self.states[i] = RULES[rule](self.params[i], g, self.states[i], self.steps[i], chosen)
