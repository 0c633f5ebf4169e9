"""What the limits of a command are, and that the system keeps to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.cli.failures import explain
from eqdeploy.cli.limits import (
    DEFAULT_SECONDS,
    MEMORY_VARIABLE,
    TIME_VARIABLE,
    Limits,
    command_limits,
    machine_memory,
)
from eqdeploy.errors import DataError, LimitError, UsageError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * GIB), ("1.5 G", 3 << 29), ("800MiB", 800 << 20), ("4096", 4096), ("2tb", 2 << 40), ("none", None)],
)
def test_the_environment_sets_the_memory(text: str, size: int | None) -> None:
    for files in (None, ("no file",)):
        assert command_limits({MEMORY_VARIABLE: text}, 8 * GIB, files).memory == size


@pytest.mark.parametrize("text", ["much", "-1", "0", "0MiB", "1e9", "4GiBs", "nan", "9" * 5000])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=MEMORY_VARIABLE):
        command_limits({MEMORY_VARIABLE: text}, None, None)


@pytest.mark.parametrize(("text", "seconds"), [("2.5", 2.5), ("none", None), ("", DEFAULT_SECONDS)])
def test_the_environment_sets_the_time(text: str, seconds: float | None) -> None:
    assert command_limits({TIME_VARIABLE: text}, None, None) == Limits(None, seconds)


@pytest.mark.parametrize("text", ["-1", "0", "inf", "1m", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match=TIME_VARIABLE):
        command_limits({TIME_VARIABLE: text}, None, None)


@given(st.integers(1, 1 << 44), st.integers(0, 100))
def test_foreign_files_get_no_more_than_the_users_own(total: int, size: int) -> None:
    own, foreign = command_limits({}, total, None).memory, command_limits({}, total, []).memory
    assert own is not None
    assert foreign is not None
    assert foreign <= own < total or total == 1
    assert foreign >= min(own, 4 * GIB)


def test_memory_grows_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, size in (("a", GIB), ("inner/b", 2 * GIB)):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(size)
    start = command_limits({}, 64 * GIB, ["no file", "digits", "\0"]).memory
    assert start == 16 * GIB
    assert command_limits({}, 64 * GIB, [tmp_path / "a"]).memory == 24 * GIB
    assert command_limits({}, 64 * GIB, [tmp_path / "a", str(tmp_path / "inner")]).memory == 40 * GIB
    assert command_limits({}, 64 * GIB, [tmp_path] * 9).memory == 48 * GIB  # three quarters


def test_the_memory_of_this_machine_is_known() -> None:
    total = machine_memory()
    assert total is not None
    assert total > 1 << 28


def test_the_system_refuses_more_memory() -> None:
    program = (
        "from eqdeploy.cli.limits import bound_memory\n"
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (900 << 20, resource.RLIM_INFINITY))\n"
        "assert bound_memory(300 << 20)\n"
        "kept = bytearray(100 << 20)\n"
        "try:\n    bytearray(250 << 20)\n"
        "except MemoryError:\n    print('refused')\n"
        "assert bound_memory(800 << 20)\n"  # a limit that is lower already stays
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.stdout) == ("", "refused\n300\n")


def test_want_of_memory_is_told_as_such_wherever_it_comes_from() -> None:
    for text in ("std::bad_alloc", "DefaultCPUAllocator: can't allocate memory: you tried", "Unable to allocate 3 GiB"):
        outer = DataError("not a readable archive", where="x.npz")
        outer.__cause__ = RuntimeError(text)
        failure = explain(outer, 300 << 20)
        assert failure.exit_code == LimitError.exit_code
        assert failure.line.startswith("error: x.npz: needs more memory than the limit of 300 MiB (EQDEPLOY_MEMORY_LIM")
        assert explain(outer, None).exit_code == DataError.exit_code
    assert explain(MemoryError(), 1 << 30).exit_code == LimitError.exit_code
    assert explain(DataError("holds no images"), 1 << 30).exit_code == DataError.exit_code
