"""The files of a training run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from eqdeploy.errors import OutputError


@dataclass(frozen=True)
class RunFiles:
    """Files of a run, beside each other in its folder.

    Attributes:
        checkpoint: The result.
        float_weights: The float network that the supernet starts from.
        log: The training log.
        state: There only while the run is unfinished.
    """

    checkpoint: Path
    float_weights: Path
    log: Path
    state: Path

    @staticmethod
    def of(folder: Path) -> RunFiles:
        """Name the files of a run in its folder."""
        return RunFiles(
            checkpoint=folder / "supernet.safetensors",
            float_weights=folder / "float.safetensors",
            log=folder / "training.jsonl",
            state=folder / "state.safetensors",
        )

    def require_folder(self) -> None:
        """Refuse a folder that can never be one.

        Raises:
            OutputError: If a file is in its place, or in that of a folder around it.
        """
        folder = self.state.parent
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise OutputError("a file is where the output folder should be", where=str(path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder, which is made if there is none, while the context is open.

        The folder itself is locked, so no file tells of it; the system gives the lock back when the process ends,
        however it ends. A folder that was made and stays empty is removed again.

        Raises:
            OutputError: If another run has the folder, or it cannot be made.
        """
        folder = self.state.parent
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise OutputError(f"cannot be written to: {error.strerror or error}", where=str(folder)) from error
        try:
            _lock(descriptor, folder)
            yield
        finally:
            os.close(descriptor)
            with suppress(OSError):
                for path in made:
                    path.rmdir()

    def refuse_overwriting(self) -> None:
        """Refuse to start where a run has finished or can be resumed.

        Raises:
            OutputError: If a result or a saved state exists.
        """
        if self.state.exists():
            raise OutputError(
                "an unfinished training is saved here", where=str(self.state), hint="resume it, or force a new start"
            )
        for path in (self.checkpoint, self.float_weights):
            if path.exists():
                raise OutputError("the file exists already", where=str(path), hint="force to overwrite it")

    def remove_state(self) -> None:
        """Remove a saved state that is no longer needed.

        Raises:
            OutputError: If it cannot be removed.
        """
        try:
            self.state.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove: {error.strerror or error}", where=str(self.state)) from error


def _lock(descriptor: int, folder: Path) -> None:
    """Lock an open folder.

    Raises:
        OutputError: If another run has locked it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            "another training writes here", where=str(folder), hint="wait for its end, or name another folder"
        ) from error
    except OSError:
        # Some network file systems lock no folders. Training there is worth more than the protection.
        return
