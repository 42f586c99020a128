"""`resurge convert`: what it prints, and what it says of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Command = Callable[..., str]


def test_bad_input_is_a_sentence(resurge: Command, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("Labels,Index\nAdele,0\n")
    given = ("--labels", "labels.csv", "--to", "gcd")
    assert "did you mean 'gcd'?" in resurge("convert", "gdc", "a.pkl", *given, code=2)
    assert "there is no file" in resurge("convert", "gcd", "a.pkl", *given, code=2)
    (tmp_path / "a.pkl").write_bytes(b"not a pickle")
    said = resurge("convert", "gcd", "a.pkl", *given, code=2)
    assert "say --allow-pickle" in said
    said = resurge("convert", "gcd", "a.pkl", *given, "--allow-pickle", code=2)
    assert "weights-only reader cannot read" in said
