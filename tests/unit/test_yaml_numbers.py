"""Numbers that no Python prints are refused with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqdeploy.errors import ProfileError
from eqdeploy.project import load_project


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "1" + ":59" * 3000, "1" + ":59" * 3000 + ".5", "9" * 5000])
@pytest.mark.parametrize("place", ["seed: {}", "? {}\n: 1", "profiles: [a, {}]"])
def test_a_number_of_thousands_of_digits_is_refused_wherever_it_stands(tmp_path: Path, number: str, place: str) -> None:
    (tmp_path / "eqdeploy.yaml").write_text(place.format(number))
    with pytest.raises(ProfileError, match=r"eqdeploy.yaml:1: a number of \d+ characters"):
        load_project(tmp_path)
