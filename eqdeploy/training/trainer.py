"""Train a supernet: float pre-training, initialization of all scales, sandwich steps, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.labelled import spread_indices
from eqdeploy.data.options import LoadOptions
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.references import load_images
from eqdeploy.errors import DataError, UsageError
from eqdeploy.progress import Progress, SilentProgress
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.fold_batch_norms import fold_batch_norms
from eqdeploy.supernet.inputs import batch_size, map_inputs
from eqdeploy.training.automatic import Workload, decide
from eqdeploy.training.average import ParameterAverage
from eqdeploy.training.batches import Batch, TrainingBatches, augmented_images, derive_seed, seeded_generator
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.evaluate import Evaluation, UniformForm, calibrated_correct, count_correct, evaluate_grid
from eqdeploy.training.execution import Forward, StepMode, computing, prepare
from eqdeploy.training.float_weights import save_float_weights
from eqdeploy.training.log import EXECUTION, Log, open_log, read_step_mode
from eqdeploy.training.model import find_objective, make_model, make_supernet
from eqdeploy.training.observer import BatchMeasurements, GridMeasurements, Observers, TrainingObserver
from eqdeploy.training.optimizer import make_optimizer, require_finite_parameters
from eqdeploy.training.phase import Gradients, PhaseLoop, copy_weights, make_average
from eqdeploy.training.result import TrainingResult, write_checkpoint
from eqdeploy.training.run_files import RunFiles
from eqdeploy.training.sampling import sample_sandwich
from eqdeploy.training.schedule import require_cycles
from eqdeploy.training.settings import Guidance, OptimizationSettings
from eqdeploy.training.start import read_start
from eqdeploy.training.state import Phase, Position, TrainingState, load_state, save_state
from eqdeploy.training.steps import SandwichStep, float_gradients
from eqdeploy.training.teacher import make_teacher
from eqdeploy.training.workers import ALONE, Workers

LOG_SCHEMA = 1

#: What random numbers are drawn for, to derive one seed each.
_MODEL, _SUBNETS, _AUGMENTATION, _CALIBRATION, _SHUFFLING, _DROPOUT = range(6)


def train(
    config: TrainingConfig,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    float_only: bool = False,
    model: nn.Module | None = None,
    run_code: bool = False,
    run_loss: bool = False,
    progress: Progress | None = None,
    observers: Sequence[TrainingObserver] = (),
    workers: Workers = ALONE,
) -> TrainingResult:
    """Train a supernet and write its float network, its checkpoint and its log.

    The same configuration, data, software and processor give the same bytes, whether or not the run was killed
    and resumed in between. The caller's thread count and random state are as before afterwards.

    Args:
        config: What to train and how.
        output: Folder that receives the checkpoint, the log and, until the run is finished, its state.
        resume: Take up a saved state where there is one; without one, start.
        overwrite: Replace a finished or unfinished run.
        float_only: Stop when the float network is trained.
        model: A float model that takes the place of the configuration's.
        run_code: Whether a data reference ``module:function`` may be imported and called.
        run_loss: Whether the loss that the configuration names may be imported and called.
        progress: Who listens; to the first process only.
        observers: Who is told every measurement; of the first process only.
        workers: The processes that train together, from :func:`eqdeploy.training.workers.join_workers`; all of them
            make this call with the same arguments.

    Returns:
        Where the files are and how good the supernet is.

    Raises:
        UsageError: If the configuration names no model and none is passed, or one that does not exist.
        ProfileError: If the network's output does not fit the data.
        DataError: If the data cannot be loaded or do not fit the network.
        UnsupportedOperationError: If the model cannot be converted.
        CheckpointError: If the weights or the supernet to start from are damaged or do not fit.
        TrainingError: If a loss or parameter is not finite, or the saved state belongs to another configuration.
            The last saved state stays as it was.
        CheckpointError: If the saved state is damaged.
        OutputError: If a file exists already or cannot be written, or another run writes to the folder.
        ReportedError: In all processes but the first, in the place of these.
    """
    files = RunFiles.of(output)
    if model is not None:
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"architecture": None, "arguments": {}})}
        )
    progress = progress if progress is not None and workers.is_main else SilentProgress()
    with ExitStack() as held, computing(threads=config.threads, seed=derive_seed(config.seed, _MODEL)):
        with workers.together():
            if workers.is_main:
                files.require_folder()
                held.enter_context(files.locked())
                if not overwrite and not (resume and files.state.exists()):
                    files.refuse_overwriting()
            options = LoadOptions(config.data_errors, config.data_cache, run_code=run_code, progress=progress)
            run = _Run(config, files, model, options, progress, observers, workers, run_loss=run_loss)
        return run.train(resume=resume, float_only=float_only)


class _Run:
    """One run: its data, model and random generators."""

    def __init__(
        self,
        config: TrainingConfig,
        files: RunFiles,
        model: nn.Module | None,
        options: LoadOptions,
        progress: Progress,
        observers: Sequence[TrainingObserver],
        workers: Workers,
        *,
        run_loss: bool,
    ) -> None:
        self.config = config
        self.files = files
        self.progress = progress
        self.observers = Observers(observers if workers.is_main else ())
        self.workers = workers
        self.device = workers.device(config.execution.device)
        self.preprocessing = config.preprocessing.to_preprocessing()
        self.augmentation = Augmentation(**dict(config.augmentation))
        # As large as the augmentation crops from; held-out images as large as the network reads.
        stored = self.preprocessing
        if isinstance(stored, Preprocessing):
            stored = self.augmentation.stored(stored)
        self.train_data = load_images(config.data, split="train", preprocessing=stored, options=options)
        self.test_data = load_images(config.data, split="test", preprocessing=self.preprocessing, options=options)
        if self.test_data.classes and self.train_data.classes != self.test_data.classes:
            raise DataError("training and held-out images have different classes", where=config.data)
        if self.train_data.digest == self.test_data.digest:
            progress.note("the held-out images are the training images: accuracies will look better than they are")
        # Both at once: a batch that cannot be divided is refused before anything is trained.
        phases = {Phase.FLOAT: config.float_training, Phase.SUPERNET: config.supernet_training}
        self.batches = {phase: self._batches(phase, settings) for phase, settings in phases.items()}
        self.model = make_model(config, model)
        self.supernet = make_supernet(config, self.model, self.preprocessing)
        self.objective = find_objective(
            config, self.model, self.supernet, self.preprocessing, self.train_data, run_code=run_loss
        )
        self.supernet.to(self.device)
        self.start = read_start(config, self.model, self.supernet.network)
        self.generators = {
            "subnets": seeded_generator(config.seed, _SUBNETS),
            "augmentation": seeded_generator(config.seed, _AUGMENTATION),
            "global": torch.default_generator,  # dropout and stochastic depth draw from it
        }
        calibration = augmented_images(
            self.train_data,
            self.preprocessing,
            self.augmentation,
            count=config.calibration.batch_norm_images,
            generator=seeded_generator(config.seed, _CALIBRATION),
        )
        self.calibration = map_inputs(lambda part: part.to(self.device), calibration)

    def train(self, *, resume: bool, float_only: bool) -> TrainingResult:
        """Run both phases from the start or from the saved state, evaluate, write the result."""
        with self.workers.together():
            if float_only and self.start.supernet is not None:
                raise UsageError("a run that goes on with a supernet has no float phase", where="--float-only")
        state = self.workers.from_main(lambda: self._saved_state(resume=resume))
        self.mode = self.workers.from_main(lambda: self._step_mode(state))
        self.execution = prepare(self.supernet, self.mode, self.progress)
        position = state.position if state else Position(Phase.FLOAT, 0, 0)
        evaluation: Evaluation | None = None
        with open_log(self.files.log, keep=position.log_lines, writes=self.workers.is_main) as log:
            if state is None:
                log.write({"schema": LOG_SCHEMA, "configuration": self.config.digest, "data": self.train_data.digest})
                if self.config.execution.is_open:
                    log.write({"phase": EXECUTION, **asdict(self.mode)})
            if position.phase is Phase.FLOAT:
                if self.start.supernet is None:
                    self._train_float(position, state, log)
                with self.workers.together():
                    position = self._begin(log)
                after_float = None
            else:
                fold_batch_norms(self.supernet)
                after_float = state
            if not float_only:
                position = self._train_supernet(position, after_float, log)
                if self._has_accuracy:
                    evaluation = self._evaluate()
                    log.write({"phase": "evaluation", **evaluation.to_json()})
                    self._tell_final(Phase.SUPERNET, self.config.supernet_training, evaluation)
        with self.workers.together():
            if not float_only and self.workers.is_main:
                write_checkpoint(
                    self.supernet,
                    self.files.checkpoint,
                    config=self.config,
                    images=self.train_data,
                    calibration=self.calibration,
                    start_digest=self.start.digest,
                    float_accuracy=position.float_accuracy,
                    evaluation=evaluation,
                    held_out=self.test_data,
                    as_given=self.start.is_given and not self._trains,
                )
                self.files.remove_state()
        return TrainingResult(
            checkpoint=None if float_only else self.files.checkpoint,
            float_weights=self._float_weights(),
            log=self.files.log,
            float_accuracy=position.float_accuracy,
            images=self.test_data.labels.size,
            evaluation=evaluation,
            resumed_at=state.position if state else None,
        )

    def _float_weights(self) -> Path | None:
        """File of this run's float network; one of an earlier run in the same folder is none of this one."""
        path = self.files.float_weights
        return path if self.start.supernet is None and path.exists() else None

    def _saved_state(self, *, resume: bool) -> TrainingState | None:
        """Read the state of an earlier run, or remove what must never be taken for a state of this one."""
        if resume and self.files.state.exists():
            return load_state(self.files.state, configuration=self._identity())
        self.files.remove_state()
        return None

    def _step_mode(self, state: TrainingState | None) -> StepMode:
        """How steps are computed: as configured, as the resumed run decided, or as a measurement decides now."""
        settings = self.config.execution
        if not settings.is_open:
            return StepMode.of(settings)
        if state is not None:
            return read_step_mode(self.files.log)
        static = self._static_form() is not None
        steps = {phase: batches.steps_per_epoch for phase, batches in self.batches.items()}
        floating = self.config.float_training.epochs * steps[Phase.FLOAT]
        elastic = self.config.supernet_training.epochs * steps[Phase.SUPERNET] * (1 if static else 3)
        share = max(1, self.config.supernet_training.batch_size // self.workers.world_size)
        decision = decide(self.supernet, settings, Workload(floating, elastic, share), self.device)
        self.progress.note(f"steps are computed in {decision.mode}: {decision.reason}")
        return decision.mode

    def _train_float(self, position: Position, state: TrainingState | None, log: Log) -> None:
        """Train the float network."""
        settings = self.config.float_training
        self.supernet.deactivate()

        def gradients(batch: Batch, step: int) -> BatchMeasurements:
            smoothing, objective = settings.label_smoothing, self.objective
            return float_gradients(
                self.supernet, self.execution.train, batch, label_smoothing=smoothing, step=step, objective=objective
            )

        self._run_phase(position, settings, gradients, state, log)

    def _begin(self, log: Log) -> Position:
        """Measure the float network, write it, and give every form its first scale; or take up a supernet."""
        if self.start.supernet is not None:
            self.start.adopt(self.supernet)
        self.supernet.deactivate()
        accuracy = self._measure_float(log) if self._has_accuracy else None
        if accuracy is None:
            self.progress.note(f"accuracy is not measured: {self._why_no_accuracy()}")
        if self.start.supernet is None:
            self._initialize()
        float_accuracy = None if accuracy is None else self.start.float_accuracy(accuracy)
        position = Position(Phase.SUPERNET, 0, log.lines, float_accuracy)
        supernet, settings = self.supernet, self.config.supernet_training
        self._save(position, make_optimizer(supernet, settings), make_average(supernet, settings), log)
        return position

    def _measure_float(self, log: Log) -> float:
        """Accuracy of the float network."""
        correct, labels = self._count_correct(), self.test_data.labels.size
        log.write({"phase": "float_evaluation", "correct": correct, "images": labels})
        self.progress.note(f"float accuracy {correct / labels:.2%}")
        self._tell_final(Phase.FLOAT, self.config.float_training, Evaluation(correct, labels, ()))
        return correct / labels

    def _count_correct(self) -> int:
        """Held-out labels that the float network finds: as given, where it was not trained here."""
        forward = self.execution.evaluate
        if self.start.is_given and not self.config.float_training.epochs:
            device, data = self.device, self.test_data
            return count_correct(self.supernet, data, self.preprocessing, device=device, forward=forward)
        return calibrated_correct(self.supernet, self.calibration, self.test_data, self.preprocessing, forward=forward)

    @property
    def _has_accuracy(self) -> bool:
        """Whether the held-out samples have classes that the network gives scores of."""
        return self.objective.classifies and self.objective.has_labels and self.test_data.is_labelled

    def _why_no_accuracy(self) -> str:
        """Why there is none, in words."""
        if not self.objective.has_labels:
            return "the data have no labels, and the subnets learn from the float network's outputs alone"
        if self.objective.classifies:
            return "the held-out samples have no labels"
        return "the labels name no classes of the network's output"

    def _initialize(self) -> None:
        """Write the float network and give every form its first scale."""
        if self.workers.is_main:
            save_float_weights(self.model, self.supernet, self.files.float_weights)
        fold_batch_norms(self.supernet)
        with self.progress.stage("initializing scales"):
            # Spread, not the first ones: stored images are often sorted by class.
            rows = spread_indices(batch_size(self.calibration), self.config.calibration.initialization_images)
            self.supernet.initialize(map_inputs(lambda part: part[torch.from_numpy(rows)], self.calibration))

    def _train_supernet(self, position: Position, state: TrainingState | None, log: Log) -> Position:
        """Train all forms together."""
        settings, distillation = self.config.supernet_training, self.config.distillation
        sandwich = SandwichStep(
            self.supernet,
            self.execution.train,
            distillation,
            self.config.weight_distribution,
            settings.label_smoothing,
            self._teacher() if distillation.guidance is Guidance.FLOAT or not self.objective.has_labels else None,
            self.objective,
        )

        def gradients(batch: Batch, step: int) -> BatchMeasurements:
            return sandwich.gradients(batch, self._draw(), step=step)

        return self._run_phase(position, settings, gradients, state, log)

    def _draw(self) -> Mapping[str, SubnetConfig]:
        network, only = self.supernet.network, self._static_form()
        if only is not None:
            return {"static": only.subnet(network)}
        return sample_sandwich(network, self.generators["subnets"], self.config.sampling)._asdict()

    def _run_phase(
        self,
        position: Position,
        settings: OptimizationSettings,
        gradients: Gradients,
        state: TrainingState | None,
        log: Log,
    ) -> Position:
        """Run the steps of a phase that are left."""

        def save(position: Position, optimizer: torch.optim.Optimizer, average: ParameterAverage | None) -> None:
            with self.workers.together():
                self._save(position, optimizer, average, log)

        loop = PhaseLoop(
            phase=position.phase,
            supernet=self.supernet,
            settings=settings,
            batches=self.batches[position.phase],
            gradients=gradients,
            generators=self.generators,
            dropout_seed=derive_seed(self.config.seed, _DROPOUT, _number(position.phase)),
            evaluation_epochs=self._evaluation_epochs(position.phase),
            evaluate=self._evaluate,
            save=save,
            save_interval=self.config.checkpoint_interval_steps,
            log=log,
            progress=self.progress,
            observers=self.observers,
            workers=self.workers,
        )
        return loop.run(position, state)

    def _evaluation_epochs(self, phase: Phase) -> tuple[int, ...]:
        """Epochs after which the grid is measured."""
        return self.config.evaluation_epochs if phase is Phase.SUPERNET and self._has_accuracy else ()

    def _batches(self, phase: Phase, settings: OptimizationSettings) -> TrainingBatches:
        """This process's share of the batches of a phase."""
        batches = TrainingBatches(
            self.train_data,
            self.preprocessing,
            self.augmentation,
            batch_size=settings.batch_size,
            seed=derive_seed(self.config.seed, _SHUFFLING, _number(phase)),
            rank=self.workers.rank,
            world_size=self.workers.world_size,
            device=self.device,
        )
        require_cycles(settings, steps=settings.epochs * batches.steps_per_epoch, where=f"{phase}_training")
        return batches

    def _teacher(self) -> Forward:
        """The float network that the supernet started from."""
        weights, mode = self.files.float_weights, replace(self.mode, compile=False)
        return make_teacher(self.config, self.model, weights, mode, self.device, self.progress, self.workers)

    def _save(
        self,
        position: Position,
        optimizer: torch.optim.Optimizer,
        average: ParameterAverage | None,
        log: Log,
    ) -> None:
        """Save the state, unless it is not worth resuming from."""
        require_finite_parameters(self.supernet, step=position.step)
        if not self.workers.is_main:
            return
        log.sync()
        save_state(
            self.files.state,
            position=position,
            model=self.supernet,
            optimizer=optimizer,
            average=average,
            generators=self.generators,
            configuration=self._identity(),
        )

    def _identity(self) -> Mapping[str, Any]:
        """What must be the same when a run is resumed."""
        return {
            **self.config.canonical(),
            **({} if self.start.digest is None else {"weights_digest": self.start.digest}),
            "data_digests": {"train": self.train_data.digest, "test": self.test_data.digest},
            "torch": torch.__version__,
        }

    @property
    def _trains(self) -> bool:
        """Whether any step changes the weights."""
        return bool(self.config.float_training.epochs or self.config.supernet_training.epochs)

    def _static_form(self) -> UniformForm | None:
        """The one form of a static network."""
        static = self.config.static
        return None if static is None else UniformForm(static.bits, static.granularity, static.symmetry)

    def _evaluate(self) -> Evaluation:
        """Measure the grid, or the one form that is trained."""
        only = self._static_form()
        total = 2 if only else 1 + len(self.supernet.network.space.weight_forms())
        with self.progress.stage("evaluating all forms", total=total) as advance:
            return evaluate_grid(
                self.supernet,
                calibration=self.calibration,
                data=self.test_data,
                preprocessing=self.preprocessing,
                advance=advance,
                workers=self.workers,
                forward=self.execution.evaluate,
                forms=None if only is None else (only,),
            )

    def _tell_final(self, phase: Phase, settings: OptimizationSettings, evaluation: Evaluation) -> None:
        """Tell observers the evaluation at the end of a phase."""
        steps, weights = settings.epochs * self.batches[phase].steps_per_epoch, copy_weights(self.supernet)
        self.observers.evaluated(GridMeasurements(steps, settings.epochs, True, evaluation, weights))


def _number(phase: Phase) -> int:
    """Position of a phase among all, to derive seeds."""
    return list(Phase).index(phase)
