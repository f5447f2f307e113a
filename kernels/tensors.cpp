// Reads the addresses of PyTorch tensors through the table of C functions that torch publishes (DLPack's exchange API),
// and checks that watched objects and addresses have not changed. It leaves anything unexpected to Python.

#include "exchange.h"
#include "interpreter.h"
#include "step.h"

#include <cstring>

namespace {

constexpr int64_t kLine = 64;           // of a cache, in bytes
constexpr int64_t kTensorBytes = 256;   // of c10::TensorImpl, about
constexpr int64_t kStorageBytes = 128;  // of c10::StorageImpl
constexpr int64_t kAhead = 8;           // tensors

// A tensor's description, which its object owns.
class Borrowed {
public:
    Borrowed(const void *exchange, PyObject *object) {
        held_ = static_cast<const fastopt::Exchange *>(exchange)->borrow(object, &tensor_) == 0;
        if (!held_) PyErr_Clear();
    }

    int64_t address() const { return reinterpret_cast<int64_t>(tensor_.data) + static_cast<int64_t>(tensor_.byte_offset); }

    int64_t bytes(const fastopt_shape &shape) const {
        int64_t count = shape.itemsize;
        for (int64_t axis = 0; axis < shape.ndim; ++axis) count *= shape.lengths[axis];
        return count;
    }

    // Strides must be equal along axes of length 1 too: they are the only sign of a view with a negative bit, the
    // imaginary part of a conjugate, whose strides are all even.
    bool is(const fastopt_shape &shape) const {
        size_t size = static_cast<size_t>(shape.ndim) * sizeof(int64_t);
        return held_ && tensor_.device_type == shape.device_type && tensor_.device_id == shape.device_id &&
               tensor_.ndim == shape.ndim && tensor_.code == shape.code && tensor_.bits == shape.itemsize * 8 &&
               tensor_.lanes == 1 &&
               (size == 0 || (std::memcmp(tensor_.shape, shape.lengths, size) == 0 &&
                              std::memcmp(tensor_.strides, shape.strides, size) == 0));
    }

private:
    fastopt::Tensor tensor_;
    bool held_;
};

// FETCH loads a line of memory into the cache, wherever it is. What fetches is inlined always: gcc takes a function that
// does nothing else for one that does nothing, and leaves its calls out.
#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(reinterpret_cast<const void *>(address))
#define FETCHING inline __attribute__((always_inline))
#else
#define FETCH(address) static_cast<void>(address)
#define FETCHING inline
#endif

// Fetches what reading the i-th tensor of a list will touch: its object in Python, and those in C++ that are behind it.
// Waiting for these is three quarters of the time that thousands of tensors take.
FETCHING void fetch_tensor(PyObject *list, const int64_t *behind, int64_t i) {
    if (i >= PyList_GET_SIZE(list)) return;
    FETCH(PyList_GET_ITEM(list, i));
    for (int64_t line = 0; line < kTensorBytes; line += kLine) FETCH(behind[2 * i] + line);
    for (int64_t line = 0; line < kStorageBytes; line += kLine) FETCH(behind[2 * i + 1] + line);
}

// Walks along a list of expected objects.
class Expected {
public:
    explicit Expected(void *list) : list_(static_cast<PyObject *>(list)) {}
    bool next(PyObject *object) { return at_ < PyList_GET_SIZE(list_) && PyList_GET_ITEM(list_, at_++) == object; }
    bool over() const { return at_ == PyList_GET_SIZE(list_); }

private:
    PyObject *list_;
    Py_ssize_t at_ = 0;
};

bool same_lists(const fastopt_watched &watched) {
    Expected expected(watched.listed);
    PyObject *dicts = static_cast<PyObject *>(watched.dicts);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(dicts); ++i) {
        PyObject *dict = PyList_GET_ITEM(dicts, i);
        if (!expected.next(dict)) return false;
        PyObject *list = PyDict_GetItem(dict, static_cast<PyObject *>(watched.key));
        if (!expected.next(list) || !PyList_Check(list)) return false;
        for (Py_ssize_t j = 0; j < PyList_GET_SIZE(list); ++j) {
            if (!expected.next(PyList_GET_ITEM(list, j))) return false;
        }
    }
    return expected.over();
}

bool same_entries(const fastopt_watched &watched) {
    Expected expected(watched.assigned);
    PyObject *dicts = static_cast<PyObject *>(watched.dicts), *name, *value;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(dicts); ++i) {
        for (Py_ssize_t at = 0; PyDict_Next(PyList_GET_ITEM(dicts, i), &at, &name, &value);) {
            if (!expected.next(name) || !expected.next(value)) return false;
        }
    }
    return expected.over();
}

bool same_states(const fastopt_watched &watched) {
    Expected expected(watched.stated);
    PyObject *nested = static_cast<PyObject *>(watched.nested), *key, *state, *name, *value;
    for (Py_ssize_t at = 0; PyDict_Next(nested, &at, &key, &state);) {
        if (!expected.next(key) || !expected.next(state)) return false;
        for (Py_ssize_t inner = 0; PyDict_Check(state) && PyDict_Next(state, &inner, &name, &value);) {
            if (!expected.next(name) || !expected.next(value)) return false;
        }
    }
    return expected.over();
}

// A reference of our own; may be null.
class Owned {
public:
    explicit Owned(PyObject *object) : object_(object) {}
    ~Owned() { Py_XDECREF(object_); }
    Owned(const Owned &) = delete;
    Owned &operator=(const Owned &) = delete;

    PyObject *get() const { return object_; }

private:
    PyObject *object_;
};

// What a descriptor returns for an object, a new reference; null if that raised.
PyObject *attribute(void *descriptor, PyObject *object) {
    PyObject *self = static_cast<PyObject *>(descriptor);
    PyObject *found = Py_TYPE(self)->tp_descr_get(self, object, reinterpret_cast<PyObject *>(Py_TYPE(object)));
    if (found == nullptr) PyErr_Clear();
    return found;
}

bool same_parts(const fastopt_watched &watched) {
    Expected expected(watched.parts);
    PyObject *distributed = static_cast<PyObject *>(watched.distributed);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(distributed); ++i) {
        Owned local(attribute(watched.local, PyList_GET_ITEM(distributed, i)));
        Owned spec(attribute(watched.spec, PyList_GET_ITEM(distributed, i)));
        if (!expected.next(local.get()) || !expected.next(spec.get())) return false;
    }
    return true;
}

bool same_tensors(const void *exchange, const fastopt_watched &watched) {
    PyObject *tensors = static_cast<PyObject *>(watched.tensors);
    for (int64_t i = 0; i < watched.n; ++i) {
        fetch_tensor(tensors, watched.behind, i + kAhead);
        Borrowed tensor(exchange, PyList_GET_ITEM(tensors, i));
        if (!tensor.is(watched.shapes[i]) || tensor.address() != watched.addresses[i]) return false;
    }
    return true;
}

// Whether no frozen tensor has a gradient.
bool all_frozen(const fastopt_gradients &wanted) {
    PyObject *frozen = static_cast<PyObject *>(wanted.frozen);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frozen); ++i) {
        Owned gradient(attribute(wanted.descriptor, PyList_GET_ITEM(frozen, i)));
        if (gradient.get() != Py_None) return false;
    }
    return true;
}

bool equal(PyObject *object, PyObject *other, const char *name) {
    Owned one(PyObject_GetAttrString(object, name)), another(PyObject_GetAttrString(other, name));
    int result = one.get() && another.get() ? PyObject_RichCompareBool(one.get(), another.get(), Py_EQ) : -1;
    if (result < 0) PyErr_Clear();
    return result == 1;
}

// The local part of a gradient that is distributed as this spec says, a new reference; else null. Its own spec is often
// the same object, as in FSDP2.
PyObject *local_part(const fastopt_watched &watched, PyObject *gradient, PyObject *expected) {
    if (Py_TYPE(gradient) != PyDescr_TYPE(watched.local)) return nullptr;
    Owned spec(attribute(watched.spec, gradient));
    bool alike = spec.get() == expected || (spec.get() && equal(spec.get(), expected, "mesh") &&
                                            equal(spec.get(), expected, "placements"));
    return alike ? attribute(watched.local, gradient) : nullptr;
}

// The address of a gradient; -1 if it is not as expected.
int64_t address_of(const void *exchange, const fastopt_watched &watched, const fastopt_gradients &wanted, int64_t i,
                   PyObject *gradient) {
    const fastopt_shape &shape = wanted.shapes[i];
    if (shape.ndim < 0) return -1;
    PyObject *spec = PyList_GET_ITEM(static_cast<PyObject *>(wanted.specs), i);
    Owned part(spec == Py_None ? Py_NewRef(gradient) : local_part(watched, gradient, spec));
    if (part.get() == nullptr || Py_TYPE(part.get()) != wanted.type) return -1;
    Borrowed tensor(exchange, part.get());
    if (!tensor.is(shape) || tensor.address() == 0) return -1;
    return fastopt::overlaps(*wanted.occupied, tensor.address(), tensor.address() + tensor.bytes(shape))
               ? -1
               : tensor.address();
}

bool same_counts(const fastopt_watched &watched) {
    size_t each = watched.rows == nullptr ? sizeof(double) : 2 * sizeof(double);
    size_t size = static_cast<size_t>(watched.counted) * each;
    return size == 0 || std::memcmp(watched.counts, watched.expected, size) == 0;
}

// The gradient of a tensor, from the list or, if there is a descriptor, into it; null if reading it raised.
PyObject *gradient_of(const fastopt_gradients &wanted, int64_t i) {
    PyObject *gradients = static_cast<PyObject *>(wanted.gradients);
    if (wanted.descriptor == nullptr) return PyList_GET_ITEM(gradients, i);
    PyObject *gradient = attribute(wanted.descriptor, PyList_GET_ITEM(static_cast<PyObject *>(wanted.tensors), i));
    if (gradient != nullptr) PyList_SetItem(gradients, i, gradient);
    return gradient;
}

// Reads the addresses of all gradients; returns how many are not as expected, or -2 if reading one raised.
int64_t read(const void *exchange, const fastopt_watched &watched, const fastopt_gradients &wanted) {
    int64_t unread = 0, none = 0;
    for (int64_t i = 0; i < wanted.n; ++i) {
        PyObject *gradient = gradient_of(wanted, i);
        if (gradient == nullptr) return -2;
        int64_t address = gradient == Py_None ? 0 : address_of(exchange, watched, wanted, i, gradient);
        wanted.addresses[i] = address;
        none += address == 0;
        unread += address == -1;
    }
    wanted.addresses[wanted.n] = none;
    return unread;
}

// Counts a step that was taken, and writes the numbers that its rule carries where they are watched.
void count(const fastopt_watched &watched, const fastopt_step &step) {
    int64_t n = watched.counted;
    for (int64_t i = 0; i < n; ++i) watched.expected[i] = watched.counts[i] += 1;
    for (int64_t i = 0; watched.rows != nullptr && i < n; ++i) {
        watched.expected[n + i] = watched.counts[n + i] = step.carried[watched.rows[i]];
    }
}

// Tells autograd which tensors are written; false if the call raised.
bool announce(void *increment, void *written) {
    fastopt::Gil gil;
    PyObject *result = PyObject_CallFunctionObjArgs(static_cast<PyObject *>(increment), written, nullptr);
    if (result == nullptr) PyErr_Clear();
    Py_XDECREF(result);
    return result != nullptr;
}

// Everything that needs Python ahead of a step. Returns what fastopt_read_tensors does; -4 if the caller must take the step.
int64_t check(const void *exchange, const fastopt_watched &watched, const fastopt_gradients &wanted,
              fastopt_step *step) {
    fastopt::Gil gil;
    if (!same_lists(watched)) return -1;
    if (!same_entries(watched)) return -3;
    if (!same_states(watched) || !same_parts(watched)) return -1;
    if (!same_tensors(exchange, watched) || !same_counts(watched)) return -1;
    if (wanted.descriptor != nullptr && !all_frozen(wanted)) return -1;
    int64_t unread = read(exchange, watched, wanted);
    if (step == nullptr || unread != 0 || wanted.addresses[wanted.n] != 0) return unread;
    return fastopt::write_rows(*step) && fastopt::gpus_ready(*step) ? -4 : unread;
}

}  // namespace

extern "C" void fastopt_release_tensors(const fastopt_gradients *gradients) {
    fastopt::Gil gil;
    for (int64_t i = 0; i < gradients->n; ++i) {
        PyList_SetItem(static_cast<PyObject *>(gradients->gradients), i, Py_NewRef(Py_None));
    }
}

// The launch runs without the GIL, and no Python follows it: if the interpreter is shutting down, a daemon thread ends
// where it asks for the GIL, and no destructor may be on its stack then.
extern "C" int64_t fastopt_read_tensors(const void *exchange, const fastopt_watched *watched,
                                        const fastopt_gradients *wanted, fastopt_step *step, void *increment,
                                        void *written, int32_t threads) {
    int64_t result = check(exchange, *watched, *wanted, step);
    if (result != -4) return result;
    if (!fastopt::goes_on(*step, wanted->addresses, threads)) return result;
    if (!announce(increment, written)) return -2;
    int32_t taken = fastopt::launch(*step, threads);
    if (taken != 1) return taken;  // 0: all gradients are read
    count(*watched, *step);
    return result;
}
