"""Manifests: types that stay, errors that name the row, the column and the fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.exceptions import DataError, FeatxError
from featx.images import load_images, read_picture


@pytest.fixture
def manifest(tmp_path: Path):
    """Write a manifest and load it."""

    def load(text: str | bytes, name: str = "m.csv", **options: object):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_images(tmp_path / name, **options)

    return load


def test_all_columns_are_read_in_the_given_order(manifest, tmp_path: Path) -> None:
    found = manifest(
        "weight,path,label,group,split,note\n0.5,b.jpg,dog,g1,train,x\n2,sub/a.jpg,cat,g2,valid,y\n"
    )
    assert found.names == ["b.jpg", "sub/a.jpg"]
    assert found.sources == [str(tmp_path / "b.jpg"), str(tmp_path / "sub/a.jpg")]
    assert found.labels.tolist() == ["dog", "cat"]
    assert found.splits.tolist() == ["train", "val"]
    assert found.groups.tolist() == ["g1", "g2"]
    assert found.weights.tolist() == [0.5, 2.0]


def test_paths_are_relative_to_the_manifest_and_absolute_ones_stay(manifest, tmp_path: Path, picture) -> None:
    (tmp_path / "sub").mkdir()
    picture().save(tmp_path / "sub" / "a.png")
    found = manifest(f"path\nsub/a.png\n{tmp_path}/sub/a.png\n")
    first, second = (read_picture(source) for source in found.sources)
    assert first.digest == second.digest


@pytest.mark.parametrize(
    ("labels", "expected", "kind"),
    [
        (["1", "2", "-3"], [1, 2, -3], "i"),
        (["007", "1", "2"], ["007", "1", "2"], "U"),
        (["1", "two", "3"], ["1", "two", "3"], "U"),
        (["0.5", "1.25", "2"], [0.5, 1.25, 2.0], "f"),
        (["1.9", "1.10", "2.0"], ["1.9", "1.10", "2.0"], "U"),
        (["nan", "inf", "x"], ["nan", "inf", "x"], "U"),
        (["True", "False", "True"], ["True", "False", "True"], "U"),
        (["99999999999999999999", "1", "2"], ["99999999999999999999", "1", "2"], "U"),
        (["+1", "1", "2"], ["+1", "1", "2"], "U"),
        (["-0", "1", "2"], ["-0", "1", "2"], "U"),
    ],
)
def test_labels_keep_the_type_they_were_written_in(manifest, labels, expected, kind) -> None:
    found = manifest("path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels)))
    assert (found.labels.tolist(), found.labels.dtype.kind) == (expected, kind)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.tsv", "path\tlabel\na,b.jpg\tx\n"),
        ("m.csv", "path;label\na,b.jpg;x\n"),
        ("m.csv", "path\tlabel\na,b.jpg\tx\n"),
        ("m.csv", '﻿Path , LABEL\n"a,b.jpg",x\n'),
        ("m.csv", '\npath,label\r\n\r\n"a,b.jpg",x\r\n,\r\n'),
        ("m.csv", 'path,label\n"a,b.jpg",x\n'.encode("utf-16")),
    ],
)
def test_separators_marks_and_blank_rows_of_usual_programs_are_understood(manifest, name, text) -> None:
    found = manifest(text, name)
    assert (found.names, found.labels.tolist()) == (["a,b.jpg"], ["x"])


def test_names_that_are_not_utf8_lead_to_their_files(manifest, tmp_path: Path, picture) -> None:
    picture().save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    found = manifest(b"path,label\ncaf\xe9.png,a\n")
    assert len(read_picture(found.sources[0]).digest) == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; the first row names the columns"),
        ("file,class\na.jpg,x\n", r"no column 'path' among file, class; name the columns path,label"),
        ("path,label\n", "no rows below the header"),
        ("path,label\na.jpg,x\nb.jpg,\n", "row 3, column label: no label; write one, or delete the row"),
        ("path,label\n,x\n", "row 2, column path: empty; write the picture's path"),
        ("path,label\na.jpg,x,y\n", "row 2: 3 fields where the header has 2; put quotes"),
        ("path,label\n\n\na.jpg\n", "row 4: 1 fields where the header has 2"),
        (
            "path,split\na.jpg,train\nb.jpg,holdout\n",
            "row 3, column split: 'holdout' is no split; write train, val or test",
        ),
        (
            "path,weight\na.jpg,heavy\n",
            "row 2, column weight: 'heavy' is no weight; write a number from 0 up",
        ),
        ("path,weight\na.jpg,-1\n", "row 2, column weight: '-1' is no weight"),
        ("path,weight\na.jpg,nan\n", "row 2, column weight"),
        ("path,group\na.jpg,\n", "row 2, column group: no group"),
        ("path,label,Label\na.jpg,x,y\n", "the column 'label' stands twice"),
        ('path,label\n"a.jpg,x\n', "not a CSV table"),
        ("path,label\na\0.jpg,x\n", "NUL"),
    ],
)
def test_an_error_names_the_row_the_column_and_the_fix(manifest, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        manifest(text)
    assert "m.csv" in str(caught.value)


def test_a_label_column_that_is_empty_throughout_means_no_labels(manifest) -> None:
    assert manifest("path,label\na.jpg,\nb.jpg,\n").labels is None


def test_labels_are_left_unread_where_none_are_wanted(manifest) -> None:
    assert manifest("path,label\na.jpg,x\nb.jpg,\n", labelled=False).labels is None


@pytest.fixture
def parquet(tmp_path: Path):
    """Write a parquet manifest from columns and load it."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as writer

    def load(columns: dict[str, object]):
        writer.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
        return load_images(tmp_path / "m.parquet")

    return load


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([1, 2], "i"), (["a", "b"], "U"), (["1", "b"], "U"), ([True, False], "b"), ([0.5, 1.5], "f")],
)
def test_parquet_labels_keep_their_type(parquet, labels, kind) -> None:
    found = parquet(
        {"path": ["a.jpg", "b.jpg"], "label": labels, "weight": [1, 2], "split": ["train", "test"]}
    )
    assert (found.labels.tolist(), found.labels.dtype.kind) == (labels, kind)
    assert found.weights.tolist() == [1.0, 2.0]


def test_pandas_categories_arrive_as_their_values(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": ["a", "b"], "label": pandas.Categorical(["y", "x"])})
    frame.to_parquet(tmp_path / "m.parquet")
    assert load_images(tmp_path / "m.parquet").labels.tolist() == ["y", "x"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a", "b"], "label": ["x", None]}, "row 2, column label: no label"),
        ({"path": ["a", "b"], "label": [["x"], ["y", "z"]]}, "row 1, column label: .* more than one label"),
        ({"path": [1, 2]}, "row 1, column path: 1 is no path"),
        ({"path": ["a"], "weight": [None]}, "row 1, column weight: None is no weight"),
        ({"path": ["a"], "label": [float("nan")]}, None),
        ({"label": ["a"]}, "no column 'path'"),
        ({"path": []}, "no rows"),
    ],
)
def test_a_parquet_error_names_the_row_too(parquet, columns, message) -> None:
    if message is None:  # a column of nothing but missing labels is no labels
        assert parquet(columns).labels is None
        return
    with pytest.raises(DataError, match=message):
        parquet(columns)


def test_a_file_that_only_claims_to_be_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DataError, match="not a readable parquet file"):
        load_images(tmp_path / "m.parquet")


cell = st.text(st.characters(), max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    header=st.lists(
        st.sampled_from(["path", "label", "split", "group", "weight", "x", " Path "]) | cell, max_size=6
    ),
    rows=st.lists(
        st.lists(cell | st.sampled_from(["a.jpg", "train", "1", "0.5", ""]), max_size=6), max_size=6
    ),
    separator=st.sampled_from([",", ";", "\t", ",,", "\x00"]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
)
def test_any_text_is_a_manifest_or_a_clear_error(
    tmp_path_factory, header, rows, separator, ending, encoding
) -> None:
    text = ending.join(separator.join(row) for row in [header, *rows])
    check_bytes(tmp_path_factory.getbasetemp() / "fuzz.csv", text.encode(encoding, errors="ignore"))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
@pytest.mark.parametrize("name", ["fuzz.csv", "fuzz.tsv"])
def test_any_bytes_are_a_manifest_or_a_clear_error(tmp_path_factory, name, data) -> None:
    check_bytes(tmp_path_factory.getbasetemp() / name, b"path,label\n" + data)
    check_bytes(tmp_path_factory.getbasetemp() / name, data)


def check_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    message = f"{path.name} was read"
    found = None
    try:
        found = load_images(path)
    except FeatxError as error:
        message = str(error)
    assert path.name in message
    assert message.isprintable()
    if found is None:
        return
    assert len(found) == len(found.names) > 0
    for column in (found.labels, found.splits, found.groups, found.weights):
        assert column is None or column.shape == (len(found),)
    assert found.weights is None or np.isfinite(found.weights).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.text("abc/.é ,;\"'", min_size=1).filter(str.strip), st.integers()), min_size=1))
def test_a_manifest_written_by_the_csv_module_is_read_back(tmp_path_factory, rows) -> None:
    import csv

    path = tmp_path_factory.getbasetemp() / "round.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    found = load_images(path)
    assert found.names == [name for name, _ in rows]
    fits = all(abs(label) < 10**18 for _, label in rows)
    assert found.labels.tolist() == [label if fits else str(label) for _, label in rows]


# Manifests that ask for memory


@pytest.mark.parametrize("column", ["path", "label"])
def test_a_small_parquet_file_of_many_rows_is_refused_before_it_is_read(tmp_path: Path, column: str) -> None:
    """A file of some kB that would take gigabytes, under a limit of memory."""
    code = """
import resource, sys
import pyarrow, pyarrow.parquet
from featx.exceptions import DataError
from featx.images.manifest import read_manifest
path, column = sys.argv[1:]
if column == "path":  # many rows
    schema = pyarrow.schema([("path", pyarrow.string()), ("label", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(11):
            indices = pyarrow.repeat(pyarrow.scalar(0, pyarrow.int32()), 1_000_000)
            one = pyarrow.DictionaryArray.from_arrays(indices, ["a.png"])
            writer.write_table(pyarrow.table({"path": one, "label": one}).cast(schema))
else:  # one long text, a thousand times
    indices = pyarrow.repeat(pyarrow.scalar(0, pyarrow.int32()), 2_000)
    text = pyarrow.DictionaryArray.from_arrays(indices, ["a" * 500_000])
    name = pyarrow.DictionaryArray.from_arrays(indices, ["a.png"])
    pyarrow.parquet.write_table(pyarrow.table({"path": name, "label": text}), path, compression="zstd")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_manifest(path)
except DataError as error:
    print(error)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert grown < 100_000_000, grown
"""
    path = tmp_path / "m.parquet"
    said = subprocess.run(
        [sys.executable, "-c", code, str(path), column], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr[-1000:]
    assert path.stat().st_size < 1_000_000
    message = "11,000,000 rows; at most 10,000,000" if column == "path" else "2,000 texts of up to 500,000"
    assert message in said.stdout


def test_a_csv_label_that_would_take_gigabytes_is_an_error(manifest) -> None:
    rows = "".join(f"{number}.png,c\n" for number in range(3000))
    with pytest.raises(DataError, match="column label: 3,001 texts of up to 100,000 characters"):
        manifest(f"path,label\n{rows}x.png,{'c' * 100_000}\n")
