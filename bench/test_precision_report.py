"""The table of the lab's experiment on storages."""

from __future__ import annotations

from typing import Any

from fastopt.bench import precision_report


def ends(final: list[float | None], size: float) -> dict[str, Any]:
    """Return the numbers of a storage, as far as the table has them."""
    return {"final": final, "bytes": size}


def test_the_table_has_means_and_marks_those_that_are_far() -> None:
    """Rounded to two digits of the deviation; float32's mean is 2 and its deviation 1."""
    near = {"float32": ends([1.0, 3.0], 12), "bf16 states": ends([2.52, 2.48], 10), "bf16 both": ends([3.0, 5.0], 6)}
    diverged = {**near, "bf16 both": ends([1.0, None], 6.06)}
    trainings = {"digits": {"momentum": near, "adagrad": near, "adam": diverged}}
    assert precision_report.markdown({"seeds": 2, "trainings": trainings}).splitlines()[2:] == [
        "| training | storage | bytes | momentum | adagrad | adam |",
        "|---|---|--:|--:|--:|--:|",
        "| digits | float32 | 12 / 12 | 2.0 ± 1.0 | 2.0 ± 1.0 | 2.0 ± 1.0 |",
        "| digits | bf16 states | 10 / 10 | 2.500 ± 0.020 (+25.0%) | 2.500 ± 0.020 (+25.0%) | 2.500 ± 0.020 (+25.0%) |",
        "| digits | bf16 both | 6 / 6.06 | **4.0 ± 1.0 (+100.0%)** | **4.0 ± 1.0 (+100.0%)** | **diverges** |",
    ]
