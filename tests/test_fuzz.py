"""The fuzzer finds what it must find: formats with one defect each, planted where only a damaged message reaches it."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import config
from streamer.ledger import Ledger
from streamer.records import BadFrame, Frame, SeriesKey
from streamer.wire.array import Array
from tests import oracle
from tests.inputs import mutate, pack, unpack
from tests.oracle import Broken, FormatTarget
from tools import fuzz

TARGETS = [*config.names("wire"), *oracle.READERS]
MAGIC = 1300
"""The frame number at which the planted defects show; no known message has it."""

messages = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), min_size=1, max_size=4)


def image(number: int = MAGIC) -> list[bytes]:
    """A good message of array-1.0."""
    header = {"htype": "array-1.0", "shape": [2, 3], "type": "uint8", "frame": number}
    return [json.dumps(header).encode(), bytes(6)]


class Defective(Array):
    """array-1.0, but at one frame number something goes wrong."""

    def kind(self, parts: Sequence[Any]) -> Any:
        return self.spoilt_kind() if parts and b"1300" in bytes(parts[0]) else super().kind(parts)

    def decode(self, parts: Sequence[Any], **options: Any) -> list[Any]:
        records = super().decode(parts, **options)
        return self.spoilt(records[0]) if isinstance(records[0], Frame) and records[0].number == MAGIC else records

    def spoilt(self, frame: Frame) -> list[Any]:
        return [frame]

    def spoilt_kind(self) -> Any:
        return "image"


def changed(frame: Frame, **changes: Any) -> Frame:
    values = {name: getattr(frame, name) for name in Frame.__slots__}
    return Frame(**values | changes)


class RaisesAKeyError(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        raise KeyError(frame.number)


class RaisesInKind(Defective):
    def spoilt_kind(self) -> Any:
        raise IndexError


class KnowsAnotherKind(Defective):
    def spoilt_kind(self) -> Any:
        return "picture"


class RefusesForNoReason(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        raise BadFrame("whim", "not today")


class CannotSayWhyInUtf8(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        raise BadFrame("field", "\ud800")


class GivesAStack(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        return [changed(frame, image=frame.image[np.newaxis])]


class GivesDoubles(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        return [changed(frame, image=frame.image.astype(float))]


class GivesAHugeImage(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        return [changed(frame, image=np.zeros((101, 100), np.uint8))]


class GivesAFrameTwice(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        return [frame, frame]


class KeepsANan(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        return [changed(frame, extra={"gain": float("nan")})]


class DisagreesWithItself(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        return [changed(frame, number=frame.number + 1)]


class NamesAChannelInTwoLines(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        return [changed(frame, channel="threshold\n1")]


class TakesALot(Defective):
    def spoilt(self, frame: Frame) -> list[Any]:
        np.ones(fuzz.MOST_BYTES, np.uint8)
        return [frame]


class SendsAnotherImage(Defective):
    def encode(self, record: Any) -> Any:
        header, payload = super().encode(record)
        return [header, bytes(255 - octet for octet in payload) if b"1300" in header else payload]


class SendsWhatIsRefused(Defective):
    def encode(self, record: Any) -> Any:
        header, payload = super().encode(record)
        return [header, payload[1:] if b"1300" in header else payload]


class BearsAGrudge(Defective):
    def decode(self, parts: Sequence[Any], **options: Any) -> list[Any]:
        if self.step == 2:
            raise BadFrame("field", "after all that")
        return super().decode(parts, **options)

    def spoilt(self, frame: Frame) -> list[Any]:
        self.step = 2
        return [frame]


@given(messages)
def test_messages_are_the_same_after_packing_and_unpacking(several: list[list[bytes]]) -> None:
    assert unpack(pack(several)) == several


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_whose_parts_lie_in_them(octets: bytes) -> None:
    found = unpack(octets)
    assert found
    assert all(part in octets for parts in found for part in parts)


@given(messages, st.integers(0, 2**48), st.none() | st.just(lambda part: part[::-1]))
def test_damage_is_the_same_for_the_same_seed(
    several: list[list[bytes]], seed: int, bytewise: Callable[[bytes], bytes] | None
) -> None:
    octets = pack(several)
    known = [[b"{}", b"x"]]
    assert mutate(octets, seed, known, bytewise) == mutate(octets, seed, known, bytewise)


def test_damage_reaches_parts_messages_and_single_values() -> None:
    octets = pack([image(1), image(2)])
    damaged = [unpack(mutate(octets, seed)) for seed in range(2000)]
    assert {1, 2, 3} <= {len(several) for several in damaged}
    assert {1, 2, 3} <= {len(parts) for several in damaged for parts in several}
    headers = [parts[0] for several in damaged for parts in several if parts]
    assert any(re.search(rb'"frame": [^12]', header) for header in headers)
    assert any(b'"type"' not in header and header.endswith(b"}") for header in headers)


@pytest.mark.parametrize("name", TARGETS)
def test_all_holds_of_the_known_messages(name: str, tmp_path: Path) -> None:
    target = oracle.target(name)
    tried = fuzz.Fuzz(target, tmp_path)
    for several in target.seeds:
        tried(pack(several))
    tried.finish()
    assert tried.executions == len(target.seeds) > 0
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("defective", Defective.__subclasses__(), ids=lambda one: one.__name__)
def test_a_defect_is_found_kept_once_and_seen_again(
    defective: type[Defective], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = FormatTarget("array", defective)
    tried = fuzz.Fuzz(target, tmp_path)
    for number in (5, MAGIC, 6, MAGIC):
        tried(pack([image(number)]))
        tried.executions = fuzz.MEASURED - 1  # so that the memory of each is measured
    tried.finish()
    (finding,) = tmp_path.iterdir()
    assert str(finding) in capsys.readouterr().out
    target.renew()
    assert not fuzz.replay(finding, target)
    assert "Traceback" in capsys.readouterr().out


def test_a_sound_format_gives_no_finding_and_replays_in_peace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = FormatTarget("array", Defective)
    tried = fuzz.Fuzz(target, tmp_path)
    tried(pack([image()]))
    tried.finish()
    assert not [*tmp_path.iterdir()]
    harmless = tmp_path / "array-harmless"
    harmless.write_bytes(pack([image(), image()[:1]]))
    assert fuzz.replay(harmless, target)
    assert "Frame" in (shown := capsys.readouterr().out)
    assert "refused (parts)" in shown


def test_a_message_that_takes_too_long_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MOST_SECONDS", -1.0)
    with pytest.raises(Broken, match="too long"):
        fuzz.measured(oracle.target("headers"), [b"{}"])


def test_a_ledger_that_does_not_add_up_is_broken() -> None:
    ledger = Ledger()
    ledger.frame(SeriesKey(1), 3, 0.0)
    oracle.check_ledger(ledger, 1.0)
    ledger._wire["messages"] += 1
    with pytest.raises(Broken, match="messages"):
        oracle.check_ledger(ledger, 1.0)
    ledger._wire["messages"] -= 1
    ledger._closed[SeriesKey(1)].dropped += 1
    with pytest.raises(Broken, match="frames"):
        oracle.check_ledger(ledger, 1.0)


@pytest.mark.parametrize(("ours", "theirs"), [(1, True), (1, 1.0), ({"a": 1}, {"a": 2}), (["a"], [b"a"]), (0.0, -0.0)])
def test_readers_that_differ_are_broken(ours: Any, theirs: Any) -> None:
    oracle.same(ours, ours)
    with pytest.raises(Broken):
        oracle.same(ours, theirs)


def test_readers_agree_whatever_a_value_lies_in() -> None:
    nan = float("nan")
    oracle.same({"b": [nan, memoryview(b"x")], "a": None}, {b"a": None, "b": (nan, b"x")})


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    tool = Path(fuzz.__file__)
    return subprocess.run([sys.executable, tool, *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("engine", ["mutator", "default"])
def test_the_command_reports_what_it_did(engine: str, tmp_path: Path) -> None:
    words = ["--engine", engine] if engine != "default" else []
    done = run("array", "--seconds", "1", "--json", *words, folder=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert report["target"] == "array"
    assert report["executions"] > 0
    assert report["findings"] == []
    assert (tmp_path / "runs/fuzz/array.log").exists()


def report_of(child: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is reported of a process that does this instead of fuzzing array-1.0."""
    script = folder / "child.py"
    script.write_text(child, encoding="utf-8")
    monkeypatch.setattr(fuzz, "__file__", str(script))
    given = argparse.Namespace(engine="mutator", seed=1, findings=folder, corpus=folder)
    return fuzz.fuzz_there("array", given, 1.0)


def test_a_process_that_dies_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of("import os; os.abort()", tmp_path, monkeypatch)
    assert len(report["findings"]) == 1
    assert "died with code -6" in report["findings"][0]


def test_what_is_found_again_is_reported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = tmp_path / "array-0123456789"
    child = f"open({str(finding)!r}, 'wb').close(); print('#9 NEW cov: 12 ft: 3'); print('number_of_executed_units: 9')"
    for _ in range(2):
        report = report_of(child, tmp_path, monkeypatch)
        assert report["findings"] == [str(finding)]
        assert (report["executions"], report["coverage"]) == (9, 12)
        assert str(finding) in fuzz.in_words(report)
    assert report_of("", tmp_path, monkeypatch)["findings"] == []


def test_a_target_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    done = run("dectris3", folder=tmp_path)
    assert done.returncode == 2
    assert "'dectris3'" in done.stderr
    assert "dectris2" in done.stderr


def test_the_command_replays_a_file_for_the_target_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "array-0123456789").write_bytes(pack([image()]))
    done = run("--replay", "array-0123456789", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Frame" in done.stdout
