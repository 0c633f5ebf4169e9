"""Budgets: limits on what a subnet costs, as users write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, DecimalException
from enum import StrEnum

from eqdeploy.errors import UsageError


class Metric(StrEnum):
    """What a subnet costs. Everything can be recomputed from the exported model.

    Attributes:
        AVG_WEIGHT_BITS: Mean width that weights were trained at by their number, without the first and the last layer
            (EQ-Net).
        AVG_ACTIVATION_BITS: Mean width on the device of the tensors that layers read, each once, by their number of
            values, without those that the first and the last layer read.
        MODEL_BYTES: Bytes of the weights of all layers, each layer's packed at its width, and 4 for each bias.
        BITOPS: Sum over all layers of multiply-accumulates × width of the weight × width of the input on the device.
        LATENCY_MS: Sum over all layers of the milliseconds in a table that was measured, to the nanosecond.
    """

    AVG_WEIGHT_BITS = "avg_weight_bits"
    AVG_ACTIVATION_BITS = "avg_activation_bits"
    MODEL_BYTES = "model_bytes"
    BITOPS = "bitops"
    LATENCY_MS = "latency_ms"


_COUNTS = {"": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12)}

#: Units of each metric with their size.
UNITS: Mapping[Metric, Mapping[str, Decimal]] = {
    Metric.AVG_WEIGHT_BITS: {"": Decimal(1)},
    Metric.AVG_ACTIVATION_BITS: {"": Decimal(1)},
    Metric.MODEL_BYTES: {
        "": Decimal(1),
        "B": Decimal(1),
        "kB": Decimal(10**3),
        "MB": Decimal(10**6),
        "GB": Decimal(10**9),
        "KiB": Decimal(1 << 10),
        "MiB": Decimal(1 << 20),
        "GiB": Decimal(1 << 30),
    },
    Metric.BITOPS: _COUNTS,
    Metric.LATENCY_MS: {"": Decimal(1), "ms": Decimal(1), "us": Decimal("0.001"), "s": Decimal(1000)},
}

_BUDGET = re.compile(
    r"\s*(?P<metric>\w+)\s*(?P<sign>[^\w\s.+-]+)\s*(?P<number>[^\sA-Za-z]*(?:[eE][+-]?\d+)?)\s*(?P<unit>[A-Za-z]*)\s*"
)
#: Enough for every float with four decimals.
_DIGITS = Context(prec=320)

_EXAMPLE = "write for example avg_weight_bits<=3.5, model_bytes<=200KiB or bitops<=1.2G"


@dataclass(frozen=True)
class Budget:
    """A largest value.

    Attributes:
        metric: What is limited.
        limit: Largest value that is allowed, in the metric's unit without prefix.
    """

    metric: Metric
    limit: float

    def __str__(self) -> str:
        """The budget as :func:`parse_budget` reads it."""
        return f"{self.metric}<={number(self.limit)}"


def parse_budget(text: str) -> Budget:
    """Read a budget such as ``avg_weight_bits<=3.5``, ``model_bytes<=200KiB`` or ``bitops<=1.2G``.

    Raises:
        UsageError: If the metric, the sign, the number or the unit is none. Says what would be right.

    >>> parse_budget("model_bytes <= 1.5 KiB")
    Budget(metric=<Metric.MODEL_BYTES: 'model_bytes'>, limit=1536.0)
    """
    where = f"--budget {text!r}"
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise UsageError("not a budget", where=where, hint=_EXAMPLE)
    name, sign, amount, unit = match.group("metric", "sign", "number", "unit")
    if name not in list(Metric):
        raise UsageError(f"unknown metric {name!r}", where=where, hint=f"possible are {', '.join(Metric)}")
    if sign != "<=":
        raise UsageError(f"{sign!r} is not possible, budgets are limits", where=where, hint=f"write {name}<=")
    metric = Metric(name)
    if not amount and unit:
        raise UsageError(f"{unit!r} is not a number above 0", where=where, hint=_EXAMPLE)
    if unit not in UNITS[metric]:
        units = ", ".join(filter(None, UNITS[metric])) or "none"
        raise UsageError(f"unknown unit {unit!r}", where=where, hint=f"units of {metric}: {units}")
    try:
        value = Decimal(amount) * UNITS[metric][unit]
    except DecimalException:  # no number, or one with an exponent beyond all bounds
        value = Decimal("NaN")
    limit = float(value)
    if not 0 < limit < float("inf"):  # false for no number, too
        raise UsageError(f"{amount!r} is not a number above 0", where=where, hint=_EXAMPLE)
    return Budget(metric, limit)


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Read several budgets, which hold together.

    Raises:
        UsageError: If one is wrong, or two limit the same metric.
    """
    budgets = tuple(parse_budget(text) for text in texts)
    for index, budget in enumerate(budgets):
        if any(earlier.metric is budget.metric for earlier in budgets[:index]):
            raise UsageError(f"{budget.metric} is limited twice", where="--budget", hint="give the smaller one")
    return budgets


def number(value: float) -> str:
    """Write a limit in digits that are read back as the same number.

    >>> number(1536.0), number(3.25)
    ('1536', '3.25')
    """
    return str(int(value)) if value == int(value) else repr(value)


def rounded_up(value: float) -> float:
    """The next number with four decimals, for limits that are proposed to people.

    >>> rounded_up(2.00001), rounded_up(3.5)
    (2.0001, 3.5)
    """
    return float(Decimal(repr(value)).quantize(Decimal("0.0001"), rounding=ROUND_CEILING, context=_DIGITS))
