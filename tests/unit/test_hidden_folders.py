"""What a killed process left behind is removed by the next one; what a living one works in is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eqdeploy.artifact import write_artifact
from eqdeploy.hidden_folders import hidden_folder, remove_abandoned

PREFIX = ".p.partial-"

WORKS_UNTIL_KILLED = f"""
import sys, time
from pathlib import Path
from eqdeploy.hidden_folders import hidden_folder
with hidden_folder(Path(sys.argv[1]), "{PREFIX}") as folder:
    (folder / "half").write_text("written")
    print(folder, flush=True)
    time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no locks on folders")


def work(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that works in a hidden folder, and the folder."""
    process = subprocess.Popen([sys.executable, "-c", WORKS_UNTIL_KILLED, parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_removed_when_its_owner_is_dead_and_not_before(tmp_path: Path) -> None:
    process, folder = work(tmp_path)
    with process:
        remove_abandoned(tmp_path, PREFIX)
        assert (folder / "half").is_file()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert (folder / "half").is_file()
    (tmp_path / ".p.partial-file").touch()
    (tmp_path / ".q.partial-other").mkdir()
    (tmp_path / ".p.partial-link").symlink_to(tmp_path / ".q.partial-other", target_is_directory=True)
    with write_artifact(tmp_path / "p") as own:
        assert not folder.exists()
        remove_abandoned(tmp_path, PREFIX)  # nor by its own process
        assert own.is_dir()
        (own / "model").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".p.partial-file",
        ".p.partial-link",
        ".q.partial-other",
        "p",
    ]


def test_a_folder_that_was_taken_for_abandoned_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[..., str] = tempfile.mkdtemp
    made: list[str] = []

    def make_and_lose_the_first(**arguments: Any) -> str:
        made.append(make(**arguments))
        if len(made) == 1:
            remove_abandoned(tmp_path, PREFIX)
            assert not Path(made[0]).exists()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose_the_first)
    with hidden_folder(tmp_path, PREFIX) as folder:
        assert folder.is_dir()
        assert [str(folder)] == made[1:]
