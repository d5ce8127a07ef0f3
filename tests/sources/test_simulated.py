"""The simulated beamline: its series, its geometry, its faults one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.compression import Scratch
from streamer.records import BadConfig, Frame, SeriesEnd, SeriesStart
from streamer.sources import Message
from streamer.sources.instrument import DETECTORS, NODATA, SATURATION, power_law, suspension
from streamer.sources.simulated import (
    CHANNEL,
    ON_THE_WIRE,
    Fault,
    Simulated,
    parse_faults,
    state_of,
    wire_order,
)
from streamer.wire.dectris2 import Dectris2
from tests.sources.playing import records


def simulated(**options) -> Simulated:
    return Simulated(**{"detector": "128k", "rate": "max", "frames": 10, **options})


def frame(source: Simulated, number: int) -> Frame:
    [made] = source.decode(Message(("image", number), "image", 0, 0))
    assert isinstance(made, Frame)
    return made


def good(source: Simulated) -> np.ndarray:
    return ~source.start.mask[CHANNEL]


def test_every_pixel_is_counted_around_its_own_expectation():
    source = simulated(frames=200, mean=2.0)
    expected = source.instrument.expected(state_of(0, ()))[good(source)]
    total = sum(frame(source, number).image[good(source)].astype(float) for number in range(200))
    z = (total - 200 * expected) / np.sqrt(200 * expected)
    bright = 200 * expected > 20
    assert abs(z[bright].mean()) < 6 / np.sqrt(bright.sum())
    assert z[bright].std() == pytest.approx(1, abs=0.02)


def test_the_mean_is_the_mean_of_good_pixels():
    source = simulated(mean=1.5)
    assert frame(source, 0).image[good(source)].mean() == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(("name", "shape"), [("500k", (514, 1030)), ("1M", (1065, 1030)), ("4M", (2167, 2070))])
def test_layouts_have_the_sizes_of_real_detectors(name, shape):
    assert DETECTORS[name].shape == shape
    assert DETECTORS[name].pixel_m == 75e-6


def test_a_layout_catches_the_beam_and_reaches_the_analysis_range():
    for name in ("128k", "500k", "1M"):
        detector, source = DETECTORS[name], simulated(detector=name)
        column, row = detector.beam_center
        assert not detector.gaps()[int(row), int(column)]
        q = source.geometry.q("1/nm")[good(source)]
        assert q.min() < 0.07
        assert q.max() > 1.3
        source.close()


def test_the_pattern_is_the_sample_on_the_geometry_that_the_header_tells():
    """The header's geometry, read by the analysis' own code, gives the sample's curve back."""
    source = simulated()
    expected = source.instrument.expected(state_of(0, ()))
    geometry = source.geometry
    q, solid_angle = geometry.q("1/nm")[good(source)], geometry.solid_angle()[good(source)]
    curve = suspension(q) + power_law(q, 0.3, 4.0)
    ratio = expected[good(source)] / (curve * solid_angle)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


def test_gaps_read_nodata_and_dead_and_hot_pixels_are_masked():
    source = simulated()
    image, mask = frame(source, 0).image, source.start.mask[CHANNEL]
    gaps = DETECTORS["128k"].gaps()
    assert image.shape == source.start.shape
    np.testing.assert_array_equal(image == NODATA, gaps)
    assert mask[gaps].all()
    hot = (image > 100) & (image < NODATA)
    assert hot.any()
    assert mask[hot].all()
    assert 0.01 < mask.mean() < 0.1


def test_the_start_message_says_everything_and_survives_the_wire():
    source = simulated(rate=50.0)
    wire = Dectris2()
    [start] = wire.decode(wire.encode(source.start))
    assert isinstance(start, SeriesStart)
    for name in ("images", "shape", "dtype", "saturation", "beam_center", "pixel_size_m", "distance_m", "energy_eV"):
        assert getattr(start, name) == getattr(source.start, name), name
    assert start.frame_time_s == pytest.approx(0.02)
    np.testing.assert_array_equal(start.mask[CHANNEL], source.start.mask[CHANNEL])


# Series


def test_a_series_is_a_start_its_frames_in_order_and_an_end():
    source = simulated(frames=3)
    played = records(source)
    assert [type(record) for record in played] == [SeriesStart, Frame, Frame, Frame, SeriesEnd]
    assert [record.number for record in played if isinstance(record, Frame)] == [0, 1, 2]
    assert len({record.series for record in played}) == 1
    assert played[2].start_s == played[1].stop_s  # no time is lost between exposures
    assert source.announced_frames == 3


def test_a_frame_depends_on_seed_and_number_alone():
    first, second, other = simulated(seed=5), simulated(seed=5), simulated(seed=6)
    images = [frame(first, number).image.copy() for number in (0, 1, 2)]
    again = [frame(second, number).image.copy() for number in (2, 1, 0)]
    for image, same in zip(images, reversed(again), strict=True):
        np.testing.assert_array_equal(image, same)
    assert (images[0] != images[1]).any()
    assert (images[0] != frame(other, 0).image).any()


def test_two_runs_are_two_series():
    assert simulated().start.series != simulated().start.series


def test_images_are_made_in_the_buffer_of_the_worker():
    source, scratch = simulated(), Scratch()
    [made] = source.decode(Message(("image", 3), "image", 0, 0), scratch=scratch)
    assert scratch.nbytes >= made.image.nbytes
    np.testing.assert_array_equal(made.image, frame(source, 3).image)


def test_frames_come_at_their_rate():
    source = simulated(rate=0.001)
    assert source.receive(0.0).kind == "start"
    assert source.receive(0.0).kind == "image"
    assert source.receive(0.01) is None
    assert source.start.frame_time_s == pytest.approx(1000.0)


# Faults


def ratio_to_normal(fault: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """q and expected counts over normal ones, good pixels only."""
    source = simulated(frames=500, fault=fault)
    expected = source.instrument.expected(state_of(number, source.faults)).copy()
    normal = source.instrument.expected(state_of(0, ()))
    return source.geometry.q("1/nm")[good(source)], expected[good(source)] / normal[good(source)]


def test_radiation_damage_grows_with_the_dose_at_low_q_only():
    upturns = []
    for number in (99, 110, 150, 400):
        q, ratio = ratio_to_normal("radiation_damage@100", number)
        upturns.append(ratio[q < 0.1].mean())
        assert ratio[(q > 0.3) & (q < 0.6)].mean() - 1 <= 0.2 * (upturns[-1] - 1)
    assert upturns[0] == 1
    assert all(later > earlier + 0.02 for earlier, later in itertools.pairwise(upturns))
    assert upturns[-1] > 1.3


def test_voids_add_larger_spheres():
    q, ratio = ratio_to_normal("void@100", 100)
    assert ratio[q < 0.1].mean() > 1.2
    assert ratio[(q > 0.5) & (q < 0.9)].mean() < 1.1


def test_a_bubble_takes_the_sample_out_of_the_beam_and_brings_it_back():
    transmitted = [ratio_to_normal("bubble@100", number)[1].mean() for number in (99, 105, 112)]
    assert transmitted[0] == 1
    assert transmitted[1] < 0.5
    assert transmitted[2] == pytest.approx(1)


def test_without_beam_nothing_is_counted_until_it_returns():
    source = simulated(fault="beam_loss@2-3")
    sums = [int(frame(source, number).image[good(source)].sum()) for number in range(5)]
    assert [total == 0 for total in sums] == [False, False, True, True, False]


def test_overexposure_exceeds_the_largest_valid_count_and_never_reads_nodata():
    source = simulated(fault="saturation@0")
    image = frame(source, 0).image[good(source)]
    assert (image > SATURATION).any()
    assert image.max() < NODATA


def test_a_shifted_beamstop_shades_good_pixels():
    q, ratio = ratio_to_normal("beamstop_shift@0", 0)
    shaded = ratio < 0.01
    assert shaded[q < 0.1].any()
    assert shaded.mean() < 0.01
    assert np.median(ratio) == 1


def test_a_dead_module_counts_nothing_and_leaves_the_others_alone():
    _, ratio = ratio_to_normal("dead_module@0", 0)
    assert set(np.unique(ratio)) == {0.0, 1.0}
    assert 0.4 < np.mean(ratio == 0) < 0.6


def test_wire_faults_change_the_order_of_numbers_and_nothing_else():
    assert list(wire_order(5, parse_faults("dropped_frame@2", 5))) == [0, 1, 3, 4]
    assert list(wire_order(5, parse_faults("duplicate_frame@2", 5))) == [0, 1, 2, 2, 3, 4]
    assert list(wire_order(5, parse_faults("wrong_order@2", 5))) == [0, 1, 3, 2, 4]
    assert list(wire_order(5, parse_faults("wrong_order@4", 5))) == [0, 1, 2, 3, 4]
    assert simulated(frames=5, fault="dropped_frame@1-3").announced_frames == 2
    assert simulated(frames=5, fault="dropped_frame@1-3").start.images == 5


@given(
    st.integers(1, 40), st.lists(st.tuples(st.sampled_from(sorted(ON_THE_WIRE)), st.integers(0, 45), st.integers(0, 5)))
)
def test_every_number_is_sent_unless_it_is_dropped(frames, faults):
    chosen = tuple(Fault(name, first, first + length) for name, first, length in faults)
    order = list(wire_order(frames, chosen))
    dropped = {n for fault in chosen if fault.name == "dropped_frame" for n in range(fault.first, fault.last + 1)}
    assert set(range(frames)) - dropped <= set(order) <= set(range(frames))


def test_a_fault_that_is_none_is_named_with_what_there_is():
    with pytest.raises(BadConfig) as refused:
        simulated(fault="radiation@5,void@3,bubble")
    assert len(refused.value.problems) == 2
    assert "'radiation@5'" in refused.value.problems[0]
    assert "radiation_damage" in refused.value.problems[0]
    assert "'bubble'" in refused.value.problems[1]


@pytest.mark.parametrize(
    "options", [{"frames": 0}, {"mean": 0.0}, {"seed": -1}, {"rate": 0.0}, {"detector": "9M"}, {"kind": "waxs"}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(BadConfig, match="expected"):
        simulated(**options)
