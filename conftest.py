"""What the examples in docstrings find: the package, and an empty folder to write into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import eqdeploy


@pytest.fixture(autouse=True)
def surroundings_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if not isinstance(request.node, pytest.DoctestItem):
        return
    doctest_namespace["eqdeploy"] = eqdeploy
    folder: Path = request.getfixturevalue("tmp_path")
    request.getfixturevalue("monkeypatch").chdir(folder)
