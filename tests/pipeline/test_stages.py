"""Messages go in as a list and results come out in order, with every frame under a name."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.decide import Decider, Rule
from streamer.ledger import Ledger
from streamer.outputs import Output
from streamer.pipeline import Limits, Pipeline
from streamer.records import (
    Alarm,
    BadFrame,
    BadInput,
    Frame,
    OutputDown,
    Quantity,
    Reduced,
    Result,
    SeriesEnd,
    SeriesKey,
    SeriesStart,
    Severity,
    Status,
    WireRecord,
)
from tests.lists import KEY, ListSource, frame, series


class Doubling:
    """A model that says twice its input."""

    device = "cpu"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.batches.append(len(inputs["x"]))
        return {"twice": 2 * inputs["x"]}


class MeanPixel:
    """Reduces an image to its mean and asks the model about it."""

    name = "mean"

    def __init__(self, model: Doubling | None = None, gate: threading.Event | None = None) -> None:
        self.model = model
        self.begun: list[SeriesStart] = []
        self._gate = gate

    def begin(self, start: SeriesStart) -> None:
        self.begun.append(start)
        if start.images == 666:
            raise BadInput("mean: 666 images never fit")

    def accepts(self, one: Frame) -> bool:
        return one.channel in ("", "threshold_1")

    def reduce(self, one: Frame) -> Reduced:
        if self._gate is not None:
            self._gate.wait(30)
        value = np.float32(one.image.mean())
        if value < 0:
            raise BadFrame("negative", "a negative mean cannot be used")
        return Reduced(one.series, one.number, {"mean": Quantity(float(value), 0.1)}, {"x": np.array([value])})

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        quantities = dict(reduced.quantities)
        if outputs is not None:
            quantities["twice"] = Quantity(float(outputs["twice"][0]))
        return Result("mean", reduced.series, reduced.number, quantities)


class Lists(Output):
    """Keeps everything; fails as often as it is told to."""

    name = "lists"

    def __init__(self, failures: int = 0, when_full: Any = "skip") -> None:
        self.results: list[Result] = []
        self.alarms: list[Alarm] = []
        self.statuses: list[Status] = []
        self.failures = failures
        self.when_full = when_full

    def write(self, result: Result) -> None:
        if self.failures:
            self.failures -= 1
            raise OutputDown("nobody at home")
        self.results.append(result)

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def status(self, status: Status) -> None:
        self.statuses.append(status)


def run(
    items: list[list[WireRecord] | BadFrame],
    analysis: MeanPixel,
    output: Lists,
    rules: Sequence[Rule] = (),
    **limits: Any,
) -> Status:
    limits = {"when_behind": "wait", **limits}
    pipeline = Pipeline(ListSource(items), [analysis], Decider(rules), [output], limits=Limits(**limits))
    pipeline.start()
    return pipeline.join()


def test_results_come_in_the_order_of_the_frames_with_the_right_frame_on_each() -> None:
    model, output = Doubling(), Lists()
    status = run(series(range(300)), MeanPixel(model), output, workers=4)
    assert [result.number for result in output.results] == list(range(300))
    assert [result["twice"].value for result in output.results] == [2.0 * n for n in range(300)]
    assert max(model.batches) <= 16
    assert sum(model.batches) == 300
    (account,) = status.closed
    assert (account.announced, account.analysed, account.unaccounted, account.closed_by) == (300, 300, 0, "end")


def test_an_analysis_without_a_model_is_answered_by_physics_alone() -> None:
    output = Lists()
    run(series(range(5)), MeanPixel(None), output)
    assert [sorted(result.quantities) for result in output.results] == [["mean"]] * 5


def test_a_bad_message_is_counted_and_skipped() -> None:
    items = series(range(6))
    items[2] = BadFrame("size", "too small", series=KEY, number=1)
    items[4] = BadFrame("cbor", "no map")
    output = Lists()
    status = run(items, MeanPixel(), output)
    assert [result.number for result in output.results] == [0, 2, 4, 5]
    (account,) = status.closed
    assert (account.malformed, account.missing, account.analysed) == (1, 1, 4)
    assert status.wire.malformed == {"size": 1, "cbor": 1}


def test_a_frame_the_analysis_cannot_use_is_malformed_with_its_number() -> None:
    items = series(range(3))
    items[2] = [frame(1, -1.0)]
    status = run(items, MeanPixel(), Lists())
    assert status.wire.malformed == {"negative": 1}
    assert (status.closed[0].malformed, status.closed[0].missing) == (1, 0)


def test_channels_of_one_frame_count_once() -> None:
    items = series(range(2))
    items[1] = [frame(0, 1.0, channel="threshold_1"), frame(0, 2.0, channel="threshold_2")]
    output = Lists()
    status = run(items, MeanPixel(), output)
    assert [result.number for result in output.results] == [0, 1]
    assert status.closed[0].analysed == 2


def test_duplicates_are_not_analysed_twice() -> None:
    output = Lists()
    status = run(series([0, 1, 1, 2], images=3), MeanPixel(), output)
    assert [result.number for result in output.results] == [0, 1, 2]
    assert status.wire.duplicate == 1


def test_a_series_that_does_not_fit_is_malformed_with_its_reason() -> None:
    items = series(range(3), images=666)
    status = run(items, MeanPixel(), Lists())
    assert status.wire.malformed == {"geometry": 3}
    assert status.closed[0].malformed == 3


def test_an_analysis_that_cannot_use_a_series_raises_an_alarm_until_a_series_fits() -> None:
    source = ListSource(series(range(3), images=666))
    source.may_end.clear()
    output = Lists()
    pipeline = Pipeline(source, [MeanPixel()], Decider([]), [output])
    pipeline.start()
    wait_until(lambda: any(alarm.name == "series_unfit" for alarm in output.alarms))
    assert pipeline.misfits == {"mean": "mean: 666 images never fit"}
    second = SeriesKey(8, "eight")
    source.items += [[SeriesStart(second, images=1)], [frame(0, key=second)]]
    wait_until(lambda: any(alarm.ended is not None for alarm in output.alarms))
    assert pipeline.misfits == {}
    source.may_end.set()
    assert pipeline.join().wire.malformed == {"geometry": 3}
    assert {alarm.name for alarm in output.alarms} == {"series_unfit"}


def test_a_start_is_begun_between_the_frames_around_it() -> None:
    second = SeriesKey(8, "eight")
    items = [
        *series(range(50)),
        [SeriesStart(second, images=50)],
        *([frame(n, n, key=second)] for n in range(50)),
        [SeriesEnd(second)],
    ]
    analysis, output = MeanPixel(), Lists()
    status = run(items, analysis, output, workers=4)
    assert [start.series for start in analysis.begun] == [KEY, second]
    assert [account.analysed for account in status.closed] == [50, 50]


def test_a_stream_that_is_behind_gives_up_the_oldest_frames_and_counts_them() -> None:
    gate = threading.Event()
    source = ListSource(series(range(40)))
    source.may_end.clear()
    output = Lists()
    limits = Limits(workers=1, when_behind="skip", queue_frames=4)
    pipeline = Pipeline(source, [MeanPixel(gate=gate)], Decider([]), [output], limits=limits)
    pipeline.start()
    wait_until(lambda: source.given == len(source.items))
    gate.set()
    source.may_end.set()
    (account,) = pipeline.join().closed
    assert account.dropped > 0
    assert account.dropped + account.analysed == 40
    assert account.missing == account.malformed == 0
    assert {result.number for result in output.results} >= {38, 39}


def test_a_decision_that_is_slow_makes_the_work_queue_give_up_frames_and_keeps_memory_bounded() -> None:
    gate = threading.Event()

    class Slow(MeanPixel):
        def interpret(self, reduced: Reduced, outputs: Any) -> Result:
            gate.wait(30)
            return super().interpret(reduced, outputs)

    source = ListSource(series(range(2000)))
    source.may_end.clear()
    pipeline = Pipeline(source, [Slow()], Decider([]), [Lists()], limits=Limits(when_behind="skip", queue_frames=8))
    pipeline.start()
    wait_until(lambda: source.given == len(source.items))
    gate.set()
    source.may_end.set()
    (account,) = pipeline.join().closed
    assert account.dropped > 1000
    assert account.dropped + account.analysed == 2000
    assert account.unaccounted == 0


def test_a_stopped_stream_drains_what_it_received() -> None:
    source = ListSource(series(range(20))[:-1])
    source.may_end.clear()
    output = Lists()
    pipeline = Pipeline(source, [MeanPixel()], Decider([]), [output])
    pipeline.start()
    wait_until(lambda: source.given == len(source.items))
    pipeline.stop()
    (account,) = pipeline.join().closed
    assert (account.analysed, account.closed_by, account.pending) == (20, "stop", 0)
    assert len(output.results) == 20


def test_frames_that_outlast_the_drain_deadline_are_named_as_dropped() -> None:
    gate = threading.Event()
    source = ListSource(series(range(20))[:-1])
    source.may_end.clear()
    limits = Limits(workers=1, when_behind="wait", drain_s=0.2)
    pipeline = Pipeline(source, [MeanPixel(gate=gate)], Decider([]), [Lists()], limits=limits)
    pipeline.start()
    wait_until(lambda: source.given == len(source.items))
    pipeline.stop()
    threading.Timer(1.5, gate.set).start()
    (account,) = pipeline.join().closed
    assert account.dropped > 0
    assert account.unaccounted == account.pending == 0


def test_a_rule_raises_its_alarm_and_every_output_hears_of_it() -> None:
    rule = Rule(name="bright", watch="mean.mean", above=10.0, sigma=2, for_frames=3)
    output = Lists()
    status = run(series(range(20)), MeanPixel(), output, [rule])
    assert [(alarm.name, alarm.number) for alarm in output.alarms] == [("bright", 13)]
    assert [alarm.severity for alarm in status.alarms] == [Severity.MAJOR]


def test_an_output_that_is_down_is_offered_everything_again() -> None:
    output = Lists(failures=3)
    status = run(series(range(10)), MeanPixel(), output)
    assert [result.number for result in output.results] == list(range(10))
    assert status.closed[0].analysed == 10


def test_an_output_that_stays_down_raises_an_alarm_and_does_not_stop_the_stream() -> None:
    down, up = Lists(failures=10**9), Lists()
    down.name = "broken"
    source = ListSource(series(range(10)))
    source.may_end.clear()
    pipeline = Pipeline(source, [MeanPixel()], Decider([]), [down, up], limits=Limits(drain_s=0.1))
    pipeline.start()
    wait_until(lambda: any(alarm.name == "output_broken_down" for alarm in up.alarms))
    source.may_end.set()
    pipeline.join()
    assert len(up.results) == 10


def test_anything_else_closes_the_pipeline_and_is_raised() -> None:
    class Broken(MeanPixel):
        def interpret(self, reduced: Reduced, outputs: Any) -> Result:
            raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run(series(range(10)), Broken(), Lists())


def test_a_silent_series_is_stalled_and_says_so_until_it_goes_on() -> None:
    source = ListSource(series(range(3), images=10)[:-1])
    source.may_end.clear()
    output = Lists()
    pipeline = Pipeline(source, [MeanPixel()], Decider([]), [output], ledger=Ledger(stall_s=0.3))
    pipeline.start()
    wait_until(lambda: any(alarm.name == "stream_stalled" for alarm in output.alarms))
    assert pipeline.status().state == "stalled"
    assert output.alarms[0].severity is Severity.INVALID
    source.items.append([frame(3, 3.0)])
    wait_until(lambda: any(not alarm.is_active for alarm in output.alarms))
    source.may_end.set()
    status = pipeline.join()
    assert [result.number for result in output.results] == [0, 1, 2, 3]
    assert status.closed[-1].analysed == 4


def test_quarantine_sees_the_bytes_that_could_not_be_used() -> None:
    seen: list[tuple[str, Any]] = []
    bad = BadFrame("size", "too small")
    pipeline = Pipeline(
        ListSource([bad]), [], Decider([]), [], quarantine=lambda why, parts: seen.append((why.reason, parts))
    )
    pipeline.start()
    pipeline.join()
    assert seen == [("size", [bad])]


def test_a_model_that_hangs_does_not_keep_the_stream_from_stopping_and_every_message_is_named() -> None:
    gate = threading.Event()

    class Hanging(Doubling):
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            gate.wait(60)
            return super().run(inputs)

    source = ListSource(series(range(300))[:-1])
    source.may_end.clear()
    limits = Limits(when_behind="wait", drain_s=0.2)
    pipeline = Pipeline(source, [MeanPixel(Hanging())], Decider([]), [Lists()], limits=limits)
    pipeline.start()
    wait_until(lambda: source.given > 100)
    pipeline.stop()
    status = pipeline.join()
    (account,) = status.closed
    gate.set()
    assert status.wire.messages == source.given
    assert account.dropped == account.received == source.given - 1
    assert account.analysed == account.unaccounted == account.pending == 0


def test_an_output_with_a_defect_closes_the_pipeline_even_at_the_last_word() -> None:
    class Defective(Lists):
        def status(self, status: Status) -> None:
            if status.state == "stopped":
                raise ValueError("a defect in the last word")

    with pytest.raises(ValueError, match="last word"):
        run(series(range(5)), MeanPixel(), Defective())


def test_a_record_that_is_down_does_not_hold_the_stream_back_and_its_lost_alarms_are_counted() -> None:
    class Record(Lists):
        name = "record"
        is_record = True

        def alarm(self, alarm: Alarm) -> None:
            raise OutputDown("the disk is full")

    flapping = Rule(name="odd", watch="mean.mean", above=0.5)
    items: list[list[WireRecord] | BadFrame] = [[frame(n, n % 2)] for n in range(200)]
    pipeline = Pipeline(
        ListSource([[SeriesStart(KEY, images=200)], *items, [SeriesEnd(KEY)]]),
        [MeanPixel()],
        Decider([flapping]),
        [Record(), output := Lists()],
        limits=Limits(when_behind="wait", drain_s=0.5),
    )
    pipeline.start()
    status = pipeline.join()
    assert status.closed[0].analysed == 200
    assert len(output.alarms) >= 199  # a hundred begin, and all but the last end
    exposition = pipeline.metrics.exposition()[0].decode()
    (dropped,) = re.findall(r'streamer_output_dropped_total\{output="record"\} (\S+)', exposition)
    assert float(dropped) >= 199


def wait_until(condition: Any, deadline_s: float = 30.0) -> None:
    """Wait for a condition, or fail."""
    event = threading.Event()
    for _ in range(int(deadline_s / 0.01)):
        if condition():
            return
        event.wait(0.01)
    pytest.fail("the condition did not come true in time")
