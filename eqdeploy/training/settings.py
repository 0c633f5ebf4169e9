"""Sections of the training configuration."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.network import BatchNormTraining, ElasticSpace, Residual, ScaleTraining
from eqdeploy.quant.form import Granularity, Symmetry

# Beyond anything that trains, and far from where a float overflows.
_MANY = 10**12
Count = Annotated[int, Field(ge=1, le=_MANY)]
CountOrNone = Annotated[int, Field(ge=0, le=_MANY)]
Positive = Annotated[float, Field(gt=0, le=_MANY)]
NonNegative = Annotated[float, Field(ge=0, le=_MANY)]
# Far beyond what trains; larger ones would only overflow float32 somewhere inside the optimizer.
LearningRate = Annotated[float, Field(gt=0, le=1e3)]
LearningRateFactor = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Strict, immutable part of the configuration."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    #: Keys that did not exist in the first version of the layout.
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later keys that are not used: digests of configurations without them stay what they were."""
        data: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        unused = {key for key in self.later if getattr(self, key) == fields[key].get_default()}
        return {key: value for key, value in data.items() if key not in unused}


class ModelSettings(Section):
    """The float model.

    Attributes:
        weights: A safetensors file with the weights of a float network of this architecture to start from, relative
            to the working directory; null for random ones.
        architecture: A name that :func:`eqdeploy.zoo.build` knows, or null for a model that the caller passes.
        arguments: Arguments of the architecture.
        supernet: A supernet of this architecture and space to go on training, weights and scales, with a fresh
            optimizer; there is no float phase then.
    """

    later = frozenset({"weights", "supernet"})

    architecture: str | None
    arguments: dict[str, bool | int | float | str] = {}
    weights: str | None = None
    supernet: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.weights is not None and self.supernet is not None:
            raise ValueError("a run starts from weights or from a supernet, not from both")
        return self


class PreprocessingSettings(Section):
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


class SpaceSettings(Section):
    """Fields of :class:`eqdeploy.network.ElasticSpace`."""

    later = frozenset({"batch_norm", "scales", "residual"})

    bits: tuple[int, ...] = ElasticSpace.bits
    granularities: tuple[Granularity, ...] = ElasticSpace.granularities
    symmetries: tuple[Symmetry, ...] = ElasticSpace.symmetries
    narrow: bool = False
    boundary_bits: int = 8
    batch_norm: BatchNormTraining = ElasticSpace.batch_norm
    scales: ScaleTraining = ElasticSpace.scales
    residual: Residual = ElasticSpace.residual

    @model_validator(mode="after")
    def _check(self) -> SpaceSettings:
        self.to_space()
        return self

    def to_space(self) -> ElasticSpace:
        """The space that these settings describe."""
        return ElasticSpace(**dict(self))


class Precision(StrEnum):
    """Number format of layers and activations during training; parameters and quantizers are always float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    """Where training computes: on a GPU where torch finds one, on the processor, or on a GPU and nowhere else."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


#: A setting that a measurement at the start of a run decides.
Auto = Literal["auto"]


class ExecutionSettings(Section):
    """How the training steps are computed. All of it changes how sums are rounded, so it is part of the run.

    Attributes:
        device: Where; each process takes a GPU of its own.
        precision: ``bfloat16`` runs convolutions and matrix products under autocast: less than half the time on
            processors with AMX or AVX512-BF16 and on GPUs, slower elsewhere.
        channels_last: Keep images and weights with the channels innermost: a quarter faster for convolutions.
        compile: Compile the network once, half a minute that pays after some forty steps of ResNet-20; without a
            C++ compiler training goes on without.
    """

    later = frozenset({"device"})

    device: Device = Device.AUTO
    precision: Precision | Auto = "auto"
    channels_last: bool | Auto = "auto"
    compile: bool | Auto = "auto"

    @property
    def is_open(self) -> bool:
        """Whether a measurement has to decide anything."""
        return "auto" in (self.precision, self.channels_last, self.compile)


class OptimizerName(StrEnum):
    """The optimizer of a phase: SGD with Nesterov momentum, or Adam."""

    ADAM = "adam"
    SGD = "sgd"


class OptimizationSettings(Section):
    """An optimizer with linear warm-up and cosine decay to zero.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images of one step. An incomplete last batch of an epoch is left out.
        learning_rate: Peak learning rate.
        optimizer: Adam or SGD.
        betas: Decay of Adam's first and second moments.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty on weights; never on biases, BatchNorm, scales and zero-points.
        warm_up_steps: Steps over which the learning rate grows to its peak.
        restarts: How often the learning rate returns to its peak; the cycles are equally long.
        gradient_clip: Gradients are clipped to ± this value, element by element; null leaves them alone.
        label_smoothing: Share of every label that is spread over all classes.
        average_decay: Decay of an exponential moving average of all parameters, which is what is evaluated and
            saved in their place, such as 0.999; null for none. It starts as a plain mean of the first steps.
    """

    later = frozenset({"optimizer", "momentum", "restarts", "label_smoothing", "average_decay"})

    epochs: CountOrNone
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: LearningRate = 1e-3
    optimizer: OptimizerName = OptimizerName.ADAM
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 0.0
    warm_up_steps: CountOrNone = 0
    restarts: CountOrNone = 0
    gradient_clip: Positive | None = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None


class SupernetSettings(OptimizationSettings):
    """The optimizer of the supernet.

    Attributes:
        scale_learning_rate_factor: The learning rate of log2(scale) is the learning rate times this.
        zero_point_learning_rate_factor: The same for zero-points, which are counted in integer steps.
    """

    scale_learning_rate_factor: LearningRateFactor = 1.0
    zero_point_learning_rate_factor: LearningRateFactor = 1.0


class Guidance(StrEnum):
    """What guides the subnets of a step besides the labels.

    Attributes:
        PROGRESSIVE: Group progressive guidance: each subnet learns from the next better one (EQ-Net, Eq. 7-8).
        LABELS: Nothing.
        FLOAT: The float network that the supernet started from guides all three.
    """

    PROGRESSIVE = "progressive"
    LABELS = "labels"
    FLOAT = "float"


class DistillationSettings(Section):
    """Group progressive guidance (EQ-Net, Eq. 7-8) and what it is compared with.

    Attributes:
        guidance: Who guides whom.
        weight: λ, the share of the teacher in the loss of the random and the lowest subnet.
        temperature: Softening of both distributions.
    """

    later = frozenset({"guidance"})

    guidance: Guidance = Guidance.PROGRESSIVE
    weight: Fraction = 0.5
    temperature: Annotated[float, Field(gt=0, le=1e3)] = 1.0


class DistributionSettings(Section):
    """Weight distribution regularization (EQ-Net, Eq. 4-6).

    Attributes:
        kurtosis_weight: Weight of the kurtosis term.
        kurtosis_target: 1.8, the kurtosis of a uniform distribution.
        skewness_weight: Weight of the skewness term.
    """

    kurtosis_weight: NonNegative = 0.015
    kurtosis_target: Positive = 1.8
    skewness_weight: NonNegative = 1.0


class AugmentationSettings(Section):
    """Fields of :class:`eqdeploy.data.augmentation.Augmentation`."""

    later = frozenset({"crop_scale", "crop_ratio", "brightness", "contrast", "saturation"})

    shift: CountOrNone = 0
    flip: bool = False
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0

    @model_validator(mode="after")
    def _check(self) -> AugmentationSettings:
        # Imported late: torch is slow to import, and a configuration is read to be shown as well.
        from eqdeploy.data.augmentation import Augmentation

        Augmentation(**dict(self))
        return self


class FormSampling(StrEnum):
    """How granularity and symmetry are drawn in a step.

    Attributes:
        PER_LAYER: For every layer and tensor on its own, as in EQ-Net.
        PER_NETWORK: Once for all layers and tensors of a subnet, as most devices are.
    """

    PER_LAYER = "per_layer"
    PER_NETWORK = "per_network"


class StaticSettings(Section):
    """The one form of a static quantized network.

    Attributes:
        bits: Width of weights and activations; the first and the last layer have the space's boundary width.
        granularity: Granularity of the weights.
        symmetry: Symmetry of weights and activations.
    """

    bits: int
    granularity: Granularity
    symmetry: Symmetry


class CalibrationSettings(Section):
    """Training images that set what is not learned.

    Attributes:
        initialization_images: Images that the scales are initialized from.
        batch_norm_images: Augmented images that BatchNorm statistics are estimated on before an evaluation.
    """

    initialization_images: Count = 256
    batch_norm_images: Annotated[int, Field(ge=2)] = 1024
