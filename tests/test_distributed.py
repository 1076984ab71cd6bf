"""Extraction on a Ray cluster: every row is that of a single process, whatever dies meanwhile."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featx import FeatureExtractor
from featx.cli import main
from featx.distributed.rows import check_rows, image_of
from featx.exceptions import DataError, ImageError, StoreError, UsageError
from featx.extractor import Progress
from featx.images import ManifestOptions, load_images
from featx.stores import open_store

PARAMS: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "runtime": "torch"}
TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch"]
TOLERANCE = 2e-3
"""Largest difference, relative to the largest value of an image: float16 and another size of batches."""


def save_images(root: Path, picture: Callable[..., Image.Image], count: int) -> list[Path]:
    root.mkdir(parents=True)
    paths = [root / f"{number:04d}.png" for number in range(count)]
    for seed, path in enumerate(paths):
        picture(seed).save(path, compress_level=1)
    return paths


def assert_same_rows(found: Any, alone: Any) -> None:
    """Every image has the features that one process computes."""
    assert list(found.specs) == list(alone.specs)
    place = {digest.tobytes(): number for number, digest in enumerate(alone.ids)}
    order = [place[digest.tobytes()] for digest in found.ids]
    assert sorted(order) == list(range(len(alone.ids)))
    for name in found.specs:
        rows, expected = found.blocks[name], alone.blocks[name][order]
        scale = np.abs(expected).max(axis=1, keepdims=True)
        assert (np.abs(rows - expected) <= TOLERANCE * scale).all()


def n_stored(cache: Path) -> int:
    """Rows in the segments of a cache; an image that was stored twice counts twice."""
    (space,) = open_store(cache).usage()  # type: ignore[attr-defined]
    return int(space.rows)


@pytest.fixture(scope="module")
def ray() -> Any:
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves nothing on a busy machine
    pytest.importorskip("ray.data", reason="Ray is not installed (pip install 'featx[ray]')")
    import ray

    return ray


@pytest.fixture
def cluster(ray: Any) -> Iterator[Any]:
    """A head without cores and two machines of one core each, as processes of this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.machines = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def local(ray: Any) -> Iterator[None]:
    """A cluster of one machine, for tests in which nothing dies."""
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


def children(pid: int) -> list[int]:
    """Processes below a process."""
    parent = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = [pid]
    for one in below:
        below += [child for child, above in parent.items() if above == one]
    return below[1:]


def workers_of(machine: Any) -> list[int]:
    """Processes of featx's actors on a machine of a cluster."""
    (raylet,) = machine.all_processes["raylet"]
    named = {}
    for pid in children(raylet.process.pid):
        try:
            named[pid] = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
    return [pid for pid, name in named.items() if "MapWorker" in name]


# --- rows of a dataset, without Ray ---


@pytest.mark.parametrize(
    ("row", "name", "source"),
    [
        ({"bytes": b"x", "path": "a.png"}, "a.png", b"x"),
        ({"image": {"bytes": b"x", "path": "a.png"}, "label": 1}, "a.png", b"x"),
        (
            {"__key__": "001", "__url__": "s.tar", "cls": b"3", "mask.png": b"m", "jpg": b"x"},
            "s.tar/001.jpg",
            b"x",
        ),
        ({"image": b"x", "file": "b.png"}, "b.png", b"x"),
        ({"bytes": None, "path": "a.png"}, "a.png", None),
        ({"image": {"bytes": None, "path": "/etc/passwd"}}, "", None),
    ],
)
def test_a_row_has_one_image_and_its_texts_open_no_file(row: Any, name: str, source: Any) -> None:
    assert image_of(row, None, paths=False) == (name, source)


def test_a_path_is_read_where_paths_are_meant() -> None:
    assert image_of({"path": "a.png"}, None, paths=True) == ("a.png", "a.png")
    assert image_of({"thumb": b"t", "full": b"f"}, "full", paths=False) == ("", b"f")


@pytest.mark.parametrize(
    ("rows", "column", "words"),
    [
        ([], None, "has no rows"),
        ([{"text": "x", "label": 1}], None, "no column of images among text, label"),
        ([{"thumb": b"t", "text": "x"}], "text", "'text' holds no images"),
    ],
)
def test_rows_without_images_are_refused(rows: Any, column: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_rows(rows, column, paths=False)


def test_without_ray_the_extra_is_named(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["extract", str(class_folders), *TINY, "--ray", "auto"]) == 2
    assert "pip install 'featx[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ray", "auto", "--shard", "1/2"], "--ray and --shard exclude each other"),
        (["--ray", "auto", "--wait"], "--ray and --wait exclude each other"),
        (["--ray", "auto", "--no-cache"], "--ray and --no-cache exclude each other"),
        (["--ray", "auto", "--dry-run"], "--ray and --dry-run exclude each other"),
        (["--workers", "2"], "--workers: options of --ray"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    class_folders: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(class_folders), *TINY, *options]) == 2
    assert words in capsys.readouterr().err


# --- a cluster of one machine ---


@pytest.mark.slow
def test_the_command_stores_what_a_single_process_finds(
    local: None, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(class_folders.rglob("*.png")).write_bytes(b"\x89PNG\r\n\x1a\n torn")
    cache, output = ["--cache-dir", str(tmp_path / "cache")], tmp_path / "x.npz"
    command = ["extract", str(class_folders), *TINY, *cache, "--max-bad", "0.1"]
    assert main([*command, "--ray", "auto", "--workers", "2", "-o", str(output), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["computed"]) == (23, 23)
    assert sum(found["workers"].values()) == 24
    assert len(found["skipped"]) == 1
    with np.load(output) as whole:
        assert set(whole["label"]) == {"red", "blue"}
    capsys.readouterr()
    assert main([*command, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["computed"] == 0
    assert not (tmp_path / "cache" / "v1" / "ray").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "huggingface", "shards", "url", "dataset", "web"])
def test_files_with_bytes_give_the_rows_of_the_images(
    kind: str,
    ray: Any,
    local: None,
    tmp_path: Path,
    picture: Callable[..., Image.Image],
    request: pytest.FixtureRequest,
) -> None:
    import pyarrow
    import pyarrow.parquet

    from featx.distributed import extract

    paths = save_images(tmp_path / "photos", picture, 30)
    data = [path.read_bytes() for path in paths]
    out = tmp_path / "out"
    out.mkdir()
    given: Any = str(out)
    for part in range(3):
        where = slice(10 * part, 10 * part + 10)
        names = [path.name for path in paths[where]]
        if kind == "shards":
            with tarfile.open(out / f"{part:03d}.tar", "w") as tar:
                for name, one in zip(names, data[where], strict=True):
                    for inner, content in ((name, one), (name.replace(".png", ".cls"), b"1")):
                        member = tarfile.TarInfo(inner)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        elif kind in ("parquet", "huggingface"):
            structs = [{"bytes": one, "path": name} for name, one in zip(names, data[where], strict=True)]
            table = {"image": structs} if kind == "huggingface" else {"path": names, "img": data[where]}
            pyarrow.parquet.write_table(pyarrow.table(table), out / f"{part}.parquet")
    if kind == "url":
        given = (tmp_path / "photos").as_uri()
    if kind == "dataset":
        given = ray.data.from_items(
            [{"bytes": one, "path": path.name} for path, one in zip(paths, data, strict=True)]
        )
    if kind == "web":
        manifest = out / "all.csv"
        manifest.write_text("path\n" + "".join(f"{path.name}\n" for path in paths))
        serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "photos"))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request.addfinalizer(server.shutdown)
        table = ManifestOptions(root=f"http://127.0.0.1:{server.server_port}/")
        given = load_images(str(manifest), labelled=False, table=table)
    found = extract(given, store=tmp_path / "cache", workers=2, worker_cpus=1, **PARAMS)
    alone = FeatureExtractor(**PARAMS, store="memory").extract(paths)
    assert found.computed == 30
    assert [Path(name).name for name in found.names] == [path.name for path in paths]
    assert_same_rows(found, alone)


@pytest.mark.slow
def test_what_workers_cannot_do_is_an_error_of_featx(
    ray: Any, local: None, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featx.distributed import extract

    torn = next(class_folders.rglob("*.png"))
    torn.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(ImageError, match=torn.name):
        extract(class_folders, store=tmp_path / "cache", **PARAMS)
    with pytest.raises(UsageError, match="a cache folder that they share"):
        extract(class_folders, store="memory", **PARAMS)
    with pytest.raises(UsageError, match="images in memory"):
        extract([torn.read_bytes()], **PARAMS)
    with pytest.raises(UsageError, match="no GPU"):
        extract(class_folders, device="cuda:0", **PARAMS)
    with pytest.raises(UsageError, match="has 64 cores for a worker"):
        extract(class_folders, worker_cpus=64, **PARAMS)
    # A cache that the workers do not see: the folder is renamed before they look.
    import featx.distributed.extraction as extraction

    begin = extraction._mapped

    def hide(extractor: Any, inputs: Any, pool: Any, mark: Path) -> Any:
        return begin(extractor, inputs, pool, mark.with_name("elsewhere"))

    monkeypatch.setattr(extraction, "_mapped", hide)
    with pytest.raises(StoreError, match="does not see the cache folder"):
        extract(class_folders, on_error="skip", store=tmp_path / "cache", **PARAMS)


@pytest.mark.slow
def test_an_address_without_a_cluster_is_refused(
    ray: Any, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if ray.is_initialized():
        ray.shutdown()
    assert main(["extract", str(class_folders), *TINY, "--ray", "127.0.0.1:1"]) == 2
    assert "no Ray cluster at '127.0.0.1:1'" in capsys.readouterr().err


# --- a cluster of several machines, of which some are lost ---


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lost_workers_and_machines_cost_no_row_and_repeat_none(
    ray: Any, cluster: Any, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    """Twenty workers and a machine are killed while 3,000 images are computed."""
    from featx.distributed import extract

    paths = save_images(tmp_path / "photos", picture, 3_000)
    killed: list[int] = []
    lost: list[Any] = []
    chosen = np.random.default_rng(0)

    def kill(event: Progress) -> None:
        if len(killed) < 20 and event.done >= 60 * (len(killed) + 1):
            ready = [pid for machine in cluster.machines for pid in workers_of(machine)]
            if ready:
                killed.append(int(chosen.choice(ready)))
                os.kill(killed[-1], signal.SIGKILL)
        if not lost and event.done >= 1_500:
            lost.append(cluster.machines.pop())
            cluster.remove_node(lost[0], allow_graceful=False)
            cluster.machines.append(cluster.add_node(num_cpus=1))

    found = extract(
        paths, address=cluster.address, store=tmp_path / "cache", block_rows=30, callback=kill, **PARAMS
    )
    assert len(set(killed)) == 20
    assert lost
    assert len(found.workers) > 2  # others took over
    assert found.names == tuple(map(str, paths))
    assert_same_rows(found, FeatureExtractor(**PARAMS, store="memory").extract(paths))
    assert n_stored(tmp_path / "cache") == len(paths)
