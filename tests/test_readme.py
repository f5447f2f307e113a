"""What the README and the docs show runs as printed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fastopt.bench import report

from fastopt import fused

ROOT = Path(__file__).parent.parent
PAGES = ["README.md"]


def blocks(page):
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", [code for page in PAGES for code in blocks(page)])
def test_code_runs_as_printed(code, capsys):
    """Each block by itself, as pasted."""
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_first_code_trains(capsys):
    """The loss that it prints falls."""
    exec(compile(blocks("README.md")[0], "README.md", "exec"), {})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.1 * losses[0]


def test_the_page_for_numpy_users_says_what_is_so():
    """Its table's two columns do the same to the bit, or nearly."""
    page = (ROOT / "docs/coming-from-numpy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(w .*|v .*|s .*)` \| `(fused.*)` \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for theirs, ours in rows:
        rng = np.random.default_rng(9)
        start = {name: rng.random(50) for name in "wgvs"}
        results = []
        for code in (theirs, ours):
            names = {name: array.copy() for name, array in start.items()}
            exec(code, {"np": np, "fused": fused, "lr": 0.1, "mu": 0.9, "eps": 1e-10}, names)
            results.append(names)
        for name in "wgvs":
            np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-12)


def test_the_tables_are_those_of_the_committed_run():
    """As the benchmark writes them from its own output."""
    run = json.loads((ROOT / "bench/results/cpu.json").read_text(encoding="utf-8"))
    assert report.markdown(run) in (ROOT / "README.md").read_text(encoding="utf-8")
