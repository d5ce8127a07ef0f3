"""The list of metric names: one grammar, bounded labels, and numbers that are what was said."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from streamer.metrics import MAX_LABELS, Metrics
from streamer.records import Alarm, Severity

GRAMMAR = re.compile(r"streamer_[a-z]+_[a-z]+_(total|seconds|bytes|ratio|frames|alarms|items|bool|info)")
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
DAMAGE = Alarm("damage#1@5", "damage", Severity.MINOR, "", "saxs.anomaly", 5.0)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_name_follows_the_grammar() -> None:
    names = [name for name in Metrics().names() if not name.startswith("process_")]
    assert len(names) > 20
    assert [name for name in names if not GRAMMAR.fullmatch(name)] == []


def test_whatever_only_counts_up_ends_in_total_and_nothing_else_does() -> None:
    for family in Metrics().registry.collect():
        is_counter = family.type == "counter"
        assert (f"{family.name}_total" in Metrics().names()) == is_counter


def test_every_metric_says_what_it_is() -> None:
    assert all(family.documentation for family in Metrics().registry.collect())


def test_what_was_said_is_what_is_shown() -> None:
    metrics = Metrics()
    metrics.received()
    metrics.malformed("size")
    metrics.frames("accepted")
    metrics.frames("missing", 7)
    metrics.dropped("decode", 3)
    metrics.series_opened()
    metrics.series_closed("end")
    metrics.source("connected")
    metrics.stage("decode", 0.003)
    metrics.stage_waited("decode", 0.25)
    metrics.buffers(9_000_000)
    metrics.latency(0.02)
    metrics.batch(8)
    metrics.queue("infer", 2, 16)
    metrics.output_up("zeromq", True)
    metrics.output_failed("zeromq")
    metrics.output_retried("zeromq")
    metrics.output_dropped("zeromq", 4)
    metrics.ready(True)
    metrics.model("saxs", "1.0", "cpu")
    assert value(metrics, "streamer_messages_received_total") == 1
    assert value(metrics, "streamer_messages_malformed_total", reason="size") == 1
    assert value(metrics, "streamer_frames_counted_total", outcome="accepted") == 1
    assert value(metrics, "streamer_frames_counted_total", outcome="missing") == 7
    assert value(metrics, "streamer_frames_dropped_total", queue="decode") == 3
    assert value(metrics, "streamer_series_opened_total") == 1
    assert value(metrics, "streamer_series_closed_total", by="end") == 1
    assert value(metrics, "streamer_source_changed_total", event="connected") == 1
    assert value(metrics, "streamer_stage_spent_seconds_bucket", stage="decode", le="0.0025") == 0
    assert value(metrics, "streamer_stage_spent_seconds_bucket", stage="decode", le="0.005") == 1
    assert value(metrics, "streamer_stage_waited_ratio", stage="decode") == 0.25
    assert value(metrics, "streamer_buffers_held_bytes") == 9_000_000
    assert value(metrics, "streamer_decision_waited_seconds_sum") == 0.02
    assert value(metrics, "streamer_batch_inferred_frames_sum") == 8
    assert value(metrics, "streamer_queue_filled_items", queue="infer") == 2
    assert value(metrics, "streamer_queue_bounded_items", queue="infer") == 16
    assert value(metrics, "streamer_output_reached_bool", output="zeromq") == 1
    assert value(metrics, "streamer_output_failed_total", output="zeromq") == 1
    assert value(metrics, "streamer_output_retried_total", output="zeromq") == 1
    assert value(metrics, "streamer_output_dropped_total", output="zeromq") == 4
    assert value(metrics, "streamer_stream_readied_bool") == 1
    assert value(metrics, "streamer_model_loaded_info", model="saxs", version="1.0", device="cpu") == 1


def test_the_age_of_the_last_result_counts_from_the_start_and_then_from_each_result() -> None:
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    now[0] = 103.0
    assert value(metrics, "streamer_result_aged_seconds") == 3.0
    metrics.analysed("saxs")
    now[0] = 103.5
    assert value(metrics, "streamer_result_aged_seconds") == 0.5
    assert value(metrics, "streamer_frames_analysed_total", analysis="saxs") == 1


def test_two_streams_in_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.received()
    assert value(other, "streamer_messages_received_total") == 0


@given(st.lists(st.text(max_size=5), max_size=2 * MAX_LABELS))
def test_any_number_of_reasons_makes_a_bounded_number_of_labels_and_loses_no_count(reasons: list[str]) -> None:
    metrics = Metrics()
    for reason in [*reasons, *map(str, range(MAX_LABELS)), "one too many"]:
        metrics.malformed(reason)
    (family,) = (f for f in metrics.registry.collect() if f.name == "streamer_messages_malformed")
    counters = [sample for sample in family.samples if sample.name.endswith("_total")]
    assert len(counters) <= MAX_LABELS + 1
    assert sum(sample.value for sample in counters) == len(reasons) + MAX_LABELS + 1
    assert "other" in {sample.labels["reason"] for sample in counters}


@pytest.mark.parametrize("reason", ['"}\n# broken', "\udc80", "x" * 1000, ""])
def test_no_label_breaks_the_page(reason: str) -> None:
    metrics = Metrics()
    metrics.malformed(reason)
    metrics.model(reason, reason, reason)
    page, _ = metrics.exposition(OPENMETRICS)
    families = {family.name for family in text_string_to_metric_families(page.decode())}
    assert "streamer_messages_malformed" in families


def test_whoever_asks_for_openmetrics_gets_it_and_all_others_get_plain_text() -> None:
    assert Metrics().exposition(OPENMETRICS)[1].startswith("application/openmetrics-text")
    assert Metrics().exposition("")[1].startswith("text/plain")


def standing(metrics: Metrics, severity: Severity) -> float | None:
    return value(metrics, "streamer_alarms_standing_alarms", alarm="damage", severity=severity.name)


def raised(metrics: Metrics, severity: Severity) -> float | None:
    return value(metrics, "streamer_alarms_raised_total", alarm="damage", severity=severity.name)


def test_an_alarm_stands_from_its_beginning_to_its_end() -> None:
    metrics = Metrics()
    metrics.alarm(DAMAGE)
    assert standing(metrics, Severity.MINOR) == 1
    metrics.alarm(replace(DAMAGE, ended=6.0))
    assert standing(metrics, Severity.MINOR) == 0
    assert raised(metrics, Severity.MINOR) == 1


def test_saying_an_alarm_again_or_acknowledging_it_does_not_raise_it_again() -> None:
    metrics = Metrics()
    for alarm in (DAMAGE, DAMAGE, replace(DAMAGE, acknowledged=True)):
        metrics.alarm(alarm)
    assert (raised(metrics, Severity.MINOR), standing(metrics, Severity.MINOR)) == (1, 1)


def test_an_alarm_that_gets_worse_moves_to_its_new_severity() -> None:
    metrics = Metrics()
    metrics.alarm(DAMAGE)
    metrics.alarm(replace(DAMAGE, severity=Severity.MAJOR))
    assert (standing(metrics, Severity.MINOR), standing(metrics, Severity.MAJOR)) == (0, 1)
    assert raised(metrics, Severity.MAJOR) == 1
    metrics.alarm(replace(DAMAGE, severity=Severity.MAJOR, ended=7.0))
    assert standing(metrics, Severity.MAJOR) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(Severity), st.booleans())))
def test_the_standing_alarms_are_those_last_said_to_be_active(said: list[tuple[int, Severity, bool]]) -> None:
    metrics = Metrics()
    state: dict[int, tuple[Severity, bool]] = {}
    for occurrence, severity, is_active in said:
        metrics.alarm(replace(DAMAGE, id=str(occurrence), severity=severity, ended=None if is_active else 9.0))
        state[occurrence] = (severity, is_active)
    for severity in Severity:
        expected = sum(active and of == severity for of, active in state.values())
        assert (standing(metrics, severity) or 0) == expected
