"""Every frame that a test source sent was analysed or is lost under one name, proven from the logs of every hop.

Real processes and sockets, and links between them that fail on command (`tests/faults`). Each run ends with
`Stand.prove`, which compares, number by number, what was sent, what the links passed, what the services published and
what they say in their accounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.demo import free_ports
from streamer.records import Severity
from tests.faults.checker import told
from tests.faults.log import read
from tests.faults.stand import Stand, wait_for

LARGE = (256, 256)  # 262 kB: several times what the buffers of a link hold


@pytest.fixture
def stand(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stand]:
    made = Stand(tmp_path, getattr(request, "param", "dectris2"))
    yield made
    made.close()


def did(stand: Stand, what: str) -> int:
    """How often some hop did something."""
    return sum(line["did"] == what for line in read(stand.hops))


@pytest.mark.parametrize("stand", ["dectris2", "array"], indirect=True)
def test_what_a_killed_consumer_did_not_publish_is_before_join_to_the_next_one(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    sender = stand.sender("sender", port)
    first, link = stand.consumer("consumer-1", port)
    sender.wait_for_readers(1)
    link.go(rate=500_000)  # 30 frames a second
    sender.start(1, key, 100)
    sender.images(1, key, range(60))
    first.until_published(10)
    first.kill()
    second, _ = stand.consumer("consumer-2", port)
    sender.wait_for_readers(2)
    sender.images(1, key, range(60, 100))
    sender.end(1, key)
    second.until_published(40)
    second.until(lambda status: status.wire.control == 1)
    sender.stop()
    report = second.stop()
    (proof,) = stand.prove()
    assert proof.sent == frozenset(range(100))
    assert proof.analysed == {"consumer-1": first.published, "consumer-2": 40}
    assert {name: len(numbers) for name, numbers in proof.lost.items()} == {"before_join": 60 - first.published}
    assert report["before_join"] == (0 if stand.is_counted else 60)


@pytest.mark.parametrize("stand", ["dectris2", "dectris1"], indirect=True)
def test_what_a_killed_sender_took_with_it_is_missing(stand: Stand) -> None:
    """The message it was sending is cut in two; the next sender counts its series from 1 again."""
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    options = "sndbuf=16384"
    sender = stand.sender("sender-1", port, options=options, shape=LARGE)
    consumer, link = stand.consumer("consumer", port, grace_s=0.5)
    sender.wait_for_readers()
    sender.start(1, key, 20)
    sender.images(1, key, range(4))
    consumer.until_published(4)
    enough = link.nbytes + 100_000
    link.go(100_000)
    sender.images(1, key, range(4, 10))
    link.until(lambda link: link.nbytes >= enough)
    sender.kill()
    link.go()
    again = stand.key(1, "second")
    second = stand.sender("sender-2", port, options=options, shape=LARGE)
    second.wait_for_readers()
    second.start(2, again, 5)
    second.images(2, again, range(5))
    second.end(2, again)
    consumer.until(lambda status: consumer.published == 9 and status.wire.control == 3)
    second.stop()
    consumer.stop()
    assert told(stand.prove()) == [(1, 4, {"missing": 6}), (2, 5, {})]
    assert did(stand, "cut") == 1


@pytest.mark.parametrize("stand", ["dectris2", "dectris1"], indirect=True)
def test_what_a_reset_destroyed_is_missing_and_the_rest_arrives(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    sender = stand.sender("sender", port, options="sndbuf=16384", shape=LARGE)
    consumer, link = stand.consumer("consumer", port)
    sender.wait_for_readers(1)
    sender.start(1, key, 20)
    sender.images(1, key, range(5))
    consumer.until_published(5)
    link.stall()
    sender.images(1, key, range(5, 15))
    link.go(2.5 * 256 * 1024, then="reset")
    link.until(lambda link: link.connected == 2)
    sender.wait_for_readers(2)
    sender.images(1, key, range(15, 20))
    sender.end(1, key)
    starts_and_ends = 1 if stand.is_counted else 2
    consumer.until(lambda status: consumer.published >= 10 and status.wire.control == starts_and_ends)
    sender.stop()
    consumer.stop()
    (proof,) = stand.prove()
    assert set(proof.lost) == {"missing"}
    assert set(range(7, 15)) <= set(proof.lost["missing"]) <= set(range(5, 15))
    assert (did(stand, "reset"), did(stand, "cut")) == (1, 1)


def test_a_stalled_link_is_told_and_loses_nothing(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    sender = stand.sender("sender", port)
    consumer, link = stand.consumer("consumer", port, stall_s=1.0)
    sender.wait_for_readers()
    sender.start(1, key, 30)
    sender.images(1, key, range(10))
    consumer.until_published(10)
    link.go(50_000)  # and the next message is cut by the stall
    sender.images(1, key, range(10, 30))
    sender.end(1, key)
    consumer.until(lambda status: status.state == "stalled")
    link.go()
    consumer.until(lambda status: consumer.published == 30 and status.state == "waiting")
    sender.stop()
    report = consumer.stop()
    assert told(stand.prove()) == [(1, 30, {})]
    (alarm,) = report["alarms"]
    assert (alarm["name"], alarm["severity"]) == ("stream_stalled", Severity.INVALID.name)
    assert alarm["ended"] is not None


@pytest.mark.parametrize("stand", ["dectris2", "dectris1", "array"], indirect=True)
def test_two_pullers_of_one_socket_analyse_every_frame_once_and_miss_each_others(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    sender = stand.sender("sender", port)
    consumers = [stand.consumer(f"consumer-{i}", port)[0] for i in (1, 2)]
    sender.wait_for_readers(2)
    sender.start(1, key, 60)
    sender.images(1, key, range(60))
    sender.end(1, key)
    wait_for(lambda: sum(one.published for one in consumers) == 60, "60 results of two consumers")
    wait_for(lambda: sum(one.statuses[-1].wire.control for one in consumers) == 2, "a start and an end")
    for one in consumers:
        one.until(lambda status: "frames_taken" in {alarm.name for alarm in status.alarms})
    sender.stop()
    reports = [one.stop() for one in consumers]
    (proof,) = stand.prove()
    assert not proof.lost
    assert sum(proof.analysed.values()) == 60
    assert min(proof.analysed.values()) >= 20
    assert all(report["missing"] >= 20 for report in reports)


def test_what_a_publisher_dropped_is_missing_and_a_lost_end_closes_by_stall(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    sender = stand.sender("sender", port, options="socket=pub&hwm=8&sndbuf=16384", shape=LARGE)
    go = stand.folder / "go"
    consumer, link = stand.consumer(
        "consumer",
        port,
        options="?socket=sub&high_water_mark=2",
        queue_frames=4,
        stall_s=1.5,
        analysis=f'after = "{go}"',
    )
    sender.wait_for_readers()
    sender.start(1, key, 120)
    sender.images(1, key, range(100))  # more than all buffers on the way to a consumer that takes nothing
    link.stall()
    sender.images(1, key, range(100, 120))  # and more than the publisher holds: there is no room left for the end
    sender.end(1, key)
    link.go()
    go.touch()
    consumer.until(lambda status: bool(status.closed) and status.closed[0].closed_by == "stall")
    again = stand.key(2, "second")
    sender.start(2, again, 5)
    sender.images(2, again, range(5))
    sender.end(2, again)
    consumer.until(lambda status: len(status.closed) == 2)
    sender.stop()
    consumer.stop()
    overrun, after = stand.prove()
    assert set(overrun.lost) == {"missing"}
    assert sum(overrun.analysed.values()) + len(overrun.lost["missing"]) == 120
    assert 119 in overrun.lost["missing"]
    assert not after.lost


@pytest.mark.parametrize("is_in_time", [True, False], ids=["within the grace window", "after it"])
def test_frames_that_their_end_overtook_are_analysed_in_time_and_late_afterwards(
    stand: Stand, is_in_time: bool
) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    consumer = stand.service("consumer", f"127.0.0.1:{port}?bind=true", grace_s=60.0 if is_in_time else 0.5)
    consumer.until(lambda status: status.is_ready)
    fast, slow = (stand.link(port, "consumer", data_from="client") for _ in range(2))
    fast.go()
    sender = stand.sender("sender", fast.port, slow.port, options="bind=no")
    sender.start(1, key, 20)
    sender.images(1, key, range(1, 20, 2), socket=1)
    sender.images(1, key, range(0, 20, 2))
    sender.end(1, key)
    if is_in_time:
        consumer.until(lambda status: status.wire.control == 2)
        slow.go()
        consumer.until(lambda status: bool(status.closed))
    else:
        consumer.until(lambda status: bool(status.closed))
        slow.go()
        consumer.until(lambda status: status.wire.late == 10)
    sender.stop()
    report = consumer.stop()
    assert told(stand.prove()) == [(1, 20, {}) if is_in_time else (1, 10, {"late": 10})]
    assert report["wire"]["out_of_order"] == (9 if is_in_time else 0)


@pytest.mark.parametrize("unique", [("", ""), ("first", "second")], ids=["no unique ids", "unique ids"])
def test_a_restarted_detector_that_counts_its_series_from_one_again_gets_an_account_of_its_own(
    stand: Stand, unique: tuple[str, str]
) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    consumer, _ = stand.consumer("consumer", port, grace_s=0.5)
    for arming, name in enumerate(unique, 1):
        sender = stand.sender(f"sender-{arming}", port)
        key = stand.key(1, name)
        sender.wait_for_readers()
        sender.start(arming, key, 10)
        sender.images(arming, key, range(10 - arming))  # and then it is switched off
        consumer.until_published((9, 17)[arming - 1])
        sender.stop()
    report = consumer.stop()
    assert told(stand.prove()) == [(1, 9, {}), (2, 8, {})]
    assert (report["announced"], report["analysed"], report["missing"]) == (20, 17, 3)


def test_what_a_full_queue_gave_up_is_dropped(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    go = stand.folder / "go"
    sender = stand.sender("sender", port)
    consumer, _ = stand.consumer("consumer", port, when_behind='"skip"', queue_frames=4, analysis=f'after = "{go}"')
    sender.wait_for_readers()
    sender.start(1, key, 40)
    sender.images(1, key, range(40))
    sender.end(1, key)
    consumer.until(lambda status: status.wire.messages + status.queues["order"]["depth"] >= 41)  # and one is in hand
    go.touch()
    consumer.until(lambda status: bool(status.closed))
    sender.stop()
    consumer.stop()
    (proof,) = stand.prove()
    assert set(proof.lost) == {"dropped"}
    assert len(proof.lost["dropped"]) >= 30


def test_damaged_frames_are_malformed_and_their_neighbours_are_analysed(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    sender = stand.sender("sender", port)
    consumer, _ = stand.consumer("consumer", port)
    sender.wait_for_readers()
    sender.start(1, key, 12)
    for number in range(12):
        sender.images(1, key, [number], is_damaged=number % 3 == 2)
    sender.end(1, key)
    consumer.until(lambda status: bool(status.closed))
    sender.stop()
    consumer.stop()
    (proof,) = stand.prove()
    assert proof.lost == {"malformed": (2, 5, 8, 11)}


def test_what_a_relay_gave_up_for_a_slow_reader_is_missing_to_that_one_alone(stand: Stand) -> None:
    (port,) = free_ports(1)
    key = stand.key(1, "first")
    sender = stand.sender("sender", port, shape=LARGE)
    to_relay = stand.link(port, "relay")
    relay = stand.relay("relay", f"127.0.0.1:{to_relay.port}", "quick", "slow", options="?queue=10")
    quick, _ = stand.consumer("quick", relay.ports["quick"], grace_s=0.5)
    slow, to_slow = stand.consumer("slow", relay.ports["slow"], grace_s=0.5)
    to_relay.go()
    sender.wait_for_readers()
    sender.start(1, key, 5)
    sender.images(1, key, range(5))
    sender.end(1, key)
    slow.until_published(5)
    to_slow.stall()
    again = stand.key(2, "second")
    sender.start(2, again, 60)
    for number in range(60):
        sender.images(2, again, [number])
        quick.until_published(5 + number + 1)
    sender.end(2, again)
    quick.until(lambda status: len(status.closed) == 2)
    to_slow.go()
    slow.until(lambda status: len(status.closed) == 2)
    sender.stop()
    account = relay.stop()
    quick.stop()
    slow.stop()
    assert told(stand.prove("quick")) == [(1, 5, {}), (2, 60, {})]
    first, second = stand.prove("slow")
    assert not first.lost
    assert set(second.lost) == {"missing"}
    dropped = {reader: one["dropped"] for reader, one in zip(relay.ports, account["destinations"], strict=True)}
    assert dropped == {"quick": 0, "slow": len(second.lost["missing"])}
    assert dropped["slow"] >= 20
