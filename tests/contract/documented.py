"""The package that docs/adding-an-exporter.md describes, file by file."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adding-an-exporter.md").read_text(encoding="utf-8")

EXPORTER, TESTS, PACKAGING, PROFILE = (
    "eqdeploy-qnn/eqdeploy_qnn.py",
    "eqdeploy-qnn/test_eqdeploy_qnn.py",
    "eqdeploy-qnn/pyproject.toml",
    "qnn-htp.yaml",
)


def documented_files() -> dict[str, str]:
    """Files on the page: each stands below a line with its name."""
    return dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))
