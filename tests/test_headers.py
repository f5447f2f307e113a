"""rules.h and fastopt.h, compiled by g++ through cffi: the rules against the oracle, the structs against the tables."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import cffi
import numpy as np
import oracle
import pytest
from fastopt.kernels import cpu, extension, tables
from tolerances import TRAJECTORY, assert_close

from fastopt import rules

KERNELS = Path(cpu.__file__).parent
STRUCTS = {
    "fastopt_tensor": tables.TENSOR,
    "fastopt_layout": tables.LAYOUT,
    "fastopt_chunk": tables.CHUNK,
    "fastopt_job": tables.JOB,
    "fastopt_shape": tables.SHAPE,
    "fastopt_extents": tables.EXTENTS,
}

SOURCE = """
#include "fastopt.h"
#include "rules.h"

template <class Rule, typename T>
static void loop(T *p, const T *g, T *state, int64_t n, const T *hyper) {
    for (int64_t i = 0; i < n; ++i) p[i] = Rule::apply(p[i], g[i], state + i, hyper);
}

#define DEFINE(name, Rule)                                                                                \\
    static void name##_float32(float *p, const float *g, float *s, int64_t n, const float *hyper) {       \\
        loop<fastopt::Rule>(p, g, s, n, hyper);                                                           \\
    }                                                                                                     \\
    static void name##_float64(double *p, const double *g, double *s, int64_t n, const double *hyper) {   \\
        loop<fastopt::Rule>(p, g, s, n, hyper);                                                           \\
    }                                                                                                     \\
    static int name##_states(void) { return fastopt::Rule::states; }                                      \\
    static int name##_hypers(void) { return fastopt::Rule::hypers; }
FASTOPT_RULES(DEFINE)

#define NAME(name, Rule) #name " "
static const char *names(void) { return FASTOPT_RULES(NAME); }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The header's rules as C functions."""
    folder = tmp_path_factory.mktemp("rules")
    ffi = cffi.FFI()
    declarations = ["const char *names(void);"]
    for name in rules.RULES:
        declarations.append(f"int {name}_states(void); int {name}_hypers(void);")
        for dtype, c in (("float32", "float"), ("float64", "double")):
            arguments = f"{c} *p, const {c} *g, {c} *s, int64_t n, const {c} *hyper"
            declarations.append(f"void {name}_{dtype}({arguments});")
    ffi.cdef("\n".join(declarations))
    ffi.set_source(
        "_rules_of_the_header",
        SOURCE,
        source_extension=".cpp",
        include_dirs=[str(KERNELS)],
        extra_compile_args=["-std=c++17", "-O2"],
    )
    spec = importlib.util.spec_from_file_location("_rules_of_the_header", ffi.compile(tmpdir=str(folder)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def array(module, name, values):
    """A NumPy array as the C pointer that a function takes."""
    return module.ffi.from_buffer(f"{'float' if values.dtype == np.float32 else 'double'} *", values)


def test_names_and_counts(compiled):
    """The macro lists the registry's rules, and each functor's counts are the registry's."""
    assert compiled.ffi.string(compiled.lib.names()).decode().split() == list(rules.RULES)
    for name, rule in rules.RULES.items():
        assert getattr(compiled.lib, f"{name}_states")() == len(rule.states)
        assert getattr(compiled.lib, f"{name}_hypers")() == len(rule.hypers)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", rules.RULES)
def test_rules_against_the_oracle(compiled, name, dtype):
    """Five steps of 37 elements."""
    rng = np.random.default_rng(4)
    options = {"lr": 0.1, "momentum": 0.9, "eps": 1e-4}
    hypers = np.array([options[hyper] for hyper in rules.RULES[name].hypers], dtype)
    p, s = rng.standard_normal(37).astype(dtype), np.full(37, 0.5, dtype)
    want, states = p.astype(np.float64), tuple(s.astype(np.float64) for _ in rules.RULES[name].states)
    for step in range(1, 6):
        g = rng.standard_normal(37).astype(dtype)
        function = getattr(compiled.lib, f"{name}_{np.dtype(dtype).name}")
        function(*(array(compiled, name, values) for values in (p, g, s)), 37, array(compiled, name, hypers))
        want, states = oracle.RULES[name](want, g, states, step, options)
    assert_close(p, want, TRAJECTORY)
    for expected in states:
        assert_close(s, expected, TRAJECTORY)


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


def test_constants_of_the_header_are_the_tables():
    """The #defines, which cffi does not read."""
    header = (KERNELS / "fastopt.h").read_text(encoding="utf-8")
    defined = dict(re.findall(r"^#define (FASTOPT_\w+) +(\d+)", header, re.MULTILINE))
    assert {name: int(value) for name, value in defined.items()} == {
        "FASTOPT_ABI": tables.ABI,
        "FASTOPT_STATES": tables.STATES,
        "FASTOPT_HYPERS": tables.HYPERS,
        "FASTOPT_NDIM": 64,
    }
    assert extension.lib.fastopt_abi() == tables.ABI


def test_another_layout_has_another_abi():
    """The kernels in the cache are told apart by the ABI's number alone: who changes a table changes the number too."""
    digest = hashlib.sha256(repr([dtype.descr for dtype in STRUCTS.values()]).encode()).hexdigest()[:12]
    assert {1: "9347dae9143a"}[tables.ABI] == digest


@pytest.mark.parametrize(
    ("compiler", "language", "header"),
    [
        ("gcc", "c", "fastopt.h"),
        ("g++", "c++", "fastopt.h"),
        ("g++", "c++", "rules.h"),
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
