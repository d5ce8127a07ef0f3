"""Names become objects, and everything that is wrong with a beamline file is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from streamer import config
from streamer.records import BadConfig
from streamer.sources import Source
from streamer.sources.live import Live
from streamer.wire import Format

GOOD = """
source = "sim:saxs?frames=10"
when_behind = "wait"

[analyse.saxs]
bins = 500

[alarm.radiation_damage]
watch = "saxs.anomaly"
above = 0.9
sigma = 2
for_frames = 5
clear_below = 0.7
severity = "MAJOR"

[publish.zeromq]
address = "tcp://127.0.0.1:*"
"""

FIVE_MISTAKES = """
source = "dectris3+tcp://127.0.0.1:31001"
when_behind = "wate"

[analyse.saxs]
binz = 500

[alarm.radiation_damage]
watch = "saxs.anomalie"
above = 0.9

[publish.epic]
prefix = "ID02:"
"""


def problems_of(text: str, folder: Path) -> list[str]:
    file = folder / "beamline.toml"
    file.write_text(text, encoding="utf-8")
    return config.check(file)


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    assert problems_of(GOOD, tmp_path) == []


def test_five_different_mistakes_are_all_reported_with_the_offending_word_and_what_to_do(tmp_path: Path) -> None:
    problems = problems_of(FIVE_MISTAKES, tmp_path)
    assert len(problems) == 5
    for word, advice in [
        ("dectris3", "did you mean 'dectris2'?"),
        ("wate", "expected 'skip' or 'wait'"),
        ("binz", "did you mean 'bins'?"),
        ("saxs.anomalie", "did you mean 'anomaly'?"),
        ("epic", "no outputs named 'epic'"),
    ]:
        (problem,) = [one for one in problems if word in one]
        assert advice in problem
        assert "beamline.toml" in problem


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('source = "sim:saxs?frames=10"', ""), "key 'source' is missing"),
        (("bins = 500", 'bins = "many"'), "bins = 'many': expected a whole number"),
        (("bins = 500", "bins = 1.5"), "bins = 1.5: expected a whole number"),
        (("frames=10", "frames=ten"), "frames = 'ten'"),
        (("frames=10", "frame=10"), "unknown key 'frame'; did you mean 'frames'?"),
        (("sim:saxs?frames=10", "tcp://127.0.0.1:31001"), "does not say what is spoken there"),
        (("sim:saxs?frames=10", "nowhere.nxs"), "there is no file nowhere.nxs"),
        (("above = 0.9", ""), "above"),
        (("above = 0.9", "above = 0.9\nbelow = 0.1"), "above"),
        (('severity = "MAJOR"', 'severity = "HUGE"'), "expected 'MINOR' or 'MAJOR'"),
        (("clear_below = 0.7", "clear_below = 0.95"), "clear_below"),
        (('watch = "saxs.anomaly"', 'watch = "anomaly"'), "expected ANALYSIS.QUANTITY"),
        (('watch = "saxs.anomaly"', 'watch = "sax.anomaly"'), "there is no analysis 'sax' here; did you mean 'saxs'?"),
        (("[analyse.saxs]", "[analyze.saxs]"), "unknown key 'analyze'; did you mean 'analyse'?"),
        (("bins = 500", 'poni = "no.poni"'), "no.poni"),
        (("bins = 500", 'model = "sax"'), "'sax'"),
        (("bins = 500", "bins = 5"), "bins is 5, expected 100 to 10000"),
        (('watch = "saxs.anomaly"', 'watch = "saxs.profile"'), "that is a curve"),
        (("when_behind", "workers = 0\nwhen_behind"), "workers = 0: expected a number from 1"),
    ],
)
def test_one_mistake_is_one_problem_that_says_what_to_do(
    change: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    assert change[0] in GOOD
    problems = problems_of(GOOD.replace(*change, 1), tmp_path)
    assert any(expected in problem for problem in problems), problems


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    (problem,) = problems_of("source = \n", tmp_path)
    assert "line 1" in problem


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    (problem,) = config.check(tmp_path / "beamlime.toml")
    assert "cannot be read" in problem


def test_relative_paths_belong_to_the_folder_of_the_file(tmp_path: Path) -> None:
    def make(poni: Path, mask: Path | None = None) -> None: ...

    arguments, problems = config.fit(make, {"poni": "a.poni", "mask": "/b/mask.npy"}, "x", folder=tmp_path)
    assert problems == []
    assert arguments == {"poni": tmp_path / "a.poni", "mask": Path("/b/mask.npy")}


def test_the_signature_is_the_schema() -> None:
    def make(
        host: str, port: int = 5, *, kind: Literal["a", "b"] = "a", span: tuple[float, float] | None = None
    ) -> None: ...

    assert config.fit(make, {"host": "h", "span": [1, 2.5]}, "x") == ({"host": "h", "span": (1.0, 2.5)}, [])
    _, problems = config.fit(make, {"prot": 7, "kind": "c"}, "[publish.x]")
    assert problems == [
        "[publish.x] unknown key 'prot'; did you mean 'port'?",
        "[publish.x] key 'host' is missing: give text",
        next(one for one in problems if "kind" in one),
    ]
    assert "expected 'a' or 'b'" in problems[2]


def test_options_in_a_source_string_are_converted_from_text() -> None:
    def make(rate: float = 1.0, frames: int | None = None, bind: bool = False) -> None: ...

    arguments, problems = config.fit(make, {"rate": "20", "frames": "5", "bind": "true"}, "x", from_text=True)
    assert problems == []
    assert arguments == {"rate": 20.0, "frames": 5, "bind": True}


def test_plug_ins_are_found_by_the_name_of_their_file() -> None:
    assert issubclass(config.find("wire", "dectris2"), Format)
    assert issubclass(config.find("sources", "simulated"), Source)
    assert {"zeromq", "prometheus", "journal"} <= set(config.names("outputs"))
    with pytest.raises(BadConfig, match="no outputs named 'zeromk'; did you mean 'zeromq'"):
        config.find("outputs", "zeromk")


@pytest.mark.parametrize("name", ["__init__", "os", "../wire", "", "zero mq", "zeromq.Zeromq"])
def test_nothing_but_plug_ins_can_be_named(name: str) -> None:
    with pytest.raises(BadConfig, match="no outputs named"):
        config.find("outputs", name)


def test_a_destination_is_a_format_and_an_address() -> None:
    speaks, address = config.destination("dectris2+tcp://127.0.0.1:31001?compression=lz4")
    assert (speaks.name, address) == ("dectris2", "tcp://127.0.0.1:31001")
    with pytest.raises(BadConfig, match="expected FORMAT"):
        config.destination("tcp://127.0.0.1:31001")


def test_mistakes_of_every_layer_are_reported_together(tmp_path: Path) -> None:
    problems = problems_of(
        """
        source = "sim:saxs?frames=ten"
        workers = 0
        queue_frames = 0
        [analyse.saxs]
        binz = 5
        poni = "no.poni"
        [alarm.a]
        watch = "saxs.anomalie"
        above = 0.9
        for_frames = 0
        [publish.journal]
        path = "x.jsonl"
        max_bytes = 1
        """,
        tmp_path,
    )
    for word in ("'ten'", "workers", "queue_frames", "binz", "no.poni", "anomalie", "for_frames", "max_bytes"):
        assert any(word in problem for problem in problems), (word, problems)


def test_rules_on_the_results_of_another_streamer_need_no_analysis_here(tmp_path: Path) -> None:
    text = """
source = "results+tcp://127.0.0.1:5556"

[alarm.damage]
watch = "saxs.{quantity}"
above = 0.9
"""
    assert problems_of(text.format(quantity="anomaly"), tmp_path) == []
    (problem,) = problems_of(text.format(quantity="anomalie"), tmp_path)
    assert "did you mean 'anomaly'" in problem
    (problem,) = problems_of(text.format(quantity="anomaly") + "[analyse.saxs]\nbins = 500\n", tmp_path)
    assert "carries results, and an analysis needs frames: take out [analyse.saxs]" in problem


@pytest.mark.parametrize(
    ("url", "kind", "is_exclusive"),
    [
        ("dectris1+tcp://127.0.0.1:9999", "pull", True),
        ("array+tcp://127.0.0.1:9999?socket=sub&step=2", "sub", False),
        ("bsread+tcp://127.0.0.1:9999?channel=CAM:FPICTURE", "pull", True),
        ("karabo+tcp://127.0.0.1:9999", "req", True),
        ("results+tcp://127.0.0.1", "sub", False),
    ],
)
def test_one_string_opens_any_wire_with_its_usual_socket(url: str, kind: str, is_exclusive: bool) -> None:
    source = config.open_source(url)
    try:
        assert isinstance(source, Live)
        assert source.socket == kind
        assert source.is_exclusive is is_exclusive
        assert source.url == url
        assert source.format.step == (2 if "step=2" in url else 1)
    finally:
        source.close()


@pytest.mark.parametrize("name", config.names("wire"))
def test_every_format_says_what_people_call_it(name: str) -> None:
    speaks = config.find("wire", name)()
    assert speaks.name == name
    assert speaks.title
