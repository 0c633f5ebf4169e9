"""Answers that a person can read: in a line, and as a table in a notebook."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from eqdeploy.readable import Readable, Summary


@dataclass(frozen=True, repr=False)
class Answer(Readable):
    name: str

    def summary(self) -> Summary:
        return Summary(self.name, ("a", "b"), ((self.name, "1"), ("other", "2")))


def test_in_a_line() -> None:
    assert repr(Answer("digits: valid")) == "<Answer digits: valid>"


@given(st.text())
def test_what_came_from_a_file_stays_on_its_line(name: str) -> None:
    assert repr(Answer(name)).isprintable()
    line, empty, head, rule, first, second = Answer(name)._repr_markdown_().split("\n")
    assert line.isprintable()
    assert (empty, head, rule, second) == ("", "| a | b |", "|---|---|", "| other | 2 |")
    assert first.replace("\\|", "").count("|") == 3 or "\\\\|" in first
    assert "<" not in first


def test_signs_of_markdown_are_shown() -> None:
    summary = Summary("a_b *c* <b>", ("x",), (("1 | 2",),))
    assert summary.markdown().splitlines() == ["a\\_b \\*c\\* &lt;b&gt;", "", "| x |", "|---|", "| 1 \\| 2 |"]
