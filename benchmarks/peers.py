"""The environment that the peers are installed in, and which of them can be run.

It shares the project's own packages (torch, torchvision and timm are the same files for everybody) and adds
what the peers need on top: ``.venv-bench``, made once.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from pairs import ROOT, environment, say

FOLDER = ROOT / ".venv-bench"
PYTHON = FOLDER / ("Scripts" if sys.platform == "win32" else "bin") / "python"
SHARED = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Kept as they are, so that all run on the same ones."""

INSTALL_S = 600


@dataclass(frozen=True)
class Peer:
    """A package to compare with, and the smallest program that shows whether it works here."""

    name: str
    requirement: str
    proof: str


PEERS = (
    Peer("embetter", "embetter", "from embetter.vision import TimmEncoder"),
    Peer("img2vec_pytorch", "img2vec_pytorch", "from img2vec_pytorch import Img2Vec"),
    Peer("fastai", "fastai", "from fastai.vision.all import Learner"),
    Peer("thingsvision", "thingsvision", "from thingsvision import get_extractor"),
    Peer("FiftyOne", "fiftyone", "import fiftyone; fiftyone.Dataset('featx-proof').delete()"),
)


def prepare(*, again: bool = False) -> dict[str, str]:
    """Make the environment if there is none; for each peer its version, or "" and the reason.

    Returns
    -------
    dict of str to str
        ``"1.2.3"`` for a peer that works, ``"not run: ..."`` for one that does not.
    """
    kept = FOLDER / "peers.json"
    if kept.exists() and not again:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    say(f"making {FOLDER.name} for the peers (some minutes, once)")
    venv.create(FOLDER, with_pip=True, symlinks=sys.platform != "win32")
    packages = Path(_ask("import sysconfig; print(sysconfig.get_path('purelib'))"))
    (packages / "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pins = "".join(f"{name}=={importlib.metadata.version(name)}\n" for name in SHARED)
    (FOLDER / "constraints.txt").write_text(pins, encoding="utf-8")
    found = {peer.name: _install(peer) for peer in PEERS}
    kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def works(state: str) -> bool:
    """Whether a peer can be run."""
    return not state.startswith("not run")


def _install(peer: Peer) -> str:
    say(f"installing {peer.name}")
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = ["--constraint", FOLDER / "constraints.txt", peer.requirement]
    try:
        _run([*pip, *pinned])
        _run([PYTHON, "-c", peer.proof])
        return _ask(f"from importlib.metadata import version; print(version({peer.requirement!r}))")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        reason = next((line.strip() for line in reversed(said) if "Error:" in line), str(error))
        return f"not run: {reason[:300]}"


def _ask(code: str) -> str:
    return _run([PYTHON, "-c", code]).decode().strip()


def _run(command: list[str | Path]) -> bytes:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, check=True, timeout=INSTALL_S, env=environment()
    )
    return done.stdout


if __name__ == "__main__":
    for name, state in prepare(again=True).items():
        print(f"{name}: {state}")
