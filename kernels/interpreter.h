// Shared by the two readers: Python's interpreter lock, and ranges of addresses.

#ifndef FASTOPT_INTERPRETER_H
#define FASTOPT_INTERPRETER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>

#include "fastopt.h"

namespace fastopt {

class Gil {
public:
    Gil() : state_(PyGILState_Ensure()) {}  // cffi has released it
    ~Gil() { PyGILState_Release(state_); }

private:
    PyGILState_STATE state_;
};

// Whether a range of addresses may overlap an occupied one.
inline bool overlaps(const fastopt_extents &occupied, int64_t start, int64_t end) {
    const int64_t *last = occupied.ends + occupied.count;
    const int64_t *found = std::upper_bound(occupied.ends, last, start);  // the first that reaches beyond the start
    return found != last && start < end && occupied.starts[found - occupied.ends] < end;
}

static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "fastopt needs a 64-bit Python");

}  // namespace fastopt

#endif
