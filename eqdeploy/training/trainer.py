"""Train a supernet: float pre-training, initialization of all scales, sandwich steps, evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.references import load_data
from eqdeploy.errors import CheckpointError, DataError, OutputError, ProfileError, UsageError
from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.supernet.checkpoint import ArchitectureReference, metadata_of, save_checkpoint
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import Batch, TrainingBatches, augmented_images, derive_seed, seeded_generator
from eqdeploy.training.config import ModelSettings, OptimizationSettings, TrainingConfig
from eqdeploy.training.evaluate import Evaluation, calibrated_correct, evaluate_grid, even_batches
from eqdeploy.training.log import TrainingLog
from eqdeploy.training.optimizer import clip_gradients, make_optimizer, require_finite_parameters, set_learning_rate
from eqdeploy.training.sampling import sample_sandwich
from eqdeploy.training.schedule import cosine_learning_rate
from eqdeploy.training.state import Phase, Position, TrainingState, load_state, restore_state, save_state
from eqdeploy.training.steps import float_gradients, sandwich_gradients
from eqdeploy.zoo import build

LOG_SCHEMA = 1

#: What random numbers are drawn for, to derive one seed each.
_MODEL, _SUBNETS, _AUGMENTATION, _CALIBRATION, _SHUFFLING = range(5)


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run made.

    Attributes:
        checkpoint: The supernet.
        log: The training log beside it.
        float_accuracy: Share of held-out images that the pre-trained float network classifies correctly, before
            any quantization-aware step: the yardstick for the grid.
        evaluation: Accuracy of every uniform form.
        resumed_at: Where an earlier run was taken up, None for a run from the start.
    """

    checkpoint: Path
    log: Path
    float_accuracy: float
    evaluation: Evaluation
    resumed_at: Position | None


@dataclass(frozen=True)
class RunFiles:
    """Files of a run, beside each other in its folder.

    Attributes:
        checkpoint: The result.
        log: The training log.
        state: There only while the run is unfinished.
    """

    checkpoint: Path
    log: Path
    state: Path

    @staticmethod
    def of(folder: Path) -> RunFiles:
        """Name the files of a run in its folder."""
        return RunFiles(
            checkpoint=folder / "supernet.safetensors",
            log=folder / "training.jsonl",
            state=folder / "state.safetensors",
        )

    def refuse_overwriting(self) -> None:
        """Refuse to start where a run has finished or can be resumed.

        Raises:
            OutputError: If the checkpoint or a saved state exists.
        """
        if self.state.exists():
            raise OutputError(
                "an unfinished training is saved here", where=str(self.state), hint="resume it, or force a new start"
            )
        if self.checkpoint.exists():
            raise OutputError("the file exists already", where=str(self.checkpoint), hint="force to overwrite it")

    def remove_state(self) -> None:
        """Remove a saved state that is no longer needed.

        Raises:
            OutputError: If it cannot be removed.
        """
        try:
            self.state.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove: {error.strerror or error}", where=str(self.state)) from error


def train(
    config: TrainingConfig,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    model: nn.Module | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a supernet and write its checkpoint and log.

    The same configuration, data, software and processor give the same bytes, whether or not the run was killed
    and resumed in between. The caller's thread count and random state are as before afterwards.

    Args:
        config: What to train and how.
        output: Folder that receives the checkpoint, the log and, until the run is finished, its state.
        resume: Take up a saved state where there is one; without one, start.
        overwrite: Replace a finished or unfinished run.
        model: A float model that takes the place of the configuration's.
        progress: Who listens.

    Returns:
        Where the files are and how good the supernet is.

    Raises:
        UsageError: If the configuration names no model and none is passed, or one that does not exist.
        ProfileError: If the network's output does not fit the data.
        DataError: If the data cannot be loaded or do not fit the network.
        UnsupportedOperationError: If the model cannot be converted.
        TrainingError: If a loss or parameter is not finite, or the saved state belongs to another configuration.
            The last saved state stays as it was.
        CheckpointError: If the saved state is damaged.
        OutputError: If a file exists already or cannot be written.
    """
    files = RunFiles.of(output)
    if model is not None:
        config = config.model_copy(update={"model": ModelSettings(architecture=None)})
    if not overwrite and not (resume and files.state.exists()):
        files.refuse_overwriting()
    with _computing(threads=config.threads, seed=derive_seed(config.seed, _MODEL)):
        return _Run(config, files, model, progress or SilentProgress()).train(resume=resume)


class _Run:
    """One run: its data, model and random generators."""

    def __init__(self, config: TrainingConfig, files: RunFiles, model: nn.Module | None, progress: Progress) -> None:
        self.config = config
        self.files = files
        self.progress = progress
        self.preprocessing = config.preprocessing.to_preprocessing()
        self.augmentation = Augmentation(**dict(config.augmentation))
        self.train_data = load_data(config.data, split="train", preprocessing=self.preprocessing)
        self.test_data = load_data(config.data, split="test", preprocessing=self.preprocessing)
        if self.train_data.classes != self.test_data.classes:
            raise DataError("training and held-out images have different classes", where=config.data)
        if self.train_data.digest == self.test_data.digest:
            progress.note("the held-out images are the training images: accuracies will look better than they are")
        self.supernet = _make_supernet(config, model, self.preprocessing, self.train_data)
        self.generators = {
            "subnets": seeded_generator(config.seed, _SUBNETS),
            "augmentation": seeded_generator(config.seed, _AUGMENTATION),
            "global": torch.default_generator,  # dropout and stochastic depth draw from it
        }
        self.calibration = augmented_images(
            self.train_data,
            self.preprocessing,
            self.augmentation,
            count=config.calibration.batch_norm_images,
            generator=seeded_generator(config.seed, _CALIBRATION),
        )

    def train(self, *, resume: bool) -> TrainingResult:
        """Run both phases from the start or from the saved state, evaluate, write the result."""
        state: TrainingState | None = None
        if resume and self.files.state.exists():
            state = load_state(self.files.state, configuration=self._identity())
        else:
            # First of all: what an earlier run left must never be taken for a state of this one.
            self.files.remove_state()
        resumed_at = state.position if state else None
        position = resumed_at or Position(Phase.FLOAT, 0, 0)
        with TrainingLog(self.files.log, keep=position.log_lines) as log:
            if state is None:
                log.write({"schema": LOG_SCHEMA, "configuration": self.config.digest, "data": self.train_data.digest})
            if position.phase is Phase.FLOAT:
                position = self._run_phase(position, self.config.float_training, state, log)
                position, state = self._finish_float(position, log), None
            position = self._run_phase(position, self.config.supernet_training, state, log)
            evaluation = self._evaluate()
            log.write({"phase": "evaluation", **evaluation.to_json()})
        assert position.float_accuracy is not None
        self._write_checkpoint(position.float_accuracy, evaluation)
        self.files.remove_state()
        return TrainingResult(
            checkpoint=self.files.checkpoint,
            log=self.files.log,
            float_accuracy=position.float_accuracy,
            evaluation=evaluation,
            resumed_at=resumed_at,
        )

    def _run_phase(
        self, position: Position, settings: OptimizationSettings, state: TrainingState | None, log: TrainingLog
    ) -> Position:
        """Run the steps of a phase that are left, saving the state now and then and at the end."""
        batches = TrainingBatches(
            self.train_data,
            self.preprocessing,
            self.augmentation,
            batch_size=settings.batch_size,
            seed=derive_seed(self.config.seed, _SHUFFLING, list(Phase).index(position.phase)),
        )
        steps = settings.epochs * batches.steps_per_epoch
        optimizer = make_optimizer(self.supernet, settings)
        if state is not None:
            restore_state(state, model=self.supernet, optimizer=optimizer, generators=self.generators)
            if position.step > steps:
                raise CheckpointError(f"step {position.step} of {steps}", where=str(state.path))
        self.supernet.train()
        with self.progress.stage(f"training the {position.phase} network", total=steps) as advance:
            advance(position.step)
            for step in range(position.step, steps):
                rate = cosine_learning_rate(
                    step, steps=steps, warm_up_steps=settings.warm_up_steps, peak=settings.learning_rate
                )
                set_learning_rate(optimizer, rate)
                optimizer.zero_grad(set_to_none=True)
                losses = self._gradients(position.phase, batches.batch(step, self.generators["augmentation"]), step)
                clip_gradients(optimizer, settings.gradient_clip)
                optimizer.step()
                self.supernet.canonicalize()
                log.write({"phase": position.phase, "step": step, "learning_rate": _rounded(rate), **losses})
                position = replace(position, step=step + 1, log_lines=log.lines)
                if position.step % self.config.checkpoint_interval_steps == 0 or position.step == steps:
                    self._save(position, optimizer, log)
                advance(1)
        return position

    def _gradients(self, phase: Phase, batch: Batch, step: int) -> dict[str, float]:
        """Compute the gradients of one step; return its losses for the log."""
        if phase is Phase.FLOAT:
            self.supernet.deactivate()
            return {"loss": _rounded(float_gradients(self.supernet, batch, step=step))}
        losses = sandwich_gradients(
            self.supernet,
            batch,
            sample_sandwich(self.supernet.network, self.generators["subnets"]),
            distillation=self.config.distillation,
            weight_distribution=self.config.weight_distribution,
            step=step,
        )
        return {name: _rounded(value) for name, value in losses._asdict().items()}

    def _finish_float(self, position: Position, log: TrainingLog) -> Position:
        """Measure the float network, initialize every form from it and save the start of the next phase."""
        self.supernet.deactivate()
        correct = calibrated_correct(self.supernet, self.calibration, self.test_data, self.preprocessing)
        accuracy = correct / len(self.test_data)
        log.write({"phase": "float_evaluation", "correct": correct, "images": len(self.test_data)})
        self.progress.note(f"float accuracy {accuracy:.2%}")
        with self.progress.stage("initializing scales"):
            # Spread, not the first ones: stored images are often sorted by class.
            rows = spread_indices(len(self.calibration), self.config.calibration.initialization_images)
            self.supernet.initialize(self.calibration[torch.from_numpy(rows)])
        position = Position(Phase.SUPERNET, 0, log.lines, accuracy)
        self._save(position, make_optimizer(self.supernet, self.config.supernet_training), log)
        return position

    def _save(self, position: Position, optimizer: torch.optim.Optimizer, log: TrainingLog) -> None:
        """Save the state, unless it is not worth resuming from."""
        require_finite_parameters(self.supernet, step=position.step)
        log.sync()
        save_state(
            self.files.state,
            position=position,
            model=self.supernet,
            optimizer=optimizer,
            generators=self.generators,
            configuration=self._identity(),
        )

    def _identity(self) -> Mapping[str, Any]:
        """What must be the same when a run is resumed."""
        return {
            **self.config.canonical(),
            "data_digests": {"train": self.train_data.digest, "test": self.test_data.digest},
            "torch": torch.__version__,
        }

    def _evaluate(self) -> Evaluation:
        """Measure the grid."""
        space = self.supernet.network.space
        total = 1 + len(space.weight_forms())
        with self.progress.stage("evaluating all forms", total=total) as advance:
            return evaluate_grid(
                self.supernet,
                calibration=self.calibration,
                data=self.test_data,
                preprocessing=self.preprocessing,
                advance=advance,
            )

    def _write_checkpoint(self, float_accuracy: float, evaluation: Evaluation) -> None:
        """Write the supernet, with the BatchNorm statistics of its float network."""
        self.supernet.deactivate()
        calibrate_batch_norm(self.supernet, even_batches(self.calibration))
        self.supernet.eval()
        model = self.config.model
        metadata = metadata_of(
            self.supernet,
            architecture=ArchitectureReference(name=model.architecture, arguments=dict(model.arguments)),
            preprocessing=self.preprocessing,
            augmentation=self.augmentation,
            classes=self.train_data.classes,
            provenance={
                "configuration": self.config.digest,
                "data": self.train_data.source,
                "data_digest": self.train_data.digest,
                "float_accuracy": float_accuracy,
                "supernet_float_accuracy": evaluation.float_accuracy,
                "torch": torch.__version__,
            },
        )
        save_checkpoint(self.supernet, metadata, self.files.checkpoint)


def _make_supernet(
    config: TrainingConfig, model: nn.Module | None, preprocessing: Preprocessing, data: LabelledImages
) -> Supernet:
    """Build and convert the float model, and check that it fits the data."""
    name = config.model.architecture
    if model is None:
        if name is None:
            raise UsageError(
                "the configuration names no architecture and no model is given", where="model.architecture"
            )
        model = build(name, config.model.arguments)
    supernet = Supernet.from_float(model, torch.zeros((2, *preprocessing.shape)), config.space.to_space())
    supernet.eval()
    with torch.no_grad():
        output: Tensor = supernet(torch.zeros((2, *preprocessing.shape)))
    if output.ndim != 2 or output.shape[1] != len(data.classes):
        raise ProfileError(
            f"the network returns {tuple(output.shape[1:])} for an image, the data have {len(data.classes)} classes",
            where=f"model: {name or type(model).__name__}",
            hint="set the number of classes in model.arguments",
        )
    return supernet


@contextmanager
def _computing(*, threads: int, seed: int) -> Iterator[None]:
    """Set torch's threads and global random state, and put both back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed >> 1)
            yield
    finally:
        torch.set_num_threads(before)


def _rounded(value: float) -> float:
    """Six significant digits are enough for a log."""
    return float(f"{value:.6g}")
