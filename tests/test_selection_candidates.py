"""The choice of a resizing: an unusual one is extracted whole only where it beats the usual one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featx.images import ImageSet, load_images
from featx.selection.candidates import choose, widest
from featx.stores.hdf5 import HDF5Store

pytest.importorskip("timm")

N = 440
RECIPE = {
    "backbone": "test_resnet", "pretrained": False, "cut": "last", "pool": "avg", "resize": "auto",
    "input_size": 32, "precision": "fp32",
}  # fmt: skip


def pictures(*, told_at_the_edge: bool, n: int = N) -> tuple[ImageSet, np.ndarray]:
    """Noise, 32 high and 96 wide; what tells the classes is at both ends, or in the middle."""
    rng = np.random.default_rng(0)
    codes = np.arange(n) % 2
    noise = rng.integers(0, 120, (n, 32, 96, 3), dtype=np.uint8)
    for picture, code in zip(noise, codes, strict=True):
        if told_at_the_edge:
            picture[:, :24, 2 * code] += 120
            picture[:, -24:, 2 * code] += 120
        else:
            picture[:, 32:64, 2 * code] += 120
    return load_images(list(noise)), codes


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, object]:
    return {"store": HDF5Store(tmp_path), "runtime": "torch"}


def chosen(told_at_the_edge: bool, machine: dict[str, object]) -> tuple[set[str], dict[str, int]]:
    """The resizings that are extracted whole, and how many rows of each the choice has computed."""
    images, codes = pictures(told_at_the_edge=told_at_the_edge)
    kept = choose(widest(RECIPE, machine), images, codes, machine=machine, random_state=0)
    usage = machine["store"].usage()  # type: ignore[attr-defined]
    return {spec.resize for spec in kept.specs_.values()}, {one.spec.resize: one.rows for one in usage}


def test_the_usual_resizing_is_kept_where_no_other_is_better(machine: dict[str, object]) -> None:
    resizes, rows = chosen(False, machine)
    assert resizes == {"crop"}
    assert rows == {"crop": 200, "squash": 200, "pad": 200}  # no further look at either


def test_what_a_centre_crop_cuts_away_brings_another_resizing(machine: dict[str, object]) -> None:
    resizes, rows = chosen(True, machine)
    assert resizes < {"squash", "pad"}
    assert rows["crop"] == 400
    assert rows[resizes.pop()] == 400


def test_a_resizing_is_not_chosen_twice_from_the_same_images(machine: dict[str, object]) -> None:
    first, _ = chosen(True, machine)
    machine["store"].prune(max_bytes=0)  # type: ignore[attr-defined]
    again, rows = chosen(True, machine)
    assert again == first
    assert not rows  # nothing was computed for it


def test_a_class_with_one_group_in_the_sample_stops_nothing(machine: dict[str, object]) -> None:
    n_classes = 240
    images, _ = pictures(told_at_the_edge=False, n=5 * n_classes)
    turn, codes = np.divmod(np.arange(5 * n_classes), n_classes)  # two of five are drawn
    images.groups = np.array([f"{code} {place < 4}" for code, place in zip(codes, turn, strict=True)])
    kept = choose(widest(RECIPE, machine), images, codes, machine=machine, random_state=0)
    assert {spec.resize for spec in kept.specs_.values()} == {"crop"}
