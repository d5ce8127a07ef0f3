"""The notebook's door: attach to a source, ask it a question, iterate over the answers.

    with streamer.open("sim:saxs?frames=100&fault=radiation_damage@50") as stream:
        for result in stream.analyse("saxs", alarms={"damage": {"watch": "saxs.anomaly", "above": 0.9}}):
            ...
        print(stream.alarms, stream.accounts)

The same pipeline as at the beamline runs behind the iterator, with the same threads and the same account of every
frame. A loop that is slower than the stream holds back stored and simulated sources; of a live detector the oldest
frames are given up and counted (`when_behind`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

from streamer import compression, config
from streamer.decide import Decider, Rule
from streamer.outputs import Output
from streamer.pipeline import Limits, Pipeline
from streamer.pipeline.line import POLL_S
from streamer.queues import Closed, Queue
from streamer.records import Account, Alarm, BadConfig, BadFrame, BadInput, Frame, Result, Status, WireRecord
from streamer.sources import Source

MOST_ALARMS = 1000  # that a notebook is told of at the end; of more, the latest


class _Basket(Output):
    """Holds results until the loop takes them."""

    name = "loop"
    when_full: Literal["skip", "wait"] = "wait"

    def __init__(self) -> None:
        self.results: Queue[Result] = Queue(64)
        self.alarms: dict[str, Alarm] = {}

    def write(self, result: Result) -> None:
        with suppress(Closed):
            self.results.put(result)

    def alarm(self, alarm: Alarm) -> None:
        self.alarms[alarm.id] = alarm
        if len(self.alarms) > MOST_ALARMS:
            del self.alarms[next(iter(self.alarms))]

    def close(self) -> None:
        self.results.close()


class Stream:
    """A source that is open, and what one wants to know of it. Close it, or use it in a `with` statement.

    alarms: every alarm so far, the latest word on each. accounts: what became of every frame, once the loop has ended.
    """

    def __init__(self, source: Source, *, when_behind: Literal["skip", "wait"] | None = None) -> None:
        self.source = source
        self.alarms: list[Alarm] = []
        self.accounts: tuple[Account, ...] = ()
        self.status: Status | None = None
        self._is_asked = False
        self._pipeline: Pipeline | None = None
        self._is_stopped = False
        self._limits = Limits(when_behind=when_behind or ("skip" if source.is_exclusive else "wait"))

    def analyse(
        self, analysis: str, *, alarms: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
    ) -> Iterator[Result]:
        """Results in the order of the frames, until the source ends or the loop is left.

        analysis: a name in `streamer.analyses` ("saxs"); options: what its constructor takes (poni, bins, device, …).
        alarms: name → the keys of an `[alarm.NAME]` table. Raises BadConfig, BadModel before the first frame, and
        BadFrame where a series was announced that the analysis cannot use, before any other gave a result.
        """
        if self._is_asked:
            raise BadInput(f"stream: {self.source.url} was asked already, and its frames are gone; open it once more")
        if config.carries_results(self.source):
            raise BadConfig(
                f"stream: {self.source.url} carries results of another streamer, not frames; take them as they are "
                "with results(), or write a beamline file with rules and outputs"
            )
        asked = config.build("analyses", analysis, options)
        rules = []
        for name, table in (alarms or {}).items():
            arguments, problems = config.fit(Rule, table, f"alarm '{name}'", given=("name",))
            if problems:
                raise BadConfig(*problems)
            rules.append(Rule(name=name, **arguments))
            if (problem := config.misdirected(arguments["watch"], [analysis])) is not None:
                raise BadConfig(f"alarm '{name}' {problem}")
        compression.warm()
        self._is_asked = True
        basket = _Basket()
        self._pipeline = Pipeline(self.source, [asked], Decider(rules), [basket], limits=self._limits)
        if self._is_stopped:
            self._pipeline.stop()
        return self._results(self._pipeline, basket)

    def frames(self) -> Iterator[Frame]:
        """The frames themselves, decoded and nothing more. Bad ones raise BadFrame: catch it and go on."""
        yield from (record for record in self._records() if isinstance(record, Frame))

    def results(self) -> Iterator[Result]:
        """What another streamer publishes, from a source that carries results. Bad messages raise BadFrame."""
        yield from (record for record in self._records() if isinstance(record, Result))

    def stop(self) -> None:
        """Take no more frames: results of what came are still given, then the loop ends. Also from a signal handler."""
        self._is_stopped = True
        if self._pipeline is not None:
            self._pipeline.stop()

    def close(self) -> None:
        """Let go of the source."""
        self.source.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _records(self) -> Iterator[WireRecord]:
        while True:
            try:
                message = self.source.receive(POLL_S)
            except EOFError:
                return
            if message is not None:
                yield from self.source.decode(message)

    def _results(self, pipeline: Pipeline, basket: _Basket) -> Iterator[Result]:
        is_answered = False
        pipeline.start()
        try:
            with suppress(Closed):
                while is_answered or not _is_hopeless(pipeline):
                    result = basket.results.take(POLL_S)
                    self.alarms = list(basket.alarms.values())
                    if result is not None:
                        is_answered = True
                        yield result
                    elif not pipeline.is_running:
                        pipeline.wind_up()
            if not is_answered and (misfits := pipeline.misfits):
                why = "; ".join(misfits.values())
                raise BadFrame("geometry", f"no frame of {self.source.url} can be analysed: {why}")
        finally:
            pipeline.stop()
            basket.results.close()
            self.status = pipeline.join()
            self.accounts = self.status.closed
            self.alarms = list(basket.alarms.values())


def _is_hopeless(pipeline: Pipeline) -> bool:
    """Whether the series was announced and does not fit. One that was joined late may be followed by one that does."""
    series = pipeline.ledger.current() if pipeline.misfits else None
    if series is None or series.joined_late:
        return False
    return series.malformed > 0 and not pipeline.ledger.totals()["analysed"]


def open(url: str, *, when_behind: Literal["skip", "wait"] | None = None) -> Stream:  # noqa: A001
    """Attach to a source by its one string (see `streamer.config`): a detector, files, a recording, a simulation.

    when_behind: "skip" or "wait"; by default a detector that pushes is not held back, everything else is.
    Raises BadConfig for a string nobody understands, SourceLost where there is nothing to attach to.
    """
    return Stream(config.open_source(url), when_behind=when_behind)
