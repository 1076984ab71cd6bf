"""The same 50 configurations through Optuna and `cross_val_score`, and through HeadSearchCV.

``python benchmarks/run.py --only search``. Two naive studies are timed: as people write it, and with one BLAS
thread for each fit and the folds in parallel. At 1,399 rows and two classes (catdog's own rows) everything is
run whole, in alternation. At 5,000×10 and 20,000×100 the naive study would take hours: a seeded sample of
configurations is timed on one fold and scaled to all, labelled *calculated*. A single fit that does not end
within `CAP_S` is stopped and counted with that time, so that the naive side is only ever understated.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from pairs import SEED, Answer, Figure, Section, Spread, Table, Worker, alternate, number, ratios, say
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits
from ways import serve

from featx import HeadSearchCV

FOLDS = 5
COUNTS = {"logistic": 5, "rbf_svm": 21, "linear_svm": 18, "knn": 6}
"""50 configurations in the shares that a TPE study of these heads settled on."""

CAP_S, OURS_S = 45, 200
"""Most seconds of a naive fit, and of featx's whole search, at the calculated sizes."""

CAREFUL_ROUNDS = 2
CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Size:
    """Rows to calculate with, and how many of the five folds featx's side is run on."""

    n: int
    classes: int
    folds: int
    sampled: bool = False
    """Whether featx's side, too, is calculated from the sample's configurations, each searched alone."""


SIZES = (Size(5000, 10, 5), Size(20_000, 100, 1, sampled=True))
QUICK = (Size(400, 4, 5), Size(600, 10, 1, sampled=True))


def measure(rounds: int, quick: bool) -> Section:
    """The whole comparison, then the calculated ones."""
    with tempfile.TemporaryDirectory() as folder:
        whole, figures = compare_whole(Path(folder), rounds, quick)
        samples = []
        for size in QUICK if quick else SIZES:
            rows, found = compare_sample(size, Path(folder))
            samples += rows
            figures |= found
    about = (
        "50 fixed configurations (5 logistic regressions, 21 RBF and 18 linear support vector machines, 6 "
        "nearest-neighbour votes), five folds, 1,280 columns, no refit. The same points, folds and "
        "standardisation on every side; featx's scores are of the same exact objectives. *Threads set well* "
        "is one BLAS thread for each fit and the folds in parallel."
    )
    header = ["rows × classes", "way", "seconds", "best score", "faster by", "how"]
    calculated = Table(
        header, samples,
        "At these sizes the naive study is *calculated*: a seeded configuration of each head on one fold, "
        f"scaled to all. A fit was stopped after {CAP_S} s and counted with that: *at least*. The scores are "
        "the best of the sample on its fold. Synthetic rows of the same width.",
    )  # fmt: skip
    return Section("Search", about, [whole, calculated], figures)


def compare_whole(folder: Path, rounds: int, quick: bool) -> tuple[Table, dict[str, Figure]]:
    """Time all three ways in alternation; the ratio of a round is of neighbours in time."""
    X, y = make_rows(200, 2, SEED) if quick else catdog_rows()
    np.savez(folder / "whole.npz", X=X, y=y)
    titles = {
        "naive": "Optuna + `cross_val_score`",
        "careful": "the same, threads set well",
        "featx": "**featx**",
    }
    workers = {name: Worker(name, script=SCRIPT, rows=str(folder / "whole.npz")) for name in titles}
    workers["featx"].run([])
    ways = {
        name: lambda worker=worker: worker.run([], rows=folder / worker.way)
        for name, worker in workers.items()
    }
    careful = {name: way for name, way in ways.items() if name != "naive"}
    turns = min(rounds, CAREFUL_ROUNDS)
    again = alternate(careful, turns, what="search", show=lambda answer: f"{answer.seconds:.1f} s")
    ways.pop("careful")
    found = alternate(ways, rounds, what="search", show=lambda answer: f"{answer.seconds:.1f} s")
    against = {"naive": found["featx"], "careful": again["featx"], "featx": found["featx"]}
    found["careful"] = again["careful"]
    best = {name: float(np.load(folder / f"{name}.npy")[0]) for name in titles}
    for worker in workers.values():
        worker.close()
    seconds = {name: [answer.seconds for answer in answers] for name, answers in found.items()}
    shape = f"{len(y):,} × {len(set(y.tolist()))}"
    rows, figures = [], {}
    for name, title in titles.items():
        ratio = ratios(seconds[name], [answer.seconds for answer in against[name]])
        check = f"best score {best['featx']:.4f} against {best[name]:.4f}"
        figures[f"search.{name}"] = Figure.of(ratio, check)
        rows.append([shape, title, Spread.of(seconds[name]).text(), f"{best[name]:.4f}",
                     "" if name == "featx" else ratio.text(), "measured"])  # fmt: skip
    worse = max(best.values()) - best["featx"]
    figures["search.worse"] = Figure(worse, worse, worse, rounds)
    peaks = ", ".join(
        f"{max(a.peak_bytes for a in found[name]) / 2**20:,.0f} MB ({title})"
        for name, title in titles.items()
    )
    table = Table(
        ["rows × classes", "way", "seconds", "best score", "faster by", "how"], rows,
        f"Rows of catdog by EfficientNet-Lite0; {rounds} alternations ({turns} with threads set well), each "
        "side in a process of its own:",
        f"Peak memory: {peaks}.",
    )  # fmt: skip
    return table, figures


def compare_sample(size: Size, folder: Path) -> tuple[list[list[str]], dict[str, Figure]]:
    """Featx on all configurations; of the naive study one configuration of each head on one fold."""
    X, y = make_rows(size.n, size.classes, SEED)
    rows, key = folder / f"{size.n}.npz", f"{size.n}x{size.classes}"
    np.savez(rows, X=X, y=y)
    shape = f"{size.n:,} × {size.classes}"
    points = configurations(X.shape[1], SEED)
    rng = np.random.default_rng(SEED)
    sample = {
        head: int(rng.choice([i for i, point in enumerate(points) if point["head"] == head]))
        for head in COUNTS
    }
    taken = (
        sampled_seconds(rows, sample, folder, key) if size.sampled else whole_seconds(rows, size, folder, key)
    )
    if taken is None:
        return [[shape, "**featx**", f"not finished within {OURS_S} s", "", "", ""]], {}
    naive, finished, scores, capped = 0.0, [], [], False
    for head, count in COUNTS.items():
        number_of = sample[head]
        answer, score = fit_once(rows, number_of, folder)
        say(f"search {key}, naive {head} on one fold: {answer.seconds:.1f} s")
        naive += answer.seconds * count * FOLDS
        capped |= np.isnan(score)
        if not np.isnan(score):
            finished.append(number_of)
            scores.append(score)
    own = float("nan")
    if finished:
        with Worker("featx", script=SCRIPT, rows=str(rows), folds=1, only=finished) as worker:
            worker.run([], rows=folder / "same")
            own = float(np.load(folder / "same.npy")[0])
    ratio = naive / taken
    best = max(scores, default=float("nan"))
    at_least = "at least " if capped else ""
    how = f"*calculated* from {len(COUNTS)} searches of one" if size.sampled else "measured"
    table = [
        [shape, "Optuna + `cross_val_score`", f"{at_least}{number(naive)}", f"{best:.4f}",
         f"{at_least}{number(ratio, 2)}", f"*calculated* from {len(COUNTS)} fits"],
        [shape, "**featx**", number(taken), f"{own:.4f}", "", how],
    ]  # fmt: skip
    check = f"best score of the sample {own:.4f} against {best:.4f}"
    return table, {f"search.{key}": Figure(ratio, ratio, ratio, 1, check)}


def whole_seconds(rows: Path, size: Size, folder: Path, key: str) -> float | None:
    """What featx takes for all configurations on all folds; None if it is not done in time."""
    with Worker("featx", script=SCRIPT, rows=str(rows), folds=size.folds) as worker:
        ours = worker.run_within(OURS_S, [], rows=folder / "all")
    if ours is None:
        return None
    say(f"search {key}, featx on {size.folds} folds: {ours.seconds:.1f} s")
    return ours.seconds * FOLDS / size.folds


def sampled_seconds(rows: Path, sample: dict[str, int], folder: Path, key: str) -> float | None:
    """The same from one configuration of each head on one fold, as if they shared nothing: an upper bound."""
    taken = 0.0
    for head, number_of in sample.items():
        with Worker("featx", script=SCRIPT, rows=str(rows), folds=1, only=[number_of]) as worker:
            ours = worker.run_within(OURS_S, [], rows=folder / head)
        if ours is None:
            return None
        say(f"search {key}, featx {head} on one fold: {ours.seconds:.1f} s")
        taken += ours.seconds * COUNTS[head] * FOLDS
    return taken


def fit_once(rows: Path, point: int, folder: Path) -> tuple[Answer, float]:
    """One naive configuration on the first fold, stopped after `CAP_S`; its score, NaN if stopped."""
    with Worker("naive-fold", script=SCRIPT, rows=str(rows), point=point) as worker:
        answer = worker.run_within(CAP_S, [], rows=folder / "fold")
    if answer is None:
        return Answer(CAP_S, CAP_S, 0), float("nan")
    return answer, float(np.load(folder / "fold.npy")[0])


def catdog_rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows of the photos and their labels as numbers."""
    import photos

    from featx import FeatureExtractor

    paths = photos.small()
    X = FeatureExtractor(store="memory", precision="fp32").fit_transform(paths)
    return X, np.unique([Path(path).parent.name for path in paths], return_inverse=True)[1]


# --- the ways, each in a process of its own ---


class Study:
    """Rows, folds and configurations."""

    def __init__(self, rows: str, folds: int = FOLDS, only: list[int] | None = None) -> None:
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with np.load(rows) as kept:
            self.X, self.y = kept["X"].astype(np.float32), kept["y"]
        every = configurations(self.X.shape[1], SEED)
        self.points = [every[index] for index in only] if only else every
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
        self.folds = list(splitter.split(self.X, self.y))[:folds]


class Naive(Study):
    """Optuna and `cross_val_score` as people write it."""

    n_jobs: int | None = None

    def __call__(self, _: list[str]) -> Any:
        """Best score."""
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=SEED))
        for number_of in range(len(self.points)):
            study.enqueue_trial({"point": number_of})
        study.optimize(self.objective, n_trials=len(self.points))
        return [study.best_value]

    def objective(self, trial: optuna.Trial) -> float:
        """Mean score of a configuration."""
        point = self.points[trial.suggest_int("point", 0, len(self.points) - 1)]
        model = estimator(point, self.X.shape[1])
        return float(cross_val_score(model, self.X, self.y, cv=self.folds, n_jobs=self.n_jobs).mean())


class Careful(Naive):
    """The same with one BLAS thread for each fit and the folds in parallel."""

    n_jobs = CORES

    def __call__(self, _: list[str]) -> Any:
        """Best score."""
        with threadpool_limits(limits=1):
            return super().__call__(_)


class NaiveFold(Study):
    """One configuration on one fold."""

    def __init__(self, rows: str, point: int) -> None:
        super().__init__(rows, folds=1, only=[point])

    def __call__(self, _: list[str]) -> Any:
        """Its score."""
        model = estimator(self.points[0], self.X.shape[1])
        return [cross_val_score(model, self.X, self.y, cv=self.folds).mean()]


class Featx(Study):
    """The same configurations as the grid of a search, without a refit."""

    def __call__(self, _: list[str]) -> Any:
        """Best score."""
        heads = tuple(dict.fromkeys(point["head"] for point in self.points))
        search = HeadSearchCV(heads, n_trials=0, budget=None, grid=self.points, cv=self.folds, refit=False,
                              pruner=None, random_state=SEED)  # fmt: skip
        return [search.fit(self.X, self.y).best_score_]


def configurations(d: int, seed: int) -> list[dict[str, Any]]:
    """50 seeded points; penalties and widths are for standardised rows divided by sqrt(d)."""
    rng = np.random.default_rng(seed)

    def spread(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    widths = [0.1, 0.3, 1.0]
    points: list[dict[str, Any]] = [
        *({"logistic__C": spread(1, 1000)} for _ in range(COUNTS["logistic"])),
        *(
            {"rbf_svm__C": spread(1, 1000), "rbf_svm__gamma": float(rng.choice(widths))}
            for _ in range(COUNTS["rbf_svm"])
        ),
        *({"linear_svm__C": spread(0.1, 100)} for _ in range(COUNTS["linear_svm"])),
        *(
            {"knn__n_neighbors": k, "knn__metric": "euclidean", "knn__weights": "distance"}
            for k in (1, 3, 5, 10, 20, 40)
        ),
    ]
    return [{"head": next(iter(point)).split("__")[0], "scaling": "standard", **point} for point in points]


def estimator(point: dict[str, Any], d: int) -> Pipeline:
    """A configuration as people write it: a scaler and a classifier, in scikit-learn's units."""
    head = point["head"]
    own = {name.split("__")[1]: value for name, value in point.items() if "__" in name}
    if head == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(C=own["C"] / d, max_iter=1000))
    if head == "linear_svm":
        return make_pipeline(StandardScaler(), LinearSVC(C=own["C"] / d, max_iter=5000))
    if head == "rbf_svm":
        return make_pipeline(StandardScaler(), SVC(C=own["C"], gamma=own["gamma"] / d))
    return make_pipeline(StandardScaler(), KNeighborsClassifier(own["n_neighbors"], weights="distance"))


def make_rows(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 1,280 columns, as features are: many columns that know a little."""
    X, y = make_classification(
        n,
        1280,
        n_informative=64,
        n_redundant=600,
        n_classes=classes,
        n_clusters_per_class=1,
        class_sep=2.0,
        flip_y=0.01,
        random_state=seed,
    )
    return X.astype(np.float32), y


WAYS: dict[str, Any] = {"naive": Naive, "careful": Careful, "naive-fold": NaiveFold, "featx": Featx}
SCRIPT = Path(__file__).name

if __name__ == "__main__" and sys.argv[1] in WAYS:
    serve(WAYS)
