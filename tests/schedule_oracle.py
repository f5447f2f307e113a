"""The oracle of schedules: every formula from the papers, in mpmath with 80 digits, independent of the kernels.

`SCHEDULES` maps the name of a class to a function of (schedule, t) that returns the value; a number of a schedule is
what its double is exactly, and periods are counted in integers. `value` takes a schedule of any class. Nothing here
imports fastopt.
"""

from fractions import Fraction

from mpmath import cos, mp, mpf, pi, sqrt

mp.dps = 80


def value(schedule, t):
    """The value of any schedule at a step."""
    return SCHEDULES[type(schedule).__name__](schedule, t)


def half_wave(lr, end, x):
    """From lr at x = 0 down to end at x = 1."""
    return end + (lr - end) * (1 + cos(pi * x)) / 2


def line(start, end, x):
    """From start at x = 0 to end at x = 1."""
    return start + (end - start) * x


def constant(s, t):
    """The same at every step."""
    return mpf(s.lr)


def linear(s, t):
    """A line, held at its end."""
    return line(mpf(s.lr), mpf(s.end), mpf(min(t, s.steps)) / s.steps)


def polynomial(s, t):
    """A power of what is left, held at its end."""
    left = 1 - mpf(min(t, s.steps)) / s.steps
    return mpf(s.end) + (mpf(s.lr) - mpf(s.end)) * left ** mpf(s.power)


def exponential(s, t):
    """A power of gamma, at whole and at fractional exponents."""
    return mpf(s.lr) * mpf(s.gamma) ** (mpf(t) / s.every)


def step_decay(s, t):
    """A power of gamma at whole exponents."""
    return mpf(s.lr) * mpf(s.gamma) ** (t // s.every)


def multi_step(s, t):
    """A factor of gamma for each milestone that has been reached."""
    return mpf(s.lr) * mpf(s.gamma) ** sum(milestone <= t for milestone in s.milestones)


def piecewise(s, t):
    """As many boundaries as have been reached, so many values to the right."""
    return mpf(s.values[sum(boundary <= t for boundary in s.boundaries)])


def inverse_sqrt(s, t):
    """Noam's: the smaller of a line and a root."""
    return mpf(s.lr) * (mpf(t) / s.warmup if t <= s.warmup else sqrt(mpf(s.warmup) / t))


def cosine(s, t):
    """A wave of half-period steps / (2 * dips - 1); whole waves are taken off in integers."""
    if t >= s.steps and not s.periodic:
        return mpf(s.end)
    half_period = Fraction(s.steps, 2 * s.dips - 1)
    x = (t % (2 * half_period)) / half_period
    return half_wave(mpf(s.lr), mpf(s.end), mpf(x.numerator) / x.denominator)


def warm_restarts(s, t):
    """The i-th period is period * mult**i steps long."""
    if s.mult == 1:
        start, period = t - t % s.period, s.period
    else:
        start, period = 0, s.period
        while start + period <= t:
            start, period = start + period, period * s.mult
    return half_wave(mpf(s.lr), mpf(s.end), mpf(t - start) / period)


def one_cycle(s, t):
    """The phases of torch's, which end at pct_start * steps - 1 and so on; pct_start is the decimal that it shows."""
    share, peak, last = mpf(repr(s.pct_start)), mpf(s.peak), mpf(s.steps - 1)
    start = peak / mpf(s.div)
    end = start / mpf(s.final_div)
    phases = [(share * s.steps - 1, start, peak), (last, peak, end)]
    if s.three_phase:
        phases[1:] = [(2 * share * s.steps - 2, peak, start), (last, start, end)]
    t, begun = min(mpf(t), last), mpf(0)
    for ended, high, low in phases:
        if t <= ended or ended is last:
            x = (t - begun) / (ended - begun) if ended > begun else mpf(1)
            return half_wave(high, low, x) if s.anneal == "cos" else line(high, low, x)
        begun = ended
    raise AssertionError("the last phase takes all")


def cyclic(s, t):
    """Smith's triangles: cycles are counted from 0 here."""
    cycle, t_cycle = divmod(t, s.up + s.down)
    height = mpf(t_cycle) / s.up if t_cycle <= s.up else mpf(s.up + s.down - t_cycle) / s.down
    if s.mode == "triangular2":
        height /= mpf(2) ** cycle
    elif s.mode == "exp_range":
        height *= mpf(s.gamma) ** t
    return mpf(s.lr) + (mpf(s.peak) - mpf(s.lr)) * height


def warmup_stable_decay(s, t):
    """A trapezoid with a decay of three shapes."""
    lr, end = mpf(s.lr), mpf(s.end)
    if t < s.warmup:
        return lr * t / s.warmup
    if t < s.warmup + s.stable:
        return lr
    x = mpf(min(t - s.warmup - s.stable, s.decay)) / s.decay
    if s.shape == "cosine":
        return half_wave(lr, end, x)
    return line(lr, end, sqrt(x) if s.shape == "1-sqrt" else x)


def warmup(s, t):
    """A line up to the first value of another schedule, and that one on its own clock."""
    if t < s.steps:
        return value(s.schedule, 0) * line(mpf(s.start), 1, mpf(t) / s.steps)
    return value(s.schedule, t - s.steps)


def sequence(s, t):
    """The schedule of the last milestone that has been reached, on its own clock."""
    reached = [0, *(milestone for milestone in s.milestones if milestone <= t)]
    return value(s.schedules[len(reached) - 1], t - reached[-1])


def per_epoch(s, t):
    """Another schedule of the epoch."""
    return value(s.schedule, t // s.steps_per_epoch)


def product(s, t):
    """The product of others."""
    result = mpf(1)
    for schedule in s.schedules:
        result *= value(schedule, t)
    return result


SCHEDULES = {
    "Constant": constant,
    "Linear": linear,
    "Polynomial": polynomial,
    "Exponential": exponential,
    "StepDecay": step_decay,
    "MultiStep": multi_step,
    "Piecewise": piecewise,
    "InverseSqrt": inverse_sqrt,
    "Cosine": cosine,
    "WarmRestarts": warm_restarts,
    "OneCycle": one_cycle,
    "Cyclic": cyclic,
    "WarmupStableDecay": warmup_stable_decay,
    "Warmup": warmup,
    "Sequence": sequence,
    "PerEpoch": per_epoch,
    "Product": product,
}
