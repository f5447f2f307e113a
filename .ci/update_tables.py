"""Write the tables of the committed benchmark run into the README and into the pages that have a place for them."""

import json
import re
from pathlib import Path

from fastopt.bench import report
from fastopt.bench.gpu import report as gpu_report

ROOT = Path(__file__).parent.parent


def fill(page: Path, mark: str, tables: str) -> None:
    """Put tables between a page's marks, where it has them."""
    between = re.compile(rf"(?<=<!-- {mark}: begin -->\n).*(?=<!-- {mark}: end -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    page.write_text(between.sub(lambda match: tables, text), encoding="utf-8")


run = json.loads((ROOT / "bench/results/cpu.json").read_text(encoding="utf-8"))
fill(ROOT / "README.md", "tables", report.markdown(run))
fill(ROOT / "README.md", "gpu tables", gpu_report.markdown_of(ROOT / "bench/results/gpu.json"))
fill(ROOT / "docs/schedules.md", "tables", report.schedules_markdown(run))
fill(ROOT / "docs/embedding.md", "tables", report.loops_markdown(run))
if (about_torch := ROOT / "docs/coming-from-torch.md").exists():
    fill(about_torch, "torch table", report.torch_markdown(run))
