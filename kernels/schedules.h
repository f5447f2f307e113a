// schedules.h: every learning-rate schedule as a function of the step, for CUDA C++ and host C++17. schedules.py has the
// same functions, under the same names and in the same order, from the simplest to the hardest, for Numba, and explains
// what a record is. A test compares the two bit by bit. On a GPU the last bits differ: it has its own sin and pow, and it
// fuses multiplications with additions.
//
// The function to call is the last one. It takes a record, which Cosine(0.1, 1000).record() returns in Python, and a
// step, a whole number from 0 to below 2**51. In a CUDA kernel the record is in the device's memory:
//
//     double lr = fastopt::schedule(record, step);
//
// The others get a pointer to a term's numbers, which have the order of the dataclass's fields.

#ifndef FASTOPT_SCHEDULES_H
#define FASTOPT_SCHEDULES_H

#ifdef __CUDACC__
#define FASTOPT_DEVICE __host__ __device__
#else
#define FASTOPT_DEVICE
#endif

#ifndef __CUDACC_RTC__  // NVRTC has these functions without a header
#include <cmath>
#endif

// X(name, enumerator) for every kind of schedule, every shape and every mode, in the order of tables.py: a record has
// their numbers.
#define FASTOPT_SCHEDULES(X)    \
    FASTOPT_SIMPLE_SCHEDULES(X) \
    X(warmup, Warmup)           \
    X(sequence, Sequence)       \
    X(per_epoch, PerEpoch)

#define FASTOPT_SIMPLE_SCHEDULES(X) \
    X(constant, Constant)           \
    X(linear, Linear)               \
    X(polynomial, Polynomial)       \
    X(exponential, Exponential)     \
    X(step_decay, StepDecay)        \
    X(multi_step, MultiStep)        \
    X(piecewise, Piecewise)         \
    X(inverse_sqrt, InverseSqrt)    \
    X(cosine, Cosine)               \
    X(warm_restarts, WarmRestarts)  \
    X(one_cycle, OneCycle)          \
    X(cyclic, Cyclic)               \
    X(warmup_stable_decay, WarmupStableDecay)

#define FASTOPT_SHAPES(X) X(linear, Linear) X(cosine, Cosine) X(1-sqrt, Sqrt)

#define FASTOPT_MODES(X) X(triangular, Triangular) X(triangular2, Triangular2) X(exp_range, ExpRange)

namespace fastopt {
namespace schedules {

#ifndef __CUDACC_RTC__
using std::expm1, std::floor, std::fmax, std::fmin, std::log, std::log1p, std::nan, std::pow, std::sin, std::sqrt;
#endif

#define FASTOPT_ENUMERATOR(name, enumerator) enumerator,
enum class Kind { FASTOPT_SCHEDULES(FASTOPT_ENUMERATOR) };
enum class Shape { FASTOPT_SHAPES(FASTOPT_ENUMERATOR) };
enum class Mode { FASTOPT_MODES(FASTOPT_ENUMERATOR) };
#undef FASTOPT_ENUMERATOR

// Half a wave, from 0 at 0 to 1 at 1.
FASTOPT_DEVICE inline double wave(double x) {
    constexpr double pi = 3.141592653589793;
    double sine = sin(0.5 * pi * x);
    return sine * sine;  // (1 - cos(pi * x)) / 2
}

// From 1 to 0, exact to the last bits near 0 as well; done + left = 1.
FASTOPT_DEVICE inline double fall(Shape shape, double done, double left) {
    if (shape == Shape::Cosine) return wave(left);
    if (shape == Shape::Sqrt) return left / (1.0 + sqrt(done));  // 1 - sqrt(done)
    return left;
}

// From 0 to 1: 1 - fall.
FASTOPT_DEVICE inline double rise(Shape shape, double done) {
    if (shape == Shape::Cosine) return wave(done);
    if (shape == Shape::Sqrt) return sqrt(done);
    return done;
}

// From start at t = 0 to end at t = steps and after; measured from the lower of the two, so nothing cancels.
FASTOPT_DEVICE inline double ramp(double start, double end, double t, double steps, Shape shape) {
    if (t >= steps) return end;
    double done = t / steps, left = (steps - t) / steps;
    if (start >= end) {
        double share = fall(shape, done, left);
        return share * start + (1.0 - share) * end;
    }
    double share = rise(shape, done);
    return share * end + (1.0 - share) * start;
}

// Exact, and faster than fmod: the quotient of whole numbers below 2**51 is never rounded up to the next.
FASTOPT_DEVICE inline double remainder(double t, double period) { return t - floor(t / period) * period; }

FASTOPT_DEVICE inline double constant(const double *number, double) { return number[0]; }

FASTOPT_DEVICE inline double linear(const double *number, double t) {
    double lr = number[0], end = number[1], steps = number[2];
    return ramp(lr, end, t, steps, Shape::Linear);
}

FASTOPT_DEVICE inline double polynomial(const double *number, double t) {
    double lr = number[0], steps = number[1], power = number[2], end = number[3];
    if (t >= steps) return end;
    if (lr >= end) {
        double share = pow((steps - t) / steps, power);
        return share * lr + (1.0 - share) * end;
    }
    double log_left = 2.0 * t < steps ? log1p(-t / steps) : log((steps - t) / steps);
    double share = -expm1(power * log_left);
    return share * end + (1.0 - share) * lr;
}

// lr * gamma ** times; zero stays zero even if the power is infinite.
FASTOPT_DEVICE inline double scaled(double lr, double gamma, double times) {
    return lr == 0 ? 0.0 : lr * pow(gamma, times);
}

FASTOPT_DEVICE inline double exponential(const double *number, double t) {
    double lr = number[0], gamma = number[1], every = number[2];
    return scaled(lr, gamma, t / every);
}

FASTOPT_DEVICE inline double step_decay(const double *number, double t) {
    double lr = number[0], every = number[1], gamma = number[2];
    return scaled(lr, gamma, floor(t / every));
}

// How many of a tuple of milestones are at t or before.
FASTOPT_DEVICE inline long long passed(const double *tuple, double t) {
    long long count = 0, end = static_cast<long long>(tuple[0]);
    while (count < end) {  // a binary search, since there may be many
        long long middle = (count + end) / 2;
        if (tuple[1 + middle] <= t) {
            count = middle + 1;
        } else {
            end = middle;
        }
    }
    return count;
}

// What follows a tuple, and what follows a term.
FASTOPT_DEVICE inline const double *after_tuple(const double *tuple) {
    return tuple + 1 + static_cast<long long>(tuple[0]);
}
FASTOPT_DEVICE inline const double *after_term(const double *at) { return at + static_cast<long long>(at[1]); }

FASTOPT_DEVICE inline double multi_step(const double *number, double t) {
    double lr = number[0];
    const double *milestones = number + 1;
    double gamma = *after_tuple(milestones);
    return scaled(lr, gamma, static_cast<double>(passed(milestones, t)));
}

FASTOPT_DEVICE inline double piecewise(const double *number, double t) {
    const double *values = number + 1, *boundaries = after_tuple(number);
    return values[passed(boundaries, t)];
}

FASTOPT_DEVICE inline double inverse_sqrt(const double *number, double t) {
    double lr = number[0], warmup = number[1];
    if (t < warmup) return lr * t / warmup;
    return lr * sqrt(warmup / t);
}

FASTOPT_DEVICE inline double cosine(const double *number, double t) {
    double lr = number[0], steps = number[1], end = number[2], dips = number[3], periodic = number[4];
    if (periodic == 0 && t >= steps) return end;
    if (t >= steps || dips != 1) {
        // In units of 1 / (2 * dips - 1) steps, half a wave takes `steps`, and the wave twice that.
        t = remainder(remainder(t, 2.0 * steps) * (2.0 * dips - 1.0), 2.0 * steps);
        t = fmin(t, 2.0 * steps - t);
    }
    return ramp(lr, end, t, steps, Shape::Cosine);
}

FASTOPT_DEVICE inline double warm_restarts(const double *number, double t) {
    double lr = number[0], period = number[1], mult = number[2], end = number[3];
    if (mult == 1) return ramp(lr, end, remainder(t, period), period, Shape::Cosine);
    while (t >= period) {
        t -= period;
        period *= mult;
    }
    return ramp(lr, end, t, period, Shape::Cosine);
}

FASTOPT_DEVICE inline double one_cycle(const double *number, double t) {
    double peak = number[0], steps = number[1], pct_start = number[2];
    Shape shape = static_cast<Shape>(number[3]);
    double start = peak / number[4];
    double end = start / number[5];
    double three_phase = number[6];
    double last = steps - 1.0;
    t = fmin(t, last);
    double top = pct_start * steps - 1.0;  // as in torch: counted from 0, not always whole
    if (t <= top) return ramp(start, peak, t, top, shape);
    if (three_phase == 0) return ramp(peak, end, t - top, last - top, shape);
    double foot = 2.0 * pct_start * steps - 2.0;
    if (t <= foot) return ramp(peak, start, t - top, foot - top, shape);
    return ramp(start, end, t - foot, last - foot, shape);
}

FASTOPT_DEVICE inline double cyclic(const double *number, double t) {
    double lr = number[0], peak = number[1], up = number[2], down = number[3], gamma = number[5];
    Mode mode = static_cast<Mode>(number[4]);
    double cycle = floor(t / (up + down));
    double t_cycle = t - cycle * (up + down);
    double high = t_cycle / up, low = (up - t_cycle) / up;
    if (t_cycle > up) {
        high = (up + down - t_cycle) / down;
        low = (t_cycle - up) / down;
    }
    double scale = 1.0;
    if (mode == Mode::Triangular2) {
        scale = pow(0.5, cycle);
    } else if (mode == Mode::ExpRange) {
        scale = pow(gamma, t);
    }
    if (peak >= lr) return high * scale * peak + (1.0 - high * scale) * lr;
    double loss = mode == Mode::ExpRange ? -expm1(t * log(gamma)) : 1.0 - scale;
    low += high * loss;
    return low * lr + (1.0 - low) * peak;
}

FASTOPT_DEVICE inline double warmup_stable_decay(const double *number, double t) {
    double lr = number[0], warmup = number[1], stable = number[2], decay = number[3], end = number[4];
    Shape shape = static_cast<Shape>(number[5]);
    if (t < warmup) return lr * t / warmup;
    return ramp(lr, end, fmax(t - warmup - stable, 0.0), decay, shape);
}

// The value of a term that contains no others.
FASTOPT_DEVICE inline double simple(const double *at, double t) {
#define FASTOPT_CASE(name, enumerator) \
    case Kind::enumerator:             \
        return name(at + 2, t);
    switch (static_cast<Kind>(at[0])) {
        FASTOPT_SIMPLE_SCHEDULES(FASTOPT_CASE)
        default:
            return nan("");
    }
#undef FASTOPT_CASE
}

// The value of a term: a composite one converts the step for the part that is active, and continues there.
FASTOPT_DEVICE inline double term(const double *at, double t) {
    double factor = 1.0;
    while (true) {
        Kind kind = static_cast<Kind>(at[0]);
        const double *number = at + 2;
        if (kind == Kind::Warmup) {
            double steps = number[0], start = number[1];
            factor *= ramp(start, 1.0, t, steps, Shape::Linear);
            t = fmax(t - steps, 0.0);
            at = number + 2;
        } else if (kind == Kind::Sequence) {
            long long part = passed(number, t);
            if (part > 0) t -= number[part];
            at = after_tuple(number);
            for (; part > 0; --part) at = after_term(at);
        } else if (kind == Kind::PerEpoch) {
            t = floor(t / number[0]);
            at = number + 1;
        } else {
            return factor * simple(at, t);
        }
    }
}

}  // namespace schedules

// The value of a schedule at step t, from its record. Nothing is checked.
FASTOPT_DEVICE inline double schedule(const double *record, double t) {
    double value = 1.0;
    const double *end = record + static_cast<long long>(record[0]);
    for (const double *at = record + 1; at < end; at = schedules::after_term(at)) value *= schedules::term(at, t);
    return value;
}

}  // namespace fastopt

#endif
