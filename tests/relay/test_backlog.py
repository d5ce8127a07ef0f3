"""What waits for one destination is accounted for at every moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.queues import Closed
from streamer.relay.backlog import Backlog
from streamer.relay.destinations import Destination
from streamer.sources import Message
from tests.relay.readers import image

LOCAL = "tcp://127.0.0.1:*"


@given(
    st.lists(st.sampled_from(["start", "image", "end", None, "take", "take"]), max_size=60),
    st.integers(1, 5),
    st.integers(1, 6),
)
def test_a_backlog_accounts_for_everything_at_every_moment_and_images_go_first(events, size, size_in_bytes):
    backlog = Backlog(size, 100 * size_in_bytes)
    to = Destination(LOCAL)
    given_, taken = [], []
    for number, event in enumerate(events):
        if event == "take":
            message = backlog.take_in_hand(0.0)
            if message is not None:
                taken.append(message)
                assert backlog.account(to, 0, 0).unaccounted == 0
                backlog.done("sent")
        else:
            message = Message([b"%d" % number], event, 100, 0)
            given_.append(message)
            before = list(backlog._items)
            backlog.add_evicting(message)
            gone = [held for held, _ in before if held not in [one for one, _ in backlog._items]]
            if any(one.kind in ("start", "end") for one in gone):
                assert all(one.kind in ("start", "end") for one, _ in backlog._items)
        account = backlog.account(to, 0, 0)
        assert account.unaccounted == 0
        assert account.received == len(given_)
        assert account.waiting <= min(size, size_in_bytes)
    assert account.sent == len(taken) if events else True
    assert taken == [message for message in given_ if message in taken]  # in order


def test_a_closed_backlog_gives_what_it_holds_and_takes_no_more():
    backlog = Backlog(3, 1000)
    assert backlog.add(image(0), 0.0)
    backlog.close()
    assert backlog.take_in_hand(0.0) is not None
    backlog.done("sent")
    with pytest.raises(Closed):
        backlog.take_in_hand(0.0)
    with pytest.raises(Closed):
        backlog.add(image(1), 0.0)
