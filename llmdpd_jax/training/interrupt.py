"""Ending a long run early without losing it."""

import signal

from rich.console import Console

console = Console(stderr=True)


class Interrupt:
    """Turns SIGINT and SIGTERM into a flag, so that a run ends at a safe place with what it has, called `kept`."""

    def __init__(self, kept: str):
        self._kept = kept

    def __enter__(self):
        self.signal = None
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number, _frame):
        if self.signal is not None:  # asked twice: stop at once
            raise KeyboardInterrupt
        self.signal = number
        name = signal.Signals(number).name
        console.print(f"{name}: stopping after this call, with {self._kept} (again to stop now)")

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
