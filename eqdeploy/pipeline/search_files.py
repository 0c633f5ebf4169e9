"""The files of a search."""

from __future__ import annotations

from pathlib import Path

from eqdeploy.errors import OutputError
from eqdeploy.files import write_atomically, write_json
from eqdeploy.json_file import read_json
from eqdeploy.pipeline.configuration import SUBNET_FILE
from eqdeploy.search.budgets import Budget
from eqdeploy.search.charts import draw_bits, draw_pareto
from eqdeploy.search.outcome import SEARCH_FORMAT, SearchResult
from eqdeploy.search.pareto import ParetoTable

#: Folder of a search's files in an artifact.
SEARCH_FOLDER = "search"

SEARCH_FILE = "search.json"
_PARETO_FILES = ("pareto.csv", "pareto.json", "pareto.png")
_BITS_FILE = "bits.png"

#: Files that only people read.
RECORD_FILES = (*_PARETO_FILES, _BITS_FILE)

MAXIMUM_SEARCH_BYTES = 64 << 20


def write_search(folder: Path, result: SearchResult, table: ParetoTable | None, budgets: tuple[Budget, ...]) -> None:
    """Write everything but times and places: the same search gives the same bytes.

    Args:
        folder: Where to.
        result: What was found.
        table: The Pareto front; None where there was nothing to search, then there is no picture either.
        budgets: Limits, for the picture.

    Raises:
        OutputError: If a file cannot be written.
    """
    folder.mkdir(exist_ok=True)
    write_json(folder / SUBNET_FILE, result.subnet.to_json())
    write_json(folder / SEARCH_FILE, result.document())
    if table is None:
        return
    tabular, document, picture = (folder / name for name in _PARETO_FILES)
    write_atomically(tabular, table.to_csv().encode())
    write_json(document, table.to_json())
    draw_pareto(picture, table, budgets)
    title = f"{result.origin.supernet} for {result.origin.profile}"
    draw_bits(folder / _BITS_FILE, result.layers, ", ".join((title, *result.origin.budgets)))


def recognize_search(folder: Path) -> None:
    """Refuse a folder that no search wrote.

    Raises:
        OutputError: If it has no valid ``search.json``.
    """
    try:
        document = read_json(folder / SEARCH_FILE, MAXIMUM_SEARCH_BYTES, OutputError)
        found = isinstance(document, dict) and document.get("format") == SEARCH_FORMAT
    except OutputError:
        found = False
    if not found:
        raise OutputError(
            "holds something that is not the result of a search and is never replaced",
            where=str(folder),
            hint=f"no valid {SEARCH_FILE} in it; choose another folder with --out or remove it yourself",
        )
