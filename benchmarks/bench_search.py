"""The same 50 configurations through Optuna and `cross_val_score`, and through HeadSearchCV.

Prints one JSON row for each measurement. Two naive studies are timed: as people write it, and with one BLAS
thread for each fit and folds in parallel. At 1,399 rows and two classes everything is run whole, in
alternation; at 5,000 and 20,000 rows with 10 and 100 classes the naive side is a seeded sample of
configurations on one fold, scaled to all and labelled "calculated". Best scores stand side by side.

    python benchmarks/bench_search.py --rounds 5                 # synthetic rows of the same shape
    python benchmarks/bench_search.py --rows catdog.npz          # arrays X (n, d) and y (n,)
    python benchmarks/bench_search.py --sizes 5000x10 20000x100
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from typing import Any

import numpy as np
import optuna
import sklearn
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits

from featx import HeadSearchCV

FOLDS = 5
COUNTS = {"logistic": 5, "rbf_svm": 21, "linear_svm": 18, "knn": 6}
"""50 configurations in the shares that a TPE study of these heads settled on."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help=".npz with X and y for the whole comparison")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of the whole comparison")
    parser.add_argument("--sizes", nargs="*", default=[], help="sizes to calculate, such as 5000x10")
    parser.add_argument("--sample", type=int, default=1, help="configurations of each head in a sample")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    show(kind="machine", cores=os.cpu_count(), machine=platform.machine(), sklearn=sklearn.__version__,
         optuna=optuna.__version__, numpy=np.__version__, seed=arguments.seed)  # fmt: skip
    if arguments.rounds:
        X, y = load_rows(arguments.rows) if arguments.rows else make_rows(1399, 2, arguments.seed)
        compare_whole(X, y, arguments.rounds, arguments.seed)
    for size in arguments.sizes:
        n, classes = map(int, size.split("x"))
        compare_sample(*make_rows(n, classes, arguments.seed), arguments.sample, arguments.seed)


def compare_whole(X: np.ndarray, y: np.ndarray, rounds: int, seed: int) -> None:
    """Time all three ways in alternation; the ratio of a round is of neighbours in time."""
    points = configurations(X.shape[1], seed)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(X, y))
    ways = {"naive": naive_study, "naive, one BLAS thread": careful_study, "featx": featx_search}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    work: dict[str, list[float]] = {
        name: [] for name in ways
    }  # of all threads: what others' load leaves alone
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            begun, spent = time.perf_counter(), time.process_time()
            best[name] = way(X, y, folds, points, seed)
            seconds[name].append(time.perf_counter() - begun)
            work[name].append(time.process_time() - spent)
    for name, taken in seconds.items():
        ratios = np.array(taken) / np.array(seconds["featx"])
        show(kind="search", way=name, n=len(y), classes=len(set(y.tolist())), configurations=len(points),
             median_s=np.median(taken), lower_quartile_s=np.quantile(taken, 0.25), rounds=rounds,
             cpu_s=np.median(work[name]), load=os.getloadavg()[0],
             ratio_median=np.median(ratios), ratio_lower_quartile=np.quantile(ratios, 0.25),
             best_score=best[name], how="measured")  # fmt: skip


def compare_sample(X: np.ndarray, y: np.ndarray, each: int, seed: int) -> None:
    """Time featx whole, and of the naive study a few configurations of each head on one fold."""
    points = configurations(X.shape[1], seed)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(X, y))
    begun = time.perf_counter()
    best = featx_search(X, y, folds, points, seed)
    taken = time.perf_counter() - begun
    common = {"kind": "search", "n": len(y), "classes": len(set(y.tolist())), "configurations": len(points)}
    show(**common, way="featx", seconds=taken, best_score=best, how="measured")
    rng = np.random.default_rng(seed)
    naive, scores = 0.0, []
    for head, count in COUNTS.items():
        own = [point for point in points if point["head"] == head]
        chosen = rng.choice(len(own), min(each, len(own)), replace=False)
        begun = time.perf_counter()
        scores += [cross_val_score(estimator(own[i], X.shape[1]), X, y, cv=folds[:1]).mean() for i in chosen]
        naive += (time.perf_counter() - begun) / len(chosen) * count * FOLDS
    show(**common, way="naive", seconds=naive, ratio=naive / taken, best_score_of_sample=max(scores),
         sampled=len(scores), how="calculated")  # fmt: skip


def naive_study(X: Any, y: Any, folds: Any, points: list[dict[str, Any]], seed: int) -> float:
    """Optuna and `cross_val_score` as people write it."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for number in range(len(points)):
        study.enqueue_trial({"point": number})

    def objective(trial: optuna.Trial) -> float:
        point = points[trial.suggest_int("point", 0, len(points) - 1)]
        return float(cross_val_score(estimator(point, X.shape[1]), X, y, cv=folds).mean())

    study.optimize(objective, n_trials=len(points))
    return float(study.best_value)


def careful_study(X: Any, y: Any, folds: Any, points: list[dict[str, Any]], seed: int) -> float:
    """The same with one BLAS thread for each fit."""
    with threadpool_limits(limits=1):
        return naive_study(X, y, folds, points, seed)


def featx_search(X: Any, y: Any, folds: Any, points: list[dict[str, Any]], seed: int) -> float:
    """The same configurations as the grid of a search, without a refit."""
    search = HeadSearchCV(tuple(COUNTS), n_trials=0, grid=points, cv=folds, refit=False, pruner=None,
                          random_state=seed)  # fmt: skip
    return float(search.fit(X, y).best_score_)


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


def load_rows(path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as kept:
        return kept["X"].astype(np.float32), np.unique(kept["y"], return_inverse=True)[1]


def show(**row: Any) -> None:
    plain = {
        name: round(float(value), 4) if isinstance(value, float) else value for name, value in row.items()
    }
    print(json.dumps(plain), flush=True)


if __name__ == "__main__":
    main()
