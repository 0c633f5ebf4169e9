"""What a comparison of integer codes found, and what it adds up to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from eqdeploy.validation.decisions import Agreement
from eqdeploy.validation.differences import Kind, TensorDifferences
from eqdeploy.validation.operators import OperatorSummary
from eqdeploy.validation.runtime import Exposure, Level

#: Smallest fraction of decisions that must be the reference's: explained differences must not change decisions.
MINIMUM_AGREEMENT = 0.75


class ParityVerdict(StrEnum):
    """What a comparison adds up to."""

    #: Every code is the same at every level.
    IDENTICAL = "identical"
    #: Codes differ, and every difference has a reason that lies in the runtime's arithmetic.
    EXPLAINED = "explained"
    #: A difference has no explanation.
    FAILED = "failed"


@dataclass(frozen=True)
class LevelParity:
    """The comparison at one level of optimization.

    Attributes:
        level: The level.
        tensors: Differences by tensor, in order of execution.
        exposure: How the integers were made visible.
        decisions: Number of top-1 decisions: one per image, or one per pixel where the network returns maps.
        decisions_differing: Decisions that differ from the reference's.
        output_difference: Largest absolute difference of an output.
        outputs_explained: Whether every output follows from the runtime's own codes.
        operators: What was fused and what stayed float; None at levels that fuse nothing.
        saturated: Layers whose float bias the runtime saturates, where that moved a code.
        min_agreement: Smallest fraction of decisions that must be the reference's.
    """

    level: Level
    tensors: dict[str, TensorDifferences]
    exposure: Exposure
    decisions: int
    decisions_differing: int
    output_difference: float
    outputs_explained: bool
    operators: OperatorSummary | None
    saturated: tuple[str, ...] = ()
    min_agreement: float = MINIMUM_AGREEMENT

    @property
    def problem(self) -> str | None:
        """What is wrong, None if nothing is."""
        where = f"at level {self.level}"
        unexplained = {name: tensor.kinds.get(Kind.UNEXPLAINED, 0) for name, tensor in self.tensors.items()}
        if any(unexplained.values()):
            first = next(name for name, count in unexplained.items() if count)
            return f"{sum(unexplained.values()):,} unexplained differing codes {where}, the first in tensor {first}"
        if self.saturated:
            return f"{where} the runtime saturates the bias of {self.saturated[0]}, which int32 cannot hold"
        if not self.outputs_explained:
            return f"{where} the outputs do not follow from the codes before them"
        loud = next((name for name, tensor in self.tensors.items() if tensor.is_excessive), None)
        if loud is not None:
            size = self.tensors[loud]
            found, most = (math.sqrt(value / size.codes) for value in (size.squares, size.allowed))
            return (
                f"{where} the explained differences of tensor {loud} add up to {found:.3g} steps (root mean square), "
                f"at most {most:.3g} are accepted"
            )
        if self.decisions and not Agreement(self.decisions, self.decisions_differing, self.min_agreement).passed:
            return f"{where} only {self.top1_agreement:.2%} of the decisions are the reference's"
        return None

    @property
    def total(self) -> TensorDifferences:
        """Differences of all tensors together."""
        total = TensorDifferences(0, 0, {}, 0)
        for tensor in self.tensors.values():
            total = total.plus(tensor)
        return total

    @property
    def first_differing(self) -> str | None:
        """The first tensor in order of execution that differs, None if none does."""
        return next((name for name, tensor in self.tensors.items() if tensor.differing), None)

    @property
    def top1_agreement(self) -> float:
        """Fraction of decisions that are the reference's."""
        return 1.0 - self.decisions_differing / self.decisions if self.decisions else 1.0

    @property
    def verdict(self) -> ParityVerdict:
        """Failed if there is a problem, identical if every code is the same."""
        if self.problem is not None:
            return ParityVerdict.FAILED
        return ParityVerdict.EXPLAINED if self.total.differing else ParityVerdict.IDENTICAL

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        total = self.total
        return {
            "verdict": str(self.verdict),
            "codes": total.codes,
            "differing": total.differing,
            "kinds": _kinds(total.kinds),
            "steps": _kinds(total.steps),
            "max_lsb": total.max_lsb,
            "first_differing_tensor": self.first_differing,
            "top1_agreement": self.top1_agreement,
            "output_max_difference": self.output_difference,
            "outputs_explained": self.outputs_explained,
            "exposure": str(self.exposure),
            "differing_tensors": {
                name: {
                    "codes": tensor.codes,
                    "differing": tensor.differing,
                    "kinds": _kinds(tensor.kinds),
                    "steps": _kinds(tensor.steps),
                    "max_lsb": tensor.max_lsb,
                }
                for name, tensor in self.tensors.items()
                if tensor.differing
            },
            "operators": None if self.operators is None else self.operators.to_json(),
        }


@dataclass(frozen=True)
class ParityReport:
    """The comparison at all levels.

    Attributes:
        images: Number of images.
        tensors: Number of encoded tensors.
        levels: One entry per level, from none to all optimizations.
        single_images: Number of images that were also run one at a time.
        singles: The comparison for these.
        batch_dependent: Tensors in which an image gets other codes alone than beside others.
        noun: What one calls the images.
    """

    images: int
    tensors: int
    levels: tuple[LevelParity, ...]
    single_images: int = 0
    singles: tuple[LevelParity, ...] = ()
    batch_dependent: tuple[str, ...] = ()
    noun: str = "images"

    @property
    def verdict(self) -> ParityVerdict:
        """The worst verdict of all levels, in batches and one image at a time."""
        if self.batch_dependent:
            return ParityVerdict.FAILED
        verdicts = {level.verdict for level in (*self.levels, *self.singles)}
        order = (ParityVerdict.FAILED, ParityVerdict.EXPLAINED, ParityVerdict.IDENTICAL)
        return next((verdict for verdict in order if verdict in verdicts), ParityVerdict.FAILED)

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        codes = sum(level.total.codes for level in self.levels)
        differing = sum(level.total.differing for level in self.levels)
        basis = f"{codes:,} codes of {self.tensors} tensors, {self.images} {self.noun}, {len(self.levels)} levels"
        if self.verdict is ParityVerdict.IDENTICAL:
            return f"no differing code in {basis}"
        if self.verdict is ParityVerdict.EXPLAINED:
            steps = max(level.total.max_lsb for level in (*self.levels, *self.singles))
            return f"{differing:,} differing codes, all explained, by up to {steps} steps, in {basis}"
        problem = next((problem for level in self.levels if (problem := level.problem)), None)
        if problem is None and self.batch_dependent:
            return (
                "what an image gets depends on the other images of its batch, "
                f"the first difference in tensor {self.batch_dependent[0]}"
            )
        if problem is None:
            problem = next(problem for level in self.singles if (problem := level.problem))
            return f"one image at a time: {problem}"
        return problem

    def level(self, level: Level) -> LevelParity:
        """The comparison at one level."""
        return next(entry for entry in self.levels if entry.level is level)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "verdict": str(self.verdict),
            "summary": self.summary,
            "images": self.images,
            "tensors": self.tensors,
            "levels": {str(level.level): level.to_json() for level in self.levels},
            "single_images": {
                "images": self.single_images,
                "batch_dependent": list(self.batch_dependent),
                "levels": {
                    str(level.level): {
                        "verdict": str(level.verdict),
                        "differing": level.total.differing,
                        "kinds": _kinds(level.total.kinds),
                        "steps": _kinds(level.total.steps),
                    }
                    for level in self.singles
                },
            },
        }


def _kinds(numbers: Mapping[Kind, int]) -> dict[str, int]:
    return {str(kind): number for kind, number in numbers.items()}
