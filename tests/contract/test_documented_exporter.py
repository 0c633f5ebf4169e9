"""The exporter in docs/adding-an-exporter.md is complete and passes the contract."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from eqdeploy.errors import ProfileError
from eqdeploy.exporters.contract import Exporter
from eqdeploy.testing import ExporterContract
from tests.contract.networks import NETWORKS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-an-exporter.md"


def documented() -> dict[str, Any]:
    """Run the Python of the page, in order."""
    namespace: dict[str, Any] = {"__name__": "documented_exporter"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), namespace)
    return namespace


class TestDocumentedExporter(ExporterContract):
    def make_exporter(self) -> Exporter:
        exporter: Exporter = documented()["ScaleTableExporter"]()
        return exporter


def test_documented_contract_class_is_a_contract() -> None:
    assert issubclass(documented()["TestScaleTable"], ExporterContract)


def test_documented_refusal(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="add: the table has no word for float readers"):
        documented()["ScaleTableExporter"]().export(NETWORKS["float_reader"](), tmp_path, {})
