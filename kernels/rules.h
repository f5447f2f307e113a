// rules.h: every update rule once, for CUDA C++ and host C++17. cpu.py has the same rules, under the same names and in
// the same order, from the simplest to the hardest, for Numba; the tests compare both with one oracle.
//
// A rule takes a parameter, its gradient, its states and its hyperparameters, all of one type, returns the new
// parameter and writes the new states:
//
//     float v[] = {velocity[i]};
//     const float hypers[] = {0.1f, 0.9f};  // lr, momentum
//     p[i] = fastopt::Momentum::apply(p[i], g[i], v, hypers);
//     velocity[i] = v[0];
//
// For whole arrays, on the host, vectorised:
//
//     float *states[] = {velocity};
//     const double hyper[] = {0.1, 0.9};
//     fastopt::update<fastopt::Momentum>(p, g, states, n, hyper);
//
// `row` computes a step's hyper row in double: the gradient's factor, the weight decay, then the rule's hyperparameters. It
// gets the rule's options and the parameter's step count, from 1, and returns what the registry does on the host. A rule
// that carries a number from step to step has `carry`, which computes the number after a step: the last option of `row`.
//
// fastopt::schedule, in schedules.h, which is included here, computes the learning rate of a schedule.

#ifndef FASTOPT_RULES_H
#define FASTOPT_RULES_H

#include "schedules.h"  // with FASTOPT_DEVICE and <cmath>
#include "vectors.h"

#ifndef __CUDACC_RTC__
#include <cstring>
#include <type_traits>
#endif

// X(name, functor) for every rule.
#define FASTOPT_RULES(X)                                   \
    X(sgd, Sgd)                                            \
    X(momentum, Momentum)                                  \
    X(nesterov, Nesterov)                                  \
    X(adagrad, Adagrad)                                    \
    X(rmsprop, Rmsprop)                                    \
    X(rmsprop_momentum, RmspropMomentum)                   \
    X(rmsprop_centered, RmspropCentered)                   \
    X(rmsprop_centered_momentum, RmspropCenteredMomentum)  \
    X(adam, Adam)                                          \
    X(adam_amsgrad, AdamAmsgrad)                           \
    X(adamw, AdamW)                                        \
    X(adamw_amsgrad, AdamWAmsgrad)                         \
    X(lion, Lion)                                          \
    X(nadam, NAdam)                                        \
    X(nadamw, NAdamW)

namespace fastopt {

#ifndef __CUDACC_RTC__
using std::memcpy, std::pow, std::sqrt;
#endif
#ifdef FASTOPT_VECTORS
using vectors::sqrt;
#endif

// A derived rule inherits `hypers`, `options` and `row`; it overrides `apply`, and perhaps `states`. Only Decoupled, which
// derives from any rule, has a number more.

// The gradient's factor: -1 to maximize.
FASTOPT_DEVICE FASTOPT_INLINE inline double factor(double maximize) { return maximize != 0 ? -1.0 : 1.0; }

struct Sgd {
    static constexpr int states = 0;
    static constexpr int hypers = 1;   // lr
    static constexpr int options = 3;  // maximize, weight_decay, lr

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double, bool, double *out) {
        out[0] = factor(option[0]);
        out[1] = option[1];
        out[2] = option[2];
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, const void *, const T *hyper) {
        T lr = hyper[0];
        return p - lr * g;
    }
};

struct Momentum {
    static constexpr int states = 1;   // momentum_buffer
    static constexpr int hypers = 2;   // lr, momentum
    static constexpr int options = 5;  // maximize, weight_decay, lr, momentum, dampening

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double, bool first, double *out) {
        double damping = first ? 1.0 : 1.0 - option[4];  // of the gradient and its weight decay
        out[0] = damping * factor(option[0]);
        out[1] = damping * option[1];
        out[2] = option[2];
        out[3] = option[3];
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], momentum = hyper[1];
        T v = state[0] = momentum * state[0] + g;
        return p - lr * v;
    }
};

struct Nesterov : Momentum {
    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], momentum = hyper[1];
        T v = state[0] = momentum * state[0] + g;
        return p - lr * (g + momentum * v);
    }
};

struct Adagrad {
    static constexpr int states = 1;   // sum
    static constexpr int hypers = 2;   // lr, eps
    static constexpr int options = 5;  // maximize, weight_decay, lr, eps, lr_decay

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double step, bool, double *out) {
        out[0] = factor(option[0]);
        out[1] = option[1];
        out[2] = option[2] / (1.0 + (step - 1.0) * option[4]);
        out[3] = option[3];
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], eps = hyper[1];
        T s = state[0] = state[0] + g * g;
        return p - lr * g / (sqrt(s) + eps);
    }
};

// An exponential moving average; the new value has the weight `gain`. With old + gain * (value - old), infinity would give
// NaN.
template <typename T>
FASTOPT_DEVICE FASTOPT_INLINE inline T average(T old, T value, T gain) {
    return (1.0f - gain) * old + gain * value;
}

// The same of squares, multiplied in torch's order: g * g alone could overflow when the average does not.
template <typename T>
FASTOPT_DEVICE FASTOPT_INLINE inline T average_of_squares(T old, T g, T gain) {
    return (1.0f - gain) * old + gain * g * g;
}

struct Rmsprop {
    static constexpr int states = 1;   // square_avg
    static constexpr int hypers = 3;   // lr, gain, eps
    static constexpr int options = 5;  // maximize, weight_decay, lr, alpha, eps

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double, bool, double *out) {
        out[0] = factor(option[0]);
        out[1] = option[1];
        out[2] = option[2];
        out[3] = 1.0 - option[3];
        out[4] = option[4];
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], gain = hyper[1], eps = hyper[2];
        T s = state[0] = average_of_squares(state[0], g, gain);
        return p - lr * g / (sqrt(s) + eps);
    }
};

struct RmspropMomentum {
    static constexpr int states = 2;   // square_avg, momentum_buffer
    static constexpr int hypers = 4;   // lr, gain, eps, momentum
    static constexpr int options = 6;  // maximize, weight_decay, lr, alpha, eps, momentum

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double step, bool first, double *out) {
        Rmsprop::row(option, step, first, out);
        out[5] = option[5];
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], gain = hyper[1], eps = hyper[2], momentum = hyper[3];
        T s = state[0] = average_of_squares(state[0], g, gain);
        T v = state[1] = momentum * state[1] + g / (sqrt(s) + eps);
        return p - lr * v;
    }
};

// The standard deviation, from the averages of squares and of values; their difference is below 0 only by rounding.
template <typename T>
FASTOPT_DEVICE FASTOPT_INLINE inline T deviation(T s, T a) {
    T variance = s - a * a;
    return sqrt(variance < T{} ? T{} : variance);
}

struct RmspropCentered : Rmsprop {
    static constexpr int states = 2;  // square_avg, grad_avg

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], gain = hyper[1], eps = hyper[2];
        T s = state[0] = average_of_squares(state[0], g, gain);
        T a = state[1] = average(state[1], g, gain);
        return p - lr * g / (deviation(s, a) + eps);
    }
};

struct RmspropCenteredMomentum : RmspropMomentum {
    static constexpr int states = 3;  // square_avg, momentum_buffer, grad_avg

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], gain = hyper[1], eps = hyper[2], momentum = hyper[3];
        T s = state[0] = average_of_squares(state[0], g, gain);
        T a = state[2] = average(state[2], g, gain);
        T v = state[1] = momentum * state[1] + g / (deviation(s, a) + eps);
        return p - lr * v;
    }
};

// For Adam, `row` puts the bias corrections into lr and eps.
struct Adam {
    static constexpr int states = 2;   // exp_avg, exp_avg_sq
    static constexpr int hypers = 4;   // lr, gain1, gain2, eps
    static constexpr int options = 6;  // maximize, weight_decay, lr, beta1, beta2, eps

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double step, bool, double *out) {
        double root = sqrt(1.0 - pow(option[4], step));
        out[0] = factor(option[0]);
        out[1] = option[1];
        out[2] = option[2] * root / (1.0 - pow(option[3], step));
        out[3] = 1.0 - option[3];
        out[4] = 1.0 - option[4];
        out[5] = option[5] * root;
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], gain1 = hyper[1], gain2 = hyper[2], eps = hyper[3];
        T m = state[0] = average(state[0], g, gain1);
        T v = state[1] = average_of_squares(state[1], g, gain2);
        return p - lr * m / (sqrt(v) + eps);
    }
};

// torch's SparseAdam, which has the kernels of Adam and a row of its own: the root to which it adds eps is not corrected.
struct SparseAdam : Adam {
    static constexpr int options = 5;  // maximize, lr, beta1, beta2, eps

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double step, bool first, double *out) {
        const double of_adam[] = {option[0], 0.0, option[1], option[2], option[3], option[4]};
        Adam::row(of_adam, step, first, out);
        out[5] = option[4];
    }
};

struct AdamAmsgrad : Adam {
    static constexpr int states = 3;  // exp_avg, exp_avg_sq, max_exp_avg_sq

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], gain1 = hyper[1], gain2 = hyper[2], eps = hyper[3];
        T m = state[0] = average(state[0], g, gain1);
        T v = state[1] = average_of_squares(state[1], g, gain2);
        T w = state[2] = v < state[2] ? state[2] : v;  // NaN, too
        return p - lr * m / (sqrt(w) + eps);
    }
};

// A rule with AdamW's weight decay, which reduces the parameter itself, by a number `keep` after the rule's own.
template <class Rule>
struct Decoupled : Rule {
    static constexpr int hypers = Rule::hypers + 1;

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double step, bool first, double *out) {
        Rule::row(option, step, first, out);
        out[1] = 0.0;
        out[2 + Rule::hypers] = 1.0 - option[2] * option[1];
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T keep = hyper[Rule::hypers];
        return Rule::apply(keep * p, g, state, hyper);
    }
};

using AdamW = Decoupled<Adam>;
using AdamWAmsgrad = Decoupled<AdamAmsgrad>;

// 1 or -1, and 0 where it is 0; NaN stays NaN.
template <typename T>
FASTOPT_DEVICE FASTOPT_INLINE inline T sign(T x) {
    T one = T{} + 1.0f;
    return x > T{} ? one : (x < T{} ? -one : x);
}

struct Lion {
    static constexpr int states = 1;   // exp_avg
    static constexpr int hypers = 4;   // lr, gain1, gain2, keep
    static constexpr int options = 5;  // maximize, weight_decay, lr, beta1, beta2

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double, bool, double *out) {
        out[0] = factor(option[0]);
        out[1] = 0.0;
        out[2] = option[2];
        out[3] = 1.0 - option[3];
        out[4] = 1.0 - option[4];
        out[5] = 1.0 - option[2] * option[1];
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], gain1 = hyper[1], gain2 = hyper[2], keep = hyper[3];
        T c = average(state[0], g, gain1);
        state[0] = average(state[0], g, gain2);
        return keep * p - lr * sign(c);
    }
};

// NAdam's lr1 is the rate of the gradient, lr2 that of the average, both with the bias corrections, as in Adam.
struct NAdam {
    static constexpr int states = 2;   // exp_avg, exp_avg_sq
    static constexpr int hypers = 5;   // lr1, lr2, gain1, gain2, eps
    static constexpr int options = 8;  // maximize, weight_decay, lr, beta1, beta2, eps, momentum_decay, mu_product

    // The momentum of a step.
    FASTOPT_DEVICE FASTOPT_INLINE static double momentum(const double *option, double step) {
        return option[3] * (1.0 - 0.5 * pow(0.96, step * option[6]));
    }

    // The carried number, mu_product, after a step.
    FASTOPT_DEVICE FASTOPT_INLINE static double carry(const double *option, double step, double product) {
        return product * momentum(option, step);
    }

    FASTOPT_DEVICE FASTOPT_INLINE static void row(const double *option, double step, bool, double *out) {
        double root = sqrt(1.0 - pow(option[4], step)), lr = option[2] * root;
        double product = option[7], upcoming = momentum(option, step + 1.0);
        out[0] = factor(option[0]);
        out[1] = option[1];
        out[2] = lr * (1.0 - momentum(option, step)) / (1.0 - product);
        out[3] = lr * upcoming / (1.0 - product * upcoming);
        out[4] = 1.0 - option[3];
        out[5] = 1.0 - option[4];
        out[6] = option[5] * root;
    }

    template <typename T>
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
        T lr1 = hyper[0], lr2 = hyper[1], gain1 = hyper[2], gain2 = hyper[3], eps = hyper[4];
        T m = state[0] = average(state[0], g, gain1);
        T v = state[1] = average_of_squares(state[1], g, gain2);
        return p - (lr1 * g + lr2 * m) / (sqrt(v) + eps);
    }
};

using NAdamW = Decoupled<NAdam>;

// Stages: what may happen to an element beside the rule.

// Before the rule: a gradient, or the limit with its sign if it is larger; NaN stays NaN.
template <typename T>
FASTOPT_DEVICE FASTOPT_INLINE inline T clipped(T g, T limit) {
    return g > limit ? limit : (g < -limit ? -limit : g);
}

// Instead of AdaGrad's rule, where a row of a table has one number s: it grows by the mean of the row's squares, and the
// row's elements follow Sgd's rule at the rate that is returned.
template <typename T>
FASTOPT_DEVICE FASTOPT_INLINE inline T rate_of_row(T mean, T &s, const T *hyper) {
    T lr = hyper[0], eps = hyper[1];
    s = s + mean;
    return lr / (sqrt(s) + eps);
}

// After the rule: the moving average of a parameter.
template <typename T>
FASTOPT_DEVICE FASTOPT_INLINE inline T averaged(T e, T p, T gain) {
    return average(e, p, gain);
}

#ifndef __CUDACC_RTC__  // loops for the host; on a GPU each thread has its own elements

// A type that is not deduced, so that callers may pass nullptr, and pointers that are not const.
template <typename T>
struct Identity {
    using type = T;
};

// Updates elements from `begin` on in whole vectors of type Real, below n, and returns where it stopped.
template <class Rule, typename Real, typename T, typename Number>
FASTOPT_INLINE inline long long update_by(T *p, const T *g, T *const *states, long long begin, long long n,
                                          const Number *hyper) {
    constexpr int kept = Rule::states > 0 ? Rule::states : 1;  // there are no arrays of length 0
    constexpr long long width = sizeof(Real) / sizeof(T);
    Real hypers[Rule::hypers];
    for (int k = 0; k < Rule::hypers; ++k) hypers[k] = static_cast<T>(hyper[k]) - Real{};  // broadcast to all lanes
    long long i = begin;
    for (; i + width <= n; i += width) {
        Real x, gradient, state[kept];
        memcpy(&x, p + i, sizeof x);
        memcpy(&gradient, g + i, sizeof x);
        if constexpr (Rule::states > 0) {
            for (int k = 0; k < Rule::states; ++k) memcpy(state + k, states[k] + i, sizeof x);
        }
        x = Rule::apply(x, gradient, state, hypers);
        memcpy(p + i, &x, sizeof x);
        if constexpr (Rule::states > 0) {
            for (int k = 0; k < Rule::states; ++k) memcpy(states[k] + i, state + k, sizeof x);
        }
    }
    return i;
}

// Updates n elements of an array and of its states in place. `hyper` holds the rule's hyperparameters, of any type; they
// are converted to T. `states` points to the rule's state arrays, and may be null if it has none. No two arrays may
// overlap; any alignment will do.
template <class Rule, typename T, typename Number>
FASTOPT_INLINE inline void update(T *p, const typename Identity<T>::type *g, typename Identity<T>::type *const *states,
                                  long long n, const Number *hyper) {
    static_assert(std::is_floating_point<T>::value, "parameters must be float or double");
    long long done = update_by<Rule, typename vectors::Vector<T>::type>(p, g, states, 0, n, hyper);
    update_by<Rule, T>(p, g, states, done, n, hyper);
}

#endif

}  // namespace fastopt

#endif
