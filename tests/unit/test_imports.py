"""Imports point one way, and light parts of the package load nothing heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Parts of the package from the ground up. A part may import those of earlier rows only.
ROWS = (
    ("errors", "progress", "text"),
    ("user_code",),
    ("files", "quant", "data", "zoo", "requests"),
    ("network", "yaml_file", "manifest"),
    ("subnet", "profile_fields", "artifact", "inspection", "project"),
    ("plan", "profile_document", "profile_gates"),
    ("profile_schema", "quantized_model", "budget", "float_share"),
    ("profile_loading", "resolution", "encoding_table"),
    ("profile", "resolve"),
    ("supernet",),
    ("calibration",),
    ("training", "freeze"),
    ("search",),
    ("exporters", "profiles"),
    ("validation", "testing"),
    ("report",),
    ("results",),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
ROW = {part: index for index, row in enumerate(ROWS) for part in row}

#: Parts that never import torch, not even inside a function.
WITHOUT_TORCH = frozenset(
    {
        *("network", "subnet", "plan", "budget", "profile", "profile_loading", "profile_schema"),
        *("resolve", "resolution", "quantized_model", "encoding_table", "exporters", "report", "results", "cli"),
    }
)


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package with the name it is imported by."""
    for folder, prefix in (("eqdeploy", ""), ("exporters", "exporters"), ("profiles", "profiles")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [prefix, *path.relative_to(ROOT / folder).with_suffix("").parts]
            yield ".".join(part for part in parts if part and part != "__init__"), path


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Everything that a file imports anywhere, even inside functions, with the line; types alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = str(node.module)
            names = [f"eqdeploy.{alias.name}" for alias in node.names] if module == "eqdeploy" else [module]
            yield from ((name, node.lineno) for name in names)


def edges() -> Iterator[tuple[str, str, str]]:
    """Imports between parts of the package, with where they stand."""
    for module, path in sources():
        part = module.partition(".")[0]
        for name, line in imports(path):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "eqdeploy" and target not in ("", "__version__", part):
                yield part, target, f"{path.relative_to(ROOT)}:{line}"


def test_imports_point_one_way() -> None:
    found = list(edges())
    assert len(found) > 100, "the imports were found"
    unknown = sorted({part for edge in found for part in edge[:2]} - set(ROW))
    assert not unknown, f"give these a row: {unknown}"
    wrong = [f"{where}: {part} imports {target}" for part, target, where in found if ROW[target] >= ROW[part]]
    assert not wrong, "\n".join(wrong)


def test_plans_exporters_and_reports_never_mention_torch() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path in sources()
        if module.partition(".")[0] in WITHOUT_TORCH
        for name, line in imports(path)
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "safetensors", "onnxscript")
    ]
    assert not wrong, "\n".join(wrong)


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after importing modules."""
    statement = "".join(f"import {module}\n" for module in modules)
    program = f"import json, sys\n{statement}print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (("eqdeploy",), {"torch", "onnx", "onnxruntime", "numpy", "pydantic", "yaml", "rich", "typer"}),
        (("eqdeploy.cli",), {"torch", "onnx", "onnxruntime", "onnxscript", "numpy"}),
        (
            ("eqdeploy.network", "eqdeploy.subnet", "eqdeploy.plan", "eqdeploy.profile", "eqdeploy.resolve"),
            {"torch", "onnx", "onnxruntime", "onnxscript"},
        ),
        (
            tuple(
                f"eqdeploy.search.{name}" for name in ("space", "costs", "integer_program", "feasibility", "genetic")
            ),
            {"torch", "onnx", "onnxruntime", "pymoo", "scipy"},
        ),
        (("eqdeploy.quant.form", "eqdeploy.quant.affine", "eqdeploy.quant.encoding"), {"torch", "onnx", "onnxruntime"}),
        (("eqdeploy.quantized_model", "eqdeploy.encoding_table"), {"torch", "onnxruntime"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_light_parts_load_nothing_heavy(modules: tuple[str, ...], forbidden: set[str]) -> None:
    assert not loaded_by(*modules) & forbidden


def test_exporters_and_reports_run_without_torch() -> None:
    names = [module for module, _ in sources() if module.partition(".")[0] in ("exporters", "report")]
    loaded = loaded_by(*(f"eqdeploy.{name}" for name in names))
    assert "onnx" in loaded
    assert not loaded & {"torch", "safetensors", "onnxscript"}
