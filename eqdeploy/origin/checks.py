"""What the checks of the origin return: what was held against what, and what departs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: What departs: a layer or tensor, and how.
Fault = tuple[str, str]

#: Faults in a message before it is cut short.
_FAULTS_SHOWN = 3


@dataclass(frozen=True)
class OriginCheck:
    """One comparison of frozen numbers with the supernet.

    Attributes:
        name: What was compared.
        passed: Whether it holds everywhere.
        detail: What was found, in one sentence.
        tensors: Layers and tensors that depart, in network order.
        figures: What was measured.
    """

    name: str
    passed: bool
    detail: str
    tensors: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(name: str, holds: str, faults: Sequence[Fault], **figures: Any) -> OriginCheck:
        """Collect the faults of one comparison.

        Args:
            name: What was compared.
            holds: What is true if there are no faults.
            faults: What departs.
            figures: What was measured.
        """
        if not faults:
            return OriginCheck(name, True, holds, (), figures)
        names = tuple(dict.fromkeys(where for where, _ in faults))
        shown = "; ".join(f"{where}: {text}" for where, text in faults[:_FAULTS_SHOWN])
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        return OriginCheck(name, False, shown + more, names, figures)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "passed": self.passed,
            "detail": self.detail,
            "tensors": list(self.tensors),
            **self.figures,
        }


@dataclass(frozen=True)
class OriginReport:
    """All comparisons of one frozen network with its supernet.

    Attributes:
        checks: The comparisons.
    """

    checks: tuple[OriginCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison holds."""
        return all(check.passed for check in self.checks)

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            return f"{failed[0].name}: {failed[0].detail}"
        (tensors,) = [check for check in self.checks if check.name == "tensors"]
        return f"the numbers are those of the supernet's subnet; {tensors.detail}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"passed": self.passed, "summary": self.summary, "checks": [check.to_json() for check in self.checks]}
