"""The code in the README and the docs runs as printed."""

import importlib
import importlib.util
import inspect
import json
import math
import re

import numpy as np
import pytest
import torch
from fastopt.bench import headline
from pages import ROOT, blocks

import fastopt.torch
from fastopt import fused, schedules

PAGES = ["README.md", "docs/schedules.md", "docs/coming-from-torch.md", "docs/lectures.md"]
TRAINING = ["README.md", "docs/coming-from-torch.md"]  # whose first code trains


@pytest.mark.parametrize(
    ("page", "code"), [(page, code) for page in PAGES for code in blocks(page)[1 if page in TRAINING else 0 :]]
)
def test_code_runs_as_printed(page, code, capsys):
    """Each block by itself, as pasted."""
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("code", [code for code in blocks("docs/gpu.md") if "import torch" not in code])
def test_code_for_cupy_runs_as_printed(code, stand_in, capsys):
    """On a stand-in for it, whose kernels run on the host."""
    exec(compile(code, "docs/gpu.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("code", blocks("docs/gpu.md"))
def test_code_for_gpus_runs_as_printed(code, capsys):
    """On a GPU."""
    exec(compile(code, "docs/gpu.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", TRAINING)
def test_first_code_trains(page, capsys):
    """As printed, it runs, and the loss that it prints falls."""
    exec(compile(blocks(page)[0], page, "exec"), {})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.1 * losses[0]


def test_the_page_for_torchs_users_has_the_bugs_that_are_tested():
    """A row of its table for each."""
    page = (ROOT / "docs/coming-from-torch.md").read_text(encoding="utf-8")
    tests = (ROOT / "tests/test_torch_bugs.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|", page.partition("## What is different")[0], re.MULTILINE)
    assert rows == re.findall(r"^def test_bug_(\d+)_", tests, re.MULTILINE)


def test_the_page_for_torchs_users_names_no_class_as_missing_that_is_there():
    """What it says to be an error is one."""
    page = (ROOT / "docs/coming-from-torch.md").read_text(encoding="utf-8")
    named = re.search(r"^\| (\w+(?:, \w+)*) and others \| an error", page, re.MULTILINE)[1].split(", ")
    assert {*named} <= {*vars(torch.optim)}
    for name in named:
        with pytest.raises(AttributeError, match=name):
            getattr(fastopt.torch, name)


@pytest.mark.parametrize(
    "code", [code for code in blocks("docs/coming-from-numpy.md") if code.startswith(("import", "from"))]
)
def test_programs_for_numpy_users_run_as_printed(code, capsys):
    """Those that are whole; the other blocks are pieces."""
    exec(compile(code, "docs/coming-from-numpy.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_page_for_numpy_users_says_what_is_so():
    """Its table's two columns do the same to the bit, or nearly."""
    page = (ROOT / "docs/coming-from-numpy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(w .*|v .*|s .*)` \| `(fused.*)` \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for theirs, ours in rows:
        rng = np.random.default_rng(9)
        start = {name: rng.random(50) for name in "wgvs"}
        results = []
        for code in (theirs, ours):
            names = {name: array.copy() for name, array in start.items()}
            exec(code, {"np": np, "fused": fused, "lr": 0.1, "mu": 0.9, "a": 0.99, "eps": 1e-10}, names)
            results.append(names)
        for name in "wgvs":
            np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-12)


def formulas():
    """Of the page of schedules: ``{name of a class: (its constructor, its value in Python)}``."""
    page = (ROOT / "docs/schedules.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (\w+)\n\n`([^\n]*)`\n\n```\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    return {name: (constructor, code) for name, constructor, code in sections}


def test_the_page_of_schedules_has_all_of_them():
    """Each with its constructor as it is."""
    classes = [*schedules.SCHEDULES.values(), schedules.Plateau]
    assert formulas().keys() == {cls.__name__ for cls in classes}
    for cls in classes:
        parameters = inspect.signature(cls).parameters.values()
        plain = inspect.Signature([each.replace(annotation=inspect.Parameter.empty) for each in parameters])
        assert formulas()[cls.__name__][0] == f"{cls.__name__}{plain}"


def test_the_page_of_schedules_says_what_they_compute():
    """Its formulas give the values of all examples of the lab."""
    examples = importlib.import_module("fastopt.lab.schedules").examples(unit=50)
    for schedule in (schedule for lines in examples.values() for schedule in lines.values()):
        formula = formulas()[type(schedule).__name__][1]
        fields = {field: getattr(schedule, field) for field in inspect.signature(type(schedule)).parameters}
        for t in range(0, 1001, 10):
            names = {"cos": math.cos, "pi": math.pi, "prod": math.prod, "sqrt": math.sqrt, "t": t, **fields}
            exec(formula, names)
            assert names["value"] == pytest.approx(schedule(t), rel=1e-12, abs=1e-12), (schedule, t)


def test_the_page_of_schedules_says_what_a_plateau_does():
    """Its formula, metric by metric, until the floor is reached."""
    first, *metrics = (0.9 ** np.arange(100) + 0.1 * np.random.default_rng(0).standard_normal(100)).tolist()
    names = {"lr": 0.1, "factor": 0.5, "patience": 3, "threshold": 1e-4, "min_lr": 1e-3, "best": first, "bad": 0}
    plateau = schedules.Plateau(0.1, factor=0.5, patience=3, min_lr=1e-3)
    plateau.update(first)
    for metric in metrics:
        exec(formulas()["Plateau"][1], names | {"metric": metric}, names)
        assert names["lr"] == plateau.update(metric)
    assert plateau.lr == 1e-3


def test_the_page_of_schedules_says_what_is_torchs():
    """Every scheduler of torch is in its table, and the two columns do the same, but for torch's drift."""
    schedulers = torch.optim.lr_scheduler
    page = (ROOT / "docs/schedules.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\([^`]*)` \| `([^`]*)`", page, re.MULTILINE)
    assert {theirs.partition("(")[0] for theirs, _ in rows} >= {*schedulers.__all__} - {"LRScheduler"}
    for theirs, ours in rows:
        opt = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        scheduler, schedule = eval(theirs, {**vars(schedulers), "opt": opt}), eval(ours, vars(schedules))
        metric = [1.0] if "Plateau" in ours else []  # which never improves
        for t in range(100):
            if t:
                opt.step()
                scheduler.step(*metric)
                for each in metric:
                    schedule.update(each)
            assert opt.param_groups[0]["lr"] == pytest.approx(schedule(t), rel=1e-9, abs=1e-12), (theirs, t)


def update_tables():
    """The script that writes figures into the pages."""
    spec = importlib.util.spec_from_file_location("update_tables", ROOT / ".ci/update_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = update_tables().texts()


@pytest.mark.parametrize(("page", "mark"), TEXTS)
def test_the_figures_are_those_of_the_committed_runs(page, mark):
    """As the benchmark writes them from its own output, between the marks and nowhere else."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count(f"<!-- {mark}: begin -->\n{TEXTS[page, mark]}<!-- {mark}: end -->") == 1


def test_every_place_for_figures_is_filled():
    """A mark on a page that the script does not know keeps its figures for ever."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    marks = {
        (page.relative_to(ROOT).as_posix(), mark)
        for page in pages
        for mark in re.findall(r"<!-- (.*): begin -->", page.read_text(encoding="utf-8"))
    }
    assert marks == set(TEXTS)


def span(run, workloads, others, of="ratio"):
    """The least and the greatest ratio of the fastest of others, over the rules, as text."""
    found = {}
    for entry in run["ratios"]:
        if entry["workload"] in workloads and entry["implementation"].startswith(others):
            found.setdefault((entry["workload"], entry["rule"]), []).append(entry[of])
    fastest = [min(ratios) for ratios in found.values() if None not in ratios]  # None is what is unstable
    ends = min(fastest), max(fastest)
    return tuple(f"{each:.{0 if each >= 10 else 1 if each >= 2 else 2}f}" for each in ends)


def test_the_readmes_sentences_have_the_runs_figures():
    """Computed here once more, from the files."""
    cpu, gpu = (
        json.loads((ROOT / f"bench/results/{name}.json").read_text(encoding="utf-8")) for name in ("cpu", "gpu")
    )
    small, large, single = ["mlp"], ["resnet50", "gpt2"], [f"tensor_{size}" for size in ("64k", "1m", "16m", "256m")]
    on_cpu = [span(cpu, workloads, others) for workloads in (small, large) for others in ("numpy", "torch-")]
    on_gpu = [span(gpu, large, "torch-", "gpu"), span(gpu, large, "torch-", "host"), span(gpu, single, "torch-", "gpu")]
    for mark, spans in (("cpu", on_cpu), ("gpu", on_gpu)):
        assert re.findall(r"([\d.]+) to ([\d.]+)", TEXTS["README.md", mark]) == spans


def test_what_is_unstable_is_in_no_sentence():
    """It may be the least, so that its rule is left out; a run in which nothing is left is measured again."""

    def entry(rule, implementation, ratio):
        return {"workload": "mlp", "rule": rule, "implementation": implementation, "ratio": ratio}

    entries = [entry("sgd", "torch-a", 3.0), entry("sgd", "torch-b", None)]
    with pytest.raises(ValueError, match=r"no ratio of torch- is stable .* measure again"):
        headline.fastest(entries, ["mlp"], "torch-")
    entries += [entry("adam", "torch-a", 7.0), entry("adam", "torch-b", 12.0), entry("adagrad", "torch-a", 1.5)]
    assert headline.fastest(entries, ["mlp"], "torch-") == "1.50 to 7.0"


def test_the_page_of_benchmarks_explains_every_name():
    """Each workload and implementation of the committed runs has a row."""
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").partition("## On a CPU")[0]
    explained = {name for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE) for name in row.split(", ")}
    for file in ("cpu.json", "gpu.json"):
        rows = json.loads((ROOT / "bench/results" / file).read_text(encoding="utf-8"))["rows"]
        assert {row["implementation"] for row in rows} <= explained
        assert {row["workload"].partition(",")[0] for row in rows} <= explained
