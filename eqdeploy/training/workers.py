"""Several processes that train one network together: torch.distributed as far as training needs it.

``torchrun`` starts the processes and tells each by environment variables who it is. Control messages travel on the
processor (gloo), gradients where they are (NCCL on GPUs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from eqdeploy.errors import EqDeployError, ReportedError, TrainingError, UsageError
from eqdeploy.training.settings import Device

Value = TypeVar("Value")

#: How long a process waits for the others: longer than the first of them may evaluate or write alone.
_TIMEOUT = timedelta(hours=2)

#: Exit code of a process that the user interrupted.
_INTERRUPTED = 130


class _Report(NamedTuple):
    """What the first process needs to know of an error in another one."""

    exit_code: int
    message: str
    where: str | None
    hint: str | None


@dataclass(frozen=True)
class Workers:
    """This process among those of a training; without arguments the only one, and then every method is for free.

    All processes must call the same methods in the same order.

    Attributes:
        rank: Which process this is, from 0.
        world_size: Number of processes.
        local_rank: Which process of this machine this is, from 0: the number of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def device(self, setting: Device) -> torch.device:
        """Where this process computes: its own GPU or the processor.

        Raises:
            UsageError: If a GPU is asked for and torch can use none, or there are fewer than processes.
        """
        if setting is Device.CPU or (setting is Device.AUTO and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise UsageError("torch finds no GPU", where="execution.device", hint=f"{Device.AUTO} or {Device.CPU}")
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UsageError(
                f"there are {count} GPUs on this machine, too few for process {self.local_rank} to have its own",
                where="execution.device",
                hint=f"start fewer processes, or compute on the {Device.CPU}",
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the context when all processes have, or not at all: an error in one is an error in each.

        There must be no other method of this class inside.

        Raises:
            EqDeployError: In the first process: its own error or that of another.
            ReportedError: In the others: the first one reports.
        """
        if self.world_size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, the others wait for this process
            failure = error
        report = self._first_report(failure)
        if report is None:
            return
        if not self.is_main:
            raise ReportedError(report.exit_code) from failure
        if failure is not None:
            raise failure
        kinds = {kind.exit_code: kind for kind in EqDeployError.__subclasses__()}
        kind = kinds.get(report.exit_code, EqDeployError)
        raise kind(report.message, where=report.where, hint=report.hint)

    def from_main(self, make: Callable[[], Value]) -> Value:
        """Let the first process make something and hand it to all.

        Args:
            make: Is called in the first process only.

        Raises:
            EqDeployError: As :meth:`together`.
        """
        box: list[Any] = [None]
        with self.together():
            if self.is_main:
                box[0] = make()
        if self.world_size > 1:
            with self._connected():
                dist.broadcast_object_list(box, src=0)
        value: Value = box[0]
        return value

    @torch.no_grad()
    def broadcast(self, model: nn.Module) -> None:
        """Give the parameters and buffers of all processes the values that the first one has."""
        if self.world_size == 1:
            return
        tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            chosen = [tensor for tensor in tensors if tensor.dtype is dtype]
            values = torch.cat([tensor.reshape(-1) for tensor in chosen])
            with self._connected():
                dist.broadcast(values.view(torch.uint8), src=0)  # as bytes: gloo does not know every type
            for tensor, part in zip(chosen, torch.split(values, [tensor.numel() for tensor in chosen]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes, in one message.

        A gradient that some process lacks counts as zero there; one that all lack stays away.

        Args:
            parameters: The same in all processes, all on one device.
        """
        if self.world_size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in trained]
        zeros = trained[0].new_zeros(max(sizes))
        there = trained[0].new_tensor([parameter.grad is not None for parameter in trained])
        gradients = [
            zeros[:size] if parameter.grad is None else parameter.grad.reshape(-1)
            for parameter, size in zip(trained, sizes, strict=True)
        ]
        mean = torch.cat([*gradients, there])
        with self._connected():
            dist.all_reduce(mean)
        mean /= self.world_size
        *means, there = torch.split(mean, [*sizes, len(trained)])
        for parameter, gradient, count in zip(trained, means, there.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(gradient.view_as(parameter))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Mean of each number over all processes."""
        if self.world_size == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        with self._connected():
            dist.all_reduce(sums)
        return dict(zip(values, (sums / self.world_size).tolist(), strict=True))

    def sum(self, counts: Sequence[int]) -> list[int]:
        """Sum of each count over all processes."""
        if self.world_size == 1:
            return list(counts)
        sums = torch.tensor(counts, dtype=torch.int64)
        with self._connected():
            dist.all_reduce(sums)
        return [int(value) for value in sums.tolist()]

    def _first_report(self, failure: Exception | None) -> _Report | None:
        """Share whether this process has failed; return the error of the first that has."""
        failed = torch.tensor([failure is not None], dtype=torch.int32)
        with self._connected():
            dist.all_reduce(failed, dist.ReduceOp.MAX)
            if not bool(failed):
                return None
            reports: list[_Report | None] = [None] * self.world_size
            dist.all_gather_object(reports, None if failure is None else self._describe(failure))
        return next(report for report in reports if report is not None)

    def _describe(self, failure: Exception) -> _Report:
        """Put an error into plain data."""
        if isinstance(failure, EqDeployError):
            return _Report(failure.exit_code, failure.message, failure.where, failure.hint)
        message = f"internal error in process {self.rank}: {type(failure).__name__}: {failure}"
        return _Report(EqDeployError.exit_code, message, None, "show the traceback with --debug and report it")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Explain that the others cannot be reached: one has ended without a word, killed for example."""
        try:
            yield
        except RuntimeError as error:
            if self.is_main:
                raise TrainingError(
                    "another process of this run has ended, or cannot be reached",
                    hint="the launcher says which; start again, a training with --resume",
                ) from error
            raise ReportedError(TrainingError.exit_code) from error


#: The only process of a training.
ALONE = Workers()


@contextmanager
def join_workers() -> Iterator[Workers]:
    """Join the processes that ``torchrun``, or another launcher with the same variables, has started.

    The variables are RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without them this process is alone.

    Yields:
        This process among the others.

    Raises:
        UsageError: If a variable makes no sense or the others cannot be reached.
        ReportedError: Where another process reports an error.
    """
    world_size = _environment("WORLD_SIZE", 1)
    if world_size == 1:
        yield ALONE
        return
    rank = _environment("RANK", 0)
    workers = Workers(rank, world_size, _environment("LOCAL_RANK", rank))
    if not dist.is_available():
        raise UsageError("this torch cannot join several processes", where="$WORLD_SIZE", hint="start a single one")
    # Must come first: default arguments of this module hold the group of processes that there is when it is imported.
    # A group that is held keeps its threads when it is destroyed, and a thread that still lets go of a tensor while the
    # interpreter ends aborts the process. torch imports the module itself sooner or later.
    import torch.distributed.nn.functional

    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"cannot join the other processes: {reason}", hint="start them with torchrun --nproc-per-node N"
        ) from error
    try:
        yield workers
    except KeyboardInterrupt:
        if workers.is_main:
            raise
        raise ReportedError(_INTERRUPTED) from None
    except ReportedError:
        # Launchers end all processes when one has ended: the first one must have its say before.
        with suppress(RuntimeError):
            dist.broadcast(torch.zeros(()), src=0)
        raise
    finally:
        dist.destroy_process_group()


def _environment(name: str, default: int) -> int:
    """A variable of the launcher."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"must be a whole number, not {text!r}", where=f"${name}")
    return int(text)
