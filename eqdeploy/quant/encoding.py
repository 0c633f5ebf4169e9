"""Encodings: a form together with its numbers, as a device sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quant.affine import dequantize, quantize


def are_powers_of_two(scale: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which scales are exact powers of two."""
    return np.asarray(np.frexp(scale)[0] == 0.5)


@dataclass(frozen=True, eq=False)
class Encoding:
    """Scale, zero-point and integer range of one tensor.

    Attributes:
        scale: float32, shape ``()`` for one scale or ``(C,)`` for one per channel; finite and positive.
        zero_point: int32, the shape of ``scale``, inside ``[q_min, q_max]``.
        q_min: Smallest code that occurs.
        q_max: Largest code that occurs. A folded activation (ReLU6) may end the range below ``2^bits - 1``.
        bits: Width of the form. Never recomputed from the range: narrow and clipped ranges would come out wrong.
        signed: Whether codes are stored signed (int8, int32) or unsigned (uint8).
        axis: Channel axis when ``scale`` has one value per channel, else None.

    Raises:
        ValueError: If a scale is not finite and positive, a zero-point leaves the range, the range does not fit in
            the bits, or shapes disagree.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    q_min: int
    q_max: int
    bits: int
    signed: bool
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.scale.dtype != np.float32 or self.zero_point.dtype != np.int32:
            raise ValueError(
                f"scale must be float32 and zero_point int32, got {self.scale.dtype}, {self.zero_point.dtype}"
            )
        if self.scale.shape != self.zero_point.shape or self.scale.ndim != int(self.axis is not None):
            raise ValueError(
                f"scale {self.scale.shape}, zero_point {self.zero_point.shape} and axis {self.axis} disagree"
            )
        if not bool(np.all(np.isfinite(self.scale) & (self.scale > 0))):
            raise ValueError("a scale is not finite and positive")
        widest = (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1) if self.signed else (0, (1 << self.bits) - 1)
        if not widest[0] <= self.q_min <= self.q_max <= widest[1]:
            raise ValueError(f"the range [{self.q_min}, {self.q_max}] does not fit in {self.bits} bits {list(widest)}")
        if bool(np.any((self.zero_point < self.q_min) | (self.zero_point > self.q_max))):
            raise ValueError(f"a zero-point lies outside [{self.q_min}, {self.q_max}]")

    @staticmethod
    def per_tensor(scale: float, zero_point: int, q_min: int, q_max: int, bits: int, *, signed: bool) -> Encoding:
        """Make an encoding with one scale."""
        return Encoding(
            np.asarray(scale, dtype=np.float32), np.asarray(zero_point, dtype=np.int32), q_min, q_max, bits, signed
        )

    @property
    def container(self) -> np.dtype[Any]:
        """Smallest of int8, uint8 and int32 that stores every code of this width."""
        if self.bits > 8:
            return np.dtype(np.int32)
        return np.dtype(np.int8 if self.signed else np.uint8)

    @property
    def fills_container(self) -> bool:
        """Whether saturating to the container's range already clips to ``[q_min, q_max]``."""
        limits = np.iinfo(self.container)
        return bool(self.q_min == limits.min and self.q_max == limits.max)

    def quantize(self, x: NDArray[Any]) -> NDArray[np.int32]:
        """Codes of real values ``x``, int32, the shape of ``x``."""
        scale, zero_point = self._broadcast(x.ndim)
        return quantize(x, scale, zero_point, self.q_min, self.q_max).astype(np.int32)

    def dequantize(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Real values of integer ``codes``, float32, the shape of ``codes``."""
        scale, zero_point = self._broadcast(codes.ndim)
        return dequantize((codes.astype(np.int64) - zero_point).astype(np.float32), scale, np.float32(0))

    def stored_as(self, *, signed: bool) -> Encoding:
        """Return the same grid in the other storage: codes and zero-point move by ``2^(bits-1)``."""
        if signed == self.signed:
            return self
        shift = -(1 << (self.bits - 1)) if signed else 1 << (self.bits - 1)
        return replace(
            self,
            zero_point=(self.zero_point + np.int32(shift)).astype(np.int32),
            q_min=self.q_min + shift,
            q_max=self.q_max + shift,
            signed=signed,
        )

    def equals(self, other: Encoding) -> bool:
        """Whether both describe exactly the same grid in the same storage."""
        return bool(
            np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and (self.q_min, self.q_max, self.bits, self.signed, self.axis)
            == (other.q_min, other.q_max, other.bits, other.signed, other.axis)
        )

    def _broadcast(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Shape scale and zero-point so that they line up with a tensor of ``rank`` axes."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)
