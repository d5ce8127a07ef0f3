"""The card: read strictly, and held against the geometry before the first frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamer.infer import Grid, read_card, require_coverage
from streamer.records import BadInput, BadModel
from tests.infer import networks


def test_a_card_says_what_the_model_is(tmp_path: Path) -> None:
    card = read_card(networks.write(tmp_path))
    assert (card.name, card.version, card.licence, card.opset, card.max_batch) == (
        "tiny",
        "1.2.3",
        "BSD-3-Clause",
        18,
        8,
    )
    assert card.inputs["curve"].shape == (8,)
    assert card.inputs["offset"].shape == ()
    assert card.outputs["score"].meaning == "probability that it is"
    assert card.calibration == {"method": "temperature", "temperature": 1.3}
    assert card.metrics == {"auroc": 0.99}
    assert card.limits == ("Knows straight lines only.",)


def test_a_log_grid_has_equal_ratios_and_holds_both_ends(tmp_path: Path) -> None:
    q = read_card(networks.write(tmp_path)).grid("q")
    assert (q[0], q[-1], len(q), q.dtype) == (0.05, 5.0, 8, np.float64)
    np.testing.assert_allclose(q[1:] / q[:-1], 100 ** (1 / 7))


def test_a_linear_grid_has_equal_steps() -> None:
    grid = Grid(unit="A", start=1, stop=3, points=5, spacing="linear")
    np.testing.assert_allclose(grid.coordinates(), [1, 1.5, 2, 2.5, 3])


def test_a_grid_may_list_its_values() -> None:
    np.testing.assert_array_equal(Grid(unit="A", values=(1.0, 2.0, 4.0)).coordinates(), [1, 2, 4])


def test_a_grid_the_card_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"tiny: card\.toml has no \[grids\.qq\]; did you mean 'q'"):
        read_card(networks.write(tmp_path)).grid("qq")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("licence =", "licenze =", ["unknown key 'licenze'", "'licence'"]),
        ('version = "1.2.3"\n', "", ["found no 'version'"]),
        ("opset = 18", 'opset = "18"', ["'opset'", "'18'", "`int`"]),
        ("opset = 18", "opset = 0", ["'opset'", "found 0", ">= 1"]),
        ("max_batch = 8", "max_batch = 0", ["'max_batch'", "found 0"]),
        ('"SHA256"', '"ABC"', ["'sha256'", "'ABC'", "0-9a-f"]),
        ('["Knows straight lines only."]', "[1]", ["'limits[0]'", "[1]", "`str`"]),
        (
            'dtype = "float32"\nshape = [8]',
            'dtype = "single"\nshape = [8]',
            ["[inputs.curve]", "'single'", "'float32'"],
        ),
        ("shape = [8]", "shape = [0]", ["[inputs.curve]", "'shape[0]'", "[0]", ">= 1"]),
        ("shape = [8]", "shape = [9]", ["[inputs.curve]", "[9]", "'q' has 8 points"]),
        ('grid = "q"', 'grid = "r"', ["[inputs.curve]", "grid = 'r'"]),
        ('meaning = "twice the curve"\n', "", ["[outputs.double]", "found no 'meaning'"]),
        ('meaning = "twice', 'meening = "twice', ["[outputs.double]", "'meening'", "'meaning'"]),
        ("[grids.q]", "[grids]\nq = 3\n[training]", ["[grids.q]", "found 3", "table"]),
        ("[metrics]", "[outputs.class]\n", ["[outputs.class]", "auroc"]),
        ("points = 8\n", "", ["[grids.q]", "either 'values' or all of"]),
        ("points = 8\n", "points = 8\nvalues = [1.0]\n", ["[grids.q]", "either 'values' or all of"]),
        ("start = 0.05", "start = 0.0", ["[grids.q]", "start > 0"]),
        ("start = 0.05", "start = 6.0", ["[grids.q]", "ascending"]),
        ("stop = 5.0", "stop = inf", ["[grids.q]", "finite"]),
        ("[calibration]", "[calibration", ["card.toml", "not TOML"]),
    ],
)
def test_a_wrong_card_is_refused_in_the_words_of_the_file(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    with pytest.raises(BadModel) as refusal:
        read_card(networks.write(tmp_path, card=networks.changed(old, new)))
    for word in [str(tmp_path / "card.toml"), *words]:
        assert word in str(refusal.value)


def test_an_output_that_cannot_say_not_known_is_refused(tmp_path: Path) -> None:
    card = networks.changed('[outputs.score]\ndtype = "float32"', '[outputs.score]\ndtype = "int64"')
    with pytest.raises(BadModel, match=r"\[outputs\.score\]: key 'dtype': found 'int64'; expected one of 'float16'"):
        read_card(networks.write(tmp_path, card=card))


def test_a_folder_without_a_card_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"card\.toml: cannot be read.*holds card\.toml and model\.onnx"):
        read_card(tmp_path)


def test_a_card_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_bytes(b"name = \xff\xfe")
    with pytest.raises(BadModel, match="not TOML"):
        read_card(tmp_path)


# The geometry.


@pytest.mark.parametrize(("low", "high", "unit"), [(0.05, 5.0, "1/nm"), (0.01, 9.0, "1/nm"), (0.005, 0.5, "1/A")])
def test_a_geometry_that_reaches_the_whole_grid_passes_in_either_unit(
    tmp_path: Path, low: float, high: float, unit: str
) -> None:
    assert require_coverage(read_card(networks.write(tmp_path)), "q", low, high, unit) == 1.0


def test_a_geometry_that_reaches_too_little_is_refused_with_both_ranges(tmp_path: Path) -> None:
    card = read_card(networks.write(tmp_path))
    with pytest.raises(BadModel) as refusal:
        require_coverage(card, "q", 0.008, 0.31, "1/A")
    assert str(refusal.value) == (
        "tiny: model expects 8 q-bins 0.05–5 nm⁻¹ (card.toml), the geometry reaches 0.08–3.1 nm⁻¹, "
        "75% of them, where 90% are needed; move the detector or choose a model made for this range"
    )


def test_the_fraction_that_must_be_covered_can_be_stated(tmp_path: Path) -> None:
    assert require_coverage(read_card(networks.write(tmp_path)), "q", 0.08, 3.1, "1/nm", at_least=0.7) == 0.75


def test_a_geometry_in_another_kind_of_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"in 1/nm .*, the geometry in deg"):
        require_coverage(read_card(networks.write(tmp_path)), "q", 0.0, 10.0, "deg")


@pytest.mark.parametrize(("low", "high"), [(5.0, 0.05), (1.0, 1.0), (float("nan"), 5.0)])
def test_a_range_that_is_none_is_refused(tmp_path: Path, low: float, high: float) -> None:
    with pytest.raises(BadInput, match="expected low < high"):
        require_coverage(read_card(networks.write(tmp_path)), "q", low, high, "1/nm")
