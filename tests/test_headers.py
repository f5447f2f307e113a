"""The headers, compiled by g++ through cffi.

Rules are held against the oracle, their rows against the registry's, schedules against Numba's, structs and lists
against the tables.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import cffi
import numpy as np
import oracle
import pytest
from fastopt.kernels import cpu, extension, tables
from instructions import any_arithmetic, operations, packed
from schedule_cases import CASES
from tolerances import TRAJECTORY, assert_close

from fastopt import rules
from fastopt.schedules import Product

KERNELS = Path(cpu.__file__).parent
STRUCTS = {
    "fastopt_tensor": tables.TENSOR,
    "fastopt_layout": tables.LAYOUT,
    "fastopt_chunk": tables.CHUNK,
    "fastopt_job": tables.JOB,
    "fastopt_cohort": tables.COHORT,
    "fastopt_course": tables.COURSE,
    "fastopt_message": tables.MESSAGE,
    "fastopt_shape": tables.SHAPE,
    "fastopt_extents": tables.EXTENTS,
    "fastopt_holdings": tables.HOLDINGS,
    "fastopt_gradients": tables.GRADIENTS,
    "fastopt_repetition": tables.REPETITION,
}

SOURCE = """
#include "fastopt.h"
#include "rules.h"

template <class Rule, typename T>
static void single(T *p, const T *g, T *state, int64_t n, const double *hyper) {
    T hypers[Rule::hypers];
    for (int k = 0; k < Rule::hypers; ++k) hypers[k] = static_cast<T>(hyper[k]);
    for (int64_t i = 0; i < n; ++i) p[i] = Rule::apply(p[i], g[i], state + i, hypers);
}

template <class Rule, typename T>
static void update(T *p, T *g, T *state, int64_t n, const double *hyper) {
    T *states[] = {state};
    if (Rule::states > 0) {
        fastopt::update<Rule>(p, g, states, n, hyper);
    } else {
        fastopt::update<Rule>(p, g, nullptr, n, hyper);
    }
}

#define LOOP(loop, name, Rule, type, T)                                                                   \\
    static void loop##_##name##_##type(T *p, T *g, T *s, int64_t n, const double *hyper) {                \\
        loop<fastopt::Rule>(p, g, s, n, hyper);                                                           \\
    }
#define DEFINE(name, Rule)                                                                                \\
    LOOP(single, name, Rule, float32, float)                                                              \\
    LOOP(single, name, Rule, float64, double)                                                             \\
    LOOP(update, name, Rule, float32, float)                                                              \\
    LOOP(update, name, Rule, float64, double)                                                             \\
    static void name##_row(const double *option, double step, int first, double *out) {                   \\
        fastopt::Rule::row(option, step, first != 0, out);                                                \\
    }                                                                                                     \\
    static int name##_states(void) { return fastopt::Rule::states; }                                      \\
    static int name##_hypers(void) { return fastopt::Rule::hypers; }                                      \\
    static int name##_options(void) { return fastopt::Rule::options; }
FASTOPT_RULES(DEFINE)

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


LOOPS = ("single", "update")  # by elements, in a loop of one's own, and over whole arrays

# As narrow as vectors get; as wide as this processor has them, where loops have other ends; and for a processor that is
# not known, whose square roots are taken one by one.
TARGETS = {"narrow": [], "native": ["-march=native"], "unknown": ["-U__SSE2__"]}


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request, tmp_path_factory):
    """Rules, schedules and lists of the headers as C functions."""
    folder = tmp_path_factory.mktemp("headers")
    ffi = cffi.FFI()
    declarations = [f"const char *{name}(void);" for name in LISTS]
    declarations.append("void evaluate(const double *record, const double *steps, double *out, int64_t n);")
    for name in rules.RULES:
        declarations += [f"int {name}_{count}(void);" for count in ("states", "hypers", "options")]
        declarations.append(f"void {name}_row(const double *option, double step, int first, double *out);")
        for dtype, c in (("float32", "float"), ("float64", "double")):
            arguments = f"{c} *p, {c} *g, {c} *s, int64_t n, const double *hyper"
            declarations += [f"void {loop}_{name}_{dtype}({arguments});" for loop in LOOPS]
    ffi.cdef("\n".join(declarations))
    ffi.set_source(
        f"_headers_{request.param}",
        SOURCE,
        source_extension=".cpp",
        include_dirs=[str(KERNELS)],
        extra_compile_args=["-std=c++17", "-O2", "-ffp-contract=off", *TARGETS[request.param]],
    )
    spec = importlib.util.spec_from_file_location(f"_headers_{request.param}", ffi.compile(tmpdir=str(folder)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def array(module, values):
    """A NumPy array as the C pointer that a function takes."""
    return module.ffi.from_buffer(f"{'float' if values.dtype == np.float32 else 'double'} *", values)


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_the_headers(compiled, name):
    """A macro lists what a table or the registry does, in the same order."""
    assert tuple(compiled.ffi.string(getattr(compiled.lib, name)()).decode().split()) == LISTS[name]


def test_counts(compiled):
    """Each functor's counts are the registry's."""
    for name, rule in rules.RULES.items():
        assert getattr(compiled.lib, f"{name}_states")() == len(rule.states)
        assert getattr(compiled.lib, f"{name}_hypers")() == len(rule.hypers)
        assert getattr(compiled.lib, f"{name}_options")() == len(rule.options) <= tables.OPTIONS


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 10**6 + 1, 2**53])
@pytest.mark.parametrize("name", rules.RULES)
def test_rows_are_the_registrys(compiled, name, step, first):
    """To the bit, and no number beyond them; each option has a number of its own, in the registry's order."""
    rule = rules.RULES[name]
    numbers = [0.1 + 0.7 * place for place in range(len(rule.options))]
    for maximize in (False, True):
        options = {**dict(zip(rule.options, numbers, strict=True)), "maximize": maximize}
        row = rule.row(options, step, first)
        assert len(row) == 2 + len(rule.hypers)
        given = np.full(tables.OPTIONS, np.nan)
        given[: len(numbers)] = [float(options[option]) for option in rule.options]
        got = np.full(tables.HYPERS, -1.0)
        getattr(compiled.lib, f"{name}_row")(array(compiled, given), step, first, array(compiled, got))
        assert got.tolist() == [*row, *[-1.0] * (tables.HYPERS - len(row))]


OPTIONS = {"lr": 0.1, "momentum": 0.9, "eps": 1e-4}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", rules.RULES)
@pytest.mark.parametrize("loop", LOOPS)
def test_rules_against_the_oracle(compiled, loop, name, dtype):
    """Five steps of 37 elements."""
    rng = np.random.default_rng(4)
    hypers = np.array([OPTIONS[hyper] for hyper in rules.RULES[name].hypers])
    p, s = rng.standard_normal(37).astype(dtype), np.full(37, 0.5, dtype)
    want, states = p.astype(np.float64), tuple(s.astype(np.float64) for _ in rules.RULES[name].states)
    for step in range(1, 6):
        g = rng.standard_normal(37).astype(dtype)
        function = getattr(compiled.lib, f"{loop}_{name}_{np.dtype(dtype).name}")
        function(*(array(compiled, values) for values in (p, g, s)), 37, array(compiled, hypers))
        want, states = oracle.RULES[name](want, g, states, step, OPTIONS)
    assert_close(p, want, TRAJECTORY)
    for expected in states:
        assert_close(s, expected, TRAJECTORY)


def misplaced(values, offset):
    """A copy that begins so many bytes off where its dtype would."""
    memory = np.empty(values.nbytes + offset, np.uint8)[offset:].view(values.dtype)
    memory[...] = values
    return memory


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", rules.RULES)
def test_arrays_are_updated_as_their_elements(compiled, name, dtype):
    """To the bit, at every length around a vector's, wherever arrays begin, to the byte, and not an element further."""
    rng = np.random.default_rng(5)
    hypers = np.array([OPTIONS[hyper] for hyper in rules.RULES[name].hypers])
    for n in [*range(36), 63, 64, 65, 1000]:
        start = n % 5
        arrays = rng.standard_normal((3, n + 7)).astype(dtype)
        arrays[2] = abs(arrays[2])
        arrays[:, start + n // 2] = np.nan if n % 2 else np.inf
        results = []
        for loop in LOOPS:
            own = [misplaced(values, n % 7 if loop == "update" else 0) for values in arrays]
            pointers = [array(compiled, values[start:]) for values in own]
            getattr(compiled.lib, f"{loop}_{name}_{np.dtype(dtype).name}")(*pointers, n, array(compiled, hypers))
            results.append(own)
        np.testing.assert_array_equal(*results)
        inside = np.zeros(n + 7, bool)
        inside[start : start + n] = True
        np.testing.assert_array_equal(results[1][1], arrays[1])
        for k in (0, 2):
            np.testing.assert_array_equal(results[1][k][~inside], arrays[k][~inside])


@pytest.mark.parametrize("level", ["-O2", "-O3", "-O3 -fno-math-errno", "-O3 -march=native"])
@pytest.mark.parametrize(("dtype", "c"), [("float32", "float"), ("float64", "double")])
@pytest.mark.parametrize(("name", "functor"), FUNCTORS.items())
def test_loops_are_vectorised(name, functor, dtype, c, level):
    """By g++, whatever the level, and in the same precision."""
    source = f"""
        #include "rules.h"
        void loop({c} *p, const {c} *g, {c} *const *states, long n, const {c} *hyper) {{
            fastopt::update<fastopt::{functor}>(p, g, states, n, hyper);
        }}
    """
    code = assembled(source, *level.split(), "-ffp-contract=off")
    for operation in operations(name):
        assert re.search(packed(operation, dtype), code), operation
    other = any_arithmetic("float64" if dtype == "float32" else "float32")
    assert re.findall(other, code) == []


CALLS = """
    #include "rules.h"
    void sgd(float *p, float *g, long n, const double *h) { fastopt::update<fastopt::Sgd>(p, g, nullptr, n, h); }
    float sgd(float p, float g, const float *h) { return fastopt::Sgd::apply(p, g, nullptr, h); }
    void adagrad(double *p, const double *g, double *s, long n, const float *h) {
        double *states[] = {s};
        fastopt::update<fastopt::Adagrad>(p, g, states, n, h);
    }
"""


def complaints(source, *flags):
    """What g++ says of a source, to a user who wants to be told of everything."""
    command = [shutil.which("g++"), "-std=c++17", "-Wall", "-Wextra", "-Werror", *flags, "-I", str(KERNELS)]
    done = subprocess.run(
        [*command, "-c", "-x", "c++", "-o", os.devnull, "-"], input=source, capture_output=True, text=True, check=False
    )
    return done.stderr


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3", "-Os", "-Ofast"])
def test_loops_compile_without_a_warning(level):
    """Nor are they functions of their own, of which two files that are compiled for two processors might share one."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    for target in ([], ["-mavx"], ["-mavx512f"]) if x86 else ([],):
        assert complaints(CALLS, level, *target) == ""
        code = assembled(CALLS, level, *target)
        assert re.findall(r"\.weak\s+(\S*fastopt\S*)", code) == []


def assembled(source, *flags):
    """The assembly that g++ makes of a source."""
    command = [shutil.which("g++"), "-std=c++17", *flags, "-I", str(KERNELS), "-S", "-x", "c++", "-o", "-", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


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
    """Those of every struct: a compiler that lays one out otherwise stops there."""
    text = "".join((KERNELS / header).read_text(encoding="utf-8") for header in ("tables.h", "fastopt.h"))
    asserted = {struct: int(size) for struct, size in re.findall(r"^FASTOPT_SIZE\((\w+), (\d+)\)", text, re.MULTILINE)}
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
    """The #defines, which cffi does not read."""
    header = (KERNELS / "tables.h").read_text(encoding="utf-8")
    defined = dict(re.findall(r"^#define (FASTOPT_\w+) +(\d+)", header, re.MULTILINE))
    assert {name: int(value) for name, value in defined.items()} == {
        "FASTOPT_ABI": tables.ABI,
        "FASTOPT_STATES": tables.STATES,
        "FASTOPT_HYPERS": tables.HYPERS,
        "FASTOPT_OPTIONS": tables.OPTIONS,
        "FASTOPT_WORDS": tables.WORDS,
        "FASTOPT_NDIM": 64,
    }
    assert extension.lib.fastopt_abi() == tables.ABI


def test_another_layout_has_another_abi():
    """The kernels in the cache are told apart by the ABI's number alone: who changes a table changes the number too."""
    layouts = [dtype.descr for dtype in STRUCTS.values()]
    kinds = [tables.KINDS, tables.SHAPES, tables.MODES, tables.STEP_LIMIT]
    digest = hashlib.sha256(repr(layouts + kinds).encode()).hexdigest()[:12]
    assert {2: "2d194f73771c"}[tables.ABI] == digest


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
