"""A live view of the stream in the terminal: what `streamer demo` and `streamer watch` show.

On a terminal it takes the whole screen, redraws at most once per `refresh_s`, and leaves the last picture behind when
it closes. Where the standard output is no terminal it says one line every `line_s`, and one for every alarm.

It starts no thread: it redraws when it is told something. Whoever feeds it from a socket that may fall silent calls
`refresh` now and then, so that the age of what is shown is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console, RenderableType
from rich.live import Live

from streamer.metrics import Metrics
from streamer.outputs import Output
from streamer.outputs.terminal import view
from streamer.records import Alarm, BadConfig, Result, Status

__all__ = ["Terminal"]

LAST_HEIGHT = 24  # lines of the picture that stays when the view is closed


class Terminal(Output):
    """The view. `console` may be set before `open`; it is the standard output otherwise.

    refresh_s: seconds between two redraws, at least. history: values kept of every quantity. line_s: seconds between
    two lines where there is no terminal.
    """

    name = "terminal"

    def __init__(self, refresh_s: float = 0.25, history: int = 240, line_s: float = 10.0) -> None:
        problems = []
        if not refresh_s >= 0.05:
            problems.append(
                f"terminal: refresh_s is {refresh_s}, expected at least 0.05: drawing takes time from frames"
            )
        if not 1 <= history <= 100_000:
            problems.append(f"terminal: history is {history}, expected 1 to 100000 values")
        if not line_s >= 0:
            problems.append(f"terminal: line_s is {line_s}, expected seconds, 0 or more")
        if problems:
            raise BadConfig(*problems)
        self.refresh_s = refresh_s
        self.line_s = line_s
        self.console: Console | None = None
        self._clock: Callable[[], float] = time.monotonic
        self._picture = view.Picture(length=history)
        self._live: Live | None = None
        self._drawn = self._said = float("-inf")
        self._heard = 0.0

    def show_limits(self, limits: Mapping[str, float]) -> None:
        """The limits of rules by the quantity they watch ("saxs.anomaly"), to be shown before an alarm names them."""
        self._picture.limits.update(limits)

    def open(self, metrics: Metrics) -> None:
        """Take the screen."""
        self.close()
        self.console = self.console or Console()
        self._heard = self._clock()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(console=self.console, screen=True, auto_refresh=False, get_renderable=self._whole_screen)
            self._live.start()

    def write(self, result: Result) -> None:
        """Show a result."""
        self._picture.add_result(result)
        self.refresh()

    def alarm(self, alarm: Alarm) -> None:
        """Show an alarm."""
        self._picture.add_alarm(alarm)
        if self._live is None:
            self._say(view.plain_alarm_line(alarm))
        self.refresh()

    def status(self, status: Status) -> None:
        """Show how the stream is doing."""
        self._picture.add_status(status)
        self._heard = self._clock()
        self.refresh()

    def refresh(self) -> None:
        """Draw again, unless that was done a moment ago."""
        now = self._clock()
        if self._live is not None and now - self._drawn >= self.refresh_s:
            self._drawn = now
            self._live.refresh()
        elif self._live is None and self._picture.status is not None and now - self._said >= self.line_s:
            self._said = now
            self._say(view.plain_line(self._picture))

    def render(self, width: int, height: int) -> RenderableType:
        """The view on so many characters."""
        self._picture.age_s = self._clock() - self._heard if self._picture.status is not None else 0.0
        return view.render(self._picture, width, height)

    def close(self) -> None:
        """Give the screen back and leave the last picture on it."""
        if self._live is None or self.console is None:
            return
        self._live.stop()
        self._live = None
        self.console.print(self.render(self.console.width, min(self.console.height, LAST_HEIGHT)))

    def _whole_screen(self) -> RenderableType:
        width, height = self.console.size if self.console is not None else (80, 24)
        return self.render(width, height)

    def _say(self, line: str) -> None:
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
