"""From measurements to levels of the report: each gate in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eqdeploy.errors import AccuracyError, UsageError
from eqdeploy.float_share import FloatShare
from eqdeploy.pipeline.answers import FLOAT
from eqdeploy.report import Level
from eqdeploy.requests import Gates
from eqdeploy.validation.accuracy import Accuracy, AccuracyReport, check_gates
from eqdeploy.validation.agreement import Answers, ExportDrop, compare_accuracy, compare_decisions
from eqdeploy.validation.distance import DistanceMeter

#: Why nothing can be held against the supernet.
NO_SUPERNET = "the supernet, or the images that it was calibrated on, is not at hand; name it with --supernet"


def missed_gate(rows: Sequence[Accuracy], gates: Gates) -> AccuracyError | None:
    """The gate that the last network misses; the one called ``float`` is what a drop is measured against.

    Raises:
        UsageError: If a drop is limited but the float network was not measured.
    """
    baseline = next((row for row in rows if row.name == FLOAT), None)
    if baseline is None and gates.max_drop is not None:
        raise UsageError("--max-drop needs the float accuracy", hint="name the supernet with --supernet")
    report = AccuracyReport(baseline=baseline or rows[-1], exported=rows[-1])
    try:
        check_gates(report, min_accuracy=gates.min_accuracy, max_drop=gates.max_drop)
    except AccuracyError as error:
        return error
    return None


def judge_accuracy(float_network: Answers | None, simulated: Answers | None, exported: Answers, gates: Gates) -> Level:
    """Compare accuracies with the gates and with each other; without classes there is no accuracy.

    Args:
        float_network: Decisions of the float network, None if it is not at hand.
        simulated: Decisions of the simulated subnet, None if it is not at hand.
        exported: Decisions of the exported model.
        gates: Limits.
    """
    answers = [answers for answers in (float_network, simulated, exported) if answers is not None]
    rows = [row for answers in answers if (row := answers.accuracy) is not None]
    if not rows:
        reason = f"accuracy not measured: {exported.why_no_accuracy}"
        if gates.min_accuracy is None and gates.max_drop is None:
            return Level.not_run(reason)
        return Level.of(False, f"{reason}, so the gates cannot be checked", {})
    drop = None if simulated is None else compare_accuracy(simulated, exported, gates.max_export_drop or 0.0)
    failure = missed_gate(rows, gates)
    text = ", ".join(f"{row.name} {row.fraction:.2%}" for row in rows)
    problem = str(failure) if failure is not None else _drop_problem(drop, text)
    details: dict[str, Any] = {
        "rows": [{"name": row.name, **row.to_json()} for row in rows],
        "min_accuracy": gates.min_accuracy,
        "max_drop": gates.max_drop,
        "against_simulated": None if drop is None else drop.to_json(),
    }
    return Level.of(problem is None, problem or f"{text} of {rows[-1].images} {rows[-1].noun}", details)


def _drop_problem(drop: ExportDrop | None, text: str) -> str | None:
    """What is wrong with the exported model's accuracy beside the simulated subnet's, None if nothing is."""
    if drop is None or drop.passed:
        return None
    return (
        f"{text}: the exported model loses {drop.lost} images of {drop.images} that the simulated subnet decides "
        f"rightly and gains {drop.gained}, more than chance allows (probability {drop.probability:.1g})"
    )


def judge_agreement(simulated: Answers | None, exported: Answers, gates: Gates) -> Level:
    """Compare the exported model's decisions with the simulated subnet's; labels are not needed.

    Args:
        simulated: Decisions of the simulated subnet, None if it is not at hand.
        exported: Decisions of the exported model on the same images.
        gates: Limits.
    """
    if simulated is None:
        return Level.not_run(NO_SUPERNET)
    floor = gates.min_agreement or 0.0
    agreement = compare_decisions(simulated, exported, floor)
    if agreement is None:
        return Level.not_run("the network's output has no axis of classes, so it makes no decisions")
    text = f"{agreement.fraction:.2%} of {agreement.decisions:,} decisions are the simulated subnet's"
    summary = text if agreement.passed else f"only {text}, at least {floor:.2%} are required"
    return Level.of(agreement.passed, summary, agreement.to_json())


def judge_distance(meter: DistanceMeter | None, gates: Gates) -> Level:
    """Judge the distance from float.

    Args:
        meter: What was added up, None if the float network is not at hand.
        gates: Limits.
    """
    if meter is None:
        return Level.not_run(NO_SUPERNET)
    report = meter.report(gates.min_sqnr)
    return Level.of(report.passed, report.summary, {**report.to_json(), "min_sqnr": gates.min_sqnr})


def judge_float_share(share: FloatShare | None, gates: Gates) -> Level:
    """Judge how much of the network stays float.

    Args:
        share: What was counted, None if the supernet is not at hand.
        gates: Limits.
    """
    if share is None:
        return Level.not_run(NO_SUPERNET)
    limit = gates.max_float_share
    passed = limit is None or max(share.parameter_share, share.operation_share) <= limit
    summary = share.summary if passed else f"{share.summary}; at most {limit:.2%} may"
    return Level.of(passed, summary, {**share.to_json(), "max_float_share": limit})
