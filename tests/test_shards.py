"""Several processes share the images of a set, and one cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featx.cli import main
from featx.exceptions import UsageError
from featx.extractor.shards import Shard

TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("n", [0, 1, 7, 24])
def test_shares_are_disjoint_and_cover_all_images(n: int) -> None:
    shares = [Shard(number, 5).of(n) for number in range(1, 6)]
    assert sorted(np.concatenate(shares)) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "1/0", "a/b", "-1/4", "1/4/2", ""])
def test_a_share_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 3/16"):
        Shard.read(text)


def test_what_shares_leave_is_named_and_computed_by_who_waits(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = str(class_folders), ["--cache-dir", str(tmp_path / "cache")]
    for share in ("1/3", "3/3"):
        found = run(capsys, "extract", data, *TINY, *cache, "--shard", share)
        assert (found["images"], found["computed"]) == (8, 8)
    (space,) = run(capsys, "cache", "ls", *cache, "--missing", data)["spaces"]
    assert space["rows"] == 16
    assert len(space["missing"]) == 8
    assert main(["cache", "ls", *cache, "--missing", data]) == 0
    assert f"8 of 24 images are missing: {space['missing'][0]}" in capsys.readouterr().out
    output = str(tmp_path / "x.npz")
    found = run(capsys, "extract", data, *TINY, *cache, "--wait", "0.1s", "-o", output)
    assert (found["images"], found["computed"]) == (24, 8)  # the share 2/3 never came
    with np.load(output) as whole:
        assert whole["path"].shape == (24,)
    (space,) = run(capsys, "cache", "ls", *cache, "--missing", data)["spaces"]
    assert space["missing"] == []


def test_a_process_that_waits_computes_nothing_that_others_compute(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = str(class_folders), ["--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "featx", "extract", data, *TINY, *cache, "--wait", "5m", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        while "24 of 24 images are missing" not in waiting.stderr.readline():
            assert waiting.poll() is None
        for share in ("1/2", "2/2"):
            run(capsys, "extract", data, *TINY, *cache, "--shard", share)
        out, _ = waiting.communicate()
    found = json.loads(out)
    assert (found["images"], found["computed"]) == (24, 0)


def test_unreadable_images_end_no_wait(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(class_folders.rglob("*.png")).write_bytes(b"\x89PNG\r\n\x1a\n torn")
    data, cache = str(class_folders), ["--cache-dir", str(tmp_path / "cache")]
    assert main(["extract", data, *TINY, *cache, "--wait", "0.1s", "--quiet"]) == 3  # it is listed as skipped


def test_shares_need_a_shared_cache(class_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", str(class_folders), *TINY, "--shard", "1/2", "--no-cache"]) == 2
    assert "leave out --no-cache" in capsys.readouterr().err


def test_every_share_takes_the_range_of_deep_pixels_from_all_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for number, brightest in enumerate((1000, 4000, 1000, 4000)):
        pixels = np.linspace(0, brightest, 64 * 64).reshape(64, 64).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    cache = ["--cache-dir", str(tmp_path / "cache")]
    spaces = [
        run(capsys, "extract", str(tmp_path), *TINY, *cache, "--shard", share)["spaces"]
        for share in ("1/2", "2/2")
    ]
    assert spaces[0] == spaces[1]
