"""The account of every series: each frame is analysed, or lost under a name.

Two sums hold after every call (see `records.WireAccount` and `records.Account`):

    messages  = control + accepted + duplicate + late + stale + unannounced + malformed
    announced = analysed + before-join + missing + malformed + dropped + late + pending

A series opens with its start, or with its first frame where the start was not seen (`joined_late`). It closes when its
end was seen and all announced frames came, when `grace_s` passed after the end (frames travel on several connections
and may be overtaken by it), when a new start replaced it, or when nothing came for `stall_s`; never while a frame of it
is still being analysed. A frame that comes after a stall opens the account again: an operator may pause for an hour.

Frames of a series nobody has heard of are accepted in an account of their own, beside the open one, unless a started
series with a higher id is open: then they are leftovers of an aborted one, and stale. A single corrupted series id can
therefore never displace the series that is running.

Where frames carry a running number that knows no series (`SeriesStart.first`), the account begins with the first one
seen, and what may be between two numbers is told by `step`.

Several readers of one PUSH socket are dealt the messages in turn, so what another one takes is missing regularly. The
account says so (`gap_period`): it looks at the last PATTERN numbers for a period that random losses do not have.

Memory is bounded: numbers are kept as bits, the last few closed series are remembered, the rest is forgotten.
Times are seconds of a monotonic clock and are given by the caller. Safe to call from several threads.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal

from streamer.records import Account, SeriesKey, SeriesStart, WireAccount

Verdict = Literal["accepted", "duplicate", "late", "stale", "unannounced", "malformed"]

MOST_OPEN = 8  # a detector has one series open, two for a moment; corrupted ids may open more until they stall
MOST_CLOSED = 8  # how long a late frame finds its account
PAGE = 4096  # numbers in a page of 512 bytes
MOST_PAGES = 16_384  # 8 MB: every second frame of 67 million; beyond that numbers are noise, and memory is bounded
MOST_MALFORMED = 10_000  # malformed numbers that may still be replaced by a good copy

PATTERN = 64  # numbers looked at for a pattern: eight turns of eight readers
FEWEST = 24  # numbers before anything is said: as random losses, the same pattern comes once in millions of series
MOST_READERS = 8
REGULAR = 0.95  # share of numbers that agree with those one period later; a reader that is full is skipped

COUNTS = (
    "announced",
    "received",
    "analysed",
    "before_join",
    "missing",
    "malformed",
    "dropped",
    "late",
    "pending",
    "unaccounted",
)


class Numbers:
    """A set of frame numbers, as a bitmap in pages; full pages are only remembered by their place.

    A million frames in a row take as much room as a few; every second frame of a million takes 125 kB.
    """

    def __init__(self) -> None:
        self._pages: dict[int, tuple[bytearray, int]] = {}
        self._full: set[int] = set()
        self.count = 0
        self.lowest = 0
        self.highest = -1

    def __contains__(self, number: int) -> bool:
        place, bit = divmod(number, PAGE)
        if place in self._full:
            return True
        page = self._pages.get(place)
        return page is not None and bool(page[0][bit >> 3] & 1 << (bit & 7))

    @property
    def pages(self) -> int:
        """Pages with gaps: what the set costs in memory."""
        return len(self._pages)

    def add(self, number: int) -> bool:
        """Returns False if the number was there already."""
        if number in self:
            return False
        place, bit = divmod(number, PAGE)
        bits, held = self._pages.pop(place) if place in self._pages else (bytearray(PAGE // 8), 0)
        bits[bit >> 3] |= 1 << (bit & 7)
        if held + 1 == PAGE:
            self._full.add(place)
        else:
            self._pages[place] = bits, held + 1
        self.lowest = min(self.lowest, number) if self.count else number
        self.highest = max(self.highest, number)
        self.count += 1
        return True


@dataclass(slots=True)
class _Series:
    key: SeriesKey
    last_heard: float
    announced: int | None = None
    first: int | None = None
    step: int = 1
    joined_late: bool = True
    seen: Numbers = field(default_factory=Numbers)
    in_flight: set[int] = field(default_factory=set)
    bad_numbers: set[int] = field(default_factory=set)
    analysed: int = 0
    malformed: int = 0
    dropped: int = 0
    late: int = 0
    duplicate: int = 0
    out_of_order: int = 0
    unplaced: int = 0  # messages without image or number while it was open: what is missing may be among them
    ends_at: float | None = None
    ending_by: str = ""
    closed_by: str = ""

    @property
    def reached(self) -> int:
        """Frames up to the highest number seen, whether they came or not."""
        if not self.seen.count:
            return 0
        if self.first is None:
            return self.seen.highest + 1
        origin = min(self.first, self.seen.lowest)
        return max((self.seen.highest - origin) // self.step + 1, self.seen.count)

    @property
    def total(self) -> int:
        """Announced frames; where the detector gave no number, or sent more, as many as were seen."""
        return max(self.announced or 0, self.reached)

    @property
    def is_complete(self) -> bool:
        return self.announced is not None and self.seen.count >= self.total

    def announces(self, number: int) -> bool:
        return self.announced is None or number < self.total

    def account(self) -> Account:
        first = self.seen.lowest if self.joined_late and self.seen.count else 0
        reached = self.total if self.closed_by else self.reached
        period, length = self.pattern()
        return Account(
            series=self.key,
            announced=self.total,
            is_announced=self.announced is not None and self.announced == self.total,
            received=self.seen.count,
            decoded=self.analysed + len(self.in_flight),
            analysed=self.analysed,
            before_join=first,
            missing=reached - first - self.seen.count,
            malformed=self.malformed,
            dropped=self.dropped,
            late=self.late,
            pending=len(self.in_flight) + self.total - reached,
            duplicate=self.duplicate,
            out_of_order=self.out_of_order,
            joined_late=self.joined_late,
            closed_by=self.closed_by,
            is_counted=self.first is not None,
            first=self.first or 0,
            step=self.step,
            gap_period=period,
            gap_length=length,
        )

    def pattern(self) -> tuple[int, int]:
        """Period of the gaps among the latest numbers, and how many of a period are missing; (0, 0) for none."""
        last = self.seen.highest
        first = max(self.seen.lowest, last - (PATTERN - 1) * self.step)
        came = [number in self.seen for number in range(first, last + 1, self.step)]
        if len(came) < FEWEST or all(came) or 2 * self.unplaced >= self.reached - self.seen.count:
            return 0, 0
        for period in range(2, MOST_READERS + 1):
            if len(came) < 4 * period or _agreement(came, period) < REGULAR:
                continue
            if _agreement(came, 1) > 1 - 1.5 / period:  # one long gap agrees with itself at any distance
                continue
            return period, round(period * came.count(False) / len(came))
        return 0, 0


class Ledger:
    """Tells of every frame whether it counts, and of every series what became of its frames.

    grace_s: how long frames may come after their series' end. stall_s: silence after which a series counts as over.
    """

    def __init__(self, *, grace_s: float = 2.0, stall_s: float = 30.0) -> None:
        self.grace_s = grace_s
        self.stall_s = stall_s
        self._open: OrderedDict[SeriesKey, _Series] = OrderedDict()
        self._closed: OrderedDict[SeriesKey, _Series] = OrderedDict()
        self._forgotten: Counter[str] = Counter()
        self._replaced: deque[Account] = deque(maxlen=MOST_CLOSED)  # closed, and their key is in use again
        self._to_report: list[Account] = []
        self._wire: Counter[str] = Counter()
        self._malformed: Counter[str] = Counter()
        self._lock = threading.Lock()

    # What came over the wire: exactly one of these per message.

    def start(self, start: SeriesStart, now: float) -> None:
        """A series was announced. Other open series get the grace window, then close as replaced."""
        with self._lock:
            self._count("control")
            series = self._find(self._open, start.series)
            if series is not None and _begins_anew(series, start):
                self._close(series, "new start")
                series = None
            for other in list(self._open.values()):
                if other is not series and other.ends_at is None and not _run_beside(other.key, start):
                    self._let_end(other, now, "new start")
            if series is None:
                series = self._opened(start.series, now)
            series.announced = start.images
            series.first = start.first
            series.step = max(1, start.step)
            series.joined_late &= start.was_running
            series.ending_by, series.ends_at = "", None
            series.last_heard = now
            self._settle(now)

    def end(self, key: SeriesKey, now: float, images: int | None = None) -> None:
        """The detector says the series is over, and perhaps how many images it had.

        A second end, or one of an unknown series, changes nothing.
        """
        with self._lock:
            self._count("control")
            series = self._find(self._open, key)
            if series is not None and series.ending_by != "end":
                series.announced = images if series.announced is None else series.announced
                self._let_end(series, now, "end")
            self._settle(now)

    def control(self) -> None:
        """Any other message that carries no image."""
        with self._lock:
            self._count("control")
            self._note_unplaced()

    def frame(self, key: SeriesKey, number: int, now: float) -> Verdict:
        """A frame was decoded. Only an "accepted" one goes on, and must be followed by `analysed` or `unusable`."""
        with self._lock:
            return self._receive(key, number, now)

    def dropped(self, key: SeriesKey, number: int, now: float) -> Verdict:
        """A full queue gave up an undecoded frame whose number is known."""
        with self._lock:
            verdict = self._receive(key, number, now)
            if verdict == "accepted":
                self._finish(key, number, "dropped")
                self._settle(now)
            return verdict

    def malformed(self, reason: str, key: SeriesKey | None, number: int | None, now: float) -> None:
        """A message that cannot be used. Its series hears of it where its number could be read."""
        with self._lock:
            self._wire["messages"] += 1
            self._malformed[reason] += 1
            series = self._find(self._open, key) if key is not None else None
            if series is None or number is None or number < 0:
                self._note_unplaced()
                return
            series.last_heard = now
            if not series.announces(number):
                return
            if series.seen.pages >= MOST_PAGES or not series.seen.add(number):
                return
            series.malformed += 1
            if len(series.bad_numbers) < MOST_MALFORMED:
                series.bad_numbers.add(number)
            self._settle(now)

    # What became of an accepted frame: exactly one of these each.

    def analysed(self, key: SeriesKey, number: int, now: float) -> None:
        """The frame's results are decided."""
        self._finished(key, number, "analysed", now)

    def unusable(self, key: SeriesKey, number: int, now: float) -> None:
        """The frame turned out malformed after it was accepted."""
        self._finished(key, number, "malformed", now)

    # Time passes.

    def tick(self, now: float) -> list[Account]:
        """Close what is over. Returns every account that closed since the last call, oldest first."""
        with self._lock:
            for series in list(self._open.values()):
                if series.ends_at is None and now - series.last_heard >= self.stall_s:
                    self._let_end(series, now - self.grace_s, "stall")
            self._settle(now)
            closed, self._to_report = self._to_report, []
            return closed

    def close(self, now: float) -> list[Account]:
        """The stream is stopped: every series closes, frames still on the way count as dropped."""
        with self._lock:
            for series in list(self._open.values()):
                self._close(series, series.ending_by or "stop")
        return self.tick(now)

    # How it stands.

    def wire(self) -> WireAccount:
        """The account of messages."""
        with self._lock:
            return WireAccount(
                messages=self._wire["messages"],
                control=self._wire["control"],
                accepted=self._wire["accepted"],
                duplicate=self._wire["duplicate"],
                late=self._wire["late"],
                stale=self._wire["stale"],
                unannounced=self._wire["unannounced"],
                malformed=dict(self._malformed),
                out_of_order=self._wire["out_of_order"],
            )

    def accounts(self) -> list[Account]:
        """The accounts still known: closed ones first, each group oldest first."""
        with self._lock:
            known = [series.account() for group in (self._closed, self._open) for series in group.values()]
            return [*self._replaced, *known]

    def totals(self) -> Counter[str]:
        """Every series there ever was, added up: the counts of `Account` by name."""
        with self._lock:
            totals = Counter(self._forgotten)
            for series in (*self._closed.values(), *self._open.values()):
                totals.update(_counts(series.account()))
            return totals

    def current(self) -> Account | None:
        """The account of the series heard of last, open or closed."""
        with self._lock:
            known = [*self._closed.values(), *self._open.values()]
            return max(reversed(known), key=lambda series: series.last_heard).account() if known else None

    def has_open_series(self) -> bool:
        """Whether frames are still expected."""
        with self._lock:
            return any(series.ends_at is None for series in self._open.values())

    # Everything below is called with the lock held.

    def _note_unplaced(self) -> None:
        for series in self._open.values():
            series.unplaced += 1

    def _count(self, outcome: Verdict | Literal["control"]) -> None:
        self._wire["messages"] += 1
        self._wire[outcome] += 1

    def _receive(self, key: SeriesKey, number: int, now: float) -> Verdict:
        verdict = self._judge(key, number, now)
        if verdict == "malformed":
            self._wire["messages"] += 1
            self._malformed["number"] += 1
        else:
            self._count(verdict)
        return verdict

    def _judge(self, key: SeriesKey, number: int, now: float) -> Verdict:
        if number < 0:
            return "malformed"
        series = self._find(self._open, key)
        if series is None:
            closed = self._find(self._closed, key)
            if closed is not None and closed.closed_by != "stall":
                return self._judge_closed(closed, number)
            if closed is not None:
                series = self._opened_again(closed)
            elif self._is_leftover(key):
                return "stale"
            else:
                series = self._opened(key, now)
        series.last_heard = now
        if series.ending_by == "stall":
            series.ending_by, series.ends_at = "", None
        if not series.announces(number):
            return "unannounced"
        if series.seen.pages >= MOST_PAGES and number not in series.seen:
            return "malformed"
        return self._enter(series, number)

    def _judge_closed(self, series: _Series, number: int) -> Verdict:
        if number in series.seen:
            series.duplicate += 1
            return "duplicate"
        if series.closed_by == "new start":
            return "stale"
        if not series.announces(number):
            return "unannounced"
        if series.seen.pages >= MOST_PAGES:
            return "malformed"
        series.seen.add(number)
        series.late += 1
        return "late"

    def _enter(self, series: _Series, number: int) -> Verdict:
        overtaken = bool(series.seen.count) and number < series.seen.highest
        if not series.seen.add(number):
            if number not in series.bad_numbers:
                series.duplicate += 1
                return "duplicate"
            series.bad_numbers.discard(number)
            series.malformed -= 1
        elif overtaken:
            series.out_of_order += 1
            self._wire["out_of_order"] += 1
        series.in_flight.add(number)
        return "accepted"

    def _is_leftover(self, key: SeriesKey) -> bool:
        started = [series.key.number for series in self._open.values() if not series.joined_late]
        return any(key.number < number for number in started)

    def _find(self, group: OrderedDict[SeriesKey, _Series], key: SeriesKey) -> _Series | None:
        if key in group or key.unique:
            return group.get(key)
        return next((series for known, series in reversed(group.items()) if known.number == key.number), None)

    def _opened(self, key: SeriesKey, now: float) -> _Series:
        if key in self._closed:
            self._replaced.append(self._closed[key].account())
            self._forget(key)
        if len(self._open) >= MOST_OPEN:
            strangest = min(self._open.values(), key=lambda one: (not one.joined_late, one.seen.count, one.last_heard))
            self._close(strangest, "stall")
        series = self._open[key] = _Series(key, last_heard=now)
        return series

    def _opened_again(self, series: _Series) -> _Series:
        del self._closed[series.key]
        series.closed_by = series.ending_by = ""
        series.ends_at = None
        self._open[series.key] = series
        return series

    def _let_end(self, series: _Series, now: float, by: str) -> None:
        series.ending_by = by
        series.ends_at = now + self.grace_s

    def _settle(self, now: float) -> None:
        for series in list(self._open.values()):
            if series.ends_at is None or series.in_flight:
                continue
            if now >= series.ends_at or series.is_complete:
                self._close(series, series.ending_by)

    def _close(self, series: _Series, by: str) -> None:
        for number in sorted(series.in_flight):
            self._finish(series.key, number, "dropped")
        series.closed_by = by
        del self._open[series.key]
        self._closed[series.key] = series
        self._closed.move_to_end(series.key)
        while len(self._closed) > MOST_CLOSED:
            self._forget(next(iter(self._closed)))
        self._to_report.append(series.account())

    def _forget(self, key: SeriesKey) -> None:
        series = self._closed.pop(key, None)
        if series is not None:
            self._forgotten.update(_counts(series.account()))

    def _finished(self, key: SeriesKey, number: int, outcome: str, now: float) -> None:
        with self._lock:
            self._finish(key, number, outcome)
            self._settle(now)

    def _finish(self, key: SeriesKey, number: int, outcome: str) -> None:
        series = self._find(self._open, key)
        if series is None or number not in series.in_flight:
            return
        series.in_flight.discard(number)
        if outcome == "analysed":
            series.analysed += 1
        elif outcome == "malformed":
            series.malformed += 1
        else:
            series.dropped += 1


def _begins_anew(series: _Series, start: SeriesStart) -> bool:
    """Whether a start is the next one of an open series' key, not the same one once more or one that was overtaken."""
    if not series.seen.count or start.was_running:
        return False
    is_repeated = bool(start.series.unique) and start.first is None and not series.ending_by
    return bool(series.ending_by) or not (series.joined_late or is_repeated)


def _run_beside(key: SeriesKey, start: SeriesStart) -> bool:
    """Whether a series may go on beside one that starts: senders that only count share a socket without a word."""
    return start.first is not None and key.unique != start.series.unique


def _agreement(came: list[bool], distance: int) -> float:
    """The share of numbers that share their fate with the number so far behind them."""
    pairs = list(zip(came, came[distance:], strict=False))
    return sum(one == other for one, other in pairs) / len(pairs)


def _counts(account: Account) -> Counter[str]:
    return Counter({name: getattr(account, name) for name in COUNTS})
