"""Mutants of saved heads are refused with `ModelFileError`, or load and predict without a crash.

Mutants are loaded in subprocesses with limited memory: native code that follows a forged number ends its
process, and an allocation by a forged count fails.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest

from featx.exceptions import ModelFileError
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, read_json, write_archive
from featx.heads import HEADS, SCALINGS, make_pipeline
from featx.heads.trees import BOOSTED, BOOSTED_FIELDS, NODES
from featx.modelfile import HEAD_MEMBERS, dump_arrays, dump_head, load_head, read_arrays

X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
SMALL = {"boosting": {"max_iter": 2}, "forest": {"n_estimators": 3}}

MEMORY = 64 << 20
"""Bytes that loading may take beside four times the size of the file."""

DTYPES = ("uint8", "int32", "int64", "uint32", "float16", "float32", "float64", "bool")

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**32, 2**62, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e-300, 1e300, 1e999, "",
    "knn", "none", "temperature", "\u0000", [], [0], [[[]]], {}, {"a": {"b": 1}}, [2**40] * 8,
)  # fmt: skip
"""Values of JSON that a mutant may get in any place."""

Members = dict[str, bytes]


def saved(name: str, seed: int) -> tuple[Members, int]:
    """A sound head with one of the scalings and layouts, and its number of classes."""
    layout: dict[str, Any] = [{"widths": (6,)}, {"widths": (2, 4)}, {"widths": (6,), "columns": [4, 1]}][
        seed % 3
    ]
    params = {**HEADS[name].grid[seed % len(HEADS[name].grid)], **SMALL.get(name, {})}
    n_classes = 2 + seed % 2
    scaling = SCALINGS[seed % len(SCALINGS)]
    pipeline = make_pipeline(name, params, scaling, n_rows=60, random_state=0, **layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dump_head(name, pipeline.fit(X, np.arange(60) % n_classes)), n_classes


def borders(dtype: np.dtype[Any]) -> list[Any]:
    if dtype.kind == "f":
        info = np.finfo(dtype)
        return [0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, info.max, info.min, info.tiny, 1e30, -1e30, 1e-30]
    if dtype.kind == "b":
        return [False, True]
    limits = np.iinfo(dtype)
    near = [-3, -2, -1, 0, 1, 2, 3, 59, 60, 61, limits.max, limits.max - 1, limits.min, limits.min + 1]
    return [value for value in near if limits.min <= value <= limits.max]


def mutate_value(arrays: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    if array.size:
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            array.flat[rng.randrange(array.size)] = rng.choice(borders(array.dtype))


def mutate_shape(arrays: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    arrays[name] = rng.choice(
        [
            lambda: array.T,
            lambda: array[None],
            lambda: array.reshape(-1),
            lambda: array[: rng.randrange(len(array) + 1)],
            lambda: np.concatenate([array] * rng.choice([2, 3, 100])),
            lambda: array[..., :1],
            lambda: array[:0],
            lambda: array[rng.choices(range(len(array)), k=len(array))],
            lambda: np.zeros((0, 2**20), array.dtype),
        ]
    )()


def mutate_dtype(arrays: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(sorted(arrays))
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(rng.choice(DTYPES))


def mutate_names(arrays: dict[str, Any], rng: random.Random) -> None:
    one, other = rng.choice(sorted(arrays)), rng.choice(sorted(arrays))
    change = rng.randrange(4)
    if change == 0:
        del arrays[one]
    elif change == 1:
        arrays[one], arrays[other] = arrays[other], arrays[one]
    elif change == 2:
        arrays[one] = arrays[other]
    else:
        arrays[rng.choice(["evil", "head.", "scaler.mean", "head.head.coef", "\u00fc"])] = arrays[one]


def mutate_json(plain: Any, rng: random.Random) -> Any:
    """Change, add or drop one value anywhere in a JSON document."""
    if not isinstance(plain, dict | list) or not plain or rng.random() < 0.1:
        return rng.choice(VALUES)
    keys = sorted(plain) if isinstance(plain, dict) else range(len(plain))
    key = rng.choice(list(keys))
    if rng.random() < 0.1:
        del plain[key]
    elif isinstance(plain, dict) and rng.random() < 0.1:
        plain[rng.choice(["evil", "random_state", *plain])] = rng.choice(VALUES)
    else:
        plain[key] = mutate_json(plain[key], rng)
    return plain


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.choice([1, 1, 4])):
        raw[rng.randrange(min(len(raw), rng.choice([8, 300, len(raw)])))] = rng.choice(
            [0, 1, 34, 57, 127, 128, 255]
        )
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.2 else raw)


def with_header(data: bytes, rng: random.Random) -> bytes:
    """Change the header of safetensors data, and keep it one that can be parsed."""
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), rng)).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def mutant(members: Members, rng: random.Random) -> Members:
    members = dict(members)
    kind = rng.choice(
        ["value"] * 6 + ["shape", "dtype", "names"] * 2 + ["json"] * 4 + ["header", "bytes", "member"]
    )
    text, tensors = HEAD_MEMBERS
    if kind in ("value", "shape", "dtype", "names"):
        arrays = {name: array.copy() for name, array in read_arrays(members[tensors]).items()}
        change = {"value": mutate_value, "shape": mutate_shape, "dtype": mutate_dtype, "names": mutate_names}[
            kind
        ]
        change(arrays, rng)
        members[tensors] = dump_arrays(arrays)
    elif kind == "json":
        members[text] = json.dumps(mutate_json(json.loads(members[text]), rng)).encode()
    elif kind == "header":
        members[tensors] = with_header(members[tensors], rng)
    elif kind == "bytes":
        name = rng.choice([text, tensors])
        members[name] = mutate_bytes(members[name], rng)
    elif rng.random() < 0.5:
        del members[rng.choice([text, tensors])]
    else:
        members[text], members[tensors] = members[tensors], members[text]
    return members


def load_mutants(path: str, done: str) -> None:
    """Load and use every mutant of a pickle of ours; `done` tells how far it came."""
    import resource

    mutants = pickle.loads(Path(path).read_bytes())
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    try_one(*mutants[0])  # a sound head, for what is imported late
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    largest = max(sum(map(len, members.values())) for members, _ in mutants)
    limit = used + MEMORY + 4 * largest
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    refused = 0
    for number, (members, n_classes) in enumerate(mutants):
        Path(done).write_text(str(number))
        refused += not try_one(members, n_classes)
    Path(done).write_text(f"all, {refused} refused")


def try_one(members: Members, n_classes: int) -> bool:
    """Whether a mutant was loaded; then it must be able to predict."""
    try:
        pipeline = load_head(members, np.arange(n_classes), where="mutant")
    except ModelFileError:
        return False
    pipeline.predict(X)
    head = pipeline.named_steps["head"]
    if hasattr(head, "predict_proba"):
        pipeline.predict_proba(X)
    return True


def assert_harmless(mutants: list[tuple[Members, int]], folder: Path) -> int:
    """Load mutants in a subprocess; returns how many were refused."""
    path, done = folder / "mutants.pkl", folder / "done"
    path.write_bytes(pickle.dumps(mutants))
    process = apart.start(load_mutants, str(path), str(done), output=folder / "said")
    process.join()
    where = done.read_text() if done.exists() else "none"
    said = (folder / "said").read_text()
    assert process.exitcode == 0, f"mutant {where}: exit {process.exitcode}\n{said[-1500:]}"
    return int(where.split()[1])


def fuzz(name: str, n_mutants: int, folder: Path, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    heads = [saved(name, number) for number in range(12)]
    mutants = [heads[0]]
    for _ in range(n_mutants):
        members, n_classes = rng.choice(heads)
        for _ in range(rng.choice([1, 1, 1, 2])):
            try:
                members = mutant(members, rng)
            except (LookupError, ValueError, AttributeError, TypeError, ModelFileError):
                break  # a mutant of a mutant need not be possible
        mutants.append((members, n_classes))
    refused = assert_harmless(mutants, folder)
    assert n_mutants / 3 < refused < n_mutants  # some load, most do not


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")


@linux
@pytest.mark.parametrize("name", HEADS)
def test_mutants_of_every_head_are_refused_or_harmless(name: str, tmp_path: Path) -> None:
    fuzz(name, 30, tmp_path, seed=0)


@pytest.mark.slow
@linux
@pytest.mark.parametrize("name", HEADS)
def test_many_mutants_of_every_head_are_refused_or_harmless(name: str, tmp_path: Path) -> None:
    fuzz(name, 20_000 // len(HEADS), tmp_path, seed=1)


# Files that are small for what they describe -------------------------------------------------------------


def described(name: str, params: dict[str, Any], arrays: dict[str, Any], width: int = 1) -> Members:
    """A head without scaling, with arrays that nobody fitted."""
    plain = {"head": name, "params": params, "scaling": "none", "widths": [width], "picked": False}
    named = {f"head.{array}": values for array, values in arrays.items()}
    return {"head.json": json.dumps(plain).encode(), "head.safetensors": dump_arrays(named)}


def leaves(n_trees: int) -> Members:
    """A forest whose trees are a leaf each."""
    nodes: dict[str, Any] = {name: np.zeros(n_trees, array.dtypes[0]) for name, array in NODES.items()}
    nodes |= {"left_child": np.full(n_trees, -1), "values": np.ones((n_trees, 2))}
    nodes |= {"sizes": np.ones(n_trees, np.int64), "depths": np.zeros(n_trees, np.int64)}
    params = {"n_estimators": n_trees, "max_features": 0.1, "min_samples_leaf": 1}
    return described("forest", params, nodes)


def chain(n_nodes: int) -> Members:
    """One tree, each of whose nodes has a leaf and the next node as children."""
    inner = np.arange(0, n_nodes - 1, 2)
    left, right = np.full(n_nodes, -1), np.full(n_nodes, -1)
    left[inner], right[inner] = inner + 1, inner + 2
    nodes: dict[str, Any] = {name: np.zeros(n_nodes, array.dtypes[0]) for name, array in NODES.items()}
    nodes |= {"left_child": left, "right_child": right, "values": np.ones((n_nodes, 2))}
    nodes |= {"sizes": np.array([n_nodes]), "depths": np.array([n_nodes - 1])}
    return described("tree", {"max_depth": 8, "min_samples_leaf": 1}, nodes)


def boosted(n_trees: int) -> Members:
    """Boosted trees that are a leaf each."""
    arrays: dict[str, Any] = {name: np.zeros(n_trees, BOOSTED[name].dtypes[0]) for name in BOOSTED_FIELDS}
    arrays |= {"is_leaf": np.ones(n_trees, np.uint8), "sizes": np.ones(n_trees, np.int64)}
    arrays |= {"baseline": np.zeros(1), "pca_mean": np.zeros(1), "components": np.ones((1, 1))}
    return described("boosting", {"max_iter": n_trees, "learning_rate": 0.1, "max_leaf_nodes": 4}, arrays)


def linear(name: str, params: dict[str, Any], n_outputs: int, width: int) -> Members:
    arrays = {"coef": np.ones((n_outputs, width), "f4"), "intercept": np.ones(n_outputs, "f4")}
    return described(name, params, arrays, width)


def neighbours(n_rows: int) -> Members:
    arrays = {"features": np.ones((n_rows, 4), "f4"), "labels": np.zeros(n_rows, np.int64)}
    params = {"n_neighbors": 1, "metric": "cosine", "weights": "uniform", "temperature": None}
    return described("knn", params, arrays, 4)


def text(data: bytes) -> Members:
    return {"model.json": data}


LARGE: dict[str, tuple[Any, int, bool]] = {
    "a forest of leaves": (lambda: leaves(2_000), 2, True),
    "too many trees": (lambda: leaves(200_000), 2, False),
    "one long tree": (lambda: chain(300_001), 2, True),
    "boosted leaves": (lambda: boosted(100_000), 2, True),
    "too many boosted leaves": (lambda: boosted(1_000_000), 2, False),
    "many classes": (lambda: linear("logistic_ovr", {"C": 1.0}, 32_768, 1), 32_768, True),
    "many columns": (lambda: linear("ridge", {"alpha": 1.0}, 1, 2**18), 2, True),
    "too many columns": (lambda: linear("ridge", {"alpha": 1.0}, 1, 2**22), 2, False),
    "many neighbours": (lambda: neighbours(1_000_000), 2, True),
    "empty lists": (lambda: text(b"[" + b"[]," * 5_000_000 + b"0]"), 2, False),
    "empty objects": (lambda: text(b"[" + b"{}," * 5_000_000 + b"0]"), 2, False),
    "objects in objects": (lambda: text(b"[" + b'{"a":{}},' * 70_000 + b"0]"), 2, True),
    "many numbers": (lambda: text(b"[" + b"1.5," * 800_000 + b"0]"), 2, True),
    "wide characters": (lambda: text(b'["' + rb"\ud83d\ude00" + b"a" * 16_000_000 + b'"]'), 2, True),
    "bytes that are not ASCII": (lambda: text('["\U0001f600'.encode() + b"a" * 16_000_000 + b'"]'), 2, False),
}
"""Members by name, the number of classes, and whether they are loaded."""


def load_large(path: str, n_classes: int) -> tuple[bool, int]:
    """Whether an archive is loaded, and the memory that this took. Runs in its own process."""
    load_head(*saved_ridge())
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    allowed = {name: MODEL_MEMBERS[name] for name in (*HEAD_MEMBERS, "model.json")}
    try:
        archive = read_archive(path, kind=MODEL_KIND, allowed=allowed, max_format=MODEL_FORMAT)
        if "model.json" in archive:
            read_json(archive["model.json"], where="model.json")
        else:
            load_head(archive.members, np.arange(n_classes))
        return True, peak() - before
    except ModelFileError:
        return False, peak() - before


def saved_ridge() -> tuple[Members, Any]:
    pipeline = make_pipeline("ridge", {"alpha": 1.0}, "none", (6,), n_rows=60).fit(X, np.arange(60) % 2)
    return dump_head("ridge", pipeline), np.arange(2)


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@linux
@pytest.mark.parametrize("kind", LARGE)
def test_loading_takes_no_more_memory_than_the_size_of_the_file_allows(kind: str, tmp_path: Path) -> None:
    make, n_classes, loads = LARGE[kind]
    path = tmp_path / "large.featx"
    write_archive(path, make(), kind=MODEL_KIND, format=MODEL_FORMAT)
    loaded, taken = apart.call(load_large, str(path), n_classes)
    assert loaded == loads
    assert taken <= MEMORY + 4 * path.stat().st_size
