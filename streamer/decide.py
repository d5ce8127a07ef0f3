"""Rules become alarms: a limit with its uncertainty, a delay, a hysteresis, and a beginning and an end.

A rule watches one scalar Quantity of one analysis and follows each channel by itself. Every frame tells a rule one of
four things (`Verdict`): the value exceeds the limit, clears it, lies between the two, or is unknown.

    begins    after `for_frames` exceeding frames in a row
    INVALID   after `for_frames` unknown frames in a row, whatever it was before: not measured is never "fine"
    ends      after `clear_frames` clearing frames in a row

A frame without a value neither confirms an excess nor excuses it: it is passed over when exceeding frames are counted,
and it breaks a run towards the end of an alarm. From INVALID an alarm goes back to what it was before once the quantity
was measured in `clear_frames` frames in a row; where nothing was wrong before, it ends, provided that none of these
frames exceeded the limit. All counting starts over when an alarm begins, changes or ends, so two changes are never
closer than the shorter of the two delays. A new series changes nothing: neither alarms nor counts.

No thread, socket or clock lives here. A `Decider` belongs to one thread; wall time is handed in.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import numpy as np

from streamer.records import Alarm, BadConfig, BadInput, Quantity, Result, Severity
from streamer.sequential import Bank, Still

__all__ = ["Decider", "Rule", "Verdict"]

Evidence = Mapping[str, float | int | str | list[float] | list[int]]

EVIDENCE_FRAMES = 100  # an alarm travels to every output at once: it names this many frames at most, the latest ones


HALF_FORGOTTEN = 0.5
"""Of its limit: where a sum that remembers lets its alarm end, if the rule does not say. It falls slowly once all is
well again, and flickers about the limit while all is not."""


class Verdict(enum.Enum):
    """What one frame tells one rule."""

    EXCEEDS = "exceeds"
    BETWEEN = "between"
    CLEARS = "clears"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What `[alarm.NAME]` in the beamline file says: watch one Quantity and raise one alarm.

    watch: "analysis.quantity", e.g. "saxs.anomaly"; the Quantity is a scalar.
    above, below: the limit, in the Quantity's unit; exactly one of them.
    sigma: how many standard uncertainties the value must lie beyond the limit: value − sigma·σ > above, or
        value + sigma·σ < below. A value whose σ is not known counts as unknown where sigma > 0.
    for_frames: so many frames in a row before the alarm begins.
    clear_below, clear_above: the alarm ends when the value itself, without its σ, is at or on the safe side of this;
        the limit where not given. A growing σ alone thus never ends an alarm.
    clear_frames: so many frames in a row before it ends; as many as for_frames where not given.
    test: "limit" compares the value itself. The others remember: "step" is a bank of CUSUMs for a score that rises,
        "drift" one for a score that leaves 0 to either side, and their value is the largest sum over its own
        limit; both take standard normal scores. "stall" counts frames with the very same value.
    false_alarm_every: frames, on average, to a false alarm of "step" or "drift"; their limits follow from it.
    text: what the operator should do about it.

    Raises BadConfig with every finding, each naming the key, what was found and what was expected.
    """

    name: str
    watch: str
    above: float | None = None
    below: float | None = None
    sigma: float = 0.0
    for_frames: int = 1
    clear_below: float | None = None
    clear_above: float | None = None
    clear_frames: int | None = None
    test: Literal["limit", "step", "drift", "stall"] = "limit"
    false_alarm_every: float = 1e7
    severity: Literal["MINOR", "MAJOR"] = "MAJOR"
    text: str = ""

    def __post_init__(self) -> None:
        if self.test != "limit" and self.above is None and self.below is None:
            object.__setattr__(self, "above", 1.0)
        problems = [*self._wrong_words(), *self._wrong_numbers(), *self._wrong_limits()]
        if problems:
            raise BadConfig(*(f"[alarm.{self.name}] {problem}" for problem in problems))

    @property
    def analysis(self) -> str:
        """The first part of `watch`."""
        return self.watch.partition(".")[0]

    @property
    def quantity(self) -> str:
        """The second part of `watch`."""
        return self.watch.partition(".")[2]

    @property
    def side(self) -> Literal[1, -1]:
        """1 where larger values are worse, −1 where smaller ones are."""
        return 1 if self.above is not None else -1

    @property
    def limit(self) -> float:
        """The value beyond which the alarm begins."""
        return cast("float", self.above if self.above is not None else self.below)

    @property
    def clear_limit(self) -> float:
        """The value at which the alarm may end."""
        given = self.clear_below if self.side > 0 else self.clear_above
        if given is not None:
            return given
        return HALF_FORGOTTEN if self.test in ("step", "drift") else self.limit

    @property
    def frames_to_end(self) -> int:
        """`clear_frames`, or `for_frames` where it is not given."""
        return self.for_frames if self.clear_frames is None else self.clear_frames

    def detector(self) -> Bank | Still | None:
        """What remembers for this rule; None where the value itself is compared."""
        match self.test:
            case "step":
                return Bank(self.false_alarm_every)
            case "drift":
                return Bank(self.false_alarm_every, is_two_sided=True)
            case "stall":
                return Still()
        return None

    def judge(self, quantity: Quantity | None) -> Verdict:
        """What one measurement tells this rule; None where the analysis did not give the quantity.

        An array tells nothing: a rule needs one number, and which one only the analysis can say.
        """
        if self.why_unknown(quantity) or quantity is None:
            return Verdict.UNKNOWN
        value = self.side * float(quantity.value)
        if value - self._margin(quantity) > self.side * self.limit:
            return Verdict.EXCEEDS
        return Verdict.CLEARS if value <= self.side * self.clear_limit else Verdict.BETWEEN

    def why_unknown(self, quantity: Quantity | None) -> str:
        """Why a measurement cannot be judged; "" where it can."""
        if quantity is None:
            return f"{self.analysis} gave no {self.quantity}"
        if np.ndim(quantity.value) > 0:
            shape = " × ".join(map(str, np.shape(quantity.value)))
            return f"{self.watch} is an array of {shape} values: watch a scalar quantity of '{self.analysis}'"
        if not math.isfinite(float(quantity.value)):
            return f"{self.watch} is not a finite number"
        if not math.isfinite(self._margin(quantity)):
            return f"the uncertainty of {self.watch} is not known, and the rule asks for {self.sigma:g} σ"
        return ""

    def _margin(self, quantity: Quantity) -> float:
        """sigma·σ; 0 where the rule does not ask for σ, NaN where it asks and there is none."""
        if self.sigma == 0:
            return 0.0
        return math.nan if quantity.sigma is None else self.sigma * abs(float(quantity.sigma))

    def _wrong_words(self) -> Iterable[str]:
        if not self.analysis or not self.quantity or any(letter.isspace() for letter in self.watch):
            yield f'key \'watch\': found {self.watch!r}, expected "analysis.quantity" such as "saxs.anomaly"'
        if self.severity not in ("MINOR", "MAJOR"):
            yield (
                f'key \'severity\': found {self.severity!r}, expected "MINOR" or "MAJOR" '
                "(INVALID comes by itself when nothing is measured)"
            )

    def _wrong_numbers(self) -> Iterable[str]:
        for key in ("above", "below", "clear_below", "clear_above"):
            value = getattr(self, key)
            if value is not None and not math.isfinite(value):
                yield f"key '{key}': found {value}, expected a finite number"
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            yield f"key 'sigma': found {self.sigma}, expected 0 or a positive number of standard uncertainties"
        if self.for_frames < 1:
            yield f"key 'for_frames': found {self.for_frames}, expected 1 or more"
        if self.clear_frames is not None and self.clear_frames < 1:
            yield f"key 'clear_frames': found {self.clear_frames}, expected 1 or more"
        if self.test != "limit" and self.sigma:
            yield f"key 'sigma': found {self.sigma} beside test = '{self.test}', expected none: its σ is within"
        if not self.false_alarm_every >= 100:
            yield f"key 'false_alarm_every': found {self.false_alarm_every:g} frames, expected 100 or more"

    def _wrong_limits(self) -> Iterable[str]:
        if (self.above is None) == (self.below is None):
            found = "neither" if self.above is None else "both"
            yield f"found {found} of 'above' and 'below', expected exactly one of them"
            return
        word, key, foreign = "above", "clear_below", "clear_above"
        if self.side < 0:
            word, key, foreign = "below", "clear_above", "clear_below"
        if getattr(self, foreign) is not None:
            yield f"key '{foreign}': found beside '{word}', expected '{key}'"
        if self.side * self.clear_limit > self.side * self.limit:
            order = "at most" if self.side > 0 else "at least"
            yield f"key '{key}': found {self.clear_limit:g}, expected {order} {self.limit:g}, the limit of '{word}'"


@dataclass(slots=True)
class _Watch:
    """How one rule stands with one channel. The counts are of frames in a row since the last change.

    has_fired: the limit was exceeded for long enough and not yet cleared. is_blind: not measured for long enough.
    known, unknown: with and without a value. calm: not exceeding. exceeded, unseen: the frames that make the evidence.
    """

    rule: Rule
    alarm: Alarm | None = None
    has_fired: bool = False
    is_blind: bool = False
    known: int = 0
    unknown: int = 0
    exceeding: int = 0
    calm: int = 0
    clearing: int = 0
    exceeded: deque[tuple[int, float]] = field(default_factory=deque)
    unseen: deque[int] = field(default_factory=deque)
    detector: Bank | Still | None = None

    def __post_init__(self) -> None:
        length = min(self.rule.for_frames, EVIDENCE_FRAMES)
        self.exceeded = deque(maxlen=length)
        self.unseen = deque(maxlen=length)
        self.detector = self.rule.detector()

    @property
    def severity(self) -> Severity:
        if self.is_blind:
            return Severity.INVALID
        return Severity[self.rule.severity] if self.has_fired else Severity.NO_ALARM

    def see(self, number: int, quantity: Quantity | None) -> bool:
        """Count one frame. Returns whether the severity changed."""
        before = self.severity
        quantity = self._remembered(quantity)
        verdict = self.rule.judge(quantity)
        if quantity is None or verdict is Verdict.UNKNOWN:
            self._count_unknown(number)
        else:
            self._count_known(number, float(quantity.value), verdict)
        self._settle()
        return self.severity is not before

    def _remembered(self, quantity: Quantity | None) -> Quantity | None:
        """The quantity, or what a test that remembers makes of it."""
        if self.detector is None or quantity is None or self.rule.why_unknown(quantity):
            return quantity
        return Quantity(float(self.detector.see(float(quantity.value))))

    def start_over(self) -> None:
        """Forget the counts: the next change has its whole delay before it."""
        self.known = self.unknown = self.exceeding = self.calm = self.clearing = 0
        self.exceeded.clear()
        self.unseen.clear()

    def _count_unknown(self, number: int) -> None:
        self.unknown += 1
        self.unseen.append(number)
        self.known = self.calm = self.clearing = 0
        if self.unknown >= self.rule.for_frames:
            self._forget_excess()

    def _count_known(self, number: int, value: float, verdict: Verdict) -> None:
        self.known += 1
        self.unknown = 0
        self.unseen.clear()
        if verdict is Verdict.EXCEEDS:
            self.exceeding += 1
            self.exceeded.append((number, value))
            self.calm = self.clearing = 0
            return
        self._forget_excess()
        self.calm += 1
        self.clearing = self.clearing + 1 if verdict is Verdict.CLEARS else 0

    def _forget_excess(self) -> None:
        self.exceeding = 0
        self.exceeded.clear()

    def _settle(self) -> None:
        begin, end = self.rule.for_frames, self.rule.frames_to_end
        if self.exceeding >= begin:
            self.has_fired, self.is_blind = True, False
        elif self.unknown >= begin:
            self.is_blind = True
        elif self.clearing >= end:
            self.has_fired = self.is_blind = False
        elif self.is_blind and self.known >= end and (self.has_fired or self.calm >= end):
            self.is_blind = False


MOST_WATCHES = 1024
"""Rules times channels that are followed. Channels are named on the wire, and each may raise an alarm of its own."""


class Decider:
    """Follows every rule through the results of one stream, and keeps the list of active alarms.

    rules: may be none; raises BadConfig where two share a name.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)
        for name, count in Counter(rule.name for rule in self.rules).items():
            if count > 1:
                raise BadConfig(f"[alarm.{name}] found {count} rules of this name, expected one; rename the others")
        self._occurrences: Counter[str] = Counter()
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._conditions: dict[str, Alarm] = {}

    def decide(self, result: Result, wall_time: float) -> list[Alarm]:
        """The alarms that began, changed severity or ended at this frame.

        wall_time: UTC seconds since 1970; it labels alarms and decides nothing.
        """
        changed = []
        for rule in self.rules:
            if rule.analysis != result.analysis:
                continue
            key = rule.name, result.channel
            if key not in self._watches and len(self._watches) >= MOST_WATCHES:
                changed += self._refuse(result, wall_time)
                continue
            watch = self._watches.get(key) or self._watches.setdefault(key, _Watch(rule))
            if watch.see(result.number, result.quantities.get(rule.quantity)):
                changed.append(self._follow(watch, result, wall_time))
                watch.start_over()
        return changed

    def resume(self, standing: Iterable[Alarm], wall_time: float) -> list[Alarm]:
        """Take over the alarms that a former process left standing: those of a rule that is still here go on, the
        others end. Returns every one of them as it is now.
        """
        rules = {rule.name: rule for rule in self.rules}
        resumed = []
        for alarm in standing:
            rule = rules.get(alarm.name)
            if rule is None:
                resumed.append(replace(alarm, ended=wall_time))
                continue
            watch = self._watches.setdefault((rule.name, str(alarm.evidence.get("channel", ""))), _Watch(rule))
            watch.alarm = alarm
            watch.is_blind = alarm.severity is Severity.INVALID
            watch.has_fired = not watch.is_blind
            resumed.append(alarm)
        return resumed

    def active(self) -> tuple[Alarm, ...]:
        """Every alarm that has begun and not ended, the oldest first."""
        watched = (watch.alarm for watch in self._watches.values() if watch.alarm is not None)
        return tuple(sorted((*watched, *self._conditions.values()), key=lambda alarm: alarm.began))

    def raise_condition(
        self, name: str, severity: Severity, text: str, watch: str, wall_time: float, evidence: Evidence
    ) -> list[Alarm]:
        """Something is wrong with streamer itself ("stream stalled", "output down").

        watch: the part that speaks ("stream", "output.epics"). Returns the alarm if it began or changed severity, and
        nothing while it merely goes on. Raises BadInput for severity NO_ALARM: that is `clear_condition`.
        """
        if severity is Severity.NO_ALARM:
            raise BadInput(f"condition '{name}': found severity NO_ALARM, expected a real one; call clear_condition")
        standing = self._conditions.get(name)
        if standing is None:
            alarm = Alarm(self._identify(name, wall_time), name, severity, text, watch, wall_time, evidence=evidence)
        elif standing.severity is not severity:
            alarm = replace(standing, severity=severity, text=text, evidence=evidence, acknowledged=False)
        else:
            return []
        self._conditions[name] = alarm
        return [alarm]

    def clear_condition(self, name: str, wall_time: float) -> list[Alarm]:
        """The condition is over. Returns the ended alarm, nothing if there was none."""
        standing = self._conditions.pop(name, None)
        return [] if standing is None else [replace(standing, ended=wall_time)]

    def acknowledge(self, alarm_id: str, severity: Severity | None = None) -> list[Alarm]:
        """An operator has seen this occurrence. Returns the alarm if that is news.

        severity: what the operator saw; an alarm that has changed meanwhile is not acknowledged. A change of severity
        asks for a new acknowledgement. Raises BadInput when there is no such active alarm or it is of another severity.
        """
        for standing in self.active():
            if standing.id == alarm_id:
                break
        else:
            raise BadInput(f"acknowledge: found no active alarm '{alarm_id}'; look at the list of active alarms")
        if severity is not None and severity is not standing.severity:
            raise BadInput(
                f"acknowledge: '{alarm_id}' is {standing.severity.name} now, the acknowledgement is for "
                f"{severity.name}; look at the alarm again"
            )
        if standing.acknowledged:
            return []
        acknowledged = replace(standing, acknowledged=True)
        self._put_back(acknowledged)
        return [acknowledged]

    def _put_back(self, alarm: Alarm) -> None:
        for watch in self._watches.values():
            if watch.alarm is not None and watch.alarm.id == alarm.id:
                watch.alarm = alarm
                return
        self._conditions[alarm.name] = alarm

    def _refuse(self, result: Result, wall_time: float) -> list[Alarm]:
        text = (
            f"more than {MOST_WATCHES} channels and rules: channel {result.channel[:40]!r} and those after it are not"
        )
        return self.raise_condition(
            "channels_unwatched",
            Severity.MAJOR,
            f"{text} watched; look at what names the channels",
            "rules",
            wall_time,
            {},
        )

    def _follow(self, watch: _Watch, result: Result, wall_time: float) -> Alarm:
        """The alarm of a watch whose severity has just changed, brought up to date."""
        standing, rule = watch.alarm, watch.rule
        if watch.severity is Severity.NO_ALARM and standing is not None:
            watch.alarm = None
            return replace(standing, ended=wall_time, ended_number=result.number)
        if standing is None:
            standing = Alarm(
                id=self._identify(rule.name, wall_time),
                name=rule.name,
                severity=watch.severity,
                text="",
                watch=rule.watch,
                began=wall_time,
                series=result.series,
                number=result.number,
            )
        watch.alarm = replace(
            standing,
            severity=watch.severity,
            text=_text(watch),
            acknowledged=False,
            evidence=_evidence(watch, result),
        )
        return watch.alarm

    def _identify(self, name: str, wall_time: float) -> str:
        self._occurrences[name] += 1
        return f"{name}#{self._occurrences[name]}@{round(wall_time * 1000)}"


def _text(watch: _Watch) -> str:
    rule = watch.rule
    if watch.is_blind:
        return f"{rule.watch} is not measured: {rule.for_frames} frames in a row without a usable value"
    return rule.text or f"{rule.watch} is {'above' if rule.side > 0 else 'below'} {rule.limit:g}"


def _evidence(watch: _Watch, result: Result) -> Evidence:
    """Why the alarm is what it is: the last measurement, the limit, and the frames that made it so.

    A number that was not measured is left out rather than given as NaN, which JSON cannot carry.
    """
    rule, quantity = watch.rule, result.quantities.get(watch.rule.quantity)
    evidence: dict[str, float | int | str | list[float] | list[int]] = {"limit": rule.limit}
    if result.channel:
        evidence["channel"] = result.channel
    if reason := rule.why_unknown(quantity):
        evidence["reason"] = reason
        evidence["frames"] = list(watch.unseen)
    elif quantity is not None:
        evidence["value"] = float(quantity.value)
        evidence["unit"] = quantity.unit
        evidence["frames"] = [number for number, _ in watch.exceeded]
        evidence["values"] = [value for _, value in watch.exceeded]
    if quantity is not None and quantity.sigma is not None and math.isfinite(float(quantity.sigma)):
        evidence["sigma"] = float(quantity.sigma)
    return evidence
