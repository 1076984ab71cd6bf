"""Compare the methods of a suite, and two runs of a suite.

A data set is the unit: what is averaged over seeds and drawn again in a bootstrap.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from featx.evaluation import METRICS
from featx.exceptions import DataError
from featx.records import Record
from featx.suite.folder import KEY, finished, unpack_right

Floats = NDArray[np.float64]
Rows = Sequence[dict[str, Any]]

ALPHA = 0.05
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Standing(Record):
    """One row of a leaderboard.

    Parameters
    ----------
    name : str
        Backbone, block, method and budget that is ranked.
    score : float
        Mean over the data sets.
    low, high : float
        95 % interval of the mean, from a bootstrap over data sets.
    rank : float
        Mean rank over the data sets, from 1.
    gap : float
        Mean difference to the best of each data set, at most 0.
    win_rate : float
        Share of the other rows that it is better than, over data sets; ties count half.
    seconds : float
        Mean seconds of fit and prediction.
    on_front : bool
        Whether no other row is both better and faster.
    scores : tuple of float
        Mean of each data set.
    """

    name: str
    score: float
    low: float
    high: float
    rank: float
    gap: float
    win_rate: float
    seconds: float
    on_front: bool
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Leaderboard(Record):
    """Methods ranked over data sets.

    Parameters
    ----------
    metric : str
    data : tuple of str
        Data sets on which all rows have a result.
    standings : tuple of Standing
        Best mean rank first.
    friedman_p : float
        p-value of Friedman's test that all have the same rank; NaN for fewer than 3 rows or 2 data sets.
    critical_difference : float
        Difference of mean ranks that is significant by Nemenyi's test at 5 % (Demšar, 2006).
    wilcoxon : dict of str to float
        Holm-corrected p-values of Wilcoxon's signed-rank test of the first row against each other.
    left_out : tuple of str
        Rows without a result on some data set, and cells that failed.
    """

    metric: str
    data: tuple[str, ...]
    standings: tuple[Standing, ...]
    friedman_p: float
    critical_difference: float
    wilcoxon: dict[str, float]
    left_out: tuple[str, ...]


def leaderboard(
    rows: Rows, *, metric: str = "accuracy", by: Sequence[str] = ("backbone", "features", "method", "budget")
) -> Leaderboard:
    """Rank what differs in the fields `by`, over data sets.

    Parameters
    ----------
    rows : sequence of dict
        Results of `ResultsFolder.rows`.
    metric : str
        A name of `METRICS`.
    by : sequence of str
        Fields whose values are ranked; the mean is taken over the others.

    Raises
    ------
    DataError
        If no two results can be compared.
    """
    cells, seconds = _cells(rows, metric, by)
    every = sorted({data for found in cells.values() for data in found})
    whole = sorted(name for name, found in cells.items() if len(found) == len(every))
    common = _common(cells, whole, every)
    if not whole:
        raise DataError("no row has a result on every data set, so nothing can be ranked.")
    table = np.array(
        [[np.mean([cells[name][data][seed] for seed in common[data]]) for data in every] for name in whole]
    )
    oriented = METRICS[metric].sign * table
    ranks = stats.rankdata(-oriented, axis=0)
    times = np.array([seconds[name] for name in whole])
    draws = np.random.default_rng(0).integers(0, len(every), (BOOTSTRAPS, len(every)))
    means = table[:, draws].mean(axis=2)
    order = np.lexsort((-oriented.mean(axis=1), ranks.mean(axis=1)))
    standings = []
    for i in order:
        others = np.delete(oriented, i, axis=0)
        wins = ((oriented[i] > others) + 0.5 * (oriented[i] == others)).mean() if len(others) else math.nan
        mean = oriented[i].mean()
        beaten = (oriented.mean(axis=1) > mean) & (times < times[i])
        low, high = map(float, np.quantile(means[i], [0.025, 0.975]))
        standings.append(
            Standing(
                name=whole[i],
                score=float(table[i].mean()),
                low=low,
                high=high,
                rank=float(ranks[i].mean()),
                gap=float((oriented[i] - oriented.max(axis=0)).mean()),
                win_rate=float(wins),
                seconds=float(times[i]),
                on_front=not beaten.any(),
                scores=tuple(table[i].tolist()),
            )
        )
    partial = [
        f"{name}: no result on {', '.join(set(every) - set(found)) or 'the seeds of the others'}"
        for name, found in cells.items()
        if name not in whole
    ]
    failed = [f"{_name(row, by)} on {row['data']}: {row['error']}" for row in rows if row["error"]]
    k, n = table.shape
    return Leaderboard(
        metric, tuple(every), tuple(standings), _friedman(oriented), critical_difference(k, n),
        _wilcoxon(oriented[order], [whole[i] for i in order]), tuple(dict.fromkeys([*partial, *failed])),
    )  # fmt: skip


Cells = dict[str, dict[str, dict[Any, float]]]
"""Scores by name, data set and seed."""


def _cells(rows: Rows, metric: str, by: Sequence[str]) -> tuple[Cells, dict[str, float]]:
    """Mean scores, and mean seconds of fit and prediction by name."""
    scores: dict[str, dict[str, dict[Any, list[float]]]] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in finished(rows):
        if row.get(metric) is not None:
            name = _name(row, by)
            own = scores.setdefault(name, {}).setdefault(row["data"], {})
            own.setdefault(row["seed"], []).append(row[metric])
            seconds[name].append(row["fit_s"] + row["predict_s"])
    means = {
        name: {
            data: {seed: float(np.mean(values)) for seed, values in own.items()}
            for data, own in found.items()
        }
        for name, found in scores.items()
    }
    return means, {name: float(np.mean(values)) for name, values in seconds.items()}


def _common(cells: Cells, whole: list[str], every: list[str]) -> dict[str, list[Any]]:
    """Seeds of each data set that all names have; names without one are removed from `whole`."""
    while True:
        common = {
            data: sorted(set.intersection(*(set(cells[name][data]) for name in whole)) if whole else ())
            for data in every
        }
        if not whole or all(common.values()):
            return common
        shared = {
            name: sum(len(cells[name][data].keys() & cells[other][data]) for other in whole for data in every)
            - sum(len(cells[name][data]) for data in every)
            for name in whole
        }
        whole.remove(min(whole, key=lambda name: shared[name]))


@dataclass(frozen=True)
class Worth(Record):
    """Difference of a row of a leaderboard to another one, over the data sets that both have.

    Parameters
    ----------
    name : str
        The row.
    difference, low, high : float
        Mean over data sets, positive is better, and its 95 % interval: a bias-corrected bootstrap of the
        differences. NaN for fewer than 3 data sets.
    p : float
        Two-sided p-value of a permutation test that flips the signs of the differences, with Holm's
        correction over all rows.
    seconds : float
        Its mean seconds of fit and prediction, divided by those of the other row.
    n_data : int
        Data sets.
    """

    name: str
    difference: float
    low: float
    high: float
    p: float
    seconds: float
    n_data: int


def differences(
    rows: Rows,
    against: str,
    *,
    metric: str = "accuracy",
    by: Sequence[str] = ("backbone", "features", "method", "budget"),
) -> list[Worth]:
    """Compare each row of a leaderboard with one of them, in pairs over data sets and seeds.

    Parameters
    ----------
    rows, metric, by
        As for `leaderboard`.
    against : str
        Name of the row to compare with.

    Raises
    ------
    DataError
        If there is no row of that name.
    """
    cells, seconds = _cells(rows, metric, by)
    if against not in cells:
        raise DataError(f"no row has the name {against!r}; there are {', '.join(sorted(cells))}.")
    found: dict[str, tuple[Floats, float]] = {}
    for name in sorted(cells):
        gains = [
            np.mean([own[seed] - other[seed] for seed in own if seed in other])
            for data, own in cells[name].items()
            if own.keys() & (other := cells[against].get(data, {})).keys()
        ]
        if name != against and gains:
            values = METRICS[metric].sign * np.array(gains)
            found[name] = values, _sign_flips(values)
    corrected = holm({name: p for name, (_, p) in found.items()})
    return sorted(
        (
            Worth(
                name, float(values.mean()), *_interval(values), corrected[name],
                seconds[name] / seconds[against], len(values),
            )
            for name, (values, _) in found.items()
        ),
        key=lambda one: -one.difference,
    )  # fmt: skip


def _sign_flips(values: Floats) -> float:
    """p-value of the mean by flipping signs, all flips where they are few."""
    if not values.any() or len(values) < 2:
        return 1.0
    made = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True, rng=0
    )
    return float(made.pvalue)


def _interval(values: Floats) -> tuple[float, float]:
    """Interval of the mean, 95 %, by a bias-corrected and accelerated bootstrap."""
    if len(values) < 3:
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap((values,), np.mean, n_resamples=BOOTSTRAPS, method="BCa", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def critical_difference(k: int, n: int, alpha: float = ALPHA) -> float:
    """Difference of mean ranks of k methods on n data sets that Nemenyi's test finds significant."""
    if k < 2:
        return math.nan
    q = stats.studentized_range.ppf(1 - alpha, k, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(k * (k + 1) / (6 * n)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values by Holm's method (1979)."""
    found: dict[str, float] = {}
    running = 0.0
    order = sorted(p_values, key=lambda name: p_values[name])
    for position, name in enumerate(order):
        running = max(running, min((len(order) - position) * p_values[name], 1.0))
        found[name] = running
    return found


@dataclass(frozen=True)
class Change(Record):
    """Difference of two runs, new minus old; positive is better.

    Parameters
    ----------
    name : str
        "all", or a backbone and method.
    difference, low, high : float
        Mean over data sets and its 95 % interval.
    p : float
        Holm-corrected one-sided p-value of "the new run is worse".
    n_data : int
        Data sets.
    """

    name: str
    difference: float
    low: float
    high: float
    p: float
    n_data: int


def compare_runs(old: Rows, new: Rows, *, metric: str = "accuracy") -> tuple[list[Change], bool]:
    """Compare two runs of a suite.

    Parameters
    ----------
    old, new : sequence of dict
        Results of `ResultsFolder.rows`.
    metric : str
        A name of `METRICS`.

    Returns
    -------
    changes : list of Change
        Over all methods, and of each.
    paired : bool
        Whether both runs have the same test images. Then images are compared in pairs, else the means over
        seeds with Welch's test; other test images need two seeds or more.

    Raises
    ------
    DataError
        If the runs have no cell in common, or too few seeds.
    """
    before, after = _by_key(old), _by_key(new)
    common = [key for key in before if key in after]
    paired = bool(common) and all(
        before[key]["test_digest"] == after[key]["test_digest"]
        and before[key]["n_test"] == after[key]["n_test"]
        for key in common
    )
    if not paired:
        places = {key[:-1] for key in before} & {key[:-1] for key in after}
        before = {key: row for key, row in before.items() if key[:-1] in places}
        after = {key: row for key, row in after.items() if key[:-1] in places}
        if not places:
            raise DataError("the two runs have no data set, backbone, method and budget in common.")
    else:
        before, after = ({key: rows[key] for key in common} for rows in (before, after))
    names = ["all", *dict.fromkeys(f"{key[1]}, {key[3]}" for key in before)]
    found = [_change(name, before, after, metric, paired=paired) for name in names]
    corrected = holm({name: p for (name, *_), p in found})
    changes = [Change(name, d, low, high, corrected[name], n) for (name, d, low, high, n), _ in found]
    return changes, paired


def _change(
    name: str, before: dict[Any, Any], after: dict[Any, Any], metric: str, *, paired: bool
) -> tuple[tuple[str, float, float, float, int], float]:
    """Difference of one name, its interval, and the one-sided p-value."""

    def own(rows: dict[Any, Any]) -> dict[Any, Any]:
        return {key: row for key, row in rows.items() if name in ("all", f"{key[1]}, {key[3]}")}

    old, new = own(before), own(after)
    sign = METRICS[metric].sign
    differences, variances, degrees = [], [], []
    for data in dict.fromkeys(key[0] for key in old):
        a, b = ({key: row for key, row in rows.items() if key[0] == data} for rows in (old, new))
        if paired:
            d, variance, df = _paired(a, b, metric, sign)
        else:
            d, variance, df = _unpaired(_by_seed(a, metric), _by_seed(b, metric), sign)
        differences.append(d)
        variances.append(variance)
        degrees.append(df)
    n = len(differences)
    total = float(np.sum(variances))
    error = math.sqrt(total) / n
    df = total**2 / sum(v**2 / f for v, f in zip(variances, degrees, strict=True)) if total else math.inf
    mean = float(np.mean(differences))
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * error if error else 0.0
    p = float(stats.t.cdf(mean / error, df)) if error else float(mean >= 0)
    return (name, mean, mean - half, mean + half, n), p


def _paired(a: dict[Any, Any], b: dict[Any, Any], metric: str, sign: float) -> tuple[float, float, float]:
    """Mean difference on the same test images, its variance over images, and degrees of freedom.

    Seeds may share test images, so the variance of their mean is that of a single seed.
    """
    values, variances, sizes = [], [], []
    for seed in dict.fromkeys(key[-1] for key in a):
        keys = [key for key in a if key[-1] == seed]
        by_image = np.mean(
            [unpack_right(b[key]).astype(float) - unpack_right(a[key]) for key in keys], axis=0
        )
        values.append(sign * float(np.mean([b[key][metric] - a[key][metric] for key in keys])))
        variances.append(float(by_image.var(ddof=1)) / len(by_image))
        sizes.append(len(by_image))
    return float(np.mean(values)), float(np.mean(variances)), max(min(sizes) - 1, 1)


def _unpaired(a: Floats, b: Floats, sign: float) -> tuple[float, float, float]:
    if min(len(a), len(b)) < 2:
        raise DataError(
            "the runs have other test images and a single seed, so the difference may be chance; "
            "run both with the same seeds, or with two seeds or more."
        )
    own = [float(values.var(ddof=1)) / len(values) for values in (a, b)]
    total = sum(own)
    weights = sum(v**2 / (len(values) - 1) for v, values in zip(own, (a, b), strict=True))
    return sign * float(b.mean() - a.mean()), total, total**2 / weights if weights else math.inf


def _by_seed(rows: dict[Any, Any], metric: str) -> Floats:
    """Mean over backbones, methods and budgets for each seed, shape (n_seeds,)."""
    seeds: dict[Any, list[float]] = defaultdict(list)
    for key, row in rows.items():
        seeds[key[-1]].append(row[metric])
    return np.array([np.mean(values) for values in seeds.values()])


def _by_key(rows: Rows) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[key] for key in KEY): row for row in finished(rows)}


def _name(row: dict[str, Any], by: Iterable[str]) -> str:
    parts = [f"{row[key]} labels" if key == "budget" else str(row[key]) for key in by]
    return ", ".join(part for part in parts if part and part not in ("none", "all labels"))


def _friedman(oriented: Floats) -> float:
    if oriented.shape[0] < 3 or oriented.shape[1] < 2:
        return math.nan
    return float(stats.friedmanchisquare(*oriented).pvalue)


def _wilcoxon(oriented: Floats, names: Sequence[str]) -> dict[str, float]:
    raw = {}
    for name, values in zip(names[1:], oriented[1:], strict=True):
        difference = oriented[0] - values
        raw[name] = float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
    return holm(raw)
