"""The whole job on catdog, each time in a fresh process: `featx fit` against fine-tuning the network.

``python benchmarks/run.py --only job``. The fine-tuning sides run once, for one epoch (minutes), on the very
split that featx holds out; five epochs are calculated from that one. They are as their pages show them,
untuned. fastai, which does the same arithmetic, sees the first `FASTAI_PHOTOS` only, and is calculated.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers
from bench_extraction import LITE0
from pairs import (
    DATA,
    OUT,
    SEED,
    Figure,
    Finished,
    Section,
    Spread,
    Table,
    alternate,
    number,
    run_command,
    say,
)

BATCH, LEARNING_RATE = 32, 3e-4
FASTAI_PHOTOS = 320
EPOCHS = 5
"""What the fine-tuning is calculated for."""

SHARED_PARTS = "import featx; from featx.classifier import ImageClassifier; import optuna, sklearn, h5py"


def measure(rounds: int, quick: bool) -> Section:
    """Featx cold and warm in alternation, prediction, then the fine-tuning."""
    with tempfile.TemporaryDirectory() as folder:
        table, figures, accuracy = compare_fits(Path(folder), rounds, quick)
        tables = [table, predict_one(Path(folder), rounds, figures)]
        tables.append(compare_tuning(Path(folder), table, figures, accuracy, quick))
    about = (
        "Photos in class folders to a tuned, tested and saved classifier, timed from outside: start of the "
        "process, imports, reading, everything. *Cold* has an empty cache: network and weights are loaded, "
        "converted, and every photo is computed at every layer. *Warm* has the rows of a fit before."
    )
    return Section("The whole job", about, tables, figures)


def compare_fits(folder: Path, rounds: int, quick: bool) -> tuple[Table, dict[str, Figure], str]:
    """`featx fit` cold and warm."""
    data = few(folder) if quick else DATA / "catdog"
    model, cache = folder / "model.featx", folder / "cache"
    fit = [sys.executable, "-m", "featx", "fit", data, "-o", model, "--seed", str(SEED), "--json", "--quiet"]
    turns = iter(range(1000))
    ways = {
        "imports alone": lambda: run_command([sys.executable, "-c", SHARED_PARTS]),
        "cold": lambda: run_command([*fit, "--cache", folder / f"cold{next(turns)}"]),
        "warm": lambda: run_command([*fit, "--cache", cache]),
    }
    run_command([*fit, "--cache", cache])
    found = alternate(ways, rounds, what="job", show=lambda done: f"{done.seconds:.2f} s")
    said = {name: [json.loads(done.output) for done in found[name]] for name in ("cold", "warm")}
    rows, figures = [], {}
    for name, runs in found.items():
        spread = Spread.of(run.seconds for run in runs)
        tried = str(said[name][-1]["model"]["n_configurations"]) if name in said else ""
        held = accuracy_of(said[name][-1]) if name in said else ""
        rows.append(
            [f"`featx fit`, {name}" if name in said else name, spread.text(), tried, held, peak(runs)]
        )
        if name in said:
            figures[f"job.{name}"] = Figure.of(spread, f"{tried} configurations, held-out accuracy {held}")
    header = ["way", "seconds", "configurations", "held-out accuracy", "peak memory"]
    n_test = said["cold"][-1]["evaluation"]["n"]
    about = f"{rounds} alternations; the held-out part has {n_test} photos, the interval is 95 %."
    return Table(header, rows, about), figures, accuracy_of(said["cold"][-1])


def predict_one(folder: Path, rounds: int, figures: dict[str, Figure]) -> Table:
    """`featx predict` on one photo that no store knows, in a fresh process."""
    import photos

    stranger = folder / "stranger.jpg"
    sources = photos.small(2 + rounds)
    cache = folder / "cache"

    def predict(turn: int) -> Finished:
        stranger.write_bytes(Path(sources[turn]).read_bytes() + b"another file")
        command = [
            sys.executable,
            "-m",
            "featx",
            "predict",
            folder / "model.featx",
            stranger,
            "--cache",
            cache,
        ]
        return run_command([*command, "--json", "--quiet"])

    first = predict(0)
    later = [predict(turn) for turn in range(1, 1 + rounds)]
    spread = Spread.of(run.seconds for run in later)
    figures["job.predict"] = Figure.of(spread)
    say(f"predict: first {first.seconds:.2f} s, then {spread.text()} s")
    rows = [
        ["first after `fit`", number(first.seconds), peak([first])],
        ["after that", spread.text(), peak(later)],
    ]
    return Table(["`featx predict` on one new photo", "seconds", "peak memory"], rows)


def compare_tuning(
    folder: Path, fits: Table, figures: dict[str, Figure], accuracy: str, quick: bool
) -> Table:
    """The plain loop and fastai, once each."""
    OUT.mkdir(exist_ok=True)
    job = folder / "job.json"
    data = few(folder) if quick else DATA / "catdog"
    job.write_text(json.dumps(split(data) | LITE0.export()), encoding="utf-8")
    state = peers.prepare()
    ways = {"PyTorch, a plain loop over all layers": ("plain", sys.executable)}
    if peers.works(state["fastai"]):
        ways[f"fastai {state['fastai']}, all layers, on {FASTAI_PHOTOS} photos and scaled"] = (
            "fastai",
            str(peers.PYTHON),
        )
    cold = figures["job.cold"]
    rows = [["`featx fit`, cold", number(cold.value), "(all of it)", accuracy, fits.rows[1][-1], ""]]
    for title, (name, python) in ways.items():
        say(f"fine-tuning, {name}, one epoch")
        done = run_command([python, Path(__file__), name, job])
        said = json.loads(done.output.strip().splitlines()[-1])
        epoch_s = said["epoch_s"] * said["share"]
        epochs = done.seconds - said["epoch_s"] + EPOCHS * epoch_s
        ratio = epochs / cold.value
        figures[f"job.{name}"] = Figure(ratio, ratio, ratio, 1, f"held-out accuracy {said['accuracy']:.3f}")
        rows.append([title, number(epoch_s), number(epochs), f"{said['accuracy']:.3f}",
                     peak([done]), number(ratio, 2)])  # fmt: skip
        say(f"fine-tuning, {name}: {done.seconds:.0f} s, accuracy {said['accuracy']:.3f}")
    header = ["way", "an epoch, s", f"start to {EPOCHS} epochs, s, *calculated*",
              "held-out accuracy (after one epoch)", "peak memory", "slower than featx cold by"]  # fmt: skip
    before = (
        f"Fine-tuning the same network from the same weights on the same split, batches of {BATCH}, fp32, "
        "one run, one epoch; the other epochs are calculated from it. Untuned: a search would multiply this."
    )
    missing = "" if peers.works(state["fastai"]) else f"fastai was not run: {state['fastai']}."
    return Table(header, rows, before, missing)


def peak(runs: list[Finished]) -> str:
    """Most memory of some runs."""
    return f"{max(run.peak_bytes for run in runs) / 2**20:,.0f} MB"


def accuracy_of(said: dict[str, Any]) -> str:
    """Accuracy with its interval."""
    found = said["evaluation"]["metrics"]["accuracy"]
    return f"{found['value']:.3f} [{found['low']:.3f}–{found['high']:.3f}]"


def few(folder: Path) -> Path:
    """Twenty photos of each class."""
    chosen = folder / "few"
    for kind in ("cat", "dog"):
        (chosen / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((DATA / "catdog" / kind).iterdir())[:20]:
            (chosen / kind / path.name).write_bytes(path.read_bytes())
    return chosen


def split(data: Path) -> dict[str, Any]:
    """The paths and labels that `featx fit` learns from, and those that it holds out."""
    from featx.images import image_digest, load_images
    from featx.splits import stable_test_mask

    images = load_images(data)
    ids = np.stack([np.frombuffer(image_digest(source), np.uint8) for source in images.sources])
    held = stable_test_mask(ids, images.labels, test_size=0.2)
    labels = np.unique(np.asarray(images.labels), return_inverse=True)[1]

    def part(mask: Any) -> list[list[Any]]:
        return [[str(images.sources[i]), int(labels[i])] for i in np.flatnonzero(mask)]

    return {"train": part(~held), "test": part(held)}


# --- fine-tuning, in a process of its own ---


def tune_plainly(job: dict[str, Any]) -> dict[str, float]:
    """One epoch of the loop of the tutorials: DataLoader, timm's training transform, AdamW."""
    import timm
    import torch
    from torch.utils.data import DataLoader
    from ways import CORES

    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = network(job, 2).to(device)
    config = timm.data.resolve_model_data_config(model)
    loaders = [
        DataLoader(_Labelled(job[part], timm.data.create_transform(**config, is_training=part == "train")),
                   BATCH, shuffle=part == "train", num_workers=CORES)
        for part in ("train", "test")
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    began = time.perf_counter()
    model.train()
    for x, y in loaders[0]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    epoch_s = time.perf_counter() - began
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in loaders[1])
    return {"epoch_s": epoch_s, "accuracy": right / len(job["test"]), "share": 1.0}


def tune_by_fastai(job: dict[str, Any]) -> dict[str, float]:
    """`ImageDataLoaders`, `Learner`, `fit_one_cycle`, with its own augmentation."""
    import pandas as pd
    from fastai.vision.all import (
        Callback,
        CrossEntropyLossFlat,
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        set_seed,
    )
    from ways import CORES

    class Clock(Callback):  # type: ignore[misc]
        """Training alone: it validates after every epoch."""

        def before_train(self) -> None:
            self.began = time.perf_counter()

        def after_train(self) -> None:
            self.seconds = time.perf_counter() - self.began

    set_seed(SEED)
    chosen = np.random.default_rng(SEED).permutation(len(job["train"]))[:FASTAI_PHOTOS]
    parts = {False: [job["train"][index] for index in chosen], True: job["test"]}
    rows = [[path[1:], str(label), held] for held, part in parts.items() for path, label in part]
    data = ImageDataLoaders.from_df(
        pd.DataFrame(rows, columns=["path", "label", "held"]), path="/", valid_col="held", bs=BATCH,
        item_tfms=Resize(256), num_workers=CORES,
        batch_tfms=[*aug_transforms(size=224), Normalize.from_stats([0.5] * 3, [0.5] * 3)],
    )  # fmt: skip
    clock = Clock()
    learner = Learner(data, network(job, 2), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=clock)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, 1e-3)
    share = len(job["train"]) / len(chosen)
    return {"epoch_s": clock.seconds, "accuracy": float(learner.recorder.values[-1][-1]), "share": share}


def network(job: dict[str, Any], n_classes: int) -> Any:
    """The pretrained network with a new classifier."""
    import timm
    import torch

    model = timm.create_model(job["name"], pretrained=False)
    model.load_state_dict(torch.load(job["weights"], weights_only=True))
    model.reset_classifier(n_classes)
    return model


class _Labelled:
    def __init__(self, items: list[list[Any]], transform: Any) -> None:
        self.items, self.transform = items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        path, label = self.items[index]
        return self.transform(Image.open(path).convert("RGB")), label


TUNERS = {"plain": tune_plainly, "fastai": tune_by_fastai}

if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    print(json.dumps(TUNERS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))))
