// libcuda_stand_in.cpp: the part of CUDA's driver that lets a graph own things, for `cuda_stand_in`: what streams record,
// user objects, and a thread of its own that calls their destructors, which may call neither the driver nor Python.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <map>
#include <mutex>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_PERMITTED = 800, CAPTURE_IMPLICIT = 906 };

using Launched = int (*)(void *function, void *argument, unsigned blocks, unsigned threads, int device, void *stream,
                         size_t size);

struct Object {
    void *pointer;
    void (*destroy)(void *);
    unsigned references;
};

struct Graph {
    std::vector<Object *> owned;  // one for each reference
};

std::mutex lock;
std::map<void *, Graph *> recording;  // by stream
std::vector<Object *> objects;
std::vector<Graph *> graphs;
std::map<void *, size_t> functions;  // with the size of the argument
Launched launched = nullptr;         // puts a launch on a stream
thread_local bool in_destructor = false;
thread_local void *own = nullptr;  // the context of the thread's device: its number, from 1; null until one is chosen
thread_local std::vector<void *> contexts;

template <typename T>
bool known(const std::vector<T *> &all, const void *one) {
    for (T *each : all) {
        if (each == one) return true;
    }
    return false;
}

int refused_in_destructor() {
    if (in_destructor) {
        std::fprintf(stderr, "a destructor of a user object has called the driver\n");
        std::abort();
    }
    return SUCCESS;
}

// Gives up one reference; the destructor comes with the last one.
void give_up(Object *object) {
    if (--object->references > 0) return;
    auto done = std::async(std::launch::async, [object] {
        in_destructor = true;
        object->destroy(object->pointer);
    });
    // Whoever is here holds Python's lock.
    if (done.wait_for(std::chrono::seconds(10)) != std::future_status::ready) {
        std::fprintf(stderr, "a destructor of a user object waits, perhaps for Python\n");
        std::abort();
    }
}

}  // namespace

extern "C" {

int cuStreamGetCaptureInfo_v2(void *stream, int *status, uint64_t *id, void **graph, const void **, size_t *) {
    refused_in_destructor();
    std::lock_guard<std::mutex> held(lock);
    auto found = recording.find(stream);
    *status = found != recording.end();
    if (id != nullptr) *id = 1;
    if (graph != nullptr && *status) *graph = found->second;
    return SUCCESS;
}

int cuUserObjectCreate(void **object, void *pointer, void (*destroy)(void *), unsigned references, unsigned flags) {
    refused_in_destructor();
    if (object == nullptr || destroy == nullptr || references == 0 || flags != 1) return INVALID_VALUE;
    std::lock_guard<std::mutex> held(lock);
    objects.push_back(new Object{pointer, destroy, references});
    *object = objects.back();
    return SUCCESS;
}

int cuGraphRetainUserObject(void *graph, void *object, unsigned count, unsigned flags) {
    refused_in_destructor();
    std::lock_guard<std::mutex> held(lock);
    if (!known(graphs, graph) || !known(objects, object) || count == 0 || flags > 1) return INVALID_VALUE;
    Object *owned = static_cast<Object *>(object);
    if (flags == 0) owned->references += count;  // 1 moves the caller's own
    for (unsigned i = 0; i < count; ++i) static_cast<Graph *>(graph)->owned.push_back(owned);
    return SUCCESS;
}

// What follows is called without Python's lock, which `launched` takes.

int cuCtxGetCurrent(void **context) {
    *context = contexts.empty() ? own : contexts.back();
    return SUCCESS;
}

int cuCtxPushCurrent_v2(void *context) {
    if (context == nullptr) return INVALID_CONTEXT;
    contexts.push_back(context);
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
    if (contexts.empty()) return INVALID_CONTEXT;
    *context = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}

int cuStreamIsCapturing(void *stream, int *status) {
    void *context;
    cuCtxGetCurrent(&context);
    if (context == nullptr) return INVALID_CONTEXT;
    std::lock_guard<std::mutex> held(lock);
    if (stream == nullptr && !recording.empty()) return CAPTURE_IMPLICIT;
    *status = recording.count(stream) != 0;
    return SUCCESS;
}

int cuLaunchKernel(void *function, unsigned blocks, unsigned blocks_y, unsigned blocks_z, unsigned threads,
                   unsigned threads_y, unsigned threads_z, unsigned shared, void *stream, void **arguments, void **extra) {
    void *context;
    cuCtxGetCurrent(&context);
    if (context == nullptr) return INVALID_CONTEXT;
    size_t size;
    {
        std::lock_guard<std::mutex> held(lock);
        if (functions.count(function) == 0) return INVALID_HANDLE;
        size = functions[function];
    }
    if (blocks == 0 || blocks >= 1u << 31 || threads == 0 || threads > 1024 || blocks_y != 1 || blocks_z != 1 ||
        threads_y != 1 || threads_z != 1 || shared != 0 || extra != nullptr) {
        return INVALID_VALUE;
    }
    int device = static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1;
    return launched(function, arguments[0], blocks, threads, device, stream, size);
}

// What follows is the stand-in's own.

void stand_in_launches_by(Launched function) { launched = function; }

void *stand_in_function(size_t size) {
    std::lock_guard<std::mutex> held(lock);
    void *function = new char;
    functions[function] = size;
    return function;
}

// The thread's device, as cudaSetDevice chooses it.
void stand_in_set_device(int device) { own = reinterpret_cast<void *>(static_cast<intptr_t>(device) + 1); }

void stand_in_begin(void *stream) {
    std::lock_guard<std::mutex> held(lock);
    graphs.push_back(new Graph{});
    recording[stream] = graphs.back();
}

void *stand_in_end(void *stream) {
    std::lock_guard<std::mutex> held(lock);
    Graph *graph = recording[stream];
    recording.erase(stream);
    return graph;
}

void stand_in_destroy(void *graph) {
    for (Object *object : static_cast<Graph *>(graph)->owned) give_up(object);
    std::lock_guard<std::mutex> held(lock);
    static_cast<Graph *>(graph)->owned.clear();
}

// As the driver does with what is left when the process ends.
void stand_in_destroy_at_exit(void *graph) {
    static void *left = nullptr;
    left = graph;
    std::atexit([] {
        stand_in_destroy(left);
        std::puts("destroyed");
    });
}
}
