"""Checks of what images look like, of copies that are not exact, of names, parts and shortcuts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featx.audit import (
    AuditData,
    FactsOfDecoded,
    Finding,
    apply_fixes,
    audit,
    confident_issues,
    image_facts,
    name_groups,
    near_copies,
    read_fixes,
    write_issues,
    write_manifest,
)
from featx.audit.noise import contradictions
from featx.audit.sources import name_stems
from featx.exceptions import DataError
from featx.extractor import FeatureExtractor
from featx.images import load_images, read_picture
from featx.images.facts import LENGTH, ImageFacts, measure_facts
from featx.stores.base import as_ids
from featx.stores.memory import MemoryStore

Make = Callable[..., Image.Image]


def photo(seed: int, width: int = 200, height: int = 150) -> Image.Image:
    """A picture with structure at all scales, as photos have it."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), float) / cells**0.5
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return Image.fromarray(total.astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def known(files: Sequence[bytes], names: Sequence[str] | None = None, **more: Any) -> AuditData:
    pictures = [read_picture(file) for file in files]
    facts = ImageFacts.of_rows(np.stack([measure_facts(one) for one in pictures]))
    ids = as_ids(one.digest for one in pictures)
    return AuditData(names or [f"{i}.jpg" for i in range(len(files))], digests=ids, facts=facts, **more)


def found(data: AuditData) -> dict[str, Finding]:
    return {finding.check: finding for finding in audit(data)}


@pytest.mark.parametrize(
    "change",
    [
        lambda im: im.resize((120, 90)),
        lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda im: im.crop((10, 8, 190, 142)),
        lambda im: im.crop((0, 0, 190, 142)),
        lambda im: im.rotate(3, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)),
        lambda im: im.convert("L").convert("RGB"),
    ],
    ids=["resized", "mirrored", "cropped", "cropped at a corner", "turned", "grey"],
)
def test_near_copies_are_grouped_and_different_images_are_not(change: Callable[[Any], Any]) -> None:
    originals = [photo(seed) for seed in range(40)]
    copies = [change(one) for one in originals[:6]]
    data = known([saved(one, quality=90) for one in originals] + [saved(one, quality=55) for one in copies])
    near = data.near
    assert near is not None
    assert sorted(map(tuple, np.sort(near.pairs, axis=1).tolist())) == [(i, 40 + i) for i in range(6)]
    assert [near.groups[i] == near.groups[40 + i] for i in range(6)] == [True] * 6
    assert len(np.unique(near.groups)) == 40


def test_a_set_in_which_every_image_has_copies_has_them_found() -> None:
    sizes = ((200, 150), (128, 96))
    data = known([saved(photo(seed).resize(size), quality=70) for seed in range(30) for size in sizes])
    assert data.near is not None
    assert len(np.unique(data.near.groups)) == 30


def test_few_images_have_no_copies_and_no_images_are_no_problem() -> None:
    data = known([saved(photo(seed)) for seed in range(2)])
    assert data.near is not None
    assert len(data.near.pairs) == 0
    empty = ImageFacts.of_rows(np.empty((0, LENGTH), np.float32))
    assert len(near_copies(empty, np.empty((0, 32), np.uint8)).groups) == 0


def test_a_near_copy_in_the_test_part_is_a_leak_and_with_another_label_a_conflict() -> None:
    images = [photo(seed) for seed in range(30)]
    files = [saved(one, quality=90) for one in images] + [saved(images[0].resize((100, 75)), quality=60)]
    parts = np.array(["train"] * 30 + ["test"])
    labels = np.array(["a", "b"] * 15 + ["b"])
    both = found(known(files, parts=parts, labels=labels))
    assert both["leaks"].indices == (30,)
    assert "1 test image has a copy in an earlier part" in both["leaks"].sentence
    assert both["conflicts"].indices == (0, 30)


def test_files_are_named_by_what_is_unusual_about_them() -> None:
    files = [saved(photo(seed), quality=90) for seed in range(30)]
    names = [f"{i}.jpg" for i in range(30)]
    dark = Image.fromarray((np.asarray(photo(31)) * 0.2).astype(np.uint8))
    light = Image.fromarray((255 - (255 - np.asarray(photo(32))) * 0.2).astype(np.uint8))
    blurred = photo(33).resize((6, 5)).resize((200, 150), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [photo(35), photo(36)]
    odd = {
        "dark": saved(dark),
        "overexposed": saved(light),
        "blurred": saved(blurred),
        "little_information": saved(Image.new("RGB", (200, 150), (120, 120, 120))),
        "odd_size": saved(photo(34, 400, 40)),
        "exif_rotation": saved(photo(37), exif=exif),
        "wrong_extension": saved(photo(38), "PNG"),
        "animated": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "odd_mode": saved(photo(39).convert("CMYK")),
    }
    checks = found(known([*files, *odd.values()], [*names, *(f"{name}.jpg" for name in odd)]))
    for name in odd:
        assert f"{name}.jpg" in checks[name].names, name
    assert checks["wrong_extension"].names == ("wrong_extension.jpg", "animated.jpg")
    for name in ("dark", "overexposed", "little_information", "exif_rotation", "odd_mode"):
        assert checks[name].names[0] == f"{name}.jpg"
        assert not set(checks[name].names) & set(names)


def test_facts_are_measured_once_and_kept_by_digest() -> None:
    store = MemoryStore()
    files: list[Any] = [saved(photo(seed)) for seed in range(3)] + [b"no image"]
    ids = as_ids(read_picture(file).digest for file in files)
    facts, there = image_facts(files, ids, store)
    assert there.tolist() == [True, True, True, False]
    again, _ = image_facts([b"gone"] * 4, ids, store)  # nothing is read again
    np.testing.assert_array_equal(again.values, facts.values)
    assert facts["width"].tolist() == [200, 200, 200, 0]
    expected = np.asarray(photo(0).resize((32, 32), Image.Resampling.BOX), int)
    assert np.abs(facts.thumbs[0].astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    "decoding",
    [
        {},
        {"decode": "fast", "input_size": 64},
        {"background": (9, 90, 200)},
        {"bands": "3,2,1"},
        {"max_pixels": 10**9},
        {"isolate": True},
    ],
    ids=str,
)
def test_facts_do_not_depend_on_what_the_extraction_decoded(decoding: dict[str, Any]) -> None:
    large, turned = photo(1, 900, 700), Image.Exif()
    turned[274] = 6
    clear = photo(2).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = np.asarray(photo(3).convert("L"), np.uint16) * 9
    files: list[Any] = [
        saved(photo(0)), saved(large), saved(large, "PNG"), saved(large, exif=turned), saved(clear, "PNG"),
        np.asarray(photo(4)),
    ]  # fmt: skip
    files += [] if "bands" in decoding else [saved(photo(5).convert("CMYK")), deep]
    ids = as_ids(read_picture(file).digest for file in files)
    store = MemoryStore()
    extractor = FeatureExtractor("test_resnet", pretrained=False, store=store, **decoding)
    with FactsOfDecoded(store) as measure:
        extractor.extract(files, on_decode=measure)
    facts, there = image_facts(files, ids, store)
    assert there.all()
    alone, _ = image_facts(files, ids, MemoryStore())
    for name in ("values", "tints", "thumbs"):
        np.testing.assert_array_equal(getattr(facts, name), getattr(alone, name))
    if "isolate" not in decoding:
        stored, _ = image_facts([b"gone"] * len(files), ids, store)  # nothing is read again
        np.testing.assert_array_equal(stored.values, facts.values)


def test_class_names_that_differ_by_case_blanks_or_accents_are_named() -> None:
    labels = np.array(["Café au lait"] * 3 + ["cafe-au-lait"] + ["tea"] * 12)
    checks = found(AuditData([f"{i}" for i in range(16)], labels=labels))
    assert checks["similar_names"].indices == (3,)
    assert checks["similar_names"].suggestions == ("relabel:Café au lait",)
    assert "similar_names" not in found(AuditData(list("abc"), labels=np.array([1, 10, 11])))


def test_stems_of_names() -> None:
    names = [
        "a/horse01-3.png",
        "v/clip_0012.jpg",
        "x/17_jpg.rf.0123456789abcdef01.jpg",
        "b/one.jpg",
        "12.png",
    ]
    assert name_stems(names).tolist() == ["a/horse01", "v/clip", "x/17", "b/one", "/12"]


def test_names_make_groups_only_where_their_images_are_alike() -> None:
    rng = np.random.default_rng(0)
    names = [f"walk/clip{clip}_{frame:03d}.jpg" for clip in range(8) for frame in range(5)]
    alike = np.repeat(rng.normal(size=(8, 20)), 5, axis=0) + 0.1 * rng.normal(size=(40, 20))
    groups = name_groups(names, alike.astype(np.float32))
    assert groups is not None
    assert groups.reshape(8, 5).tolist() == [[clip] * 5 for clip in range(8)]
    assert name_groups(names, rng.normal(size=(40, 20)).astype(np.float32)) is None


def test_a_shortcut_is_named_and_honest_classes_are_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 40)
    features = rng.normal(size=(80, 16)).astype(np.float32)
    features[:, 0] += 6 * (labels == "a")
    plain = [photo(seed, 80, 60) for seed in range(80)]
    files = [saved(one, quality=90) for one in plain]
    honest = found(known(files, labels=labels, features=features))["shortcuts"]
    assert honest.severity == "note"
    tinted = [
        saved(Image.blend(one, Image.new("RGB", one.size, (255, 90, 0)), 0.06 * (label == "a")), quality=90)
        for one, label in zip(plain, labels, strict=True)
    ]
    told = found(known(tinted, labels=labels, features=features))["shortcuts"]
    assert told.severity in ("warning", "error")
    assert told.sentence.startswith("Colour")
    sized = [saved(one, quality=90 if label == "a" else 30) for one, label in zip(plain, labels, strict=True)]
    told = found(known(sized, labels=labels, features=features))["shortcuts"]
    assert told.severity == "error"
    assert "file metadata" in told.sentence.partition("alone")[0].lower()


def test_test_images_of_another_kind_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 16)).astype(np.float32)
    parts = np.array(["train"] * 80 + ["test"] * 40)
    data = {"names": [f"{i}" for i in range(120)], "digests": rng.integers(0, 255, (120, 32), dtype=np.uint8)}
    same = found(AuditData(**data, parts=parts, features=features))["part_differences"]  # type: ignore[arg-type]
    assert same.severity == "note"
    features[80:, :3] += 3
    other = found(AuditData(**data, parts=parts, features=features))["part_differences"]  # type: ignore[arg-type]
    assert (other.severity, other.value > 0.95) == ("error", True)
    assert "Expect a lower score than in cross-validation" in other.sentence


def test_outliers_and_images_among_another_class_are_named() -> None:
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(2, 32))
    codes = np.repeat([0, 1], 40)
    features = centre[codes] + 0.3 * rng.normal(size=(80, 32))
    features[7] = 5 * rng.normal(size=32)
    labels = np.array(["a", "b"])[codes]
    labels[3] = "b"
    checks = found(
        AuditData([f"{i}" for i in range(80)], labels=labels, features=features.astype(np.float32))
    )
    assert 7 in checks["outliers"].indices
    assert 3 in checks["unlike_class"].indices
    assert 3 in checks["suspicious_labels"].indices[:2]
    assert len(checks["suspicious_labels"].beside[0]) == 5


def test_confident_learning_is_that_of_cleanlab() -> None:
    cleanlab = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    proba = rng.dirichlet(np.ones(4), 400) * 0.4
    proba[np.arange(400), y] += 0.6
    flipped = rng.choice(400, 40, replace=False)
    given = y.copy()
    given[flipped] = (y[flipped] + 1) % 4
    theirs = cleanlab.find_label_issues(
        given, proba, filter_by="confident_learning", return_indices_ranked_by="self_confidence"
    )
    assert confident_issues(given, proba).tolist() == theirs.tolist()
    assert set(confident_issues(given, proba)) <= set(contradictions(given, proba))
    assert np.isin(flipped, contradictions(given, proba)[:50]).mean() > 0.8


def test_fixes_are_written_read_and_applied(class_folders: Path, tmp_path: Path) -> None:
    images = load_images(class_folders)
    name = images.names
    findings = [
        Finding.of(AuditData(name), "copies", "note", "copies", range(4), 4, suggestions=["drop"] * 4),
        Finding.of(AuditData(name), "imbalance", "note", "one class is larger", (), 3),
    ]
    table = tmp_path / "issues.csv"
    write_issues(table, findings)
    rows = table.read_text().splitlines()
    assert rows[0] == "path,issue,severity,evidence,suggestion,action"
    assert rows[1] == f"{name[0]},copies,note,,drop,"
    actions = ["drop", "relabel:green", "group:g", "keep"]
    table.write_text("\n".join([rows[0], *(a + b for a, b in zip(rows[1:5], actions, strict=True))]))
    fixed = apply_fixes(images, read_fixes(table))
    assert fixed.names == name[1:]
    assert fixed.labels is not None
    assert fixed.labels[:2].tolist() == ["green", "blue"]
    assert fixed.groups is not None
    assert fixed.groups.tolist() == ["", "g"] + [""] * 21
    write_manifest(tmp_path / "clean.csv", fixed)
    again = load_images(tmp_path / "clean.csv")
    assert again.labels is not None
    assert again.labels.tolist() == fixed.labels.tolist()
    assert [Path(str(path)).read_bytes() for path in again.sources] == [
        Path(str(path)).read_bytes() for path in fixed.sources
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("red/red_00.png,burn", "row 2: the action 'burn' is not known; write keep, drop"),
        ("red/red_00.png,relabel:", "is not known"),
        ("red/red_00.png,drop,3", "3 fields where the header has 2"),
        ("gone.png,drop", "1 of the images to fix are not among these images, such as gone.png"),
        ("red/red_00.png,relabel:a\nred/red_00.png,relabel:b", "has two different actions 'relabel'"),
    ],
)
def test_a_fix_that_cannot_be_applied_is_refused(
    row: str, message: str, class_folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "issues.csv").write_text(f"path,action\n{row}\n")
    with pytest.raises(DataError, match=message):
        apply_fixes(load_images(class_folders), read_fixes(tmp_path / "issues.csv"))


def test_names_that_a_table_escapes_are_found_again(class_folders: Path, tmp_path: Path) -> None:
    odd = class_folders / "red" / "=1+2\x1b[31m.png"
    odd.write_bytes((class_folders / "red" / "red_00.png").read_bytes())
    images = load_images(class_folders)
    table = tmp_path / "issues.csv"
    write_issues(table, [Finding.of(AuditData(images.names), "copies", "note", "", range(25), 1)])
    row = r"\x1b[31m.png,copies,note,,,"
    table.write_text(table.read_text().replace(row, row + "drop"))
    assert len(apply_fixes(images, read_fixes(table))) == 24
