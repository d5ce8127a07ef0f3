"""One stream to several readers, each with a queue, a thread and an account of its own. Nothing is decoded or copied.

destinations   where messages go, and how that is written
backlog        what waits for one destination, and what became of everything that ever did
lanes          the way there: a socket, and the thread that empties the queue into it
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import zmq

from streamer.records import BadConfig
from streamer.relay.backlog import Delivered
from streamer.relay.destinations import Destination
from streamer.relay.lanes import LOOK_S, Lane, PubLane, PushLane
from streamer.sources import Message


class Fanout:
    """Several destinations that are given the same messages. Use it in a `with` statement, on one thread.

    is_one_part: of the format (see `wire.Format`). Raises BadConfig for an address that is none or taken.
    """

    def __init__(self, destinations: Sequence[Destination], *, is_one_part: bool) -> None:
        if not destinations:
            raise BadConfig("nowhere to send to: give at least one destination")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=min(4, len(destinations)))
        lanes = {"push": PushLane, "pub": PubLane}
        self.lanes: list[Lane] = [lanes[to.socket](to, self._context, is_one_part=is_one_part) for to in destinations]
        try:
            for lane in self.lanes:
                lane.attach()
        except BadConfig:
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> Fanout:
        for lane in self.lanes:
            lane.start()
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self.lanes:
            lane.give_up()
        self._context.term()

    def give(self, message: Message, meanwhile: Callable[[], bool]) -> None:
        """Queue a message for every destination.

        meanwhile: called every LOOK_S while one that waits has no room; True ends the waiting: the message is queued
        all the same. Raises what ended a lane's thread: OutputDown when a socket is broken.
        """
        waiting = [lane for lane in self.lanes if lane.to.when_full == "wait"]
        for lane in self.lanes:
            if lane.to.when_full == "skip":
                lane.add_evicting(message)
        for lane in waiting:
            while not lane.backlog.add(message, LOOK_S):
                lane.check()
                if meanwhile():
                    lane.backlog.add_regardless(message)
                    break

    def account(self) -> tuple[Delivered, ...]:
        """Of every destination, in order. Raises what ended a lane's thread: OutputDown when a socket is broken."""
        for lane in self.lanes:
            lane.check()
        return tuple(lane.account() for lane in self.lanes)

    def drain(self, meanwhile: Callable[[], bool]) -> None:
        """Take no more, and wait until everything was sent. After that the account is final.

        meanwhile: called often; True gives up the rest, which stays under "waiting".
        """
        for lane in self.lanes:
            lane.backlog.close()
        pause = threading.Event()
        while any(lane.is_alive for lane in self.lanes) and not meanwhile():
            pause.wait(LOOK_S / 10)
        for lane in self.lanes:
            lane.give_up()
