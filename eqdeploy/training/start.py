"""What a run starts from: random weights, those of a float network, or a supernet that goes on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from eqdeploy.errors import CheckpointError
from eqdeploy.network import NetworkDescription
from eqdeploy.supernet.checkpoint import Checkpoint, checkpoint_digest, load_checkpoint
from eqdeploy.supernet.fold_batch_norms import fold_batch_norms
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.config import TrainingConfig
from eqdeploy.zoo import build

#: Key under which a checkpoint tells the accuracy of the float network that its training began with.
FLOAT_ACCURACY = "float_accuracy"


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        digest: SHA-256 of the file that it comes from, None for random weights.
        supernet: The supernet that goes on; None for a float network, whose scales are initialized.
    """

    digest: str | None
    supernet: Checkpoint | None

    @property
    def is_given(self) -> bool:
        """Whether a trained network was given, with statistics of its own."""
        return self.digest is not None

    def adopt(self, supernet: Supernet) -> None:
        """Give a supernet the weights, statistics and scales of the one that goes on, folded where it is trained so."""
        assert self.supernet is not None
        fold_batch_norms(supernet)
        supernet.graph_module.load_state_dict(self.supernet.supernet.graph_module.state_dict())

    def float_accuracy(self, measured: float) -> float:
        """Accuracy of the float network that all began with; what was measured now if no file tells another."""
        told = None if self.supernet is None else self.supernet.metadata.provenance.get(FLOAT_ACCURACY)
        return told if isinstance(told, float) else measured


def read_start(config: TrainingConfig, model: nn.Module, network: NetworkDescription) -> Start:
    """Read the file that a run starts from.

    Args:
        config: Names it.
        model: The float model of the run.
        network: Its description, with the space that is to be trained.

    Raises:
        CheckpointError: If the supernet is damaged, or of another network or space.
    """
    given = config.model.weights if config.model.supernet is None else config.model.supernet
    if given is None:
        return Start(None, None)
    path = Path(given)
    if config.model.supernet is None:
        return Start(_digest(path), None)
    checkpoint = load_checkpoint(path, build, model)
    found = checkpoint.supernet.network
    for field in fields(network.space):
        before, now = getattr(found.space, field.name), getattr(network.space, field.name)
        if before != now:
            raise CheckpointError(
                f"the supernet has another space: {field.name} was {_shown(before)} and is now {_shown(now)}",
                where=given,
                hint=f"set space.{field.name}, or train anew",
            )
    if found != network:
        raise CheckpointError("the supernet is of another network", where=given, hint="keep model and image_size")
    return Start(checkpoint_digest(path), checkpoint)


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shown(value: object) -> str:
    """A field of a space as a configuration writes it."""
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
