"""Static checks: everything that can be proved about a QDQ file without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqdeploy.exporters.opset import OPSETS
from eqdeploy.plan import Coverage
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.validation import static_checks as checks_of
from eqdeploy.validation.accumulators import INT32_LIMIT, accumulator_bounds
from eqdeploy.validation.qdq_file import QdqFile
from eqdeploy.validation.reference.graph import Graph
from eqdeploy.validation.static_checks import Fault, Subject

#: Faults in a message before it is cut short.
_FAULTS_SHOWN = 3


@dataclass(frozen=True)
class Check:
    """One static check.

    Attributes:
        name: What was checked.
        passed: Whether it holds everywhere.
        detail: What was found, in one sentence.
        tensors: Tensors and nodes concerned by a failure.
    """

    name: str
    passed: bool
    detail: str
    tensors: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"name": self.name, "passed": self.passed, "detail": self.detail, "tensors": list(self.tensors)}


@dataclass(frozen=True)
class StaticReport:
    """All static checks of one file.

    Attributes:
        checks: The checks.
        coverage: Number of tensors by coverage.
    """

    checks: tuple[Check, ...]
    coverage: dict[Coverage, int]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            return f"{failed[0].name}: {failed[0].detail}"
        total = sum(self.coverage.values())
        quantized = self.coverage.get(Coverage.QUANTIZED, 0)
        return f"{len(self.checks)} checks hold; {quantized} of {total} tensors quantized"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "passed": self.passed,
            "summary": self.summary,
            "checks": [check.to_json() for check in self.checks],
            "coverage": {str(kind): self.coverage.get(kind, 0) for kind in Coverage},
        }


def check_static(model: QuantizedModel, onnx_path: Path, *, power_of_two_scales: bool = False) -> StaticReport:
    """Check a QDQ file and that it holds what the model holds.

    Args:
        model: The network that was exported.
        onnx_path: The QDQ model that was written for it.
        power_of_two_scales: Whether the device wants powers of two.

    Raises:
        ValidationError: If the file is missing, damaged or no valid ONNX, or the model contradicts itself.
    """
    subject = Subject(Graph.of(model), QdqFile.load(onnx_path))
    checks: tuple[tuple[str, str, Callable[[Subject], Iterable[Fault]]], ...] = (
        (
            "format",
            f"opset {OPSETS[0]} to {OPSETS[-1]}, and an IR version that ONNX Runtime loads",
            checks_of.file_format,
        ),
        ("scales", "every scale is a constant, finite, positive, normal float32", checks_of.scales),
        ("zero_points", "every zero-point is an integer of the container inside the range", checks_of.zero_points),
        ("channels", "every scale fits its axis, and the axis is explicit", checks_of.channels),
        ("weight_codes", "every weight code lies in its range", checks_of.weight_codes),
        ("biases", "every integer bias is int32 on the grid s_x · s_w with zero-point 0", checks_of.biases),
        ("ranges", "every code is kept inside its range", checks_of.ranges),
        ("pairs", "every Q and its DQ apply the same numbers", checks_of.pairs),
        ("orphans", "every Q has a DQ, and every DQ a Q or an integer constant", checks_of.orphans),
        ("quantized_once", "every tensor is quantized once", checks_of.quantized_once),
        ("encodings", "the file holds the encodings and codes of the model", checks_of.encodings),
        ("structure", "the file is the network with quantization nodes and nothing else", checks_of.structure),
    )
    if power_of_two_scales:
        checks += (("powers_of_two", "every scale is a power of two", checks_of.powers_of_two),)
    results = [_run(name, holds, check(subject)) for name, holds, check in checks]
    results.insert(6, _accumulators(subject.graph))
    results.append(_run("coverage", _coverage_summary(model), checks_of.coverage(subject)))
    return StaticReport(tuple(results), dict(Counter(model.coverage.values())))


def _run(name: str, holds: str, faults: Iterable[Fault]) -> Check:
    """Collect the faults of one check."""
    found = list(faults)
    if not found:
        return Check(name, True, holds)
    tensors = tuple(dict.fromkeys(tensor for tensor, _ in found))
    shown = "; ".join(f"{tensor}: {text}" for tensor, text in found[:_FAULTS_SHOWN])
    more = f"; and {len(found) - _FAULTS_SHOWN} more" if len(found) > _FAULTS_SHOWN else ""
    return Check(name, False, shown + more, tensors)


def _accumulators(graph: Graph) -> Check:
    """Prove that no integer sum can leave int32."""
    bounds = accumulator_bounds(graph)
    faults = [
        (name, f"sums may reach {bound}, int32 ends at {INT32_LIMIT}")
        for name, bound in bounds.items()
        if bound > INT32_LIMIT
    ]
    if faults or not bounds:
        return _run("accumulators", "there are no integer sums", faults)
    name, bound = max(bounds.items(), key=lambda item: item[1])
    return Check("accumulators", True, f"no sum exceeds {bound:,} (in {name}), {bound / INT32_LIMIT:.2%} of int32")


def _coverage_summary(model: QuantizedModel) -> str:
    """Shares of all tensors, which add up to 100 %."""
    total = len(model.coverage)
    counts = Counter(model.coverage.values())
    shares = ", ".join(f"{counts[kind]} {str(kind).replace('_', ' ')}" for kind in Coverage if counts[kind])
    return f"{total} tensors: {shares}"
