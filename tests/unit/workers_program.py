"""What two processes do for the tests of training with several: ``torchrun ... -m tests.unit.workers_program``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.references import load_data
from eqdeploy.network import ElasticSpace
from eqdeploy.progress import SilentProgress
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.batches import TrainingBatches, seeded_generator
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.evaluate import evaluate_grid
from eqdeploy.training.optimizer import clip_gradients, make_optimizer, set_learning_rate
from eqdeploy.training.phase import average_gradients
from eqdeploy.training.sampling import sample_sandwich
from eqdeploy.training.settings import (
    DistillationSettings,
    DistributionSettings,
    FormSampling,
    OptimizerName,
    SupernetSettings,
)
from eqdeploy.training.steps import SandwichStep
from eqdeploy.training.trainer import train
from eqdeploy.training.workers import Workers, join_workers
from tests.unit.training_support import CLASSES, small_model, small_supernet

PREPROCESSING = Preprocessing(image_size=(8, 8), channels=1, mean=(0.3,), std=(0.2,))
BATCH_SIZE = 16


class PlainNet(nn.Module):
    """No BatchNorm, no dropout: what it computes of an image depends on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = x + torch.relu(self.conv2(x))
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


def plain_model() -> nn.Module:
    """The same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return PlainNet()


def sandwich_steps(workers: Workers, folder: Path, count: int) -> dict[str, Tensor]:
    """Gradients of the first sandwich step before clipping, and all parameters and losses after some steps."""
    data = load_data(str(folder), split="train", preprocessing=PREPROCESSING)
    supernet = Supernet.from_float(plain_model(), torch.zeros(2, 1, 8, 8), ElasticSpace(bits=(2, 4, 8)))
    supernet.initialize(torch.from_numpy(PREPROCESSING.apply(data.images)))
    settings = SupernetSettings(
        epochs=1, batch_size=BATCH_SIZE, optimizer=OptimizerName.SGD, learning_rate=0.01, gradient_clip=0.1
    )
    batches = TrainingBatches(
        data,
        PREPROCESSING,
        Augmentation(shift=1),
        batch_size=BATCH_SIZE,
        seed=0,
        rank=workers.rank,
        world_size=workers.world_size,
    )
    sandwich = SandwichStep(supernet, supernet, DistillationSettings(), DistributionSettings())
    optimizer = make_optimizer(supernet, settings)
    set_learning_rate(optimizer, settings.learning_rate)
    subnets, augmentation = seeded_generator(1), seeded_generator(2)
    found: dict[str, Tensor] = {}
    supernet.train()
    for step in range(count):
        optimizer.zero_grad(set_to_none=True)
        drawn = sample_sandwich(supernet.network, subnets, FormSampling.PER_LAYER)
        measured = sandwich.gradients(batches.batch(step, augmentation), drawn._asdict(), step=step)
        average_gradients(supernet, workers)
        if step == 0:
            gradients = {name: value.grad for name, value in supernet.named_parameters()}
            found |= {f"gradient.{name}": value.clone() for name, value in gradients.items() if value is not None}
        clip_gradients(optimizer, settings.gradient_clip)
        optimizer.step()
        means = workers.mean(measured.losses)
        found[f"losses.{step}"] = torch.tensor(list(means.values()))
    return found | {f"parameter.{name}": value.detach() for name, value in supernet.named_parameters()}


def grid_counts(workers: Workers, folder: Path) -> Tensor:
    """Counts of correct images of all forms."""
    data = load_data(str(folder), split="test", preprocessing=PREPROCESSING)
    calibration = torch.from_numpy(PREPROCESSING.apply(data.images[:32]))
    grid = evaluate_grid(
        small_supernet(), calibration=calibration, data=data, preprocessing=PREPROCESSING, workers=workers
    )
    return torch.tensor([grid.float_correct, *(row.correct for row in grid.rows)])


def shared_values(workers: Workers) -> dict[str, Tensor]:
    """What the processes tell each other, each starting from numbers of its own."""
    own = float(workers.rank + 1)
    everywhere, somewhere, nowhere = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    everywhere.grad = torch.full((2,), own)
    if workers.rank == 1:
        somewhere.grad = torch.ones(2)
    workers.average_gradients([everywhere, somewhere, nowhere])
    assert everywhere.grad is not None
    assert somewhere.grad is not None
    model = nn.BatchNorm1d(3)
    model.register_buffer("flag", torch.tensor(workers.is_main))
    for tensor in (model.weight.data, model.running_var, model.num_batches_tracked):
        assert tensor is not None
        tensor.fill_(own)
    workers.broadcast(model)
    return {
        "everywhere": everywhere.grad,
        "somewhere": somewhere.grad,
        "nowhere": torch.tensor(nowhere.grad is None),
        "mean": torch.tensor(workers.mean({"a": own, "b": 10 * own})["b"]),
        "sum": torch.tensor(workers.sum([workers.rank, 5])),
        "from_main": torch.tensor(workers.from_main(lambda: own)),
        **{f"broadcast.{name}": value for name, value in model.state_dict().items()},
    }


class _Stop(SilentProgress):
    """Ends the process after some steps of a phase, without a word to the others."""

    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step = phase, step

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            if self.phase in description and done == self.step:
                sys.stderr.flush()
                os._exit(9)

        yield advance


def thread_names() -> list[str]:
    """Names of all threads of this process, those of libraries too."""
    return [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]


def main(what: str, *arguments: str) -> None:
    if what == "threads":
        with join_workers() as workers:
            workers.mean({"a": 1.0})
            importlib.import_module("torch._dynamo")  # much of torch that is imported late
            importlib.import_module("torch.distributed.nn.functional")
            inside = thread_names()
        Path(arguments[0], f"{workers.rank}.json").write_text(json.dumps([inside, thread_names()]))
        return
    with join_workers() as workers:
        if what == "library":
            data, results = map(Path, arguments)
            found = sandwich_steps(workers, data, 3) | shared_values(workers)
            found["counts"] = grid_counts(workers, data)
            save_file(found, results / f"{workers.rank}.safetensors")
        else:
            config, output, model, phase, step = arguments
            train(
                TrainingConfig.load(Path(config)),
                Path(output),
                model={"plain": plain_model, "small": small_model}[model](),
                progress=_Stop(f"{phase} network", int(step)),
                workers=workers,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
