"""An artifact as an object: its report, its encodings, and its model to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eqdeploy.data import InputPreprocessing
from eqdeploy.encoding_table import Encodings, read_encodings
from eqdeploy.errors import ValidationError
from eqdeploy.exporters.files import refuse_outside_data
from eqdeploy.manifest import Manifest, verify_manifest
from eqdeploy.pipeline.configuration import read_configuration
from eqdeploy.pipeline.proof import MODEL_FILE
from eqdeploy.readable import Readable, Summary
from eqdeploy.report import ArtifactReport, read_report
from eqdeploy.validation.runtime import Level, Session


@dataclass(frozen=True, repr=False)
class Artifact(Readable):
    """An artifact that was opened: what its files say, each of them as the manifest lists it.

    Nothing is proved again here; :func:`eqdeploy.validate` does that. Nothing in the folder is executed: the model is
    data that ONNX Runtime computes with.

    Attributes:
        directory: Its folder.
        manifest: Its files with their hashes, and what it was made from.
        report: The report of the export, the verdict included.
        encodings: Scale, zero-point and range of every quantized tensor, weight and bias.
        preprocessing: How what is stored becomes inputs of the model: ``preprocessing.apply(images)``.
        classes: Class names in the order of the outputs; empty where there are none.
    """

    directory: Path
    manifest: Manifest
    report: ArtifactReport
    encodings: Encodings = field(compare=False)
    preprocessing: InputPreprocessing
    classes: tuple[str, ...]

    @property
    def model(self) -> Path:
        """The QDQ model, ``model.onnx``."""
        return self.directory / MODEL_FILE

    def run(self, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Compute the model in ONNX Runtime on the CPU with every optimization, as a deployment does.

        Args:
            inputs: A batch as ``preprocessing.apply`` makes it: (N, …), or (N,) records with a field for each input.

        Returns:
            The outputs by name.

        Raises:
            ValidationError: If the model names data outside of the folder, or is not a model.
            RuntimeRefusedError: If ONNX Runtime does not load the model, or does not run it on these inputs.
        """
        refuse_outside_data(self.model)
        return Session(self.model, Level.ALL, where=str(self.model)).run(inputs)

    def summary(self) -> Summary:
        """Verdict and folder, and the files."""
        rows = tuple((name, str(entry.size), entry.sha256[:12]) for name, entry in self.manifest.files.items())
        return Summary(f"{self.report.summary().line}, in {self.directory}", ("file", "bytes", "SHA-256"), rows)


def open_artifact(directory: Path) -> Artifact:
    """Read an artifact that may come from anywhere, after comparing every file with the manifest.

    Raises:
        ValidationError: If it is no artifact, a file is missing, changed, added or damaged, or the manifest names
            another origin than the report.
    """
    manifest = verify_manifest(directory)
    report = read_report(directory)
    if report.provenance != manifest.provenance:
        raise ValidationError("report and manifest disagree about the origin", where=str(directory))
    configuration = read_configuration(directory)
    return Artifact(
        directory,
        manifest,
        report,
        read_encodings(directory),
        configuration.preprocessing_of(where=str(directory)),
        tuple(configuration.classes),
    )
