"""What the choice of representation is worth, and whether the forecast of more labels holds.

``python benchmarks/representation.py [--sets catdog,...] [--parts choice,doubling,cost] [--cache DIR]
[--trials N] [--timeout S]``
writes docs/representation.md; the sets are looked for in FEATX_TEST_DATA (default ../shared/data). What was
measured is kept in DIR/results.json, so that a second call goes on where the first stopped.

Choice: on each of three splits (30 % test) of each set (i) the last features as everybody uses them, centre
crop, average, scikit-learn's LogisticRegression at its defaults; (ii) an oracle: of every single layer,
pooling and resizing, standardised, logistic regression at three values of C, the one that is best on the mean
of the test parts; (iii) ImageClassifier at its defaults, which sees the training part alone.

Doubling: from n labelled rows a forecast of what 2n bring; n more are held back from it, and so are all
others, on which the difference is measured (mean over five drawings of the other n).

Cost: `fit` with an empty cache, choosing everything, against one with the last features only, each in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from featx import ImageClassifier
from featx.curves import (
    BAND,
    fit_power_law,
    gain_if_last_doubling_again,
    gain_if_no_change,
    interval_score,
    learning_curve,
)
from featx.curves.learning import predictions
from featx.exceptions import FeatxWarning
from featx.extractor import Extraction
from featx.heads import HEADS
from featx.images import ImageSet, load_images
from featx.selection.candidates import widest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
SEEDS = (0, 1, 2)
TEST_SIZE = 0.3
BACKBONE = "tf_efficientnet_lite0.in1k"
COMMON = "last:avg:crop"
ORACLE_C = (1.0, 10.0, 100.0)
MARGIN = 0.01
WIDTH = 110

DOUBLING_SEEDS = (0, 1, 2, 3)
MOST_DOUBLED = 800
FEWEST_DOUBLED = 48
DRAWINGS = 5

BANDS = ("forecast", "forecast, with the test's chance", "no change", "last doubling again")

COST_SETS = ("catdog", "clothing_dev", "sign_digits", "fsdd_spectrograms")
COST_ROUNDS = 3


@dataclass(frozen=True)
class Job:
    """A set, whether it is far from ImageNet, and what groups its images."""

    name: str
    far: bool
    groups: str = ""

    @property
    def title(self) -> str:
        """Its name in the table."""
        return f"{self.name}, {self.groups} as groups" if self.groups else self.name


JOBS = (
    Job("catdog", far=False),
    Job("clothing_dev", far=False),
    Job("sign_digits", far=True),
    Job("fsdd_spectrograms", far=True),
    Job("fsdd_spectrograms", far=True, groups="speakers"),
    Job("omniglot_small1", far=True),
    Job("shape_edges16", far=True),
    Job("shape_silhouettes16", far=True),
)

Results = dict[str, Any]


def main() -> None:
    """Measure what is not yet in the results, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", help="only these, separated by commas (the page is then only printed)")
    parser.add_argument("--parts", default="choice,doubling,cost")
    parser.add_argument("--cache", help="folder for rows and results (default: a temporary one)")
    parser.add_argument("--trials", type=int, default=50, help="Optuna trials of a choice (default 50)")
    parser.add_argument("--timeout", type=float, help="seconds of a choice's search (default: no limit)")
    parser.add_argument("--time-one", nargs=2, metavar=("SET", "CUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_one:
        print(time_fit(*args.time_one))
        return
    warnings.simplefilter("ignore", FeatxWarning)
    search = {"n_trials": args.trials, "timeout": args.timeout}
    jobs = [job for job in JOBS if not args.sets or job.name in args.sets.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(args.cache or temporary)
        cache.mkdir(parents=True, exist_ok=True)
        results = Kept(cache / "results.json")
        with threadpool_limits(limits=1):  # small systems: several threads in each only wait for each other
            for job in jobs:
                measure(job, args.parts.split(","), cache / "rows", results, search)
        page = render(results.values, jobs)
    print(page)
    if not args.sets:
        (ROOT / "docs" / "representation.md").write_text(page, encoding="utf-8")


class Kept:
    """Results in a JSON file, each measured once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: Results = json.loads(path.read_text()) if path.exists() else {}

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """The kept value, or what `measure` gives."""
        if key not in self.values:
            began = time.perf_counter()
            self.values[key] = measure()
            self.path.write_text(json.dumps(self.values))
            print(f"{key}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        return self.values[key]


def measure(job: Job, parts: list[str], cache: Path, results: Kept, search: Results) -> None:
    """All parts of one set."""
    rows: list[Extraction] = []

    def everything() -> Extraction:
        if not rows:
            params = {"backbone": BACKBONE, "cut": "auto", "pool": "auto", "resize": "auto"}
            images = load(job)
            rows.append(widest(params, {"store": cache}).extract(images.sources, names=images.names))
        return rows[0]

    if "choice" in parts:
        for seed in SEEDS:
            results.once(
                f"choice/{job.title}/{seed}",
                lambda seed=seed: choose(job, seed, cache, everything(), search),
            )
        results.once(f"oracle/{job.title}", lambda: ask_oracle(job, everything(), results))
    if "doubling" in parts and not job.groups:
        results.once(f"doubling/{job.title}", lambda: double(job, everything()))
    if "cost" in parts and job.name in COST_SETS and not job.groups:
        results.once(f"cost/{job.title}", lambda: cost(job))


def load(job: Job) -> ImageSet:
    """The set, with its groups."""
    images = load_images(DATA / job.name)
    if job.groups == "speakers":
        images.groups = np.array([Path(name).stem.split("_")[1] for name in images.names])
    return images


# Choice --------------------------------------------------------------------------------------------------


def choose(job: Job, seed: int, cache: Path, rows: Extraction, search: Results) -> Results:
    """Common practice (i) and featx (iii) on one split: which test images each got right."""
    images = load(job)
    began = time.perf_counter()
    clf = ImageClassifier(BACKBONE, store=cache, random_state=seed, **search)
    clf.fit_with_test(images, test_size=TEST_SIZE, split_salt=str(seed))
    seconds = time.perf_counter() - began
    y = np.asarray(images.labels)[rows.kept]
    is_test = np.array([clf.assignment_[row.tobytes().hex()] == "test" for row in rows.ids])
    proba = clf.proba_of_features(rows.blocks.only(clf.best_blocks_).take(is_test))
    common = rows.blocks[COMMON]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        usual = LogisticRegression().fit(common[~is_test], y[~is_test]).predict(common[is_test])
    return {
        "test": np.flatnonzero(is_test).tolist(),
        "usual": (usual == y[is_test]).astype(int).tolist(),
        "featx": (clf.classes_[proba.argmax(1)] == y[is_test]).astype(int).tolist(),
        "chosen": f"{clf.best_params_['head']} on {' + '.join(clf.best_blocks_)}",
        "selection_score": clf.best_score_,
        "verdict": " ".join(clf.choice_.sentences()) if clf.choice_ else "",
        **search,
        "seconds": seconds,
    }


def ask_oracle(job: Job, rows: Extraction, results: Kept) -> Results:
    """The single representation (and C) that is best on the mean of the test parts (ii)."""
    codes = np.unique(np.asarray(load(job).labels)[rows.kept], return_inverse=True)[1]
    tests = [np.array(results.values[f"choice/{job.title}/{seed}"]["test"]) for seed in SEEDS]
    splits = [(np.setdiff1d(np.arange(len(codes)), test), test) for test in tests]
    best: Results = {"mean": -1.0}
    for name in rows.blocks:
        right: dict[tuple[int, int], NDArray[np.bool_]] = {}
        params = [{"C": c} for c in ORACLE_C]
        for i, seed, answer in predictions(
            [rows.blocks[name]], codes, splits, head="logistic", params=params, scaling="standard"
        ):
            right[i, seed] = answer == codes[tests[seed]]
        rows.blocks.release(name)
        for i, c in enumerate(ORACLE_C):
            mean = float(np.mean([right[i, seed].mean() for seed in range(len(SEEDS))]))
            if mean > best["mean"]:
                own = [right[i, seed].astype(int).tolist() for seed in range(len(SEEDS))]
                best = {"mean": mean, "name": name, "C": c, "right": own}
    return {**best, "candidates": len(rows.blocks)}


def paired(
    differences: list[NDArray[np.float64]], tests: list[NDArray[np.intp]]
) -> tuple[float, float, float]:
    """Mean over splits of the mean difference, with its 95 % bootstrap interval over images.

    An image that is in several test parts is drawn for all of them at once.
    """
    members = np.unique(np.concatenate(tests))
    share, counted = np.zeros((len(members), len(tests))), np.zeros((len(members), len(tests)))
    for k, (own, test) in enumerate(zip(differences, tests, strict=True)):
        share[np.searchsorted(members, test), k] = own
        counted[np.searchsorted(members, test), k] = 1
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=2000)
    means = ((draws @ share) / np.maximum(draws @ counted, 1)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([own.mean() for own in differences])), float(low), float(high)


# Doubling ------------------------------------------------------------------------------------------------


def double(job: Job, rows: Extraction) -> list[Results]:
    """Forecasts from n labels, and what 2n turned out to bring."""
    codes = np.unique(np.asarray(load(job).labels)[rows.kept], return_inverse=True)[1]
    classes = int(codes.max()) + 1
    resizes = [name.split(":")[2] for name in rows.blocks if name.startswith("last:avg:")]
    resize = "squash" if "squash" in resizes else resizes[0]
    cases = []
    for block in (f"last:avg:{resize}", f"blocks.4:grid2:{resize}"):
        X = rows.blocks[block]
        for seed in DOUBLING_SEEDS:
            n = min(int(0.4 * len(codes)), MOST_DOUBLED)
            while n >= max(FEWEST_DOUBLED, 3 * classes):
                rng = np.random.default_rng([seed, n])
                own = np.sort(stratified(codes, rng)[:n])
                curve = learning_curve(X[own], codes[own], random_state=seed)
                law = fit_power_law(curve)
                bands = {
                    "forecast": law.gain(2 * n),
                    "forecast, with the test's chance": law.gain(2 * n, n_test=len(codes) - n),
                    "no change": gain_if_no_change(curve),
                    "last doubling again": gain_if_last_doubling_again(curve),
                }
                gain = held_back_gain(X, codes, own, rng)
                found = {name: [band.value, band.low, band.high] for name, band in bands.items()}
                cases.append({"block": block, "n": n, "seed": seed, "gain": gain, **found})
                n //= 2
    return cases


def held_back_gain(
    X: NDArray[Any], codes: NDArray[np.intp], own: NDArray[np.intp], rng: np.random.Generator
) -> float:
    """Accuracy with n more labels less that without, on the images in neither; ridge, as in the curve."""
    rest = np.setdiff1d(np.arange(len(codes)), own)
    splits = []
    for _ in range(DRAWINGS):
        order = rest[stratified(codes[rest], rng)]
        more, test = order[: len(own)], np.sort(order[len(own) :])
        splits += [(own, test), (np.sort(np.concatenate([own, more])), test)]
    grid = HEADS["ridge"].grid
    right = np.empty((len(grid), len(splits)))
    for i, k, answer in predictions([X], codes, splits, head="ridge", params=grid, scaling="standard"):
        right[i, k] = (answer == codes[splits[k][1]]).mean()
    before, after = right[:, 0::2].mean(axis=1), right[:, 1::2].mean(axis=1)
    return float(after.max() - before.max())


def stratified(codes: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """An order whose every beginning has the classes' shares."""
    place = np.empty(len(codes))
    for c in np.unique(codes):
        own = rng.permutation(np.flatnonzero(codes == c))
        place[own] = (np.arange(len(own)) + rng.random()) / len(own)
    return np.argsort(place)


# Cost ----------------------------------------------------------------------------------------------------


def cost(job: Job) -> Results:
    """Seconds of a cold fit, choosing everything and with the last features only, in turn."""
    seconds: dict[str, list[float]] = {"auto": [], "last": []}
    for _ in range(COST_ROUNDS):
        for cut, own in seconds.items():
            command = [sys.executable, __file__, "--time-one", job.name, cut]
            own.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return seconds


def time_fit(name: str, cut: str) -> float:
    """Seconds of one fit with an empty cache, imports and the network's conversion included."""
    warnings.simplefilter("ignore", FeatxWarning)
    one = {} if cut == "auto" else {"cut": None, "pool": "avg", "resize": "crop"}
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        ImageClassifier(BACKBONE, store=cache, random_state=0, **one).fit_with_test(load_images(DATA / name))
        return time.perf_counter() - began


# The page ------------------------------------------------------------------------------------------------


def render(results: Results, jobs: list[Job] | tuple[Job, ...]) -> str:
    """The page."""
    parts = [
        "# What the representation is worth, measured",
        "",
        "Written by `python benchmarks/representation.py`.",
        "",
        describe("0, 1, 2 (choice), 0 to 3 (doubling)"),
        *_choice_table(results, jobs),
        *_doubling_table(results, jobs),
        *_cost_table(results, jobs),
        *_left_out(results, jobs),
    ]
    return "\n".join(parts) + "\n"


def _left_out(results: Results, jobs: list[Job] | tuple[Job, ...]) -> Iterator[str]:
    """What of a whole run is not in the results yet."""
    left = [f"the choice on {job.title}" for job in jobs if not _chosen(results, job)]
    left += [
        f"the oracle on {job.title}"
        for job in jobs
        if _chosen(results, job) and f"oracle/{job.title}" not in results
    ]
    if not any(key.startswith("doubling/") for key in results):
        left.append("the forecast of doubled labels")
    if not any(key.startswith("cost/") for key in results):
        left.append("the cost of the choice")
    if left:
        yield from ("", f"Not measured in this run: {', '.join(left)}.")


def _chosen(results: Results, job: Job) -> bool:
    return all(f"choice/{job.title}/{seed}" in results for seed in SEEDS)


def _choice_table(results: Results, jobs: list[Job] | tuple[Job, ...]) -> Iterator[str]:
    measured = [job for job in jobs if _chosen(results, job)]
    if not measured:
        return
    runs = [results[f"choice/{job.title}/{seed}"] for job in measured for seed in SEEDS]
    limits = sorted({_limits(run["n_trials"], run["timeout"]) for run in runs})
    yield from (
        "",
        "## The choice",
        "",
        *textwrap.wrap(
            f"`{BACKBONE}` alone, three splits with {TEST_SIZE:.0%} test (clothing_dev: its own split, three "
            "seeds), accuracy in %. (i) last features, centre crop, `LogisticRegression()`; (ii) the single "
            "layer, pooling, resizing and C that is best on the test parts themselves; (iii) "
            f"`ImageClassifier()`, from the training part alone, with {' or '.join(limits)}. "
            "Differences are paired, with 95 % bootstrap "
            "intervals over images; the last column says whether (iii) is within 1 point of the better one, "
            "give or take the interval.",
            WIDTH,
        ),
        "",
        "| set | (i) last + LR | (ii) oracle | (iii) featx | (iii) - (i) | (iii) - better | within 1 point |",
        "|---|---|---|---|---|---|---|",
    )
    notes, gains = [], {}
    for job in measured:
        runs = [results[f"choice/{job.title}/{seed}"] for seed in SEEDS]
        oracle = results.get(f"oracle/{job.title}")
        tests = [np.array(run["test"]) for run in runs]
        usual, featx = ([np.array(run[k], float) for run in runs] for k in ("usual", "featx"))
        best = usual if oracle is None else [np.array(own, float) for own in oracle["right"]]
        means = [float(np.mean([own.mean() for own in kind])) for kind in (usual, best, featx)]
        over_usual = paired([a - b for a, b in zip(featx, usual, strict=True)], tests)
        better = best if means[1] >= means[0] else usual
        over_better = paired([a - b for a, b in zip(featx, better, strict=True)], tests)
        gains[job.title] = over_usual[0]
        against = "| | |"
        if oracle is not None:
            against = f"| {_points(over_better)} | {'yes' if over_better[2] >= -MARGIN else 'no'} |"
        yield (
            f"| {job.title} | {100 * means[0]:.1f} | {'' if oracle is None else f'{100 * means[1]:.1f}'} | "
            f"**{100 * means[2]:.1f}** | {_points(over_usual)} {against}"
        )
        chosen = "; ".join(dict.fromkeys(run["chosen"] for run in runs))
        known = "oracle not measured"
        if oracle is not None:
            known = f"oracle {oracle['name']} (C = {oracle['C']:g}) of {oracle['candidates']} representations"
        notes.append(f"* {job.title}: {known}; featx chose {chosen}.")
    far = [gains[job.title] for job in measured if job.far and not job.groups]
    if far:
        yield from (
            "",
            f"Mean of (iii) - (i) over the {len(far)} far sets: **{100 * np.mean(far):+.1f} points**.",
        )
    yield from ("", *notes)


def _doubling_table(results: Results, jobs: list[Job] | tuple[Job, ...]) -> Iterator[str]:
    by_job = {
        job.title: results[f"doubling/{job.title}"] for job in jobs if f"doubling/{job.title}" in results
    }
    if not by_job:
        return
    cases = [case for own in by_job.values() for case in own]
    gains = np.array([case["gain"] for case in cases])
    yield from (
        "",
        "## Twice the labels",
        "",
        *textwrap.wrap(
            f"{len(cases)} cases: {len(by_job)} sets, two layers, {len(DOUBLING_SEEDS)} drawings, several n. "
            f"A band should contain {BAND:.0%}. The interval score is the width plus {2 / (1 - BAND):.0f} "
            "times the "
            "distance by which a band is missed, in points: lower is better. The first band is for the "
            "expected gain. The second also includes the random error of the held-back images on which the "
            "gain is measured "
            "(96 for the shapes). The bands of the two baselines are the error of the last doubling. The "
            "last column uses the constant band that fits these cases best, which is not known in advance.",
            WIDTH,
        ),
        "",
        "| forecast of the gain | within its band | interval score | mean error | best constant band |",
        "|---|---|---|---|---|",
    )
    for name in BANDS:
        value, low, high = np.array([case[name] for case in cases]).T
        inside = float(((low <= gains) & (gains <= high)).mean())
        score = float(interval_score(low, high, gains).mean())
        tail = (1 - BAND) / 2
        residual = gains - value
        constant = interval_score(*np.quantile(residual, [tail, 1 - tail]), residual).mean()
        hindsight = "" if name.startswith("forecast") else f"{100 * constant:.1f}"
        error = 100 * np.abs(residual).mean()
        yield f"| {name} | {inside:.0%} | {100 * score:.1f} | {error:.2f} | {hindsight} |"
    yield from (
        "",
        "| set | cases | mean gain | forecast | within its band | interval score |",
        "|---|---|---|---|---|---|",
    )
    for title, own in by_job.items():
        true = np.array([case["gain"] for case in own])
        value, low, high = np.array([case["forecast"] for case in own]).T
        inside = float(((low <= true) & (true <= high)).mean())
        score = float(interval_score(low, high, true).mean())
        yield (
            f"| {title} | {len(own)} | {100 * true.mean():+.1f} | {100 * value.mean():+.1f} | {inside:.0%} | "
            f"{100 * score:.1f} |"
        )


def _cost_table(results: Results, jobs: list[Job] | tuple[Job, ...]) -> Iterator[str]:
    rows = {job.title: results[f"cost/{job.title}"] for job in jobs if f"cost/{job.title}" in results}
    if not rows:
        return
    yield from (
        "",
        "## What the choice costs",
        "",
        f"Seconds of a cold `fit_with_test`, median of {COST_ROUNDS} in turn (all of them).",
        "",
        "| set | last features only | everything chosen | ratio of medians |",
        "|---|---|---|---|",
    )
    for title, own in rows.items():
        plain, auto = (statistics.median(own[k]) for k in ("last", "auto"))
        listed = {k: ", ".join(f"{s:.1f}" for s in own[k]) for k in own}
        both = f"{plain:.1f} ({listed['last']}) | {auto:.1f} ({listed['auto']})"
        yield f"| {title} | {both} | {auto / plain:.2f} |"


def _limits(trials: int, timeout: float | None) -> str:
    limit = "" if timeout is None else f" and at most {timeout:g} s for the search"
    return f"{trials} trials beyond the grid{limit}"


def _points(interval: tuple[float, float, float]) -> str:
    value, low, high = (100 * number for number in interval)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
