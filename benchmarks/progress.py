"""A progress bar on a terminal; nothing elsewhere."""

from __future__ import annotations

from typing import TextIO

_WIDTH = 30


class Progress:
    """Shows how many of the steps announced by `begin` are done, if `stream` is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._visible = stream.isatty()
        self._title = ""
        self._total = 0
        self._done = 0

    def begin(self, total: int, title: str = "") -> None:
        """Announce `total` steps, of a part of the run that may have a title."""
        self._title = f"{title}: " if title else ""
        self._total = total
        self._done = 0

    def advance(self) -> None:
        """One step is done."""
        self._done += 1

    def show(self, label: str) -> None:
        """Draw the bar, with what is being done beside it."""
        filled = _WIDTH * self._done // self._total
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._write(f"[{bar}] {100 * self._done // self._total:3d} %  {self._title}{label}")

    def end(self) -> None:
        """Remove the bar."""
        self._write("")

    def _write(self, text: str) -> None:
        if self._visible:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
