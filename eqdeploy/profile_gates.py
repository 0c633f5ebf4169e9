"""Limits that a profile may set for every artifact that is made for its device."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from eqdeploy.requests import Gates

_Fraction = Annotated[float, Field(ge=0, le=1)]


class ProfileGates(BaseModel):
    """Limits that an artifact for this device is judged by. Null leaves one to the default; an option goes before."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_export_drop: _Fraction | None = Field(
        default=None, description="Loss of accuracy against the simulated subnet accepted beyond chance, a fraction."
    )
    min_agreement: _Fraction | None = Field(
        default=None, description="Smallest fraction of the simulated subnet's decisions that are made, too."
    )
    min_sqnr: float | None = Field(
        default=None, description="Smallest distance from float of every output and quantized tensor, in dB."
    )
    max_float_share: _Fraction | None = Field(
        default=None, description="Largest share of parameters, and of operations, that stay float."
    )

    def as_gates(self) -> Gates:
        """The same limits as a request has them."""
        return Gates(**self.model_dump())
