"""What all benchmarks share: the machine they ran on, and how results are written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("numpy", "onnx", "onnxruntime", "torch")


def environment() -> dict[str, Any]:
    """The machine and the versions that a figure depends on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def write_results(name: str, command: str, figures: dict[str, Any], tables: Sequence[str]) -> None:
    """Write ``results/<name>.json`` and a readable ``results/<name>.md``."""
    RESULTS.mkdir(exist_ok=True)
    where = environment()
    document = {"command": command, "environment": where, **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    described = ", ".join(f"{key} {value}" for key, value in where.items() if value is not None)
    text = f"# {name.replace('_', ' ')}\n\n`{command}`\n\n{described}\n\n" + "\n\n".join(tables) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def float_of_as_many_steps() -> str:
    """A sentence on the float network of ``float_baseline.py``, nothing where it was not measured.

    Every table of the CIFAR-10 supernet has it: the float network that it began from had a third of its steps.
    """
    path = RESULTS / "float_baseline.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    return (
        f" A float network trained for as many steps as the whole shipped supernet, {found['epochs']} epochs, has "
        f"{found['float_accuracy']:.2%} ([float_baseline.md](float_baseline.md))."
    )


def _processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
