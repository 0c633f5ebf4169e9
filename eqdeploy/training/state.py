"""The state of an unfinished training run: one safetensors file that continues the run it was taken from.

The file holds the model, the optimizer's moments by parameter name, the average of the parameters if there is one, the
states of all random generators and the position in the run. Nothing in it is ever executed. It is replaced atomically:
after a kill or a full disk the previous state is still whole.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from eqdeploy.errors import CheckpointError, TrainingError
from eqdeploy.files import write_atomically
from eqdeploy.json_file import parse_json
from eqdeploy.supernet.given_model import not_finite
from eqdeploy.training.average import ParameterAverage

STATE_SCHEMA = 1
#: All metadata is one document under one key: safetensors writes several keys in random order.
_METADATA_KEY = "eqdeploy.training_state"
_MODEL, _OPTIMIZER, _GENERATOR, _AVERAGE = "model", "optimizer", "generator", "average"

#: What an optimizer keeps for a parameter that has had a gradient: all of one tuple.
_STEP = "step"
_MOMENT_KEYS: Mapping[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: (_STEP, "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}

#: Of some parameters, by name: their moments, by key.
_Moments = Mapping[str, Mapping[str, Tensor]]


class Phase(StrEnum):
    """The two parts of a run."""

    FLOAT = "float"
    SUPERNET = "supernet"


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        phase: The phase that is running.
        step: Optimizer steps of that phase that are done.
        log_lines: Lines of the training log that belong to those steps.
        float_accuracy: Accuracy of the float network when the float phase ended, None before that and where there is
            none.
    """

    phase: Phase
    step: int
    log_lines: int
    float_accuracy: float | None = None


@dataclass(frozen=True)
class TrainingState:
    """What a state file holds.

    Attributes:
        position: How far the run had come.
        tensors: All tensors, by the names under which they are stored.
        path: The file it was read from, for messages.
        checksums: Of the tensors as they were written; files of older versions have none.
    """

    position: Position
    tensors: Mapping[str, Tensor]
    path: Path
    checksums: Mapping[str, int] = field(default_factory=dict)


def save_state(
    path: Path,
    *,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ParameterAverage | None,
    generators: Mapping[str, torch.Generator],
    configuration: Mapping[str, Any],
) -> None:
    """Write the state of a run; the previous file stays whole until the new one is complete.

    Args:
        path: File to write or replace.
        position: How far the run has come.
        model: All its parameters and buffers are stored.
        optimizer: Its tensor state is stored under the names that ``model`` gives the parameters.
        average: Average of the parameters, if there is one.
        generators: Every source of randomness, by name.
        configuration: Plain data; a resumed run must have the same.

    Raises:
        OutputError: If the file cannot be written.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"{_MODEL}.{name}": tensor for name, tensor in model.state_dict().items()}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if value is not None:
                tensors[f"{_OPTIMIZER}.{key}.{names[parameter]}"] = value
    if average is not None:
        tensors |= {f"{_AVERAGE}.{name}": value for name, value in average.values.items()}
    for name, generator in generators.items():
        tensors[f"{_GENERATOR}.{name}"] = generator.get_state()
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    document = {
        "schema": STATE_SCHEMA,
        "position": asdict(position),
        "configuration": configuration,
        "checksums": {name: _checksum(tensor) for name, tensor in copies.items()},
    }
    metadata = {_METADATA_KEY: json.dumps(document, sort_keys=True, allow_nan=False)}
    write_atomically(path, save(copies, metadata))


def load_state(path: Path, *, configuration: Mapping[str, Any]) -> TrainingState:
    """Read a state file.

    Args:
        path: File that :func:`save_state` wrote.
        configuration: The configuration of the run that is to go on.

    Returns:
        The state; :func:`restore_state` puts it into a model and its companions.

    Raises:
        CheckpointError: If the file is missing, damaged or no state of this version.
        TrainingError: If the state belongs to a run with another configuration; the message names the key.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the training state: {error}", where=str(path)) from error
    position, saved, checksums = _read_document(metadata.get(_METADATA_KEY), path)
    difference = _first_difference(saved, configuration)
    if difference is not None:
        key, before, now = difference
        raise TrainingError(
            f"the saved training has another configuration: {key} was {_shown(before)} and is now {_shown(now)}",
            where=str(path),
            hint="restore the configuration, or start again without resuming",
        )
    return TrainingState(position, tensors, path, checksums)


def restore_state(
    state: TrainingState,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ParameterAverage | None,
    generators: Mapping[str, torch.Generator],
) -> None:
    """Put a saved state into a model, its optimizer and its generators, all freshly made.

    Args:
        state: What :func:`load_state` returned.
        model: Receives every parameter and buffer.
        optimizer: Receives its state for the parameters that had one.
        average: Receives its values.
        generators: The generators that the state was saved with, by name.

    Raises:
        CheckpointError: If a tensor is missing, unexpected, of another shape or type, not finite, or not what was
            written; all such tensors are reported together.
    """
    moments = _read_moments(state, model, optimizer)
    expected = {f"{_MODEL}.{name}": tensor for name, tensor in model.state_dict().items()}
    expected |= _expected_moments(moments, model, optimizer)
    if average is not None:
        expected |= {f"{_AVERAGE}.{name}": value for name, value in average.values.items()}
    expected |= {f"{_GENERATOR}.{name}": generator.get_state() for name, generator in generators.items()}
    problems = _compare(expected, state.tensors, state.checksums)
    if problems:
        raise CheckpointError(f"the training state does not fit: {'; '.join(problems)}", where=str(state.path))
    model.load_state_dict({name: state.tensors[f"{_MODEL}.{name}"] for name in model.state_dict()})
    _restore_moments(moments, model, optimizer)
    if average is not None:
        average.load({name: state.tensors[f"{_AVERAGE}.{name}"] for name in average.values})
    for name, generator in generators.items():
        try:
            generator.set_state(state.tensors[f"{_GENERATOR}.{name}"])
        except RuntimeError as error:
            raise CheckpointError(f"{_GENERATOR}.{name} is no generator state", where=str(state.path)) from error


def _read_moments(state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer) -> _Moments:
    """Find what a state holds of an optimizer; what belongs to no parameter or no such optimizer is left out."""
    parameters, keys = dict(model.named_parameters()), _MOMENT_KEYS[type(optimizer)]
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.tensors.items():
        entry, _, rest = name.partition(".")
        key, _, parameter = rest.partition(".")
        if entry == _OPTIMIZER and key in keys and parameter in parameters:
            moments.setdefault(parameter, {})[key] = tensor
    return moments


def _expected_moments(moments: _Moments, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors like all those that an optimizer keeps for the parameters for which a state holds any."""
    expected: dict[str, Tensor] = {}
    for parameter in moments:
        like = model.get_parameter(parameter)
        for key in _MOMENT_KEYS[type(optimizer)]:
            expected[f"{_OPTIMIZER}.{key}.{parameter}"] = like.new_zeros(()) if key == _STEP else like
    return expected


def _restore_moments(moments: _Moments, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put moments into an optimizer, in the layout of their parameters, as the optimizer itself makes them.

    Another layout would round sums differently.
    """
    optimizer.state.clear()
    for parameter, entries in moments.items():
        owner = model.get_parameter(parameter)
        optimizer.state[owner] = {
            key: value.clone() if key == _STEP else torch.empty_like(owner).copy_(value)
            for key, value in entries.items()
        }


def _read_document(text: str | None, path: Path) -> tuple[Position, Mapping[str, Any], Mapping[str, int]]:
    """Read position, configuration and checksums from the metadata."""
    try:
        document = parse_json(text or "null", str(path), CheckpointError)
        if document["schema"] != STATE_SCHEMA:
            raise ValueError
        position, configuration = document["position"], document["configuration"]
        step, log_lines, accuracy = position["step"], position["log_lines"], position["float_accuracy"]
        if any(type(count) is not int or count < 0 for count in (step, log_lines)):
            raise ValueError
        phase = Phase(position["phase"])
        if not isinstance(accuracy, float | None):
            raise TypeError
        checksums = dict(document.get("checksums", {}))
        return Position(phase, step, log_lines, accuracy), dict(configuration), checksums
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"no training state of schema {STATE_SCHEMA}", where=str(path)) from error


def _first_difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Find the first key, in sorted order, where two plain documents differ."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return None if before == now else (key, before, now)
    for name in sorted({*before, *now}):
        path = f"{key}.{name}" if key else str(name)
        difference = _first_difference(before.get(name), now.get(name), path)
        if difference is not None:
            return difference
    return None


def _shown(value: Any) -> str:
    """A value in words; keys that are not used are not stored."""
    return "not set" if value is None else repr(value)


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes on the processor: enough against damage by accident."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], checksums: Mapping[str, int]) -> list[str]:
    """Describe every tensor that is missing, unexpected, mis-shaped, mistyped, not finite or damaged."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    for name, tensor in sorted(found.items()):
        if name not in expected:
            problems.append(f"{name} is unexpected")
        elif tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            wanted = expected[name]
            problems.append(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} instead of {wanted.dtype} {tuple(wanted.shape)}"
            )
        elif not_finite(tensor, expected[name]):
            problems.append(f"{name} is not finite")
        elif name in checksums and checksums[name] != _checksum(tensor):
            problems.append(f"{name} is damaged")
    return problems
