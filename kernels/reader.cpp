// Reads the addresses of arrays, many in one call: 0.2 us each, checks included, while Python takes 1 to 2 us. It handles
// ordinary arrays that are as expected, and leaves the others to Python, which decides and explains.

#include "interpreter.h"

#include <cstring>

namespace {

// An array's buffer; false if the array is not exactly of that type or does not export one.
class View {
public:
    View(PyObject *object, const void *type, int flags) {
        held_ = Py_TYPE(object) == type && PyObject_GetBuffer(object, &buffer_, flags | PyBUF_FORMAT) == 0;
        if (!held_) PyErr_Clear();
    }
    ~View() {
        if (held_) PyBuffer_Release(&buffer_);
    }
    View(const View &) = delete;
    View &operator=(const View &) = delete;

    explicit operator bool() const { return held_; }
    const Py_buffer *operator->() const { return &buffer_; }
    bool contiguous() const { return PyBuffer_IsContiguous(&buffer_, 'A') != 0; }
    int64_t address() const { return reinterpret_cast<int64_t>(buffer_.buf); }

    bool is(const fastopt_shape &shape) const {
        size_t bytes = static_cast<size_t>(shape.ndim) * sizeof(int64_t);
        return buffer_.ndim == shape.ndim && buffer_.format[0] == shape.code && buffer_.format[1] == '\0' &&
               address() % shape.itemsize == 0 &&
               (bytes == 0 || (std::memcmp(buffer_.shape, shape.lengths, bytes) == 0 &&
                               std::memcmp(buffer_.strides, shape.strides, bytes) == 0));
    }

private:
    Py_buffer buffer_;
    bool held_;
};

}  // namespace

extern "C" int64_t fastopt_read(void *list, const void *type, int64_t n, const fastopt_shape *shapes,
                                const fastopt_extents *occupied, int64_t *addresses) {
    fastopt::Gil gil;
    int64_t unread = 0, none = 0;
    for (int64_t i = 0; i < n; ++i) {
        PyObject *item = PyList_GetItem(static_cast<PyObject *>(list), i);
        addresses[i] = 0;
        if (item == Py_None) {
            ++none;
            continue;
        }
        View view(item, type, PyBUF_STRIDED_RO);
        bool fits = view && view.is(shapes[i]) && !fastopt::overlaps(*occupied, view.address(), view.address() + view->len);
        addresses[i] = fits ? view.address() : -1;
        unread += !fits;
    }
    addresses[n] = none;
    return unread;
}

extern "C" int64_t fastopt_read_alike(void *list, const void *type, int64_t n, int64_t *addresses, int64_t *elements) {
    fastopt::Gil gil;
    fastopt_shape first{};
    int64_t lengths[FASTOPT_NDIM], strides[FASTOPT_NDIM];
    for (int64_t i = 0; i < n; ++i) {
        // The second is the gradient, which is only read.
        View view(PyList_GetItem(static_cast<PyObject *>(list), i), type, i == 1 ? PyBUF_STRIDED_RO : PyBUF_STRIDED);
        if (!view || view->ndim > FASTOPT_NDIM || (view->format[0] != 'f' && view->format[0] != 'd')) return 0;
        if (i == 0) {
            size_t bytes = static_cast<size_t>(view->ndim) * sizeof(int64_t);
            if (bytes != 0) {
                std::memcpy(lengths, view->shape, bytes);
                std::memcpy(strides, view->strides, bytes);
            }
            first = fastopt_shape{lengths, strides, view->ndim, view->itemsize, view->format[0]};
            *elements = view->len / view->itemsize;
        }
        if (!view.is(first) || !view.contiguous()) return 0;
        addresses[i] = view.address();
        for (int64_t j = 0; j < i; ++j) {
            int64_t apart = addresses[i] < addresses[j] ? addresses[j] - addresses[i] : addresses[i] - addresses[j];
            if (apart < view->len) return 0;
        }
    }
    return first.itemsize;
}
