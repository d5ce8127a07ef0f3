"""What the terminal shows: a picture of the stream, and how it is laid out on so many columns and lines.

Severity is always told three times, by symbol, word and colour. A status that is too old is shown as INVALID: a view
nobody feeds must not look like a stream that is fine.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streamer.outputs.terminal import sketch
from streamer.records import Account, Alarm, Quantity, Result, Severity, Status

__all__ = ["Picture", "plain_alarm_line", "plain_line", "render"]

Part = str | tuple[str, str]  # text, or text and its style

MAX_QUANTITIES = 64
MAX_HISTORY = 64  # alarms that ended and are still listed where there is room

SYMBOLS = {
    Severity.NO_ALARM: ("✓", "green"),
    Severity.MINOR: ("△", "yellow"),
    Severity.MAJOR: ("▲", "bold red"),
    Severity.INVALID: ("✖", "bold magenta"),
}
STATES = {"running": ("●", "green"), "waiting": ("◌", "cyan"), "stalled": ("✖", "bold magenta")}
QUIET = "grey50"
FRAME = "grey35"
CURVE = "bright_cyan"

HEADER_HEIGHT = 3
LEAST_MIDDLE = 9  # lines in which the ledger says everything but "pending"; 11 where there is room
LEDGER_WIDTH = 29
NARROW = 64  # columns below which panels are not put side by side


@dataclass
class History:
    """The last values of one scalar quantity. limit: of the rule that watches it, once an alarm has named it."""

    unit: str
    values: deque[float]
    sigma: float | None = None
    sigmas: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    limit: float | None = None


@dataclass
class Picture:
    """All that is shown. `length`: values kept per quantity. `age_s`: how old the last status is."""

    length: int = 240
    status: Status | None = None
    age_s: float = 0.0
    stale_s: float = 5.0
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    quantities: dict[str, History] = field(default_factory=dict)
    profile: Quantity | None = None
    last: Result | None = None
    limits: dict[str, float] = field(default_factory=dict)
    active: dict[str, Alarm] = field(default_factory=dict)
    ended: deque[Alarm] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))

    def add_result(self, result: Result) -> None:
        """Scalars go to their histories, the quantity "profile" to the plot."""
        self.last = result
        for short_name, quantity in result.quantities.items():
            if np.ndim(quantity.value) == 0:
                self._add_scalar(_full_name(result, short_name), quantity)
            elif short_name == "profile" and len(quantity.axes) == 1:
                self.profile = quantity

    def add_alarm(self, alarm: Alarm) -> None:
        """An alarm began, changed or ended."""
        self.active.pop(alarm.id, None)
        if alarm.is_active:
            self.active[alarm.id] = alarm
        elif alarm.id not in {one.id for one in self.ended}:
            self.ended.appendleft(alarm)
        self._learn_limit(alarm)

    def add_status(self, status: Status) -> None:
        """The status names every active alarm; whatever else was thought active has ended unseen."""
        self.status = status
        self.rates.append(status.frames_per_second)
        self.active = {alarm.id: alarm for alarm in status.alarms}
        for alarm in status.alarms:
            self._learn_limit(alarm)

    def worst(self) -> Severity:
        """The highest severity of all active alarms."""
        return max((alarm.severity for alarm in self.active.values()), default=Severity.NO_ALARM)

    def _add_scalar(self, name: str, quantity: Quantity) -> None:
        history = self.quantities.get(name)
        if history is None:
            if len(self.quantities) >= MAX_QUANTITIES:
                return
            history = self.quantities[name] = History(quantity.unit, deque(maxlen=self.length))
            history.limit = self.limits.get(_watched_name(name))
        history.values.append(float(quantity.value))
        history.sigma = None if quantity.sigma is None else float(quantity.sigma)
        if history.sigma is not None and math.isfinite(history.sigma):
            history.sigmas.append(history.sigma)

    def _learn_limit(self, alarm: Alarm) -> None:
        limit = alarm.evidence.get("limit")
        if isinstance(limit, int | float):
            self.limits[alarm.watch] = float(limit)
            for name, history in self.quantities.items():
                if _watched_name(name) == alarm.watch:
                    history.limit = float(limit)


def plain_line(picture: Picture) -> str:
    """The picture in one line, for logs and pipes."""
    status = picture.status
    if status is None:
        return "no status yet"
    account = status.series or (status.closed[-1] if status.closed else None)
    parts = [_clock_time(status.wall_time), status.state, status.source]
    if account is not None:
        lost = account.missing + account.malformed + account.dropped + account.late
        parts.append(f"series {account.series}: {account.analysed}/{account.announced} frames, {lost} lost")
    parts.append(f"{status.frames_per_second:.1f} frames/s")
    parts += [f"{name} {value:.1f} ms" for name, value in status.latency_ms.items()]
    parts.append(_count_alarms(picture.active.values()))
    return _harmless(" · ".join(parts))


def plain_alarm_line(alarm: Alarm) -> str:
    """An alarm in one line."""
    when = _clock_time(alarm.began if alarm.ended is None else alarm.ended)
    what = alarm.severity.name if alarm.is_active else f"ended ({alarm.severity.name})"
    return _harmless(f"{when} · ALARM {alarm.name} · {what} · {alarm.text}")


# The layout.


def render(picture: Picture, width: int, height: int) -> RenderableType:
    """The picture on `width` × `height` characters. Below 64 × 22 what matters less is left out."""
    middle, quantities, bottom = _heights(picture, height)
    rows = [Layout(_header(picture, width), size=HEADER_HEIGHT)]
    if middle:
        rows.append(_middle(picture, width, middle))
    if quantities:
        rows.append(Layout(_quantities(picture, width - 4, quantities - 2), size=quantities))
    if bottom:
        rows.append(_bottom(picture, width, bottom))
    whole = Layout(size=height)
    whole.split_column(*rows)
    return whole


def _heights(picture: Picture, height: int) -> tuple[int, int, int]:
    """Lines of the three rows of panels under the header; 0 for a row that has no room."""
    left = height - HEADER_HEIGHT
    if left < 4:
        return 0, 0, 0
    if left < 10:
        return left, 0, 0
    if left < LEAST_MIDDLE + 7:
        return left - 5, 5, 0
    spare = max(0, left - LEAST_MIDDLE - 10)
    quantities = 5 + min(max(0, len(picture.quantities) - 3), spare // 3)
    bottom = 5 + min(7, spare // 4)
    return left - quantities - bottom, quantities, bottom


def _panel(content: RenderableType, title: str, subtitle: Text | None = None) -> Panel:
    return Panel(
        content,
        title=_line((title, "bold white")),
        title_align="left",
        subtitle=subtitle,
        subtitle_align="right",
        border_style=FRAME,
        padding=(0, 1),
    )


def _line(*parts: Part, style: str = "") -> Text:
    """One line of (text, style) that is cut, not wrapped, and holds nothing a terminal would obey."""
    line = Text(style=style, no_wrap=True, overflow="ellipsis")
    for part in parts:
        text, part_style = (part, "") if isinstance(part, str) else part
        line.append(_harmless(text), part_style)
    return line


def _header(picture: Picture, width: int) -> RenderableType:
    status = picture.status
    if status is None:
        return Group(_line(("streamer", "bold")), _line(("waiting for the first status", QUIET)), _banner(picture))
    symbol, style = STATES.get(status.state, ("○", "yellow"))
    top = Table.grid(expand=True, padding=(0, 1))
    top.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    top.add_column(justify="right", no_wrap=True)
    left = _line((" streamer ", "bold reverse"), " ", (status.source, "bold"))
    right = _line(
        (f"{symbol} {status.state.upper()}", style),
        (f"   series {_series(status)}" if _account(status) else "", ""),
        (f"   {_clock_time(status.wall_time)}", QUIET),
    )
    top.add_row(left, right)
    return Group(top, _rates(picture, status, width), _banner(picture))


def _rates(picture: Picture, status: Status, width: int) -> Text:
    blocks = 12 if width >= 80 else 6
    latency = [part for name, value in status.latency_ms.items() for part in ((f"{name} ", QUIET), f"{value:.1f} ")]
    return _line(
        " ",
        (f"{status.frames_per_second:.1f}", "bold"),
        " frames/s ",
        (sketch.sparkline(list(picture.rates), blocks, limit=0.0), CURVE),
        ("   latency ", QUIET),
        *latency,
        ("ms   " if latency else "–   ", QUIET),
        *((f"{name} on {device} ", QUIET) for name, device in status.devices.items()),
    )


def _banner(picture: Picture) -> Text:
    """The worst news, over the whole width."""
    if picture.age_s > picture.stale_s:
        text = f" ✖ INVALID  no status for {picture.age_s:.0f} s: nothing below can be trusted"
        return _line(text, style="bold white on dark_magenta")
    if picture.status is None:
        return _line((" ◌ nothing is known yet", QUIET))
    if not picture.active:
        return _line((" ✓ no alarm", "green"))
    worst = max(picture.active.values(), key=lambda alarm: (alarm.severity, alarm.began))
    symbol, _ = SYMBOLS[worst.severity]
    text = f" {symbol} {worst.severity.name}  {worst.name}  since {_clock_time(worst.began)}"
    if len(picture.active) > 1:
        text += f"  and {len(picture.active) - 1} more"
    return _line(f"{text}  {worst.text}", style=_banner_style(worst.severity))


def _banner_style(severity: Severity) -> str:
    background = {Severity.MAJOR: "white on dark_red", Severity.INVALID: "white on dark_magenta"}
    return f"bold {background.get(severity, 'black on yellow3')}"


def _middle(picture: Picture, width: int, height: int) -> Layout:
    ledger = _ledger(picture, height - 2)
    if width < NARROW:
        return Layout(ledger, size=height)
    middle = Layout(size=height)
    profile = _profile(picture, width - LEDGER_WIDTH - 4, height - 2)
    middle.split_row(Layout(ledger, size=LEDGER_WIDTH), Layout(profile))
    return middle


def _bottom(picture: Picture, width: int, height: int) -> Layout:
    alarms = _alarms(picture, height - 2)
    if width < NARROW:
        return Layout(alarms, size=height)
    bottom = Layout(size=height)
    machine_width = width * 2 // 5
    machine = _machine(picture, machine_width - 4, height - 2)
    bottom.split_row(Layout(machine, size=machine_width), Layout(alarms))
    return bottom


# The panels.


def _ledger(picture: Picture, rows: int) -> Panel:
    status = picture.status
    account = None if status is None else _account(status)
    if status is None or account is None:
        return _panel(Text("no series yet", style=QUIET), "ledger")
    table = Table.grid(expand=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(width=2, justify="right", no_wrap=True)
    lines = _ledger_lines(account) + (_wire_lines(status) if rows >= 14 else [])
    for name, count, mark, style in lines[:rows]:
        table.add_row(_line((name, style or QUIET)), _line((count, style or "bold")), _line((mark, style)))
    fraction = account.analysed / account.announced if account.announced else 0.0
    full, empty = sketch.bar(fraction, 14)
    share = (
        f" {100 * len(full) // 14} %" if not account.announced else f" {100 * account.analysed // account.announced} %"
    )
    return _panel(table, "ledger", Text.assemble((full, "green"), (empty, FRAME), (share, QUIET)))


def _ledger_lines(account: Account) -> list[tuple[str, str, str, str]]:
    """Name, count, mark and style of each line; what was lost carries an exclamation mark."""
    lost = [
        ("missing", account.missing),
        ("malformed", account.malformed),
        ("dropped", account.dropped),
        ("late", account.late),
        ("before join", account.before_join),
    ]
    announced = "announced" if account.is_announced else "announced, at least"
    found = "✓" if account.unaccounted == 0 else "✖"
    return [
        (announced, f"{account.announced:,}", "", ""),
        ("analysed", f"{account.analysed:,}", "", ""),
        *((name, f"{count:,}", "!" if count else "", "yellow" if count else "") for name, count in lost),
        ("pending", f"{account.pending:,}", "", ""),
        ("unaccounted", f"{account.unaccounted:,}", found, "green" if found == "✓" else "bold red"),
    ]


def _wire_lines(status: Status) -> list[tuple[str, str, str, str]]:
    """What the wire side of the ledger has to say, where there is room."""
    wire = status.wire
    odd = [
        ("  duplicate", wire.duplicate),
        ("  late", wire.late),
        ("  stale", wire.stale),
        ("  unannounced", wire.unannounced),
        *((f"  malformed {reason}", count) for reason, count in sorted(wire.malformed.items())),
        ("  out of order", wire.out_of_order),
    ]
    return [
        ("", "", "", ""),
        ("messages", f"{wire.messages:,}", "", ""),
        ("  control", f"{wire.control:,}", "", ""),
        *((name, f"{count:,}", "!" if count else "", "yellow" if count else "") for name, count in odd),
    ]


def _profile(picture: Picture, width: int, height: int) -> Panel:
    profile = picture.profile
    if profile is None or picture.last is None:
        return _panel(Text("no profile yet", style=QUIET), "profile")
    (name, (axis, unit)) = next(iter(profile.axes.items()))
    title = f"I({name})" if name == "q" else f"profile({name})"
    axis_title = f"{name} / {sketch.unit_text(unit)}" if unit != "1" else name
    lines = sketch.loglog(np.asarray(axis), np.asarray(profile.value), width, height, x_unit=axis_title)
    content: RenderableType = Text("not enough positive values, or not enough room", style=QUIET)
    if lines:
        content = Group(*(_line((axes, QUIET), (curve, CURVE)) for axes, curve in lines))
    in_unit = f" / {sketch.unit_text(profile.unit)}" if profile.unit != "1" else ""
    return _panel(content, f"{title}{in_unit}", Text(f"frame {picture.last.number:,}", style=QUIET))


def _quantities(picture: Picture, width: int, rows: int) -> Panel:
    if not picture.quantities:
        return _panel(Text("no result yet", style=QUIET), "quantities")
    # Those with a limit first; the order of appearance otherwise, so that lines keep their places.
    ordered = sorted(picture.quantities.items(), key=lambda item: item[1].limit is None)
    shown = ordered if len(ordered) <= rows else ordered[: rows - 1]
    watched = {alarm.watch: alarm.severity for alarm in picture.active.values()}
    cells = [_quantity_cells(name, history, watched.get(_watched_name(name))) for name, history in shown]
    widths = [max(len(row[column][0]) for row in cells) for column in range(3)]
    widths[0] = min(widths[0], width // 3)
    blocks = width - sum(widths) - 3
    table = Table.grid(padding=(0, 1, 0, 0))
    for column_width, justify in zip((*widths[:2], blocks, widths[2]), ("left", "right", "right", "left"), strict=True):
        table.add_column(width=max(column_width, 0), justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    for (_, history), (name, value, limit) in zip(shown, cells, strict=True):
        table.add_row(_line(name), _line(value), _line((_recent(history, blocks), name[1] or CURVE)), _line(limit))
    hidden = [_line((f"… and {len(ordered) - len(shown)} more", QUIET))] if len(shown) < len(ordered) else []
    return _panel(Group(table, *hidden), "quantities", _line(("newest →", QUIET)))


def _quantity_cells(name: str, history: History, severity: Severity | None) -> list[tuple[str, str]]:
    """Name, value and limit, each with its style."""
    symbol, style = SYMBOLS[severity] if severity else (" ", "")
    value = f"{sketch.measured(history.values[-1], history.sigma)} {sketch.unit_text(history.unit)}".strip()
    limit = "" if history.limit is None else f"limit {history.limit:.4g}"
    return [(f"{symbol} {name}", style), (value, style or "bold"), (limit, QUIET)]


def _recent(history: History, blocks: int) -> str:
    noise = float(np.median(history.sigmas)) if history.sigmas else 0.0
    return sketch.sparkline(list(history.values), blocks, limit=history.limit, least_span=4 * noise)


def _machine(picture: Picture, width: int, rows: int) -> Panel:
    status = picture.status
    if status is None:
        return _panel("", "machine")
    stages = [((f"{name} ", QUIET), f"{value:.3g}  ") for name, value in status.stages.items()]
    outputs = [_output(name, state) for name, state in status.outputs.items()]
    queues = [_queue(name, queue) for name, queue in status.queues.items()]
    groups = (("stages/ms  ", stages), ("outputs  ", outputs), ("queues  ", queues))
    lines = [line for title, items in groups if items for line in _packed([((title, "bold"),), *items], width)]
    return _panel(Group(*lines[:rows]), "machine")


def _packed(items: Sequence[Sequence[Part]], width: int) -> list[Text]:
    """Items side by side on as many lines as they need; none is broken."""
    lines: list[list[Part]] = [[]]
    taken = 0
    for item in items:
        length = sum(len(part if isinstance(part, str) else part[0]) for part in item)
        if taken and taken + length > width + 2:  # an item ends in two blanks, which may be cut
            lines.append([])
            taken = 0
        lines[-1].extend(item)
        taken += length
    return [_line(*line) for line in lines]


def _queue(name: str, queue: Mapping[str, int]) -> tuple[Part, Part]:
    depth, size = queue.get("depth", 0), queue.get("size", 0)
    is_full = 0 < size <= depth
    return (f"{name} ", QUIET), (f"{depth}/{size}{' full!' if is_full else ''}  ", "yellow" if is_full else "")


def _output(name: str, state: str) -> tuple[Part, Part]:
    return (f"{name} ", QUIET), ("✓  ", "green") if state == "up" else ("✖ down  ", "bold red")


def _alarms(picture: Picture, rows: int) -> Panel:
    now = picture.status.wall_time if picture.status is not None else 0.0
    active = sorted(picture.active.values(), key=lambda alarm: (-alarm.severity, -alarm.began))
    lines = [_active_line(alarm, now) for alarm in active] + [_ended_line(alarm) for alarm in picture.ended]
    if len(lines) > rows:
        lines = [*lines[: rows - 1], _line((f"… and {len(lines) - rows + 1} more", QUIET))]
    content = Group(*lines) if lines else Text("none since the view was opened", style=QUIET)
    return _panel(content, "alarms", Text(_count_alarms(active), style=QUIET))


def _active_line(alarm: Alarm, now: float) -> Text:
    symbol, style = SYMBOLS[alarm.severity]
    acknowledged = "  acknowledged" if alarm.acknowledged else ""
    return _line(
        (f"{symbol} {alarm.severity.name} {alarm.name}", style),
        f"  {_duration(now - alarm.began)}",
        (f"{acknowledged}  {alarm.text}", QUIET),
    )


def _ended_line(alarm: Alarm) -> Text:
    ended = alarm.ended if alarm.ended is not None else alarm.began
    lasted = f"{_clock_time(alarm.began)} for {_duration(ended - alarm.began)}"
    return _line((f"○ ended {alarm.name}  {lasted}  {alarm.severity.name}", QUIET))


# Words and numbers.


def _account(status: Status) -> Account | None:
    """The account of the running series, or of the last one."""
    if status.series is not None:
        return status.series
    return status.closed[-1] if status.closed else None


def _series(status: Status) -> str:
    account = _account(status)
    if account is None:
        return ""
    return f"{account.series.number}{f' ({account.closed_by})' if account.closed_by else ''}"


def _full_name(result: Result, name: str) -> str:
    channel = f"[{result.channel}]" if result.channel else ""
    return f"{result.analysis}.{name}{channel}"


def _watched_name(full_name: str) -> str:
    """The name a rule watches: without the channel."""
    return full_name.partition("[")[0]


def _count_alarms(alarms: Iterable[Alarm]) -> str:
    severities: Sequence[Severity] = [alarm.severity for alarm in alarms]
    counts = [f"{severities.count(one)} {one.name}" for one in sorted(set(severities), reverse=True)]
    return ", ".join(counts) or "no alarm"


def _clock_time(wall_time: float) -> str:
    """UTC to the second; a time no calendar has is shown as dashes."""
    if not 0 <= wall_time < 253_402_300_800:  # the year 10000
        return "--:--:--"
    return f"{datetime.fromtimestamp(wall_time, UTC):%H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    if not 0 <= seconds < 1e9:
        return "–"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _harmless(text: str) -> str:
    """Text from elsewhere without line ends and without control characters."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
