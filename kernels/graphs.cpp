// Lets the graph that a stream is capturing own what its kernels use, through a CUDA user object. The graph, its clones and
// its instantiations share the object, and its destructor runs when the last of them is gone. It runs on a thread of the
// driver's, which may call neither CUDA nor Python and must not wait, so it only adds a number to a list.

#include <atomic>
#include <cstdint>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "driver.h"
#include "fastopt.h"

namespace {

// What a graph owns, by the number under which Python holds it.
struct Owned {
    Owned *next;
    int64_t number;
};

std::atomic<Owned *> gone{nullptr};  // a list; without a destructor, since the driver may add to it until the very end

void list(Owned *owned) {
    owned->next = gone.load(std::memory_order_relaxed);
    while (!gone.compare_exchange_weak(owned->next, owned, std::memory_order_release, std::memory_order_relaxed)) {
    }
}

void FASTOPT_CUDA destroy(void *owned) { list(static_cast<Owned *>(owned)); }

// The driver, if somebody has loaded it. It is never closed.
class Driver {
public:
#if defined(_WIN32)
    explicit Driver(const char *library) : handle_(GetModuleHandleA(library)) {}
    void *find(const char *name) const { return reinterpret_cast<void *>(GetProcAddress(handle_, name)); }

private:
    HMODULE handle_;
#else
    explicit Driver(const char *library) : handle_(dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {}
    void *find(const char *name) const { return dlsym(handle_, name); }

private:
    void *handle_;
#endif

public:
    explicit operator bool() const { return handle_ != nullptr; }

    template <typename Function>
    Function get(const char *name) const {
        return reinterpret_cast<Function>(find(name));
    }
};

// The graph that a stream is capturing; null if there is none, or the driver cannot tell. The plain name is not used: what
// arguments that function takes, and whether it returns a graph, depends on the driver's version.
void *recorded(const Driver &driver, void *stream) {
    int status = 0, failed = 1;
    uint64_t id = 0;
    void *graph = nullptr;
    if (auto info = driver.get<fastopt::CaptureInfo2>("cuStreamGetCaptureInfo_v2")) {
        failed = info(stream, &status, &id, &graph, nullptr, nullptr);
    } else if (auto newer = driver.get<fastopt::CaptureInfo3>("cuStreamGetCaptureInfo_v3")) {
        failed = newer(stream, &status, &id, &graph, nullptr, nullptr, nullptr);
    }
    return failed == 0 && status == fastopt::CAPTURING ? graph : nullptr;
}

bool owns(const Driver &driver, void *stream, int64_t number) {
    auto create = driver.get<fastopt::CreateObject>("cuUserObjectCreate");
    auto retain = driver.get<fastopt::RetainObject>("cuGraphRetainUserObject");
    if (create == nullptr || retain == nullptr) return false;
    void *graph = recorded(driver, stream), *object = nullptr;
    if (graph == nullptr) return false;
    Owned *owned = new Owned{nullptr, number};
    if (create(&object, owned, destroy, 1, fastopt::NO_DESTRUCTOR_SYNC) != 0) {
        delete owned;
        return false;
    }
    return retain(graph, object, 1, fastopt::MOVE) == 0;  // on failure the object is leaked: releasing it would list it
}

}  // namespace

extern "C" int32_t fastopt_graph_owns(const char *library, void *stream, int64_t number) {
    Driver driver(library);
    return driver && owns(driver, stream, number);
}

extern "C" int64_t fastopt_graphs_gone(int64_t *numbers, int64_t room) {
    int64_t count = 0;
    for (Owned *owned = gone.exchange(nullptr, std::memory_order_acquire); owned != nullptr;) {
        Owned *next = owned->next;
        if (count < room) {
            numbers[count++] = owned->number;
            delete owned;
        } else {
            list(owned);
        }
        owned = next;
    }
    return count;
}
