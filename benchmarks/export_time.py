"""Time every stage of ``eqdeploy export --profile snpe-dsp`` on the embedded supernet, imports included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import markdown_table, write_results

REPEATS = 3
IMPORTS = ("torch", "onnx", "onnxruntime", "onnxscript.optimizer", "torch.onnx", "eqdeploy.pipeline")


class Stopwatch:
    """A listener that notes how long each stage takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[object]:
        """Time a stage; stages of the same name add up."""
        start = time.perf_counter()
        yield lambda amount: None
        self.seconds[description] = self.seconds.get(description, 0.0) + time.perf_counter() - start

    def note(self, message: str) -> None:
        """Ignore a remark."""

    def detail(self, message: str) -> None:
        """Ignore a detail."""


def measure_once() -> dict[str, float]:
    """Import and export in this process; seconds by stage."""
    watch = Stopwatch()
    for module in IMPORTS:
        with watch.stage(f"import {module}"):
            __import__(module)
    from eqdeploy.pipeline import export_profiles
    from eqdeploy.requests import ExportRequest

    with tempfile.TemporaryDirectory() as folder:
        export_profiles(ExportRequest(profiles=("snpe-dsp",), output=Path(folder)), watch)
    return watch.seconds


def main() -> None:
    """Measure in fresh processes and write the median of each stage."""
    if "--once" in sys.argv:
        for name, seconds in measure_once().items():
            print(f"{name}\t{seconds}")
        return
    runs: list[dict[str, float]] = []
    totals: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        output = subprocess.run([sys.executable, __file__, "--once"], check=True, capture_output=True, text=True).stdout
        totals.append(time.perf_counter() - start)
        runs.append({name: float(text) for name, text in (line.split("\t") for line in output.splitlines())})
    medians = {name: sorted(run[name] for run in runs)[REPEATS // 2] for name in runs[0]}
    total = sorted(totals)[REPEATS // 2]
    rows = [[name, f"{seconds:.2f}", f"{seconds / total:.0%}"] for name, seconds in medians.items()]
    rows.append(["everything, interpreter included", f"{total:.2f}", "100%"])
    summary = (
        f"Medians of {REPEATS} fresh processes, seconds on the wall clock; the shares matter more than the seconds."
    )
    write_results(
        "export_time",
        "python benchmarks/export_time.py",
        {"seconds": medians, "total_seconds": total, "repeats": REPEATS},
        [summary, markdown_table(["stage", "seconds", "share"], rows)],
    )


if __name__ == "__main__":
    main()
