"""``config.json``: the resolved configuration of an artifact, enough to repeat the export and to validate it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic import ValidationError as ModelError

from eqdeploy.data import InputPreprocessing, read_preprocessing
from eqdeploy.errors import CheckpointError, ValidationError
from eqdeploy.files import model_error, read_bounded, write_json
from eqdeploy.json_file import parse_json_model
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import DeviceProfile
from eqdeploy.requests import MAXIMUM_SEED, ExportRequest, Gates

CONFIGURATION_FILE = "config.json"
SUBNET_FILE = "subnet.json"
_MAXIMUM_BYTES = 16 << 20

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Configuration(BaseModel):
    """What an artifact was made from and with.

    Attributes:
        schema_version: Version of this layout.
        profile: The whole profile, inherited keys and defaults included.
        supernet: Name of the supernet.
        data: Name of the data.
        preprocessing: How what is stored becomes inputs.
        classes: Class names, in the order of the outputs.
        seed: Seed of every random choice.
        calibration_images: Largest number of images used for calibration.
        parity_images: Largest number of images used for comparing integer codes.
        min_accuracy: Gate on the accuracy of the exported model, None for none.
        max_drop: Gate on the loss of accuracy against the float model, None for none.
        max_export_drop: Gate on the loss of accuracy against the simulated subnet, None for the default.
        min_agreement: Gate on decisions that are the simulated subnet's, None for the default.
        min_sqnr: Gate on the distance from float in dB, None for the default.
        max_float_share: Gate on what stays float, None for none.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    schema_version: Literal[1] = 1
    profile: dict[str, JsonValue]
    supernet: str
    data: str
    preprocessing: dict[str, JsonValue]
    classes: list[str]
    seed: Annotated[int, Field(ge=0, le=MAXIMUM_SEED)]
    calibration_images: Annotated[int, Field(ge=1)]
    parity_images: Annotated[int, Field(ge=1)]
    min_accuracy: Fraction | None
    max_drop: Fraction | None
    max_export_drop: Fraction | None = None
    min_agreement: Fraction | None = None
    min_sqnr: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max_float_share: Fraction | None = None

    @property
    def gates(self) -> Gates:
        """The limits that the artifact was judged by."""
        return Gates(**{field.name: getattr(self, field.name) for field in fields(Gates)})

    def preprocessing_of(self, *, where: str) -> InputPreprocessing:
        """The preprocessing as an object.

        Raises:
            ValidationError: If it is none; ``where`` names the file.
        """
        try:
            return read_preprocessing(self.preprocessing, where=f"{where}: preprocessing")
        except CheckpointError as error:
            raise ValidationError(error.message, where=error.where, hint=error.hint) from error

    def device_profile(self, *, where: str) -> DeviceProfile:
        """The profile as an object.

        Raises:
            ValidationError: If it is none; ``where`` names the file.
        """
        try:
            return DeviceProfile.model_validate_json(json.dumps(self.profile))
        except ModelError as reason:
            raise model_error(reason, "a device profile", f"{where}: profile", ValidationError) from reason


def write_configuration(
    directory: Path,
    request: ExportRequest,
    profile: DeviceProfile,
    plan: DevicePlan,
    *,
    supernet: str,
    data: str,
    preprocessing: InputPreprocessing,
    classes: tuple[str, ...],
) -> None:
    """Write ``config.json`` and ``subnet.json``, which ``--subnet`` accepts, into an artifact.

    Raises:
        OutputError: If a file cannot be written.
    """
    configuration = Configuration(
        profile=profile.model_dump(mode="json", by_alias=True),
        supernet=supernet,
        data=data,
        preprocessing=preprocessing.to_json(),
        classes=list(classes),
        seed=request.seed,
        calibration_images=request.calibration_images,
        parity_images=request.parity_images,
        **asdict(request.gates.or_else(profile.gates.as_gates())),
    )
    write_json(directory / CONFIGURATION_FILE, configuration.model_dump(mode="json"))
    subnet: dict[str, Any] = plan.subnet.to_json()
    write_json(directory / SUBNET_FILE, subnet)


def read_configuration(directory: Path) -> Configuration:
    """Read ``config.json`` of an artifact.

    Raises:
        ValidationError: If it is missing or not what :func:`write_configuration` writes.
    """
    path = directory / CONFIGURATION_FILE
    content = read_bounded(path, _MAXIMUM_BYTES, ValidationError)
    return parse_json_model(content, Configuration, "a configuration", str(path), ValidationError)
