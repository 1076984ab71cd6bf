"""Loading a whole forged file takes at most 64 MiB and four times its size."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest
from classifiers import image_classifier

from featx.files import (
    MODEL_FORMAT,
    MODEL_KIND,
    MODEL_MEMBERS,
    pack_members,
    read_archive,
    write_archive,
)
from featx.heads import HEADS
from featx.modelfile import dump_arrays, read_arrays

MEMORY = 64 << 20
"""Bytes that loading may take beside four times the size of the file."""

LIMIT = 1 << 30
"""Bytes that the process may take, so that a failure of this test does no harm."""

HUGE = (2**31 - 1, 2**53, 10**18, -1, 10**400, 1e308)
"""Numbers that a file may claim."""

Members = dict[str, bytes]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier of a tiny network."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) // (1 + number % 2) for number in range(12)]
    clf = image_classifier(
        "test_resnet.r160_in1k", pretrained=False, heads=["logistic"], n_trials=1, store="memory",
        runtime="torch",
    )  # fmt: skip
    return Path(clf.fit(images, ["a", "b"] * 6).save(tmp_path_factory.mktemp("model") / "good.featx"))


def members_of(path: Path) -> Members:
    return dict(read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT).members)


def numbers_in(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of numbers in a JSON document."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_in(inner, (*above, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield above


def with_value(plain: Any, place: tuple[Any, ...], value: Any) -> bytes:
    plain = json.loads(json.dumps(plain))
    owner = plain
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    return json.dumps(plain).encode()


def with_header(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def forged(sound: Members) -> Iterator[Members]:
    """Files that claim more than they hold."""
    rng = np.random.default_rng(0)
    for name in ("model.json", "head.json"):
        plain = json.loads(sound[name])
        places = list(numbers_in(plain))
        for place in [places[index] for index in rng.permutation(len(places))[:40]]:
            yield {**sound, name: with_value(plain, place, HUGE[rng.integers(len(HUGE))])}
    plain = json.loads(sound["model.json"])
    for dtype in ("<U250000000", "|S250000000", "|V9999999999", "<f8", "<M8[s]", "object"):
        yield {**sound, "model.json": with_value(plain, ("model", "classes", "dtype"), dtype)}
    for values in ([[0] * 50] * 1000, ["a" * 10**6, "b"] + [str(n) for n in range(2000)], list(range(10**5))):
        yield {**sound, "model.json": with_value(plain, ("model", "classes", "values"), values)}
    for head in HEADS:
        text = json.loads(sound["head.json"]) | {"head": head}
        yield {**sound, "head.json": json.dumps(text).encode()}
    for name in ("head.safetensors", "golden.safetensors", "split.safetensors", "sample.safetensors"):
        for tensor in read_arrays(sound[name]):
            for shape in ([10**9], [2**31, 0], [0, 2**39], [2**20, 2**20], [10**7, 10**7, 10**7]):
                change = lambda header, tensor=tensor, shape=shape: header[tensor].update(shape=shape)  # noqa: E731
                yield {**sound, name: with_header(sound[name], change)}
        yield {**sound, name: struct.pack("<Q", 2**63) + sound[name][8:]}
    for n_rows in (0, 10**6):
        arrays = {
            "ids": np.zeros((n_rows, 32), np.uint8), "test": np.zeros(n_rows, np.uint8),
            "labels": np.zeros(n_rows, np.int32), "groups": np.zeros((0, 16), np.uint8),
            "oof_proba": np.zeros((n_rows, 2)),
        }  # fmt: skip
        yield {**sound, "split.safetensors": dump_arrays(arrays)}
    names = ",".join(f'"{number:x}":1e9' for number in range(780_000))
    yield {**sound, "model.json": json.dumps(plain)[:-1].encode() + f',"more":{{{names}}}}}'.encode()}
    for text in (b"[" * 10**6, b"[" + b"[]," * 10**6 + b"0]", b'{"a": "' + b"\\ud83d" * 10**6 + b'"}'):
        yield {**sound, "model.json": text}
    yield {**sound, "finetune.json": b"{}", "finetune.safetensors": dump_arrays({"a": np.zeros(10**6)})}
    for dtype in ("<U2", "<U250000000", "|S250000000", "|V9999999999"):
        yield fine_tuned(sound, classes_dtype=dtype)
    yield fine_tuned(sound, classes=["a" * 10**6, "b", *map(str, range(2000))])


def fine_tuned(sound: Members, **changes: Any) -> Members:
    """A file with a network that nobody fine-tuned."""
    model = json.loads(sound["model.json"])["model"]
    (card,), (spec,) = model["cards"], list(model["specs"].values())
    width = card["num_features"]
    plain = {
        "format": 1, "classes": ["a", "b"], "classes_dtype": "<U1", "card": card, "whole": True,
        "spec": {**spec, "cut": "last"}, "head": "linear", "weights": "0" * 64,
        "calibration": {"kind": "temperature", "a": 1.0, "b": 0.0}, "history": [], "verdict": None,
    }  # fmt: skip
    golden = dict(read_arrays(sound["golden.safetensors"]))
    n_images = len(golden["features"])
    golden["tuned_features"] = np.zeros((n_images, width), np.float32)
    golden["tuned_proba"] = np.full((n_images, 2), 0.5)
    head = {"head.weight": np.zeros((2, width), np.float32), "head.bias": np.zeros(2, np.float32)}
    return {
        **sound,
        "golden.safetensors": dump_arrays(golden),
        "finetune.json": json.dumps(plain | changes).encode(),
        "finetune.safetensors": dump_arrays(head),
    }


def load_all(paths: list[Path], sound: Path) -> list[tuple[int, str]]:
    """Load files; the memory that each took beyond a sound one, and what was said."""
    import resource
    import warnings

    import featx
    from featx.exceptions import FeatxError

    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for _ in range(2):
        featx.load(sound)
    limit = _status("VmSize") + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    taken = []
    for path in paths:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        try:
            featx.load(path)
            said = "loaded"
        except (FeatxError, MemoryError) as error:
            said = type(error).__name__
        taken.append((_status("VmHWM") - before, said))
    return taken


def _status(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def test_loading_a_forged_file_takes_no_more_memory_than_its_size_allows(sound: Path, tmp_path: Path) -> None:
    paths = []
    for number, members in enumerate(forged(members_of(sound))):
        paths.append(tmp_path / f"{number}.featx")
        write_archive(paths[-1], members, kind=MODEL_KIND, format=MODEL_FORMAT)
    whole = sound.read_bytes()
    for number, raw in enumerate((whole[:-1], whole + bytes(10**7), pack_members({"x": b"x"}, where="x"))):
        paths.append(tmp_path / f"raw{number}.featx")
        paths[-1].write_bytes(raw)
    lines = apart.call(load_all, paths, sound)
    assert len(lines) == len(paths) > 100
    for path, (taken, said) in zip(paths, lines, strict=True):
        assert taken <= MEMORY + 4 * path.stat().st_size, (path.name, said)
    assert "MemoryError" not in {said for _, said in lines}
    assert sum(said == "ModelFileError" for _, said in lines) > len(paths) / 2
