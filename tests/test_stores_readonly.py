"""A cache that may only be read is read; a loaded model that predicts writes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from staging import FIT, TINY, classes, featx, ordinary_rights

from featx import load
from featx.exceptions import StoreError, StoreWarning
from featx.spec import FeatureSpec
from featx.stores import open_store
from featx.stores.base import as_ids


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Class folders, a model of them, and its cache, which nobody may write."""
    photos, model, cache = classes(tmp_path / "photos", each=6), tmp_path / "m.featx", tmp_path / "cache"
    assert featx("fit", photos, *FIT, "-o", model, "--cache-dir", cache).code == 0
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with ordinary_rights():
            assert not os.access(cache, os.W_OK, effective_ids=True)
            yield photos, model, cache
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_every_verb_that_reads_reads_a_cache_that_cannot_be_written(
    locked: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    photos, model, cache = locked
    before = _files(cache)
    use = ["--cache-dir", cache]
    spaces = featx("cache", "ls", *use).document["spaces"]
    assert sum(space["rows"] for space in spaces) >= 12
    predicted = featx("predict", model, photos, "--runtime", "torch", *use)
    assert predicted.code == 0
    assert "warning" not in predicted.err
    assert featx("evaluate", model, photos, "--runtime", "torch", *use).code == 0
    assert featx("cache", "verify", *use).code == 0
    largest = max(spaces, key=lambda space: space["rows"])
    assert featx("cache", "export", largest["key"], "-o", tmp_path / "x.npz", *use).code == 0
    found = {one["what"]: one for one in featx("doctor", *use).document["findings"]}
    assert "can only be read" in str(found["cache"])
    assert featx("fit", photos, *FIT, "-o", tmp_path / "again.featx", *use).document["computed"] == 0
    after = _files(cache)
    assert {name: size for name, (size, _) in after.items()} == {n: size for n, (size, _) in before.items()}


def test_new_images_are_computed_and_kept_in_memory_with_one_warning(
    locked: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, model, cache = locked
    new = classes(tmp_path / "new", each=3, suffix=".bmp")
    said = featx("predict", model, new, "--runtime", "torch", "--cache-dir", cache)
    assert said.code == 0
    assert len(said.document["predictions"]) == 6
    assert said.err.count("can only be read, so new features are not stored") == 1
    assert featx("extract", new, *TINY, "--cache-dir", cache).document["computed"] == 6


def test_what_changes_a_cache_is_refused_in_words(locked: tuple[Path, Path, Path]) -> None:
    _, _, cache = locked
    for words in (["pack"], ["prune", "--max-size", "0"]):
        said = featx("cache", *words, "--cache-dir", cache)
        assert said.code == 1
        assert "can only be read" in said.error


def test_rows_and_notes_are_kept_in_this_process(locked: tuple[Path, Path, Path]) -> None:
    _, _, cache = locked
    store: Any = open_store(cache)
    key, spec = next(iter(store.keys().items()))
    assert isinstance(spec, FeatureSpec)
    ids, row = as_ids([b"\x01" * 32]), np.full((1, *store.row_shape(key)), 0.5, np.float32)
    with pytest.warns(StoreWarning, match="can only be read"):
        store.append(key, ids, row, spec)
    store.commit()
    store.close()
    assert np.array_equal(store.read(key, ids), row)
    assert open_store(cache).missing(key, ids).all()
    store.remember("kind", "name", {"a": 1})
    assert store.recall("kind", "name") == {"a": 1}
    with pytest.raises(StoreError, match="can only be read"):
        store.prune(max_bytes=0)


def test_a_loaded_model_that_predicts_writes_nothing(tmp_path: Path, own_cache: Path) -> None:
    photos, model = classes(tmp_path / "photos", each=6), tmp_path / "m.featx"
    assert featx("fit", photos, *FIT, "-o", model, "--cache-dir", tmp_path / "cache").code == 0
    work = tmp_path / "work"
    work.mkdir()
    before = _files(tmp_path), _files(own_cache)
    here = Path.cwd()
    os.chdir(work)
    try:
        clf = load(model)
        assert clf.predict(sorted(photos.glob("*/*.png"))).shape == (12,)
        assert clf.score(photos) > 0.5
    finally:
        os.chdir(here)
    assert (_files(tmp_path), _files(own_cache)) == before
    clf = load(model, store=tmp_path / "asked")
    clf.predict(photos)
    assert list((tmp_path / "asked").rglob("*.h5"))
