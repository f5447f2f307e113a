// Reads the addresses of PyTorch tensors through the table of C functions that torch publishes (DLPack's exchange API),
// and checks that watched objects and addresses have not changed. It leaves anything unexpected to Python.

#include "exchange.h"
#include "interpreter.h"
#include "step.h"

#include <cstring>

namespace {

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

bool same_tensors(const void *exchange, const fastopt_watched &watched) {
    PyObject *tensors = static_cast<PyObject *>(watched.tensors);
    for (int64_t i = 0; i < watched.n; ++i) {
        Borrowed tensor(exchange, PyList_GET_ITEM(tensors, i));
        if (!tensor.is(watched.shapes[i]) || tensor.address() != watched.addresses[i]) return false;
    }
    return true;
}

// The gradient of a tensor, a new reference; null if reading it raised.
PyObject *gradient_of(const fastopt_gradients &wanted, PyObject *tensor) {
    PyObject *descriptor = static_cast<PyObject *>(wanted.descriptor);
    PyObject *gradient = Py_TYPE(descriptor)->tp_descr_get(descriptor, tensor, reinterpret_cast<PyObject *>(Py_TYPE(tensor)));
    if (gradient == nullptr) PyErr_Clear();
    return gradient;
}

// Writes the gradient of each tensor into the list; false if reading one raised.
bool collect(const fastopt_gradients &wanted) {
    for (int64_t i = 0; i < wanted.n; ++i) {
        PyObject *gradient = gradient_of(wanted, PyList_GET_ITEM(static_cast<PyObject *>(wanted.tensors), i));
        if (gradient == nullptr) return false;
        PyList_SetItem(static_cast<PyObject *>(wanted.gradients), i, gradient);
    }
    return true;
}

// Whether no frozen tensor has a gradient.
bool all_frozen(const fastopt_gradients &wanted) {
    PyObject *frozen = static_cast<PyObject *>(wanted.frozen);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frozen); ++i) {
        PyObject *gradient = gradient_of(wanted, PyList_GET_ITEM(frozen, i));
        Py_XDECREF(gradient);
        if (gradient != Py_None) return false;
    }
    return true;
}

// The address of a gradient; -1 if it is not as expected.
int64_t address_of(const void *exchange, PyObject *gradient, const fastopt_shape &shape,
                   const fastopt_gradients &wanted) {
    if (shape.ndim < 0 || Py_TYPE(gradient) != wanted.type) return -1;
    Borrowed tensor(exchange, gradient);
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

// Reads the addresses of all gradients; returns how many are not as expected.
int64_t read(const void *exchange, const fastopt_gradients &wanted) {
    int64_t unread = 0, none = 0;
    for (int64_t i = 0; i < wanted.n; ++i) {
        PyObject *gradient = PyList_GET_ITEM(static_cast<PyObject *>(wanted.gradients), i);
        int64_t address = gradient == Py_None ? 0 : address_of(exchange, gradient, wanted.shapes[i], wanted);
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
    PyObject *result = PyObject_CallFunctionObjArgs(static_cast<PyObject *>(increment), written, nullptr);
    if (result == nullptr) PyErr_Clear();
    Py_XDECREF(result);
    return result != nullptr;
}

// Everything that needs Python. Returns what fastopt_read_tensors does; -4 if the caller must take the step.
int64_t check(const void *exchange, const fastopt_watched &watched, const fastopt_gradients &wanted,
              fastopt_step *step, void *increment, void *written) {
    fastopt::Gil gil;
    if (!same_lists(watched)) return -1;
    if (!same_entries(watched)) return -3;
    if (!same_states(watched) || !same_tensors(exchange, watched) || !same_counts(watched)) return -1;
    if (wanted.descriptor != nullptr && !all_frozen(wanted)) return -1;
    if (wanted.descriptor != nullptr && !collect(wanted)) return -2;
    int64_t unread = read(exchange, wanted);
    if (step == nullptr || unread != 0 || wanted.addresses[wanted.n] != 0) return unread;
    if (!fastopt::write_rows(*step) || !fastopt::gpus_ready(*step)) return unread;
    return announce(increment, written) ? -4 : -2;
}

}  // namespace

// The launch runs without the GIL, and no Python follows it: if the interpreter is shutting down, a daemon thread ends
// where it asks for the GIL, and no destructor may be on its stack then.
extern "C" int64_t fastopt_read_tensors(const void *exchange, const fastopt_watched *watched,
                                        const fastopt_gradients *wanted, fastopt_step *step, void *increment,
                                        void *written, int32_t threads) {
    int64_t result = check(exchange, *watched, *wanted, step, increment, written);
    if (result != -4) return result;
    int32_t taken = fastopt::launch(*step, wanted->addresses, threads);
    if (taken != 1) return taken;  // 0: all gradients are read
    count(*watched, *step);
    return result;
}
