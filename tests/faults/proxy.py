"""A TCP link that fails on command: it passes, slows down, stalls, stalls or resets after so many bytes, and refuses.

It sits between two ZeroMQ sockets, forwards every byte unchanged, and takes them apart only to write down which whole
messages it passed (ZMTP 3.x, https://rfc.zeromq.org/spec/23/: a greeting of 64 bytes, then frames of a flags octet, a
length of one or eight octets, and the body). One thread with an event loop of its own; methods may be called from any.

A message is written down before its last byte is handed to the kernel, so whatever a reader received is in the log.
What is in the log need not have been received: a reset destroys what the reader's kernel still holds.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from tests.faults.log import Log, digest

CHUNK = 65_536
BUFFER = 16_384
"""Bytes each kernel buffer of the link may hold: a stall reaches the sender soon, and a large message is cut."""

_GREETING = 64
_MORE, _LONG, _COMMAND = 1, 2, 4


class Messages:
    """Takes the octets of one direction of a ZMTP connection apart into messages."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._parts: list[bytes] = []
        self._skip = _GREETING

    @property
    def is_cut(self) -> bool:
        """Whether a message has begun that is not whole yet."""
        return bool(self._parts) or (self._skip == 0 and bool(self._held))

    def feed(self, octets: bytes) -> list[list[bytes]]:
        """The messages that these octets complete."""
        self._held += octets
        if self._skip:
            if len(self._held) < self._skip:
                return []
            del self._held[: self._skip]
            self._skip = 0
        whole = []
        while (found := self._frame()) is not None:
            flags, body = found
            if flags & _COMMAND:
                continue
            self._parts.append(body)
            if not flags & _MORE:
                whole.append(self._parts)
                self._parts = []
        return whole

    def _frame(self) -> tuple[int, bytes] | None:
        if len(self._held) < 2:
            return None
        flags = self._held[0]
        head = 9 if flags & _LONG else 2
        if len(self._held) < head:
            return None
        size = int.from_bytes(self._held[1:head], "big")
        if len(self._held) < head + size:
            return None
        body = bytes(self._held[head : head + size])
        del self._held[: head + size]
        return flags, body


class FaultProxy:
    """Listens on `port`; every connection there is carried on to `target` on loopback.

    to: the consumer at the reading end, for the log. data_from: who of the two sends messages, "target" (which binds)
    or "client" (which connects); the rules about bytes are for that direction. is_open: whether it passes at first.

    passed: whole messages. nbytes: bytes of that direction. connected: connections so far.
    """

    def __init__(
        self,
        target: int,
        log: Log,
        to: str,
        *,
        data_from: Literal["target", "client"] = "target",
        is_open: bool = True,
    ) -> None:
        self.passed = self.nbytes = self.connected = 0
        self._target = target
        self._log = log
        self._to = to
        self._data_from = data_from
        self._allowance: float = math.inf if is_open else 0
        self._rate = math.inf
        self._resets_then = False
        self._links: dict[int, asyncio.Task[None]] = {}
        self._resetting: set[int] = set()
        self._count = itertools.count(1)
        self._listener = _buffered(socket.socket())
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"link to {to}", daemon=True)
        self._thread.start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def go(
        self, nbytes: float = math.inf, *, then: Literal["stall", "reset"] = "stall", rate: float = math.inf
    ) -> None:
        """Let so many bytes more pass, at most `rate` a second; then stall, or reset every connection once."""

        def change() -> None:
            self._allowance, self._rate, self._resets_then = nbytes, rate, then == "reset"

        self._do(change)

    def stall(self) -> None:
        """Keep every connection and forward nothing."""
        self.go(0)

    def reset(self) -> None:
        """Answer with RST on both sides of every connection; what is in the buffers is destroyed."""
        self._do(self._reset)

    def until(self, condition: Callable[[FaultProxy], bool], deadline_s: float = 20.0) -> None:
        """Wait until something is true of what passed."""
        with self._news:
            is_true = self._news.wait_for(lambda: condition(self), deadline_s)
        assert is_true, f"link to {self._to}: {self.passed} messages, {self.nbytes} bytes, {self.connected} connections"

    def close(self) -> None:
        """End every connection and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    # Everything below runs on the loop's thread.

    def _do(self, change: Callable[[], None]) -> None:
        done = threading.Event()

        def changed() -> None:
            change()
            self._changed.set()
            done.set()

        self._loop.call_soon_threadsafe(changed)
        assert done.wait(10), "the proxy's loop stands still"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = self._loop.create_task(self._listen())
        self._loop.run_forever()
        tasks = [listening, *self._links.values()]
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._listener.close()
        self._loop.close()

    async def _listen(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            number = next(self._count)
            self._links[number] = self._loop.create_task(self._carry(number, client))

    async def _carry(self, number: int, client: socket.socket) -> None:
        target = _buffered(socket.socket())
        target.setblocking(False)
        client.setblocking(False)
        messages = Messages()
        pumps: list[asyncio.Task[None]] = []
        try:
            try:
                await self._loop.sock_connect(target, ("127.0.0.1", self._target))
            except OSError:
                return  # nobody listens there: the client is sent away and tries again
            self._tell(number, "connected")
            self.connected += 1
            source, sink = (target, client) if self._data_from == "target" else (client, target)
            pumps = [
                self._loop.create_task(self._pump_data(number, source, sink, messages)),
                self._loop.create_task(self._pump_rest(sink, source)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_reset = number in self._resetting
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            if messages.is_cut:
                self._tell(number, "cut")
            if pumps:
                self._tell(number, "reset" if is_reset else "ended")
            for end in (client, target):
                if is_reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
            self._links.pop(number, None)

    async def _pump_data(self, number: int, source: socket.socket, sink: socket.socket, messages: Messages) -> None:
        while octets := await self._loop.sock_recv(source, CHUNK):
            view = memoryview(octets)
            while view:
                size = await self._may_pass(len(view))
                for message in messages.feed(bytes(view[:size])):
                    self._tell(number, "passed", message=digest(message))
                    self.passed += 1
                self.nbytes += size
                await self._loop.sock_sendall(sink, view[:size])
                self._notify()
                view = view[size:]
                if self._allowance == 0 and self._resets_then:
                    self._resets_then = False
                    self._reset()
                    return
                if self._rate < math.inf:
                    await asyncio.sleep(size / self._rate)

    async def _pump_rest(self, source: socket.socket, sink: socket.socket) -> None:
        while octets := await self._loop.sock_recv(source, CHUNK):
            while not self._allowance:
                await self._change()
            await self._loop.sock_sendall(sink, octets)

    async def _may_pass(self, wanted: int) -> int:
        while not self._allowance:
            await self._change()
        size = int(min(wanted, self._allowance, max(1.0, self._rate / 50)))
        self._allowance -= size
        return size

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _reset(self) -> None:
        self._allowance = math.inf
        for number, task in self._links.items():
            self._resetting.add(number)
            task.cancel()

    def _tell(self, link: int, did: str, **what: str) -> None:
        self._log.write(did, link=link, to=self._to, **what)
        self._notify()

    def _notify(self) -> None:
        with self._news:
            self._news.notify_all()


def _buffered(end: socket.socket) -> socket.socket:
    """Small buffers, which are only obeyed when set before the connection is made."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return end
