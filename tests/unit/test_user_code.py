"""Functions of the user's own: whatever they do, eqdeploy says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eqdeploy.errors import DataError, UsageError
from eqdeploy.user_code import call, import_attribute


class _OwnError(Exception):
    """An exception that derives from no built-in one but ``Exception``."""


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("seven"), _OwnError("seven"), SystemExit("seven")])
def test_whatever_a_function_raises_is_reported(error: BaseException) -> None:
    with pytest.raises(UsageError, match=rf"mine:make: the factory raised {type(error).__name__}: seven"):
        call(_raise, error, where="mine:make", what="the factory")


def test_exiting_is_no_success() -> None:
    with pytest.raises(UsageError, match="the factory raised SystemExit: 0"):
        call(sys.exit, 0, where="mine:make", what="the factory")


def test_an_interrupt_and_our_own_errors_pass() -> None:
    with pytest.raises(KeyboardInterrupt):
        call(_raise, KeyboardInterrupt(), where="mine:make", what="the factory")
    with pytest.raises(DataError, match="no images"):
        call(_raise, DataError("no images"), where="mine:make", what="the factory")


def test_a_module_that_exits_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_that_exits.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="importing it raised SystemExit: 0"):
        import_attribute("module_that_exits:make")
