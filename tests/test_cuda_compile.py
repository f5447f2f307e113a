"""CUDA kernels compiled ahead, with neither GPU nor driver, by the command; and the machine code that comes out."""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastopt.kernels import cuda
from fastopt.kernels.tables import ELEMENTS
from processes import run_commands

import fastopt
from fastopt import cli
from fastopt.rules import RULES

if sys.platform != "linux":
    pytest.skip("CuPy and nvdisasm are installed for tests on Linux alone", allow_module_level=True)

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100"]
UPDATES = {cuda.kernel_name(rule, format): (rule, format) for rule in RULES for format in cuda.FORMATS}
LINE = re.compile(r"(\w+): (\d+) registers, (\d+) bytes shared, (\d+) bytes local, (\d+) bytes spilled")
ADDRESS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/", re.MULTILINE)
INSTRUCTION = re.compile(ADDRESS.pattern + r"\s+(?:@!?U?P\w+ )?([A-Z]\w*(?:\.\w+)*)", re.MULTILINE)

FP64_ARITHMETIC = r"D(ADD|MUL|FMA|SETP|SET|MNMX|MMA)\b"
FP64_FUNCTION = r"MUFU\.\w+64H\b"
FP64_CONVERSION = r"(F2F|F2I|I2F|FRND|F2IP|I2FP|F2FP)\b.*\.F64\b"
FP64 = re.compile(f"{FP64_ARITHMETIC}|{FP64_FUNCTION}|{FP64_CONVERSION}")
LOCAL = re.compile(r"(LDL|STL)\b")

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)
updates = pytest.mark.parametrize("name", UPDATES)


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """For each architecture: the numbers of each kernel that the command prints, and the code in each of its files."""
    folder = tmp_path_factory.mktemp("cubins")

    def compile_for(architecture):
        """In a process of its own: NVRTC compiles one source at a time."""
        code, output, errors = run_commands(f"fastopt compile --cuda {architecture} --out new/{architecture}", folder)
        assert code == 0, errors
        lines = [LINE.fullmatch(line) for line in output.splitlines()]
        printed = {line[1]: tuple(map(int, line.groups()[1:])) for line in lines}
        return printed, {path.name: disassemble(path) for path in (folder / "new" / architecture).iterdir()}

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(ARCHITECTURES, pool.map(compile_for, ARCHITECTURES), strict=True))
    return [{architecture: pair[i] for architecture, pair in found.items()} for i in range(2)]


@architectures
def test_a_file_for_each_update_and_a_line_for_each_kernel(compiled, architecture):
    """RULE_PARAM_GRAD_STATE.cubin, and one with the two small kernels."""
    printed, code = compiled
    files = {
        f"{rule}_{element}_{element}_{np.dtype(ELEMENTS[element][1]).name}.cubin"
        for rule in RULES
        for element in ELEMENTS
    }
    assert set(code[architecture]) == files | {"advance.cubin"}
    assert set(printed[architecture]) == {file.removesuffix(".cubin") for file in files} | {"advance", "send"}


@architectures
@updates
def test_updates_stay_in_registers(compiled, architecture, name):
    """No stack, no spills and no shared memory by the compiler's account, and no access to local memory in the code."""
    printed, code = compiled
    registers, *memory = printed[architecture][name]
    # A multiprocessor has 65,536: for 1,536 threads where each holds four packs or fewer, for 1,024 where it holds more
    # or doubles, for 682 where it holds doubles of five arrays. Held to less by launch bounds, these spilled.
    rule, format = UPDATES[name]
    element, real = (np.dtype(dtype).itemsize for dtype in ELEMENTS[format])
    few = 2 + len(RULES[rule].states) * real // element <= 4  # packs
    three = few and architecture != "sm_75"  # which has no room for more than 1,024 threads anyway
    assert 0 < registers <= ((64 if few else 96) if format == "float64" else (40 if three else 64))
    assert memory == [0, 0, 0]
    assert not any(map(LOCAL.match, code[architecture][f"{name}.cubin"]))


@architectures
@updates
def test_double_is_for_double(compiled, architecture, name):
    """Not an instruction of 64-bit arithmetic where parameters have 32 bits or fewer."""
    found = {instruction for instruction in compiled[1][architecture][f"{name}.cubin"] if FP64.match(instruction)}
    assert (found != set()) == (UPDATES[name][1] == "float64"), found


@architectures
@updates
def test_sixteen_bytes_at_once(compiled, architecture, name):
    """A load for each array, or two where a state is wider than its parameter, and a store for each that is written.

    That is for one pack; the compiler may have written it several times.
    """
    rule, format = UPDATES[name]
    states = len(RULES[rule].states) * np.dtype(ELEMENTS[format][1]).itemsize // np.dtype(ELEMENTS[format][0]).itemsize
    code = compiled[1][architecture][f"{name}.cubin"]
    loads = sum(instruction.startswith("LDG.E.128") for instruction in code)
    stores = sum(instruction.startswith("STG.E.128") for instruction in code)
    assert stores >= 1 + states
    assert (loads, stores) == (stores // (1 + states) * (2 + states), stores // (1 + states) * (1 + states))


@architectures
def test_what_is_looked_for_would_be_found(compiled, architecture):
    """Each pattern, where it must match: double everywhere in `advance`, which has arrays of its own as well."""
    code = compiled[1][architecture]
    assert any(map(re.compile(FP64_FUNCTION).match, code["adagrad_float64_float64_float64.cubin"]))
    for name, (_, format) in UPDATES.items():
        assert (format == "float64") == any(map(re.compile(FP64_ARITHMETIC).match, code[f"{name}.cubin"]))
    for pattern in (r"F2F\.F32\.F64", r"F2F\.F64\.F32", r"I2F\.F64"):
        converting = [instruction for instruction in code["advance.cubin"] if re.match(pattern, instruction)]
        assert converting
        assert all(map(FP64.match, converting))
    assert {instruction[:3] for instruction in code["advance.cubin"] if LOCAL.match(instruction)} == {"LDL", "STL"}
    assert compiled[0][architecture]["advance"][2] > 0


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
    """Kernels for the processor have their own place."""
    assert cli.main(["compile", "--out", str(tmp_path)]) == 1
    assert "--out goes with --cuda" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_does_not_compile_shows_the_log():
    """As NVRTC has written it."""
    from cupy_backends.cuda.libs import nvrtc

    with pytest.raises(RuntimeError, match=r"broken does not compile:\n.*identifier \"nothing\" is undefined"):
        cuda.cubin(nvrtc, "__device__ int f() { return nothing; }", "broken", "sm_90")


HEADERS = ["rules.h", "schedules.h", "vectors.h", "tables.h"]


@architectures
@pytest.mark.parametrize("header", HEADERS)
def test_headers_stand_alone(header, architecture):
    """NVRTC takes a source that includes one header from the folder that a user is told, and nothing else."""
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
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        instructions = disassemble(file.name)
    assert not any(map(FP64.match, instructions))


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
