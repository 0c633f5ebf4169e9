"""What a search goes by: a predictor (given, shipped, or fitted here), and measurements of candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.errors import UsageError
from eqdeploy.pipeline.fit import fit, measurements_digest, predictor_subnets
from eqdeploy.pipeline.measuring import Measuring, load_training_images, measure_into, prepare_measuring
from eqdeploy.pipeline.sample import sample
from eqdeploy.pipeline.sources import LoadedSupernet, load_supernet, shipped_predictor
from eqdeploy.progress import Progress
from eqdeploy.requests import DEFAULT_SAMPLES, FitRequest, ModelFactory, SampleRequest, SearchOptions
from eqdeploy.search.encoding import SubnetEncoding
from eqdeploy.search.measurement import SubnetMeasurement
from eqdeploy.search.outcome import MeasuredOn, PredictorRecord
from eqdeploy.search.predictor import Predictor, Target
from eqdeploy.search.sampling import sample_subnets
from eqdeploy.search.space import SearchSpace
from eqdeploy.search.store import HEADER_FILE, MeasurementStore, Source
from eqdeploy.search.surrogate import Predict
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.settings import Device
from eqdeploy.training.workers import ALONE

PREDICTOR_FILE = "predictor.safetensors"

#: About so many candidates are measured: whether it pays to compile must not depend on how many of them are known.
_CANDIDATES = 30

#: Letters of the digest in the name of a folder that nobody chose.
_DIGEST_LETTERS = 12

#: Seed of measured subnets and images where no folder says another: searches with different seeds share them.
_SEED = 0


@dataclass(frozen=True)
class EvidenceSource:
    """Where evidence comes from.

    Attributes:
        supernet: Reference of the checkpoint.
        model: Makes the float model.
        data: Reference of labelled data.
        run_code: Whether ``data`` may name a function to call.
        workspace: Folder of what several runs share.
        options: How to search.
    """

    supernet: str
    model: ModelFactory | None
    data: str
    run_code: bool
    workspace: Path
    options: SearchOptions


@dataclass(frozen=True, eq=False)
class FoundPredictor:
    """A predictor and where it came from.

    Attributes:
        predictor: The predictor.
        path: Its file.
        record: What is noted of it.
    """

    predictor: Predictor
    path: Path
    record: PredictorRecord


class Evidence:
    """Predicts and measures the subnets of one supernet; does nothing before it is asked.

    Args:
        source: Where everything comes from.
        loaded: The supernet.
        progress: Who listens.

    Raises:
        UsageError: If the predictor that is given belongs to something else.
        CheckpointError: If its file is missing or damaged.
    """

    def __init__(self, source: EvidenceSource, loaded: LoadedSupernet, progress: Progress) -> None:
        options = source.options
        if options.predictor is not None and not (options.measurements is None and options.samples is None):
            other = "--samples" if options.measurements is None else "--measurements"
            raise UsageError(
                f"cannot be given together with {other}",
                where="--predictor",
                hint="a predictor is either given or fitted to measurements",
            )
        self._source = source
        self._loaded = loaded
        self._progress = progress
        self._given = None if options.predictor is None else self._read(options.predictor, "file")

    def check(self, space: SearchSpace) -> None:
        """Refuse what cannot become a prediction, before anything takes time.

        Raises:
            UsageError: If the predictor that is given never saw a choice of the space, the measurements that are given
                are of something else, or too few subnets are to be measured to fit a predictor.
        """
        if self._given is not None:
            self._specialized(self._given, space)
            return
        if self._source.options.measurements is not None:
            _ = self._measuring
        samples, needed = self._source.options.samples, self._needed
        if samples is not None and samples < needed:
            raise UsageError(
                f"{samples} subnets are too few for a predictor, it needs {needed}",
                where="--samples",
                hint=f"--samples {needed}, or leave it out",
            )

    def predict(self, space: SearchSpace) -> Predict:
        """The predictor on a space.

        Raises:
            EqDeployError: Whatever prevents that one is found or fitted, or that it knows the space.
        """
        predict = self._specialized(self.found, space)
        unseen = self.found.predictor.unseen_fixed(space)
        if unseen is not None:
            self._progress.note(f"the predictor never saw {unseen}: what that costs is missing in all its predictions")
        return predict

    @cached_property
    def found(self) -> FoundPredictor:
        """The predictor that is given, else the shipped one of this supernet and data, else one that is fitted here."""
        if self._given is not None:
            fitted_on = self._given.predictor.provenance.get("data_digest")
            if fitted_on not in (None, self._data.digest):
                self._progress.note(f"{self._given.path} was fitted to measurements on other images")
            return self._given
        options = self._source.options
        shipped = shipped_predictor(self._loaded.digest)
        if shipped is not None and options.samples is None and options.measurements is None:
            found = self._read(shipped, "shipped")
            if found.predictor.provenance.get("data_digest") == self._data.digest:
                return found
        return self._fitted()

    @property
    def measured_on(self) -> MeasuredOn:
        """The images that candidates are measured on."""
        header = self._measuring.header
        return MeasuredOn(
            data=Path(header.data.name).name,
            data_digest=header.data.digest,
            images=header.images,
            calibration_images=header.calibration_images,
            seed=header.seed,
        )

    def measure(self, subnets: Sequence[SubnetConfig]) -> list[SubnetMeasurement]:
        """Measure subnets; those that an earlier or killed run has measured are not measured again.

        Raises:
            DataError: If the images are unlabelled or too few.
            OutputError: If the measurements cannot be written.
        """
        folder = self._workspace_folder()
        store = MeasurementStore.create(folder.with_name(f"{folder.name}-candidates"), self._measuring.header)
        known = store.read()
        missing = [subnet for subnet in subnets if subnet not in known]
        if missing:
            with store.appending(None) as appender:  # searches side by side share what they measure
                measure_into(appender, self._measuring, missing, self._progress, stage="measuring candidates")
        known = store.read()
        return [known[subnet] for subnet in subnets]

    def _fitted(self) -> FoundPredictor:
        """Measure, unless that was done, and fit, unless that was done to the same measurements."""
        source, header = self._source, self._measuring.header
        folder = source.options.measurements or self._workspace_folder()
        wanted = max(DEFAULT_SAMPLES, self._needed) if source.options.samples is None else source.options.samples
        if len(_measured(folder)) < wanted:
            self._progress.note(f"a predictor will be fitted: measuring {wanted} subnets, kept in {folder}")
            request = SampleRequest(
                folder,
                wanted,
                supernet=source.supernet,
                model=source.model,
                data=source.data,
                images=header.images,
                calibration_images=header.calibration_images,
                seed=header.seed,
                run_code=source.run_code,
            )
            sample(request, self._progress)
        path = folder / PREDICTOR_FILE
        digest = measurements_digest(list(_measured(folder).items()))
        # A run that was killed before its picture was drawn fits again, to the same predictor.
        if path.is_file() and path.with_suffix(".png").is_file():
            kept = self._read(path, "fitted")
            same = kept.predictor.provenance.get("measurements_digest") == digest
            if same and kept.predictor.target is Target.CROSS_ENTROPY:
                return kept
        fit(FitRequest(folder, path, force=True), self._progress)
        return self._read(path, "fitted")

    def _read(self, path: Path, source: str) -> FoundPredictor:
        """Load a predictor and refuse that of another supernet.

        Raises:
            UsageError: If it is of another supernet; names both digests.
            CheckpointError: If the file is missing or damaged.
        """
        predictor = Predictor.load(path)
        own, other = self._loaded.digest, predictor.provenance.get("supernet_digest", self._loaded.digest)
        hint = "sample and fit with this supernet, or leave --predictor out: the search then does both"
        if own != other:
            name = predictor.provenance.get("supernet", "another supernet")
            raise UsageError(
                f"was fitted for {name} ({other}), not for {self._loaded.name} ({own})", where=str(path), hint=hint
            )
        encoding = SubnetEncoding.of(self._loaded.checkpoint.supernet.network)
        if predictor.encoding != encoding:
            raise UsageError(
                f"was fitted for another space ({predictor.encoding.digest}) than that of {self._loaded.name} "
                f"({encoding.digest})",
                where=str(path),
                hint=hint,
            )
        subnets, kendall = (predictor.provenance.get(key) for key in ("subnets", "held_out_kendall"))
        record = PredictorRecord(
            source=source,
            name=path.name,
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
            target=predictor.target.value,
            subnets=subnets if isinstance(subnets, int) else None,
            held_out_kendall=kendall if isinstance(kendall, float) else None,
        )
        return FoundPredictor(predictor, path, record)

    @staticmethod
    def _specialized(found: FoundPredictor, space: SearchSpace) -> Predict:
        """The predictor on a space.

        Raises:
            UsageError: If it never saw a choice of it; names its file.
        """
        try:
            predict: Predict = found.predictor.on(space)
        except UsageError as error:
            raise UsageError(error.message, where=error.where or str(found.path), hint=error.hint) from error
        return predict

    @cached_property
    def _needed(self) -> int:
        """Fewest measured subnets from which a predictor can be fitted."""
        network = self._loaded.checkpoint.supernet.network
        first = sample_subnets(network, min(self._source.options.samples or DEFAULT_SAMPLES, DEFAULT_SAMPLES))
        return predictor_subnets(SubnetEncoding.of(network), first)

    @cached_property
    def _data(self) -> LabelledImages:
        """The training images."""
        return load_training_images(self._source.data, self._loaded, self._progress, run_code=self._source.run_code)

    @cached_property
    def _measuring(self) -> Measuring:
        """What candidates are measured with: as the folder of measurements says that its subnets were."""
        source, folder = self._source, self._source.options.measurements
        kept = None
        if folder is not None and _exists(folder):
            store = MeasurementStore.open(folder)
            store.require_sources(
                Source(name=self._loaded.name, digest=self._loaded.digest),
                Source(name=self._data.source, digest=self._data.digest),
            )
            kept = store.header
        # A copy of its own: the network of an export stays where it is.
        loaded = load_supernet(source.supernet, source.model)
        loaded.checkpoint.supernet.to(ALONE.device(Device.AUTO))
        return prepare_measuring(
            loaded,
            self._data,
            subnets=_CANDIDATES,
            seed=_SEED if kept is None else kept.seed,
            images=None if kept is None else kept.images,
            calibration_images=None if kept is None else kept.calibration_images,
        )

    def _workspace_folder(self) -> Path:
        """Folder of measurements that belongs to supernet and images alone."""
        header = self._measuring.header
        parts = (header.supernet.digest, header.data.digest, header.seed, header.images, header.calibration_images)
        digest = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:_DIGEST_LETTERS]
        name = Path(self._loaded.name).stem
        return self._source.workspace / "measurements" / f"{name}-{digest}"


def _exists(folder: Path) -> bool:
    """Whether a folder holds measurements."""
    return (folder / HEADER_FILE).exists()


def _measured(folder: Path) -> dict[SubnetConfig, SubnetMeasurement]:
    """What a folder holds, nothing if there is none."""
    return MeasurementStore.open(folder).read() if _exists(folder) else {}
