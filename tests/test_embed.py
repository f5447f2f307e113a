"""Updates as pointers, called from Python and from C; headers, as a compiler and CMake find them."""

import ctypes
import gc
import itertools
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cffi
import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import cpu, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from instructions import FUSED, OUTLINED, any_arithmetic, operations, packed
from loop_cases import options_of, states_of
from pairs import pairs, usually
from processes import run_commands, run_script
from rule_cases import BY_STATES, CALLED
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt import cli, embed, fused
from fastopt.rules import RULES, always

DTYPES = ["float32", "float64"]
SOME = pairs(together=1, name=BY_STATES, dtype=DTYPES)
names = pytest.mark.parametrize("name", RULES)
each_rule = pytest.mark.parametrize(("name", "dtype"), usually(SOME, itertools.product(RULES, DTYPES)))


def options(name):
    """The options of `embed.hyper_values` for a rule, without the step."""
    rule, values = RULES[name], options_of(name)
    given = embed.parameters_of(rule)
    return {option: values[option] for option in rule.options if option in given and option not in rule.of_gradient}


def step_of(name, step):
    """The step, for rules whose numbers depend on it."""
    return {"step": step} if RULES[name].moves is always else {}


def call(name, p, g, states, step=2):
    """Update arrays through the pointer."""
    pointers = [embed.ffi.from_buffer(array) for array in states]
    kept = embed.ffi.new("void *[]", pointers) if pointers else embed.ffi.NULL
    hyper = embed.ffi.from_buffer("double *", embed.hyper_values(name, **step_of(name, step), **options(name)))
    update = embed.update(name, p.dtype)
    assert update(embed.ffi.from_buffer(p), embed.ffi.from_buffer(g), kept, p.size, hyper) is None


def call_once(name, p, g, states, step=2):
    """Update arrays by the single call."""
    function, arrays = getattr(fused, name.partition("_")[0]), dict(zip(STATES.get(name, ()), states, strict=False))
    function(p, g, *([] if arrays else states), **arrays, **step_of(name, step), **options(name))


STATES = {name: RULES[name].states for name in RULES if name.startswith("rmsprop")}  # whose call takes any of them


@each_rule
def test_pointers_against_the_oracle(name, dtype):
    """Five steps at every length around a vector's, and not an element further."""
    rng = np.random.default_rng(0)
    without_decay = {**options_of(name), "lr_decay": 0.0}
    for n in [*range(36), 63, 64, 65, 1000]:
        guarded, states = rng.standard_normal(n + 2).astype(dtype), states_of(name, rng, n, dtype)
        before = guarded.copy()
        p = guarded[1:-1]
        want, want_states = p.astype(np.float64), tuple(state.astype(np.float64) for state in states)
        for step in range(2, 7):
            g = rng.standard_normal(n).astype(dtype)
            call(name, p, g, states, step)
            want, want_states = oracle.RULES[name](want, g, want_states, step, without_decay)
        assert_close(p, want, TRAJECTORY)
        for got, expected in zip(states, want_states, strict=True):
            assert_close(got, expected, TRAJECTORY)
        assert (guarded[0], guarded[-1]) == (before[0], before[-1])


@pytest.mark.exhaustive  # compiles seven kernels
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(pairs(together=1, name=CALLED, dtype=DTYPES)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 70),
    st.one_of(st.integers(1, 3), st.integers(1, 2**53)),
)
def test_pointers_do_what_single_calls_do(kernel, seed, n, step):
    """To the bit, infinities and NaN included."""
    name, dtype = kernel
    rng = np.random.default_rng(seed)
    p, g = rng.standard_normal((2, n)).astype(dtype)
    g[rng.random(n) < 0.1] = rng.choice([np.nan, np.inf, 0.0])
    states = [abs(rng.standard_normal(n)).astype(dtype) for _ in RULES[name].states]
    other, other_states = p.copy(), [state.copy() for state in states]
    call(name, p, g, states, step)
    call_once(name, other, g, other_states, step)
    for one, another in zip((p, *states), (other, *other_states), strict=True):
        np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) == SOME[-1] else pytest.mark.exhaustive)
        for name in RULES
        for dtype in DTYPES
    ],
)
def test_code(name, dtype):
    """Packed, in its precision, and nothing fused."""
    code = cpu.make_cfunc_of_update(cache=False)(cpu.make_update(name, dtype))._library.get_asm_str()
    for operation in operations(name):
        assert re.search(packed(operation, dtype), code), operation
    other = any_arithmetic("float64" if dtype == "float32" else "float32")
    assert [line.strip() for line in code.splitlines() if re.search(other, line)] == []
    assert re.findall(FUSED, code) == []
    assert not re.search(OUTLINED, code)


def test_a_pointer_is_the_same_and_stays():
    """The pointer stays valid after everything that held it is gone."""
    address = int(embed.ffi.cast("intptr_t", embed.update("sgd", "float32")))
    gc.collect()
    assert int(embed.ffi.cast("intptr_t", embed.update("sgd", np.float32))) == address
    assert int(embed.ffi.cast("intptr_t", embed.update("sgd", np.dtype("f")))) == address
    assert int(embed.ffi.cast("intptr_t", embed.update("sgd", float))) != address


def test_ctypes_can_call_it():
    """By its address alone."""
    address = int(embed.ffi.cast("intptr_t", embed.update("sgd", "float64")))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    update = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, number, pointer)(address)
    p, g, hyper = np.ones(10), np.ones(10), embed.hyper_values("sgd", lr=0.25)
    update(p.ctypes.data, g.ctypes.data, None, 10, hyper.ctypes.data)
    assert (p == 0.75).all()


def test_from_several_threads():
    """Each on arrays of its own, at once."""
    results = []

    def train(seed):
        rng = np.random.default_rng(seed)
        p, v = rng.standard_normal(5000), np.zeros(5000)
        want, states = p.copy(), (v.copy(),)
        for _ in range(50):
            g = rng.standard_normal(5000)
            call("momentum", p, g, [v])
            want, states = oracle.momentum(want, g, states, 2, options("momentum"))
        results.append((p, want))

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(train, range(8)))
    assert len(results) == 8
    for p, want in results:
        assert_close(p, want, TRAJECTORY)


def run(script, folder, **environment):
    """Run a script in a process of its own, and return what it prints."""
    code, output, errors = run_script(script, folder, **environment)
    assert (code, errors) == (0, ""), errors
    return output


CALL = """
    import sys
    import numpy as np
    from fastopt import embed
    update = embed.update("sgd", "float32")
    p, g, hyper = np.ones(9, "f"), np.ones(9, "f"), embed.hyper_values("sgd", lr=0.25)
    buffer = embed.ffi.from_buffer
    update(buffer(p), buffer(g), embed.ffi.NULL, 9, buffer("double *", hyper))
    from fastopt.kernels import cpu, extension
    print(p[0], cpu.update_for_c("sgd", "float32").cache_hits, extension.lib is None)
"""


@pytest.mark.exhaustive  # a process with nothing compiled
def test_threads_that_ask_first_get_one_function(tmp_path):
    """In a new process, with nothing compiled; the next process finds it compiled."""
    script = """
        import threading
        from fastopt import embed
        from fastopt.kernels import cpu
        barrier, found = threading.Barrier(4), []

        def ask():
            barrier.wait()
            found.append(int(embed.ffi.cast("intptr_t", embed.update("sgd", "float32"))))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(len(found), len(set(found)), cpu.update_for_c("sgd", "float32").cache_hits)
    """
    cache = str(tmp_path / "cache")
    assert run(script, tmp_path, NUMBA_CACHE_DIR=cache).split() == ["4", "1", "0"]
    assert run(CALL, tmp_path, NUMBA_CACHE_DIR=cache).split() == ["0.75", "1", "False"]


@pytest.mark.exhaustive  # compiles without the extension
def test_without_the_extension(tmp_path):
    """Where there was no compiler at installation."""
    script = "import sys; sys.modules['fastopt.kernels._pool'] = None\n" + textwrap.dedent(CALL)
    assert run(script, tmp_path).split()[::2] == ["0.75", "True"]


def test_importing_fastopt_does_not_bring_it(tmp_path):
    """It is there all the same, by name and in `dir`."""
    script = """
        import sys
        import fastopt
        print("fastopt.embed" in sys.modules, "cffi" in sys.modules, {"embed", "get_include"} <= set(dir(fastopt)))
        print(fastopt.embed.get_include() == fastopt.get_include(), "numba" in sys.modules)
    """
    assert run(script, tmp_path).split() == ["False", "False", "True", "True", "False"]
    with pytest.raises(AttributeError, match="module 'fastopt' has no attribute 'nothing'"):
        fastopt.__getattr__("nothing")


@pytest.mark.exhaustive
def test_torch_and_lab_are_attributes_that_are_imported_when_asked_for(tmp_path):
    """As `embed` is: neither torch nor matplotlib comes with `import fastopt`, or with `dir`."""
    script = """
        import sys
        import fastopt
        print({"lab", "torch"} <= set(dir(fastopt)), {"torch", "matplotlib", "sklearn"} & set(sys.modules) or "none")
        print(fastopt.lab.landscape.__name__, fastopt.torch.AdamW.__name__)
    """
    assert run(script, tmp_path).split() == ["True", "none", "landscape", "AdamW"]


def test_without_torch_its_name_says_what_to_install(tmp_path):
    """And `hasattr`, `help` and `from fastopt import torch` do what they should."""
    script = """
        import inspect, sys
        sys.modules["torch"] = None
        import fastopt
        print(hasattr(fastopt, "torch"), "SGD" in dict(inspect.getmembers(fastopt)))
        for line in ("fastopt.torch", "from fastopt import torch", "import fastopt.torch"):
            try:
                exec(line)
            except (AttributeError, ImportError) as error:
                print(error)
    """
    answer, *messages = run(script, tmp_path).splitlines()
    assert answer == "False True"
    assert messages == 3 * ["torch is not installed: pip install 'fastopt[torch]'"]


# Numbers


@names
def test_numbers_in_the_rules_order(name):
    """Names from the registry, which are the functor's; values as float64, new each time, and of the step."""
    rule, without_decay = RULES[name], {**options_of(name), "lr_decay": 0.0}
    assert embed.hyper(name) == rule.hypers
    for step in (1, 2, 1000):
        values = embed.hyper_values(name, **step_of(name, step), **options(name))
        assert values.dtype == np.float64
        assert tuple(values) == rule.row(without_decay, step, False)[2:]
    values[0] = 7.0
    assert embed.hyper_values(name, **step_of(name, 1), **options(name))[0] != 7.0


def test_defaults_are_those_of_single_calls():
    assert embed.hyper_values("adagrad", lr=1).tolist() == [1.0, 1e-10]
    assert embed.hyper_values("adagrad", eps=0, lr=np.float32(0.5)).tolist() == [0.5, 0.0]
    assert embed.hyper_values("rmsprop", lr=1).tolist() == [1.0, 1.0 - 0.99, 1e-8]
    assert embed.hyper_values("rmsprop_centered_momentum", lr=1).tolist() == [1.0, 1.0 - 0.99, 1e-8, 0.0]
    for name, decay in (("adam", []), ("adam_amsgrad", []), ("adamw", [0.01]), ("adamw_amsgrad", [0.01])):
        lr, *gains, eps = embed.hyper_values(name, lr=1, step=2**53)[:4]  # where all corrections are 1
        assert [lr, *gains, eps] == [1.0, 1.0 - 0.9, 1.0 - 0.999, 1e-8]
        assert embed.hyper_values(name, lr=1, step=1)[4:].tolist() == [1.0 - number for number in decay]
    given = embed.hyper_values("adamw", lr=0.5, step=1, betas=(0.5, 0.75), eps=1, weight_decay=0.5).tolist()
    assert given == [0.5, 0.5, 0.25, 0.5, 0.75]  # of which lr is 0.5 * sqrt(0.25) / 0.5


BAD_VALUES = [
    (("sgd",), {}, TypeError, "the update of 'sgd' needs lr: pass lr=..."),
    (("momentum",), {}, TypeError, "needs lr and momentum: pass lr=..."),
    (("momentum",), {"lr": 0.1}, TypeError, "needs momentum: pass momentum=..."),
    (("momentum",), {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}, TypeError, "takes lr, momentum, not dampening"),
    (("sgd",), {"lr": 0.1, "momentum": 0.9}, TypeError, "the update of 'sgd' takes lr, not momentum"),
    (("sgd",), {"lr": 0.1, "step": 1}, TypeError, "the update of 'sgd' has no step"),
    (("adagrad",), {"lr": 0.1, "weight_decay": 0.0}, TypeError, "takes lr, eps, not weight_decay"),
    (("adagrad",), {"lr": 0.1, "lr_decay": 0.1}, TypeError, "takes lr, eps, not lr_decay"),
    (("adagrad",), {"lr": 0.1, "step": 1}, TypeError, "the update of 'adagrad' has no step"),
    (("adagrad",), {"lr": -0.1}, ValueError, "Invalid learning rate: -0.1"),
    (("adagrad",), {"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
    (("adagrad",), {"lr": "0.1"}, TypeError, "lr must be a number, not str"),
    (("rmsprop",), {"lr": 0.1, "momentum": 0.9}, TypeError, "takes lr, alpha, eps, not momentum"),
    (("rmsprop",), {"lr": 0.1, "centered": True}, TypeError, "takes lr, alpha, eps, not centered"),
    (("rmsprop_centered",), {"lr": 0.1, "step": 1}, TypeError, "the update of 'rmsprop_centered' has no step"),
    (("rmsprop",), {"lr": 0.1, "alpha": 1.5}, ValueError, "Invalid alpha value: 1.5"),
    (("adam",), {"lr": 0.1}, TypeError, "the update of 'adam' needs its step: pass step=1"),
    (("adamw_amsgrad",), {"lr": 0.1}, TypeError, "the update of 'adamw_amsgrad' needs its step: pass step=1"),
    (("adam",), {"step": 1}, TypeError, "the update of 'adam' needs lr: pass lr=..."),
    (("adam",), {"lr": 0.1, "step": 1, "weight_decay": 0.1}, TypeError, "takes lr, betas, eps, not weight_decay"),
    (("adamw",), {"lr": 0.1, "step": 1, "maximize": True}, TypeError, "not maximize"),
    (("adam",), {"lr": 0.1, "step": 0}, ValueError, "step must be 1 or more, and below 2**63, not 0"),
    (("adam",), {"lr": 0.1, "step": 1.5}, TypeError, "step must be an int, not a float"),
    (("adam",), {"lr": 0.1, "step": 1, "betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1"),
    (("radam",), {"lr": 0.1}, ValueError, "there is no rule 'radam', but sgd, momentum, nesterov, adagrad"),
]


@pytest.mark.parametrize(("arguments", "given_options", "error", "message"), BAD_VALUES)
def test_bad_numbers(arguments, given_options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        embed.hyper_values(*arguments, **given_options)


@pytest.mark.parametrize("rule", ["radam", "SGD", "", None, 3, ["sgd"]])
def test_unknown_rules(rule):
    """The error lists those that there are."""
    message = re.escape(f"there is no rule {rule!r}, but sgd, momentum, nesterov, adagrad")
    with pytest.raises(ValueError, match=message):
        embed.update(rule, "float32")
    with pytest.raises(ValueError, match=message):
        embed.hyper(rule)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "int32", ">f8" if sys.byteorder == "little" else "<f8", "x", "f4,,", ("f4", -1), None, 3],
)
def test_unknown_dtypes(dtype):
    """The error lists those that there are."""
    message = re.escape(f"there is no update for dtype {dtype!r}, but for float32 and float64")
    with pytest.raises(ValueError, match=message):
        embed.update("sgd", dtype)


# Headers


def test_the_folder_of_the_headers(capsys):
    """In Python and by the command, which prints nothing else."""
    folder = Path(fastopt.get_include())
    headers = {"fastopt.h", "tables.h", "rules.h", "schedules.h", "vectors.h"}
    assert headers | {"fastopt-config.cmake", "fastopt-config-version.cmake"} <= {
        path.name for path in folder.iterdir()
    }
    for option, text in (("--includes", f"-I{folder}\n"), ("--cmakedir", f"{folder}\n")):
        with pytest.raises(SystemExit) as stopped:
            cli.main([option])
        assert stopped.value.code == 0
        assert capsys.readouterr().out == text


def test_the_abi_is_the_headers():
    header = (Path(fastopt.get_include()) / "tables.h").read_text(encoding="utf-8")
    assert int(re.search(r"#define FASTOPT_ABI +(\d+)", header)[1]) == embed.ABI == tables.ABI


def test_the_type_of_a_pointer_is_the_headers():
    """As cffi and a C compiler read it."""
    source = """
        #include "fastopt.h"
        static void mine(void *param, const void *grad, void *const *states, int64_t n, const double *hyper) {
            (void)param, (void)grad, (void)states, (void)n, (void)hyper;
        }
        fastopt_update update = mine;
    """
    command = [shutil.which("gcc"), "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", "-"]
    subprocess.run([*command, f"-I{fastopt.get_include()}"], input=source, text=True, check=True)
    assert embed.ffi.typeof(embed.update("sgd", "float32")) is embed.ffi.typeof("fastopt_update")


def test_a_module_of_ones_own_in_cffi(tmp_path):
    """Compiled ahead, in which our types are included: what it takes is what `update` gives."""
    builder = cffi.FFI()
    builder.include(embed.ffi)
    builder.cdef("void twice(fastopt_update update, float *p, const float *g, int64_t n, const double *hyper);")
    builder.set_source(
        "_twice",
        """
        #include "fastopt.h"
        static void twice(fastopt_update update, float *p, const float *g, int64_t n, const double *hyper) {
            update(p, g, 0, n, hyper);
            update(p, g, 0, n, hyper);
        }
        """,
        include_dirs=[fastopt.get_include()],
    )
    builder.compile(tmpdir=str(tmp_path))
    script = """
        import numpy as np
        from _twice import ffi, lib
        from fastopt import embed
        p, g, hyper = np.ones(9, "f"), np.ones(9, "f"), embed.hyper_values("sgd", lr=0.25)
        arrays = [ffi.from_buffer("float *", array) for array in (p, g)]
        lib.twice(embed.update("sgd", "f"), *arrays, 9, ffi.from_buffer("double *", hyper))
        print(p[0])
    """
    assert run(script, tmp_path) == "0.5\n"


def cmake(folder, lines):
    """Configure a project of some lines against the package, and return CMake's exit status and words."""
    (folder / "CMakeLists.txt").write_text("\n".join(["cmake_minimum_required(VERSION 3.15)", *lines]) + "\n")
    code, output, errors = run_commands('cmake -S . -B build -Dfastopt_DIR="$(fastopt --cmakedir)"', folder)
    return code, output + errors


VERSIONS = [
    "",
    "0.1",
    fastopt.__version__,
    f"{fastopt.__version__} EXACT",
    f"0.0.1...{fastopt.__version__}",
    "0.0.1...<99",
]


OTHERS = ["0.0.1...0.0.9", f"0.0.1...<{fastopt.__version__}", "0.0.9 EXACT", "99"]


@pytest.mark.parametrize("language", ["C", "CXX"])
def test_cmake_finds_the_package(language, tmp_path):
    """For either language, and by the version that Python names, or an older one."""
    lines = [f"project(mine {language})"]
    for version in VERSIONS:
        lines += [f"find_package(fastopt {version} CONFIG REQUIRED)", 'message("version ${fastopt_VERSION}")']
        lines += ["unset(fastopt_VERSION)"]
    code, words = cmake(tmp_path, lines)
    assert code == 0, words
    assert words.count(f"version {fastopt.__version__}\n") == len(VERSIONS)


@pytest.mark.exhaustive
def test_cmake_does_not_find_another_version(tmp_path):
    """A newer one, or one within a range that ends before this one; the one that is there is named."""
    lines = ["project(mine C)", "set(folder ${fastopt_DIR})"]
    for version in OTHERS[:-1]:
        lines += [f"find_package(fastopt {version} CONFIG)", 'message("found: ${fastopt_FOUND}")']
        lines += ["set(fastopt_DIR ${folder} CACHE PATH folder FORCE)"]  # which CMake has taken back
    code, words = cmake(tmp_path, [*lines, f"find_package(fastopt {OTHERS[-1]} CONFIG REQUIRED)"])
    assert code != 0
    assert words.count("found: 0") == len(OTHERS) - 1
    assert words.count(f"version: {fastopt.__version__}") == len(OTHERS)
