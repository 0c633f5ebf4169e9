"""Forms: the ways in which a tensor can be quantized, without any numbers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAXIMUM_BITS = 8


class Granularity(StrEnum):
    """How many scales a tensor has: one, or one for each output channel."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"


class Symmetry(StrEnum):
    """Whether the zero-point is fixed by the integer range or free."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


@dataclass(frozen=True, order=True)
class Form:
    """One way to quantize a tensor.

    Attributes:
        bits: Width of the integers, 1 to 8.
        granularity: One scale per tensor, or one per output channel.
        symmetry: Symmetric fixes the zero-point: 0 in a signed range and in an unsigned range that starts at
            a real zero. Asymmetric leaves it free inside the range.
        signed: Whether the integer range is signed, ``[-2^(b-1), 2^(b-1)-1]``, or unsigned, ``[0, 2^b-1]``.
        narrow: A signed range without its lowest value, ``[-2^(b-1)+1, 2^(b-1)-1]``.

    Raises:
        ValueError: If the bits are outside 1 to 8, if a narrow range is unsigned or has fewer than 2 bits.

    >>> Form(4, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True).q_min
    -8
    >>> Form(3, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False).key
    '3-per_tensor-asymmetric-unsigned'
    """

    bits: int
    granularity: Granularity
    symmetry: Symmetry
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAXIMUM_BITS:
            raise ValueError(f"bits must lie between 1 and {MAXIMUM_BITS}, got {self.bits}")
        if self.narrow and (not self.signed or self.bits < 2):
            raise ValueError("a narrow range is signed and has at least 2 bits")

    @property
    def q_min(self) -> int:
        """Smallest integer of the range."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def q_max(self) -> int:
        """Largest integer of the range."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def key(self) -> str:
        """A stable name, usable in file keys: ``bits-granularity-symmetry-range``."""
        return f"{self.bits}-{self.granularity}-{self.symmetry}-{self.range_name}"

    @property
    def range_name(self) -> str:
        """``signed``, ``signed_narrow`` or ``unsigned``."""
        if not self.signed:
            return "unsigned"
        return "signed_narrow" if self.narrow else "signed"

    @staticmethod
    def from_key(key: str) -> Form:
        """Read a form back from its :attr:`key`.

        Raises:
            ValueError: If the key is not one that :attr:`key` writes.
        """
        parts = key.split("-")
        if len(parts) != 4 or not parts[0].isdecimal() or parts[3] not in ("signed", "signed_narrow", "unsigned"):
            raise ValueError(f"not a form: {key!r}")
        form = Form(
            bits=int(parts[0]),
            granularity=Granularity(parts[1]),
            symmetry=Symmetry(parts[2]),
            signed=parts[3] != "unsigned",
            narrow=parts[3] == "signed_narrow",
        )
        if form.key != key:  # "04-…" and digits of other scripts
            raise ValueError(f"not a form: {key!r}")
        return form
