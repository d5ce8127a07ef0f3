"""What every test may ask for: real data, third-party testers, free ports."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped for any reason but a missing GPU."""
    if report.skipped and "gpu" not in report.keywords:
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A whole file may be skipped, too."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is at hand, a skip is a defect."""
    if os.environ.get("CI") and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write(f"\nskipped in CI, where nothing but the GPU may be: {', '.join(_skipped)}\n")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; skips where it is not there."""
    folder = Path(os.environ.get("STREAMER_REALDATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("real data not found: set STREAMER_REALDATA")
    return folder


@pytest.fixture(scope="session")
def peers_python() -> Path:
    """The interpreter of the environment with other people's simulators; skips where it was not made."""
    environment = Path(os.environ.get("STREAMER_PEERS") or ROOT / ".venv-peers")
    python = environment / "bin" / "python"
    if not python.exists():
        pytest.skip("third-party testers not installed: run ./tools/test, which makes .venv-peers")
    return python


@pytest.fixture(scope="session")
def tickit_data(peers_python: Path) -> Path:
    """Messages captured from a real EIGER2 16M, as shipped in tickit-devices."""
    found = sorted(peers_python.parent.parent.glob("lib/python*/site-packages/tickit_devices/eiger/data"))
    if not found:
        pytest.skip("tickit-devices not installed in .venv-peers: run ./tools/test")
    return found[0]


@pytest.fixture
def free_port() -> int:
    """A TCP port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter that runs the tests, for tests that start the program as users do."""
    return sys.executable
