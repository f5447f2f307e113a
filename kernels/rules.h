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
// Over whole arrays, on the host, in vectors:
//
//     float *states[] = {velocity};
//     const double hyper[] = {0.1, 0.9};
//     fastopt::update<fastopt::Momentum>(p, g, states, n, hyper);
//
// Its hyperparameters in a step, with the gradient's factor and the weight decay before them, are computed by `row`, in
// double, from an optimizer's options and the count of a parameter's steps, from 1; as the registry does on the host.
//
// Learning rates of a schedule come from fastopt::schedule, in schedules.h, which is included here.

#ifndef FASTOPT_RULES_H
#define FASTOPT_RULES_H

#include "schedules.h"  // with FASTOPT_DEVICE and <cmath>
#include "vectors.h"

#ifndef __CUDACC_RTC__
#include <cstring>
#include <type_traits>
#endif

// X(name, functor) for every rule.
#define FASTOPT_RULES(X)  \
    X(sgd, Sgd)           \
    X(momentum, Momentum) \
    X(nesterov, Nesterov) \
    X(adagrad, Adagrad)

namespace fastopt {

#ifndef __CUDACC_RTC__
using std::memcpy, std::sqrt;
#endif
#ifdef FASTOPT_VECTORS
using vectors::sqrt;
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
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, const void *, const T *hyper) {
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
    FASTOPT_DEVICE FASTOPT_INLINE static T apply(T p, T g, T *state, const T *hyper) {
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

    FASTOPT_DEVICE static void row(const double *option, double step, bool, double *out) {
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

#ifndef __CUDACC_RTC__  // where each thread has elements of its own

// A type that is not deduced: nullptr and arrays that are not const will do for what is declared otherwise.
template <typename T>
struct Identity {
    using type = T;
};

// Updates the elements from `begin` on by vectors of type Real, as long as these fit in below n, and returns where it
// stopped.
template <class Rule, typename Real, typename T, typename Number>
FASTOPT_INLINE inline long long update_by(T *p, const T *g, T *const *states, long long begin, long long n,
                                          const Number *hyper) {
    constexpr int kept = Rule::states > 0 ? Rule::states : 1;  // there are no arrays of length 0
    constexpr long long width = sizeof(Real) / sizeof(T);
    Real hypers[Rule::hypers];
    for (int k = 0; k < Rule::hypers; ++k) hypers[k] = static_cast<T>(hyper[k]) - Real{};  // in every place of it
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
// are converted to T. `states` points to as many arrays as the rule has, and may be null where it has none. No two arrays
// may overlap; any alignment will do.
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
