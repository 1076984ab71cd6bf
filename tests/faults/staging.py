"""What the fault tests share: the command run in this process, small pictures, an ordinary user's rights."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx.cli import main

TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch", "--input-size", "32"]
REPRESENTATION = ["--cut", "last", "--pool", "avg", "--resize", "crop"]
SEARCH = ["--heads", "logistic", "--trials", "1", "--cv", "2"]
FIT = [*TINY, *REPRESENTATION, *SEARCH]


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    document: dict[str, Any]
    out: str
    err: str

    @property
    def reasons(self) -> dict[str, str]:
        """Skipped pictures: the file's own name to the reason."""
        return {os.path.basename(one["path"]): one["reason"] for one in self.document["skipped"]}

    @property
    def error(self) -> str:
        return str(self.document["error"]["message"])


def featx(*argv: object, json_document: bool = True) -> Said:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    words = [str(word) for word in argv] + (["--json"] if json_document else [])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    assert "Traceback" not in err.getvalue(), err.getvalue()
    document = json.loads(out.getvalue()) if json_document and out.getvalue() else {}
    return Said(code, document, out.getvalue(), err.getvalue())


def pixels(seed: int = 0, *, width: int = 64, height: int = 48, tint: tuple[int, ...] = (0, 0, 0)) -> Any:
    """Seeded smooth colours with noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-12, 13, smooth.shape) + np.array(tint, np.int16)
    return noisy.clip(0, 255).astype(np.uint8)


def photo(path: Path, seed: int = 0, **how: Any) -> Path:
    """Write one picture in the format of its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, **how)).save(path)
    return path


def classes(root: Path, *labels: str, each: int = 12, suffix: str = ".png") -> Path:
    """Class folders that a classifier can tell apart by colour."""
    tints = ((90, -60, -60), (-60, -60, 90), (-60, 90, -60))
    for number, label in enumerate(labels or ("red", "blue")):
        for index in range(each):
            name = root / label / f"{label}_{index:02d}{suffix}"
            photo(name, 1000 * number + index, tint=tints[number % 3])
    return root


def rows(cache: Path) -> int:
    """Rows of features that the cache holds."""
    spaces = featx("cache", "ls", "--cache-dir", cache).document["spaces"]
    return sum(space["rows"] for space in spaces if space["spec"]["architecture"] != "image-facts")


@contextlib.contextmanager
def ordinary_rights() -> Iterator[None]:
    """Without root's right to pass over permissions; nothing to do for anybody else."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capabilities(7), version 3, the calling thread
    held = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2)
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0
