"""The one place where errors become a line and an exit code, and answers become text or JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from eqdeploy.cli.endings import exit_code_of, failure_of
from eqdeploy.cli.failures import BROKEN_PIPE, INTERRUPTED, TERMINATED, Failure, explain
from eqdeploy.cli.progress import is_terminal
from eqdeploy.cli.session import Answer, Session
from eqdeploy.cli.signs_of_life import SignsOfLife
from eqdeploy.cli.spinning import bound_spinning
from eqdeploy.cli.supervisor import Ending, can_supervise, raise_once, supervise
from eqdeploy.errors import OutputError, ReportedError

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1

#: Width of tables that nobody watches: wide enough to keep a row on a line.
_FILE_WIDTH = 1000

#: Shows the cursor again and empties its line, which a process that was killed may have left to a bar.
_FREE_LINE = "\x1b[?25h\r\x1b[K"


def main() -> NoReturn:
    """Run the command line and exit."""
    bound_spinning(os.environ)
    sys.stdout, sys.stderr = _usable(sys.stdout), _usable(sys.stderr)
    arguments = sys.argv[1:]
    if not can_supervise():
        sys.exit(_work(arguments, None))
    sys.exit(_tell(arguments, supervise(lambda signs: _work(arguments, signs))))


def _work(arguments: Sequence[str], signs: SignsOfLife | None) -> int:
    """Run one command in a process of its own."""
    raise_once(signal.SIGTERM, SystemExit(TERMINATED))  # as at an error, so that nothing half-written is left
    raise_once(signal.SIGINT, KeyboardInterrupt())
    return run(arguments, signs)


def _tell(arguments: Sequence[str], ending: Ending) -> int:
    """Tell how the process ended that ran the command, where it could not do so itself.

    Returns:
        The exit code.
    """
    failure = failure_of(ending)
    if failure is None:
        return exit_code_of(ending)
    if is_terminal(sys.stderr.isatty()):
        sys.stderr.write(_FREE_LINE)
    session = Session.of(arguments)
    session.command = ending.command
    return _fail(session, failure)


def run(arguments: Sequence[str], signs: SignsOfLife | None = None) -> int:
    """Run one command.

    Args:
        arguments: Arguments of the program, without its name.
        signs: What the process that watches this one is told, None if there is none.

    Returns:
        The exit code.
    """
    session = Session.of(arguments)
    session.signs = signs
    try:
        return _run(list(arguments), session)
    except BrokenPipeError:
        _discard_output()  # the reader has gone
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:  # the boundary: no traceback reaches a user who did not ask
        if session.debug:
            traceback.print_exc()
        if isinstance(error, ReportedError):
            return error.exit_code
        if signs is not None:  # a launcher ends all its processes when one has failed: not in the middle of the message
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _fail(session, explain(error, session.memory))


def _run(arguments: list[str], session: Session) -> int:
    """Run one command and show its answer; errors are left to the caller."""
    from eqdeploy.cli.application import application

    answer = application(arguments, prog_name="eqdeploy", standalone_mode=False, obj=session)
    if answer == INTERRUPTED:  # typer swallows the exception
        raise KeyboardInterrupt
    if not isinstance(answer, Answer):
        return answer if isinstance(answer, int) else 0
    failure = explain(answer.failure, session.memory) if answer.failure is not None else None
    try:
        _write_document(session, failure, answer.result)
        if session.json_target != "-":
            _print(answer.view())
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        session.json_target = None  # what failed once is not tried again
        where = error.filename or "standard output"
        if error.filename is None:
            _discard_output()
        raise OutputError(error.strerror or "cannot be written to", where=str(where)) from error
    if failure is None:
        return 0
    sys.stderr.write(failure.line + "\n")
    return failure.exit_code


def _fail(session: Session, failure: Failure) -> int:
    """Show a failure that left no answer."""
    line = failure.line
    if session.json_target is not None:
        try:
            _write_document(session, failure, None)
            sys.stdout.flush()
        except OSError as error:
            if error.filename is None:
                _discard_output()
            line += f"; and {explain(error).line.removeprefix('error: ')}"
    sys.stderr.write(line + "\n")
    return failure.exit_code


def _write_document(session: Session, failure: Failure | None, result: Any) -> None:
    """Write the JSON document if one was asked for.

    Raises:
        OSError: If it cannot be written.
    """
    if session.json_target is None:
        return
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": session.command,
        "exit_code": failure.exit_code if failure is not None else 0,
    }
    if failure is not None:
        document["error"] = failure.to_json()
    if result is not None:
        document["result"] = result
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if session.json_target == "-":
        sys.stdout.write(text)
    else:
        Path(session.json_target).write_text(text, encoding="utf-8")


def _print(view: RenderableType) -> None:
    """Print to standard output; with colours only where a person watches."""
    from rich.console import Console

    if is_terminal(sys.stdout.isatty()) and not os.environ.get("NO_COLOR"):
        Console(markup=False, highlight=False, emoji=False).print(view, crop=False)
        return
    console = Console(
        width=_FILE_WIDTH, force_terminal=False, no_color=True, markup=False, highlight=False, emoji=False
    )
    with console.capture() as capture:
        console.print(view)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def _discard_output() -> None:
    """Keep the interpreter from complaining about an output that failed, when it flushes what is left of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usable(stream: TextIO | None) -> TextIO:
    """Make a standard stream accept any text: it may be closed, or of an encoding that lacks a letter."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
