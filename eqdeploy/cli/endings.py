"""How the process that did the work ended, where it could not say so itself."""

from __future__ import annotations

import signal

from eqdeploy.cli.failures import RAISE_MEMORY, TERMINATED, Failure, explain
from eqdeploy.cli.limits import TIME_VARIABLE, UNLIMITED
from eqdeploy.cli.supervisor import Cause, Ending
from eqdeploy.errors import CrashError, LimitError

#: What shells add to the number of a signal that ended a process.
_SIGNALLED = 128

#: What a process ends with that follows a termination signal, with and without having caught it.
_TERMINATED = (TERMINATED, -signal.SIGTERM, -signal.SIGKILL)

#: Signals by which a process ends itself.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)


def failure_of(ending: Ending) -> Failure | None:
    """The failure that a process did not tell, None if it told, or there is nothing to tell.

    Args:
        ending: How the process ended.
    """
    if ending.cause is Cause.SILENT and ending.exit_code in _TERMINATED:
        doing = f" ({ending.stage})" if ending.stage else ""
        return explain(
            LimitError(
                f"no progress for {ending.seconds:g} seconds{doing}",
                hint=f"{TIME_VARIABLE} sets the limit, e.g. {TIME_VARIABLE}=3600, or {UNLIMITED}",
            )
        )
    if ending.cause is Cause.UNRESPONSIVE and ending.signal_number == signal.SIGINT:
        return explain(KeyboardInterrupt())
    if ending.signal_number is not None:
        return None
    if ending.exit_code == -signal.SIGKILL:
        return explain(LimitError("was killed, as the system does when its memory runs out", hint=RAISE_MEMORY))
    if -ending.exit_code in _CRASHES:
        name = signal.Signals(-ending.exit_code).name
        return explain(
            CrashError(f"a library crashed ({name})", hint="the file that was read is damaged, or asks for too much")
        )
    return None


def exit_code_of(ending: Ending) -> int:
    """The exit code of a process that has told what there was to tell, or was sent a signal.

    Args:
        ending: How the process ended.
    """
    if ending.cause is Cause.UNRESPONSIVE and ending.signal_number is not None:
        return _SIGNALLED + ending.signal_number
    return ending.exit_code if ending.exit_code >= 0 else _SIGNALLED - ending.exit_code
