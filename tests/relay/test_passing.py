"""Messages passed on as they are, with an account of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from streamer import relay
from streamer.demo import free_ports
from streamer.ledger import Ledger
from streamer.records import Account, BadConfig, Frame, OutputDown, SeriesEnd, SeriesStart, StreamerError
from streamer.relay import lanes, passing
from streamer.relay.backlog import Delivered
from streamer.sources.live import Live
from streamer.sources.recording import Recorder
from streamer.wire.array import Array
from streamer.wire.dectris2 import Dectris2
from tests import hostile
from tests.relay.readers import Reader, end, image, start, wait_for
from tests.relay.sending import DEADLINE_S, simulated


class Passing:
    """relay.relay or relay.replay on a thread of its own. status: the last word it gave while it ran."""

    def __init__(self, run: Callable[..., relay.Relayed], *arguments: object, **options: object) -> None:
        self.ended: relay.Relayed | None = None
        self.error: StreamerError | None = None
        self.statuses: list[relay.Relayed] = []
        self.stopped = threading.Event()
        options = {"stop": self.stopped.is_set, "on_status": self.statuses.append, **options}
        self._thread = threading.Thread(target=self._run, args=(run, *arguments), kwargs=options)

    def _run(self, run: Callable[..., relay.Relayed], *arguments: object, **options: object) -> None:
        try:
            self.ended = run(*arguments, **options)
        except StreamerError as error:
            self.error = error

    def __enter__(self) -> Passing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def lane(self, index: int = 0) -> Delivered | None:
        return self.statuses[-1].destinations[index] if self.statuses else None


@pytest.fixture(autouse=True)
def _told_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "STATUS_S", 0.02)


@contextmanager
def detector(address: str) -> Iterator[zmq.Socket]:
    """A socket that pushes, as a detector's."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as pushes:
        pushes.linger = round(DEADLINE_S * 1000)
        pushes.sndtimeo = round(DEADLINE_S * 1000)
        pushes.sndhwm = 4
        pushes.bind(address)
        yield pushes


@contextmanager
def reading(address: str, kind: int = zmq.PULL, **options: bool) -> Iterator[Reader]:
    with zmq.Context() as context:
        reader = Reader(context, address, kind, **options)
        yield reader
        reader.close()


def addresses(n: int) -> list[str]:
    return [f"tcp://127.0.0.1:{port}" for port in free_ports(n)]


def test_a_viewer_that_stands_still_takes_nothing_from_the_analysis_and_can_say_what_it_missed():
    source, analysis, viewer = addresses(3)
    to = [f"{analysis}?when_full=wait", f"{viewer}?queue=4"]
    with (
        detector(source) as pushes,
        reading(analysis) as analyses,
        reading(viewer, small=True) as views,
        Passing(relay.relay, Live(source, Dectris2()), to) as relayed,
    ):
        wait_for(lambda: relayed.statuses and all(one.readers for one in relayed.statuses[-1].destinations))
        sent = [start(images=50), *(image(number, is_large=True) for number in range(50)), end()]
        got = []
        for message in sent:
            pushes.send_multipart(message.parts)
            got.append(analyses.socket.recv_multipart())
        assert got == [message.parts for message in sent]
        relayed.stopped.set()
        seen = views.take_everything()
    ended = relayed.ended
    assert ended.unaccounted == 0
    assert (ended.messages, ended.images) == (52, 50)
    waited, skipped = ended.destinations
    assert (waited.sent, waited.dropped, waited.waiting) == (52, 0, 0)
    assert skipped.dropped > 0
    assert skipped.received == 52 == skipped.sent + skipped.dropped
    assert len(seen) == skipped.sent
    account = account_of(seen)
    assert (account.announced, account.missing, account.unaccounted) == (50, skipped.dropped, 0)


def account_of(messages: list[list[bytes]]) -> Account:
    """What the ledger of a reader says at the end."""
    ledger, wire = Ledger(grace_s=0.0), Dectris2()
    for now, parts in enumerate(messages):
        for record in wire.decode(parts):
            match record:
                case SeriesStart():
                    ledger.start(record, now)
                case Frame():
                    assert ledger.frame(record.series, record.number, now) == "accepted"
                    ledger.analysed(record.series, record.number, now)
                case SeriesEnd():
                    ledger.end(record.series, now)
    ledger.close(len(messages))
    [account] = ledger.accounts()
    return account


def test_a_source_that_is_lost_is_waited_for_and_counted():
    source, reader = addresses(2)
    with reading(reader) as reads, Passing(relay.relay, Live(source, Dectris2()), [reader]) as relayed:
        with detector(source) as pushes:
            pushes.send(start().parts[0])
            assert reads.take(1) == ["start"]
        with detector(source) as pushes:
            pushes.send(image(1).parts[0])
            assert reads.take(1) == ["1"]
        relayed.stopped.set()
    assert relayed.ended.connection["connected"] == 2
    assert relayed.ended.connection["disconnected"] >= 1
    assert (relayed.ended.messages, relayed.ended.unaccounted) == (2, 0)


def test_a_relay_that_is_told_to_stop_sends_what_it_has():
    source, reader = addresses(2)
    with detector(source) as pushes, Passing(relay.relay, Live(source, Dectris2()), [reader]) as relayed:
        for number in range(20):
            pushes.send(image(number).parts[0])
        wait_for(lambda: relayed.statuses and relayed.statuses[-1].messages == 20)
        assert relayed.lane().waiting == 20
        relayed.stopped.set()
        with reading(reader) as reads:
            assert reads.take(20) == list(map(str, range(20)))
    assert (relayed.ended.destinations[0].sent, relayed.ended.unaccounted) == (20, 0)


def test_what_nobody_took_at_the_end_is_waiting(monkeypatch):
    monkeypatch.setattr(passing, "DRAIN_S", 0.2)
    source, reader = addresses(2)
    to = [f"{reader}?when_full=wait&queue=5"]
    with detector(source) as pushes, Passing(relay.relay, Live(source, Dectris2()), to) as relayed:
        for number in range(8):
            pushes.send(image(number).parts[0])
        wait_for(lambda: relayed.statuses and relayed.statuses[-1].messages == 7)  # 5, one in hand, one that waits
        relayed.stopped.set()
    assert relayed.ended.destinations[0].waiting == relayed.ended.messages == 7
    assert relayed.ended.unaccounted == 0


def test_a_start_that_streamer_wrote_itself_is_not_passed_on():
    source, reader = addresses(2)
    parts = next(parts for parts in hostile.good("array") if Array().kind(parts) == "image")
    with (
        detector(source) as pushes,
        reading(reader) as reads,
        Passing(relay.relay, Live(source, Array(), socket="pull"), [reader]) as relayed,
    ):
        pushes.send_multipart(parts)
        assert reads.socket.recv_multipart() == parts
        relayed.stopped.set()
    assert (relayed.ended.messages, relayed.ended.destinations[0].sent) == (1, 1)


def test_the_account_is_plain_values():
    told = relay.Relayed("dectris2+tcp://dcu:31001", 3, destinations=(Delivered("a", "push", "skip", 1, 3, 1, 1),))
    plain = told.plain()
    assert plain["unaccounted"] == 1
    assert plain["destinations"][0]["sent"] == 1


def test_only_a_live_stream_of_messages_is_relayed():
    with pytest.raises(BadConfig, match="no live stream of messages"):
        relay.relay(simulated(), ["tcp://127.0.0.1:1"])
    live = Live("tcp://127.0.0.1:1", Dectris2())
    with pytest.raises(BadConfig, match="unknown key 'quue'"):
        relay.relay(live, ["tcp://127.0.0.1:1?quue=3"])
    with pytest.raises(zmq.ZMQError):
        live.endpoint.strip()  # it was closed


def recorded(path: Path, name: str, messages: list[list[bytes]], period_ns: int = 10**15) -> Path:
    with Recorder(path, name) as recorder:
        for index, parts in enumerate(messages):
            recorder.write(parts, index * period_ns)
    return path


@pytest.mark.parametrize("name", ["array", "bsread", "dectris1", "dectris2", "karabo"])
def test_a_recording_of_any_format_is_replayed_byte_for_byte_to_every_reader(tmp_path, name):
    messages = hostile.good(name)
    path = recorded(tmp_path / "run.wire", name, messages)
    one, two = addresses(2)
    with (
        reading(one) as first,
        reading(two, zmq.SUB) as second,
        Passing(relay.replay, path, [one, f"{two}?socket=pub"], rate="max") as replayed,
    ):
        for reader in (first, second):
            assert [reader.socket.recv_multipart() for _ in messages] == messages
    assert replayed.ended.unaccounted == 0
    assert [lane.sent for lane in replayed.ended.destinations] == [len(messages)] * 2


def test_a_part_of_a_recording_is_replayed_as_often_as_asked(tmp_path):
    messages = [start().parts, *(image(number).parts for number in range(5)), end().parts]
    path = recorded(tmp_path / "run.wire", "dectris2", messages, period_ns=10**9)
    [address] = addresses(1)
    options = {"rate": "max", "begin_s": 3.0, "end_s": 5.0, "loop": 2}
    with reading(address) as reads, Passing(relay.replay, path, [address], **options) as replayed:
        assert reads.take(6) == ["start", "2", "3"] * 2
    assert replayed.ended.messages == 6


def test_nothing_is_replayed_before_every_reader_is_there(tmp_path):
    path = recorded(tmp_path / "run.wire", "dectris2", [start().parts])
    one, two = addresses(2)
    with reading(one) as reads, Passing(relay.replay, path, [one, two], wait_s=0.3) as replayed:
        assert reads.take_everything() == []
    assert isinstance(replayed.error, OutputDown)
    assert f"nobody has read at {two}" in str(replayed.error)


def test_a_replay_gives_up_on_a_reader_that_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "LINGER_S", 0.1)
    path = recorded(tmp_path / "run.wire", "dectris2", [image(number, is_large=True).parts for number in range(60)])
    [address] = addresses(1)
    to = [f"{address}?queue=2"]
    with reading(address, small=True), Passing(relay.replay, path, to, rate="max", wait_s=0.5) as replayed:
        wait_for(lambda: replayed.error)
    assert "nobody has read at" in str(replayed.error)


def test_a_pause_in_the_recording_is_no_reader_that_takes_nothing(tmp_path):
    path = recorded(tmp_path / "run.wire", "dectris2", [image(0).parts, image(1).parts], period_ns=600_000_000)
    [address] = addresses(1)
    with reading(address) as reads, Passing(relay.replay, path, [address], wait_s=0.3) as replayed:
        assert reads.take(2) == ["0", "1"]
    assert (replayed.error, replayed.ended.unaccounted) == (None, 0)


def test_a_replay_that_is_told_to_stop_stops(tmp_path):
    path = recorded(tmp_path / "run.wire", "dectris2", [image(0).parts, image(1).parts])  # eleven days apart
    [address] = addresses(1)
    with reading(address) as reads, Passing(relay.replay, path, [address]) as replayed:
        assert reads.take(1) == ["0"]
        replayed.stopped.set()
    assert replayed.ended.messages == 1
    with Passing(relay.replay, path, [address]) as replayed:
        replayed.stopped.set()  # while it waits for a reader
    assert replayed.ended.messages == 0


def test_a_rate_or_a_part_that_is_none_is_refused(tmp_path):
    path = recorded(tmp_path / "run.wire", "dectris2", [start().parts])
    for wrong in ({"rate": 0}, {"begin_s": 2.0, "end_s": 1.0}, {"loop": -1}, {"begin_s": float("nan")}):
        with pytest.raises(BadConfig):
            relay.replay(path, ["tcp://127.0.0.1:1"], **wrong)


def test_time_goes_on_while_nothing_comes():
    source, reader = addresses(2)
    began = time.monotonic()
    with Passing(relay.relay, Live(source, Dectris2()), [reader]) as relayed:
        wait_for(lambda: len(relayed.statuses) > 2)
        relayed.stopped.set()
    assert 0 < relayed.statuses[-1].seconds <= time.monotonic() - began
    assert relayed.ended.messages == 0
