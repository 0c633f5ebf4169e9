"""Results go to standard output, everything else to standard error; colours only where a person watches."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eqdeploy.cli.progress import LiveProgress, PlainProgress, make_progress
from eqdeploy.cli.session import Answer, Session
from eqdeploy.progress import SilentProgress

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_json_takes_the_place_of_the_text(eqdeploy: Run) -> None:
    done = eqdeploy("profiles", "list", "--json", "-")
    document = json.loads(done.stdout)
    assert list(document) == ["schema_version", "command", "exit_code", "result"]
    assert (document["schema_version"], document["command"], document["exit_code"]) == (1, "profiles list", 0)
    assert "snpe-dsp" in [row["name"] for row in document["result"]]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments", [("--json", "out.json", "profiles", "list"), ("profiles", "list", "--json=out.json")]
)
def test_json_in_a_file_comes_besides_the_text(eqdeploy: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = eqdeploy(*arguments)
    assert done.stdout == eqdeploy("profiles", "list").stdout
    assert json.loads((tmp_path / "out.json").read_text())["exit_code"] == 0


def test_a_failure_is_written_to_the_file_too(eqdeploy: Run, tmp_path: Path) -> None:
    assert eqdeploy("profiles", "show", "nonsense", "--json", "out.json").returncode == 10
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["exit_code"], document["error"]["type"]) == (10, "ProfileError")


def test_lines_are_not_wrapped_padded_or_coloured_in_a_file(eqdeploy: Run) -> None:
    text = eqdeploy("profiles", "list", variables={"FORCE_COLOR": "1", "COLUMNS": "40"}).stdout
    lines = text.splitlines()
    assert "\x1b" not in text
    assert lines[0].split() == ["name", "device", "description"]
    assert all(line == line.rstrip() for line in lines)
    assert any(len(line) > 80 for line in lines)


def watched(arguments: list[str], environment: dict[str, str], folder: Path) -> str:
    """Output of the program in a terminal."""
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "eqdeploy", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=inner,
        stderr=inner,
    ) as process:
        os.close(inner)
        received = b""
        try:
            while chunk := os.read(outer, 65536):
                received += chunk
        except OSError:  # how Linux tells that the other side is closed
            pass
        assert process.wait(timeout=60) == 0
    os.close(outer)
    return received.decode()


def test_a_terminal_gets_styles_unless_they_are_unwanted(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "TERM": "xterm"}
    arguments = ["profiles", "list"]
    assert "\x1b[" in watched(arguments, environment, tmp_path)
    for unwanted in ({"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}):
        assert "\x1b[" not in watched(arguments, {**environment, **unwanted}, tmp_path)


def test_a_profile_shown_in_a_narrow_terminal_is_still_yaml(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "TERM": "xterm", "COLUMNS": "30"}
    shown = watched(["profiles", "show", "snpe-dsp"], environment, tmp_path).replace("\r\n", "\n")
    profile = tmp_path / "shown.yaml"
    profile.write_text(shown)
    command = [sys.executable, "-m", "eqdeploy", "profiles", "validate", str(profile)]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 0


def test_what_a_library_prints_never_reaches_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with Session().working() as progress:
        sys.stdout.write("chatter of a library\n")
        progress.note("a note")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "chatter of a library\na note\n"


def test_plain_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 42.5])
    monkeypatch.setattr("eqdeploy.cli.progress.time.monotonic", lambda: next(clock))
    progress = PlainProgress(verbose=False)
    with progress.stage("calibrating", total=100) as advance:
        advance(40)
        advance(10)
        advance(50)
    progress.detail("not shown")
    assert capsys.readouterr().err == "calibrating: 50 of 100\ncalibrating: 42.5 s\n"


def test_a_stage_that_fails_is_not_reported_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (PlainProgress(verbose=True), LiveProgress(verbose=True)):
        with pytest.raises(ValueError, match="x"), progress.stage("calibrating"):
            raise ValueError("x")
        assert " s\n" not in capsys.readouterr().err


def test_live_progress_nests_and_leaves_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LiveProgress(verbose=True)
    with progress.stage("outer [bold]", total=2) as advance:
        advance(1)
        with progress.stage("inner") as advance_inner:
            advance_inner(3)
            progress.detail("a detail")
        advance(1)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line.split(":")[0] for line in lines] == ["a detail", "inner", "outer [bold]"]


def test_quiet_means_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(quiet=True, verbose=True)
    assert isinstance(progress, SilentProgress)
    with progress.stage("calibrating", total=1) as advance:
        advance(1)
        progress.note("a note")
        progress.detail("a detail")
    assert capsys.readouterr() == ("", "")


def test_options_are_found_before_and_after_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from eqdeploy.cli.application import application

    document = tmp_path / "a.json"
    document.write_text("{}")
    for arguments in (["-q", "-v", "inspect", str(document)], ["inspect", "-qv", str(document)]):
        session = Session.of(arguments)
        answer = application(arguments, standalone_mode=False, obj=session)
        assert isinstance(answer, Answer)
        assert (session.quiet, session.verbose, session.debug, session.command) == (True, True, False, "inspect")
