"""CUDA kernels compiled ahead of time by the command, with neither GPU nor driver; and their machine code."""

import functools
import importlib.metadata
import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import CODES, DTYPES
from host_cuda import CODED, RANDOM, ROWWISE, SOME, STAGES, STORED, UPDATES
from pairs import swept, usually

import fastopt
from fastopt import cli, rules
from fastopt.rules import RULES

if sys.platform != "linux":
    pytest.skip("CuPy and nvdisasm are installed for tests on Linux alone", allow_module_level=True)

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100"]
LINE = re.compile(r"(\w+): (\d+) registers, (\d+) bytes shared, (\d+) bytes local, (\d+) bytes spilled")
ADDRESS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/", re.MULTILINE)
INSTRUCTION = re.compile(ADDRESS.pattern + r"\s+(?:@!?U?P\w+ )?([A-Z]\w*(?:\.\w+)*)", re.MULTILINE)

FP64_ARITHMETIC = r"D(ADD|MUL|FMA|SETP|SET|MNMX|MMA)\b"
FP64_FUNCTION = r"MUFU\.\w+64H\b"
FP64_CONVERSION = r"(F2F|F2I|I2F|FRND|F2IP|I2FP|F2FP)\b.*\.F64\b"
FP64 = re.compile(f"{FP64_ARITHMETIC}|{FP64_FUNCTION}|{FP64_CONVERSION}")
LOCAL = re.compile(r"(LDL|STL)\b")

# Of states of 16 bits, by default a rule with one state and one with two.
OF_HALVES = list(
    dict.fromkeys((rule, dtype, states) for rule, dtype, _, _, states in STORED if set(states) == {"bfloat16"})
)
halves = pytest.mark.parametrize(
    ("architecture", "rule", "dtype", "states"),
    [
        pytest.param(
            at,
            *kind,
            marks=[]
            if kind[:2] in (("momentum", "float32"), ("adamw", "float32")) and at == "sm_90"
            else pytest.mark.exhaustive,
        )
        for at, kind in itertools.product(ARCHITECTURES, OF_HALVES)
    ],
)

# Instructions of 64-bit arithmetic for a gradient's factor, which is computed once for all elements of a thread.
FACTOR = 9

# Those that round stochastically, by default the one with most to round.
MOST = cuda.Kind("adamw", "bfloat16", states=("bfloat16", "bfloat16"), rounding="stochastic").name
random = pytest.mark.parametrize(
    ("architecture", "name"),
    [
        pytest.param(at, name, marks=[] if (at, name) == ("sm_90", MOST) else pytest.mark.exhaustive)
        for at, name in itertools.product(ARCHITECTURES, [cuda.Kind(*kind).name for kind in RANDOM if not kind[3]])
    ],
)

# Of codes, by default three states in packs of eight, which is the most.
OF_CODES = list(dict.fromkeys((rule, dtype, states) for rule, dtype, *_, states in CODED))
OF_CODES.append(("rmsprop_centered_momentum", "bfloat16", ("uint8", "int8", "int8")))
codes = pytest.mark.parametrize(
    ("architecture", "rule", "dtype", "states"),
    [
        pytest.param(
            at,
            *kind,
            marks=[] if kind == OF_CODES[-1] and at == "sm_90" else pytest.mark.exhaustive,
        )
        for at, kind in itertools.product(ARCHITECTURES, OF_CODES)
    ],
)

SOME_STAGES = [some for some in SOME if some]


def compilations(**more):
    """Parametrize a test by what is compiled: by default once, with three states."""
    usual = [("sm_90", "adamw_amsgrad", "bfloat16", *(values[-1] for values in more.values()))]
    every = itertools.product(ARCHITECTURES, RULES, DTYPES, *more.values())
    cases = [pytest.param(*case, marks=[] if case in usual else pytest.mark.exhaustive) for case in every]
    return pytest.mark.parametrize(("architecture", "rule", "dtype", *more), cases)


updates = compilations()
staged = compilations(stages=SOME_STAGES)  # which need room beside a rule's states
# By default one architecture for tests of the architecture alone.
architectures = pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[] if name == "sm_90" else pytest.mark.exhaustive) for name in ARCHITECTURES],
)


def disassembler():
    """The path of nvdisasm, as its wheel says."""
    (file,) = [f for f in importlib.metadata.files("nvidia-cuda-nvdisasm") if f.stem == "nvdisasm"]
    return file.locate()


def disassemble(path):
    """The instructions of a CUBIN, without operands; nvdisasm must have no complaint."""
    done = subprocess.run([disassembler(), "-c", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), path
    instructions = INSTRUCTION.findall(done.stdout)
    assert len(instructions) == len(ADDRESS.findall(done.stdout)) > 0
    return instructions


@functools.cache
def cubin(architecture, name):
    """One of our sources compiled, and what the compiler says that its kernels take."""
    from cupy_backends.cuda.libs import nvrtc

    source = UPDATES[name].source() if name in UPDATES else cuda.sources([])[name]
    return cuda.cubin(nvrtc, source, name, architecture)


@functools.cache
def compiled(architecture, name):
    """What the kernels of a source take, and their instructions."""
    binary, usages = cubin(architecture, name)
    return usages, instructions_of(binary)


def instructions_of(binary):
    """The instructions of a CUBIN in memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return disassemble(file.name)


def files_of(names):
    """The files that are written for some rules, named as their kernels, and one with the small kernels."""
    kernels = [f"{rule}_{name}_{name}_{dtype.real_name}_512" for rule in names for name, dtype in DTYPES.items()]
    norms = [f"norm_{name}_512" for name in DTYPES]
    return {f"{name}.cubin" for name in (*kernels, *norms, "advance", "row_chunks")}


@pytest.mark.exhaustive  # a compilation for each kernel
def test_a_file_for_each_update_and_a_line_for_each_kernel(monkeypatch, capsys, tmp_path):
    """The command writes what is compiled here. It takes each rule of the registry, which is a short one here."""
    kinds = [cuda.Kind(*variant[:2]) for variant in cli.variants_with((), None)]
    assert {f"{name}.cubin" for name in cuda.sources(kinds)} == files_of(RULES)
    monkeypatch.setattr(rules, "RULES", {"adagrad": RULES["adagrad"]})
    folder = tmp_path / "new" / "sm_90"
    assert cli.main(["compile", "--cuda", "sm_90", "--out", str(folder)]) == 0
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(written) == files_of(["adagrad"])
    usages = []
    for name, content in written.items():
        binary, taken = cubin("sm_90", name.removesuffix(".cubin"))
        assert content == binary
        usages += map(str, taken)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(usages)
    assert all(map(LINE.fullmatch, usages))


def test_a_file_for_each_update_with_the_stages_of_an_option():
    """The updates have the stages, and the norms none."""
    kinds = [cuda.Kind("sgd", dtype, stages=("value", "average")) for dtype in DTYPES]
    staged = {name for name in cuda.sources(kinds) if "value_average" in name}
    assert staged == {f"sgd_{name}_{name}_{dtype.real_name}_value_average_512" for name, dtype in DTYPES.items()}


@updates
def test_updates_stay_in_registers(architecture, rule, dtype):
    """No stack, no spills and no shared memory by the compiler's account, and no access to local memory in the code."""
    (usage,), code = compiled(architecture, cuda.Kind(rule, dtype).name)
    # A multiprocessor has 65,536: for 1,536 threads where each holds four packs or fewer, for 1,024 where it holds more
    # or three packs of doubles, for 682 where it holds more doubles. Held to less by launch bounds, these spilled.
    element, real = DTYPES[dtype].itemsize, np.dtype(DTYPES[dtype].real).itemsize
    few = 2 + len(RULES[rule].states) * real // element <= 4  # packs
    three = few and architecture != "sm_75"  # which has no room for more than 1,024 threads anyway
    most = (64 if not RULES[rule].states[1:] else 96) if dtype == "float64" else (40 if three else 64)
    assert 0 < usage.registers <= most
    assert usage.shared == usage.local == usage.spilled == 0
    assert not any(map(LOCAL.match, code))


@staged
def test_stages_stay_in_registers(architecture, rule, dtype, stages):
    """A block fewer of a multiprocessor has room for them; double has as many as without."""
    (usage,), code = compiled(architecture, cuda.Kind(rule, dtype, stages=stages).name)
    real = np.dtype(DTYPES[dtype].real).itemsize // DTYPES[dtype].itemsize
    packs = 2 + (len(RULES[rule].states) + ("average" in stages)) * real
    assert 0 < usage.registers <= ((64 if packs <= 3 else 128) if dtype == "float64" else 64 if packs <= 4 else 128)
    assert usage.shared == usage.local == usage.spilled == 0
    assert not any(map(LOCAL.match, code))


@halves
def test_states_of_16_bits_stay_in_registers(architecture, rule, dtype, states):
    """They take no more registers than others, and a pack of them is moved at once."""
    (usage,), code = compiled(architecture, cuda.Kind(rule, dtype, states=states).name)
    assert 0 < usage.registers <= 128
    assert usage.shared == usage.local == usage.spilled == 0
    assert not any(map(LOCAL.match, code))
    stores = sum(instruction.startswith("STG.E.64") for instruction in code)
    assert stores == 1 + (len(states) if dtype == "float32" else 0)  # one is of the count of steps


@random
def test_random_bits_stay_in_registers(architecture, name):
    """And take no 64-bit arithmetic but that of the gradient's factor."""
    (usage,), code = compiled(architecture, name)
    assert 0 < usage.registers <= 128
    assert usage.shared == usage.local == usage.spilled == 0
    assert not any(map(LOCAL.match, code))
    assert 0 < sum(1 for instruction in code if FP64.match(instruction)) <= FACTOR


@pytest.mark.parametrize(
    ("architecture", "name"),
    usually(
        [("sm_90", cuda.Kind(*ROWWISE[0]).name)],
        itertools.product(ARCHITECTURES, [cuda.Kind(*kind).name for kind in ROWWISE]),
    ),
)
def test_rows_stay_in_registers(architecture, name):
    """And share a number for each warp."""
    (usage,), code = compiled(architecture, name)
    size = np.dtype(DTYPES[UPDATES[name].dtype].real).itemsize
    assert 0 < usage.registers <= 128
    assert (usage.shared, usage.local, usage.spilled) == (size * 512 // 32, 0, 0)
    assert not any(map(LOCAL.match, code))
    doubles = sum(1 for instruction in code if FP64.match(instruction))
    assert size == 8 or "value" in UPDATES[name].stages or 0 < doubles <= FACTOR  # a limit has 64 bits, too


@codes
@pytest.mark.parametrize("stages", [(), STAGES], ids=["alone", "staged"])
def test_codes_stay_in_registers(architecture, rule, dtype, states, stages):
    """Numbers of all states at once, and neighbours that compare theirs without shared memory."""
    from cupy_backends.cuda.libs import nvrtc

    source = cuda.Kind(rule, dtype, stages=stages, states=states).source()
    binary, (usage,) = cuda.cubin(nvrtc, source, rule, architecture)
    code = instructions_of(binary)
    assert 0 < usage.registers <= (64 if (dtype, stages) == ("float32", ()) else 128)
    assert usage.shared == usage.local == usage.spilled == 0
    assert not any(map(LOCAL.match, code))
    shuffles = sum(instruction.startswith("SHFL.BFLY") for instruction in code)
    halvings = (64 // cuda.pack(dtype)).bit_length() - 1  # from the threads of a block down to one
    assert shuffles == halvings * sum(state in CODES for state in states)


@pytest.mark.parametrize(
    ("architecture", "dtype"), usually([("sm_90", "bfloat16")], itertools.product(ARCHITECTURES, DTYPES))
)
def test_norms_stay_in_registers(architecture, dtype):
    """Few enough for all threads of a multiprocessor; and a double for each warp is shared."""
    usages, code = compiled(architecture, cuda.norm_name(dtype))
    assert {usage.kernel for usage in usages} == {cuda.norm_name(dtype), "total"}
    for usage in usages:
        assert 0 < usage.registers <= (40 if dtype == "float64" else 32)
        assert (usage.shared, usage.local, usage.spilled) == (8 * 512 // 32, 0, 0)
    assert not any(map(LOCAL.match, code))
    assert any(instruction.startswith("LDG.E.128") for instruction in code)


@updates
def test_double_is_for_double(architecture, rule, dtype):
    """Where parameters have 32 bits or fewer, 64-bit arithmetic computes the gradient's factor, and nothing else."""
    code = compiled(architecture, cuda.Kind(rule, dtype).name)[1]
    found = [instruction for instruction in code if FP64.match(instruction)]
    assert dtype == "float64" or 0 < len(found) <= FACTOR, found
    assert dtype == "float64" or not any(map(re.compile(f"DFMA|{FP64_FUNCTION}").match, found))
    assert any(map(re.compile(FP64_ARITHMETIC).match, code))


@updates
def test_sixteen_bytes_at_once(architecture, rule, dtype):
    """A load for each array, or two where a state is wider than its parameter, and a store for each that is written.

    That is for one pack; the compiler may have written it several times.
    """
    states = len(RULES[rule].states) * np.dtype(DTYPES[dtype].real).itemsize // DTYPES[dtype].itemsize
    code = compiled(architecture, cuda.Kind(rule, dtype).name)[1]
    loads = sum(instruction.startswith("LDG.E.128") for instruction in code)
    stores = sum(instruction.startswith("STG.E.128") for instruction in code)
    assert stores >= 1 + states
    assert (loads, stores) == (stores // (1 + states) * (2 + states), stores // (1 + states) * (1 + states))


@architectures
def test_what_is_looked_for_would_be_found(architecture):
    """Each pattern matches where it must: `advance` computes in double, and has local arrays."""
    usages, advance = compiled(architecture, "advance")
    assert any(map(re.compile(FP64_FUNCTION).match, compiled(architecture, cuda.Kind("adagrad", "float64").name)[1]))
    for pattern in (r"F2F\.F32\.F64", r"F2F\.F64\.F32", r"I2F\.F64"):
        converting = [instruction for instruction in advance if re.match(pattern, instruction)]
        assert converting
        assert all(map(FP64.match, converting))
    assert {instruction[:3] for instruction in advance if LOCAL.match(instruction)} == {"LDL", "STL"}
    (taken,) = [usage for usage in usages if usage.kernel == "advance"]
    assert taken.local > 0


def test_an_unknown_architecture_names_the_known(capsys, tmp_path):
    """And nothing is written."""
    for architecture in ("sm_10", "compute_90", "hopper", ""):
        assert cli.main(["compile", "--cuda", architecture, "--out", str(tmp_path / "new")]) == 1
        err = capsys.readouterr().err
        assert repr(architecture) in err
        assert {"sm_75", "sm_80", "sm_90", "sm_100"} <= set(re.findall(r"sm_\d+", err.replace(repr(architecture), "")))
    assert not (tmp_path / "new").exists()


def test_without_cupy_or_nvrtc_the_extra_is_named(monkeypatch, capsys):
    """The error says what to install, whichever of the two is missing."""
    from cupy_backends.cuda.libs import nvrtc

    def missing():
        raise RuntimeError("no libnvrtc.so")

    monkeypatch.setattr(nvrtc, "getSupportedArchs", missing)
    assert cli.main(["compile", "--cuda", "sm_90"]) == 1
    assert "NVRTC is not installed: pip install 'fastopt[cuda13]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cli.main(["compile", "--cuda", "sm_90"]) == 1
    assert "cupy is not installed: pip install 'fastopt[cuda13]'" in capsys.readouterr().err


def test_out_without_cuda_is_an_error(capsys, tmp_path):
    """Kernels for the processor have their own folder."""
    assert cli.main(["compile", "--out", str(tmp_path)]) == 1
    assert "--out goes with --cuda" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_does_not_compile_shows_the_log():
    """As NVRTC has written it."""
    from cupy_backends.cuda.libs import nvrtc

    with pytest.raises(RuntimeError, match=r"broken does not compile:\n.*identifier \"nothing\" is undefined"):
        cuda.cubin(nvrtc, "__device__ int f() { return nothing; }", "broken", "sm_90")


HEADERS = ["rules.h", "schedules.h", "vectors.h", "tables.h"]


@swept(together=1, header=HEADERS, architecture=ARCHITECTURES)
def test_headers_stand_alone(header, architecture):
    """NVRTC compiles a source that includes one header, with only the documented folder."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(f'#include "{header}"\n', "alone.cu", [], [])
    nvrtc.compileProgram(program, ("-std=c++17", f"-I{fastopt.get_include()}", f"--gpu-architecture={architecture}"))
    assert nvrtc.getProgramLog(program) == ""
    nvrtc.destroyProgram(program)


@architectures
def test_a_kernel_of_ones_own(architecture):
    """The one on the page about embedding: no stack, and no arithmetic in double."""
    from cupy_backends.cuda.libs import nvrtc

    page = (Path(__file__).parent.parent / "docs/embedding.md").read_text(encoding="utf-8")
    (source,) = re.findall(r'source = r"""(.*?)"""', page, re.DOTALL)
    source = source.replace('#include "rules.h"', cuda.inlined("rules.h"))
    binary, usages = cuda.cubin(nvrtc, source, "own", architecture)
    assert {usage.kernel for usage in usages} == {"predict", "descend"}
    assert all(usage.local == usage.spilled == 0 for usage in usages)
    assert not any(map(FP64.match, instructions_of(binary)))


def test_the_loop_over_arrays_is_for_the_host():
    """In a kernel it is an error: every thread would update all elements, byte by byte."""
    from cupy_backends.cuda.libs import nvrtc

    loop = """
        extern "C" __global__ void whole(float *p, const float *g, const float *hyper) {
            fastopt::update<fastopt::Sgd>(p, g, nullptr, 9, hyper);
        }
    """
    with pytest.raises(RuntimeError, match='has no member "update"'):
        cuda.cubin(nvrtc, cuda.inlined("rules.h") + loop, "whole", "sm_90")


def test_spills_and_shared_memory_are_reported():
    """What no kernel of ours shows: one with more numbers than registers, and one with shared memory."""
    from cupy_backends.cuda.libs import nvrtc

    spilling = """
        extern "C" __global__ void __launch_bounds__(1024, 2) f(double *x) {
            __shared__ double last[32];
            double kept[64];
            for (int i = 0; i < 64; ++i) kept[i] = x[i * 1024 + threadIdx.x];
            last[threadIdx.x % 32] = kept[3];
            __syncthreads();
            for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = kept[63 - i] + last[i % 32];
        }
    """
    (usage,) = cuda.cubin(nvrtc, spilling, "f", "sm_90")[1]
    assert (usage.kernel, usage.shared) == ("f", 256)
    assert min(usage.registers, usage.local, usage.spilled) > 0
    assert LINE.fullmatch(str(usage))
