"""What the doctor says of a machine, and of the rate it can hold."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamer import compression
from streamer.doctor import capacity
from streamer.doctor.capacity import STAGES, Run, Tally, limit
from streamer.doctor.rehearsal import COPIES, IMAGES, MEAN, Rehearsal, Series, like, simulated
from streamer.records import BadConfig, Frame
from streamer.sources import Message
from streamer.sources.simulated import Simulated


@pytest.fixture(scope="module")
def series() -> Series:
    return simulated("128k")


def run(**changes: object) -> Run:
    """Two workers that are hardly busy on two idle cores."""
    usual = Run(workers=2, fps=100.0, stages_ms=dict.fromkeys(STAGES, 1.0), cores=0.5, queued=0.0)
    return replace(usual, **changes)


def messages_of(source: Rehearsal) -> Iterator[Message]:
    with suppress(EOFError):
        while (message := source.receive(0.0)) is not None:
            yield message


def test_a_rehearsal_numbers_its_images_and_repeats_their_pixels(series: Series) -> None:
    source, scratch = Rehearsal(series, frames=2 * COPIES + 1), compression.Scratch()
    kinds, numbers = [], []
    for message in messages_of(source):
        kinds.append(message.kind)
        scratch.reset()
        (record,) = source.decode(message, scratch=scratch)
        if isinstance(record, Frame):
            numbers.append(record.number)
            assert source.identify(message) == (series.start.series, record.number)
            np.testing.assert_array_equal(record.image, series.images[record.number % IMAGES])
    assert numbers == list(range(source.sent)) == list(range(2 * COPIES + 1))
    assert kinds == ["start", *(2 * COPIES + 1) * ["image"], "end"]


def test_a_message_stays_as_it_is_while_others_are_on_their_way(series: Series) -> None:
    source = Rehearsal(series, frames=COPIES)
    messages = [source.receive(0.0) for _ in range(COPIES + 1)]
    numbers = [source.identify(message)[1] for message in messages[1:] if message is not None]
    assert numbers == list(range(COPIES))


def test_frames_can_be_made_up_for_any_geometry() -> None:
    geometry = Simulated(detector="128k").geometry
    made = like(geometry)
    assert geometry.mask is not None
    good = ~geometry.mask
    assert len(made.images) == IMAGES
    assert all(image[good].mean() == pytest.approx(MEAN, rel=0.02) for image in made.images)
    assert all((image[~good] == 65_535).all() for image in made.images)
    assert not np.array_equal(made.images[0], made.images[1])


def test_the_rate_leaves_out_the_first_second() -> None:
    tally = Tally()
    tally.times = [0.0, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert tally.fps() == pytest.approx(4.0)
    assert np.isnan(Tally().fps())


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (run(cores=1.95), "all 2 cores are busy"),
        (run(cores=0.9, queued=1.0), "other work has 1.1 of 2"),
        (run(workers=1, stages_ms=dict.fromkeys(STAGES, 1.0) | {"reduce": 9.0}, cores=1.1), "more of them would help"),
        (run(), "the interpreter lock"),
    ],
)
def test_it_says_what_the_frames_wait_for(measured: Run, expected: str) -> None:
    assert expected in limit(measured, cores=2)


def test_the_doctor_measures_a_detector_and_says_it_in_json(python: str, tmp_path: Path) -> None:
    command = [python, "-m", "streamer", "doctor", "--bench", "--detector", "128k", "--json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["fps"] == max(one["fps"] for one in found["runs"]) > 0
    assert set(found["alone_ms"]) == set(STAGES)
    assert found["limit"]


def test_a_geometry_of_ones_own_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(capacity, "ALONE_S", 0.3)
    monkeypatch.setattr(capacity, "RUN_S", 1.5)
    source = Simulated(detector="128k")
    source.geometry.write(tmp_path / "mine.poni")
    found = capacity.measure("4M", poni=tmp_path / "mine.poni", device="cpu")
    assert found.shape == (356, 344)
    assert found.fps > 0
    assert any("mine.poni" in sentence for sentence in found.sentences())


def test_a_mask_without_a_geometry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="give it too"):
        capacity.measure("4M", mask=tmp_path / "mask.npy")


def test_a_shape_that_is_none_is_refused(tmp_path: Path) -> None:
    Simulated(detector="128k").geometry.write(tmp_path / "mine.poni")
    with pytest.raises(BadConfig, match="ROWSxCOLUMNS"):
        capacity.measure("4M", poni=tmp_path / "mine.poni", shape="large")
