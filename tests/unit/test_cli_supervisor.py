"""One process works, another watches: signals, silence, crashes and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eqdeploy.cli.endings import failure_of
from eqdeploy.cli.supervisor import Cause, Ending
from eqdeploy.errors import CrashError, LimitError

ROOT = Path(__file__).resolve().parents[2]

#: Runs ``work`` under supervision; a child that is deaf blocks signals, as ONNX Runtime does for as long as it runs.
PROGRAM = """
import os, signal, sys, tempfile, time
from eqdeploy.cli import supervisor
from eqdeploy.cli.endings import exit_code_of, failure_of
from eqdeploy.cli.signs_of_life import ReportedProgress
from eqdeploy.cli.supervisor import raise_once, supervise
from eqdeploy.files import temporary_folder
from eqdeploy.progress import SilentProgress

supervisor.GRACE_SECONDS = {grace}

def deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])

def working(signs, seconds):
    signs.begin("test", seconds)
    return ReportedProgress(SilentProgress(), signs.give)

def work(signs):
    raise_once(signal.SIGTERM, SystemExit(143))
    raise_once(signal.SIGINT, KeyboardInterrupt())
    try:
        return {body}
    except KeyboardInterrupt:
        time.sleep(0.3)
        print("cleaned up", flush=True)
        return 130

def ready(value=0):
    print(os.getpid(), flush=True)
    return value

def sleep(seconds=60):
    time.sleep(seconds)
    return 0

ending = supervise(work)
failure = failure_of(ending)
print(failure.line if failure else "told", flush=True)
sys.exit(failure.exit_code if failure else exit_code_of(ending))
"""


@contextmanager
def started(body: str, *, grace: float = 20.0) -> Iterator[subprocess.Popen[str]]:
    """A supervised process that does what the expression says."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{body}", body).replace("{grace}", str(grace))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def outcome(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and lines of output."""
    text, _ = process.communicate(timeout=60)
    return process.returncode, text.splitlines()


def child_of(process: subprocess.Popen[str]) -> int:
    """Id of the child, which tells it as soon as it works."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def is_gone(process: int) -> bool:
    """Whether a process ends within seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("code", [0, 1, 22, 143])
def test_the_exit_code_comes_through(code: int) -> None:
    with started(str(code)) as process:
        assert outcome(process) == (code, ["told"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_parent_ends_a_child_that_listens(number: int, code: int) -> None:
    with started("ready() or sleep()") as process:
        child = child_of(process)
        process.send_signal(number)
        assert outcome(process) == (code, ["cleaned up", "told"] if number == signal.SIGINT else ["told"])
        assert is_gone(child)


def test_a_signal_to_both_is_followed_once() -> None:
    with started("ready() or sleep()") as process:
        child_of(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert outcome(process) == (130, ["cleaned up", "told"])


@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGINT, 130, "error: interrupted"), (signal.SIGTERM, 143, "told")]
)
def test_a_child_that_does_not_listen_is_killed(number: int, code: int, told: str) -> None:
    with started("deaf() or ready() or sleep()", grace=1000) as process:
        child = child_of(process)
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(number)  # who asks twice does not wait for the grace
        assert outcome(process) == (code, [told])
        assert is_gone(child)


def test_a_child_that_does_not_listen_is_killed_after_a_grace() -> None:
    with started("deaf() or ready() or sleep()", grace=0.5) as process:
        child = child_of(process)
        process.send_signal(signal.SIGTERM)
        assert outcome(process) == (143, ["told"])
        assert is_gone(child)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_child_outlives_its_parent(number: int) -> None:
    with started("deaf() or ready() or sleep()") as process:
        child = child_of(process)
        process.send_signal(number)
        process.wait(timeout=30)
        assert is_gone(child)


def test_a_silent_child_is_ended_with_the_stage_that_it_was_in() -> None:
    body = (
        "[(folder := temporary_folder()), print(folder.name), working(signs, 0.3).stage('running x').__enter__(),"
        " deaf(), sleep()]"
    )
    with started(body, grace=0.5) as process:
        code, lines = outcome(process)
    assert code == LimitError.exit_code
    assert lines[1:] == [
        "error: no progress for 0.3 seconds (running x) "
        "(EQDEPLOY_TIMEOUT sets the limit, e.g. EQDEPLOY_TIMEOUT=3600, or none)"
    ]
    assert "/eqdeploy-" in lines[0]
    assert not Path(lines[0]).exists()


def test_a_silent_child_that_listens_may_clean_up() -> None:
    body = "[working(signs, 0.3).note('begun'), working(signs, 0.3).stage('running x').__enter__(), sleep()]"
    with started(body) as process:
        assert outcome(process)[0] == LimitError.exit_code


def test_a_child_that_gets_on_is_not_ended() -> None:
    body = (
        "[(advance := working(signs, 1.5).stage('long', total=30).__enter__()),"
        " [advance(1) or sleep(0.1) for _ in range(30)]] and 7"
    )
    with started(body) as process:
        assert outcome(process) == (7, ["told"])


def test_a_child_without_a_limit_or_before_its_first_stage_is_not_ended() -> None:
    for body in (
        "[signs.begin('x', None), signs.give('x'), sleep(1.5)] and 7",
        "[signs.begin('x', 0.2), sleep(1.5)] and 7",
    ):
        with started(body) as process:
            assert outcome(process) == (7, ["told"])


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGSEGV, CrashError.exit_code),
        (signal.SIGABRT, CrashError.exit_code),
        (signal.SIGKILL, LimitError.exit_code),
    ],
)
def test_a_child_that_crashes_is_told(number: int, code: int) -> None:
    with started(f"os.kill(os.getpid(), {int(number)})") as process:
        found, lines = outcome(process)
    assert found == code
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_ctrl_c_stays_ignored_in_a_job_in_the_background_and_termination_does_not() -> None:
    ignored = (
        "import signal\nfor number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, signal.SIG_IGN)\n"
    )
    program = ignored + PROGRAM.replace("{body}", "ready() or sleep()").replace("{grace}", "20")
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        child_of(process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert outcome(process) == (143, ["told"])


def test_a_child_that_ended_by_itself_just_in_time_is_believed() -> None:
    ending = Ending(0, Cause.SILENT, None, "eval", "running x", 1.0)
    assert failure_of(ending) is None
