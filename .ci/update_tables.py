"""Write the tables and sentences of the committed runs into the pages; draw the README's GPU chart."""

import json
from pathlib import Path

from fastopt.bench import codes_report, headline, precision_report, report
from fastopt.bench.gpu import plot, saved
from fastopt.bench.gpu import report as gpu_report

ROOT = Path(__file__).parent.parent


def fill(page: str, mark: str, text: str) -> None:
    """Put a text between a page's marks."""
    path = ROOT / page
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {mark}: end -->")
    if not end:
        raise SystemExit(f"{page} lacks the marks for {mark!r}")
    path.write_text(before + begin + text + end + after, encoding="utf-8")


def texts() -> dict[tuple[str, str], str]:
    """Return the texts of the runs: ``{(page, mark): text}``."""
    run = json.loads((ROOT / "bench/results/cpu.json").read_text(encoding="utf-8"))
    codes = json.loads((ROOT / "bench/results/codes.json").read_text(encoding="utf-8"))
    gpu_run = ROOT / "bench/results/gpu.json"
    accuracy = json.loads((ROOT / "bench/results/precision.json").read_text(encoding="utf-8"))
    return {
        ("README.md", "cpu"): headline.cpu(run),
        ("README.md", "gpu"): headline.gpu(saved.read(gpu_run)),
        ("docs/benchmarks.md", "summary"): report.summary_markdown(run),
        ("docs/benchmarks.md", "tables"): report.markdown(run),
        ("docs/benchmarks.md", "limits"): headline.limits(run),
        ("docs/benchmarks.md", "gpu tables"): gpu_report.markdown_of(gpu_run),
        ("docs/benchmarks.md", "codes"): codes_report.markdown(codes),
        ("docs/schedules.md", "tables"): report.schedules_markdown(run),
        ("docs/schedules.md", "added"): f"{report.added(run['schedules'])}\n",
        ("docs/embedding.md", "tables"): report.loops_markdown(run),
        ("docs/memory.md", "precision"): precision_report.markdown(accuracy),
        ("docs/coming-from-torch.md", "torch table"): report.torch_markdown(run),
    }


if __name__ == "__main__":
    for (page, mark), text in texts().items():
        fill(page, mark, text)
    plot.draw_overview(saved.read(ROOT / "bench/results/gpu.json"), str(ROOT / "docs/bench-gpu-models.png"))
