"""The files of a training run."""

from __future__ import annotations

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
