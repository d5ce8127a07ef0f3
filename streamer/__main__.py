"""The command line. Each command is a door with a handle; what lies behind it lives in its own room.

Standard output belongs to the answer: with --json it holds JSON lines and nothing else. The log goes to standard error.
Exit codes: 0 done, 1 something broke, 2 what was asked is wrong (see `streamer.service`).
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import structlog
import typer
from rich.table import Table
from typer.core import TyperArgument, TyperCommand

from streamer.display import (
    Blind,
    JsonLines,
    Shown,
    complain,
    err,
    log_to_stderr,
    out,
    plain_result,
    print_accounts,
    print_alarms,
    print_json,
    print_report,
    progress,
)
from streamer.records import BadConfig, BadInput, BadModel, StreamerError
from streamer.wire import results

if TYPE_CHECKING:
    from streamer.relay import Relayed

app = typer.Typer(
    help="Real-time analysis of detector streams: frames in, decisions out, nothing lost without a number changing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="JSON lines on standard output and nothing else.")]
Source = Annotated[
    str,
    typer.Argument(
        help="FORMAT+tcp://HOST:PORT (formats: {formats}; options after '?': socket=sub), pva://CHANNEL,"
        " a file or folder, a recording (.wire), sim:saxs?… or sim:glass?…"
    ),
]
Device = Literal["auto", "cuda", "cpu"]


class NamesFormats(TyperCommand):
    """A command whose help names every format there is. They are only looked for when somebody asks for help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from streamer import config

        formats = ", ".join(config.names("wire"))
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.help:
                parameter.help = parameter.help.replace("{formats}", formats)
        super().format_help(ctx, formatter)


def main() -> None:
    """Run a command; turn our own errors into one sentence and an exit code."""
    try:
        app()
    except (BadConfig, BadModel, BadInput) as wrong:
        complain(wrong)
        sys.exit(2)
    except StreamerError as error:
        complain(error)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        complain(error)
        sys.exit(1)


def _version(is_wanted: bool) -> None:
    if is_wanted:
        out.print(version("streamer"))
        raise typer.Exit


@app.callback()
def common(
    show: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which one.")] = False,
) -> None:
    """Real-time analysis of detector streams: frames in, decisions out, nothing lost without a number changing."""


@app.command()
def run(file: Annotated[Path, typer.Argument(help="A beamline file.")], as_json: AsJson = False) -> None:
    """Serve a beamline file until the source ends or SIGTERM says stop."""
    from streamer import service

    log_to_stderr(as_json=as_json)
    report = service.serve(file)
    if as_json:
        print_json(report)
    else:
        print_report(report)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A beamline file.")], as_json: AsJson = False) -> None:
    """Say everything that is wrong with a beamline file, models and geometry included. Attaches to nothing."""
    from streamer import config

    log_to_stderr(as_json=as_json, quiet=True)
    problems = config.check(file)
    if as_json:
        print_json({"file": str(file), "problems": problems})
    elif problems:
        err.print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", style="bold red")
        for problem in problems:
            err.print(f"  ✗ {problem}")
    else:
        out.print(f"✓ {file} is in order")
    raise typer.Exit(2 if problems else 0)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=2.0, max=86_400.0, help="How long the detector sends.")] = 60.0,
    rate: Annotated[float, typer.Option(min=0.5, max=10_000.0, help="Frames per second.")] = 20.0,
    detector: Annotated[str, typer.Option(help="Size of the simulated detector: 128k, 500k, 1M, 4M.")] = "1M",
    folder: Annotated[Path | None, typer.Option("--dir", help="Where its files go; a new folder by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a detector, analyse it live and show both: nothing to configure."""
    from streamer.demo import Demo
    from streamer.outputs.terminal import Terminal

    log_to_stderr(as_json=as_json, quiet=True)
    folder = folder or Path(tempfile.mkdtemp(prefix="streamer-demo-"))
    err.print(f"streamer demo: everything it writes lies in {folder}")
    show = Demo(folder, seconds=seconds, rate=rate, detector=detector, on_note=lambda text: err.print(text))
    view = Blind() if as_json else Terminal()
    if isinstance(view, Terminal):
        view.show_limits({"saxs.novelty": 3.0})
    account = show.run(view)
    if as_json:
        print_json(account)
    else:
        print_report(account)
        out.print(f"sent {account['sent']} frames; log, journal and beamline file: {folder}")
    if account["unaccounted"]:
        raise typer.Exit(1)


@app.command(cls=NamesFormats)
def analyse(
    source: Source,
    analysis: Annotated[str, typer.Option("--with", help="The question asked of every frame.")] = "saxs",
    poni: Annotated[Path | None, typer.Option(help="pyFAI geometry.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Pixels not to be used: .npy or an image file.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="Any key of its table: --set bins=500.")] = None,
    alarm: Annotated[list[str] | None, typer.Option(help="A rule: --alarm 'saxs.anomaly > 0.9'.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many results.")] = None,
    device: Annotated[Device, typer.Option(help="Where models run.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask one question of every frame of a source and print the answers."""
    from streamer import service, stream

    log_to_stderr(as_json=as_json, quiet=True)
    options: dict[str, Any] = {"poni": poni, "mask": mask, "device": device, **_settings(option or [])}
    shown = Shown(all_of_them=limit is not None)
    with stream.open(source) as frames, service.stopped_by_signals(frames.stop):
        answers = frames.analyse(
            analysis, alarms=_rules(alarm or []), **{key: value for key, value in options.items() if value is not None}
        )
        count = 0
        try:
            with progress(frames.source.announced_frames, "analysed", hidden=as_json) as advance:
                for result in answers:
                    count += 1
                    if as_json:
                        print_json(plain_result(result))
                    else:
                        shown.print(result)
                    advance()
                    if count == limit:
                        break
        finally:
            answers.close()  # type: ignore[attr-defined]
            if not as_json:
                print_accounts(frames.accounts)
                print_alarms([results.plain_alarm(one) for one in frames.alarms])
        if not count and any(account.malformed for account in frames.accounts):
            raise typer.Exit(1)


@app.command(cls=NamesFormats)
def simulate(
    source: Source,
    to: Annotated[
        str,
        typer.Option(
            help="FORMAT+tcp://HOST:PORT to send to, e.g. dectris2+tcp://127.0.0.1:31001; any format that"
            " can be read, but results."
        ),
    ],
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Frames per second; the source's own by default.")
    ] = None,
    socket: Annotated[
        Literal["push", "pub", "rep"] | None, typer.Option(help="Which socket to send on; the format's usual one.")
    ] = None,
    connect: Annotated[bool, typer.Option("--connect", help="Connect to the reader instead of binding.")] = False,
    wait: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for a first reader.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Send any source to any socket in any format: a detector for tests and rehearsals."""
    from streamer import config, relay, service

    log_to_stderr(as_json=as_json)
    stopped: list[bool] = []
    with service.stopped_by_signals(lambda: stopped.append(True)):
        frames = config.open_source(source)
        speaks, address = config.destination(to)
        with progress(frames.announced_frames, "sent", hidden=as_json) as advance:
            sent = relay.simulate(
                frames,
                speaks,
                address,
                socket=socket,
                bind=not connect,
                rate=rate,
                wait_s=wait,
                stop=lambda: bool(stopped),
                progress=lambda _: advance(),
            )
    if as_json:
        print_json({"messages": sent.messages, "frames": sent.frames, "seconds": round(sent.seconds, 3)})
    else:
        out.print(f"sent {sent.frames} frames in {sent.messages} messages, {sent.seconds:.1f} s")


@app.command(cls=NamesFormats)
def record(
    source: Source,
    file: Annotated[Path, typer.Argument(help="The recording to write (.wire); never overwritten.")],
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Stop after so long.")] = None,
    messages: Annotated[int | None, typer.Option(min=1, help="Stop after so many messages.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write down what comes over the wire, byte for byte, to be played again as a source."""
    from streamer import config, relay, service

    log_to_stderr(as_json=as_json)
    stopped: list[bool] = []
    with (
        service.stopped_by_signals(lambda: stopped.append(True)),
        progress(messages, "recorded", hidden=as_json) as advance,
    ):
        written = relay.record(
            config.open_source(source),
            file,
            seconds=seconds,
            messages=messages,
            stop=lambda: bool(stopped),
            progress=lambda _: advance(),
        )
    if as_json:
        print_json({"file": str(file), "messages": written.messages, "bytes": written.nbytes})
    else:
        out.print(f"{file}: {written.messages} messages, {written.nbytes / 1e6:.1f} MB")


To = Annotated[
    list[str],
    typer.Option(
        help="tcp://HOST:PORT or ipc://PATH, once per reader; messages go there as they came, in the same format."
        " Options: ?socket=push|pub&when_full=skip|wait&queue=100&queue_MB=256&connect=false&repeat_start=true"
    ),
]


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A recording (.wire), or messages captured one per file.")],
    to: To,
    rate: Annotated[str, typer.Option(help="real keeps the recorded times; max; or messages per second.")] = "real",
    begin: Annotated[float, typer.Option(min=0.0, help="Where to begin, in recorded seconds.")] = 0.0,
    end: Annotated[float | None, typer.Option(min=0.0, help="Where to end, in recorded seconds.")] = None,
    loop: Annotated[int, typer.Option(min=0, help="How many times, 0 for ever; series ids come again.")] = 1,
    wait: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for readers.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Send a recording again, byte for byte and with its own timing, to one reader or several."""
    from streamer import relay, service

    log_to_stderr(as_json=as_json)
    stopped: list[bool] = []
    with service.stopped_by_signals(lambda: stopped.append(True)):
        ended = relay.replay(
            file,
            to,
            rate=_rate(rate),
            begin_s=begin,
            end_s=end,
            loop=loop,
            wait_s=wait,
            stop=lambda: bool(stopped),
            on_status=_tell_as_json if as_json else _tell,
        )
    _print_relayed(ended, as_json=as_json)


@app.command(cls=NamesFormats)
def relay(
    source: Source,
    to: To,
    as_json: AsJson = False,
) -> None:
    """Pass a detector's stream on to several readers, undecoded: a viewer then takes no frames from the analysis."""
    from streamer import config, service
    from streamer import relay as door

    log_to_stderr(as_json=as_json)
    stopped: list[bool] = []
    with service.stopped_by_signals(lambda: stopped.append(True)):
        ended = door.relay(
            config.open_source(source),
            to,
            stop=lambda: bool(stopped),
            on_status=_tell_as_json if as_json else _tell,
        )
    _print_relayed(ended, as_json=as_json)


@app.command()
def watch(
    address: Annotated[str, typer.Argument(help="What the service publishes on.")] = "tcp://127.0.0.1:5556",
    seconds: Annotated[float, typer.Option(min=0.0, help="Stop after so long; 0 for never.")] = 0.0,
    steal: Annotated[bool, typer.Option("--steal", help="Read a detector's PUSH socket itself.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a running service: rates, the ledger, curves, alarms."""
    from streamer import service
    from streamer import watch as onlooker
    from streamer.outputs.terminal import Terminal

    log_to_stderr(as_json=as_json, quiet=True)
    view = JsonLines() if as_json else Terminal()
    stopped: list[bool] = []
    with service.stopped_by_signals(lambda: stopped.append(True)):
        if "+" in address.partition(":")[0] or not address.startswith(("tcp:", "ipc:")):
            onlooker.look_at_source(address, view, steal=steal, seconds=seconds, stop=lambda: bool(stopped))
        else:
            onlooker.look_at_service(address, view, seconds=seconds, stop=lambda: bool(stopped))


@app.command()
def commission(
    analysis: Annotated[Literal["saxs"], typer.Argument(help="The question whose normal is learned.")],
    source: Source,
    frames: Annotated[int, typer.Option(min=20, help="How many frames of the sample in order.")] = 300,
    alpha: Annotated[float, typer.Option(help="Share of false alarms among single frames that is asked for.")] = 5e-5,
    file: Annotated[Path | None, typer.Option("--out", help="Where it is written; beside the model's card.")] = None,
    poni: Annotated[Path | None, typer.Option(help="pyFAI geometry.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Pixels not to be used: .npy or an image file.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="Any key of its table: --set bins=500.")] = None,
    as_json: AsJson = False,
) -> None:
    """Learn what is normal from your own frames: reference, noise, limits for the false alarms you can bear."""
    from streamer import commission as learning
    from streamer.reduce.commissioned import write_commissioned

    log_to_stderr(as_json=as_json, quiet=True)
    options: dict[str, Any] = {"poni": poni, "mask": mask, **_settings(option or [])}
    given = {key: value for key, value in options.items() if value is not None}
    learned = learning.commission(source, frames=frames, alpha=alpha, **given)
    path = file or learning.default_path(str(given.get("model", analysis)))
    write_commissioned(path, learned.what)
    limit, what = learned.limit, learned.what
    if as_json:
        print_json(
            {"file": str(path), "frames": learned.frames, "noise": what.reference.noise, "stability": what.stability}
            | {"alpha": alpha, "novelty": limit.score, "is_extrapolated": limit.is_extrapolated}
            | {"frames_needed": limit.frames_needed, "changed": learned.changed}
        )
        return
    out.print(f'{path}: commissioned = "{path}" in [analyse.{analysis}] uses it')
    out.print(
        f"  {learned.frames} frames; they scatter {what.reference.noise:.2f} times their σ, "
        f"the flux by {what.stability:.2%}"
    )
    reach = f"extrapolated: {limit.frames_needed} frames would measure it" if limit.is_extrapolated else "measured"
    out.print(f"  one false alarm in {1 / alpha:.0f} frames: novelty > {-math.log10(alpha):.2f} ({reach})")
    if learned.changed > 1:
        err.print("  these frames change as they go: take them from a sample in order", style="bold yellow")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that are installed, what they answer and how well."""
    from streamer import infer

    log_to_stderr(as_json=as_json, quiet=True)
    cards = [(folder, infer.read_card(folder)) for folder in infer.list_models()]
    if as_json:
        for folder, card in cards:
            print_json(
                {"name": card.name, "version": card.version, "question": card.question, "folder": str(folder)}
                | {"metrics": card.metrics, "limits": list(card.limits)}
            )
        return
    table = Table("model", "version", "question", "says", "measured", title="Installed models", title_justify="left")
    for _, card in cards:
        numbers = {name: value for name, value in card.metrics.items() if isinstance(value, int | float)}
        numbers = {name: value for name, value in numbers.items() if not re.match("seed|n_", name)}
        measured = "\n".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items())
        table.add_row(card.name, card.version, card.question, "\n".join(card.outputs), measured)
    out.print(table, soft_wrap=False)
    for _, card in cards:
        for sentence in card.limits:
            out.print(f"  {card.name}: {sentence}", soft_wrap=False)


@app.command()
def doctor(
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure what rate it can hold, in less than a minute.")
    ] = False,
    detector: Annotated[
        Literal["128k", "500k", "1M", "4M"], typer.Option(help="For --bench: size of the simulated detector.")
    ] = "4M",
    poni: Annotated[Path | None, typer.Option(help="For --bench: your pyFAI geometry instead.")] = None,
    mask: Annotated[Path | None, typer.Option(help="For --bench: pixels not to be used.")] = None,
    shape: Annotated[str, typer.Option(help="For --bench: ROWSxCOLUMNS, where the .poni does not say.")] = "",
    device: Annotated[Device, typer.Option(help="For --bench: where models run.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Look at this machine and say what would keep streamer from running well on it."""
    from streamer import doctor as examination

    log_to_stderr(as_json=as_json, quiet=True)
    if bench:
        found = examination.measure(detector, poni=poni, mask=mask, shape=shape, device=device)
        if as_json:
            print_json(found.plain())
        else:
            out.print("\n".join(found.sentences()))
        return
    signs = {"ok": "✓", "note": "!", "bad": "✗"}
    is_bad = False
    for finding in examination.examine():
        is_bad |= finding.state == "bad"
        if as_json:
            print_json({"what": finding.what, "state": finding.state, "text": finding.text})
        else:
            out.print(f"{signs[finding.state]} {finding.what:<18} {finding.text}")
    raise typer.Exit(1 if is_bad else 0)


def _rate(text: str) -> Literal["real", "max"] | float:
    if text == "real":
        return "real"
    if text == "max":
        return "max"
    try:
        return float(text)
    except ValueError as error:
        raise BadConfig(f"--rate {text}: expected real, max, or messages per second") from error


def _tell(status: Relayed) -> None:
    """How a relay is doing, in one line of the log."""
    lanes = {
        one.address: f"{one.sent} sent, {one.dropped} dropped, {one.unheard} unheard, {one.waiting} waiting"
        for one in status.destinations
    }
    rates = {"per_second": round(status.per_second, 1), "MB_per_s": round(status.MB_per_s, 1)}
    structlog.get_logger("streamer.relay").info("relaying", received=status.messages, **rates, **lanes)


def _tell_as_json(status: Relayed) -> None:
    print_json({"status": status.plain()})


def _print_relayed(ended: Relayed, *, as_json: bool) -> None:
    """What became of every message, a destination at a time: the sum that must hold."""
    if as_json:
        print_json(ended.plain())
    else:
        _print_lanes(ended)
    if ended.unaccounted:
        raise typer.Exit(1)


def _print_lanes(ended: Relayed) -> None:
    connection = "".join(f", {count} × {name}" for name, count in ended.connection.items() if count)
    out.print(
        f"received {ended.messages} messages ({ended.images} images), {ended.nbytes / 1e6:.1f} MB, from {ended.source}"
        f" in {ended.seconds:.1f} s{connection}"
    )
    for one in ended.destinations:
        terms = " + ".join(f"{getattr(one, name)} {name}" for name in ("sent", "dropped", "unheard", "waiting"))
        out.print(f"  {one.socket} {one.address}: {one.received} = {terms}")


def _settings(options: list[str]) -> dict[str, Any]:
    """KEY=VALUE with the value written as in a beamline file; a bare word is text."""
    settings = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise BadConfig(f"--set {option}: expected KEY=VALUE, e.g. --set bins=500")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return settings


def _rules(alarms: list[str]) -> dict[str, dict[str, Any]]:
    """'saxs.anomaly > 0.9' as the table of an alarm named after what it watches."""
    rules = {}
    for text in alarms:
        found = re.fullmatch(r"\s*([\w.]+)\s*([<>])\s*([-+.\deE]+)\s*", text)
        if found is None:
            raise BadConfig(f"--alarm '{text}': expected ANALYSIS.QUANTITY > LIMIT, e.g. --alarm 'saxs.anomaly > 0.9'")
        watch, side, limit = found.groups()
        rules[watch.replace(".", "_")] = {"watch": watch, "above" if side == ">" else "below": json.loads(limit)}
    return rules


if __name__ == "__main__":
    main()
