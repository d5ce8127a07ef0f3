"""Where messages go is written in one line, and what is no place is refused with the reason."""

from __future__ import annotations

import pytest

from streamer.records import BadConfig
from streamer.relay.destinations import Destination, destination


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://127.0.0.1:31002", Destination("tcp://127.0.0.1:31002")),
        ("dectris2+tcp://127.0.0.1:31002", Destination("tcp://127.0.0.1:31002")),
        (
            "ipc:///tmp/a+b?socket=pub&when_full=wait&queue=7&queue_MB=1.5&connect=true&repeat_start=false",
            Destination("ipc:///tmp/a+b", "pub", "wait", 7, 1.5, True, False),
        ),
    ],
)
def test_a_destination_is_written_in_one_line(text, expected):
    assert destination(text, "dectris2") == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dectris1+tcp://127.0.0.1:1", "let `streamer simulate` translate"),
        ("tcp://127.0.0.1:1?soket=pub", "did you mean 'socket'"),
        ("tcp://127.0.0.1:1?socket=rep", "expected 'push' or 'pub'"),
        ("tcp://127.0.0.1:1?queue=many", "expected a whole number"),
        ("tcp://127.0.0.1:1?queue=0", "expected 1 to 1000000 messages"),
        ("tcp://127.0.0.1:1?queue_MB=nan", "expected 1 to 1000000 messages"),
        ("tcp://127.0.0.1:99999", "the port from 1 to 65535"),
        ("tcp://127.0.0.1:0", "the port from 1 to 65535"),
        ("tcp://127.0.0.1", "has no port; write tcp://host:port"),
        ("inproc://here", "expected tcp://host:port or ipc://path"),
        ("127.0.0.1:31002", "expected tcp://host:port or ipc://path"),
        ("", "expected tcp://host:port or ipc://path"),
    ],
)
def test_a_destination_that_is_none_is_refused_with_the_reason(text, complaint):
    with pytest.raises(BadConfig, match=complaint):
        destination(text, "dectris2")
