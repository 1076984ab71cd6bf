"""Advice about addresses is followed: the root of a manifest, the extra, a cache that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from object_server import Objects
from staging import TINY, classes, featx


def test_a_manifest_of_addresses_is_read_with_the_root_that_the_message_names(
    objects: Objects, tmp_path: Path
) -> None:
    address = objects.upload(classes(tmp_path / "photos", each=2), "set")
    manifest, cache = tmp_path / "m.csv", ["--cache-dir", tmp_path / "cache"]
    manifest.write_text(
        "".join(f"{one}\n" for one in ["path", *map("s3://photos/{}".format, objects.names("set"))])
    )
    refused = featx("extract", manifest, *TINY, *cache)
    assert refused.code == 1
    assert "if you trust it, give --root s3://photos/set/" in refused.error
    assert featx("extract", manifest, *TINY, *cache, "--root", f"{address}/").document["images"] == 4
    wrong = featx("extract", manifest, *TINY, *cache, "--root", f"{address}/red")
    assert "give an address that all begin with, such as --root https://example.org/" in wrong.error
    assert featx("extract", manifest, *TINY, *cache, "--root", "s3://").document["images"] == 4


@pytest.mark.parametrize("package", ["fsspec", "s3fs"])
def test_without_the_extra_it_is_named(tmp_path: Path, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from featx.cli import main\n"
        "sys.exit(main(['cache', 'ls', '--cache-dir', 's3://photos/cache']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "s3:// needs s3fs and fsspec; `pip install 'featx[remote]'`" in run.stderr


def test_an_address_in_a_list_is_named_by_the_type_that_reads_it(objects: Objects, tmp_path: Path) -> None:
    from featx.exceptions import ImageError
    from featx.images import RemotePath, read_picture

    address = objects.put("a.png", next(classes(tmp_path / "photos", each=1).rglob("*.png")).read_bytes())
    with pytest.raises(ImageError, match=r"or in Python as featx.images.RemotePath\("):
        read_picture(address)
    assert read_picture(RemotePath(address)).data


def test_a_cache_that_cannot_be_opened_names_another(objects: Objects, tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos", each=1)
    refused = featx("extract", photos, *TINY, "--cache-dir", "s3://no-such-bucket/cache")
    assert refused.code == 1
    assert "name another cache (--cache-dir, FEATX_CACHE) or none (--no-cache)" in refused.error
    assert featx("extract", photos, *TINY, "--no-cache").code == 0
    assert featx("extract", photos, *TINY, "--cache-dir", tmp_path / "cache").code == 0
