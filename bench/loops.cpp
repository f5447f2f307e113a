// Training loops that are not Python's, as far as their updates go: by the header, and through a pointer. The numbers of
// each step stand in a row.

#include "fastopt.h"
#include "rules.h"

struct Tensor {
    float *param;
    const float *grad;
    float *states[FASTOPT_STATES];
    int64_t n;
};

#define BY_HEADER(name, Rule)                                                                                   \
    extern "C" void header_##name(const Tensor *tensors, int64_t count, const double *hyper, int64_t hypers,    \
                                  int64_t steps) {                                                              \
        for (int64_t step = 0; step < steps; ++step, hyper += hypers) {                                         \
            for (const Tensor *tensor = tensors; tensor < tensors + count; ++tensor) {                          \
                fastopt::update<fastopt::Rule>(tensor->param, tensor->grad, tensor->states, tensor->n, hyper);  \
            }                                                                                                   \
        }                                                                                                       \
    }
FASTOPT_RULES(BY_HEADER)

extern "C" void by_pointer(fastopt_update update, const Tensor *tensors, int64_t count, const double *hyper,
                           int64_t hypers, int64_t steps) {
    for (int64_t step = 0; step < steps; ++step, hyper += hypers) {
        for (const Tensor *tensor = tensors; tensor < tensors + count; ++tensor) {
            void *const *states = reinterpret_cast<void *const *>(tensor->states);
            update(tensor->param, tensor->grad, states, tensor->n, hyper);
        }
    }
}
