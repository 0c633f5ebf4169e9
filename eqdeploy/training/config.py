"""The training configuration: a YAML file that, with its seed, determines every number of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.yaml_file import line_of, read_yaml, suggest

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
# Far beyond what trains; larger ones would only overflow float32 somewhere inside the optimizer.
LearningRate = Annotated[float, Field(gt=0, le=1e3)]
LearningRateFactor = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

#: Keys without effect on the numbers: two runs that differ only there compute the same.
_WITHOUT_EFFECT = ("checkpoint_interval_steps",)


class _Section(BaseModel):
    """Strict, immutable part of the configuration."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(_Section):
    """The float model.

    Attributes:
        architecture: A name that :func:`eqdeploy.zoo.build` knows, or null for a model that the caller passes.
        arguments: Arguments of the architecture.
    """

    architecture: str | None
    arguments: dict[str, bool | int | float | str] = {}


class PreprocessingSettings(_Section):
    """Fields of :class:`eqdeploy.data.preprocessing.Preprocessing`."""

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resize_shorter_side: int | None = None

    @model_validator(mode="after")
    def _check(self) -> PreprocessingSettings:
        self.to_preprocessing()
        return self

    def to_preprocessing(self) -> Preprocessing:
        """The object that applies these settings."""
        return Preprocessing(**dict(self))


class SpaceSettings(_Section):
    """Fields of :class:`eqdeploy.network.ElasticSpace`."""

    bits: tuple[int, ...] = ElasticSpace.bits
    granularities: tuple[Granularity, ...] = ElasticSpace.granularities
    symmetries: tuple[Symmetry, ...] = ElasticSpace.symmetries
    narrow: bool = False
    boundary_bits: int = 8

    @model_validator(mode="after")
    def _check(self) -> SpaceSettings:
        self.to_space()
        return self

    def to_space(self) -> ElasticSpace:
        """The space that these settings describe."""
        return ElasticSpace(**dict(self))


class OptimizationSettings(_Section):
    """Adam with linear warm-up and cosine decay to zero.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images of one step. An incomplete last batch of an epoch is left out.
        learning_rate: Peak learning rate.
        betas: Decay of Adam's first and second moments.
        weight_decay: L2 penalty on weights; never on biases, BatchNorm, scales and zero-points.
        warm_up_steps: Steps over which the learning rate grows to its peak.
        gradient_clip: Gradients are clipped to ± this value, element by element; null leaves them alone.
    """

    epochs: CountOrNone
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: LearningRate = 1e-3
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    warm_up_steps: CountOrNone = 0
    gradient_clip: Positive | None = 1.0


class SupernetSettings(OptimizationSettings):
    """The optimizer of the supernet.

    Attributes:
        scale_learning_rate_factor: The learning rate of log2(scale) is the learning rate times this.
        zero_point_learning_rate_factor: The same for zero-points, which are counted in integer steps.
    """

    scale_learning_rate_factor: LearningRateFactor = 1.0
    zero_point_learning_rate_factor: LearningRateFactor = 1.0


class DistillationSettings(_Section):
    """Group progressive guidance (EQ-Net, Eq. 7-8).

    Attributes:
        weight: λ, the share of the teacher in the loss of the random and the lowest subnet.
        temperature: Softening of both distributions.
    """

    weight: Fraction = 0.5
    temperature: Positive = 1.0


class DistributionSettings(_Section):
    """Weight distribution regularization (EQ-Net, Eq. 4-6).

    Attributes:
        kurtosis_weight: Weight of the kurtosis term.
        kurtosis_target: 1.8, the kurtosis of a uniform distribution.
        skewness_weight: Weight of the skewness term.
    """

    kurtosis_weight: NonNegative = 0.015
    kurtosis_target: Positive = 1.8
    skewness_weight: NonNegative = 1.0


class AugmentationSettings(_Section):
    """Fields of :class:`eqdeploy.data.augmentation.Augmentation`."""

    shift: CountOrNone = 0
    flip: bool = False


class CalibrationSettings(_Section):
    """Training images that set what is not learned.

    Attributes:
        initialization_images: Images that the scales are initialized from.
        batch_norm_images: Augmented images that BatchNorm statistics are estimated on before an evaluation.
    """

    initialization_images: Count = 256
    batch_norm_images: Annotated[int, Field(ge=2)] = 1024


class TrainingConfig(_Section):
    """Everything that determines a training run.

    Attributes:
        schema_version: Version of this file's layout, ``schema`` in the file.
        model: The float model.
        data: A data set that :func:`eqdeploy.data.load_data` knows, with splits ``train`` and ``test``.
        preprocessing: From pixels to the network's input.
        space: Forms to train.
        float_training: Pre-training of the float network.
        supernet_training: Training of all forms together.
        distillation: Guidance between the subnets of a step.
        weight_distribution: Regularization of the weights' distribution.
        augmentation: Variation of training images.
        calibration: Images for initialization and BatchNorm.
        seed: Seed of all random numbers.
        threads: Threads that torch computes with; another number may round sums differently.
        checkpoint_interval_steps: Steps between two saved states.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    model: ModelSettings
    data: str
    preprocessing: PreprocessingSettings
    space: SpaceSettings = SpaceSettings()
    float_training: OptimizationSettings
    supernet_training: SupernetSettings
    distillation: DistillationSettings = DistillationSettings()
    weight_distribution: DistributionSettings = DistributionSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    checkpoint_interval_steps: Count = 500

    @staticmethod
    def load(path: Path) -> TrainingConfig:
        """Read a configuration file.

        Raises:
            ProfileError: If the file is missing, no YAML, or a key is unknown, missing or has a wrong value; the
                message names the file and the key.
        """
        document, node = read_yaml(path)
        if not isinstance(document, dict):
            raise ProfileError("must hold keys and values", where=str(path))
        try:
            # Through JSON, whose strict mode takes a list for a tuple and a string for a name, and nothing else.
            return TrainingConfig.model_validate_json(json.dumps(document, default=str))
        except ValidationError as error:
            raise _explain(error, path, node) from error
        except (TypeError, ValueError) as error:  # a key that is no text, or an alias to a node around it
            raise ProfileError(f"not plain keys and values: {error}", where=str(path)) from error

    def overridden(self, *, data: str | None = None, seed: int | None = None) -> TrainingConfig:
        """The same configuration with other data or another seed; None keeps what is there.

        Raises:
            ProfileError: If the seed is out of range.
        """
        changes = {"data": self.data if data is None else data, "seed": self.seed if seed is None else seed}
        try:
            return TrainingConfig.model_validate({**self.model_dump(by_alias=True), **changes})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ProfileError(first["msg"], where=str(first["loc"][0])) from error

    def canonical(self) -> dict[str, Any]:
        """All settings that have an effect on the numbers, as plain data with every default filled in."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        return {key: value for key, value in data.items() if key not in _WITHOUT_EFFECT}

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`canonical`."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()


def _explain(error: ValidationError, path: Path, node: yaml.Node | None) -> ProfileError:
    """Put the first complaint of pydantic into one line with file, line and key."""
    first = error.errors(include_url=False)[0]
    location = first["loc"]
    line = line_of(node, location)
    where = f"{path}:{line}" if line else str(path)
    where += f": {'.'.join(str(part) for part in location)}" if location else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return ProfileError("unknown key", where=where, hint=suggest(str(location[-1]), known) or _listed(known))
    if first["type"] == "missing":
        return ProfileError("the key is missing", where=where)
    given = first["input"]
    message = first["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}" + ("" if isinstance(given, dict | list) else f", not {given!r}")
    hint = "YAML reads 1e-3 as text; write 1.0e-3" if first["type"] == "float_type" and isinstance(given, str) else None
    return ProfileError(message, where=where, hint=hint)


def _listed(known: tuple[str, ...]) -> str:
    """Say which keys there are."""
    return f"the keys are {', '.join(known)}"


def _known_keys(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Keys of the section at a location."""
    section: type[BaseModel] = TrainingConfig
    for part in location:
        inner = section.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ()
        section = inner
    return tuple(field.alias or name for name, field in section.model_fields.items())
