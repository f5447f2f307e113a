"""Write the tables of the committed benchmark run into the README."""

import json
import re
from pathlib import Path

from fastopt.bench import report

ROOT = Path(__file__).parent.parent
readme = ROOT / "README.md"
tables = report.markdown(json.loads((ROOT / "bench/results/cpu.json").read_text(encoding="utf-8")))
text = readme.read_text(encoding="utf-8")
between = re.compile(r"(?<=<!-- tables: begin -->\n).*(?=<!-- tables: end -->)", re.DOTALL)
readme.write_text(between.sub(lambda match: tables, text), encoding="utf-8")
