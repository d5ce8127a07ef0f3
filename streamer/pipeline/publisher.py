"""One output, its queue and its thread. What the output cannot take now is offered again, later and later."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from streamer.metrics import Metrics
from streamer.pipeline.line import POLL_S
from streamer.pipeline.neighbours import Output
from streamer.queues import Closed, Queue
from streamer.records import Alarm, OutputDown, Result, Status

log = structlog.get_logger("streamer.output")

BACK_OFF_S = (0.1, 10.0)  # first and longest pause between two attempts at an output that is down

MOST_ALARMS = 8192

Publication = Result | Alarm | Status


class Publisher:
    """Hands results, alarms and the status to one output on a thread of its own.

    trouble: "" while the output is up, else what is wrong.
    Results (and the status, of which a newer one follows) make room in a full queue. Alarms make room only for alarms,
    and only when MOST_ALARMS of them wait: what is down that long is told the latest.
    """

    def __init__(
        self,
        output: Output,
        metrics: Metrics,
        *,
        size: int = 1024,
        on_failure: Callable[[BaseException], None] = lambda _: None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """on_failure: told of an error that is not the output's to have. on_wait: called while the stream waits."""
        self.output = output
        self.trouble = ""
        self._on_failure = on_failure
        self._on_wait = on_wait
        self._metrics = metrics
        self._queue: Queue[Publication] = Queue(size)
        self._hurry = threading.Event()
        self._is_open = False
        self._given = 0
        self._settled = 0
        self._lost: deque[str] = deque(maxlen=64)
        self._written = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"output-{output.name}", daemon=True)

    def start(self) -> None:
        """Open the output and begin to write."""
        self._thread.start()

    def publish(self, item: Publication) -> None:
        """Hand over; waits only for an output that asks the stream to wait for it.

        The output's thread is not woken for a result, because more of them come in a batch; then `wake` it.
        """
        is_result = isinstance(item, Result)
        with self._written:
            self._given += 1
        with suppress(Closed):
            if self.output.when_full == "wait" and is_result:
                while not self._queue.put(item, timeout_s=POLL_S, quietly=is_result):
                    if self._hurry.is_set():
                        self._count_lost([item])
                        return
                    self._on_wait()
            else:
                may_go: Callable[[Publication], bool] = lambda held: not isinstance(held, Alarm)  # noqa: E731
                self._count_lost(self._queue.put_evicting(item, may_go=may_go, may_grow=True, quietly=is_result))
                while len(self._queue) > MOST_ALARMS:
                    self._count_lost([lost for lost in [self._queue.take(0.0)] if lost is not None])

    def wake(self) -> None:
        """Have the results written that were handed over."""
        self._queue.wake()

    def record(self, alarm: Alarm, timeout_s: float) -> bool:
        """Hand over an alarm and wait until it is written; an output that is down is not waited for.

        Returns False if it is not written (yet).
        """
        self.publish(alarm)
        if self.trouble:
            return False
        with self._written:
            mine = self._given
            self._written.wait_for(lambda: self._settled >= mine or bool(self.trouble), timeout_s)
            return self._settled >= mine and alarm.id not in self._lost

    def close(self) -> None:
        """No more: the thread writes what waits and ends."""
        self._queue.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread; what it has not written by then is dropped and counted."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.give_up()
            self._thread.join(1.0)

    def give_up(self) -> None:
        """Stop waiting for the output: everything still to be written is dropped and counted."""
        self._hurry.set()
        self._queue.close()
        self._count_lost(self._queue.clear())

    def statistics(self) -> dict[str, int]:
        """How full the queue is."""
        now = self._queue.statistics()
        return {"depth": now.depth, "size": now.size}

    def _count_lost(self, items: Sequence[Publication]) -> None:
        alarms = [item for item in items if isinstance(item, Alarm)]
        if alarms:
            self._lost.extend(alarm.id for alarm in alarms)
            names = sorted({alarm.name for alarm in alarms})
            log.error("alarms were not told", output=self.output.name, alarms=names, count=len(alarms))
        self._settle(len(items))
        lost = sum(not isinstance(item, Status) for item in items)
        if lost:
            self._metrics.output_dropped(self.output.name, lost)

    def _run(self) -> None:
        try:
            self._insist(None)
            while True:
                item = self._queue.take(timeout_s=POLL_S)
                if item is not None:
                    self._insist(item)
        except Closed:
            pass
        except Exception as error:
            log.exception("output failed", output=self.output.name)
            self.trouble = f"failed: {error}"
            self._on_failure(error)
            self.give_up()
        finally:
            if self._is_open:
                with suppress(OutputDown):
                    self.output.close()

    def _insist(self, item: Publication | None) -> None:
        pause = BACK_OFF_S[0]
        while not self._hurry.is_set():
            try:
                self._offer(item)
            except OutputDown as down:
                self._is_down(str(down))
                self._hurry.wait(pause)
                pause = min(2 * pause, BACK_OFF_S[1])
            else:
                self._is_up()
                self._settle(0 if item is None else 1)
                return
        self._count_lost([] if item is None else [item])

    def _settle(self, count: int) -> None:
        with self._written:
            self._settled += count
            self._written.notify_all()

    def _offer(self, item: Publication | None) -> None:
        if not self._is_open:
            self.output.open(self._metrics)
            self._is_open = True
        match item:
            case Result():
                self.output.write(item)
            case Alarm():
                self.output.alarm(item)
            case Status():
                self.output.status(item)

    def _is_down(self, reason: str) -> None:
        if self.trouble:
            self._metrics.output_retried(self.output.name)
        else:
            self._metrics.output_failed(self.output.name)
            self._metrics.output_up(self.output.name, False)
            log.error("output is down, trying again", output=self.output.name, reason=reason)
        self.trouble = reason
        with self._written:
            self._written.notify_all()

    def _is_up(self) -> None:
        if self.trouble:
            log.info("output is up again", output=self.output.name)
            self.trouble = ""
        self._metrics.output_up(self.output.name, True)
