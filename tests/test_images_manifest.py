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

from featx.exceptions import DataError, FeatxError, ImageWarning, UsageError
from featx.images import ManifestOptions, load_images, read_picture


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
        (["inf", "x", "y"], ["inf", "x", "y"], "U"),
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
        ("place,kind\na.jpg,x\n", r"no column 'path' among place, kind; name the columns path,label"),
        ("path,label\n", "no rows below the header"),
        ("path,label\na.jpg,x\nb.jpg,\n", "row 3, column label: no label; write one, or delete the row"),
        ("path,label\n,x\n", "row 2, column path: empty; write the image's path"),
        ("path,label\na.jpg,x,y\n", "row 2: 3 fields where the header has 2; put quotes"),
        ("path,label\n\n\na.jpg\n", "row 4: 1 fields where the header has 2"),
        (
            "path,split\na.jpg,train\nb.jpg,hidden\n",
            "row 3, column split: 'hidden' is not a split; write train, val or test",
        ),
        (
            "path,weight\na.jpg,heavy\n",
            "row 2, column weight: 'heavy' is not a weight; write a number of at least 0",
        ),
        ("path,weight\na.jpg,-1\n", "row 2, column weight: '-1' is not a weight"),
        ("path,weight\na.jpg,nan\n", "row 2, column weight"),
        ("path,group\na.jpg,\n", "row 2, column group: no group"),
        ("path,label,Label\na.jpg,x,y\n", "the column 'label' occurs twice"),
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
        ({"path": [1, 2]}, "row 1, column path: 1 is not a path"),
        ({"path": ["a"], "weight": [None]}, "row 1, column weight: None is not a weight"),
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


def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in an empty folder, whose manifests find no images."""
    folder = tmp_path_factory.getbasetemp() / "fuzz" / "set"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    check_bytes(_folder(tmp_path_factory) / "fuzz.csv", text.encode(encoding, errors="ignore"))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
@pytest.mark.parametrize("name", ["fuzz.csv", "fuzz.tsv"])
def test_any_bytes_are_a_manifest_or_a_clear_error(tmp_path_factory, name, data) -> None:
    check_bytes(_folder(tmp_path_factory) / name, b"path,label\n" + data)
    check_bytes(_folder(tmp_path_factory) / name, data)


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
@pytest.mark.filterwarnings("ignore:.*images with two labels:featx.exceptions.ImageWarning")
def test_a_manifest_written_by_the_csv_module_is_read_back(tmp_path_factory, rows) -> None:
    import csv

    path = _folder(tmp_path_factory) / "round.csv"
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


# Columns


@pytest.mark.parametrize(
    ("header", "path", "label"),
    [
        ("filename,width,class", 0, 2),
        ("image_id,label", 0, 1),
        ("Image Path,Category", 0, 1),
        ("label,file_path", 1, 0),
        ("id,img,target", 1, 2),
        ("path, LABEL ,labels", 0, 1),  # the exact name goes before another one
        ("\u200bpath,Class Name", 0, 1),
        ("file,path,label,image", 1, 2),
    ],
)
def test_usual_names_of_columns_are_understood_and_said(manifest, header, path, label) -> None:
    row = [f"{position}.jpg" for position in range(header.count(",") + 1)]
    found = manifest(f"{header}\n{','.join(row)}\n")
    assert (found.names, found.labels.tolist()) == ([f"{path}.jpg"], [f"{label}.jpg"])
    names = [name.strip().strip("\u200b") for name in header.split(",")]
    if names[path].lower() != "path":
        assert f"olumn {names[path]} is read as path" in found.remarks[0]


@pytest.mark.parametrize(
    ("text", "options", "labels"),
    [
        ("file;kind\na.jpg;x\n", {"path_column": "file", "label_column": "kind"}, ["x"]),
        ("file,kind\na.jpg,x\n", {"path_column": "FILE ", "label_column": "Kind"}, ["x"]),
        ("path,label,kind\na.jpg,x,y\n", {"label_column": "kind"}, ["y"]),
        ("path,cat,dog\na.jpg,1,0\nb.jpg,0,1\n", {"label_column": "cat"}, [1, 0]),
        ("path~label\na.jpg~x\n", {"sep": "~"}, ["x"]),
        ("path label\na.jpg x\n", {"sep": "space"}, ["x"]),
        ("path,a;label\na.jpg;x\n", {"sep": "semicolon", "path_column": "path,a"}, ["x"]),
        ("path\tlabel\na.jpg\tx\n", {"sep": "\\t"}, ["x"]),
    ],
)
def test_columns_and_the_separator_can_be_given(manifest, text, options, labels) -> None:
    found = manifest(text, table=ManifestOptions(**options))
    assert (found.names[0], found.labels.tolist()) == ("a.jpg", labels)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "path,label\na.jpg,x\n",
            {"label_column": "kind"},
            "the column 'kind' is not among path",
        ),
        ("path,Kind,KIND\na,x,y\n", {"label_column": "kind"}, "stands more than once"),
        (
            "image,file\na.jpg,b.jpg\n",
            {},
            "image, file may all be the paths; .* --path-column image",
        ),
        (
            "img/a.jpg,cat\nimg/b.jpg,dog\n",
            {},
            "looks like an image, not like names of columns",
        ),
    ],
)
def test_a_column_that_cannot_be_chosen_is_an_error_with_the_choice(manifest, text, options, message) -> None:
    with pytest.raises(DataError, match=message):
        manifest(text, table=ManifestOptions(**options))


def test_options_of_manifests_are_refused_for_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--root: options of a manifest"):
        load_images(tmp_path, table=ManifestOptions(root="x"))
    with pytest.raises(UsageError, match="give one character"):
        ManifestOptions(sep="ab")


@pytest.mark.parametrize(
    "labels",
    [
        ["cat|outdoor", "cat", "dog"],
        ["cat|outdoor", "dog|outdoor"],
        ["a;b", "a", "b"],
        ["a,b", "a", "b"],
        ["a | b", "b"],
        ["['cat', 'outdoor']", "['dog', 'outdoor']"],
        ['["cat","outdoor"]', '["dog"]'],
        ["{cat,outdoor}", "{dog}"],
        ["1|2", "1", "2"],
        ["cat|", "cat"],
    ],
)
def test_several_labels_in_a_cell_are_refused(manifest, labels) -> None:
    rows = "".join(f'{n}.jpg,"{label.replace(chr(34), chr(34) * 2)}"\n' for n, label in enumerate(labels))
    with pytest.raises(DataError, match=r"row 2, column label: .* is more than one label .*--label-column"):
        manifest("path,label\n" + rows)


@pytest.mark.parametrize(
    "labels",
    [["Paris, France", "Lyon, France"], ["a|b", "c|d"], ["rock;roll", "jazz"], ["[", "]"], ["(a)", "(b)"]],
)
def test_signs_in_labels_that_are_no_lists_are_kept(manifest, labels) -> None:
    assert (
        manifest("path,label\n" + "".join(f'{n}.jpg,"{t}"\n' for n, t in enumerate(labels))).labels.tolist()
        == labels
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,cat,dog\na,1,0\nb,0,1\n", "cat, dog hold 0 and 1"),
        ("filename, cat, dog\na, 1, 0\nb, 1, 1\n", "cat, dog hold 0 and 1"),
        ("path,cat,dog,bird\na,1.0,0.0,0.0\n", "cat, dog, bird hold 0 and 1"),
        ("path,smiling,male\na,True,False\n", "smiling, male hold 0 and 1"),
        ("path,label_1,label_2\na,x,y\n", "label_1, label_2 may all be labels"),
        ("path,class,category\na,x,y\n", "class, category may all be labels"),
        ("path,kind,colour\na,x,y\n", "The table has the columns path, kind, colour; choose one"),
    ],
)
def test_several_columns_of_labels_are_no_labels_and_the_choice_is_named(manifest, text, message) -> None:
    found = manifest(text)
    assert found.labels is None
    with pytest.raises(DataError, match=message):
        manifest(text, labelled=True)
    assert "--label-column" in found.no_label


def test_blanks_and_unicode_forms_of_labels_make_one_class(manifest) -> None:
    found = manifest("path,label\na,café\nb,cafe\u0301\nc, café\nd,dog\ne,dog\u00a0\n")
    assert found.labels.tolist() == ["café", "café", "café", "dog", "dog"]
    assert "are one class" in found.remarks[0]


@pytest.mark.parametrize(
    "text",
    [
        "# exported\npath,label\na.jpg,x\n",
        "sep=;\npath;label\na.jpg;x\n",
        '"sep=|"\npath|label\na.jpg|x\n',
        "\ufeffsep=,\r\npath,label\r\na.jpg,x\r\n",
        "path|label\na.jpg|x\n",
        ",path,label\n0,a.jpg,x\n",
        "path,label,\na.jpg,x,\n",
    ],
)
def test_lines_and_columns_that_programs_add_are_understood(manifest, text) -> None:
    found = manifest(text)
    assert (found.names, found.labels.tolist()) == (["a.jpg"], ["x"])
    row = text.count("\n") - 1
    with pytest.raises(DataError, match=f"row {row + 2}, column label: no label"):
        manifest(text + "a.jpg\n".join(["", ""]).strip() + text.splitlines()[-1].replace("x", "") + "\n")


# Paths


@pytest.fixture
def pets(tmp_path: Path, picture) -> Path:
    """A folder `set` with images `img/cat_0.jpg` ... and `img/Straße.PNG`."""
    folder = tmp_path / "set" / "img"
    folder.mkdir(parents=True)
    for name in ("cat_0.jpg", "cat_1.jpg", "dog_0.jpg", "dog_1.jpg"):
        (folder / name).write_bytes(b"\xff\xd8\xff" + name.encode())
    (folder / "Straße.PNG").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "set"


NAMES = ("cat_0", "cat_1", "dog_0", "dog_1")


@pytest.mark.parametrize(
    "pattern",
    [
        "img/{}.jpg",
        "./img/{}.jpg",
        "img\\{}.jpg",
        ".\\img\\{}.jpg",
        " img/{}.jpg ",
        "img/{}",
        "{}.jpg",
        "{}",
        "set/img/{}.jpg",
        "file://@/img/{}.jpg",
        "@/img/{}.jpg",
        "/content/drive/MyDrive/set/img/{}.jpg",
        "C:\\Users\\me\\set\\img\\{}.jpg",
        "../set/img/{}.jpg",
        "IMG/{}.JPG",
        "img/{}.JPG",
        "data/set/img/{}",
    ],
)
def test_paths_are_found_as_people_write_them(pets: Path, pattern: str) -> None:
    rows = [pattern.replace("@", str(pets)).format(name) for name in NAMES]
    (pets / "m.csv").write_text("path,label\n" + "".join(f'"{row}",{row[-7:]}\n' for row in rows))
    found = load_images(pets / "m.csv")
    assert [os.path.basename(str(source)) for source in found.sources] == [f"{name}.jpg" for name in NAMES]
    assert all(os.path.exists(str(source)) for source in found.sources)
    assert found.names == rows
    plain = all(os.path.exists(os.path.join(pets, row)) for row in rows)
    assert bool(found.remarks) != plain


@pytest.mark.parametrize("row", ["img/Straße.png", "img/STRASSE", "img/Stra\u00dfe.PNG"])
def test_names_are_matched_without_case_and_ending(pets: Path, row: str) -> None:
    (pets / "m.csv").write_text(f"path,label\n{row},x\n", encoding="utf-8")
    assert os.path.exists(str(load_images(pets / "m.csv").sources[0]))


@pytest.mark.parametrize("rows", [["a/cat_0.jpg", "b/cat_0.jpg"], ["img/cat_0.png", "img/cat_0.bmp"]])
def test_two_paths_never_become_one_file(pets: Path, rows: list[str]) -> None:
    (pets / "m.csv").write_text("path,label\n" + "".join(f"{row},x\n" for row in rows))
    assert not any(os.path.exists(str(source)) for source in load_images(pets / "m.csv").sources)


def test_a_name_that_two_files_have_is_not_guessed(pets: Path) -> None:
    (pets / "img" / "cat_0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (pets / "m.csv").write_text("path,label\nimg/cat_0,x\nimg/cat_1,y\n")
    found = load_images(pets / "m.csv")
    assert [os.path.exists(str(source)) for source in found.sources] == [False, True]
    assert "1 of 2 are not found" in found.remarks[0]


def test_the_root_of_the_paths_can_be_given(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "m.csv").write_text("path,label\ncat_0.jpg,x\n")
    assert not os.path.exists(str(load_images(tmp_path / "lists" / "m.csv").sources[0]))
    found = load_images(tmp_path / "lists" / "m.csv", table=ManifestOptions(root=str(pets / "img")))
    assert (found.sources, found.remarks) == ([str(pets / "img" / "cat_0.jpg")], [])


@pytest.mark.parametrize(
    "address", ["https://x.org/a.jpg", "s3://bucket/a.jpg", "gs://b/a.jpg", " http://x/a.jpg"]
)
def test_addresses_are_refused(manifest, address: str) -> None:
    with pytest.raises(DataError, match="featx reads only addresses that you name"):
        manifest(f"path,label\n{address},x\n")


@pytest.fixture
def outside(tmp_path: Path, pets: Path) -> Path:
    """An image beside the folder of the manifests."""
    path = tmp_path / "private" / "cat_9.jpg"
    path.parent.mkdir()
    path.write_bytes((pets / "img" / "cat_0.jpg").read_bytes())
    return path


@pytest.mark.parametrize(
    "row", ["@", "../private/cat_9.jpg", "img/../../private/cat_9.jpg", "link.jpg", "up/cat_9.jpg"]
)
def test_a_file_outside_the_folder_needs_a_root_or_to_be_allowed(pets: Path, outside: Path, row: str) -> None:
    (pets / "link.jpg").symlink_to(outside)
    (pets / "up").symlink_to(outside.parent)
    row = row.replace("@", str(outside))
    (pets / "m.csv").write_text(f"path,label\nimg/cat_0.jpg,x\n{row},y\n")
    with pytest.raises(DataError, match=r"1 of its 2 images are outside its folder, such as .*--root"):
        load_images(pets / "m.csv")
    found = load_images(pets / "m.csv", follow_links=True)
    assert os.path.samefile(str(found.sources[1]), outside)


def test_a_root_allows_the_files_below_it_and_no_others(pets: Path, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    rows = [pets / "img" / "cat_0.jpg", outside]
    (tmp_path / "m" / "m.csv").write_text("path,label\n" + "".join(f"{row},x\n" for row in rows))
    found = load_images(tmp_path / "m" / "m.csv", table=ManifestOptions(root=str(tmp_path)))
    assert [str(source) for source in found.sources] == [str(row) for row in rows]
    with pytest.raises(DataError, match="outside its folder"):
        load_images(tmp_path / "m" / "m.csv", table=ManifestOptions(root=str(pets)))


def test_files_outside_that_do_not_exist_are_set_aside_as_others(pets: Path) -> None:
    (pets / "m.csv").write_text("path,label\nimg/cat_0.jpg,x\n/nowhere/cat_1.jpeg,y\n/tmp,z\n")
    assert len(load_images(pets / "m.csv")) == 3


def test_a_manifest_below_a_linked_folder_is_inside(pets: Path, tmp_path: Path) -> None:
    (pets / "m.csv").write_text("path,label\nimg/cat_0.jpg,x\n")
    (tmp_path / "linked").symlink_to(pets)
    assert len(load_images(tmp_path / "linked" / "m.csv")) == 1


def test_labels_in_another_encoding_are_refused_and_paths_are_not(manifest) -> None:
    text = "path,label\nf\u00fc\u00dfe.jpg,cat\nb.jpg,dog\n".encode("latin-1")
    assert os.fsencode(manifest(text).sources[0]).endswith(b"f\xfc\xdfe.jpg")  # a name of the file system
    with pytest.raises(DataError, match=r"row 3, column label: .* is not UTF-8; save the table as UTF-8"):
        manifest("path,label\na.jpg,cat\nb.jpg,K\u00e4fer\n".encode("latin-1"))
    assert manifest("path,label\na.jpg,cat\nb.jpg,K\u00e4fer\n").labels.tolist() == ["cat", "K\u00e4fer"]


def test_the_first_sheet_of_a_workbook_is_a_manifest(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra excel")
    workbook = openpyxl.Workbook()
    for row in [["path", "label", "weight"], ["a.jpg", 7, 0.5], [], ["b.jpg", 8.0, 2]]:
        workbook.active.append(row)
    workbook.create_sheet("other").append(["nothing"])
    workbook.save(tmp_path / "m.xlsx")
    found = load_images(tmp_path / "m.xlsx")
    assert found.names == ["a.jpg", "b.jpg"]
    assert found.labels.tolist() == [7, 8]
    assert found.labels.dtype == np.int64
    assert found.weights.tolist() == [0.5, 2.0]
    workbook.active.append(["c.jpg", None, 1])
    workbook.save(tmp_path / "m.xlsx")
    with pytest.raises(DataError, match=r"row 5, column label: no label"):
        load_images(tmp_path / "m.xlsx")
    (tmp_path / "m.xlsx").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="not a readable workbook"):
        load_images(tmp_path / "m.xlsx")


def test_a_workbook_without_openpyxl_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)  # as if it were not installed
    (tmp_path / "m.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match=r"pip install 'featx\[excel\]'.* or save it as CSV"):
        load_images(tmp_path / "m.xlsx")


@pytest.mark.parametrize("column", ["is_test", "fold", "Subset", "partition", "usage"])
def test_a_column_that_may_be_a_split_is_said_not_to_be_read(manifest, column: str) -> None:
    found = load_images(manifest(f"path,label,{column}\na.png,x,1\nb.png,y,0\n"))
    assert found.splits is None
    assert f"olumn {column} is not read (a column split with train, val and test is)" in found.remarks[0]
    found = load_images(manifest("path,label,split\na.png,x,train\nb.png,y,test\n"))
    assert (found.remarks, set(found.splits.tolist())) == ([], {"train", "test"})


def test_an_image_with_two_labels_is_named(manifest) -> None:
    with pytest.warns(ImageWarning, match=r"images with two labels: 1, such as a.png \('x' and 'y'\)"):
        load_images(manifest("path,label\na.png,x\nb.png,y\na.png,y\n"))
    load_images(manifest("path,label\na.png,x\nb.png,y\na.png,x\n"))
