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

struct Sgd {
    static constexpr int states = 0;
    static constexpr int hypers = 1;  // lr

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *, const T *hyper) {
        T lr = hyper[0];
        return p - lr * g;
    }
};

struct Momentum {
    static constexpr int states = 1;  // momentum_buffer
    static constexpr int hypers = 2;  // lr, momentum

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], momentum = hyper[1];
        T v = state[0] = momentum * state[0] + g;
        return p - lr * v;
    }
};

struct Nesterov {
    static constexpr int states = 1;  // momentum_buffer
    static constexpr int hypers = 2;  // lr, momentum

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], momentum = hyper[1];
        T v = state[0] = momentum * state[0] + g;
        return p - lr * (g + momentum * v);
    }
};

struct Adagrad {
    static constexpr int states = 1;  // sum
    static constexpr int hypers = 2;  // lr, eps

    template <typename T>
    FASTOPT_DEVICE static T apply(T p, T g, T *state, const T *hyper) {
        T lr = hyper[0], eps = hyper[1];
        T s = state[0] = state[0] + g * g;
        return p - lr * g / (sqrt(s) + eps);
    }
};

}  // namespace fastopt

#endif
