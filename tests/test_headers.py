"""The headers, compiled by g++ through cffi.

Rules are compared with the oracle, their rows with the registry's, schedules with Numba's, structs and lists
with the tables.
"""

import ctypes
import hashlib
import importlib.util
import itertools
import os
import platform
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import cffi
import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import cpu, extension, tables
from instructions import any_arithmetic, operations, packed
from loop_cases import OPTIONS, numbers_of, options_of, states_of
from once import once
from pairs import usually
from rule_cases import OF_SQUARES
from schedule_cases import CASES
from stage_cases import rarely
from tolerances import ONE_STEP, TRAJECTORY, assert_close

from fastopt import rules
from fastopt.schedules import Product

KERNELS = Path(cpu.__file__).parent
STRUCTS = {
    "fastopt_tensor": tables.TENSOR,
    "fastopt_layout": tables.LAYOUT,
    "fastopt_storage": tables.STORAGE,
    "fastopt_chunk": tables.CHUNK,
    "fastopt_job": tables.JOB,
    "fastopt_gpu_job": tables.GPU_JOB,
    "fastopt_gpu_norm": tables.GPU_NORM,
    "fastopt_gpu_total": tables.GPU_TOTAL,
    "fastopt_gpu_check": tables.GPU_CHECK,
    "fastopt_gpu_rows": tables.GPU_ROWS,
    "fastopt_row_inputs": tables.ROW_INPUTS,
    "fastopt_clock": tables.CLOCK,
    "fastopt_message": tables.MESSAGE,
    "fastopt_shape": tables.SHAPE,
    "fastopt_extents": tables.EXTENTS,
    "fastopt_watched": tables.WATCHED,
    "fastopt_gradients": tables.GRADIENTS,
    "fastopt_launch": tables.LAUNCH,
    "fastopt_clip": tables.CLIP,
    "fastopt_driver": tables.DRIVER,
    "fastopt_gpu": tables.GPU,
    "fastopt_gpu_launch": tables.GPU_LAUNCH,
    "fastopt_step": tables.STEP,
}

SOURCE = """
#include "fastopt.h"
#include "rows.h"

template <class Rule, typename T>
static void single(T *p, const T *g, T *const *states, int64_t n, const double *hyper) {
    T hypers[Rule::hypers], state[Rule::states + 1];
    for (int k = 0; k < Rule::hypers; ++k) hypers[k] = static_cast<T>(hyper[k]);
    for (int64_t i = 0; i < n; ++i) {
        for (int k = 0; k < Rule::states; ++k) state[k] = states[k][i];
        p[i] = Rule::apply(p[i], g[i], state, hypers);
        for (int k = 0; k < Rule::states; ++k) states[k][i] = state[k];
    }
}

template <class Rule, typename T>
static void update(T *p, const T *g, T *const *states, int64_t n, const double *hyper) {
    fastopt::update<Rule>(p, g, Rule::states > 0 ? states : nullptr, n, hyper);
}

#define LOOP(loop, name, Rule, type, T)                                                                   \\
    static void loop##_##name##_##type(T *p, T *g, T **states, int64_t n, const double *hyper) {          \\
        loop<fastopt::Rule>(p, g, states, n, hyper);                                                      \\
    }
#define DEFINE(name, Rule)                                                                                \\
    LOOP(single, name, Rule, float32, float)                                                              \\
    LOOP(single, name, Rule, float64, double)                                                             \\
    LOOP(update, name, Rule, float32, float)                                                              \\
    LOOP(update, name, Rule, float64, double)                                                             \\
    static void name##_row(const double *option, double step, int first, double *out) {                   \\
        fastopt::Rule::row(option, step, first != 0, out);                                                \\
    }                                                                                                     \\
    static double name##_carried(double *option, double step, double carried) {                           \\
        fastopt::carried_after<fastopt::Rule>(option, step, &carried, 0);                                       \\
        return carried;                                                                                   \\
    }                                                                                                     \\
    static int name##_states(void) { return fastopt::Rule::states; }                                      \\
    static int name##_hypers(void) { return fastopt::Rule::hypers; }                                      \\
    static int name##_options(void) { return fastopt::Rule::options; }
FASTOPT_RULES(DEFINE)

// Clips a vector of gradients, or one; and takes a parameter into its average.
template <typename Real, typename T>
static void stages(T *g, const T *p, T *e, T limit, T gain) {
    Real gradient, param, mean;
    memcpy(&gradient, g, sizeof gradient);
    memcpy(&param, p, sizeof param);
    memcpy(&mean, e, sizeof mean);
    gradient = fastopt::clipped(gradient, limit - Real{});
    mean = fastopt::averaged(mean, param, gain - Real{});
    memcpy(g, &gradient, sizeof gradient);
    memcpy(e, &mean, sizeof mean);
}
#define STAGES(dtype, T)                                                                                  \\
    static void stages_##dtype(T *g, T *p, T *e, int64_t n, double limit, double gain) {                  \\
        using Vector = fastopt::vectors::Vector<T>::type;                                                 \\
        int64_t i = 0, width = sizeof(Vector) / sizeof(T);                                                \\
        for (; i + width <= n; i += width) stages<Vector, T>(g + i, p + i, e + i, limit, gain);           \\
        for (; i < n; ++i) stages<T, T>(g + i, p + i, e + i, limit, gain);                                \\
    }
STAGES(float32, float)
STAGES(float64, double)

static void evaluate(const double *record, const double *steps, double *out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = fastopt::schedule(record, steps[i]);
}

#define NAME(name, enumerator) #name " "
static const char *rules(void) { return FASTOPT_RULES(NAME); }
static const char *schedules(void) { return FASTOPT_SCHEDULES(NAME); }
static const char *shapes(void) { return FASTOPT_SHAPES(NAME); }
static const char *modes(void) { return FASTOPT_MODES(NAME); }
"""

FUNCTORS = dict(re.findall(r"X\((\w+), (\w+)\)", (KERNELS / "rules.h").read_text(encoding="utf-8")))
FUNCTORS = {name: functor for name, functor in FUNCTORS.items() if name in rules.RULES}

LISTS = {
    "rules": tuple(rules.RULES),
    "schedules": tables.KINDS,
    "shapes": tables.SHAPES,
    "modes": tables.MODES,
}


TYPES = {"float32": "float", "float64": "double"}
LOOPS = ("single", "update")  # by elements, in a loop of one's own, and over whole arrays

# The widest vectors that this processor has; the narrowest, with other loop ends; and an unknown processor, whose
# square roots are computed one by one, which is tested by itself.
TARGETS = {"native": ["-march=native"], "narrow": [], "unknown": ["-U__SSE2__"]}


@pytest.fixture(scope="module", params=["native", *map(rarely, ("narrow", "unknown"))])
def compiled(request):
    """Rules, schedules and lists of the headers as C functions."""
    folder = once(f"headers-{request.param}", partial(compile_headers, request.param))
    (path,) = folder.glob("*.so")
    spec = importlib.util.spec_from_file_location(f"_headers_{request.param}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_headers(target, folder):
    """Compile them into a module of Python's, for a target."""
    ffi = cffi.FFI()
    declarations = [f"const char *{name}(void);" for name in LISTS]
    declarations.append("void evaluate(const double *record, const double *steps, double *out, int64_t n);")
    for name in rules.RULES:
        declarations += [f"int {name}_{count}(void);" for count in ("states", "hypers", "options")]
        declarations.append(f"void {name}_row(const double *option, double step, int first, double *out);")
        declarations.append(f"double {name}_carried(double *option, double step, double carried);")
        for dtype, c in TYPES.items():
            arguments = f"{c} *p, {c} *g, {c} **states, int64_t n, const double *hyper"
            declarations += [f"void {loop}_{name}_{dtype}({arguments});" for loop in LOOPS]
    for dtype, c in TYPES.items():
        declarations.append(f"void stages_{dtype}({c} *g, {c} *p, {c} *e, int64_t n, double limit, double gain);")
    ffi.cdef("\n".join(declarations))
    ffi.set_source(
        f"_headers_{target}",
        SOURCE,
        source_extension=".cpp",
        include_dirs=[str(KERNELS)],
        extra_compile_args=["-std=c++17", "-O2", "-ffp-contract=off", *TARGETS[target]],
    )
    ffi.compile(tmpdir=str(folder))


def array(module, values):
    """A NumPy array as the C pointer that a function takes."""
    return module.ffi.from_buffer(f"{TYPES[values.dtype.name]} *", values)


def run(module, loop, name, p, g, states, step=2):
    """Update arrays by a loop, in a step of that count."""
    pointers = module.ffi.new(f"{TYPES[p.dtype.name]} *[]", [array(module, state) for state in states])
    hyper = np.array(numbers_of(name, step))
    function = getattr(module.lib, f"{loop}_{name}_{p.dtype.name}")
    function(array(module, p), array(module, g), pointers, p.size, array(module, hyper))


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_the_headers(compiled, name):
    """A macro lists what a table or the registry does, in the same order."""
    assert tuple(compiled.ffi.string(getattr(compiled.lib, name)()).decode().split()) == LISTS[name]


@pytest.mark.parametrize("dtype", TYPES)
def test_stages(compiled, dtype):
    """Clipping by value and averages, of vectors and of single numbers: NaN stays NaN, and an infinity is clipped."""
    rng = np.random.default_rng(1)
    for n in (*range(36), 1000):
        g, p, e = rng.standard_normal((3, n)).astype(dtype)
        g[::7], g[3::7], g[5::7] = np.nan, -np.inf, 0.75
        want = np.clip(g, -0.75, 0.75), (1 - 0.125) * e.astype(np.float64) + 0.125 * p.astype(np.float64)
        getattr(compiled.lib, f"stages_{dtype}")(*(array(compiled, given) for given in (g, p, e)), n, 0.75, 0.125)
        np.testing.assert_array_equal(g, want[0])
        assert_close(e, want[1], ONE_STEP)


def test_counts(compiled):
    """Each functor's counts are the registry's."""
    for name, rule in rules.RULES.items():
        assert getattr(compiled.lib, f"{name}_states")() == len(rule.states)
        assert getattr(compiled.lib, f"{name}_hypers")() == len(rule.hypers)
        numbers = list(rule.numbers(OPTIONS))
        assert getattr(compiled.lib, f"{name}_options")() == len(numbers) <= tables.OPTIONS


# The usual betas, zeros, and some so large that bias corrections are far from 1.
BETAS = [(0.9, 0.999), (0.0, 0.0), (0.0, 1.0 - 2.0**-30), (1.0 - 2.0**-30, 0.5), (1.0 - 2.0**-53, 1.0 - 2.0**-53)]


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", rules.RULES)
def test_rows_are_the_registrys(compiled, name, betas):
    """To the bit, at any step, and no number beyond them; numbers of options are in the registry's order."""
    rule = rules.RULES[name]
    options = {option: 0.1 + 0.7 * i for i, option in enumerate(rule.options)} | {"betas": betas}
    for maximize, first, step in itertools.product((False, True), (False, True), (1, 2, 3, 10**6 + 1, 2**31, 2**53)):
        options["maximize"] = maximize
        row = rule.row(options, step, first)
        assert len(row) == 2 + len(rule.hypers)
        numbers = [number for _, number in rule.numbers(options)]
        given = np.full(tables.OPTIONS, np.nan)
        given[: len(numbers)] = numbers
        got = np.full(tables.HYPERS, -1.0)
        getattr(compiled.lib, f"{name}_row")(array(compiled, given), step, first, array(compiled, got))
        assert got.tolist() == [*row, *[-1.0] * (tables.HYPERS - len(row))]


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", rules.RULES)
def test_carried_numbers_are_the_registrys(compiled, name, betas):
    """To the bit; the new one becomes the last option. Where the registry has none, the functor has none."""
    rule = rules.RULES[name]
    options = {option: 0.1 + 0.07 * i for i, option in enumerate(rule.options)} | {"betas": betas}
    for step, before in itertools.product((1, 2, 10**6 + 1, 2**53), (1.0, 0.3)):
        numbers = [number for _, number in rule.numbers(options)]
        given = np.array(numbers, np.float64)
        got = getattr(compiled.lib, f"{name}_carried")(array(compiled, given), step, before)
        assert got == rule.carried_after(options, step, before)
        assert given.tolist() == (numbers if rule.carried is None else [*numbers[:-1], got])
        assert rule.carried is None or got != before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", rules.RULES)
@pytest.mark.parametrize("loop", LOOPS)
def test_rules_against_the_oracle(compiled, loop, name, dtype):
    """Five steps of 37 elements."""
    rng = np.random.default_rng(4)
    p, states = rng.standard_normal(37).astype(dtype), states_of(name, rng, 37, dtype)
    want, want_states = p.astype(np.float64), tuple(state.astype(np.float64) for state in states)
    for step in range(1, 6):
        g = rng.standard_normal(37).astype(dtype)
        run(compiled, loop, name, p, g, states, step)
        want, want_states = oracle.RULES[name](want, g, want_states, step, options_of(name))
    assert_close(p, want, TRAJECTORY)
    for state, expected in zip(states, want_states, strict=True):
        assert_close(state, expected, TRAJECTORY)


def misplaced(values, offset):
    """A copy that begins `offset` bytes after an aligned address."""
    memory = np.empty(values.nbytes + offset, np.uint8)[offset:].view(values.dtype)
    memory[...] = values
    return memory


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", rules.RULES)
def test_arrays_are_updated_as_their_elements(compiled, name, dtype):
    """To the bit, at every length around a vector's, wherever arrays begin, to the byte, and not an element further."""
    rng = np.random.default_rng(5)
    for n in [*range(36), 63, 64, 65, 1000]:
        start = n % 5
        arrays = [*rng.standard_normal((2, n + 7)).astype(dtype), *states_of(name, rng, n + 7, dtype)]
        for values in arrays:
            values[start + n // 2] = np.nan if n % 2 else np.inf
        results = []
        for loop in LOOPS:
            own = [misplaced(values, n % 7 if loop == "update" else 0) for values in arrays]
            inside = [values[start : start + n] for values in own]
            run(compiled, loop, name, inside[0], inside[1], inside[2:])
            results.append(own)
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(results[1][1], arrays[1])
        for got, values in zip(results[1], arrays, strict=True):
            np.testing.assert_array_equal(
                np.delete(got, np.s_[start : start + n]), np.delete(values, np.s_[start : start + n])
            )


def test_a_maximum_with_nan_is_nan(compiled):
    """A NaN in a gradient or in the average of squares, which no comparison may drop."""
    for name, dtype, loop in itertools.product(("adam_amsgrad", "adamw_amsgrad"), TYPES, LOOPS):
        g = np.full(40, 0.5, dtype)
        p, m, v, w = (np.ones(40, dtype) for _ in range(4))
        g[7], v[20] = np.nan, np.nan
        run(compiled, loop, name, p, g, [m, v, w])
        for values in (p, v, w):
            assert np.flatnonzero(np.isnan(values)).tolist() == [7, 20]


@pytest.mark.parametrize("target", usually(["native"], TARGETS))
def test_square_roots(target, tmp_path):
    """Of whole vectors, to the bit, whatever the processor has for them."""
    source = """
        #include "rules.h"
        template <typename T> static void roots(T *x) {
            typename fastopt::vectors::Vector<T>::type vector;
            for (int i = 0; i < 16; i += sizeof vector / sizeof *x) {
                memcpy(&vector, x + i, sizeof vector);
                vector = fastopt::vectors::sqrt(vector);
                memcpy(x + i, &vector, sizeof vector);
            }
        }
        extern "C" void roots_float32(float *x) { roots(x); }
        extern "C" void roots_float64(double *x) { roots(x); }
    """
    command = [shutil.which("g++"), "-std=c++17", "-O2", *TARGETS[target], "-I", str(KERNELS), "-shared", "-fPIC"]
    library = tmp_path / "roots.so"
    subprocess.run([*command, "-x", "c++", "-o", library, "-"], input=source, text=True, check=True)
    for dtype in TYPES:
        x = np.arange(16, dtype=dtype)
        want = np.sqrt(x)
        getattr(ctypes.CDLL(library), f"roots_{dtype}")(ctypes.c_void_p(x.ctypes.data))
        np.testing.assert_array_equal(x, want)


CENTERED = ["rmsprop_centered", "rmsprop_centered_momentum"]


@pytest.mark.parametrize("name", CENTERED)
def test_a_variance_below_zero_is_zero(compiled, name):
    """With averages that no gradients produce, eps is the divisor. A gradient that is NaN gives NaN."""
    options = options_of(name)
    for dtype, loop in itertools.product(TYPES, LOOPS):
        g = np.linspace(-3, 3, 37).astype(dtype)
        p = np.zeros(37, dtype)
        states = [np.zeros(37, dtype) for _ in rules.RULES[name].states]
        states[0][...], states[-1][...] = 0.5 * g * g, g
        want = -options["lr"] * g.astype(np.float64) / options["eps"]
        g[9] = np.nan
        run(compiled, loop, name, p, g, states)
        assert np.isnan(p[9])
        assert_close(np.delete(p, 9), np.delete(want, 9), ONE_STEP)


@pytest.mark.parametrize("name", CENTERED)
def test_averages_of_one_gradient_over_and_over(compiled, name):
    """In float32 rounding makes their difference negative, whose root would be NaN."""
    for loop in LOOPS:
        g = np.linspace(-3, 3, 37, dtype=np.float32)
        p = np.zeros(37, np.float32)
        states = [np.zeros(37, np.float32) for _ in rules.RULES[name].states]
        below = False
        for _ in range(2000):
            run(compiled, loop, name, p, g, states)
            below |= bool((states[0] - states[-1] * states[-1] < 0).any())
        assert below
        assert np.isfinite(p).all()


@pytest.mark.parametrize("name", OF_SQUARES)
def test_an_average_of_squares_is_finite_where_a_square_is_not(compiled, name):
    """In torch's order of multiplications, in which every element moves; `test_range.py` has the other languages."""
    for loop in LOOPS:
        g = np.linspace(2e19, 9e19, 37, dtype=np.float32)
        p, states = np.zeros(37, np.float32), [np.zeros(37, np.float32) for _ in rules.RULES[name].states]
        run(compiled, loop, name, p, g, states)
        want, want_states = oracle.RULES[name](np.zeros(37), g, [np.zeros(37) for _ in states], 2, options_of(name))
        assert (want < 0).all()
        assert_close(p, want, ONE_STEP)
        for state, wanted in zip(states, want_states, strict=True):
            np.testing.assert_allclose(state, wanted, rtol=ONE_STEP * np.finfo(np.float32).eps)


@pytest.mark.parametrize("dtype", usually(["float32"], TYPES))
@pytest.mark.parametrize("level", usually(["-O2"], ["-O2", "-O3", "-O3 -fno-math-errno", "-O3 -march=native"]))
def test_loops_are_vectorised(level, dtype):
    """By g++, whatever the level, and in the same precision."""
    c, other = TYPES[dtype], any_arithmetic("float64" if dtype == "float32" else "float32")
    arguments = f"{c} *p, const {c} *g, {c} *const *states, long n, const {c} *hyper"
    functions = [
        f"void {name}({arguments}) {{ fastopt::update<fastopt::{functor}>(p, g, states, n, hyper); }}"
        for name, functor in FUNCTORS.items()
    ]
    source = "\n".join(['#include "rules.h"', 'extern "C" {', *functions, "}"])
    text = assembled(source, *level.split(), "-ffp-contract=off")
    for name in rules.RULES:
        (code,) = re.findall(rf"(?ms)^{name}:$.*?^\s*\.size\s+{name},", text)
        for operation in operations(name):
            assert re.search(packed(operation, dtype), code), (name, operation)
        assert re.findall(other, code) == [], name


CALLS = """
    #include "rules.h"
    void sgd(float *p, float *g, long n, const double *h) { fastopt::update<fastopt::Sgd>(p, g, nullptr, n, h); }
    float sgd(float p, float g, const float *h) { return fastopt::Sgd::apply(p, g, nullptr, h); }
    void adagrad(double *p, const double *g, double *s, long n, const float *h) {
        double *states[] = {s};
        fastopt::update<fastopt::Adagrad>(p, g, states, n, h);
    }
    void centered(float *p, const float *g, float *const *states, long n, const double *h) {
        fastopt::update<fastopt::RmspropCenteredMomentum>(p, g, states, n, h);
    }
    void amsgrad(double *p, const double *g, double *const *states, long n, const double *h) {
        fastopt::update<fastopt::AdamWAmsgrad>(p, g, states, n, h);
    }
    double amsgrad(double p, double g, double *state, const double *h) {
        return fastopt::AdamWAmsgrad::apply(p, g, state, h);
    }
    void row(const double *option, double step, double *out) { fastopt::AdamWAmsgrad::row(option, step, false, out); }
"""


STRICT = ("-Wall", "-Wextra", "-Werror")


def complaints(source, *flags):
    """What g++ reports about a source with all warnings on."""
    command = [shutil.which("g++"), "-std=c++17", *STRICT, *flags, "-I", str(KERNELS)]
    done = subprocess.run(
        [*command, "-c", "-x", "c++", "-o", os.devnull, "-"], input=source, capture_output=True, text=True, check=False
    )
    return done.stderr


X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.mark.parametrize("target", usually([""], ["", "-mavx", "-mavx512f"] if X86 else [""]))
@pytest.mark.parametrize("level", usually(["-O2"], ["-O0", "-O1", "-O2", "-O3", "-Os", "-Ofast"]))
def test_loops_compile_without_a_warning(level, target):
    """Nor are they separate functions, which two files compiled for two processors might share."""
    code = assembled(CALLS, *STRICT, level, *target.split())
    assert re.findall(r"\.weak\s+(\S*fastopt\S*)", code) == []


def assembled(source, *flags):
    """The assembly that g++ makes of a source."""
    command = [shutil.which("g++"), "-std=c++17", *flags, "-I", str(KERNELS), "-S", "-x", "c++", "-o", "-", "-"]
    return subprocess.run(command, input=source, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_integers_do_not_compile():
    """They would take the learning rate for 0."""
    source = """
        #include "rules.h"
        void sgd(int *p, const int *g, const double *h) { fastopt::update<fastopt::Sgd>(p, g, nullptr, 3, h); }
    """
    assert "parameters must be float or double" in complaints(source)


def test_every_kind_of_schedule_is_compared():
    assert {schedule.kind for schedule in CASES} == {*tables.KINDS, Product.kind}


@pytest.mark.parametrize("schedule", CASES, ids=repr)
def test_schedules_against_numba(compiled, schedule):
    """The same operations in the same order, so that all bits are the same; at small steps, and at large ones."""
    large = [base + np.arange(-50, 50) for base in (10**6, 10**9, 10**12, tables.STEP_LIMIT - 50)]
    steps = np.concatenate([np.arange(450), *large])
    values = np.empty(steps.size)
    arguments = (schedule.record(), steps.astype(np.float64), values)
    compiled.lib.evaluate(*(array(compiled, argument) for argument in arguments), steps.size)
    np.testing.assert_array_equal(values, schedule(steps))


def test_structs_of_the_header_are_the_tables_dtypes():
    """Names, offsets and sizes of every struct, as the C compiler has them."""
    ffi = extension.ffi
    for struct, dtype in STRUCTS.items():
        fields = dict(ffi.typeof(struct).fields)
        assert list(fields) == list(dtype.names)
        assert {name: field.offset for name, field in fields.items()} == {
            name: dtype.fields[name][1] for name in dtype.names
        }
        assert {name: ffi.sizeof(field.type) for name, field in fields.items()} == {
            name: dtype.fields[name][0].itemsize for name in dtype.names
        }
        assert ffi.sizeof(struct) == dtype.itemsize


def test_sizes_that_the_headers_assert_are_the_tables():
    """Those of every struct: a compiler that lays one out otherwise stops there. They follow from the limits."""
    text = "".join((KERNELS / header).read_text(encoding="utf-8") for header in ("tables.h", "fastopt.h"))
    sizes = re.findall(r"^FASTOPT_SIZE\((\w+), (\d+)(?: \+ (\d+) \* FASTOPT_(\w+))?\);", text, re.MULTILINE)
    asserted = {
        struct: int(fixed) + (int(each) * getattr(tables, limit) if limit else 0)
        for struct, fixed, each, limit in sizes
    }
    assert asserted == {struct: dtype.itemsize for struct, dtype in STRUCTS.items()}
    assert set(asserted) == set(re.findall(r"typedef struct (\w+)", text))


def test_a_struct_of_another_size_does_not_compile():
    """The header says which."""
    source = '#include "tables.h"\nFASTOPT_SIZE(fastopt_chunk, 31);\n'
    for compiler, language in (("gcc", "c"), ("g++", "c++")):
        command = [shutil.which(compiler), "-fsyntax-only", "-x", language, "-I", str(KERNELS), "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "fastopt_chunk has another size" in done.stderr


def test_constants_of_the_header_are_the_tables():
    """Those with a name."""
    header = (KERNELS / "tables.h").read_text(encoding="utf-8")
    defined = dict(re.findall(r"^#define (FASTOPT_\w+) +(\d+)", header, re.MULTILINE))
    assert {name: int(value) for name, value in defined.items()} == {
        "FASTOPT_ABI": tables.ABI,
        "FASTOPT_STATES": tables.STATES,
        "FASTOPT_SHARED": tables.SHARED,
        "FASTOPT_NUMBERS": tables.NUMBERS,
        "FASTOPT_OPTIONS": tables.OPTIONS,
        "FASTOPT_WORDS": tables.WORDS,
        "FASTOPT_CARRIED": tables.CARRIED,
        "FASTOPT_POWERS": tables.POWERS,
        "FASTOPT_BLOCK": tables.BLOCK,
        "FASTOPT_NDIM": 64,
    }
    assert "#define FASTOPT_HYPERS (FASTOPT_SHARED + FASTOPT_NUMBERS)" in header
    assert tables.HYPERS == tables.SHARED + tables.NUMBERS
    assert extension.lib.fastopt_abi() == tables.ABI


def test_another_layout_has_another_abi():
    """Cached kernels are distinguished by the ABI's number alone: a change of a table needs a new number."""
    layouts = [dtype.descr for dtype in STRUCTS.values()]
    kinds = [tables.KINDS, tables.SHAPES, tables.MODES, tables.STEP_LIMIT]
    digest = hashlib.sha256(repr(layouts + kinds).encode()).hexdigest()[:12]
    assert {9: "0b5885c449ac"}[tables.ABI] == digest


@pytest.mark.parametrize(
    ("compiler", "language", "header"),
    [
        ("gcc", "c", "tables.h"),
        ("gcc", "c", "fastopt.h"),
        ("g++", "c++", "fastopt.h"),
        ("g++", "c++", "rules.h"),
        ("g++", "c++", "schedules.h"),
        ("g++", "c++", "vectors.h"),
    ],
)
def test_headers_stand_alone(compiler, language, header):
    """A file that includes a header alone compiles without a warning."""
    command = [shutil.which(compiler), f"-std={'c11' if language == 'c' else 'c++17'}", "-Wall", "-Wextra", "-Werror"]
    result = subprocess.run(
        [*command, "-pedantic", "-fsyntax-only", "-x", language, "-I", str(KERNELS), "-"],
        input=f'#include "{header}"\n',
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
