// rules.h: every update rule once, for CUDA C++ and host C++17. The same rules, by the same names and from the
// simplest to the hardest, stand in cpu.py for Numba; the tests hold both to one oracle.
//
// A rule takes a parameter, its gradient, its states and its hyperparameters, all of one type, returns the new
// parameter and writes the new states:
//
//     float v[] = {velocity[i]};
//     const float hypers[] = {0.1f, 0.9f};  // lr, momentum
//     p[i] = fastopt::Momentum::apply(p[i], g[i], v, hypers);
//     velocity[i] = v[0];
//
// Its hyperparameters in a step, with the gradient's factor and the weight decay before them, are computed by `row`, in
// double, from an optimizer's options and the count of a parameter's steps, from 1; as the registry does on the host.
//
// Learning rates of a schedule come from fastopt::schedule, in schedules.h, which is included here.

#ifndef FASTOPT_RULES_H
#define FASTOPT_RULES_H

#include "schedules.h"  // with FASTOPT_DEVICE and <cmath>

// X(name, functor) for every rule.
#define FASTOPT_RULES(X)  \
    X(sgd, Sgd)           \
    X(momentum, Momentum) \
    X(nesterov, Nesterov) \
    X(adagrad, Adagrad)

namespace fastopt {

#ifndef __CUDACC_RTC__
using std::sqrt;
#endif

// Turns ascent into descent.
FASTOPT_DEVICE inline double factor(double maximize) { return maximize != 0 ? -1.0 : 1.0; }

struct Sgd {
    static constexpr int states = 0;
    static constexpr int hypers = 1;   // lr
    static constexpr int options = 3;  // maximize, weight_decay, lr

    FASTOPT_DEVICE static void row(const double *option, double, bool, double *out) {
        out[0] = factor(option[0]);
        out[1] = option[1];
        out[2] = option[2];
    }

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *, const T *hyper) {
        T lr = hyper[0];
        return p - lr * g;
    }
};

struct Momentum {
    static constexpr int states = 1;   // momentum_buffer
    static constexpr int hypers = 2;   // lr, momentum
    static constexpr int options = 5;  // maximize, weight_decay, lr, momentum, dampening

    FASTOPT_DEVICE static void row(const double *option, double, bool first, double *out) {
        double gain = first ? 1.0 : 1.0 - option[4];  // as if the gradient, with its weight decay, were less
        out[0] = gain * factor(option[0]);
        out[1] = gain * option[1];
        out[2] = option[2];
        out[3] = option[3];
    }

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], momentum = hyper[1];
        T v = state[0] = momentum * state[0] + g;
        return p - lr * v;
    }
};

struct Nesterov {
    static constexpr int states = 1;   // momentum_buffer
    static constexpr int hypers = 2;   // lr, momentum
    static constexpr int options = 5;  // maximize, weight_decay, lr, momentum, dampening

    FASTOPT_DEVICE static void row(const double *option, double step, bool first, double *out) {
        Momentum::row(option, step, first, out);
    }

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], momentum = hyper[1];
        T v = state[0] = momentum * state[0] + g;
        return p - lr * (g + momentum * v);
    }
};

struct Adagrad {
    static constexpr int states = 1;   // sum
    static constexpr int hypers = 2;   // lr, eps
    static constexpr int options = 5;  // maximize, weight_decay, lr, eps, lr_decay

    FASTOPT_DEVICE static void row(const double *option, double step, bool, double *out) {
        out[0] = factor(option[0]);
        out[1] = option[1];
        out[2] = option[2] / (1.0 + (step - 1.0) * option[4]);
        out[3] = option[3];
    }

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], eps = hyper[1];
        T s = state[0] = state[0] + g * g;
        return p - lr * g / (sqrt(s) + eps);
    }
};

}  // namespace fastopt

#endif
