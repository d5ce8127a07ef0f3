"""The pipeline itself: five stages, each a method that runs on its own thread, and how they start, stop and end."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.compression import Scratch
from streamer.ledger import Ledger
from streamer.metrics import Metrics
from streamer.pipeline.line import MOST_AHEAD, ORDER_SIZE, POLL_S, Answer, GivenUp, Limits, Line, Outcome, Slot
from streamer.pipeline.neighbours import Analysis, Decider, Message, Output, Source
from streamer.pipeline.publisher import Publisher
from streamer.pipeline.supervision import Supervision
from streamer.pipeline.timing import Lap, Stopwatch, Timing
from streamer.queues import Closed, Queue, WorkQueue
from streamer.records import (
    Alarm,
    BadFrame,
    BadInput,
    BadModel,
    Frame,
    Reduced,
    Result,
    SeriesEnd,
    SeriesStart,
    Status,
    StreamerError,
    WireRecord,
)

log = structlog.get_logger("streamer.pipeline")

ModelOutputs = Mapping[str, NDArray[Any]] | None
Concluded = tuple[Answer, Sequence[ModelOutputs]]
"""A frame, and what the model of each analysis says of it."""
Quarantine = Callable[[BadFrame, Sequence[Any]], None]


class Pipeline:
    """One source, its analyses, rules and outputs, and the threads between them.

    quarantine: called from a worker with the error and the parts of every message that cannot be used.
    Use: `start()`, then `join()`; `stop()` from anywhere, also from a signal handler.
    """

    def __init__(
        self,
        source: Source,
        analyses: Sequence[Analysis],
        decider: Decider,
        outputs: Sequence[Output],
        *,
        ledger: Ledger | None = None,
        metrics: Metrics | None = None,
        limits: Limits | None = None,
        quarantine: Quarantine | None = None,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self.analyses = list(analyses)
        self.decider = decider
        self.ledger = ledger or Ledger()
        self.metrics = metrics or Metrics()
        self.limits = limits or Limits()
        self.timing = Timing()
        self._quarantine = quarantine
        self._wall_time = wall_time
        self._publishers = [
            Publisher(output, self.metrics, on_failure=self._fail, on_wait=self._look) for output in outputs
        ]
        self._supervision = Supervision(
            source, self.analyses, decider, self._publishers, self.ledger, self.metrics, self.timing, wall_time
        )
        self._work: WorkQueue[Slot] = WorkQueue(
            self.limits.queue_frames, is_barrier=lambda slot: not slot.is_image, max_bytes=self.limits.queue_bytes
        )
        self._order = Line(ORDER_SIZE)
        self._ahead = threading.Semaphore(MOST_AHEAD + self.limits.workers)
        self._decisions: Queue[Sequence[Concluded] | threading.Event] = Queue(16)
        self._supervision.queues(work=self._work, order=self._order, decisions=self._decisions)
        self._unfit: dict[str, str] = {}
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._last_status: Status | None = None
        self._giving_up = threading.Event()
        self._next_look = 0.0
        self._is_wanted = True
        self._batch: deque[Slot] = deque()
        self._refused: list[Slot] = []
        self._threads = [
            self._thread("receive", self._receive),
            *(self._thread(f"worker-{i}", self._decode_and_reduce) for i in range(self.limits.workers)),
            self._thread("infer", self._infer),
            self._thread("decide", self._decide),
        ]

    def start(self, standing: Sequence[Alarm] = ()) -> None:
        """Start every thread. Models are expected to be loaded and warm. standing: alarms that were active before."""
        self._supervision.state = "waiting"
        self.timing.take_rate(time.monotonic())
        for publisher in self._publishers:
            publisher.start()
        self._supervision.announce(standing)
        for thread in reversed(self._threads):
            thread.start()

    def stop(self) -> None:
        """Stop the intake. What was received is still analysed, for at most `drain_s`."""
        self._stopping.set()

    def join(self) -> Status:
        """Wait until the source is exhausted, or `stop` was called, and everything is drained and flushed.

        Returns the last status. Raises what made the pipeline close, if it did not close by itself.
        """
        drained_by = math.inf
        while self.is_running and time.monotonic() < drained_by:
            if self._stopping.is_set():
                drained_by = min(drained_by, time.monotonic() + self.limits.drain_s)
            next(thread for thread in self._threads if thread.is_alive() or thread is self._threads[-1]).join(POLL_S)
        if self.is_running:
            self._give_up_what_waits()
        status = self.wind_up()
        flushed_by = time.monotonic() + max(1.0, self.limits.drain_s)
        for publisher in self._publishers:
            publisher.join(max(0.0, flushed_by - time.monotonic()))
        self.source.close()
        if self._failure is not None:
            raise self._failure
        return status

    @property
    def is_running(self) -> bool:
        """Whether frames are still on their way."""
        return any(thread.is_alive() for thread in self._threads)

    def wind_up(self) -> Status:
        """Close the accounts and tell the outputs that nothing more comes; for when nothing is running any more."""
        if self._last_status is None:
            self._account_for_the_rest()
            self._last_status = self._supervision.last_look(time.monotonic())
            for publisher in self._publishers:
                publisher.close()
        return self._last_status

    def status(self) -> Status:
        """How the stream is doing now."""
        return self._supervision.status()

    @property
    def misfits(self) -> Mapping[str, str]:
        """Analyses that cannot use the series that runs, and why: there is no result of them."""
        return self._supervision.misfits

    # Receiving: one thread, touches no pixel.

    def _receive(self) -> None:
        try:
            while not self._stopping.is_set():
                message = self.source.receive(POLL_S)
                if message is not None:
                    self._line_up(message)
        except (EOFError, Closed):
            pass
        finally:
            self._work.close()
            self._order.close()

    def _line_up(self, message: Message) -> None:
        self._supervision.message_received(time.monotonic())
        self.metrics.received()
        slot = Slot(message, message.kind, message.received_ns)
        try:
            self._order.put(slot)
        except Closed:
            self._refused.append(slot)
            raise
        if self.limits.when_behind == "wait":
            self._work.put(slot, message.nbytes)
        else:
            for oldest in self._work.put_evicting(slot, message.nbytes, may_go=lambda one: one.is_image):
                self._give_up(oldest)

    def _give_up(self, slot: Slot) -> None:
        try:
            outcome: Outcome = GivenUp(*self.source.identify(slot.message))
        except BadFrame as bad:
            outcome = bad
        self._order.finish(slot, outcome)

    # Decoding and reducing: N threads.

    def _decode_and_reduce(self) -> None:
        scratch = Scratch()
        self._supervision.buffers(scratch)
        with suppress(Closed):
            while True:
                self._wait_for_the_model()
                slot = self._work.take()
                if slot is None:
                    continue
                slot.is_taken = True
                try:
                    self._order.finish(slot, self._worked_off(slot, scratch))
                finally:
                    self._work.done()

    def _wait_for_the_model(self) -> None:
        """Before a message is taken, not after: so the oldest one is never the one that waits."""
        while not self._ahead.acquire(timeout=POLL_S):
            if self._must_end:
                raise Closed

    def _worked_off(self, slot: Slot, scratch: Scratch) -> Outcome:
        message: Message | None = slot.message
        if message is None:
            return slot.outcome
        watch = Stopwatch()
        try:
            scratch.reset()
            records = self.source.decode(message, scratch=scratch)
            slot.laps.append(("decode", watch.lap()))
            outcome = self._reduced(records, slot)
            slot.laps.append(("reduce", watch.lap()))
        except BadFrame as bad:
            if self._quarantine is not None:
                self._quarantine(bad, message.parts)
            return bad
        return outcome

    def _reduced(self, records: Sequence[WireRecord], slot: Slot) -> Outcome:
        match records:
            case [SeriesStart() as start]:
                self._begin(start)
                return start
            case [SeriesEnd() as end]:
                return end
            case [Frame() as first, *_]:
                frames = [record for record in records if isinstance(record, Frame)]
                return Answer(first.series, first.number, slot.received_ns, self._all_reduced(frames))
            case [Result() as result]:
                key = result.series, result.number
                return Answer(*key, slot.received_ns, results=[result], is_more=not slot.is_image)
        return None

    def _begin(self, start: SeriesStart) -> None:
        for analysis in self.analyses:
            try:
                analysis.begin(start)
            except (BadInput, BadModel) as misfit:
                self._unfit[analysis.name] = str(misfit)
                log.error("series does not fit", analysis=analysis.name, series=str(start.series), reason=str(misfit))
            else:
                self._unfit.pop(analysis.name, None)
            self._supervision.note_fit(analysis.name, self._unfit.get(analysis.name, ""))

    def _all_reduced(self, frames: Sequence[Frame]) -> list[tuple[Analysis, Reduced]]:
        """What every analysis makes of a frame's channels; one that cannot use it does not hold up the others."""
        reduced: list[tuple[Analysis, Reduced]] = []
        trouble: BadFrame | None = None
        for analysis in self.analyses:
            for frame in filter(analysis.accepts, frames):
                try:
                    reduced.append((analysis, self._reduced_by(analysis, frame)))
                except BadFrame as bad:
                    trouble = trouble or bad
        if trouble is not None and not reduced:
            first = frames[0]
            raise BadFrame(trouble.reason, str(trouble), series=first.series, number=first.number) from trouble
        return reduced

    def _reduced_by(self, analysis: Analysis, frame: Frame) -> Reduced:
        if analysis.name in self._unfit:
            raise BadFrame("geometry", self._unfit[analysis.name])
        try:
            reduced = analysis.reduce(frame)
        except BadFrame as bad:
            if bad.reason == "geometry":
                self._supervision.note_fit(analysis.name, str(bad))
            raise
        self._supervision.note_fit(analysis.name)
        return reduced

    # Asking the models: one thread, in the order of arrival.

    def _infer(self) -> None:
        try:
            while True:
                self._gather()
                answers: list[Answer] = []
                laps: list[tuple[str, Lap]] = []
                while self._batch:
                    slot = self._batch[0]
                    self._enter(slot, answers)
                    self._batch.popleft()
                    laps += slot.laps
                    if slot.is_taken:
                        self._ahead.release()
                self._ask_models(answers)
                for stage, lap in laps:
                    self._took(stage, lap)
        except Closed:
            pass
        finally:
            self._decisions.close()

    def _gather(self) -> None:
        """Fill the batch with messages that are worked off, oldest first."""
        while not self._batch:
            self._batch.extend(self._order.take_done(self.limits.max_batch, self.limits.max_wait_s, POLL_S))
            if not self._batch and self._must_end:
                raise Closed

    @property
    def _must_end(self) -> bool:
        return self._failure is not None or self._giving_up.is_set()

    def _enter(self, slot: Slot, answers: list[Answer]) -> None:
        """Enter one message into the account; a frame that counts joins the answers."""
        now = time.monotonic()
        match slot.outcome:
            case Answer(is_more=True) as answer:
                self.ledger.control()
                if self._is_wanted:
                    answers.append(answer)
            case Answer() as answer:
                verdict = self.ledger.frame(answer.series, answer.number, now)
                self._is_wanted = verdict == "accepted"
                if self._is_wanted:
                    answers.append(answer)
                self._count(verdict)
            case GivenUp() as gone:
                verdict = self.ledger.dropped(gone.series, gone.number, now)
                self._count(verdict)
                if verdict == "accepted":
                    self.metrics.dropped("work")
            case BadFrame() as bad:
                self.ledger.malformed(bad.reason, bad.series, bad.number, now)
                self.metrics.malformed(bad.reason)
                self._supervision.note_bad(bad)
            case SeriesStart() as start:
                self._decide_all(answers)
                self.ledger.start(start, now)
                self.metrics.series_opened()
            case SeriesEnd() as end:
                self.ledger.end(end.series, now, end.images)
            case _:
                self.ledger.control()

    def _count(self, verdict: str) -> None:
        match verdict:
            case "malformed":
                self.metrics.malformed("number")
            case "accepted" | "duplicate" | "late" | "stale" | "unannounced":
                self.metrics.frames(verdict)

    def _decide_all(self, answers: list[Answer]) -> None:
        """A restarted detector may use a series id again: what came before is decided before the new series opens."""
        self._ask_models(answers)
        answers.clear()
        decided = threading.Event()
        self._decisions.put(decided)
        while not decided.wait(POLL_S) and not self._must_end:
            pass

    def _ask_models(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        watch = Stopwatch()
        outputs = {analysis.name: self._model_outputs(analysis, answers) for analysis in self.analyses}
        lap = watch.lap()
        self._decisions.put(
            [(answer, [next(outputs[analysis.name]) for analysis, _ in answer.reduced]) for answer in answers]
        )
        self._took("infer", lap, frames=len(answers))
        self.metrics.batch(len(answers))

    def _model_outputs(self, analysis: Analysis, answers: Sequence[Answer]) -> Iterator[ModelOutputs]:
        """What the model says of every Reduced of this analysis, in order."""
        mine = [reduced for answer in answers for owner, reduced in answer.reduced if owner is analysis]
        if analysis.model is None or not mine:
            return iter([None] * len(mine))
        outputs = analysis.model.run({name: np.stack([one.inputs[name] for one in mine]) for name in mine[0].inputs})
        return iter([{name: rows[i] for name, rows in outputs.items()} for i in range(len(mine))])

    # Deciding and publishing: one thread, and one per output.

    def _decide(self) -> None:
        with suppress(Closed):
            while True:
                decision = self._decisions.take(POLL_S)
                if isinstance(decision, threading.Event):
                    decision.set()
                    decision = None
                left = len(decision or ())
                for answer, outputs in decision or ():
                    watch, left = Stopwatch(), left - 1
                    is_said = self._conclude(answer, outputs)
                    lap = watch.lap()
                    if not left:
                        self._have_it_written()
                    if is_said:
                        self._account_for(answer, lap)
                    self._look()
                self._look()

    def _have_it_written(self) -> None:
        """Before the books are kept: whoever waits for a result has waited long enough."""
        for publisher in self._publishers:
            publisher.wake()

    def _look(self) -> None:
        """What happens once a second; also while an output makes the stream wait."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + 1.0
            self._supervision.look(time.monotonic())

    def _conclude(self, answer: Answer, outputs: Sequence[ModelOutputs]) -> bool:
        """Say what is said of one frame; whether it could be."""
        try:
            for (analysis, reduced), output in zip(answer.reduced, outputs, strict=True):
                self._say(replace(analysis.interpret(reduced, output), wall_time=self._wall_time()))
            for result in answer.results:
                self._say(result)
        except BadFrame as bad:
            self.ledger.unusable(answer.series, answer.number, time.monotonic())
            self.metrics.malformed(bad.reason)
            self._supervision.note_bad(bad)
            return False
        return True

    def _account_for(self, answer: Answer, lap: Lap) -> None:
        self._took("decide", lap)
        if answer.is_more:
            return
        self.ledger.analysed(answer.series, answer.number, time.monotonic())
        latency = 1e-9 * (time.monotonic_ns() - answer.received_ns) if answer.received_ns else None
        self.timing.frame(latency)
        if latency is not None:
            self.metrics.latency(latency)

    def _say(self, result: Result) -> None:
        for publisher in self._publishers:
            publisher.publish(result)
        self._supervision.announce(self.decider.decide(result, self._wall_time()))
        self.metrics.analysed(result.analysis)

    def _took(self, stage: str, lap: Lap, frames: int = 1) -> None:
        self.timing.stage(stage, lap, frames)
        for _ in range(frames):
            self.metrics.stage(stage, lap.seconds / frames)

    # Ending.

    def _give_up_what_waits(self) -> None:
        """The deadline passed: every stage ends, what it holds is dropped, and `_account_for_the_rest` names it."""
        self._giving_up.set()
        log.warning("stopped before everything was analysed", messages=len(self._work.clear()))
        for publisher in self._publishers:
            if publisher.output.when_full == "wait":
                publisher.give_up()
        for queue in (self._work, self._order, self._decisions):
            queue.close()
        for thread in self._threads:
            thread.join(0.5)

    def _account_for_the_rest(self) -> None:
        """Enter what was received and never got its turn, as dropped."""
        now = time.monotonic()
        for slot in [*self._batch, *self._order.clear(), *self._refused]:
            if not slot.is_done and slot.is_image:
                self._give_up(slot)
            match slot.outcome:
                case Answer(is_more=False) as answer:
                    slot.outcome = GivenUp(answer.series, answer.number)
                    self._enter(slot, [])
                case SeriesStart() as start:
                    self.ledger.start(start, now)
                case _:
                    self._enter(slot, [])

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except StreamerError as error:
                log.error("stage failed", stage=name, reason=str(error))
                self._fail(error)
            except Exception as error:
                log.exception("stage failed", stage=name)
                self._fail(error)

        return threading.Thread(target=guarded, name=name, daemon=True)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopping.set()
        for queue in (self._work, self._order, self._decisions):
            queue.close()
