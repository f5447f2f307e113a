"""Write the tables of the committed benchmark run into the README and the page of schedules."""

import json
import re
from pathlib import Path

from fastopt.bench import report

ROOT = Path(__file__).parent.parent
BETWEEN = re.compile(r"(?<=<!-- tables: begin -->\n).*(?=<!-- tables: end -->)", re.DOTALL)

run = json.loads((ROOT / "bench/results/cpu.json").read_text(encoding="utf-8"))
for name, tables in (("README.md", report.markdown(run)), ("docs/schedules.md", report.schedules_markdown(run))):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    page.write_text(BETWEEN.sub(lambda match, tables=tables: tables, text), encoding="utf-8")
