"""The landscape in the browser: click a start, turn it, try again. ``fastopt lab play``, or ``fastopt.lab.play()``.

A landscape's loss is in `formulas`, a marble's rule and options in `marbles`, its way in `walk`, the schedules in
`shapes`; `settings` checks what a page asks for, `reply` says what it is told. The page itself is in ``assets``; `page`
puts it together, `server` answers it, and `export` writes it with a table of paths in place of a server.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server import Server

HEIGHT = 800  # pixels of the page in a notebook


class Play:
    """A page that is being served, by a thread; a notebook shows it.

    Attributes
    ----------
    url : str
        Its address.
    """

    def __init__(self, server: Server) -> None:
        host, port = server.server_address[:2]
        self.url = f"http://{host!s}:{port}/"
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the page is closed, from elsewhere or by an interrupt."""
        while self._thread.is_alive():
            self._thread.join(0.5)  # a wait without an end would not be interrupted on every system

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Play:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop serving."""
        self.close()

    def _repr_html_(self) -> str:
        """Return a frame with the page, for IPython."""
        return f'<iframe src="{self.url}" width="100%" height="{HEIGHT}" style="border: 0"></iframe>'


def play(host: str = "127.0.0.1", port: int = 0) -> Play:
    """Serve the page in which marbles roll through landscapes, by the rules and schedules of fastopt.

    Kernels are compiled first, which takes about a minute once; a progress bar shows it.

    Parameters
    ----------
    host : str, default "127.0.0.1"
        The address to listen on. Whoever reaches it can use the page, and this machine's processor.
    port : int, default 0
        The port; 0 means a free one.

    Returns
    -------
    Play
        A notebook shows it as a frame with the page. Elsewhere open its ``url`` in a browser; its ``close()`` ends it.

    Raises
    ------
    ImportError
        If Plotly is not installed; the extra ``fastopt[play]`` has it.
    OSError
        If the port is taken.
    """
    from ...extras import require

    require("plotly.offline", "play")
    from .server import listen
    from .warm import compile_all

    compile_all()
    return Play(listen(host, port))
