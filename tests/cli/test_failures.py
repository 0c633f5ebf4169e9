"""Every failure is one line on standard error with an exit code of its own; a traceback only on request."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eqdeploy import errors, inspection
from eqdeploy.cli.entry import run
from eqdeploy.cli.failures import explain

Run = Callable[..., subprocess.CompletedProcess[str]]


def assert_one_line(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--help",)),
        (("exprot",), ("'exprot'", "'export'")),
        (("profiles",), ("list, show or validate",)),
        (("profiles", "lits"), ("'lits'", "'list'")),
        (("export", "--profil", "x"), ("--profil", "--profile")),
        (("export", "--profile"), ("--profile",)),
        (("export", "stray"), ("stray",)),
        (("export",), ("--profile", "eqdeploy profiles list")),
        (("export", "--profile", "x", "--min-accuracy", "95"), ("--min-accuracy", "95", "0.95")),
        (("export", "--profile", "x", "--max-drop", "nan"), ("--max-drop", "nan")),
        (("export", "--profile", "x", "--seed", "-1"), ("--seed",)),
        (("export", "--profile", "x", "--seed", str(1 << 63)), ("--seed",)),
        (("export", "--profile", "x", "--seed", "9" * 5000), ("--seed", "2^63 - 1")),
        (("export", "--profile", "x", "--supernet", ""), ("--supernet: is empty",)),
        (("eval", "nowhere.onnx"), ("nowhere.onnx: no such file",)),
        (("eval", "/dev/null"), ("is not a plain file",)),
        (("validate",), ("DIR",)),
        (("inspect", "nowhere.onnx"), ("nowhere.onnx", "No such file")),
        (("inspect", "."), ("folder",)),
    ],
)
def test_usage_errors(eqdeploy: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_line(eqdeploy(*arguments), 2, *words)


def test_a_wrong_project_file_stops_every_command_that_reads_it(eqdeploy: Run, tmp_path: Path) -> None:
    (tmp_path / "eqdeploy.yaml").write_text("data: digits\nprofile: snpe-dsp\n")
    assert_one_line(eqdeploy("export"), 10, "eqdeploy.yaml:2", "'profile'", "'profiles'")


@pytest.mark.parametrize(
    "arguments", [("--debug", "inspect", "x"), ("inspect", "--debug", "x"), ("inspect", "x", "--debug")]
)
def test_debug_shows_the_traceback_wherever_it_stands(eqdeploy: Run, arguments: tuple[str, ...]) -> None:
    done = eqdeploy(*arguments)
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("error: x: No such file or directory")


def test_file_names_cannot_drive_the_terminal(eqdeploy: Run) -> None:
    done = eqdeploy("inspect", "a\x1b[2J\nerror: b")
    assert_one_line(done, 2, r"\x1b[2J")


def test_an_unexpected_error_is_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(inspection, "inspect_file", fail)
    assert run(["inspect", "x"]) == 70
    captured = capsys.readouterr()
    assert captured.err.startswith("error: internal error: ZeroDivisionError: two lines (")
    assert captured.err.count("\n") == 1
    assert "--debug" in captured.err
    assert run(["inspect", "x", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "inspect_file", interrupt)
    assert run(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(errno.ENOSPC, 41), (errno.EROFS, 41), (errno.EACCES, 41), (errno.ENOENT, 2), (errno.ENOTDIR, 2)],
)
def test_errors_of_the_file_system(code: int, exit_code: int) -> None:
    failure = explain(OSError(code, os.strerror(code), "out/model.onnx"))
    assert failure.exit_code == exit_code
    assert failure.line == f"error: out/model.onnx: {os.strerror(code)}"


def test_exit_codes_are_distinct() -> None:
    classes = errors.EqDeployError.__subclasses__()
    codes = [one.exit_code for one in classes]
    assert len(set(codes)) == len(codes) > 10
    assert not set(codes) & {0, 1, 70, 130, 141, 143}
    for one in classes:
        failure = explain(one("message", where="where", hint="hint"))
        assert (failure.exit_code, failure.line) == (one.exit_code, "error: where: message (hint)")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [(), ("--json", "-")])
def test_a_full_output_is_reported(
    environment: dict[str, str], tmp_path: Path, unbuffered: str, arguments: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "eqdeploy", "profiles", "list", *arguments],
            cwd=tmp_path, env={**environment, "PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 41
    assert done.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error_message(
    environment: dict[str, str], tmp_path: Path, unbuffered: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "eqdeploy", "profiles", "list"],
        cwd=tmp_path, env={**environment, "PYTHONUNBUFFERED": unbuffered},
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_termination_signal_leaves_nothing_half_written(environment: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from eqdeploy import inspection\n"
        "from eqdeploy.artifact import write_artifact\n"
        "def slow(path):\n"
        "    with write_artifact(Path('build/x')) as folder:\n"
        "        (folder / 'model.onnx').write_bytes(b'half')\n"
        "        print('ready', file=sys.stderr, flush=True)\n"
        "        time.sleep(60)\n"
        "inspection.inspect_file = slow\n"
        "sys.argv = ['eqdeploy', 'inspect', 'x']\n"
        "from eqdeploy.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr as lines:
        assert lines.readline() == "ready\n"
        assert list(tmp_path.rglob("model.onnx"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert "Traceback" not in lines.read()
    assert list(tmp_path.iterdir()) == []


def test_json_document_on_a_usage_error(eqdeploy: Run) -> None:
    for arguments in (("nonsense", "--json", "-"), ("--json=-", "nonsense")):
        done = eqdeploy(*arguments)
        document = json.loads(done.stdout)
        assert done.returncode == document["exit_code"] == 2
        assert document["schema_version"] == 1
        assert document["error"]["type"] == "UsageError"
        assert "nonsense" in document["error"]["message"]
        assert done.stderr.count("\n") == 1


def test_json_document_on_an_error_of_the_library(eqdeploy: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 7 + b"\x7f{")
    done = eqdeploy("inspect", broken, "--json", "-")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == 11
    assert document["command"] == "inspect"
    assert document["error"]["type"] == "CheckpointError"
    assert document["error"]["where"] == str(broken)
    assert "result" not in document


def test_json_file_that_cannot_be_written(eqdeploy: Run, tmp_path: Path) -> None:
    document = tmp_path / "a.json"
    document.write_text("{}")
    assert_one_line(eqdeploy("inspect", document, "--json", tmp_path / "missing" / "out.json"), 41, "out.json")
    assert_one_line(eqdeploy("inspect", document, "--json", tmp_path), 41, "Is a directory")
    # Two failures are still one line, and the exit code is that of the first.
    assert_one_line(eqdeploy("inspect", "nowhere", "--json", tmp_path), 2, "nowhere", "Is a directory")
