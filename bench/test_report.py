"""What the benchmark writes and prints for invented figures: data, tables, charts."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from fastopt.bench import (
    embedding,
    gpu_host,
    iteration,
    masters_report,
    plot,
    report,
    schedules,
    sparse_report,
    stages,
    storages_report,
    tensors,
    text,
    torch_iteration,
    torch_report,
)
from fastopt.bench.contenders import FASTOPT_TORCH, IN_BFLOAT16, RULES
from fastopt.bench.measure import LIMIT, MODES, Timing
from fastopt.bench.rounds import Comparison, Rounds
from fastopt.bench.workloads import WORKLOADS

from fastopt.schedules import SCHEDULES


def fake(workload: str, rule: str) -> Timing:
    """Three rounds on a machine that slows down: the ratio of medians is 3, the median of the ratios 4."""
    seconds = {
        "numpy": [4.0, 12.0, 32.0],
        "fastopt": [1.0, 4.0, 8.0],
        "numba-by-hand": [0.5, 2.0, 4.0] if rule == "adam" else [1.5, 6.0, 12.0],
        "torch-default": [3.0, 12.0, 24.0],
        "torch-foreach": [3.0, 12.0, 24.0],
        "torch-fused": [2.0, 8.0, 16.0],
        LIMIT: [0.5, 2.0, 4.0],
    }
    if (workload, rule) == ("mlp", "nesterov"):
        seconds["torch-fused"] = [2.0, 40.0, 16.0]
    return Timing(
        workload,
        rule,
        20_000_000_000,
        Rounds([dict(zip(seconds, round_, strict=True)) for round_ in zip(*seconds.values(), strict=True)]),
    )


def fake_torch() -> torch_report.InTorch:
    """The fastest of torch's modes is fused, by medians."""
    costs = {"fastopt.torch": 1e-5, "torch-default": 8e-5, "torch-foreach": 1e-4, "torch-fused": 6e-5}
    of_all: list[Comparison] = [
        {"implementation": name, "seconds": seconds, "ratio": seconds / 1e-5, "rounds": 3, "unstable": {}}
        for name, seconds in costs.items()
    ]
    iterations: list[torch_iteration.TorchTraining] = [
        {"rule": rule, "implementation": name, "seconds": 4e-4, "share": share, "gain": 1.25, "unstable": {}}
        for rule in RULES
        for name, share in zip(torch_iteration.IMPLEMENTATIONS, (0.4, 0.3, 0.1, None), strict=True)
    ]
    return {
        "threads": 2,
        "rows": [{"workload": name, "rule": rule, **one} for name in WORKLOADS for rule in RULES for one in of_all],
        "curve": [
            {"tensors": n, **one, "seconds": n * costs[one["implementation"]]} for n in tensors.COUNTS for one in of_all
        ],
        "iteration": {"parameters": 2410, "batch": 64, "rows": iterations},
    }


def fake_report() -> report.Report:
    timings = [fake(name + suffix, rule) for name in WORKLOADS for rule in RULES for suffix in MODES]
    gains: list[iteration.Iteration] = [
        {
            "rule": rule,
            "seconds_before": 2e-4,
            "seconds_after": 1e-4,
            "share_before": 0.55,
            "share_after": 0.1,
            "gain": 2.0,
            "unstable": {},
        }
        for rule in RULES
    ]
    return {
        "machine": report.machine("numpy", quick=True),
        "torch": fake_torch(),
        "rows": report.rows(timings, "numpy"),
        "ratios": report.ratios(timings),
        "iteration": {"parameters": 2410, "batch": 64, "rules": gains},
        "schedules": {
            "steps": schedules.STEPS,
            "rows": [
                {
                    "schedule": name,
                    "seconds": 0.03,
                    "ratio": 2.0 if name == "Constant" else 2.4,
                    "call_seconds": 1e-6,
                    "unstable": {},
                }
                for name in schedules.EXAMPLES
            ],
            "added_seconds": 2e-6,
            "torch_seconds": 8e-6,
            "unstable": {},
        },
        "embedded": {
            "parameters": 4801,
            "rows": [
                {"rule": rule, "loop": loop, "seconds": 9e-7, "of_step": 3.6, "of_numpy": 29.0, "unstable": {}}
                for rule in RULES
                for loop in (embedding.NUMBA, embedding.HEADER, embedding.POINTER)
            ],
            "elements": 64,
            "call_seconds": 1.4e-8,
            "unstable": {},
        },
        "gpu_host": [
            {
                "rule": rule,
                "tensors": tensors,
                "staying_gradients": 5e-7,
                "new_gradients": 1e-6 + 1e-9 * tensors,
                "unstable": {},
            }
            for rule in gpu_host.RULES
            for tensors in gpu_host.TENSORS
        ],
        "stages": fake_stages(),
        "storages": fake_storages(),
        "masters": fake_masters(),
        "sparse": fake_sparse(),
        "touched": fake_touched(),
    }


def fake_stages() -> list[stages.Stage]:
    """Clipping and averaging in torch, of which the first takes the longest apart from the step."""
    return [
        {
            "stage": stage,
            "against": stages.TORCH,
            "workload": workload,
            "rule": "adamw",
            "implementation": name,
            "seconds": 1e-5 * ratio,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {},
        }
        for stage, ratios in (
            (stages.CLIPPING, {"fastopt.torch": 1.0, stages.CALLED: 1.5, stages.TORCH: 7.0}),
            (stages.AVERAGING, {"fastopt.torch": 1.0, stages.TORCH: 1.25}),
        )
        for workload in ("mlp", "gpt2")
        for name, ratio in ratios.items()
    ]


def fake_storages() -> list[storages_report.Storage]:
    """States in bfloat16, over which a step takes less time."""
    return [
        {
            "workload": "gpt2",
            "rule": "adamw",
            "implementation": name,
            "seconds": 1e-2 * ratio,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {},
            "bytes_per_element": moved,
        }
        for name, ratio, moved in ((IN_BFLOAT16, 1.0, 20.0), (FASTOPT_TORCH, 1.3, 28.0), ("torch-fused", 1.4, 28.0))
    ]


def fake_masters() -> list[masters_report.Master]:
    """Models in bfloat16, whose copies take longer."""
    return [
        {
            "workload": "gpt2",
            "implementation": name,
            "seconds": 1e-2 * ratio,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {},
        }
        for name, ratio in zip((masters_report.MASTERS, *masters_report.OTHERS), (1.0, 1.2, 1.4, 1.6), strict=True)
    ]


def fake_sparse() -> list[sparse_report.Sparse]:
    """A table, which NumPy's users take longer to update."""
    return [
        {
            "rows": 100_000,
            "width": 16,
            "rule": "adagrad",
            "implementation": name,
            "seconds": 1e-4 * ratio,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {},
        }
        for name, ratio in (("fastopt", 1.0), ("numpy", 9.1), ("numba-by-hand", 1.7), ("torch", 5.3))
    ]


def fake_touched() -> list[sparse_report.Touched]:
    """Three tables, of which the smallest is unstable by a gradient of all rows."""
    return [
        {
            "rows": rows,
            "width": 64,
            "touched": rows if name == sparse_report.WHOLE else int(name),
            "implementation": name,
            "seconds": seconds if rows > 10_000 or name != sparse_report.WHOLE else None,
            "ratio": 1.0,
            "rounds": 3,
            "unstable": {"seconds": "2.0x apart"},  # where there is no figure
        }
        for rows in (10_000, 100_000, 1_000_000)
        for name, seconds in (("16", 4e-5), ("4096", 4e-4 + 1e-10 * rows), (sparse_report.WHOLE, 1e-7 * rows))
    ]


def test_ratios_are_medians_of_the_ratios_within_each_round() -> None:
    timing = fake("mlp", "momentum")
    assert timing.rounds.ratio("numpy", "fastopt").value == 4
    assert timing.rounds.seconds("fastopt").value == 4
    assert timing.gbps("fastopt").value == 5
    assert timing.of_limit("fastopt").value == 0.5
    assert LIMIT not in timing.names


def test_rows_and_ratios_are_what_the_json_file_promises() -> None:
    found = fake_report()
    assert found["rows"][1] == {
        "workload": "mlp",
        "rule": "momentum",
        "implementation": "fastopt",
        "seconds": 4.0,
        "speedup": 4.0,
        "gbps": 5.0,
        "of_limit": 0.5,
        "unstable": {},
    }
    assert found["ratios"][4] == {
        "workload": "mlp",
        "rule": "momentum",
        "implementation": "torch-fused",
        "ratio": 2.0,
        "rounds": 3,
        "unstable": {},
    }
    assert found["rows"][6]["workload"] == "mlp, after other work"
    assert json.loads(json.dumps(found)) == found


def test_an_unstable_figure_is_a_reason_and_no_number() -> None:
    """And the row around it stays."""
    found = fake_report()
    (ratio,) = (entry for entry in found["ratios"] if entry["ratio"] is None)
    about = {"workload": "mlp", "rule": "nesterov", "implementation": "torch-fused"}
    assert ratio == {**about, "ratio": None, "rounds": 3, "unstable": {"ratio": "5.0x apart, half of 3 rounds"}}
    (row,) = (row for row in found["rows"] if row["unstable"])
    assert row["unstable"].keys() == {"seconds", "speedup", "gbps", "of_limit"}
    assert all(row[name] is None for name in row["unstable"])  # type: ignore[literal-required]


def test_the_summary_is_a_row_for_each_model_in_one_direction() -> None:
    headings, first, *others = report.summary(fake_report())
    assert headings == ["model", "numpy", "numba-by-hand", "torch-default", "torch's fastest", "the fastest"]
    wins = "fastopt (momentum, adagrad); unstable (nesterov); numba-by-hand (adam)"
    assert first == ["MLP 8-64-64-1", "4.0x", "0.50x to 1.50x", "3.0x", "2.0x, 1 unstable", wins]
    wins = "fastopt (momentum, nesterov, adagrad); numba-by-hand (adam)"
    assert [line[0] for line in others] == [workload.title for workload in WORKLOADS.values()][1:]
    assert all(line[1:] == ["4.0x", "0.50x to 1.50x", "3.0x", "2.0x", wins] for line in others)
    assert report.span([None, None]) == "unstable"


def test_whoever_is_not_there_has_no_column() -> None:
    found = fake_report()
    found["ratios"] = [entry for entry in found["ratios"] if not entry["implementation"].startswith("torch")]
    assert report.summary(found)[0] == ["model", "numpy", "numba-by-hand", "the fastest"]


def test_numbers_are_written_in_the_unit_that_fits() -> None:
    durations = [text.duration(seconds) for seconds in (3e-7, 3.456e-6, 34.56e-6, 345.6e-6, 0.03456, 3.456)]
    assert durations == ["0.30 µs", "3.46 µs", "34.6 µs", "346 µs", "34.6 ms", "3.46 s"]
    assert [text.duration(None), text.times(None), text.percent(None)] == 3 * ["unstable"]
    assert [text.times(ratio) for ratio in (0.003, 0.996, 1.05, 3.14, 41.4)] == [
        "0.003x",
        "1.00x",
        "1.05x",
        "3.1x",
        "41x",
    ]


def test_tables_say_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(fake_report(), tables=True)
    printed = capsys.readouterr().out
    for part in (
        "MLP 8-64-64-1, after other work",
        "against numpy",
        "4.0x / 4.0x",
        "200 µs -> 100 µs: 2.0x",
        "55% -> 10%",
    ):
        assert part in printed
    for part in (*SCHEDULES, "1,000,000 steps", "against np.cos", "2.4x", "adds 2.00 µs"):
        assert part in printed
    assert "Host of a GPU step, driver that does nothing" in printed
    why = "5.0x apart, half of 3 rounds"
    assert f"unstable: MLP 8-64-64-1, nesterov, torch-fused, ratio: {why}" in printed


def test_without_tables_there_is_the_summary_and_why_it_is_unstable(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(fake_report(), tables=False)
    reason, *about, last = capsys.readouterr().out.rstrip().splitlines()
    assert reason == "unstable: MLP 8-64-64-1, nesterov, torch-fused, ratio: 5.0x apart, half of 3 rounds"
    assert "--tables" in " ".join(about[:2])
    assert last.startswith("└")
    assert sum(any(line.startswith(f"│ {workload.title} ") for line in about) for workload in WORKLOADS.values()) == 5


def test_markdown_names_the_machine_and_the_share_of_an_iteration() -> None:
    found = fake_report()
    text = report.markdown(json.loads(json.dumps(found)))
    assert found["machine"]["cpu"] in text
    cells = " | ".join(f"{ratio} / {ratio}" for ratio in ("4.00 s", "4.0x", "1.50x", "3.0x", "3.0x", "2.0x"))
    assert f"| GPT-2 124M | adagrad | {cells} | fastopt |" in text
    assert "| MLP 8-64-64-1 | nesterov |" in text
    assert "| 3.0x / 3.0x | unstable / 2.0x | unstable |" in text
    assert "| GPT-2 124M | 4.0x | 0.50x to 1.50x |" in report.summary_markdown(found)
    assert "| momentum | 200 µs | 55% | 100 µs | 10% | 2.0x |" in text
    assert "takes 2.0x (Constant) to 2.4x (WarmupStableDecay) the time of np.cos" in text
    assert "| Cosine | 30.0 ms | 2.4x | 1.00 µs |" in report.schedules_markdown(found)
    for page in (text, report.loops_markdown(found)):
        assert "| adagrad | C, by pointer | 0.90 µs | 3.6x | 29x |" in page
        assert "One call through the pointer on 64 elements takes 14 ns from C." in page
    assert "Host of a GPU step, driver that does nothing: a step that repeats the last one is one call" in text
    assert "| adam | 2,000 | 0.50 µs | 3.00 µs |" in text
    assert "adds 2.00 µs to fastopt's momentum step; the step of torch's CosineAnnealingLR takes 8.00 µs." in text


def test_tables_of_torch_name_its_fastest_mode_and_what_an_iteration_gains(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(json.dumps(fake_report()))
    report.show(found, tables=True)
    printed = capsys.readouterr().out
    for page in (report.markdown(found), report.torch_markdown(found)):
        assert "| GPT-2 124M | adagrad | 10.0 µs | 8.0x | 10x | 6.0x | 6.0x |" in page
        assert "| momentum | 400 µs, 40% | 400 µs, 30% | 400 µs, 10% | 400 µs | 1.25x | 1.25x |" in page
        assert "fastopt.torch 10.0 µs and 10.0 µs; torch-default 80.0 µs and 80.0 µs;" in page
    assert found["machine"]["cpu"] in report.torch_markdown(found)
    assert "against the fastest" in printed
    assert "400 µs, 30%" in printed


def test_the_table_of_stages_is_on_the_page_and_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(json.dumps(fake_report()))
    report.show(found, tables=True)
    printed = capsys.readouterr().out
    for page in (report.markdown(found), printed):
        cells = [re.split(r" *[|│] *", line)[1:-1] for line in page.splitlines() if re.match("[|│] (clip|aver)", line)]
        numbers = [(line[0], line[1], *line[-3:]) for line in cells]
        assert numbers == [
            ("clipping", "MLP 8-64-64-1", "10.0 µs", "7.0x", "1.50x"),
            ("clipping", "GPT-2 124M", "10.0 µs", "7.0x", "1.50x"),
            ("averaging", "MLP 8-64-64-1", "10.0 µs", "1.25x", ""),
            ("averaging", "GPT-2 124M", "10.0 µs", "1.25x", ""),
        ]


def test_the_table_of_storages_is_on_the_page_and_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(json.dumps(fake_report()))
    report.show(found, tables=True)
    printed = capsys.readouterr().out
    for page in (report.markdown(found), printed):
        (line,) = (line for line in page.splitlines() if line.endswith(("20.0 / 28.0 |", "20.0 / 28.0 │")))
        cells = re.split(r" *[|│] *", line)[1:-1]
        assert cells == ["GPT-2 124M", "adamw", "10.0 ms", "", "1.30x", "1.40x", "", "20.0 / 28.0"]


def test_the_table_of_masters_is_on_the_page_and_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(json.dumps(fake_report()))
    report.show(found, tables=True)
    for page in (report.markdown(found), capsys.readouterr().out):
        (line,) = (line for line in page.splitlines() if "1.20x" in line and "1.60x" in line)
        assert re.split(r" *[|│] *", line)[1:-1] == ["GPT-2 124M", "10.0 ms", "1.20x", "1.40x", "1.60x"]


def test_reports_of_steps_alone_have_the_tables_of_these(capsys: pytest.CaptureFixture[str]) -> None:
    """A quick run has nothing else, and where torch is missing there is nothing of it."""
    found = fake_report()
    found["torch"] = found["iteration"] = found["schedules"] = found["embedded"] = found["gpu_host"] = found[
        "stages"
    ] = found["storages"] = found["masters"] = found["sparse"] = found["touched"] = None
    report.show(found, tables=True)
    for page in (report.markdown(found), capsys.readouterr().out):
        assert not [
            part
            for part in ("fastopt.torch", "np.cos", "pointer", "iteration", "Host", "clip", "bfloat16")
            if part in page
        ]
    assert report.torch_markdown(found) == report.schedules_markdown(found) == report.loops_markdown(found) == ""


def test_what_else_is_unstable_is_named_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps in torch, curve, iterations, schedules, loops: no table and no chart needs a number."""
    found: Any = fake_report()
    why = "2.0x apart, half of 9 rounds"
    parts = [found["torch"][name] for name in ("rows", "curve")] + [found["torch"]["iteration"]["rows"]]
    parts += [found["iteration"]["rules"], found["schedules"]["rows"], found["embedded"]["rows"]]
    parts += [[found["schedules"]], [found["embedded"]], found["gpu_host"], found["stages"]]
    parts += [found["storages"], found["masters"], found["sparse"]]
    for entry in itertools.chain.from_iterable(parts):
        counted = "bytes_per_element"  # not measured, so never unstable
        numbers = [name for name, value in entry.items() if isinstance(value, float) and name != counted]
        entry |= dict.fromkeys(numbers) | {"unstable": dict.fromkeys(numbers, why)}
    report.show(found, tables=True)
    printed = capsys.readouterr().out
    for line in (
        "GPT-2 124M, adam, torch-fused, seconds",
        "torch-fused, 3000 tensors, seconds",
        "adam, step_in_backward, gain",
        "adam, share before",
        "Cosine, call seconds",
        "added seconds",
        "adam, C++, of numpy",
        "adam, 2000 tensors, new gradients",
        "clipping, torch-fused, GPT-2 124M, adamw, opt.clip_grad_norm_, ratio",
        "GPT-2 124M, adamw, fastopt.torch, bfloat16 states, seconds",
    ):
        assert f"{line}: {why}" in printed
    for page in (report.markdown, report.torch_markdown, report.schedules_markdown, report.loops_markdown):
        assert "unstable" in page(found)


def test_without_the_labs_data_torchs_iterations_are_left_out() -> None:
    found = fake_torch()
    found["iteration"] = None
    assert "training iteration" not in "\n".join(torch_report.markdown(found))


def test_without_torch_nothing_is_said_of_its_scheduler() -> None:
    found = fake_report()
    assert found["schedules"] is not None
    found["schedules"]["torch_seconds"] = None
    assert "adds 2.00 µs to fastopt's momentum step." in report.markdown(found)


def test_the_chart_has_the_readmes_width(tmp_path: Path) -> None:
    plot.draw(fake_report(), str(tmp_path / "bench.png"))
    height, width, _ = matplotlib.image.imread(tmp_path / "bench.png").shape
    assert width == 1800  # twice 900, for sharp screens
    assert 800 < height < 1400


def test_the_curve_has_the_readmes_width(tmp_path: Path) -> None:
    plot.draw_curve(fake_report(), str(tmp_path / "curve.png"))
    height, width, _ = matplotlib.image.imread(tmp_path / "curve.png").shape
    assert width == 1800
    assert 700 < height < 1200


def test_the_chart_of_sparse_gradients_has_the_readmes_width(tmp_path: Path) -> None:
    """An unstable time is left out, as all of a table's may be."""
    found: Any = fake_report()
    plot.draw_touched(found, str(tmp_path / "sparse.png"))
    for row in found["touched"]:
        row["seconds"] = None if row["rows"] == 100_000 else row["seconds"]
    plot.draw_touched(found, str(tmp_path / "others.png"))
    height, width, _ = matplotlib.image.imread(tmp_path / "sparse.png").shape
    assert width == 1800
    assert 700 < height < 1200
