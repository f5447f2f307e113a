// Launches on GPUs, through functions of the CUDA driver whose addresses Python has found. CuPy does the same for a step
// that is taken in Python.

#include "driver.h"
#include "exchange.h"
#include "step.h"
#include "tables.h"

namespace {

template <typename Function>
Function as(const void *address) {
    return reinterpret_cast<Function>(const_cast<void *>(address));
}

// While it lives, a context is the current one of this thread, which may have another, or none.
class Current {
public:
    Current(const fastopt_driver &driver, void *context) : driver_(driver) {
        void *now = nullptr;
        as<fastopt::GetContext>(driver.get_context)(&now);
        if (now != context) pushed_ = as<fastopt::PushContext>(driver.push_context)(context) == 0;
    }
    ~Current() {
        void *popped;
        if (pushed_) as<fastopt::PopContext>(driver_.pop_context)(&popped);
    }

private:
    const fastopt_driver &driver_;
    bool pushed_ = false;
};

// Asks for the stream on which work goes now; false if the library does not say.
bool ask_for_stream(fastopt_gpu &gpu) {
    if (gpu.exchange == nullptr) return true;
    const auto *exchange = static_cast<const fastopt::Exchange *>(gpu.exchange);
    return exchange->stream(fastopt::ON_CUDA, static_cast<int32_t>(gpu.number), &gpu.stream) == 0;
}

bool takes_launches(const fastopt_driver &driver, const fastopt_gpu &gpu) {
    Current current(driver, gpu.context);  // each device has its own default stream
    int status = fastopt::CAPTURING;
    int error = as<fastopt::IsCapturing>(driver.is_capturing)(gpu.stream, &status);
    return error == 0 && status == fastopt::NOT_CAPTURING;
}

void copy_rows(const fastopt_gpu_launch &launch, const double *hypers, int64_t count) {
    float *rounded = static_cast<float *>(launch.rows);
    double *exact = static_cast<double *>(launch.rows);
    for (int64_t i = 0; i < count; ++i) {
        if (launch.rounded != 0) {
            rounded[i] = static_cast<float>(hypers[i]);
        } else {
            exact[i] = hypers[i];
        }
    }
}

int submit(const fastopt_driver &driver, const fastopt_gpu_launch &launch) {
    Current current(driver, launch.gpu->context);
    void *arguments[] = {launch.argument};
    return as<fastopt::LaunchKernel>(driver.launch)(launch.kernel, static_cast<unsigned>(launch.blocks), 1, 1,
                                                    static_cast<unsigned>(launch.threads), 1, 1, 0,
                                                    launch.gpu->stream, arguments, nullptr);
}

}  // namespace

bool fastopt::gpus_ready(const fastopt_step &step) {
    for (int64_t i = 0; i < step.gpu_n; ++i) {
        if (!ask_for_stream(*step.gpus[i]) || !takes_launches(*step.driver, *step.gpus[i])) return false;
    }
    return true;
}

int64_t fastopt::launch_on_gpus(fastopt_step &step) {
    for (int64_t i = 0; i < step.gpu_count; ++i) {
        ++static_cast<fastopt_gpu_job *>(step.gpu_launches[i].argument)->count;
        copy_rows(step.gpu_launches[i], step.hypers, step.rows * FASTOPT_HYPERS);
        step.error = submit(*step.driver, step.gpu_launches[i]);
        if (step.error != 0) return i;
    }
    return step.gpu_count;
}
