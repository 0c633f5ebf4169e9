"""Importing is cheap, and exporters stay free of torch."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eqdeploy

ROOT = Path(__file__).resolve().parents[2]

#: Parts of the library; each imports only from those before it, at the top of a file or inside a function.
LAYERS = (
    ("text",),
    ("artifact_folders", "errors", "hidden_folders", "progress", "readable", "requests"),
    ("files",),
    ("json_file", "large_models"),
    ("yaml_file", "manifest", "inspection"),
    ("artifact", "project", "user_code"),
    ("quant",),
    ("network",),
    ("subnet",),
    ("plan",),
    ("budget", "float_share", "profile_fields", "profile_gates"),
    ("profile_document", "profile_schema"),
    ("profile_problems",),
    ("profile_loading",),
    ("profile", "profiles"),
    ("resolution",),
    ("resolve",),
    ("data", "zoo"),
    ("embedded", "supernet"),
    ("calibration",),
    ("training",),
    ("quantized_model",),
    ("freeze", "encoding_table"),
    ("search",),
    ("exporters",),
    ("testing", "validation"),
    ("origin",),
    ("report",),
    ("results",),
    ("pipeline",),
    ("api", "cli"),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def imported_parts(source: str) -> set[str]:
    """Parts of the library that a file imports from."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "eqdeploy":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules.add(node.module.removeprefix("eqdeploy.") if node.module.startswith("eqdeploy.") else "")
        elif isinstance(node, ast.Import):
            modules |= {
                alias.name.removeprefix("eqdeploy.") for alias in node.names if alias.name.startswith("eqdeploy.")
            }
    return {module.split(".")[0] for module in modules} - {"", "__version__"}


def library_files() -> list[tuple[str, Path]]:
    """Every file of the library with the part that it belongs to."""
    files = [(path.relative_to(ROOT / "eqdeploy").parts[0], path) for path in (ROOT / "eqdeploy").rglob("*.py")]
    files += [(folder, path) for folder in ("exporters", "profiles") for path in (ROOT / folder).rglob("*.py")]
    return [(part.removesuffix(".py"), path) for part, path in files if part != "__init__.py"]


def test_every_part_has_its_place() -> None:
    assert {part for part, _ in library_files()} == set(RANK)


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for part, path in library_files()
        for imported in imported_parts(path.read_text(encoding="utf-8"))
        if imported != part and RANK[imported] >= RANK[part]
    ]
    assert wrong == []


def loaded_by(statement: str, folder: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["exporters", "profiles"])
def test_folders_at_the_top_are_part_of_the_package(name: str) -> None:
    """Editors and type checkers follow a link; a path that is made at run time they do not see."""
    assert (ROOT / "eqdeploy" / name).readlink() == Path("..", name)
    assert list(eqdeploy.__path__) == [str(ROOT / "eqdeploy")]


#: What nobody waits for who does not use it.
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "rich", "yaml", "pydantic", "typer"}


def test_the_package_itself_imports_nothing(tmp_path: Path) -> None:
    added = loaded_by("import eqdeploy; dir(eqdeploy)", tmp_path) - loaded_by("import os", tmp_path)
    assert added == {"eqdeploy"}


def test_public_names_are_there_before_anything_heavy(tmp_path: Path) -> None:
    assert not loaded_by("from eqdeploy import *; export, EqDeployError", tmp_path) & HEAVY


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "exporters").glob("*.py")))
def test_exporters_never_import_torch(module: str, tmp_path: Path) -> None:
    name = "eqdeploy.exporters" if module == "__init__" else f"eqdeploy.exporters.{module}"
    loaded = loaded_by(f"import {name}", tmp_path)
    assert not loaded & {"torch", "onnxruntime"}


def test_exporters_under_another_name_are_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import exporters"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "eqdeploy.exporters" in done.stderr
