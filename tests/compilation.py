"""Counts what Numba compiles or loads during a test; no tests here."""

from numba.core import event


class Recorder(event.Listener):
    """Counts what Numba compiles or loads."""

    def __init__(self):
        self.events = []

    def on_start(self, event):
        """Note an event."""
        self.events.append(event.kind)

    def on_end(self, event):
        """Note an event."""
        self.events.append(event.kind)
