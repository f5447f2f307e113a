"""The server: the page, and paths that fastopt computes whenever the page asks for some. It keeps nothing between."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...checks import Count
from ...extras import require
from . import reply
from .landscapes import LANDSCAPES
from .page import asset, page
from .settings import checked, mapping
from .snippet import snippet

LARGEST = 2**16  # bytes of a question; settings have a few hundred
KEPT = 3600  # seconds for which a browser keeps plotly.js, five megabytes
PLOTLY = '<script src="plotly.js"></script>'


def paths(question: Any) -> dict[str, Any]:
    """Answer with the paths of settings."""
    return reply.told(checked(question))


def landscape(question: Any) -> dict[str, Any]:
    """Answer with the grid of a landscape, by its name."""
    if not isinstance(question, str) or question not in LANDSCAPES:
        raise ValueError(f"there is no landscape {question!r:.40}")
    return reply.landscape(question)


def starts(question: Any) -> dict[str, Any]:
    """Answer with how marbles end from some of the random starts."""
    asked = mapping("the question", question)
    first = Count(0, reply.STARTS).check("first", asked.get("first"))
    count = Count(1, reply.STARTS + 1).check("count", asked.get("count"))
    return {"ends": reply.ends_of_starts(checked(asked.get("settings")), first, count)}


def program(question: Any) -> dict[str, Any]:
    """Answer with the lines of Python that do what settings say."""
    return {"code": snippet(checked(question))}


ANSWERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "/paths": paths,
    "/landscape": landscape,
    "/starts": starts,
    "/snippet": program,
}


def answer(path: str, text: bytes) -> dict[str, Any]:
    """Answer a question in JSON; one that makes no sense with ``{"error": ...}``, which the page shows."""
    try:
        return ANSWERS[path](json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        return {"error": str(error)}


class Handler(BaseHTTPRequestHandler):
    """Answers one browser's requests."""

    protocol_version = "HTTP/1.1"  # connections stay open, which saves a millisecond at each touch

    def do_GET(self) -> None:
        """Send the page, or plotly.js."""
        path = self.path.partition("?")[0]
        if path == "/":
            self.reply(page(live=True, plotly=PLOTLY, source=[asset("source.js")]), "text/html")
        elif path == "/plotly.js":
            self.reply(require("plotly.offline", "play").get_plotlyjs(), "text/javascript", kept=KEPT)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Answer a question."""
        length = self.headers.get("Content-Length", "")
        if self.path not in ANSWERS or not length.isdigit() or int(length) > LARGEST:
            self.close_connection = True
            self.send_error(HTTPStatus.NOT_FOUND if self.path not in ANSWERS else HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        told = answer(self.path, self.rfile.read(int(length)))
        self.reply(json.dumps(told, allow_nan=False), "application/json")

    def reply(self, text: str, kind: str, kept: int = 0) -> None:
        """Send a text, which the browser may keep for so many seconds."""
        content = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", f"max-age={kept}" if kept else "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing: every touch is a request."""


class Server(ThreadingHTTPServer):
    """A server for any number of pages at once; its threads end with the process."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a browser that has gone away in the middle of an answer."""


def listen(host: str, port: int) -> Server:
    """Listen, on a free port if the port is 0; raise OSError, which names the address, if that cannot be."""
    try:
        return Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot listen on {host}:{port}: {error}; choose another --port, or none for a free one"
        ) from error
