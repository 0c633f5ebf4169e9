"""The training configuration: a YAML file that, with its seed, determines every number of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from eqdeploy.data.options import DataErrors
from eqdeploy.errors import ProfileError
from eqdeploy.supernet.probes import MAXIMUM_PROBES, PROBES
from eqdeploy.training.input_settings import PREPROCESSING_SECTIONS, AnyPreprocessingSettings
from eqdeploy.training.settings import (
    AugmentationSettings,
    CalibrationSettings,
    Count,
    DistillationSettings,
    DistributionSettings,
    ExecutionSettings,
    FormSampling,
    Guidance,
    ModelSettings,
    OptimizationSettings,
    Precision,
    PreprocessingSettings,
    Section,
    SpaceSettings,
    StaticSettings,
    SupernetSettings,
)
from eqdeploy.yaml_file import line_of, read_yaml, suggest, together

#: Keys without effect on the numbers: two runs that differ only there compute the same.
_WITHOUT_EFFECT = ("checkpoint_interval_steps", "evaluation_epochs", "data_cache", "probes")

#: How the first version of the layout computed: digests of configurations that say so stay what they were.
_FIRST_EXECUTION = ExecutionSettings(precision=Precision.FLOAT32, channels_last=False, compile=False)


class TrainingConfig(Section):
    """Everything that determines a training run.

    Attributes:
        schema_version: Version of this file's layout, ``schema`` in the file.
        model: The float model.
        data: A data set that :func:`eqdeploy.data.load_data` knows, with splits ``train`` and ``test``.
        data_errors: What happens when an image file cannot be read: ``fatal`` stops and names it, ``skip`` leaves it
            out and says so.
        data_cache: Where decoded images are kept: ``auto``, ``off``, or a folder.
        preprocessing: From pixels, or what else is stored, to the network's input.
        loss: A loss of the user's own, ``module:function``, called with the network's outputs and the labels of a
            batch; null for the cross entropy of classes. It is run only if the command line names it, too.
        space: Forms to train.
        float_training: Pre-training of the float network.
        supernet_training: Training of all forms together.
        distillation: Guidance between the subnets of a step.
        weight_distribution: Regularization of the weights' distribution.
        augmentation: Variation of training images.
        sampling: How forms are drawn.
        static: Train this form only, one subnet a step: the static network that a supernet is compared with. Null for
            a supernet.
        calibration: Images for initialization and BatchNorm.
        execution: How training steps are computed.
        evaluation_epochs: Epochs of the supernet training after which the grid of forms is measured, besides the end.
        seed: Seed of all random numbers.
        threads: Threads that torch computes with; another number may round sums differently.
        checkpoint_interval_steps: Steps between two saved states.
        probes: Held-out images that the checkpoint holds as they are stored, to check preprocessing whenever it is
            loaded; 0 for none. Other inputs than images have none.
    """

    later = frozenset({"sampling", "static", "evaluation_epochs", "loss", "data_errors", "data_cache", "probes"})

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    model: ModelSettings
    data: str
    preprocessing: AnyPreprocessingSettings
    loss: str | None = None
    space: SpaceSettings = SpaceSettings()
    float_training: OptimizationSettings
    supernet_training: SupernetSettings
    distillation: DistillationSettings = DistillationSettings()
    weight_distribution: DistributionSettings = DistributionSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    sampling: FormSampling = FormSampling.PER_LAYER
    static: StaticSettings | None = None
    calibration: CalibrationSettings = CalibrationSettings()
    execution: ExecutionSettings = ExecutionSettings()
    evaluation_epochs: tuple[Count, ...] = ()
    data_errors: DataErrors = "fatal"
    data_cache: Annotated[str, Field(min_length=1)] = "auto"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    checkpoint_interval_steps: Count = 500
    probes: Annotated[int, Field(ge=0, le=MAXIMUM_PROBES)] = PROBES

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if not isinstance(self.preprocessing, PreprocessingSettings):
            if self.augmentation != AugmentationSettings():
                raise ValueError("augmentation: only images are varied: leave it out")
        elif self.augmentation.shift >= min(self.preprocessing.image_size):
            raise ValueError(f"augmentation.shift: {self.augmentation.shift} pixels move all of an image out of sight")
        if self.model.supernet is not None:
            if self.float_training.epochs:
                raise ValueError("float_training.epochs: must be 0 with model.supernet, which is trained already")
            if self.distillation.guidance is Guidance.FLOAT:
                raise ValueError("distillation.guidance: there is no float network to guide with model.supernet")
        static, space = self.static, self.space
        if static is not None:
            for name, trained in (
                ("bits", space.bits),
                ("granularity", space.granularities),
                ("symmetry", space.symmetries),
            ):
                if getattr(static, name) not in trained:
                    raise ValueError(f"static.{name}: {getattr(static, name)} is not in the space")
        return self

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
            findings = error.errors(include_url=False)
            raise together([_explain(finding, path, node) for finding in findings]) from error
        except (TypeError, ValueError) as error:  # a key that is no text, or an alias to a node around it
            raise ProfileError(f"not plain keys and values: {error}", where=str(path)) from error

    def overridden(
        self,
        *,
        data: str | None = None,
        seed: int | None = None,
        weights: str | None = None,
        supernet: str | None = None,
        loss: str | None = None,
        probes: int | None = None,
    ) -> TrainingConfig:
        """The same configuration with other data, seed, start, loss or probes; None keeps what is there.

        A run that starts from a supernet has no float phase.

        Raises:
            ProfileError: If the seed or the number of probes is out of range.
        """
        changes: dict[str, Any] = {
            "data": self.data if data is None else data,
            "seed": self.seed if seed is None else seed,
            "loss": self.loss if loss is None else loss,
            "probes": self.probes if probes is None else probes,
        }
        if weights is not None or supernet is not None:
            changes["model"] = {**dict(self.model), "weights": weights, "supernet": supernet}
        if supernet is not None:
            changes["float_training"] = {**dict(self.float_training), "epochs": 0}
        try:
            return TrainingConfig.model_validate({**self.model_dump(by_alias=True), **changes})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ProfileError(first["msg"], where=str(first["loc"][0])) from error

    def canonical(self) -> dict[str, Any]:
        """All settings that have an effect on the numbers, as plain data with every default filled in."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        if self.execution == _FIRST_EXECUTION:
            del data["execution"]
        return {key: value for key, value in data.items() if key not in _WITHOUT_EFFECT}

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`canonical`."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()


def _explain(found: ErrorDetails, path: Path, node: yaml.Node | None) -> ProfileError:
    """Put a complaint of pydantic into one line with file, line and key."""
    sections, location = found["loc"], tuple(part for part in found["loc"] if part not in PREPROCESSING_SECTIONS)
    line = line_of(node, location)
    where = f"{path}:{line}" if line else str(path)
    where += f": {'.'.join(str(part) for part in location)}" if location else ""
    if found["type"] == "extra_forbidden":
        known = _known_keys(sections[:-1])
        return ProfileError("unknown key", where=where, hint=suggest(str(location[-1]), known) or _listed(known))
    if found["type"] == "missing":
        return ProfileError("the key is missing", where=where)
    if found["type"] == "union_tag_invalid":
        kinds = ", ".join(sorted(tag.removeprefix("kind:") for tag in PREPROCESSING_SECTIONS if tag != "kind:images"))
        return ProfileError("unknown kind of input", where=where, hint=f"kind is {kinds}, or left out for images")
    given = found["input"]
    message = found["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}" + ("" if isinstance(given, dict | list) else f", not {given!r}")
    hint = "YAML reads 1e-3 as text; write 1.0e-3" if found["type"] == "float_type" and isinstance(given, str) else None
    return ProfileError(message, where=where, hint=hint)


def _listed(known: tuple[str, ...]) -> str:
    """Say which keys there are."""
    return f"the keys are {', '.join(known)}"


def _known_keys(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Keys of the section at a location."""
    section: type[BaseModel] = TrainingConfig
    for part in location:
        if part in PREPROCESSING_SECTIONS:
            section = PREPROCESSING_SECTIONS[str(part)]
            continue
        if isinstance(part, int) or part in ("preprocessing", "inputs"):
            continue  # its kind follows
        inner = section.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ()
        section = inner
    return tuple(field.alias or name for name, field in section.model_fields.items())
