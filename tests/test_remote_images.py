"""Images of an object store: read through faults as from a disk, with copies of bounded size."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from object_server import Objects
from staging import FIT, TINY, classes, featx, pixels

from featx import FeatureExtractor
from featx.images import RemotePath, load_images, read_digests
from featx.remote import read_file

MOST = 1 << 30
FAULTS = ("busy", pytest.param("silent", marks=pytest.mark.slow), "cut", "reset")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return classes(tmp_path / "photos", each=6)


def test_a_folder_of_a_bucket_is_read_as_the_same_folder_of_a_disk(objects: Objects, photos: Path) -> None:
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "a.png").write_bytes(b"x")
    (photos / "red" / "notes.txt").write_text("x")
    remote, local = load_images(RemotePath(objects.upload(photos, "set"))), load_images(photos)
    assert remote.names == local.names
    assert remote.labels.tolist() == local.labels.tolist()
    assert read_digests(remote.sources) == read_digests(local.sources)


@pytest.mark.parametrize("fault", FAULTS)
def test_features_are_those_of_the_disk_whatever_fails_on_the_way(
    objects: Objects, photos: Path, fault: str
) -> None:
    address = RemotePath(objects.upload(photos, "set"))
    how = {"pretrained": False, "runtime": "torch", "input_size": 32, "precision": "fp32", "store": "memory"}
    expected = FeatureExtractor("test_resnet", **how).extract(load_images(photos).sources)
    with objects.proxy.faulty(fault, share=0.15):
        found = FeatureExtractor("test_resnet", **how).extract(load_images(address).sources)
    assert objects.proxy.injected[fault] > 0
    assert found.skipped == []
    np.testing.assert_array_equal(found.ids, expected.ids)
    name = next(iter(found.specs))
    np.testing.assert_allclose(found.blocks[name], expected.blocks[name], rtol=1e-3, atol=1e-4)


def test_what_is_missing_is_set_aside_with_its_reason(objects: Objects, photos: Path, tmp_path: Path) -> None:
    objects.upload(photos, "set")
    names = [f"{path.parent.name}/{path.name}" for path in sorted(photos.rglob("*.png"))]
    rows = "".join(f"{name},{name[:3]}\n" for name in [*names, "red/gone.png"])
    manifest = objects.put("set/m.csv", f"path,label\n{rows}".encode())
    said = featx("extract", manifest, *TINY, "--max-bad", "0.2", "--cache-dir", tmp_path / "cache")
    assert said.code == 3
    assert said.reasons["gone.png"].startswith("no such file")
    assert said.document["images"] == 12


def test_an_endless_failure_is_told_with_its_reason(objects: Objects, photos: Path, tmp_path: Path) -> None:
    address = objects.upload(photos, "set")
    with objects.proxy.faulty("busy", share=1):
        said = featx("extract", address, *TINY, "--cache-dir", tmp_path / "cache")
    assert said.code == 1
    assert "Service Unavailable" in said.error or "reduce your request rate" in said.error


def test_a_fit_and_predictions_from_a_bucket(objects: Objects, photos: Path, tmp_path: Path) -> None:
    address, model = objects.upload(photos, "set"), tmp_path / "m.featx"
    cache = ["--cache-dir", tmp_path / "cache"]
    assert featx("fit", address, *FIT, *cache, "-o", model).code == 0
    one = objects.names("set/red")[0]
    said = featx("predict", model, f"s3://photos/{one}", *cache, "-o", tmp_path / "p.csv")
    assert said.code == 0
    assert f"s3://photos/{one}" in (tmp_path / "p.csv").read_text()


def test_an_image_is_fetched_once_and_again_only_if_it_changed(objects: Objects) -> None:
    address = RemotePath(objects.put("a.bin", b"first"))
    assert [read_file(address, MOST) for _ in range(5)] == [b"first"] * 5
    assert objects.proxy.requests["GET"] == 1
    objects.put("a.bin", b"later")
    assert read_file(address, MOST) == b"later"


def test_a_damaged_copy_is_fetched_again(objects: Objects, tmp_path: Path) -> None:
    address = RemotePath(objects.put("a.bin", b"content"))
    read_file(address, MOST)
    (copy,) = (path for path in (tmp_path / "copies").rglob("*-*") if path.is_file())
    for damaged in (b"", copy.read_bytes()[:-1], copy.read_bytes()[:-1] + b"X"):
        copy.write_bytes(damaged)
        assert read_file(address, MOST) == b"content"


@pytest.mark.parametrize(("limit", "most"), [("20000", 20000), ("0", 0)])
def test_the_copies_take_no_more_than_the_limit(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setenv("FEATX_REMOTE_BYTES", limit)
    for number in range(60):
        read_file(RemotePath(objects.put(f"{number}.bin", b"%d" % number * 400)), MOST)
        taken = sum(path.stat().st_size for path in (tmp_path / "copies").rglob("*") if path.is_file())
        assert taken <= most
    assert (taken > 0) == (most > 0)


def test_a_larger_file_than_allowed_is_refused(objects: Objects) -> None:
    with pytest.raises(OSError, match="it has 1,000 bytes; at most 999 are read"):
        read_file(RemotePath(objects.put("a.bin", b"x" * 1000)), 999)


def test_a_key_is_never_taken_for_another_file_system(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(FileNotFoundError):
        read_file(RemotePath(f"s3://photos/a::file://{tmp_path}/secret"), MOST)
    strange = "a::b*[1]?#%20.png"
    assert read_file(RemotePath(objects.put(strange, b"x")), MOST) == b"x"


def test_pixels_of_deep_images_decide_the_range_as_on_a_disk(objects: Objects, tmp_path: Path) -> None:
    from PIL import Image

    from featx.images import DecodePolicy, choose_range

    for number in range(3):
        deep = pixels(number)[:, :, 0].astype(np.uint16) * 16
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(deep).save(tmp_path / "deep" / f"{number}.png")
    remote = load_images(RemotePath(objects.upload(tmp_path / "deep", "deep")))
    chosen = [choose_range(one.sources, DecodePolicy()) for one in (remote, load_images(tmp_path / "deep"))]
    assert chosen[0] == chosen[1] == "0,4095"


def test_digests_name_the_bytes(objects: Objects) -> None:
    address = RemotePath(objects.put("a.png", b"bytes"))
    assert read_digests([address])[0] == [hashlib.sha256(b"bytes").digest()]
