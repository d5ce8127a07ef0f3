"""Proves from the logs of all hops (see `log`) that every frame was analysed once, or lost under exactly one name.

What a consumer says in its accounts is compared with what must have become of each number, which is worked out from
the other logs alone, number by number:

    analysed      the consumer published it
    malformed     the sender damaged it, and the link passed it
    late          the link passed it after the consumer had closed the series by its end
    dropped       the link passed it whole, and the consumer did not publish it
    before_join   it was not passed, the start was not passed either, and it is below every number that was
    missing       all other numbers that were not passed; those passed and destroyed by a reset; and those passed after
                  a new start had replaced the series

Formats that only count have neither starts nor ends: such an account begins with the first number that came, and what
was sent before is "before_join" in the proof, though in no account.

Of a relay, every destination is compared with the two links that lead to it and away from it: all it received is sent
or given up, what its reader got is what it sent, and nothing else.

A consumer that was killed has no account: what it published counts, and all else must be named by another one.
A message that a killed sender began to hand over, and perhaps did not, is in doubt and needs no name; there may be one.

`prove` cannot say how a number that a queue gave up differs from one that a defect swallowed: both are "dropped" to it.
But then the consumer must own up to exactly as many.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.faults.log import Line

Key = tuple[int, str]
NAMES = ("before_join", "missing", "malformed", "dropped", "late")


class Unproven(AssertionError):
    """The logs contradict each other; every contradiction is told."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems[:40]))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of one arming.

    sent: numbers handed to the socket. analysed: how many each consumer published. lost: name → the numbers that
    nobody analysed. in_doubt: numbers that a killed sender may have handed over.
    """

    arming: int
    series: Key
    sent: frozenset[int]
    analysed: dict[str, int]
    lost: dict[str, tuple[int, ...]]
    in_doubt: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Arming:
    number: int
    series: Key
    images: int | None = None
    is_counted: bool = False
    sent: set[int] = field(default_factory=set)
    in_doubt: set[int] = field(default_factory=set)
    damaged: set[int] = field(default_factory=set)

    @property
    def known(self) -> set[int]:
        return self.sent | self.in_doubt


@dataclass(frozen=True, slots=True)
class _Message:
    arming: int
    kind: str
    number: int = -1


Messages = dict[str, list[tuple[float, _Message]]]


@dataclass(slots=True)
class _Heard:
    """What one consumer got of one arming, and what must have become of it."""

    analysed: set[int] = field(default_factory=set)
    passed: dict[int, float] = field(default_factory=dict)
    destroyed: set[int] = field(default_factory=set)
    has_start: bool = False
    fates: dict[int, str] = field(default_factory=dict)
    before: set[int] = field(default_factory=set)

    def name(self, number: int) -> str | None:
        """Under which name a number was lost, as far as this consumer knows."""
        return "before_join" if number in self.before else self.fates.get(number)

    def counts(self) -> Counter[str]:
        return Counter(self.fates.values())


def prove(lines: Sequence[Line], *readers: str) -> list[Proof]:
    """The proof of every arming, in the order in which they were sent. Raises Unproven.

    readers: consumers that share the stream; all by default. Behind a relay every destination has all of it, and is
    proven on its own.
    """
    return _Court(lines, readers).verdict()


class _Court:
    def __init__(self, lines: Sequence[Line], readers: Sequence[str]) -> None:
        self._problems: list[str] = []
        self._messages: Messages = defaultdict(list)
        self._armings: dict[int, _Arming] = {}
        self._hear_senders([line for line in lines if line["did"] in ("sending", "sent", "stopped")])
        named = {line["to"] for line in lines if "to" in line}
        named |= {line["hop"] for line in lines if line["did"] in ("analysed", "closed", "killed", "account", "totals")}
        relays = [line for line in lines if line["did"] == "relayed"]
        named -= {line["hop"] for line in relays}
        if readers:
            named &= set(readers)
        self._consumers = [_Consumer(hop, lines, self._messages, self._armings) for hop in sorted(named)]
        for relay in relays:
            self._compare_relay(relay, [line for line in lines if line["did"] == "passed"])

    def verdict(self) -> list[Proof]:
        for consumer in self._consumers:
            consumer.examine()
            self._problems += consumer.problems
        proofs = [self._proof(arming) for arming in self._armings.values()]
        if self._problems:
            raise Unproven(self._problems)
        return proofs

    def _hear_senders(self, lines: Sequence[Line]) -> None:
        by_hop: dict[str, list[Line]] = defaultdict(list)
        for line in lines:
            by_hop[line["hop"]].append(line)
        for hop, mine in by_hop.items():
            self._hear_sender(hop, mine)

    def _hear_sender(self, hop: str, lines: Sequence[Line]) -> None:
        begun: Line | None = None
        for place, line in enumerate(lines):
            match line["did"]:
                case "sending" if begun is None:
                    begun = line
                case "sent" if begun is not None and begun["message"] == line["message"]:
                    self._enter(begun, is_sent=True)
                    begun = None
                case "stopped" if begun is None and place == len(lines) - 1:
                    return
                case did:
                    self._problems.append(f"{hop}: line {place} says '{did}' where that cannot be")
                    return
        if begun is not None:
            self._enter(begun, is_sent=False)

    def _enter(self, line: Line, *, is_sent: bool) -> None:
        series: Key = (line["series"][0], line["series"][1])
        arming = self._armings.setdefault(line["arming"], _Arming(line["arming"], series))
        number = line.get("number", -1)
        if number in arming.known:
            self._problems.append(f"{line['hop']}: sent twice: arming {arming.number}, number {number}")
        self._messages[line["message"]].append((line["at"], _Message(arming.number, line["kind"], number)))
        if line["kind"] == "start":
            arming.images = line["images"]
        if line["kind"] == "image":
            (arming.sent if is_sent else arming.in_doubt).add(number)
            arming.is_counted = line.get("is_counted", False)
            if line["is_damaged"]:
                arming.damaged.add(number)

    def _compare_relay(self, relay: Line, passed: Sequence[Line]) -> None:
        came = Counter(line["message"] for line in passed if line["to"] == relay["hop"])
        if relay["messages"] != came.total():
            self._problems.append(f"{relay['hop']}: received {relay['messages']} messages, {came.total()} were passed")
        for one in relay["destinations"]:
            left = Counter(line["message"] for line in passed if line["to"] == one["to"])
            where = f"{relay['hop']} to {one['to']}"
            if not left <= came:
                self._problems.append(f"{where}: {(left - came).total()} messages that it never received")
            if left.total() != one["sent"] + one["repeated"]:
                self._problems.append(f"{where}: sent {one['sent']} messages, {left.total()} were passed on")
            named = one["sent"] + one["dropped"] + one["unheard"]
            if one["waiting"] or not named == one["received"] == relay["messages"]:
                self._problems.append(f"{where}: {one} does not add up to {relay['messages']}")

    def _proof(self, arming: _Arming) -> Proof:
        by = {consumer.hop: consumer.heard[arming.number] for consumer in self._consumers}
        often = Counter(number for heard in by.values() for number in heard.analysed)
        self._problems += [
            f"arming {arming.number}: number {number} was analysed {count} times"
            for number, count in sorted(often.items())
            if count > 1
        ]
        lost: dict[str, list[int]] = defaultdict(list)
        for number in sorted(arming.sent - set(often)):
            names = {one.heard[arming.number].name(number) for one in self._consumers if not one.was_killed}
            names.discard(None)
            if len(names) == 1:
                lost[names.pop() or ""].append(number)
            else:
                told = " and ".join(sorted(map(str, names))) or "nothing"
                self._problems.append(f"arming {arming.number}: number {number} was lost as {told}")
        analysed = {hop: len(heard.analysed) for hop, heard in by.items()}
        named = {name: tuple(numbers) for name, numbers in lost.items()}
        return Proof(arming.number, arming.series, frozenset(arming.sent), analysed, named, frozenset(arming.in_doubt))


class _Consumer:
    """One consumer: what reached it, what it said, and whether the two agree."""

    def __init__(self, hop: str, lines: Sequence[Line], messages: Messages, armings: dict[int, _Arming]) -> None:
        self.hop = hop
        self.problems: list[str] = []
        self.heard: dict[int, _Heard] = defaultdict(_Heard)
        own = [line for line in lines if line["hop"] == hop]
        self.was_killed = any(line["did"] == "killed" for line in own)
        self._own = own
        self._links = [line for line in lines if line.get("to") == hop]
        self._messages = messages
        self._armings = armings
        self._control = 0
        self._least_control = 0
        self._keys: dict[int, Key] = {}

    def examine(self) -> None:
        self._hear_results()
        self._hear_links()
        for arming, heard in self.heard.items():
            strange = sorted(heard.analysed - set(heard.passed))
            if strange:
                self._complain(f"analysed numbers {strange} of arming {arming}, which no link passed to it")
        if self.was_killed:
            if any(line["did"] in ("account", "totals", "wire") for line in self._own):
                self._complain("was killed, and reported all the same")
            return
        for arming, heard in self.heard.items():
            self._tell_fates(self._armings[arming], heard)
        self._compare_accounts()
        self._compare_sums()

    def _complain(self, text: str) -> None:
        self.problems.append(f"{self.hop}: {text}")

    def _hear_results(self) -> None:
        for line in self._own:
            if line["did"] == "misunderstood":
                self._complain(f"published what is no result: {line['text']}")
            if line["did"] != "analysed":
                continue
            number, key = line["number"], (line["series"][0], line["series"][1])
            arming = self._armings.get(line["arming"])
            if arming is None or number not in arming.known:
                self._complain(f"analysed number {number} of arming {line['arming']}, which nobody sent")
                continue
            if number != line["says_number"] or self._keys.setdefault(arming.number, key) != key:
                self._complain(f"says number {number} of series {key} of what was arming {arming.number}, {line}")
            if number in arming.damaged:
                self._complain(f"analysed number {number} of arming {arming.number}, which was damaged")
            if number in self.heard[arming.number].analysed:
                self._complain(f"analysed number {number} of arming {arming.number} twice")
            self.heard[arming.number].analysed.add(number)

    def _hear_links(self) -> None:
        links: dict[tuple[str, int], list[Line]] = defaultdict(list)
        for line in self._links:
            links[line["hop"], line["link"]].append(line)
        for name, lines in links.items():
            passed = [line for line in lines if line["did"] == "passed"]
            if (lines[0]["did"], sum(line["did"] == "connected" for line in lines)) != ("connected", 1):
                self._complain(f"{name} does not begin with its connection")
            survived = len(passed)
            if any(line["did"] == "reset" for line in lines):
                while survived and not self._was_analysed(passed[survived - 1]):
                    survived -= 1
            for place, line in enumerate(passed):
                self._hear_message(line, is_destroyed=place >= survived)

    def _message(self, line: Line) -> _Message | None:
        """What was passed: starts and ends of different armings may be the same bytes, so the last one sent by then."""
        sent = [message for at, message in self._messages.get(line["message"], []) if at <= line["at"]]
        return sent[-1] if sent else None

    def _was_analysed(self, line: Line) -> bool:
        message = self._message(line)
        return message is not None and message.number in self.heard[message.arming].analysed

    def _hear_message(self, line: Line, *, is_destroyed: bool) -> None:
        message = self._message(line)
        if message is None:
            self._complain(f"{line['hop']} passed a message that nobody sent")
            return
        if message.kind != "image":
            self._control += 1
            self._least_control += not is_destroyed
            if message.kind == "start" and not is_destroyed:
                self.heard[message.arming].has_start = True
            return
        heard = self.heard[message.arming]
        if message.number in heard.passed:
            self._complain(f"number {message.number} of arming {message.arming} was passed twice")
        heard.passed[message.number] = line["at"]
        if is_destroyed:
            heard.destroyed.add(message.number)

    def _tell_fates(self, arming: _Arming, heard: _Heard) -> None:
        came = set(heard.passed) - heard.destroyed
        by, closed_at = self._closing(arming)
        fates = dict.fromkeys(heard.analysed, "analysed")
        for number in came - heard.analysed:
            is_after = closed_at is not None and heard.passed[number] > closed_at
            if is_after and by == "end":
                fates[number] = "late"
            elif is_after and by == "new start":
                fates[number] = "missing"
            else:
                fates[number] = "malformed" if number in arming.damaged else "dropped"
        seen = [number for number, fate in fates.items() if fate != "missing"]
        lowest, highest = (min(seen), max(seen)) if seen else (0, -1)
        announced = arming.images if heard.has_start and arming.images is not None else highest + 1
        if arming.is_counted and seen:  # the consumer wrote a start itself
            heard.has_start = True
            heard.before = {number for number in arming.sent if number < lowest}
            self._control += 1
            self._least_control += 1
        for number in range(lowest if arming.is_counted else 0, announced):
            is_before = number < lowest and not heard.has_start
            fates.setdefault(number, "before_join" if is_before else "missing")
        heard.fates = fates

    def _closing(self, arming: _Arming) -> tuple[str, float | None]:
        """How and when the consumer last said to have closed this arming's series, if no later one has its key."""
        key = self._key(arming)
        armings = self._heard_under(key)
        closed = [line for line in self._own if line["did"] == "closed" and tuple(line["series"]) == key]
        if armings[-1:] != [arming.number] or len(closed) < len(armings):
            return "", None
        return closed[-1]["by"], closed[-1]["at"]

    def _key(self, arming: _Arming) -> Key:
        """The series as the consumer calls it: formats that know no series leave that to the reader."""
        return self._keys.get(arming.number, arming.series)

    def _heard_under(self, key: Key) -> list[int]:
        """The armings it heard of under a key, in the order in which they were sent."""
        return [number for number, arming in self._armings.items() if number in self.heard and self._key(arming) == key]

    def _compare_accounts(self) -> None:
        accounts: dict[Key, list[Line]] = defaultdict(list)
        for line in self._own:
            if line["did"] == "account":
                accounts[line["series"][0], line["series"][1]].append(line)
        keys = {self._key(self._armings[number]) for number in self.heard}
        for key in sorted(keys | set(accounts)):
            armings = self._heard_under(key)
            told = accounts[key]
            if not told or len(told) > len(armings):
                self._complain(f"series {key} has {len(told)} accounts for {len(armings)} armings it heard of")
            for number, account in zip(armings[-len(told) :] if told else [], told, strict=False):
                self._compare(self.heard[number], account)

    def _compare(self, heard: _Heard, account: Line) -> None:
        expected: dict[str, int] = {name: heard.counts()[name] for name in ("analysed", *NAMES)}
        expected |= {"announced": len(heard.fates), "pending": 0, "joined_late": not heard.has_start}
        found = {name: account[name] for name in expected}
        if found != expected:
            self._complain(f"series {account['series']}: the account says {found}, the logs {expected}")

    def _compare_sums(self) -> None:
        """The totals, and the account of messages, over all armings."""
        totals = [line for line in self._own if line["did"] == "totals"]
        wires = [line for line in self._own if line["did"] == "wire"]
        if (len(totals), len(wires)) != (1, 1):
            self._complain(f"was not killed, and has {len(totals)} totals and {len(wires)} accounts of messages")
            return
        counts: Counter[str] = sum((heard.counts() for heard in self.heard.values()), Counter())
        expected = {name: counts[name] for name in ("analysed", *NAMES)}
        expected |= {"announced": sum(counts.values()), "pending": 0, "unaccounted": 0}
        found = {name: totals[0][name] for name in expected}
        if found != expected:
            self._complain(f"the totals are {found}, the logs say {expected}")
        self._compare_messages(wires[0], counts)

    def _compare_messages(self, wire: Line, counts: Counter[str]) -> None:
        came = sum(len(set(heard.passed) - heard.destroyed) for heard in self.heard.values())
        stale = came - counts["analysed"] - counts["malformed"] - counts["dropped"] - counts["late"]
        expected = {"duplicate": 0, "late": counts["late"], "unannounced": 0, "stale": stale}
        expected["accepted"] = counts["analysed"] + counts["dropped"]
        found = {name: wire[name] for name in expected}
        if found != expected or sum(wire["malformed"].values()) != counts["malformed"]:
            self._complain(f"the messages were {found}, malformed {wire['malformed']}; the logs say {expected}")
        if not self._least_control <= wire["control"] <= self._control:
            self._complain(f"{wire['control']} starts and ends, {self._least_control} to {self._control} were passed")


def told(proofs: Iterable[Proof]) -> list[tuple[int, int, dict[str, int]]]:
    """Arming, frames analysed, frames lost by name: what tests look at."""
    return [
        (one.arming, sum(one.analysed.values()), {name: len(numbers) for name, numbers in one.lost.items()})
        for one in proofs
    ]
