"""The check of a data set as people use it: command, page and table; and faults planted in real photos."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featx
from featx import FeatureExtractor
from featx.audit import CHECKS, AuditData, image_facts, near_copies
from featx.audit.noise import find_suspicious_labels
from featx.audit.shortcuts import find_shortcuts
from featx.cli import main
from featx.images import load_images, read_digests
from featx.reporting import DataCheck
from featx.reporting.findings import TITLES
from featx.stores.base import as_ids
from featx.stores.memory import MemoryStore

TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch"]


@pytest.fixture
def faulty(class_folders: Path) -> Path:
    """Class folders with a copy, a near copy of another label, a broken file and hostile names."""
    red, blue = class_folders / "red", class_folders / "blue"
    shutil.copy(red / "red_00.png", red / "copy.png")
    Image.open(red / "red_01.png").resize((48, 36)).save(blue / "other.png")
    (blue / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    shutil.copy(red / "red_02.png", red / "<img src=x onerror=alert(1)>.png")
    return class_folders


def test_the_command_prints_findings_and_writes_page_and_table(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "check.html", tmp_path / "issues.csv"
    assert main(["check", str(faulty), "-o", str(page), "--csv", str(table), *TINY]) == 0
    out = capsys.readouterr().out
    assert "images that cannot be read, copies with several labels" in out
    assert "broken.png" in out
    assert "blue/other.png" in table.read_text()
    html = page.read_text()
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in html
    assert "http://" not in html.replace("http-equiv", "")
    assert "https://" not in html
    capsys.readouterr()
    assert main(["check", str(faulty), "--json", *TINY]) == 0
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["unreadable"]["names"] == ["blue/broken.png"]
    assert found["conflicts"]["value"] == 1
    assert found["copies"]["value"] == 2


def test_fixes_are_obeyed_by_fix_and_by_fit(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "issues.csv"
    table.write_text("path,action\nblue/broken.png,drop\nred/copy.png,drop\nblue/other.png,relabel:red\n")
    clean = tmp_path / "clean.csv"
    assert main(["fix", str(faulty), "--apply", str(table), "-o", str(clean)]) == 0
    assert "2 dropped, 1 relabelled, 0 grouped" in capsys.readouterr().out
    images = load_images(clean)
    assert images.labels is not None
    assert sorted(images.labels.tolist()).count("red") == 14
    assert len(images) == 26
    fast = ["--cut", "last", "--pool", "avg", "--resize", "crop", "--heads", "ridge", "--trials", "1"]
    argv = ["fit", str(faulty), "--fixes", str(table), "-o", str(tmp_path / "m.featx"), *TINY, *fast]
    assert main(argv) == 0
    said = capsys.readouterr().err
    assert "2 images dropped, 1 relabelled, 0 grouped" in said
    assert "near copies stay on one side of every split (--no-auto-groups turns this off)" in said
    assert main([*argv, "--no-auto-groups"]) == 0
    assert "near copies" not in capsys.readouterr().err


def test_images_of_one_source_stay_together(
    tmp_path: Path, picture: Callable[..., Image.Image], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number, label in enumerate(("blue", "red")):
        (tmp_path / "films" / label).mkdir(parents=True)
        for film in range(4):
            scene = np.asarray(picture(10 * number + film), float)
            for frame in range(5):  # alike, and no near copies
                noisy = (0.7 * scene + rng.integers(0, 75, scene.shape)).astype(np.uint8)
                Image.fromarray(noisy).save(tmp_path / "films" / label / f"film{'abcd'[film]}_{frame}.png")
    fast = ["--cut", "last", "--pool", "avg", "--resize", "crop", "--heads", "ridge", "--trials", "0"]
    argv = ["fit", str(tmp_path / "films"), "-o", str(tmp_path / "m.featx"), *TINY, *fast]
    assert main(argv) == 0
    assert "40 images in 8 groups of images that share a name stay on one side" in capsys.readouterr().err
    parts: dict[str, set[str]] = {}
    clf = featx.load(tmp_path / "m.featx")
    images = load_images(tmp_path / "films")
    for name, digest in zip(images.names, read_digests(images.sources)[0], strict=True):
        parts.setdefault(name.rpartition("_")[0], set()).add(clf.assignment_[digest.hex()])
    assert len(parts) == 8
    assert all(len(part) == 1 for part in parts.values())


def test_the_call_returns_plain_data(faulty: Path, tmp_path: Path) -> None:
    extractor = FeatureExtractor("test_resnet", pretrained=False, runtime="torch", store="memory")
    found = featx.check(faulty, extractor=extractor)
    frame = found.to_frame()
    assert list(frame.columns) == ["path", "issue", "severity", "evidence", "suggestion", "action"]
    assert set(frame[frame.issue == "conflicts"].path) == {"red/red_01.png", "blue/other.png"}
    assert json.loads(json.dumps(found.to_dict()))["n"] == len(found.images) == 27
    assert found.to_html().startswith("<!doctype html>")
    rank = [("error", "warning", "note").index(one.severity) for one in found.findings]
    assert rank == sorted(rank)


def test_every_check_has_a_title() -> None:
    assert set(TITLES) == set(CHECKS)


class Planted:
    """The photos of catdog, their features and facts, computed once."""

    def __init__(self, root: Path) -> None:
        self.images = load_images(root / "catdog")
        self.checked: DataCheck = featx.check(self.images, extractor=FeatureExtractor(store="memory"))

    @property
    def data(self) -> AuditData:
        return self.checked.data


@pytest.fixture(scope="module")
def catdog(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(real_data)


CHANGES: list[tuple[str, int, Callable[[Image.Image], Image.Image], int]] = [
    ("resized", 20, lambda im: im.resize((round(im.width * 0.6), round(im.height * 0.6))), 60),
    ("mirrored", 10, lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
    ("cropped", 10, lambda im: im.crop((0, 0, round(im.width * 0.95), round(im.height * 0.95))), 90),
]


@pytest.mark.data
@pytest.mark.slow
def test_copies_planted_in_photos_are_found(real_data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(real_data / "catdog", tmp_path / "catdog")
    files = sorted(folder.rglob("*.jpg"))
    chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:60]]
    kin = {}
    for original in chosen[:20]:
        kin[Path(shutil.copy(original, original.with_name(f"exact-{original.name}")))] = original
    place = 20
    for kind, number, change, quality in CHANGES:
        for original in chosen[place : place + number]:
            copy = original.with_name(f"{kind}-{original.name}")
            change(Image.open(original)).save(copy, quality=quality)
            kin[copy] = original
        place += number
    images = load_images(folder)
    ids = as_ids(digest or b"" for digest in read_digests(images.sources)[0])
    groups = near_copies(image_facts(images.sources, ids, MemoryStore())[0], ids).groups
    at = {str(source): i for i, source in enumerate(images.sources)}
    together = [groups[at[str(copy)]] == groups[at[str(original)]] for copy, original in kin.items()]
    assert sum(together) >= 57
    planted = {groups[at[str(copy)]] for copy in kin}
    sizes = np.bincount(groups)
    assert sum(size > 1 for group, size in enumerate(sizes) if group not in planted) <= 2


@pytest.mark.data
@pytest.mark.slow
def test_flipped_labels_are_the_most_suspicious(catdog: Planted) -> None:
    data = catdog.data
    assert data.labels is not None
    for seed in range(3):
        flipped = np.random.default_rng(seed).choice(len(data.labels), 20, replace=False)
        labels = data.labels.copy()
        labels[flipped] = np.where(labels[flipped] == "cat", "dog", "cat")
        found = find_suspicious_labels(AuditData(data.names, data.digests, labels, features=data.features))
        assert found is not None
        assert found.severity == "warning"
        assert len(set(found.indices[:25]) & set(flipped.tolist())) >= 16


@pytest.mark.data
@pytest.mark.slow
def test_copies_across_parts_are_named_with_the_score_without_them(catdog: Planted) -> None:
    data = catdog.data
    copied = np.random.default_rng(0).choice(1000, 10, replace=False)
    parts = np.array(["train"] * 1000 + ["test"] * 409)
    assert data.labels is not None
    assert data.features is not None
    assert data.facts is not None
    assert data.digests is not None
    order = np.random.default_rng(1).permutation(1399)
    every = np.concatenate([order, order[copied]])
    both = AuditData(
        [f"{place}-{data.names[i]}" for place, i in enumerate(every)], data.digests[every],
        data.labels[every], parts, facts=data.facts.take(every), features=data.features[every],
    )  # fmt: skip
    found = CHECKS["leaks"](both)
    assert found is not None
    assert set(found.indices) >= set(range(1399, 1409))
    assert len(found.indices) <= 12
    assert "a quick classifier has a balanced accuracy of" in found.sentence


@pytest.mark.data
@pytest.mark.slow
def test_a_tint_of_one_class_is_named(catdog: Planted, real_data: Path) -> None:
    data = catdog.data
    assert data.labels is not None
    tinted: list[Any] = []
    for name, label in zip(data.names, data.labels, strict=True):
        pixels = np.asarray(Image.open(real_data / "catdog" / name).convert("RGB"), np.float32)
        red = np.array([1.03 if label == "cat" else 1.0, 1, 1])
        buffer = io.BytesIO()
        Image.fromarray((pixels * red).round().clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
        tinted.append(buffer.getvalue())
    ids = as_ids(digest or b"" for digest in read_digests(tinted)[0])
    facts, _ = image_facts(tinted, ids, MemoryStore())
    found = find_shortcuts(AuditData(data.names, ids, data.labels, facts=facts, features=data.features))
    assert found is not None
    assert found.severity == "warning"
    assert found.sentence.startswith("Colour cast alone predicts the class")


@pytest.mark.data
@pytest.mark.slow
def test_clean_photos_have_few_findings(catdog: Planted) -> None:
    assert len([one for one in catdog.checked.findings if one.severity != "note"]) <= 5
