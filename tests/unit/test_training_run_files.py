"""The folder of a training belongs to one run at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eqdeploy.errors import OutputError
from eqdeploy.training.run_files import RunFiles
from tests.unit.training_support import ROOT

HOLDER = """
import sys
from pathlib import Path
from eqdeploy.training.run_files import RunFiles
with RunFiles.of(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(OutputError, match="one: another training writes here"), RunFiles.of(folder).locked():
        pass
    with RunFiles.of(tmp_path / "runs" / "other").locked():
        pass
    holder.kill()  # no chance to clean up
    holder.wait(timeout=60)
    holder.stdin.close()
    holder.stdout.close()
    with RunFiles.of(folder).locked():
        assert list(folder.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "new" / "inner"):
        with RunFiles.of(folder).locked():
            assert folder.is_dir()
    assert (tmp_path / "there").is_dir()
    assert not (tmp_path / "new").exists()
    with RunFiles.of(tmp_path / "new" / "inner").locked():
        (tmp_path / "new" / "inner" / "log").touch()
    assert (tmp_path / "new" / "inner" / "log").exists()
