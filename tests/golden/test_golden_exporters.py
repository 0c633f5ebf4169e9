"""The exporters write the very files that were reviewed and committed.

When a format changes on purpose: ``python -m tests.golden.bless_exporters``, then review the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eqdeploy.exporters.contract import check_round_trip, get_exporter
from tests.golden.bless_exporters import FOLDER, OPTIONS, golden_model, written_files


@pytest.mark.parametrize("exporter", OPTIONS)
def test_files_are_the_golden_ones(exporter: str, tmp_path: Path) -> None:
    contents = written_files(exporter, tmp_path)
    golden = {
        path.relative_to(FOLDER / exporter).as_posix(): path.read_bytes()
        for path in (FOLDER / exporter).rglob("*")
        if path.is_file()
    }
    assert sorted(contents) == sorted(golden)
    for name, content in contents.items():
        assert content == golden[name], f"{exporter}: {name} changed; see the docstring of this file"


@pytest.mark.parametrize("exporter", OPTIONS)
def test_files_of_the_past_can_still_be_read(exporter: str) -> None:
    check_round_trip(golden_model(exporter), get_exporter(exporter).read(FOLDER / exporter))
