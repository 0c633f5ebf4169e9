"""The project file ``eqdeploy.yaml``: what a user would otherwise repeat on every command line.

Flags take the place of its keys one by one, and its keys take the place of the shipped defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eqdeploy.artifact_folders import enclosing_artifact
from eqdeploy.errors import UsageError
from eqdeploy.requests import (
    DEFAULT_DATA,
    DEFAULT_OUTPUT,
    DEFAULT_SUPERNET,
    MAXIMUM_SEED,
    EvaluateRequest,
    ExportRequest,
    Gates,
    ResolveRequest,
    SearchOptions,
    SearchRequest,
    ValidateRequest,
)
from eqdeploy.yaml_file import read_yaml_model

PROJECT_FILE = "eqdeploy.yaml"


def _as_tuple(value: Any) -> Any:
    """Accept one profile where a list of profiles is meant."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _plain(value: str) -> str:
    """Refuse what no name and no path holds on purpose."""
    if not value.isprintable():
        raise ValueError("must not hold control characters")
    return value


Text = Annotated[str, Field(min_length=1), AfterValidator(_plain)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ProjectSettings(BaseModel):
    """Choices of a project; None stands for the shipped default.

    Attributes:
        supernet: Name or file of the checkpoint.
        model: ``package.module:factory`` of the float model.
        data: Name, file or folder of the images.
        profiles: Names or files of device profiles.
        output: Folder that receives one folder per profile.
        min_accuracy: Smallest accuracy of the exported model, a fraction between 0 and 1.
        max_drop: Largest loss of accuracy against the float model, a fraction between 0 and 1.
        max_export_drop: Loss of accuracy against the simulated subnet accepted beyond chance, a fraction.
        min_agreement: Smallest fraction of the simulated subnet's decisions that are made, too.
        min_sqnr: Smallest distance from float of every output and quantized tensor, in dB.
        max_float_share: Largest share of parameters, and of operations, that stay float.
        seed: Seed of every random choice.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    supernet: Text | None = None
    model: Text | None = None
    data: Text | None = None
    profiles: Annotated[tuple[Text, ...], BeforeValidator(_as_tuple)] = ()
    output: Text | None = None
    min_accuracy: Fraction | None = None
    max_drop: Fraction | None = None
    max_export_drop: Fraction | None = None
    min_agreement: Fraction | None = None
    min_sqnr: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max_float_share: Fraction | None = None
    seed: Annotated[int, Field(ge=0, le=MAXIMUM_SEED)] | None = None

    def override(
        self,
        *,
        supernet: str | None = None,
        model: str | None = None,
        data: str | None = None,
        profiles: tuple[str, ...] = (),
        output: str | None = None,
        min_accuracy: float | None = None,
        max_drop: float | None = None,
        max_export_drop: float | None = None,
        min_agreement: float | None = None,
        min_sqnr: float | None = None,
        max_float_share: float | None = None,
        seed: int | None = None,
    ) -> ProjectSettings:
        """Return these settings with every argument that was given in place of the key of that name.

        Raises:
            UsageError: If an argument is the empty text that an unset variable of a shell leaves.
        """
        given = {
            "supernet": supernet,
            "model": model,
            "data": data,
            "profiles": profiles or None,
            "output": output,
            "min_accuracy": min_accuracy,
            "max_drop": max_drop,
            "max_export_drop": max_export_drop,
            "min_agreement": min_agreement,
            "min_sqnr": min_sqnr,
            "max_float_share": max_float_share,
            "seed": seed,
        }
        for key, value in given.items():
            if value == "":
                raise UsageError("is empty", where="--out" if key == "output" else f"--{key}", hint="leave it out")
        return self.model_copy(update={key: value for key, value in given.items() if value is not None})

    def without_code(self) -> ProjectSettings:
        """These settings without the model that a file named, for commands that look into what somebody else made.

        Such a command runs code only where its own options name it; call this before :meth:`override`.
        """
        return self.model_copy(update={"model": None})

    @property
    def gates(self) -> Gates:
        """Limits that an artifact is judged by."""
        return Gates(
            self.min_accuracy,
            self.max_drop,
            self.max_export_drop,
            self.min_agreement,
            self.min_sqnr,
            self.max_float_share,
        )

    def export_request(
        self,
        *,
        subnet: Path | None = None,
        search: SearchOptions | None = None,
        force: bool = False,
        run_code: bool = False,
        dynamic_size: bool = False,
        strict: bool = False,
    ) -> ExportRequest:
        """Ask for an export of every profile; ``run_code`` if the data were named on the command line.

        Raises:
            UsageError: If there is no profile.
        """
        return ExportRequest(
            profiles=self._required_profiles(),
            supernet=self.supernet or DEFAULT_SUPERNET,
            model=self.model,
            data=self.data or DEFAULT_DATA,
            output=Path(self.output) if self.output else DEFAULT_OUTPUT,
            subnet=subnet,
            search=search,
            gates=self.gates,
            force=force,
            seed=self.seed or 0,
            run_code=run_code,
            dynamic_size=dynamic_size,
            strict=strict,
        )

    def search_request(
        self, options: SearchOptions, *, output: Path | None = None, force: bool = False, run_code: bool = False
    ) -> SearchRequest:
        """Ask for the best subnet of the one profile; ``run_code`` if the data were named on the command line.

        Raises:
            UsageError: If there is no profile, or more than one.
        """
        return SearchRequest(
            profile=self._one_profile(),
            options=options,
            supernet=self.supernet or DEFAULT_SUPERNET,
            model=self.model,
            data=self.data or DEFAULT_DATA,
            output=output,
            workspace=Path(self.output) if self.output else DEFAULT_OUTPUT,
            force=force,
            seed=self.seed or 0,
            run_code=run_code,
        )

    def resolve_request(self, *, subnet: Path | None = None) -> ResolveRequest:
        """Ask how the one profile is resolved.

        Raises:
            UsageError: If there is no profile, or more than one.
        """
        return ResolveRequest(
            profile=self._one_profile(), supernet=self.supernet or DEFAULT_SUPERNET, model=self.model, subnet=subnet
        )

    def validate_request(self, *, run_code: bool = False) -> ValidateRequest:
        """Ask for the proof of an artifact; what is not set is left to what the artifact names.

        ``run_code`` if the data were named on the command line.
        """
        return ValidateRequest(
            supernet=self.supernet,
            model=self.model,
            data=self.data,
            gates=self.gates,
            seed=self.seed or 0,
            run_code=run_code,
        )

    def evaluate_request(
        self,
        *,
        target: Path | None = None,
        profile: str | None = None,
        subnet: Path | None = None,
        run_code: bool = False,
    ) -> EvaluateRequest:
        """Ask for the accuracy of a target, of a profile's subnet, of a subnet file or of the float model.

        ``run_code`` if the data were named on the command line.
        """
        return EvaluateRequest(
            target=target,
            supernet=self.supernet or DEFAULT_SUPERNET,
            model=self.model,
            data=self.data or DEFAULT_DATA,
            profile=profile,
            subnet=subnet,
            gates=self.gates,
            seed=self.seed or 0,
            run_code=run_code,
        )

    def _one_profile(self) -> str:
        """The profile, of which there must be exactly one."""
        profiles = self._required_profiles()
        if len(profiles) > 1:
            raise UsageError(
                f"one profile at a time, got {', '.join(profiles)}", where="--profile", hint="choose one of them"
            )
        return profiles[0]

    def _required_profiles(self) -> tuple[str, ...]:
        """Profiles, of which there must be one at least."""
        if not self.profiles:
            raise UsageError(
                "no profile given",
                where="--profile",
                hint=f"name one with --profile or in {PROJECT_FILE}; 'eqdeploy profiles list' shows the shipped ones",
            )
        return tuple(dict.fromkeys(self.profiles))


def load_project(directory: Path, note: Callable[[str], None] | None = None) -> ProjectSettings:
    """Read the project file of a folder.

    Args:
        directory: The working directory; parents are not searched.
        note: Tells the user that a file is there and is not read; None to say nothing.

    Returns:
        Its settings, or settings without any choice when there is no file, or when it lies in an artifact: an artifact
        may come from anywhere, and a project file may name code to run.

    Raises:
        ProfileError: If the file is not valid; names file, line and key.
    """
    path = directory / PROJECT_FILE
    if not path.exists() and not path.is_symlink():
        return ProjectSettings()
    artifact = enclosing_artifact(directory)
    if artifact is not None:
        if note is not None:
            note(f"{PROJECT_FILE} is not read: it lies in the artifact {artifact}")
        return ProjectSettings()
    # A path relative to the working directory reads better in messages than an absolute one.
    return read_yaml_model(Path(PROJECT_FILE) if directory == Path.cwd() else path, ProjectSettings)
