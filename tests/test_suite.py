"""Benchmark suites: file, methods, resuming, several processes, rankings, comparison of runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import FeatureExtractor, Suite
from featx.cli import main
from featx.exceptions import DataError, UsageError
from featx.suite import METHODS, read_config
from featx.suite.config import DataSet
from featx.suite.data import load_data
from featx.suite.estimators import DINOV2_C, ChosenLogistic, LeastSquares, SimpleShot, WeightedNeighbours
from featx.suite.folder import STALE_S, Cell, ResultsFolder
from featx.suite.page import _label_points, summary, to_html, to_latex
from featx.suite.ranking import compare_runs, critical_difference, differences, holm

pytestmark = pytest.mark.filterwarnings("ignore::featx.exceptions.ImageWarning")

SMALL = """
name = "small"
seeds = 2
budgets = ["all", 5]

[[data]]
name = "digits"
path = "sklearn:digits"
per_class = 20

[[backbone]]
name = "test_resnet"
pretrained = false
runtime = "torch"

[[method]]
name = "softmax"

[[method]]
name = "lsr"
"""


def suite_file(folder: Path, text: str = SMALL) -> Path:
    path = folder / "suite.toml"
    path.write_text(text)
    return path


def run(folder: Path, text: str = SMALL, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a suite, and return its rows and the cells that were computed."""
    told: list[str] = []
    suite = Suite.from_toml(suite_file(folder, text), store=folder / "cache", n_jobs=1)
    results = suite.run(folder / "results", report=lambda cell, *_: told.append(cell), **options)
    return results.rows(), told


# The file


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('name = "softmax"', 'name = "sofmax"', 17, "method 'sofmax' is not known"),
        ("per_class = 20", "per_clas = 20", 9, "'per_clas' is not known in"),
        ('path = "sklearn:digits"\n', "", 6, "a data set needs a path"),
        ('budgets = ["all", 5]', 'budgets = ["all", 0]', 4, "budget 0"),
        ("seeds = 2", "sedes = 2", 3, "'sedes' is not known"),
        ('name = "lsr"', 'name = "softmax"', 20, "two .* have the name 'softmax'"),
        ('name = "lsr"', 'use = "sklearn.svm:SVX"', 20, "cannot be imported"),
        ('name = "lsr"', 'use = "sklearn.decomposition:PCA"', 20, "is not a classifier"),
        ('name = "lsr"', 'name = "lsr"\nbackbones = ["resnet"]', 21, "backbones names 'resnet'"),
        ('name = "lsr"', 'name = "lsr"\nparams = { l3 = 2 }', 21, "l3"),
        ("per_class = 20", "group = 'digit'", 9, "no parentheses"),
        ("per_class = 20", "group = '('", 9, "not a regular expression"),
        ("seeds = 2", "seeds = 2\nfolds = 5", 3, "seeds or folds"),
        ("seeds = 2", "seeds = ", 3, "Invalid value"),
        ("seeds = 2", 'seeds = 2\nmetric = "acc"', 4, "metric 'acc' is not known"),
    ],
)
def test_an_error_of_the_file_names_its_line(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in SMALL
    path = suite_file(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(UsageError, match=rf"(?s)line {line}\b.*{message}|{message}.*line {line}\b"):
        read_config(path)


def test_a_file_extends_another(tmp_path: Path) -> None:
    suite_file(tmp_path)
    (tmp_path / "more.toml").write_text('extends = "suite.toml"\nseeds = 3\nbudgets = [1]\n')
    config = read_config(tmp_path / "more.toml")
    assert (config.seeds, config.budgets) == ((0, 1, 2), (1,))
    assert [use.name for use in config.methods] == ["softmax", "lsr"]


def test_paths_of_an_extended_file_are_relative_to_that_file(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    suite_file(base, SMALL.replace("sklearn:digits", "photos"))
    (tmp_path / "more.toml").write_text('extends = "base/suite.toml"\n')
    assert read_config(tmp_path / "more.toml").data[0].path == str(base / "photos")


# The methods


@pytest.fixture(scope="module")
def features() -> tuple[Any, Any, Any, Any, Any]:
    """Training and test features of digits, and positions of a tenth for validation."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:400], order[400:700]
    return X[train] / 16, y[train], X[test] / 16, y[test], np.arange(0, 400, 10)


@pytest.mark.parametrize("search", ["grid", "clip"])
def test_logistic_regression_is_scikit_learns_with_a_well_chosen_C(features: Any, search: str) -> None:
    X, y, test, _, validation = features
    model = ChosenLogistic(search).fit(X, y, validation)
    rest = np.setdiff1d(np.arange(len(y)), validation)

    def right(C: float) -> int:
        fitted = LogisticRegression(C=C, max_iter=1000).fit(X[rest], y[rest])
        return int((fitted.predict(X[validation]) == y[validation]).sum())

    every = [right(C) for C in DINOV2_C[::4]]
    assert right(model.C_) >= max(every) - 1
    by_hand = LogisticRegression(C=model.C_, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(model.decision_function(test), by_hand.decision_function(test), atol=1e-6)


def test_knn_votes_as_dinov2_does(features: Any) -> None:
    X, y, test, truth, validation = features
    unit, other = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (X, test))
    similarity = other @ unit.T
    nearest = np.argsort(-similarity, axis=1)[:, :200]
    weight = softmax(np.take_along_axis(similarity, nearest, 1) / 0.07, axis=1)  # over all 200, as there
    accuracy = {}
    for k in (10, 20, 100, 200):
        votes = np.zeros((len(test), 10))
        for row in range(len(test)):
            for place in range(k):
                votes[row, y[nearest[row, place]]] += weight[row, place]
        accuracy[k] = (votes.argmax(1) == truth).mean()
        found = WeightedNeighbours(k).fit(X, y).predict_proba(test)
        np.testing.assert_allclose(found, votes / votes.sum(1, keepdims=True), atol=1e-9)
    chosen = WeightedNeighbours().fit(X, y, validation)
    assert (chosen.predict(test) == truth).mean() == accuracy[chosen.k_]


@pytest.mark.parametrize("n", [50, 400])
def test_the_ridge_is_that_of_big_vision(features: Any, n: int) -> None:
    X, y, test, _, _ = features
    X, y = X[:n], y[:n]
    mean, std = X.mean(0), X.std(0) + 1e-5
    Z, other = (np.hstack([(a - mean) / std, np.full((len(a), 1), 100.0)]) for a in (X, test))
    values, vectors = np.linalg.eigh(Z.T @ Z)
    weights = vectors @ np.diag(1 / (values + 2**10)) @ vectors.T @ Z.T @ (2.0 * np.eye(10)[y] - 1)
    np.testing.assert_allclose(LeastSquares().fit(X, y).decision_function(test), other @ weights, atol=1e-6)


def test_simpleshot_is_the_nearest_mean_of_centred_unit_features(features: Any) -> None:
    X, y, test, _, _ = features
    Z, other = (a - X.mean(0) for a in (X, test))
    Z, other = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (Z, other))
    expected = NearestCentroid().fit(Z, y).predict(other)
    np.testing.assert_array_equal(SimpleShot().fit(X, y).predict(test), expected)


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if one.kind == "features"])
def test_every_method_learns_digits(features: Any, name: str) -> None:
    X, y, test, truth, validation = features
    estimator = METHODS[name].estimator({}, 0)
    needs = "validation" in type(estimator).fit.__code__.co_varnames
    estimator.fit(X, y, **({"validation": validation} if needs else {}))
    assert (estimator.predict(test) == truth).mean() > (0.6 if name == "tree" else 0.85)


# Running


def test_rows_are_those_of_scikit_learn_on_exported_features(tmp_path: Path) -> None:
    rows, told = run(tmp_path)
    assert len(rows) == len(told) == 8
    assert not any(row["error"] for row in rows)
    data = load_data(DataSet(name="digits", path="sklearn:digits", per_class=20))
    config = read_config(tmp_path / "suite.toml")
    extractor = FeatureExtractor("test_resnet", pretrained=False, runtime="torch", store=tmp_path / "cache")
    X = extractor.fit_transform(data.images.sources)
    for row in rows:
        if row["method"] != "softmax":
            continue
        part = data.part(config, row["seed"], row["budget"])
        assert not set(part.train) & set(part.test)
        if row["budget"] == 5:
            assert (np.bincount(data.codes[part.train]) == 5).all()
        by_hand = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        by_hand.fit(X[part.train], data.codes[part.train])
        accuracy = by_hand.score(X[part.test], data.codes[part.test])
        assert abs(accuracy - row["accuracy"]) <= 1 / row["n_test"] + 1e-9
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["log_loss"] > 0
    assert all(row["log_loss"] is None for row in rows if row["method"] == "lsr")
    lines = (tmp_path / "results" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in rows]


def test_what_is_computed_is_not_computed_again(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path)[1] == []
    more = SMALL + '\n[[backbone]]\nname = "test_vit.r160_in1k"\npretrained = false\nruntime = "torch"\n'
    rows, told = run(tmp_path, more)
    assert len(told) == 8
    assert all("test_vit" in cell for cell in told)
    assert len(rows) == 16
    changed = more.replace('name = "lsr"', 'name = "lsr"\nparams = { l2 = 1 }')
    assert {cell.split(", ")[-3] for cell in run(tmp_path, changed)[1]} == {"lsr"}


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = SMALL.replace('budgets = ["all", 5]', 'budgets = [5, "vtab", 1000]')
    text += '\n[[data]]\nname = "gone"\npath = "gone/"\n\n[[backbone]]\nname = "resnet9000"\n'
    rows, _ = run(tmp_path, text)
    reasons = {(row["data"], row["backbone"], str(row["budget"])): row["error"] for row in rows}
    assert reasons["digits", "test_resnet", "5"] == ""
    assert "vtab needs 1,000" in reasons["digits", "test_resnet", "vtab"]
    assert "the budget is 1000" in reasons["digits", "test_resnet", "1000"]
    assert "gone" in reasons["gone", "test_resnet", "5"]
    assert "resnet9000" in reasons["digits", "resnet9000", "5"]
    assert run(tmp_path, text)[1] == []
    assert (
        len(run(tmp_path, text, retry_failed=True)[1]) == sum(bool(reason) for reason in reasons.values()) * 4
    )
    board = summary(rows)
    assert any("resnet9000" in text for text in board.left_out)


def test_groups_stay_together_and_folds_cover_every_image(tmp_path: Path) -> None:
    from PIL import Image

    for label in "ab":
        for speaker in range(4):
            for take in range(3):
                path = tmp_path / "data" / label / f"{label}_s{speaker}_{take}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                color = tuple(np.random.default_rng([ord(label), speaker, take]).integers(0, 255, 3).tolist())
                Image.new("RGB", (40, 40), color).save(path)
    text = (
        "folds = 4\n[[data]]\nname = 'd'\npath = 'data'\ngroup = '_(s\\d)_'\n[[method]]\nname = 'scratch'\n"
    )
    config = read_config(suite_file(tmp_path, text))
    data = load_data(config.data[0])
    seen = []
    for seed in config.seeds:
        part = data.part(config, seed, "all")
        assert data.images.groups is not None
        assert not set(data.images.groups[part.train]) & set(data.images.groups[part.test])
        seen += part.test.tolist()
    assert sorted(seen) == list(range(24))


def test_methods_on_images_run(tmp_path: Path) -> None:
    text = SMALL.replace("seeds = 2", "seeds = 1").replace('["all", 5]', '["all"]').replace("= 20", "= 8")
    nested = (
        "extractor__pretrained = false, extractor__runtime = 'torch', n_trials = 1, cv = 3, heads = ['ridge']"
    )
    text += f'\n[[method]]\nname = "auto"\nparams = {{ {nested} }}\n'
    text += f'\n[[method]]\nname = "auto_no_calibration"\nparams = {{ {nested} }}\n'
    text += '\n[[method]]\nname = "scratch"\nparams = { net = "tiny", epochs = 1 }\n'
    rows, _ = run(tmp_path, text)
    found = {row["method"]: row for row in rows}
    assert found["auto"]["error"] == found["scratch"]["error"] == ""
    assert found["auto_no_calibration"]["error"] == ""
    assert found["auto_no_calibration"]["accuracy"] == found["auto"]["accuracy"]
    assert found["auto_no_calibration"]["log_loss"] != found["auto"]["log_loss"]
    assert found["auto"]["backbone"] == "test_resnet"
    assert found["scratch"]["backbone"] == "none"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::featx.exceptions.FeatxWarning")
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.kind == "images"])
def test_every_method_on_images_runs_with_its_own_parameters(tmp_path: Path, name: str) -> None:
    data = load_data(DataSet(name="digits", path="sklearn:digits", per_class=12))
    made = METHODS[name].estimator({}, 0, backbone="tf_efficientnet_lite0.in1k", store=tmp_path)
    proba = made.fit(data.images.sources, data.codes).predict_proba(data.images.sources)
    assert (proba.argmax(axis=1) == data.codes).mean() > 0.5


CELL = Cell("d", "b", "f", "m", "all", 0, "abc")


def test_a_claim_excludes_others_until_it_is_stale(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    with folder.claim(CELL) as mine:
        assert mine
        with ResultsFolder(tmp_path).claim(CELL) as other:
            assert not other
    claim = tmp_path / "claims" / CELL.id
    assert not claim.exists()
    claim.write_text("a killed process")
    with folder.claim(CELL) as mine:
        assert not mine
    old = time.time() - STALE_S - 1
    os.utime(claim, (old, old))
    with folder.claim(CELL) as mine:
        assert mine
    assert list((tmp_path / "claims").iterdir()) == []


@pytest.mark.slow
def test_three_processes_share_a_folder_and_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx.suite.folder.STALE_S", 0.0)  # in this process only: it takes over at once
    text = SMALL.replace("seeds = 2", "seeds = 6").replace('name = "lsr"', 'name = "logistic"')
    path = suite_file(tmp_path, text)
    command = [
        sys.executable, "-W", "ignore", "-m", "featx", "bench", str(path), "-o", str(tmp_path / "results"),
        "--cache-dir", str(tmp_path / "cache"), "--jobs", "1",
    ]  # fmt: skip
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    cells = tmp_path / "results" / "cells"
    while not cells.is_dir() or len(list(cells.glob("*.json"))) < 4:
        assert workers[0].poll() is None
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    before = {file.name: file.stat().st_mtime_ns for file in cells.glob("*.json")}
    errors = [worker.communicate()[1] for worker in workers[1:]]
    assert [worker.returncode for worker in workers[1:]] == [0, 0], errors
    rows, _ = run(tmp_path, text)
    assert len(rows) == 24
    assert not any(row["error"] for row in rows)
    after = {file.name: file.stat().st_mtime_ns for file in cells.glob("*.json")}
    assert all(after[name] == stamp for name, stamp in before.items())  # nothing was computed twice
    assert list((tmp_path / "results" / "claims").iterdir()) == []


# Rankings and comparisons


def test_the_critical_difference_is_that_of_demsar() -> None:
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)  # Demšar (2006), section 3.2.3


def test_holm_corrects_as_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def simulated(
    rng: np.random.Generator, means: dict[tuple[str, str], float], seeds: range, n: int = 200
) -> list[dict[str, Any]]:
    """Rows of methods with given accuracies on data sets."""
    from featx.suite.folder import pack_right

    rows = []
    for (data, method), mean in means.items():
        for seed in seeds:
            right = rng.random(n) < mean
            rows.append(
                {
                    "data": data, "backbone": "b", "features": "f", "method": method, "budget": "all",
                    "seed": seed, "error": "", "accuracy": float(right.mean()), "fit_s": 1.0 + len(method),
                    "predict_s": 0.0, "n_test": n, "n_train": n, "n_classes": 2, "right": pack_right(right),
                    "test_digest": f"{data} {seed}",
                }
            )  # fmt: skip
    return rows


MEANS = {
    (f"d{i}", m): 0.75 + 0.02 * i + (0.05 if m == "good" else 0) for i in range(6) for m in ("good", "bad")
}


def test_the_leaderboard_ranks_and_says_what_is_on_the_front() -> None:
    board = summary(simulated(np.random.default_rng(0), MEANS, range(3)))
    assert [one.name for one in board.standings] == ["good", "bad"]
    assert board.standings[0].rank == pytest.approx(1.0, abs=0.2)
    assert board.standings[0].gap >= board.standings[1].gap
    assert [one.on_front for one in board.standings] == [True, True]  # the worse one is faster
    assert "bad" in to_latex(board)


def test_names_of_close_points_do_not_overlap() -> None:
    from matplotlib.figure import Figure

    ax = Figure(figsize=(7, 4)).add_subplot(xlim=(0, 10), ylim=(0, 1))
    _label_points(ax, [(5 + n / 10, 0.5 + n / 100, f"method number {n}") for n in range(8)])
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 8
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * 8  # itself


def test_rows_are_compared_with_one_of_them_in_pairs() -> None:
    rng = np.random.default_rng(0)
    means = {(f"d{i}", m): 0.7 + 0.01 * i for i in range(8) for m in ("plain", "same", "better")}
    means |= {(f"d{i}", "better"): 0.8 + 0.01 * i for i in range(8)}
    rows = simulated(rng, means, range(3))
    found = {one.name: one for one in differences(rows, "plain", by=("method",))}
    assert found.keys() == {"same", "better"}
    assert found["better"].low < 0.1 < found["better"].high
    assert found["better"].p < 0.05 < found["same"].p
    assert found["better"].n_data == 8
    assert found["better"].seconds == pytest.approx(7 / 6)
    with pytest.raises(DataError, match="better, plain, same"):
        differences(rows, "other", by=("method",))


def test_methods_are_compared_on_the_seeds_that_all_have() -> None:
    easy, hard = {("d", "whole"): 0.9, ("d", "half"): 0.9}, {("d", "whole"): 0.5}
    rng = np.random.default_rng(0)
    rows = simulated(rng, easy, range(1), n=4000) + simulated(rng, hard, range(1, 2), n=4000)
    assert [one.score for one in summary(rows).standings] == pytest.approx([0.9, 0.9], abs=0.02)
    assert differences(rows, "whole", by=("method",))[0].difference == pytest.approx(0, abs=0.02)
    board = summary([*rows, *simulated(rng, {("d", "late"): 0.9}, range(7, 8))])
    assert board.left_out == ("late: no result on the seeds of the others",)


def test_a_planted_regression_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    worse = {key: mean - (0.06 if key[1] == "good" else 0) for key, mean in MEANS.items()}
    failed = 0
    for trial in range(200):
        old = simulated(rng, MEANS, range(3))
        new = simulated(rng, MEANS, range(100 * trial + 10, 100 * trial + 13))  # other seeds
        changes, paired = compare_runs(old, new)
        assert not paired
        failed += any(change.p < 0.05 and change.difference < 0 for change in changes)
    assert failed <= 18  # 5 % of 200 is 10; more than 18 has a chance of 0.7 %
    found = 0
    for _ in range(20):
        changes, _ = compare_runs(simulated(rng, MEANS, range(3)), simulated(rng, worse, range(50, 53)))
        found += any(change.name == "b, good" and change.p < 0.05 for change in changes)
    assert found >= 18


def test_runs_with_the_same_test_images_are_compared_in_pairs() -> None:
    rng = np.random.default_rng(2)
    old = simulated(rng, MEANS, range(1))
    changes, paired = compare_runs(old, old)
    assert paired
    assert [(change.difference, change.p) for change in changes] == [(0, 1), (0, 1), (0, 1)]
    with pytest.raises(DataError, match="two seeds"):
        compare_runs(old, [{**row, "seed": 7, "test_digest": "other"} for row in old])


@pytest.mark.slow
def test_twenty_reseeded_runs_pass(tmp_path: Path) -> None:
    text = SMALL.replace('budgets = ["all", 5]', 'budgets = ["all"]').replace("= 20", "= 60")
    runs = []
    for number in range(21):
        seeds = [10 * number + k for k in range(4)]
        suite = Suite.from_toml(
            suite_file(tmp_path, text.replace("seeds = 2", f"seeds = {seeds}")),
            store=tmp_path / "cache",
            n_jobs=1,
        )
        runs.append(suite.run(tmp_path / f"results{number}").rows())
    failed = [
        any(100 * c.difference < -0.5 and c.p < 0.05 for c in compare_runs(runs[0], other)[0])
        for other in runs[1:]
    ]
    assert sum(failed) <= 3  # 5 % of 20 is one; more than three has a chance of 1.6 %


# The command line


def test_the_verb_runs_shows_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = str(suite_file(tmp_path)), str(tmp_path / "results")
    options = ["--cache-dir", str(tmp_path / "cache"), "--jobs", "1"]
    assert main(["bench", path, "-o", results, *options, "--dry-run"]) == 0
    assert "8 cells, 0 of them done" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert main(["bench", path, "-o", results, *options]) == 0
    assert "is the best on digits" in capsys.readouterr().out
    page, table = tmp_path / "page.html", tmp_path / "table.tex"
    assert main(["bench", "show", results, "--html", str(page), "--latex", str(table)]) == 0
    assert "\\toprule" in table.read_text()
    markdown = tmp_path / "table.md"
    command = ["bench", "show", results, "--against", "lsr, 5 labels", "--markdown", str(markdown)]
    assert main(command) == 0
    assert "Compared with lsr, 5 labels" in markdown.read_text()
    assert main(["bench", "show", results, "--against", "best"]) == 1
    assert "no row has the name 'best'; there are" in capsys.readouterr().err
    text = page.read_text()
    assert text.count("<svg") == 2  # of one data set there are no ranks
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!#)|@import""", text)  # nothing is fetched
    capsys.readouterr()
    assert main(["bench", "diff", results, results, "--fail-below", "-0.5"]) == 0
    assert "+0.00" in capsys.readouterr().out
    worse = tmp_path / "worse"
    (worse / "cells").mkdir(parents=True)
    for file in (tmp_path / "results" / "cells").iterdir():
        row = json.loads(file.read_text())
        row.update(accuracy=0.0, right=row["right"].replace(row["right"], "AAAAAAAAAAAAAAAA"))
        (worse / "cells" / file.name).write_text(json.dumps(row))
    assert main(["bench", "diff", results, str(worse), "--fail-below", "-0.5"]) == 1
    assert "is worse by" in capsys.readouterr().err
    for wrong in (["show"], ["diff", results], [path, path], [path, "--metric", "acc"]):
        assert main(["bench", *wrong]) == 2


def test_hostile_names_stay_text_in_the_page(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&\"'"
    rows = simulated(np.random.default_rng(0), {("d", name): 0.8, ("d", "b"): 0.7}, range(1))
    text = to_html(rows, summary(rows), name)
    assert "<script" not in text


def test_a_folder_without_results_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no results"):
        ResultsFolder(tmp_path).rows()
