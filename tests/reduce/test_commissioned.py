"""The file that a commissioning leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamer.records import BadInput
from streamer.reduce.commissioned import Commissioned, read_commissioned, write_commissioned
from streamer.reduce.conformal import Conformal
from streamer.reduce.curves import log_grid
from streamer.reduce.reference import Reference

GRID = log_grid(0.05, 5.0, 128)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    I = np.where(GRID < 0.1, np.nan, GRID**-3)
    reference = Reference(I, I / 50, noise=1.2, frames=300)
    novelty = Conformal(np.random.default_rng(0).exponential(size=300))
    path = tmp_path / "id02.json"
    write_commissioned(path, Commissioned(GRID, reference, 0.004, novelty, "sim:saxs", "0" * 64))
    return path


def test_it_reads_what_was_written(file: Path) -> None:
    found = read_commissioned(file, GRID)
    assert np.isnan(found.reference.I[GRID < 0.1]).all()
    np.testing.assert_allclose(found.reference.I[GRID > 0.1], GRID[GRID > 0.1] ** -3, rtol=1e-8)
    assert (found.reference.noise, found.reference.frames, found.stability) == (1.2, 300, 0.004)
    assert found.novelty.scores.size == 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "is not 'streamer saxs commissioning 1'"),
        ({"I": None}, "is missing or no number"),
        ({"q": [1.0, 2.0]}, "was made on 2 points of q"),
        ({"noise": -1.0}, "expected positive numbers"),
    ],
)
def test_what_is_wrong_is_named(file: Path, change: dict[str, object], said: str) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadInput, match=said):
        read_commissioned(file, GRID)


def test_a_file_that_is_not_there_or_no_json_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="make it with `streamer commission saxs`"):
        read_commissioned(tmp_path / "none.json", GRID)
    file.write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        read_commissioned(file, GRID)
