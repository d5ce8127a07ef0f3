"""The ledger says of every frame what a plain model says, whatever comes in whatever order.

The model keeps sets of numbers and no bitmaps, one fate per number and no counters, and is written from the promises in
`streamer.ledger` and `records.Account`: what it says is worked out anew from these sets after every step.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamer.ledger import COUNTS, MOST_CLOSED, Ledger
from streamer.records import Account, SeriesKey, SeriesStart

GRACE_S, STALL_S = 2.0, 10.0
A, B, C = SeriesKey(1), SeriesKey(2), SeriesKey(3, "third")
keys = st.sampled_from([A, B, C])
numbers = st.integers(0, 9)


@dataclass
class Truth:
    """One series, and the fate of every number of it that was seen: "in flight", "analysed", "malformed", …

    A number that came damaged ("malformed") may be replaced by a good copy; one that turned out "unusable" only after
    it was accepted counts as malformed, too, but a second copy of it is a duplicate.
    """

    key: SeriesKey
    heard: float
    images: int | None = None
    first: int | None = None
    step: int = 1
    has_start: bool = False
    fates: dict[int, str] = field(default_factory=dict)
    closes_at: float | None = None
    closes_by: str = ""
    closed_by: str = ""
    repeated: int = 0
    overtaken: int = 0

    @property
    def expected(self) -> set[int]:
        """Numbers that were announced, or must have been sent because a higher one was seen."""
        origin = 0 if self.first is None else min([self.first, *self.fates])
        grid = set(range(origin, max(self.fates, default=-1) + 1, self.step))
        if self.images is not None and self.images > len(grid):
            grid = set(range(origin, origin + self.images * self.step, self.step))
        return grid

    @property
    def is_whole(self) -> bool:
        return self.images is not None and len(self.fates) >= len(self.expected)

    def may_come(self, number: int) -> bool:
        return self.images is None or number < len(self.expected)

    def close(self, by: str) -> None:
        self.closed_by = by
        self.fates = {number: "dropped" if fate == "in flight" else fate for number, fate in self.fates.items()}

    def says(self) -> dict[str, int]:
        """What the account must say."""
        counts = Counter(self.fates.values())
        unseen = self.expected - set(self.fates)
        before = {number for number in unseen if not self.has_start and self.fates and number < min(self.fates)}
        ahead = {number for number in unseen if not self.closed_by and number > max(self.fates, default=-1)}
        return {
            "announced": len(self.expected),
            "received": len(self.fates),
            "analysed": counts["analysed"],
            "before_join": len(before),
            "missing": len(unseen - before - ahead),
            "malformed": counts["malformed"] + counts["unusable"],
            "dropped": counts["dropped"],
            "late": counts["late"],
            "pending": counts["in flight"] + len(ahead),
            "duplicate": self.repeated,
            "out_of_order": self.overtaken,
        }


class ModelledLedger(RuleBasedStateMachine):
    """Series with and without unique ids, restarts under the same id, several open at once, late, twice, damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(grace_s=GRACE_S, stall_s=STALL_S)
        self.now = 0.0
        self.first: int | None = None
        self.step = 1
        self.open: dict[SeriesKey, Truth] = {}
        self.closed: dict[SeriesKey, Truth] = {}
        self.forgotten: Counter[str] = Counter()
        self.replaced: deque[Truth] = deque(maxlen=MOST_CLOSED)
        self.reported = 0
        self.messages: Counter[str] = Counter()

    @initialize(first=st.one_of(st.none(), st.integers(0, 3)), step=st.integers(1, 3))
    def choose_how_frames_are_counted(self, first: int | None, step: int) -> None:
        """The third series is one of a camera that only counts, or not."""
        self.first, self.step = (first, step) if first is not None else (None, 1)

    # What comes over the wire.

    @rule(key=keys, images=st.one_of(st.none(), st.integers(0, 10)))
    def start(self, key: SeriesKey, images: int | None) -> None:
        counts_only = key == C and self.first is not None
        first, step = (self.first, self.step) if counts_only else (None, 1)
        images = None if counts_only else images
        self.ledger.start(SeriesStart(key, images=images, first=first, step=step), self.now)
        self.messages["control"] += 1
        truth = self.open.get(key)
        is_said_again = bool(key.unique) and first is None
        if truth is not None and truth.fates and (truth.closes_by or (truth.has_start and not is_said_again)):
            self._close(truth, "new start")
            truth = None
        for other in self.open.values():
            runs_beside = first is not None and other.key.unique != key.unique
            if other is not truth and other.closes_at is None and not runs_beside:
                other.closes_by, other.closes_at = "new start", self.now + GRACE_S
        truth = truth or self._opened(key)
        truth.images, truth.first, truth.step, truth.has_start = images, first, step, True
        truth.heard, truth.closes_at, truth.closes_by = self.now, None, ""
        self._settle()

    @rule(key=keys)
    def end(self, key: SeriesKey) -> None:
        self.ledger.end(key, self.now)
        self.messages["control"] += 1
        truth = self.open.get(key)
        if truth is not None and truth.closes_by != "end":
            truth.closes_by, truth.closes_at = "end", self.now + GRACE_S
        self._settle()

    @rule(key=keys, number=numbers)
    def frame(self, key: SeriesKey, number: int) -> None:
        number = self._numbered(key, number)
        verdict = self._judge(key, number)
        assert self.ledger.frame(key, number, self.now) == verdict
        self.messages[verdict] += 1

    @rule(key=keys, number=numbers)
    def gave_up(self, key: SeriesKey, number: int) -> None:
        number = self._numbered(key, number)
        verdict = self._judge(key, number)
        assert self.ledger.dropped(key, number, self.now) == verdict
        self.messages[verdict] += 1
        if verdict == "accepted":
            self.open[key].fates[number] = "dropped"
            self._settle()

    @rule(key=keys, number=st.one_of(st.none(), numbers))
    def malformed(self, key: SeriesKey, number: int | None) -> None:
        number = number if number is None else self._numbered(key, number)
        self.ledger.malformed("size", key, number, self.now)
        self.messages["malformed"] += 1
        truth = self.open.get(key)
        if truth is not None and number is not None:
            truth.heard = self.now
            if truth.may_come(number):
                truth.fates.setdefault(number, "malformed")
        self._settle()

    # What becomes of the frames, and time.

    @rule(data=st.data(), fate=st.sampled_from(["analysed", "unusable"]))
    def finish(self, data: st.DataObject, fate: str) -> None:
        in_flight = [(key, n) for key, one in self.open.items() for n, now in one.fates.items() if now == "in flight"]
        if in_flight:
            key, number = data.draw(st.sampled_from(in_flight))
            getattr(self.ledger, fate)(key, number, self.now)
            self.open[key].fates[number] = fate
            self._settle()

    @rule(seconds=st.sampled_from([0.0, 1.0, GRACE_S, STALL_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for truth in self.open.values():
            if truth.closes_at is None and self.now - truth.heard >= STALL_S:
                truth.closes_by, truth.closes_at = "stall", self.now
        self._settle()
        assert len(self.ledger.tick(self.now)) == self.reported
        self.reported = 0

    # What the model says.

    def _numbered(self, key: SeriesKey, place: int) -> int:
        """Where frames are only counted, their numbers are some way apart."""
        return place if key != C or self.first is None else place * self.step + self.first % self.step

    def _judge(self, key: SeriesKey, number: int) -> str:
        truth = self.open.get(key)
        if truth is None:
            closed = self.closed.get(key)
            if closed is not None and closed.closed_by != "stall":
                return self._judge_closed(closed, number)
            if closed is not None:
                truth = self.open[key] = self.closed.pop(key)
                truth.closed_by = truth.closes_by = ""
                truth.closes_at = None
            elif any(one.has_start and one.key.number > key.number for one in self.open.values()):
                return "stale"
            else:
                truth = self._opened(key)
        truth.heard = self.now
        if truth.closes_by == "stall":
            truth.closes_by, truth.closes_at = "", None
        if not truth.may_come(number):
            return "unannounced"
        if truth.fates.get(number, "malformed") != "malformed":
            truth.repeated += 1
            return "duplicate"
        if number not in truth.fates and number < max(truth.fates, default=-1):
            truth.overtaken += 1
        truth.fates[number] = "in flight"
        return "accepted"

    def _judge_closed(self, truth: Truth, number: int) -> str:
        if number in truth.fates:
            truth.repeated += 1
            return "duplicate"
        if truth.closed_by == "new start":
            return "stale"
        if not truth.may_come(number):
            return "unannounced"
        truth.fates[number] = "late"
        return "late"

    def _opened(self, key: SeriesKey) -> Truth:
        before = self.closed.pop(key, None)
        if before is not None:
            self.replaced.append(before)
            self.forgotten.update({name: count for name, count in before.says().items() if name in COUNTS})
        self.open[key] = Truth(key, heard=self.now)
        return self.open[key]

    def _settle(self) -> None:
        for truth in list(self.open.values()):
            is_over = truth.closes_at is not None and (self.now >= truth.closes_at or truth.is_whole)
            if is_over and "in flight" not in truth.fates.values():
                self._close(truth, truth.closes_by)

    def _close(self, truth: Truth, by: str) -> None:
        truth.close(by)
        self.closed[truth.key] = self.open.pop(truth.key)
        self.reported += 1

    # What must hold after every step.

    @invariant()
    def every_account_says_what_the_model_says(self) -> None:
        truths = [*self.replaced, *self.closed.values(), *self.open.values()]
        for truth, account in zip(truths, self.ledger.accounts(), strict=True):
            assert account.series == truth.key
            assert _plain(account, truth.says()) == truth.says()
            assert account.unaccounted == 0
            assert (account.closed_by, account.joined_late) == (truth.closed_by, not truth.has_start)

    @invariant()
    def the_totals_are_the_sum_over_all_series_there_ever_were(self) -> None:
        expected = Counter(self.forgotten)
        for truth in (*self.open.values(), *self.closed.values()):
            expected.update({name: count for name, count in truth.says().items() if name in COUNTS})
        totals = self.ledger.totals()
        assert {name: totals[name] for name in COUNTS} == {name: expected[name] for name in COUNTS}

    @invariant()
    def every_message_is_counted_once(self) -> None:
        wire = self.ledger.wire()
        found = {name: getattr(wire, name) for name in ("control", "accepted", "duplicate", "late", "stale")}
        found |= {"unannounced": wire.unannounced, "malformed": sum(wire.malformed.values())}
        assert found == {name: self.messages[name] for name in found}
        assert wire.messages == self.messages.total()


def _plain(account: Account, names: dict[str, int]) -> dict[str, int]:
    return {name: getattr(account, name) for name in names}


TestModelledLedger = ModelledLedger.TestCase
TestModelledLedger.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
