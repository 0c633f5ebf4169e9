"""What a user asks for: plain data that the command line fills in and the pipeline carries out.

A *reference* is a string that stands for a thing: the name of something that is shipped, or a path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: A function that makes the float model, a ``torch.nn.Module``: itself, or ``package.module:function``.
ModelFactory = str | Callable[[], Any]

#: Name of the supernet and of the data that are shipped and used when nothing else is asked for.
DEFAULT_SUPERNET = "digits"
DEFAULT_DATA = "digits"

#: Folder that receives one folder per profile.
DEFAULT_OUTPUT = Path("build")

#: Largest seed that every generator of random numbers takes.
MAXIMUM_SEED = (1 << 63) - 1

#: Images from which BatchNorm statistics and ranges are estimated.
CALIBRATION_IMAGES = 1024

#: Images on which integer codes are compared.
PARITY_IMAGES = 256


@dataclass(frozen=True)
class Gates:
    """Limits that an exported model is judged by; None leaves them to the profile, and then to the default.

    Attributes:
        min_accuracy: Smallest top-1 accuracy of the exported model, a fraction between 0 and 1; no limit by default.
        max_drop: Largest loss of top-1 accuracy against the float model, a fraction between 0 and 1; no limit by
            default.
        max_export_drop: Loss of top-1 accuracy against the simulated subnet that is accepted beyond what chance
            allows, a fraction between 0 and 1.
        min_agreement: Smallest fraction of the simulated subnet's decisions that the exported model makes, too.
        min_sqnr: Smallest distance from float of every output and every quantized tensor, in dB.
        max_float_share: Largest share of parameters, and of operations, that stay float; no limit by default.

    Raises:
        ValueError: If a fraction lies outside 0 to 1, or ``min_sqnr`` is not finite.
    """

    min_accuracy: float | None = None
    max_drop: float | None = None
    max_export_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr: float | None = None
    max_float_share: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "min_sqnr":
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"{name} must be a finite number of dB, got {value}")
            elif value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")

    def or_else(self, others: Gates) -> Gates:
        """These limits, and those of ``others`` where there is none."""
        return Gates(**{name: value for gates in (others, self) for name, value in gates.given().items()})

    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


#: What every artifact is judged by unless somebody says otherwise; docs/validation.md gives the reasons.
DEFAULT_GATES = Gates(max_export_drop=0.0, min_agreement=0.75)

#: Subnets that a search measures to fit a predictor to, where there is none.
DEFAULT_SAMPLES = 400


@dataclass(frozen=True)
class SearchOptions:
    """How to search for a subnet.

    Attributes:
        budgets: Limits such as ``"avg_weight_bits<=3.5"``, which hold together.
        predictor: File of a predictor; None for the shipped one of the supernet and the data, or one that is fitted to
            measurements.
        latency: CSV file of measured times of each layer, for budgets of ``latency_ms``.
        measurements: Folder of measurements to fit a predictor to, gone on with where it exists; None for one beside
            the output that belongs to the supernet and the data.
        samples: Number of subnets that the folder has to hold; None for :data:`DEFAULT_SAMPLES`. With a number, or a
            folder, no shipped predictor is taken.
        keep: How many of the genetic algorithm's best are truly measured.
        front: Metrics of the Pareto front; that of the first budget by default.
        population: Subnets that are evaluated in each generation.
        generations: Number of generations.
    """

    budgets: tuple[str, ...] = ()
    predictor: Path | None = None
    latency: Path | None = None
    measurements: Path | None = None
    samples: int | None = None
    keep: int = 10
    front: tuple[str, ...] = ()
    population: int = 100
    generations: int = 500


@dataclass(frozen=True)
class SearchRequest:
    """Search for the subnet of a device that loses least within budgets.

    Attributes:
        profile: Reference of the device profile.
        options: How to search.
        supernet: Reference of the checkpoint.
        model: Makes the float model, when the checkpoint does not name a known one.
        data: Reference of labelled data; only its training images are used.
        output: Folder that receives the files; None for ``search/<profile>`` in ``workspace``.
        workspace: Folder of what several runs share.
        force: Whether what an earlier search wrote may be replaced.
        seed: Seed of the search. Which subnets and images are measured does not depend on it.
        run_code: Whether ``data`` may be ``package.module:function``, which is imported and called. Only for what the
            user names in this very call, never for what stands in a file.
    """

    profile: str
    options: SearchOptions = field(default_factory=SearchOptions)
    supernet: str = DEFAULT_SUPERNET
    model: ModelFactory | None = None
    data: str = DEFAULT_DATA
    output: Path | None = None
    workspace: Path = DEFAULT_OUTPUT
    force: bool = False
    seed: int = 0
    run_code: bool = False


@dataclass(frozen=True)
class ExportRequest:
    """Export a supernet for one or more devices.

    Attributes:
        profiles: References of device profiles, at least one.
        supernet: Reference of the checkpoint.
        model: Makes the float model, when the checkpoint does not name a known one.
        data: Reference of calibration images, which also give accuracy where they are labelled.
        output: Folder that receives one folder per profile.
        subnet: Subnet file that takes the place of the profile's own choice of bits.
        search: How to search for a subnet for each profile, None not to.
        gates: Limits that the artifact is judged by.
        force: Whether an existing artifact may be replaced.
        seed: Seed of every random choice.
        calibration_images: Largest number of images used for calibration.
        parity_images: Largest number of images used for comparing integer codes.
        dynamic_size: Whether height and width of the images are free in the files, where the network allows it.
        run_code: Whether ``data`` may be ``package.module:function``, which is imported and called. Only for what the
            user names in this very call, never for what stands in a file.
        strict: Whether to refuse calibration images that do not look like training images.
    """

    profiles: tuple[str, ...]
    supernet: str = DEFAULT_SUPERNET
    model: ModelFactory | None = None
    data: str = DEFAULT_DATA
    output: Path = DEFAULT_OUTPUT
    subnet: Path | None = None
    search: SearchOptions | None = None
    gates: Gates = field(default_factory=Gates)
    force: bool = False
    seed: int = 0
    calibration_images: int = CALIBRATION_IMAGES
    parity_images: int = PARITY_IMAGES
    dynamic_size: bool = False
    run_code: bool = False
    strict: bool = False


@dataclass(frozen=True)
class ResolveRequest:
    """Resolve one profile without computing any number.

    Attributes:
        profile: Reference of the device profile.
        supernet: Reference of the checkpoint.
        model: Makes the float model, when the checkpoint does not name a known one.
        subnet: Subnet file that takes the place of the profile's own choice of bits.
    """

    profile: str
    supernet: str = DEFAULT_SUPERNET
    model: ModelFactory | None = None
    subnet: Path | None = None


@dataclass(frozen=True)
class ValidateRequest:
    """Prove an artifact again from its files.

    Attributes:
        supernet: Reference of the checkpoint it was exported from; None for the one that the artifact names.
        model: Makes the float model, when the checkpoint does not name a known one.
        data: Reference of the images; None for the data that the artifact names.
        gates: Limits on the accuracy.
        seed: Seed of every random choice.
        parity_images: Largest number of images used for comparing integer codes.
        run_code: Whether ``data``, where it is given, may be ``package.module:function``, which is imported and
            called. Only for what the user names in this very call, never for what stands in a file.
    """

    supernet: str | None = None
    model: ModelFactory | None = None
    data: str | None = None
    gates: Gates = field(default_factory=Gates)
    seed: int = 0
    parity_images: int = PARITY_IMAGES
    run_code: bool = False


@dataclass(frozen=True)
class EvaluateRequest:
    """Measure top-1 accuracy on labelled data.

    Attributes:
        target: Artifact folder or ONNX file to evaluate; None to evaluate the supernet.
        supernet: Reference of the checkpoint.
        model: Makes the float model, when the checkpoint does not name a known one.
        data: Reference of labelled data.
        profile: Reference of the profile whose subnet is evaluated; None for the float model.
        subnet: Subnet file to evaluate instead.
        gates: Limits on the accuracy.
        seed: Seed of every random choice.
        calibration_images: Largest number of images used for calibration.
        run_code: Whether ``data`` may be ``package.module:function``, which is imported and called. Only for what the
            user names in this very call, never for what stands in a file.
    """

    target: Path | None = None
    supernet: str = DEFAULT_SUPERNET
    model: ModelFactory | None = None
    data: str = DEFAULT_DATA
    profile: str | None = None
    subnet: Path | None = None
    gates: Gates = field(default_factory=Gates)
    seed: int = 0
    calibration_images: int = CALIBRATION_IMAGES
    run_code: bool = False


@dataclass(frozen=True)
class TrainRequest:
    """Train a supernet.

    Attributes:
        configuration: Training configuration file, or the name of a shipped one.
        output: Folder that receives the checkpoint and the log.
        model: Makes the float model, in the place of the configuration's.
        data: Reference of data that takes the place of the configuration's.
        loss: ``package.module:function`` that takes the place of the configuration's loss.
        seed: Seed that takes the place of the configuration's.
        weights: File with float weights to start from, in the place of the configuration's.
        supernet: Name of a shipped supernet, or a checkpoint, to go on training.
        probes: Number of held-out images for the checkpoint that takes the place of the configuration's.
        float_only: Whether to stop when the float network is trained.
        tensorboard: Folder that receives event files for TensorBoard, None for no such files.
        resume: Whether to go on from the state that an earlier run left in ``output``.
        force: Whether an existing result may be replaced.
    """

    configuration: str
    output: Path
    model: ModelFactory | None = None
    data: str | None = None
    loss: str | None = None
    seed: int | None = None
    weights: str | None = None
    supernet: str | None = None
    probes: int | None = None
    float_only: bool = False
    tensorboard: Path | None = None
    resume: bool = False
    force: bool = False


@dataclass(frozen=True)
class ConvertRequest:
    """Make a supernet of a float network without training.

    Attributes:
        output: File of the checkpoint.
        data: Reference of calibration images; no labels are needed.
        bits: Widths that scales are found for, and that a profile can ask for, ascending.
        calibration_images: Largest number of images used for finding scales.
        force: Whether an existing file may be replaced.
        run_code: Whether ``data`` may be ``package.module:function``, which is imported and called. Only for what the
            user names in this very call, never for what stands in a file.
    """

    output: Path
    data: str = DEFAULT_DATA
    bits: tuple[int, ...] = (8,)
    calibration_images: int = 256
    force: bool = False
    run_code: bool = False


@dataclass(frozen=True)
class SampleRequest:
    """Measure subnets of a supernet.

    Attributes:
        output: Folder of the measurements; one that exists is gone on with.
        count: Number of subnets that it has to hold of the list that seed and forms determine.
        supernet: Reference of the checkpoint.
        model: Makes the float model, when the checkpoint does not name a known one.
        data: Reference of labelled data; only its training images are used.
        images: Number of training images that subnets are judged on; None for 10,000 or all that there are.
        calibration_images: Number of other training images that BatchNorm is calibrated on; None for 1,024 or a
            sixth of all.
        forms: ``"per_network"`` to draw granularity and symmetries once for each subnet, ``"per_layer"`` to draw them
            for every layer and tensor.
        seed: Seed of images and subnets.
        run_code: Whether ``data`` may be ``package.module:function``, which is imported and called. Only for what the
            user names in this very call, never for what stands in a file.
    """

    output: Path
    count: int
    supernet: str = DEFAULT_SUPERNET
    model: ModelFactory | None = None
    data: str = DEFAULT_DATA
    images: int | None = None
    calibration_images: int | None = None
    forms: str = "per_network"
    seed: int = 0
    run_code: bool = False


@dataclass(frozen=True)
class FitRequest:
    """Fit a predictor to measurements.

    Attributes:
        store: Folder of the measurements.
        output: File of the predictor.
        target: ``"cross_entropy"`` or ``"accuracy"``.
        held_out: Number of measured subnets that the predictor is judged on; None for a third.
        seed: Seed of the split and of the fit.
        force: Whether existing files may be replaced.
    """

    store: Path
    output: Path
    target: str = "cross_entropy"
    held_out: int | None = None
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class LatencyRequest:
    """Measure how long each layer takes in ONNX Runtime on this machine.

    Attributes:
        output: Table of times.
        profile: Reference of the device profile, which gives the widths and the forms.
        supernet: Reference of the checkpoint.
        model: Makes the float model, when the checkpoint does not name a known one.
        runs: Measurements of each layer.
        threads: Threads inside an operator.
        force: Whether an existing table may be replaced.
    """

    output: Path
    profile: str
    supernet: str = DEFAULT_SUPERNET
    model: ModelFactory | None = None
    runs: int = 50
    threads: int = 1
    force: bool = False
