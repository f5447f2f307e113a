"""Pages of the documentation, as tests read them; no tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(page, language="python"):
    """The blocks of code on a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
