"""Once a second: close what is over, say what was lost, raise and clear the stream's own alarms, tell everybody.

Runs on the decide thread, so that rules and system alarms share one order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from streamer.compression import Scratch
from streamer.ledger import FEWEST, Ledger
from streamer.metrics import Metrics
from streamer.pipeline.neighbours import Analysis, Decider, Source
from streamer.pipeline.publisher import Publisher
from streamer.pipeline.timing import Timing
from streamer.queues import Queue
from streamer.records import Account, Alarm, BadFrame, Severity, Status, WireAccount

log = structlog.get_logger("streamer.stream")

STUCK_S = 20.0  # the slowest first frame of a series, with the largest detector's geometry to build, takes a tenth
UNREADABLE_LOOKS = 3  # seconds in which nothing but unusable messages came, before it is more than a few bad ones
REPEATING_LOOKS = 3  # seconds with more repeated numbers than new ones: a detector that sends a few again takes less
RECORD_S = 1.0  # how long an alarm waits to be on record before everybody else hears of it all the same


class Supervision:
    """Knows how the stream is doing and says so.

    state: "starting", "waiting" (for a first message or the next series), "running", "stalled", "stopped".
    """

    def __init__(
        self,
        source: Source,
        analyses: Sequence[Analysis],
        decider: Decider,
        publishers: Sequence[Publisher],
        ledger: Ledger,
        metrics: Metrics,
        timing: Timing,
        wall_time: Callable[[], float],
    ) -> None:
        self.state = "starting"
        self.example = ""
        self._source = source
        self._analyses = analyses
        self._decider = decider
        self._publishers = publishers
        self._ledger = ledger
        self._metrics = metrics
        self._timing = timing
        self._wall_time = wall_time
        self._queues: dict[str, Queue[Any]] = {}
        self._last_message: float | None = None
        self._silent_since: float | None = None
        self._rate = 0.0
        self._progress: tuple[int, float] | None = None
        self._told: Counter[str] = Counter()
        self._misfits: dict[str, str] = {}
        self._wire = WireAccount()
        self._unusable_looks = 0
        self._repeating_looks = 0
        self._refused = 0
        self._changes: Counter[str] = Counter()
        self._scratches: list[Scratch] = []

    def queues(self, **queues: Queue[Any]) -> None:
        """Which queues to measure."""
        self._queues.update(queues)

    def buffers(self, scratch: Scratch) -> None:
        """Buffers of another worker to measure."""
        self._scratches.append(scratch)

    def note_bad(self, bad: BadFrame) -> None:
        """A message cannot be used. One that is of another format explains all others."""
        if bad.reason == "format" or "format" not in self._ledger.wire().malformed:
            self.example = str(bad)

    def note_fit(self, analysis: str, misfit: str = "") -> None:
        """Whether an analysis can use the series that runs: "", or why not. Called from any worker."""
        if misfit:
            self._misfits[analysis] = misfit
        else:
            self._misfits.pop(analysis, None)

    @property
    def misfits(self) -> dict[str, str]:
        """Analyses that cannot use the series that runs, and why."""
        return dict(self._misfits)

    def message_received(self, now: float) -> None:
        """The source gave a message. now: monotonic seconds."""
        self._last_message = now

    def look(self, now: float) -> None:
        """Everything that happens once a second. now: monotonic seconds."""
        closed = self._ledger.tick(now)
        self._report(closed)
        self._complain()
        self._look_at_stream(now, has_stalled=any(account.closed_by == "stall" for account in closed))
        changes = Counter(self._source.counts)
        for change in (changes - self._changes).elements():
            self._metrics.source(change)
        self._changes = changes
        self._look_at_progress(now)
        wire, before = self._ledger.wire(), self._wire
        self._wire = wire
        self._look_at_messages(wire, before)
        self._look_at_repeats(wire, before)
        self._look_at_fit()
        self._look_at_numbers()
        for publisher in self._publishers:
            self._look_at_output(publisher)
        self._rate = self._timing.take_rate(now)
        self.publish(self.status())

    def last_look(self, now: float) -> Status:
        """The stream is over: close every account, say the last word."""
        self._complain()
        self._report(self._ledger.close(now))
        self.state = "stopped"
        self._rate = self._timing.take_rate(now)
        status = self.status()
        self.publish(status)
        return status

    def status(self) -> Status:
        """How the stream is doing now."""
        statistics = {name: queue.statistics() for name, queue in self._queues.items()}
        return Status(
            state=self.state,
            is_ready=self.state in ("waiting", "running"),
            source=self._source.url,
            wire=self._ledger.wire(),
            series=self._ledger.current(),
            closed=tuple(account for account in self._ledger.accounts() if account.closed_by),
            frames_per_second=self._rate,
            latency_ms=self._timing.recent_ms(),
            queues={
                **{name: {"depth": one.depth, "size": one.size} for name, one in statistics.items()},
                **{publisher.output.name: publisher.statistics() for publisher in self._publishers},
            },
            outputs={publisher.output.name: publisher.trouble or "up" for publisher in self._publishers},
            devices={one.name: one.model.device for one in self._analyses if one.model is not None},
            alarms=self._decider.active(),
            wall_time=self._wall_time(),
        )

    def publish(self, status: Status) -> None:
        """Tell every output and the metrics."""
        self._metrics.ready(status.is_ready)
        for name, queue in status.queues.items():
            self._metrics.queue(name, queue["depth"], queue["size"])
        self._metrics.buffers(sum(scratch.nbytes for scratch in self._scratches))
        stages = self._timing.take_stages()
        for stage, (_, waited) in stages.items():
            self._metrics.stage_waited(stage, waited)
        status = replace(status, stages={stage: milliseconds for stage, (milliseconds, _) in stages.items()})
        for publisher in self._publishers:
            publisher.publish(status)

    def announce(self, alarms: Sequence[Alarm]) -> None:
        """Tell everybody of alarms that began, changed or ended."""
        for alarm in alarms:
            log.warning(
                "alarm" if alarm.is_active else "alarm over",
                alarm=alarm.name,
                severity=alarm.severity.name,
                frame=alarm.number,
                text=alarm.text,
            )
            self._metrics.alarm(alarm)
            for publisher in self._publishers:
                if publisher.output.is_record and not publisher.record(alarm, RECORD_S):
                    log.error("an alarm is not on record yet", alarm=alarm.name, output=publisher.output.name)
            for publisher in self._publishers:
                if not publisher.output.is_record:
                    publisher.publish(alarm)

    def _report(self, closed: Sequence[Account]) -> None:
        for account in closed:
            self._metrics.series_closed(account.closed_by)
            self._metrics.frames("missing", account.missing)
            self._metrics.frames("before_join", account.before_join)
            lost = account.missing + account.malformed + account.dropped + account.late
            (log.warning if lost else log.info)(
                "series closed",
                series=str(account.series),
                by=account.closed_by,
                announced=account.announced,
                analysed=account.analysed,
                before_join=account.before_join,
                missing=account.missing,
                malformed=account.malformed,
                dropped=account.dropped,
                late=account.late,
            )

    def _complain(self) -> None:
        malformed = Counter(self._ledger.wire().malformed)
        news = malformed - self._told
        if news:
            log.warning("messages could not be used", **news, example=self.example)
        self._told = malformed

    def _look_at_stream(self, now: float, *, has_stalled: bool) -> None:
        if self._last_message is None:
            return
        silence = now - self._last_message
        if silence < self._ledger.stall_s or self._last_message != self._silent_since:
            self.state = "running" if self._ledger.has_open_series() else "waiting"
            self.announce(self._decider.clear_condition("stream_stalled", self._wall_time()))
        if has_stalled and silence >= self._ledger.stall_s:
            self.state, self._silent_since = "stalled", self._last_message
            text = f"no message for {self._ledger.stall_s:g} s in an unfinished series: look at detector and network"
            log.error("stream stalled", silence_s=round(silence, 1), source=self._source.url)
            evidence = {"silence_s": round(silence, 1)}
            self.announce(
                self._decider.raise_condition(
                    "stream_stalled", Severity.INVALID, text, "stream", self._wall_time(), evidence
                )
            )

    def _look_at_progress(self, now: float) -> None:
        """Frames wait while nothing is decided: a model or a decision hangs, and nobody may believe the silence."""
        waiting = self._queues["order"].statistics().depth
        if not waiting or self._progress is None or self._timing.frames != self._progress[0]:
            self._progress = self._timing.frames, now
            self.announce(self._decider.clear_condition("analysis_stuck", self._wall_time()))
        elif now - self._progress[1] >= STUCK_S:
            self.state = "stalled"
            text = (
                f"{waiting} messages wait and none was decided for {STUCK_S:g} s: look at the log, restart the service"
            )
            self.announce(
                self._decider.raise_condition(
                    "analysis_stuck", Severity.INVALID, text, "stream", self._wall_time(), {"waiting": waiting}
                )
            )

    def _look_at_messages(self, wire: WireAccount, before: WireAccount) -> None:
        """Nothing of what comes can be read: a wrong prefix, or a sender that went mad."""
        came, bad = wire.messages - before.messages, _unreadable(wire) - _unreadable(before)
        refused = self._source.counts.get("refused", 0)
        if came > bad:
            self._unusable_looks, self._refused = 0, refused
            self.announce(self._decider.clear_condition("stream_unreadable", self._wall_time()))
        elif came:
            self._unusable_looks += 1
        text = ""
        if self._unusable_looks >= UNREADABLE_LOOKS:
            text = f"no message can be used: {self.example}"
        elif refused > self._refused and not came:
            text = "the peer hangs up: its socket is of another type; try ?socket=pull, ?socket=sub or another format"
        if text:
            evidence = {"malformed": sum(wire.malformed.values()), "refused": refused}
            self.announce(
                self._decider.raise_condition(
                    "stream_unreadable", Severity.MAJOR, text, "stream", self._wall_time(), evidence
                )
            )

    def _look_at_repeats(self, wire: WireAccount, before: WireAccount) -> None:
        """Most frames have a number that came already: what is analysed is a small part of what is measured."""
        repeated, accepted = wire.duplicate - before.duplicate, wire.accepted - before.accepted
        if repeated > accepted:
            self._repeating_looks += 1
        elif accepted:
            self._repeating_looks = 0
            self.announce(self._decider.clear_condition("numbers_repeat", self._wall_time()))
        if self._repeating_looks < REPEATING_LOOKS:
            return
        text = (
            f"{repeated} of {repeated + accepted} frames in a second have a number that came already and are not "
            "analysed: the sender does not count, or sends twice; look at where it takes its frame number from"
        )
        evidence = {"repeated": repeated, "accepted": accepted}
        self.announce(
            self._decider.raise_condition("numbers_repeat", Severity.MAJOR, text, "stream", self._wall_time(), evidence)
        )

    def _look_at_fit(self) -> None:
        """An analysis cannot use the series: its frames are counted as malformed, and nothing is wrong with them."""
        misfits = self.misfits
        if not misfits:
            self.announce(self._decider.clear_condition("series_unfit", self._wall_time()))
            return
        text = "; ".join(f"{name} cannot use this series: {why}" for name, why in misfits.items())
        self.announce(
            self._decider.raise_condition(
                "series_unfit", Severity.MAJOR, text, "stream", self._wall_time(), {"analyses": list(misfits)}
            )
        )

    def _look_at_numbers(self) -> None:
        """Numbers are missing as regularly as when a stranger reads from the same socket."""
        account = self._ledger.current()
        if account is None or (not account.gap_period and account.received < FEWEST):
            return  # a series that has just begun says nothing yet
        period, length = account.gap_period, account.gap_length
        if not period or (self._source.is_exclusive and length < self._source.readers):
            self.announce(self._decider.clear_condition("frames_taken", self._wall_time()))
            return
        gone = f"{length} of every {period} frames {'is' if length == 1 else 'are'} missing: "
        why = (
            "another client is attached to this socket and takes its share; end it, or let both read from "
            "'streamer relay' (if they share it on purpose, add readers=N to the source)"
            if self._source.is_exclusive
            else "the sender leaves them out"
        )
        if account.is_counted:
            why += (
                f"; if the sender counts like that, add step={account.step * period // (period - length)} to the source"
            )
        evidence = {"period": period, "missing": length}
        self.announce(
            self._decider.raise_condition(
                "frames_taken", Severity.MAJOR, gone + why, "stream", self._wall_time(), evidence
            )
        )

    def _look_at_output(self, publisher: Publisher) -> None:
        name = f"output_{publisher.output.name}_down"
        if publisher.trouble:
            watched = f"output.{publisher.output.name}"
            self.announce(
                self._decider.raise_condition(name, Severity.MAJOR, publisher.trouble, watched, self._wall_time(), {})
            )
        else:
            self.announce(self._decider.clear_condition(name, self._wall_time()))


def _unreadable(wire: WireAccount) -> int:
    """Messages that could not be read. A frame whose geometry is not the analysis' could."""
    return sum(count for reason, count in wire.malformed.items() if reason != "geometry")
