"""CSV that is safe to open: formulas, control characters, numbers, whole files."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.tables import csv_cell, escape_name, write_csv


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize(
    ("value", "cell"),
    [(-1, "-1"), (0.5, "0.5"), (np.float32(0.1), "0.1"), (np.int64(-3), "-3"), (True, "True"), (None, "")],
)
def test_numbers_stay_numbers_and_none_is_an_empty_cell(value: object, cell: str) -> None:
    assert csv_cell(value) == cell


def test_a_name_of_bytes_that_are_not_utf8_shows_those_bytes() -> None:
    assert escape_name(os.fsdecode(b"caf\xe9.jpg")) == "caf\\xe9.jpg"


def test_escape_sequences_line_breaks_and_text_direction_overrides_are_escaped() -> None:
    assert escape_name("\x1b[2J\n\u202egpj.exe\u2028") == "\\x1b[2J\\n\\u202egpj.exe\\u2028"


def test_printable_text_of_any_language_is_left_as_it_is() -> None:
    assert escape_name("Äpfel 日本 'a b' <i>") == "Äpfel 日本 'a b' <i>"


def test_a_written_file_is_read_back_row_by_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["name", "n"], [["a,b", 1], ['say "hi"', 2], ["two\nlines", 3]])
    rows = list(csv.reader((tmp_path / "t.csv").open(encoding="utf-8", newline="")))
    assert rows == [["name", "n"], ["a,b", "1"], ['say "hi"', "2"], ["two\\nlines", "3"]]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "t.csv"
    write_csv(target, ["a"], [["old"]])

    def rows() -> object:
        yield ["new"]
        raise RuntimeError("the rows stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        write_csv(target, ["a"], rows())  # type: ignore[arg-type]
    assert target.read_text() == "a\nold\n"
    assert os.listdir(tmp_path) == ["t.csv"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=5))
def test_any_text_makes_cells_without_controls_or_formulas_and_keeps_the_columns(row: list[str]) -> None:
    stream = io.StringIO()
    write_csv(stream, [str(n) for n in range(len(row))], [row])
    written = stream.getvalue()
    written.encode()  # no surrogate is left
    cells = list(csv.reader(io.StringIO(written, newline="")))[1] if row != [""] else [""]
    assert len(cells) == len(row)
    for cell in cells:
        assert cell.isprintable()
        assert not cell.startswith(("=", "+", "-", "@"))
