"""``fastopt lab play``: serve the page until an interrupt, or write the lessons as a file."""

from __future__ import annotations

import ipaddress
import sys
import webbrowser
from pathlib import Path

from . import play
from .export import export

WARNING = (
    "fastopt: warning: the page listens on {host}: whoever reaches this machine there can use it, and the processor; "
    "nothing is encrypted"
)


def serve(host: str, port: int, opens: bool) -> None:
    """Serve the page, open it in the browser if so wished, and wait for an interrupt."""
    if not is_this_machine(host):
        print(WARNING.format(host=host), file=sys.stderr)
    with play(host, port) as page:
        print(f"{page.url} (end with Ctrl-C)", flush=True)
        if opens:
            webbrowser.open(page.url)
        page.wait()


def is_this_machine(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def write(path: Path) -> None:
    """Write the lessons."""
    export(path)
    print(f"See {path}, {path.stat().st_size / 1e6:.1f} MB; it needs no network.")
