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

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_PERMITTED = 800 };

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
thread_local bool in_destructor = false;

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

// What follows is the stand-in's own.

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
