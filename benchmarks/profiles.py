"""Export a supernet under every shipped profile: accuracy and differing codes side by side."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import float_of_as_many_steps, markdown_table, write_results

from eqdeploy.pipeline import export_profiles
from eqdeploy.profile import shipped_profiles
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import ExportRequest

#: The supernet that a float network of as many steps is measured beside.
CIFAR10 = "cifar10-resnet20"


def main() -> None:
    """Export, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--supernet", default="digits", help="name of a shipped supernet, or a checkpoint")
    parser.add_argument("--data", default="digits", help="its images")
    parser.add_argument("--name", default="profiles", help="name of the result files")
    options = parser.parse_args()
    command = "python benchmarks/profiles.py"
    if options.supernet != "digits":
        command += f" --supernet {options.supernet} --data {options.data} --name {options.name}"
    with tempfile.TemporaryDirectory() as folder:
        request = ExportRequest(
            profiles=shipped_profiles(), output=Path(folder), supernet=options.supernet, data=options.data
        )
        results = export_profiles(request, SilentProgress())
    reports = {result.report.provenance.profile: result.report for result in results}
    figures, rows = {}, []
    for name, report in reports.items():
        accuracy = {row["name"]: row["accuracy"] for row in report.accuracy.details["rows"]}
        levels = {
            level: {key: found[key] for key in ("codes", "differing", "kinds", "max_lsb", "top1_agreement")}
            for level, found in report.parity.details["levels"].items()
        }
        figures[name] = {"verdict": str(report.verdict), "accuracy": accuracy, "parity": levels}
        differing = (f"{found['differing']:,}" for found in levels.values())
        rows.append([name, *(f"{value:.2%}" for value in accuracy.values()), *differing])
    codes = {found["codes"] for report in figures.values() for found in report["parity"].values()}
    header = ["profile", "float", "simulated", "exported", *(f"differing, {level}" for level in levels)]
    summary = (
        f"Top-1 on the held-out images, and integer codes that differ from the integer reference at each optimization "
        f"level of ONNX Runtime, of {min(codes):,} to {max(codes):,} codes. Every difference is explained by the "
        f"runtime's own arithmetic; the JSON file counts them by kind."
        f"{float_of_as_many_steps() if options.supernet == CIFAR10 else ''}"
    )
    write_results(
        options.name,
        command,
        {"seed": 0, "profiles": figures},
        [summary, markdown_table(header, rows)],
    )


if __name__ == "__main__":
    main()
