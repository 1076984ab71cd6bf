"""Seconds and memory of a search, as rows and classes grow, beside the extraction of as many images.

``python benchmarks/bench_growth.py``. Rows are drawn from real ones: each is a row of a class of
omniglot_small1, sign_digits or catdog plus a share of how another row differs from its class's mean. More
classes than these sets have are shifted copies of their classes. Each search runs in a process of its own,
and so do ridge regression, LDA and logistic regression as people call them. Seconds are processor time
divided by the number of cores, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from machine import describe
from page import table
from pairs import DATA, OUT, ROOT, SEED, Answer, Worker, number, say
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from ways import serve

from featx import FeatureExtractor, HeadSearchCV
from featx.images import load_images
from featx.search.costs import LEAST_BUDGET

CORES = os.cpu_count() or 1
SETS = ("omniglot_small1", "sign_digits", "catdog")
ROWS, CLASSES = (300, 1_400, 5_000, 20_000, 100_000, 500_000), (2, 10, 100, 1_000)
TITLE = "## Growth"
MOST_TEST, FEWEST_A_CLASS = 4_000, 5
CAP_S = 3_600
"""A way that takes longer is stopped; its figures are then missing."""

MOST_VALUES = 20_000 * 1_000
"""Largest number of rows times classes by default."""
TITLES = {"featx": "featx", "ridge": "ridge", "lda": "LDA", "logistic": "logistic regression"}


@dataclass(frozen=True)
class Point:
    """One size, and what each way took and reached."""

    n_rows: int
    n_classes: int
    answers: dict[str, Answer | None]
    accuracy: dict[str, float]

    @property
    def seconds(self) -> dict[str, float]:
        """Processor seconds of each way, divided by the number of cores."""
        return {way: answer.cpu_s / CORES for way, answer in self.answers.items() if answer is not None}


def main() -> None:
    """Measure all sizes once each; write the table to docs/searching.md and the plot to docs/growth.svg."""
    parser = argparse.ArgumentParser(description="How a search grows with rows and classes.")
    parser.add_argument(
        "--sizes", help="only these, such as 5000x100,20000x10; the page is then only printed"
    )
    parser.add_argument("--most", type=int, default=MOST_VALUES, help="largest rows times classes")
    parser.add_argument("--rows", type=int, default=max(ROWS), help="largest number of rows")
    args = parser.parse_args()
    sizes = [
        (n, k) for n in ROWS for k in CLASSES
        if n <= args.rows and k * FEWEST_A_CLASS <= n and n * k <= args.most
    ]  # fmt: skip
    if args.sizes:
        sizes = [tuple(map(int, size.split("x"))) for size in args.sizes.split(",")]
    per_image, real = extract()
    with tempfile.TemporaryDirectory() as folder:
        points = [measure_size(n, k, real, Path(folder)) for n, k in sizes]
    text = render(points, per_image)
    print(text)
    if not args.sizes:
        draw(points, per_image, ROOT / "docs" / "growth.svg")
        path = ROOT / "docs" / "searching.md"
        path.write_text(path.read_text(encoding="utf-8").partition(TITLE)[0] + text, encoding="utf-8")


def extract() -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """Processor seconds of an image by the default network, and the real rows with their classes."""
    rows, labels, spent, count = [], [], 0.0, 0
    extractor = FeatureExtractor(store="memory")
    for name in SETS:
        images = load_images(DATA / name)
        extractor.extract(images.sources[:32])  # loads the network
        began = time.process_time()
        rows.append(extractor.transform(images.sources))
        if name == "catdog":
            spent, count = time.process_time() - began, len(images)
        labels.append(np.char.add(f"{name}/", np.asarray(images.labels).astype(str)))
    codes = np.unique(np.concatenate(labels), return_inverse=True)[1]
    return spent / count / CORES, (np.vstack(rows), codes)


def draw_rows(n: int, k: int, real: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) of k classes, drawn from real ones."""
    rng = np.random.default_rng([SEED, n, k])
    rows, codes = real
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    means = np.vstack([rows[own].mean(axis=0) for own in members])
    spread = rows - means[codes]
    order = rng.permutation(len(members))
    y = np.arange(n) % k
    drawn = np.empty((n, rows.shape[1]), np.float32)
    for code in range(k):
        where, own = np.flatnonzero(y == code), members[order[code % len(members)]]
        shift = 0 if code < len(members) else spread[rng.integers(len(rows), size=3)].sum(axis=0)
        noise = spread[rng.integers(len(rows), size=len(where))]
        noise *= rng.uniform(0.3, 1.0, (len(where), 1)).astype(np.float32)
        drawn[where] = rows[own[rng.integers(len(own), size=len(where))]] + shift + noise
    return drawn, y


def measure_size(n: int, k: int, real: tuple[np.ndarray, np.ndarray], folder: Path) -> Point:
    """One size: the search and the three models by hand."""
    n_test = min(n, MOST_TEST)
    X, y = draw_rows(n + n_test, k, real)
    path = folder / "rows.npz"
    np.savez(path, X=X, y=y, n_train=n)
    answers: dict[str, Answer | None] = {}
    accuracy: dict[str, float] = {}
    for way in TITLES:
        with Worker(way, script=Path(__file__).name, rows=str(path)) as worker:
            answers[way] = worker.run_within(CAP_S, [], rows=folder / way)
        if answers[way] is not None:
            accuracy[way] = float(np.load(folder / f"{way}.npy")[0])
            say(f"growth {n}×{k}, {way}: {answers[way].cpu_s / CORES:.1f} s, {accuracy[way]:.4f}")
    return Point(n, k, answers, accuracy)


def render(points: list[Point], per_image: float) -> str:
    """The section of the page."""
    header = [
        "rows × classes", "extraction, s", "search, s", "search ÷ extraction", "search, MB",
        *(f"{title}, s" for title in TITLES.values() if title != "featx"),
        *(f"accuracy, {title}" for title in TITLES.values()),
    ]  # fmt: skip
    rows = []
    for point in points:
        extraction = per_image * point.n_rows
        search = point.seconds.get("featx", float("nan"))
        answer = point.answers["featx"]
        rows.append([
            f"{point.n_rows:,} × {point.n_classes:,}", number(extraction, 2), number(search, 2),
            number(search / max(extraction, LEAST_BUDGET), 2),
            f"{answer.peak_bytes / 2**20:,.0f}" if answer else "–",
            *(number(point.seconds.get(way, float("nan")), 2) for way in TITLES if way != "featx"),
            *(f"{point.accuracy.get(way, float('nan')):.3f}" for way in TITLES),
        ])  # fmt: skip
    lines = [
        TITLE,
        "",
        "The search on the last features of EfficientNet-Lite0 with its defaults, and the same rows by",
        "`RidgeClassifier()`, `LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto')` and",
        "`LogisticRegression(max_iter=1000)` on standardised rows. Rows are drawn from real ones with noise,",
        f"and tested on as many others, at most {MOST_TEST:,}. Seconds are processor time divided by the",
        "cores, so that other work on the machine counts little; the extraction is that of catdog's photos,",
        f"scaled to the rows. A search may always take {LEAST_BUDGET:g} s, and is compared with that where",
        "an extraction takes less. Memory is that of the whole process. One run each. Written by",
        "`python benchmarks/bench_growth.py`.",
        "",
        describe(SEED),
        "",
        *table(header, rows),
        "",
        "![Seconds of the search by rows and classes](growth.svg)",
    ]
    return "\n".join(lines) + "\n"


def draw(points: list[Point], per_image: float, path: Path) -> None:
    """Seconds by rows, a line for each number of classes, and the extraction."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from featx.plot.base import STYLE

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for k in sorted({point.n_classes for point in points}):
            own = [point for point in points if point.n_classes == k and "featx" in point.seconds]
            line = axes.loglog([p.n_rows for p in own], [p.seconds["featx"] for p in own], marker="o")[0]
            axes.annotate(
                f"{k:,} classes", (own[-1].n_rows, own[-1].seconds["featx"]), xytext=(6, 0),
                textcoords="offset points", va="center", color=line.get_color(),
            )  # fmt: skip
        n = np.array(sorted({point.n_rows for point in points}))
        axes.loglog(n, np.maximum(per_image * n, 5.0), "--", color="0.4")
        axes.annotate("extraction (at least 5 s)", (n[0], 5.6), color="0.4")
        axes.set(xlabel="rows", ylabel="seconds", title="A search takes no longer than the extraction")
        axes.margins(x=0.2)
        figure.savefig(path)
        plt.close(figure)


# --- the ways, each in a process of its own ---


class ByHand:
    """A model as people call it, on standardised rows."""

    models: ClassVar[dict[str, Any]] = {
        "ridge": RidgeClassifier(),
        "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "logistic": LogisticRegression(max_iter=1_000),
    }

    def __init__(self, rows: str, way: str) -> None:
        warnings.simplefilter("ignore")
        self.way = way
        with np.load(rows) as kept:
            n = int(kept["n_train"])
            self.train, self.test = (kept["X"][:n], kept["y"][:n]), (kept["X"][n:], kept["y"][n:])

    def __call__(self, _: list[str]) -> Any:
        """Accuracy on the test rows."""
        return [self.model().fit(*self.train).score(*self.test)]

    def model(self) -> Any:
        """The unfitted model."""
        return make_pipeline(StandardScaler(), self.models[self.way])


class Search(ByHand):
    """The search with its defaults."""

    def model(self) -> Any:
        """The unfitted model."""
        return HeadSearchCV(random_state=SEED)


WAYS = {
    way: (lambda rows, way=way: Search(rows, way) if way == "featx" else ByHand(rows, way)) for way in TITLES
}

if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        serve(WAYS)
    else:
        main()
