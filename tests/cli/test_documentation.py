"""``docs/command-line.md`` says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from eqdeploy.cli import failures
from eqdeploy.errors import EqDeployError
from eqdeploy.project import ProjectSettings, load_project

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")


def test_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w*) ?\|", TEXT, flags=re.MULTILINE)
    documented = {(int(code), name) for code, name in rows}
    expected = {(error.exit_code, error.__name__) for error in EqDeployError.__subclasses__()}
    expected |= {
        (0, ""),
        (failures.INTERNAL_ERROR, "InternalError"),
        (failures.INTERRUPTED, "Interrupted"),
        (failures.BROKEN_PIPE, ""),
        (failures.TERMINATED, ""),
    }
    assert documented == expected


def test_keys_of_the_project_file() -> None:
    keys = set(re.findall(r"^\| `-.*?` \| `(\w+)` \|", TEXT, flags=re.MULTILINE))
    assert keys == set(ProjectSettings.model_fields)


def test_the_example_is_a_valid_project_file(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    assert example is not None
    (tmp_path / "eqdeploy.yaml").write_text(example.group(1))
    settings = load_project(tmp_path)
    assert all(value not in (None, ()) for value in settings.model_dump().values())
