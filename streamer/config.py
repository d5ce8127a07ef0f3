"""Names become objects: the only room that imports by name.

A plug-in is one file with one class: `find("outputs", "epics")` gives the class in `streamer/outputs/epics.py`.
Packages outside offer theirs as entry points of the group `streamer.outputs` (or `streamer.analyses`, `streamer.wire`,
`streamer.sources`) through the same function. Nothing registers itself on import.

The constructor's signature is the schema of a plug-in's TOML table, and of the options after "?" in a source string:
what the signature does not name is refused, what it cannot convert is explained, what it needs and does not get is
missed, and all of it at once:

    beamline.toml: no outputs named 'epic'; did you mean 'epics'?
    beamline.toml: [publish.epics] unknown key 'perod'; did you mean 'period'?

One string names a source everywhere:

    dectris2+tcp://dcu.id02:31001        a detector; options follow: ?socket=sub&high_water_mark=1000
    pva://ID02:EIG:Pva1:Image            an areaDetector image over EPICS pvAccess
    results+tcp://saxs.id02:5556         what another streamer publishes
    run42.nxs, frames/, image.tiff       stored frames
    run42.wire, captured/*.cbor          a recording of the wire
    sim:saxs?rate=20&frames=500          a simulated instrument

Relative paths in a beamline file are relative to its folder.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import msgspec

from streamer.analyses import Analysis
from streamer.decide import Rule
from streamer.outputs import Output
from streamer.records import BadConfig, BadInput, BadModel, Buffer, did_you_mean
from streamer.sources import Source
from streamer.sources.live import has_port, with_port
from streamer.sources.wired import Claim, Wired
from streamer.wire import Format

Wing = Literal["wire", "sources", "analyses", "outputs"]

_BASES: dict[str, type] = {"wire": Format, "sources": Source, "analyses": Analysis, "outputs": Output}
_SECTIONS: dict[str, Wing] = {"analyse": "analyses", "publish": "outputs"}


def names(wing: Wing) -> list[str]:
    """The plug-ins of a wing, the package's own and those of other packages."""
    package = importlib.import_module(f"streamer.{wing}")
    own = {
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if _plug_in(importlib.import_module(f"streamer.{wing}.{module.name}"), _BASES[wing]) is not None
    }
    return sorted(own | {entry.name for entry in entry_points(group=f"streamer.{wing}")})


def find(wing: Wing, name: str) -> type[Any]:
    """The class of a plug-in. Raises BadConfig, with the nearest name, if there is none."""
    module_name = f"streamer.{wing}.{name}"
    if name.isidentifier():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as missing:
            if missing.name != module_name:
                raise BadConfig(f"{wing} '{name}' needs the package {missing.name}; install it first") from missing
        else:
            if (plug_in := _plug_in(module, _BASES[wing])) is not None:
                return plug_in
    for entry in entry_points(group=f"streamer.{wing}", name=name):
        loaded: type[Any] = entry.load()
        return loaded
    raise BadConfig(f"no {wing} named '{name}'{did_you_mean(name, names(wing))}")


def _listed(wing: Wing) -> str:
    return ", ".join(names(wing))


def build(wing: Wing, name: str, table: Mapping[str, Any], *, folder: Path | None = None) -> Any:
    """A plug-in built from its table. Raises BadConfig with every problem found."""
    plug_in = find(wing, name)
    arguments, problems = fit(plug_in, table, f"{wing} '{name}'", folder=folder)
    if problems:
        raise BadConfig(*problems)
    return plug_in(**arguments)


def fit(
    make: Callable[..., Any],
    table: Mapping[str, Any],
    where: str,
    *,
    folder: Path | None = None,
    given: Iterable[str] = (),
    from_text: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """A table held against a signature: the arguments that fit, and a sentence for everything that does not.

    folder: what relative paths are relative to. given: parameters that the caller provides itself.
    from_text: values are text, as in the options of a source string, and are converted from it.
    """
    annotations = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make, include_extras=True)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(make).parameters.items()
        if name not in given and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    arguments: dict[str, Any] = {}
    problems = [f"{where} unknown key '{key}'{did_you_mean(key, parameters)}" for key in table if key not in parameters]
    for name, parameter in parameters.items():
        if name in table:
            try:
                arguments[name] = _converted(table[name], annotations.get(name, Any), folder, from_text)
            except msgspec.ValidationError as wrong:
                expected = _described(annotations.get(name, Any))
                problems.append(f"{where} {name} = {table[name]!r}: expected {expected} ({wrong})")
        elif parameter.default is parameter.empty:
            expected = _described(annotations.get(name, Any))
            problems.append(f"{where} key '{name}' is missing: give {expected}")
    return arguments, problems


def open_source(url: str, *, folder: Path | None = None) -> Source:
    """The source a string names (see the head of this file). Raises BadConfig, SourceLost.

    folder: what relative paths are relative to; the current one by default.
    """
    wing_name, arguments, problems = parse_source(url)
    if problems:
        raise BadConfig(*problems)
    if folder is not None and "path" in arguments:
        stored = str(arguments["path"]).split(",")
        arguments["path"] = Path(",".join(str(folder / Path(one).expanduser()) for one in stored))
    source: Source = find("sources", wing_name)(**arguments)
    source.url = url
    if isinstance(source, Wired):
        source.recognise = recognise
    return source


def carries_results(source: Source) -> bool:
    """Whether what comes from a source is what another streamer said of its frames."""
    return isinstance(source, Wired) and source.format.carries == "results"


def recognise(parts: Sequence[Buffer]) -> Claim | None:
    """The name and the title of the format that a message looks like; None if it looks like none of them."""
    return next(((speaks.name, speaks.title) for speaks in _formats() if speaks.claims(parts)), None)


@functools.cache
def _formats() -> tuple[Format, ...]:
    return tuple(find("wire", name)() for name in names("wire"))


def destination(url: str) -> tuple[Format, str]:
    """The format and the address in FORMAT+tcp://HOST:PORT, options after "?" included. Raises BadConfig."""
    path, _, query = url.partition("?")
    scheme, _, rest = path.partition(":")
    name, plus, transport = scheme.partition("+")
    if not plus or not rest.startswith("//"):
        raise BadConfig(f"'{url}' is no destination: expected FORMAT+tcp://HOST:PORT (formats: {_listed('wire')})")
    arguments, problems = fit(find("wire", name), dict(parse_qsl(query)), f"'{url}'", from_text=True)
    if problems:
        raise BadConfig(*problems)
    address = f"{transport}:{rest}"
    if not has_port(address, f"'{url}'"):
        raise BadConfig(f"'{url}' has no port: write FORMAT+tcp://HOST:PORT")
    speaks: Format = find("wire", name)(**arguments)
    return speaks, address


def parse_source(url: str) -> tuple[str, dict[str, Any], list[str]]:
    """The file in `sources/` that a string names, its constructor's arguments, and what is wrong with them."""
    path, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    scheme, separator, rest = path.partition(":")
    given: dict[str, Any]
    if separator and scheme == "sim":
        name, given = "simulated", {"kind": rest}
    elif separator and scheme == "pva":
        name, given = "pva", {"channel": rest.removeprefix("//")}
    elif "+" in scheme and rest.startswith("//"):
        return _parse_live(scheme, rest, options)
    elif separator and rest.startswith("//") and scheme != "file":
        problem = f"source '{url}' does not say what is spoken there: put a format and '+' first ({_listed('wire')})"
        return "live", {}, [problem]
    else:
        stored = Path(rest[2:] if scheme == "file" else path).expanduser()
        if _is_wire(path):
            name, given = "recording", {"path": stored, "find_format": _format_named}
        else:
            name, given = "recorded", {"path": stored}
    arguments, problems = fit(find("sources", name), options, f"source '{url}'", given=given, from_text=True)
    return name, {**given, **arguments}, problems


def _parse_live(scheme: str, rest: str, options: dict[str, str]) -> tuple[str, dict[str, Any], list[str]]:
    format_name, _, transport = scheme.partition("+")
    where = f"source '{scheme}:{rest}'"
    try:
        speaks = find("wire", format_name)
    except BadConfig as unknown:
        return "live", {}, [f"{where}: {unknown}"]
    live = find("sources", "live")
    for_format = {key: value for key, value in options.items() if key in inspect.signature(speaks).parameters}
    known = [*inspect.signature(live).parameters, *inspect.signature(speaks).parameters]
    known = [key for key in known if key not in ("address", "format")]
    for_live = {key: value for key, value in options.items() if key not in for_format and key in known}
    strange = [f"{where} unknown key '{key}'{did_you_mean(key, known)}" for key in options if key not in known]
    format_arguments, problems = fit(speaks, for_format, where, from_text=True)
    problems += strange
    given = {"address": f"{transport}:{rest}", "format": None}
    arguments, more = fit(live, for_live, where, given=given, from_text=True)
    try:
        with_port(given["address"] or "", speaks)
    except BadConfig as wrong:
        more += [f"{where}: {problem}" for problem in wrong.problems]
    if problems or more:
        return "live", {}, [*problems, *more]
    return "live", {**arguments, "address": given["address"], "format": speaks(**format_arguments)}, []


def _format_named(name: str) -> Format:
    speaks: Format = find("wire", name)()
    return speaks


def _is_wire(path: str) -> bool:
    """Whether a path holds messages rather than images."""
    if path.endswith((".wire", ".cbor")):
        return True
    folder = Path(path).expanduser()
    return folder.is_dir() and next(folder.glob("*.cbor"), None) is not None


@dataclass(frozen=True)
class Settings:
    """The keys of a beamline file outside its sections.

    source: where frames come from. device: where models run. workers: threads that decode and reduce.
    when_behind: "skip" gives up the oldest frame and counts it, "wait" pushes back on the detector.
    max_batch, max_wait_ms: frames asked of a model at once, and how long the first waits for company.
    queue_frames, queue_MB: messages that may wait to be decoded.
    grace_s: how long frames may come after the end of their series. stall_s: silence that ends a series.
    drain_s: how long frames already received may take after SIGTERM.
    quarantine: folder for messages that could not be used (the last 100 are kept), none by default.
    """

    source: str
    when_behind: Literal["skip", "wait"] = "skip"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    workers: int = 2
    max_batch: int = 16
    max_wait_ms: float = 2.0
    queue_frames: int = 64
    queue_MB: float = 256.0
    grace_s: float = 2.0
    stall_s: float = 30.0
    drain_s: float = 5.0
    quarantine: Path | None = None

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("workers", "max_batch", "queue_frames"), (1, 4096))
        ranges |= dict.fromkeys(("max_wait_ms", "queue_MB", "grace_s", "stall_s", "drain_s"), (0, 86_400))
        problems = [
            f"{name} = {getattr(self, name)}: expected a number from {low} to {high}"
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]
        if problems:
            raise BadConfig(*problems)


@dataclass(frozen=True)
class Beamline:
    """A beamline file, read and checked, nothing opened yet."""

    settings: Settings
    analyses: Mapping[str, functools.partial[Analysis]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    outputs: Mapping[str, functools.partial[Output]] = field(default_factory=dict)


def read(path: Path) -> Beamline:
    """Read a beamline file. Raises BadConfig with everything that is wrong, one sentence each, file and key first."""
    reader = _Reader(path)
    beamline = reader.read(_document(path))
    if reader.problems or beamline is None:
        raise BadConfig(*reader.problems)
    return beamline


def check(path: Path) -> list[str]:
    """Everything that is wrong with a beamline file, models and geometries included; nothing is attached to.

    What can be built is built although other things are wrong, so that one look finds everything.
    """
    reader = _Reader(path)
    try:
        reader.read(_document(path))
    except BadConfig as wrong:
        return list(wrong.problems)
    for where, make in reader.plug_ins:
        try:
            make()
        except (BadConfig, BadModel, BadInput) as wrong:
            reader.problems += [f"{where} {line}" for line in str(wrong).splitlines()]
    return reader.problems


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({error.strerror}); give the path of a beamline file") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path}: is not TOML: {error}") from error


class _Reader:
    """Reads one beamline file, and collects everything that is wrong with it.

    plug_ins: where in the file, and what builds it, for every plug-in whose arguments fit as far as they go.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.resolve().parent
        self.problems: list[str] = []
        self.plug_ins: list[tuple[str, functools.partial[Any]]] = []

    def read(self, document: dict[str, Any]) -> Beamline | None:
        sections = {name: self._section(document, name) for name in ("analyse", "alarm", "publish")}
        top = {key: value for key, value in document.items() if key not in sections}
        known = [*inspect.signature(Settings).parameters, *sections]
        unknown = [key for key in top if key not in known]
        self.problems += [f"{self._path}: unknown key '{key}'{did_you_mean(key, known)}" for key in unknown]
        settings = self._settings({key: value for key, value in top.items() if key in known})
        defaults = {"device": settings.device, "max_batch": settings.max_batch} if settings else {}
        analyses = self._plug_ins("analyse", sections["analyse"], defaults)
        outputs = self._plug_ins("publish", sections["publish"], {})
        source = str(top.get("source", ""))
        carries_results = self._carries_results(source)
        rules = self._rules(sections["alarm"], None if carries_results else sections["analyse"])
        if carries_results and sections["analyse"]:
            self.problems.append(
                f"{self._path}: source '{source}' carries results, and an analysis needs frames: take out "
                f"{', '.join(f'[analyse.{name}]' for name in sections['analyse'])}"
            )
        if not carries_results and "analyse" not in document:
            self.problems.append(f"{self._path}: nothing to do: add a table [analyse.NAME], such as [analyse.saxs]")
        return None if settings is None else Beamline(settings, analyses, tuple(rules), outputs)

    def _section(self, document: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
        section = document.get(name, {})
        if not isinstance(section, dict) or not all(isinstance(table, dict) for table in section.values()):
            self.problems.append(f"{self._path}: '{name}' holds {section!r}; expected tables such as [{name}.NAME]")
            return {}
        return section

    def _settings(self, table: dict[str, Any]) -> Settings | None:
        arguments, problems = fit(Settings, table, f"{self._path}:", folder=self._folder)
        self.problems += problems
        if isinstance(arguments.get("source"), str):
            self._check_source(arguments["source"])
        try:
            return Settings(**{"source": "", **arguments})
        except BadConfig as wrong:
            self.problems += [f"{self._path}: {problem}" for problem in wrong.problems]
            return None

    def _check_source(self, url: str) -> None:
        try:
            name, arguments, problems = parse_source(url)
        except BadConfig as wrong:
            self.problems += [f"{self._path}: {problem}" for problem in wrong.problems]
            return
        self.problems += [f"{self._path}: {problem}" for problem in problems]
        stored = arguments.get("path")
        if name in ("recorded", "recording") and isinstance(stored, Path) and "*" not in str(stored):
            paths = [Path(one) for one in str(stored).split(",")]
            missing = [one for one in paths if not (self._folder / one).exists()]
            self.problems += [
                f"{self._path}: source '{url}': there is no file {one}; a detector is written FORMAT+tcp://HOST:PORT"
                f" (formats: {_listed('wire')}), a simulation sim:saxs or sim:glass"
                for one in missing
            ]

    def _plug_ins(
        self, section: str, tables: dict[str, dict[str, Any]], defaults: Mapping[str, Any]
    ) -> dict[str, functools.partial[Any]]:
        found: dict[str, functools.partial[Any]] = {}
        for title, table in tables.items():
            try:
                plug_in: Callable[..., Any] = find(_SECTIONS[section], title)
            except BadConfig as unknown:
                self.problems.append(f"{self._path}: [{section}.{title}] {unknown}")
                continue
            where = f"{self._path}: [{section}.{title}]"
            arguments, problems = fit(plug_in, table, where, folder=self._folder)
            self.problems += problems
            takes = inspect.signature(plug_in).parameters
            offered = {name: value for name, value in defaults.items() if name in takes and name not in arguments}
            found[title] = functools.partial(plug_in, **offered, **arguments)
            if not any(name not in arguments and takes[name].default is takes[name].empty for name in takes):
                self.plug_ins.append((where, found[title]))
        return found

    def _carries_results(self, url: str) -> bool:
        try:
            _, arguments, _ = parse_source(url)
        except BadConfig:
            return False
        speaks = arguments.get("format")
        return isinstance(speaks, Format) and speaks.carries == "results"

    def _rules(self, tables: dict[str, dict[str, Any]], analyses: Mapping[str, Any] | None) -> list[Rule]:
        """The rules; they may watch these analyses, or whatever another streamer runs (None)."""
        rules: list[Rule] = []
        for name, table in tables.items():
            where = f"{self._path}: [alarm.{name}]"
            arguments, problems = fit(Rule, table, where, given=("name",))
            watch = str(arguments.get("watch", ""))
            if (problem := misdirected(watch, names("analyses") if analyses is None else analyses)) and watch:
                problems.append(f"{where} {problem}")
            self.problems += problems
            if "watch" not in arguments:
                continue
            try:
                rules.append(Rule(name=name, **arguments))
            except BadConfig as wrong:
                self.problems += [f"{self._path}: {problem}" for problem in wrong.problems]
        return rules


def misdirected(watch: str, analyses: Iterable[str]) -> str | None:
    """What is wrong with the `watch` of a rule beside these analyses; None if nothing is."""
    analysis, _, quantity = watch.partition(".")
    if not quantity:
        return f"watch = '{watch}': expected ANALYSIS.QUANTITY, such as 'saxs.anomaly'"
    if analysis not in analyses:
        return f"watch = '{watch}': there is no analysis '{analysis}' here{did_you_mean(analysis, analyses)}"
    try:
        asked = find("analyses", analysis)
    except BadConfig:
        return None
    if quantity in asked.curves:
        return (
            f"watch = '{watch}': that is a curve, and a rule needs a number{did_you_mean(quantity, asked.quantities)}"
        )
    if asked.quantities and quantity not in asked.quantities:
        return f"watch = '{watch}': {analysis} has no quantity '{quantity}'{did_you_mean(quantity, asked.quantities)}"
    return None


def _plug_in(module: Any, base: type) -> type[Any] | None:
    own = [
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, base) and thing.__module__ == module.__name__
    ]
    return next((thing for thing in own if not inspect.isabstract(thing)), None)


def _converted(value: Any, expected: Any, folder: Path | None, from_text: bool) -> Any:
    def decode(kind: type, given: Any) -> Any:
        if isinstance(given, kind):
            return given
        if issubclass(kind, Path) and isinstance(given, str):
            path = Path(given).expanduser()
            return path if folder is None else folder / path
        if issubclass(kind, bytes) and isinstance(given, str):
            return given.encode()
        raise msgspec.ValidationError(f"got {type(given).__name__}")

    return msgspec.convert(value, expected, strict=not from_text, dec_hook=decode)


def _described(expected: Any) -> str:
    """An annotation as an operator would say it."""
    if typing.get_origin(expected) is Annotated:
        plain, *bounds = typing.get_args(expected)
        least = [bound.ge for bound in bounds if isinstance(bound, msgspec.Meta) and bound.ge is not None]
        return _described(plain) + "".join(f" of at least {number}" for number in least)
    if typing.get_origin(expected) is Literal:
        return " or ".join(f"'{choice}'" for choice in typing.get_args(expected))
    choices = [one for one in typing.get_args(expected) if one is not type(None)]
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    if typing.get_origin(expected) is tuple:
        return f"a list of {len(choices)} values" if Ellipsis not in choices else "a list"
    if choices and typing.get_origin(expected) is not tuple:
        return " or ".join(dict.fromkeys(_described(one) for one in choices))
    return words.get(expected, getattr(expected, "__name__", str(expected)))
