"""Every frame of a series is accounted for, whatever order the wire brings it in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamer.ledger import FEWEST, MOST_OPEN, MOST_READERS, Ledger, Numbers
from streamer.records import SeriesKey, SeriesStart

A, B = SeriesKey(1, "a"), SeriesKey(2, "b")


def start(key: SeriesKey, images: int | None) -> SeriesStart:
    return SeriesStart(series=key, images=images)


def analyse(ledger: Ledger, key: SeriesKey, numbers: list[int] | range, now: float = 0.0) -> list[str]:
    """Receive frames and analyse those that are accepted; returns the verdicts."""
    verdicts = []
    for number in numbers:
        verdicts.append(ledger.frame(key, number, now))
        if verdicts[-1] == "accepted":
            ledger.analysed(key, number, now)
    return verdicts


def only(ledger: Ledger):
    (account,) = ledger.accounts()
    return account


@given(st.lists(st.integers(0, 60)))
def test_numbers_behave_like_a_set_of_integers(numbers: list[int]) -> None:
    ranges, plain = Numbers(), set()
    for number in numbers:
        assert ranges.add(number) == (number not in plain)
        plain.add(number)
    assert ranges.count == len(plain)
    assert [n for n in range(61) if n in ranges] == sorted(plain)
    if plain:
        assert (ranges.lowest, ranges.highest) == (min(plain), max(plain))


def test_a_million_frames_in_a_row_take_the_room_of_a_few() -> None:
    numbers = Numbers()
    for number in range(1_000_000):
        numbers.add(number)
    assert numbers.count == 1_000_000
    assert numbers.pages == 1


def test_every_second_frame_of_a_million_is_counted() -> None:
    """Two copies of streamer share a PUSH socket."""
    ledger = Ledger()
    ledger.start(start(A, 1_000_000), 0.0)
    for number in range(0, 1_000_000, 2):
        assert ledger.frame(A, number, 0.0) == "accepted"
        ledger.analysed(A, number, 0.0)
    assert (only(ledger).analysed, only(ledger).malformed) == (500_000, 0)


def test_strangers_do_not_displace_a_series_that_is_running() -> None:
    ledger = Ledger()
    ledger.start(start(A, 100), 0.0)
    analyse(ledger, A, range(3))
    for stranger in range(50):
        ledger.frame(SeriesKey(1000 + stranger), 5, 1.0)
    analyse(ledger, A, range(3, 100), now=2.0)
    account = next(one for one in ledger.accounts() if one.series == A)
    assert (account.announced, account.analysed, account.joined_late) == (100, 100, False)


def test_a_whole_series_is_analysed_and_closes_with_its_end() -> None:
    ledger = Ledger()
    ledger.start(start(A, 5), 0.0)
    analyse(ledger, A, range(5))
    ledger.end(A, 1.0)
    (account,) = ledger.tick(1.0)
    assert (account.announced, account.analysed, account.pending, account.closed_by) == (5, 5, 0, "end")
    assert account.is_announced


def test_a_gap_is_missing_at_once_and_for_good_after_the_grace_window() -> None:
    ledger = Ledger(grace_s=2.0)
    ledger.start(start(A, 6), 0.0)
    analyse(ledger, A, [0, 1, 4])
    assert (only(ledger).missing, only(ledger).pending) == (2, 1)
    ledger.end(A, 1.0)
    assert ledger.tick(2.9) == []
    (account,) = ledger.tick(3.0)
    assert (account.missing, account.pending, account.analysed) == (3, 0, 3)


def test_an_end_that_overtakes_the_last_frames_waits_for_them() -> None:
    ledger = Ledger(grace_s=2.0)
    ledger.start(start(A, 4), 0.0)
    analyse(ledger, A, [0, 1])
    ledger.end(A, 1.0)
    assert analyse(ledger, A, [3, 2], now=1.5) == ["accepted", "accepted"]
    (account,) = ledger.tick(1.5)
    assert (account.analysed, account.missing, account.out_of_order, account.closed_by) == (4, 0, 1, "end")


def test_a_frame_after_the_grace_window_is_late_and_no_longer_missing() -> None:
    ledger = Ledger(grace_s=2.0)
    ledger.start(start(A, 3), 0.0)
    analyse(ledger, A, [0, 1])
    ledger.end(A, 0.0)
    ledger.tick(2.0)
    assert analyse(ledger, A, [2, 2, 1], now=2.5) == ["late", "duplicate", "duplicate"]
    account = only(ledger)
    assert (account.late, account.missing, account.duplicate, account.pending) == (1, 0, 2, 0)


def test_a_second_end_changes_nothing() -> None:
    ledger = Ledger(grace_s=2.0)
    ledger.start(start(A, 3), 0.0)
    analyse(ledger, A, [0])
    ledger.end(A, 1.0)
    ledger.end(A, 2.9)
    (account,) = ledger.tick(3.0)
    ledger.end(A, 4.0)
    assert ledger.tick(99.0) == []
    assert only(ledger) == account
    assert ledger.wire().control == 4


def test_a_late_join_is_told_and_counts_what_came_before() -> None:
    ledger = Ledger()
    analyse(ledger, A, range(100, 110))
    account = only(ledger)
    assert account.joined_late
    assert (account.announced, account.is_announced, account.before_join, account.analysed) == (110, False, 100, 10)


def test_a_start_that_was_overtaken_by_frames_takes_them_over() -> None:
    ledger = Ledger()
    analyse(ledger, A, [2])
    ledger.start(start(A, 4), 0.0)
    analyse(ledger, A, [0, 1, 3])
    account = only(ledger)
    assert (account.joined_late, account.announced, account.analysed, account.before_join) == (False, 4, 4, 0)


def test_a_new_start_without_an_end_closes_the_old_series_and_makes_its_leftovers_stale() -> None:
    ledger = Ledger(grace_s=2.0)
    ledger.start(start(A, 10), 0.0)
    analyse(ledger, A, range(3))
    ledger.start(start(B, 2), 1.0)
    assert ledger.frame(A, 3, 2.0) == "accepted"
    ledger.analysed(A, 3, 2.0)
    (closed,) = ledger.tick(3.0)
    assert (closed.closed_by, closed.analysed, closed.missing) == ("new start", 4, 6)
    assert ledger.frame(A, 4, 4.0) == "stale"
    assert ledger.frame(B, 0, 4.0) == "accepted"


def test_a_frame_of_an_unknown_older_series_is_stale_beside_a_started_one() -> None:
    ledger = Ledger()
    ledger.start(start(B, 2), 0.0)
    assert ledger.frame(SeriesKey(1, "forgotten"), 7, 0.0) == "stale"


def test_a_restarted_detector_may_use_its_series_ids_again() -> None:
    ledger = Ledger(grace_s=0.0)
    ledger.start(start(SeriesKey(1), 2), 0.0)
    analyse(ledger, SeriesKey(1), [0, 1])
    ledger.start(start(SeriesKey(1), 2), 1.0)
    assert analyse(ledger, SeriesKey(1), [0, 1], now=1.0) == ["accepted", "accepted"]
    assert [account.closed_by for account in ledger.tick(1.0)] == ["new start"]


def test_a_repeated_start_before_the_first_frame_changes_nothing() -> None:
    ledger = Ledger()
    ledger.start(start(A, 2), 0.0)
    ledger.start(start(A, 2), 0.1)
    analyse(ledger, A, [0, 1])
    assert only(ledger).analysed == 2


def test_a_series_that_never_ends_closes_by_stall_and_opens_again_when_it_goes_on() -> None:
    ledger = Ledger(stall_s=10.0)
    ledger.start(start(A, 4), 0.0)
    analyse(ledger, A, [0, 1])
    assert ledger.tick(9.9) == []
    (account,) = ledger.tick(10.0)
    assert (account.closed_by, account.missing) == ("stall", 2)
    assert analyse(ledger, A, [2, 3], now=100.0) == ["accepted", "accepted"]
    ledger.end(A, 100.0)
    (account,) = ledger.tick(100.0)
    assert (account.closed_by, account.analysed, account.missing) == ("end", 4, 0)


def test_a_series_does_not_close_while_a_frame_is_being_analysed() -> None:
    ledger = Ledger(grace_s=0.0)
    ledger.start(start(A, 1), 0.0)
    ledger.frame(A, 0, 0.0)
    ledger.end(A, 0.0)
    assert ledger.tick(50.0) == []
    ledger.analysed(A, 0, 60.0)
    (account,) = ledger.tick(60.0)
    assert account.analysed == 1


def test_frames_beyond_the_announced_number_are_unannounced() -> None:
    ledger = Ledger()
    ledger.start(start(A, 3), 0.0)
    assert ledger.frame(A, 3, 0.0) == "unannounced"
    assert only(ledger).announced == 3


def test_a_good_copy_replaces_a_malformed_one() -> None:
    ledger = Ledger()
    ledger.start(start(A, 2), 0.0)
    ledger.malformed("size", A, 0, 0.0)
    assert only(ledger).malformed == 1
    assert analyse(ledger, A, [0]) == ["accepted"]
    assert (only(ledger).malformed, only(ledger).analysed) == (0, 1)
    ledger.malformed("size", A, 0, 0.0)
    assert only(ledger).malformed == 0
    assert ledger.wire().malformed == {"size": 2}


def test_a_message_without_a_number_counts_on_the_wire_only() -> None:
    ledger = Ledger()
    ledger.start(start(A, 2), 0.0)
    ledger.malformed("cbor", None, None, 0.0)
    assert only(ledger).malformed == 0
    assert ledger.wire().messages == 2


def test_a_corrupted_series_id_does_not_displace_the_running_series() -> None:
    ledger = Ledger()
    ledger.start(start(A, 1000), 0.0)
    for number in range(1000):
        ledger.frame(SeriesKey(100 + number, "corrupt"), 2**40 + number, float(number))
        assert analyse(ledger, A, [number], now=float(number)) == ["accepted"]
        assert len(ledger.accounts()) <= MOST_OPEN + 8
    account = next(account for account in ledger.accounts() if account.series == A)
    assert account.analysed == 1000


def test_a_stopped_stream_names_what_it_did_not_finish() -> None:
    ledger = Ledger()
    ledger.start(start(A, 5), 0.0)
    analyse(ledger, A, [0, 1])
    ledger.frame(A, 2, 0.0)
    (account,) = ledger.close(1.0)
    assert (account.analysed, account.dropped, account.missing, account.closed_by) == (2, 1, 2, "stop")


def test_totals_count_every_series_once_also_those_long_forgotten_and_those_that_stalled_and_went_on() -> None:
    ledger = Ledger(grace_s=0.0, stall_s=10.0)
    for number in range(30):
        key = SeriesKey(number)
        ledger.start(start(key, 3), 0.0)
        analyse(ledger, key, [0, 1])
        ledger.end(key, 0.0)
        ledger.tick(0.0)
    key = SeriesKey(99)
    ledger.start(start(key, 3), 0.0)
    analyse(ledger, key, [0])
    assert [account.closed_by for account in ledger.tick(20.0)] == ["stall"]
    analyse(ledger, key, [1, 2], now=30.0)
    totals = ledger.totals()
    assert (totals["announced"], totals["analysed"], totals["missing"], totals["unaccounted"]) == (93, 63, 30, 0)


@pytest.mark.parametrize("number", [-1, -(2**63)])
def test_a_negative_number_is_malformed(number: int) -> None:
    ledger = Ledger()
    assert ledger.frame(A, number, 0.0) == "malformed"
    assert ledger.wire().malformed == {"number": 1}


class AnyWire(RuleBasedStateMachine):
    """Whatever comes in whatever order: both sums hold after every step."""

    keys = st.sampled_from([SeriesKey(1, "a"), SeriesKey(2, "b"), SeriesKey(2), SeriesKey(3, "c"), SeriesKey(1)])
    numbers = st.one_of(st.integers(-1, 12), st.sampled_from([2**31, 2**63]))

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(grace_s=2.0, stall_s=10.0)
        self.now = 0.0
        self.messages = 0
        self.in_flight: list[tuple[SeriesKey, int]] = []

    @rule(key=keys, images=st.one_of(st.none(), st.integers(0, 10)))
    def start(self, key: SeriesKey, images: int | None) -> None:
        self.messages += 1
        self.ledger.start(SeriesStart(series=key, images=images), self.now)

    @rule(key=keys)
    def end(self, key: SeriesKey) -> None:
        self.messages += 1
        self.ledger.end(key, self.now)

    @rule(key=keys, number=numbers)
    def frame(self, key: SeriesKey, number: int) -> None:
        self.messages += 1
        if self.ledger.frame(key, number, self.now) == "accepted":
            self.in_flight.append((key, number))

    @rule(key=keys, number=numbers)
    def dropped(self, key: SeriesKey, number: int) -> None:
        self.messages += 1
        self.ledger.dropped(key, number, self.now)

    @rule(key=st.one_of(st.none(), keys), number=st.one_of(st.none(), numbers))
    def malformed(self, key: SeriesKey | None, number: int | None) -> None:
        self.messages += 1
        self.ledger.malformed("size", key, number, self.now)

    @rule(data=st.data(), outcome=st.sampled_from(["analysed", "unusable"]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        if self.in_flight:
            place = data.draw(st.integers(0, len(self.in_flight) - 1))
            getattr(self.ledger, outcome)(*self.in_flight.pop(place), self.now)

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for account in self.ledger.tick(self.now):
            assert account.pending == 0
            assert account.closed_by

    @invariant()
    def every_message_is_in_the_wire_account(self) -> None:
        wire = self.ledger.wire()
        frames = wire.accepted + wire.duplicate + wire.late + wire.stale + wire.unannounced
        assert wire.messages == self.messages == wire.control + frames + sum(wire.malformed.values())

    @invariant()
    def every_frame_is_in_a_series_account(self) -> None:
        for account in self.ledger.accounts():
            assert account.unaccounted == 0
            counts = (account.missing, account.pending, account.before_join, account.malformed, account.dropped)
            assert min(counts) >= 0
            assert not (account.closed_by and account.pending)

    def teardown(self) -> None:
        for account in self.ledger.close(self.now):
            assert account.unaccounted == account.pending == 0


TestAnyWire = AnyWire.TestCase
TestAnyWire.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def counting(first: int, step: int = 1) -> SeriesStart:
    return SeriesStart(series=A, first=first, step=step)


def test_a_running_number_is_counted_from_the_first_one_seen() -> None:
    ledger = Ledger()
    ledger.start(counting(5000), 0.0)
    analyse(ledger, A, [5000, 5001, 5003])
    account = only(ledger)
    assert (account.announced, account.analysed, account.missing, account.before_join) == (4, 3, 1, 0)
    assert account.unaccounted == 0


def test_numbers_that_count_by_four_leave_nothing_out() -> None:
    ledger = Ledger()
    ledger.start(counting(20_000_000_000, step=4), 0.0)
    analyse(ledger, A, range(20_000_000_000, 20_000_000_040, 4))
    assert (only(ledger).announced, only(ledger).missing) == (10, 0)
    analyse(ledger, A, [20_000_000_048])
    assert (only(ledger).announced, only(ledger).missing) == (13, 2)


def test_a_step_that_is_wrong_loses_nothing() -> None:
    ledger = Ledger()
    ledger.start(counting(0, step=4), 0.0)
    assert analyse(ledger, A, range(10)) == ["accepted"] * 10
    assert (only(ledger).announced, only(ledger).analysed, only(ledger).missing) == (10, 10, 0)


def test_a_frame_overtaken_by_the_first_one_belongs_to_the_series() -> None:
    ledger = Ledger()
    ledger.start(counting(7), 0.0)
    assert analyse(ledger, A, [7, 5, 8]) == ["accepted"] * 3
    assert (only(ledger).announced, only(ledger).missing) == (4, 1)


@given(
    st.sets(st.integers(0, 300), min_size=1, max_size=100),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_sum_of_a_counted_series_holds(places: set[int], step: int, is_over: bool) -> None:
    ledger = Ledger()
    numbers = [1000 + step * place for place in sorted(places)]
    ledger.start(counting(numbers[0], step), 0.0)
    analyse(ledger, A, numbers)
    if is_over:
        ledger.close(1.0)
    account = only(ledger)
    assert account.analysed == len(places)
    assert account.missing == max(places) - min(places) + 1 - len(places)
    assert account.announced == account.analysed + account.missing
    assert account.pending == account.unaccounted == 0


@pytest.mark.parametrize("readers", range(2, MOST_READERS + 1))
@pytest.mark.parametrize("step", [1, 4])
def test_what_other_readers_take_in_turn_is_told_from_what_is_lost(readers: int, step: int) -> None:
    ledger = Ledger()
    ledger.start(counting(0, step), 0.0)
    analyse(ledger, A, range(0, 100 * readers * step, readers * step))
    assert (only(ledger).gap_period, only(ledger).gap_length) == (readers, readers - 1)


@pytest.mark.parametrize("readers", range(2, MOST_READERS + 1))
def test_one_stranger_among_many_readers_is_noticed(readers: int) -> None:
    ledger = Ledger()
    ledger.start(start(A, 1000), 0.0)
    analyse(ledger, A, [number for number in range(200) if number % readers])
    assert (only(ledger).gap_period, only(ledger).gap_length) == (readers, 1)


def test_a_reader_that_is_skipped_now_and_then_still_shows() -> None:
    ledger = Ledger()
    ledger.start(start(A, 1000), 0.0)
    analyse(ledger, A, [*range(0, 60, 2), *range(61, 160, 2)])
    assert (only(ledger).gap_period, only(ledger).gap_length) == (2, 1)


@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_random_losses_are_no_pattern(seed: int, share: float) -> None:
    chance = random.Random(seed)
    ledger = Ledger()
    ledger.start(start(A, 10_000), 0.0)
    analyse(ledger, A, [number for number in range(600) if chance.random() > share])
    assert only(ledger).gap_period == 0


def test_one_long_gap_is_no_pattern() -> None:
    ledger = Ledger()
    ledger.start(start(A, 1000), 0.0)
    analyse(ledger, A, [*range(40), *range(70, 100)])
    assert only(ledger).gap_period == 0


def test_a_few_frames_say_nothing_of_a_pattern() -> None:
    ledger = Ledger()
    ledger.start(start(A, 1000), 0.0)
    analyse(ledger, A, range(0, FEWEST - 2, 2))
    assert only(ledger).gap_period == 0


def test_a_restarted_detector_may_use_its_series_ids_again_and_both_accounts_are_kept() -> None:
    ledger = Ledger()
    for frames in (3, 2):
        ledger.start(start(SeriesKey(1), frames), 0.0)
        analyse(ledger, SeriesKey(1), range(frames))
        ledger.end(SeriesKey(1), 0.0)
    assert [account.analysed for account in ledger.accounts()] == [3, 2]
    assert ledger.totals()["analysed"] == 5
