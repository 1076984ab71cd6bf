"""A study on disk is continued, also after a kill, and is refused for other data."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import apart
import numpy as np
import optuna
import pytest
from sklearn.datasets import load_digits

from featx import HeadSearchCV
from featx.exceptions import SearchError, SearchWarning, UsageError
from featx.search import study

X, Y = load_digits(return_X_y=True)
X, Y = X[:120] / 16, Y[:120] % 3


def search(storage, **changes) -> HeadSearchCV:
    quick = {"heads": ("ridge",), "n_trials": 6, "cv": 3, "random_state": 0, "n_jobs": 1}
    return HeadSearchCV(storage=str(storage), **{**quick, **changes})


@pytest.mark.parametrize(
    "name", ["{}/study.journal", "{}/study.log", "journal://{}/study", "sqlite:///{}/study.db"]
)
def test_a_search_continues_a_study(tmp_path: Path, name: str) -> None:
    storage = name.format(tmp_path)
    first = search(storage, n_trials=3).fit(X, Y)
    done = len(first.study_.trials)
    more = search(storage, n_trials=6).fit(X, Y)
    assert len(more.study_.trials) == done + 3  # three more trials, no second grid
    assert more.best_score_ >= first.best_score_
    again = search(storage, n_trials=6).fit(X, Y)
    assert len(again.study_.trials) == done + 3
    assert again.best_params_ == more.best_params_
    np.testing.assert_array_equal(again.predict_proba(X), more.predict_proba(X))


def test_other_data_and_other_spaces_have_their_own_studies(tmp_path: Path) -> None:
    storage = tmp_path / "study.journal"
    names = {
        search(storage, n_trials=1).fit(X, Y).study_.study_name,
        search(storage, n_trials=1).fit(X + 0.01, Y).study_.study_name,
        search(storage, n_trials=1).fit(X, Y[::-1]).study_.study_name,
        search(storage, n_trials=1, scalings=("l2",)).fit(X, Y).study_.study_name,
        search(storage, n_trials=1, scoring="balanced_accuracy").fit(X, Y).study_.study_name,
        search(storage, n_trials=1, cv=4).fit(X, Y).study_.study_name,
    }
    assert len(names) == 6


def test_all_that_scores_depend_on_is_in_the_name_of_a_study(tmp_path: Path) -> None:
    storage, named = tmp_path / "study.journal", np.array(["a", "b", "c"])[Y]

    def name(y=Y, fit=None, **changes) -> str:
        return search(storage, n_trials=1, **changes).fit(X, y, **(fit or {})).study_.study_name

    names = [
        name(named, scoring="f1:b"),
        name(np.array(["b", "c", "d"])[Y], scoring="f1:b"),  # the same codes, and another class
        name(named, scoring="f1:c"),
        name(named),
        name(class_weight={0: 1, 1: 2, 2: 1}),
        name(class_weight={0: 1, 1: 3, 2: 1}),
        name(fit={"sample_weight": np.linspace(1, 2, len(Y))}),
        name(fit={"groups": np.arange(len(Y)) // 2}),
    ]
    assert len(set(names)) == len(names)


def test_a_named_study_of_other_data_or_space_is_refused(tmp_path: Path) -> None:
    storage = tmp_path / "study.journal"
    search(storage, n_trials=1, study_name="mine").fit(X, Y)
    with pytest.raises(SearchError, match="study 'mine' was made for other data"):
        search(storage, n_trials=1, study_name="mine").fit(X * 2, Y)
    with pytest.raises(SearchError, match="study 'mine' was made for another space"):
        search(storage, n_trials=1, study_name="mine", scalings=("l2",)).fit(X, Y)


def test_an_incomplete_last_line_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    whole = search(path, n_trials=3).fit(X, Y)
    lines = path.read_bytes()
    path.write_bytes(lines + b'{"op_code": 4, "worker_id": "torn')
    again = search(path, n_trials=3).fit(X, Y)
    assert path.read_bytes().startswith(lines)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert again.best_params_ == whole.best_params_
    assert len(again.study_.trials) == len(whole.study_.trials)


def test_a_journal_of_a_single_incomplete_line_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(b'{"op_code": 0, "worker')
    assert search(path, n_trials=1).fit(X, Y).best_score_ > 0.8


def search_until_killed(path: Path) -> None:
    def kill(progress: Any) -> None:
        if progress.stage == "tpe":
            os.kill(os.getpid(), signal.SIGKILL)

    search(path, n_trials=25, callback=kill).fit(X, Y)


def test_a_killed_search_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    process = apart.start(search_until_killed, path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = search(path, n_trials=25).fit(X, Y)
    kept = [
        trial
        for trial in found.study_.trials
        if trial.user_attrs.get("origin") == "tpe" and trial.state.is_finished()
    ]
    assert len(kept) == 25
    grid = [trial for trial in found.study_.trials if trial.user_attrs.get("origin") == "grid"]
    assert len({str(sorted(trial.params.items())) for trial in grid}) == len(grid)


def test_a_lock_that_a_killed_process_left_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "REPORT_LOCK_S", 0.5)
    path = tmp_path / "study.journal"
    search(path, n_trials=1).fit(X, Y)
    lock = tmp_path / "study.journal.lock"
    lock.symlink_to(path)
    remover = threading.Timer(2, lock.unlink)
    remover.start()
    with pytest.warns(SearchWarning, match=r"study\.journal\.lock has locked the journal for 0\.5 s"):
        search(path, n_trials=1).fit(X, Y)
    remover.join()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ann:geheim@127.0.0.1:1/studies",
        "nosuch://ann:ge/heim@host/x",
        "postgresql://127.0.0.1:1/x?user=ann&password=geheim",
    ],
)
def test_an_error_about_a_storage_shows_no_password(url: str) -> None:
    with pytest.raises(UsageError, match="cannot be opened") as caught:
        search(url, n_trials=1).fit(X, Y)
    assert "heim" not in str(caught.value)
    assert "ann" in str(caught.value)


def test_the_study_holds_scores_of_folds_and_parameters(tmp_path: Path) -> None:
    found = search(tmp_path / "study.journal").fit(X, Y)
    best = found.study_.best_trial
    assert best.value == pytest.approx(found.best_score_)
    assert np.mean(list(best.intermediate_values.values())) == pytest.approx(best.value)
    assert found.study_.trials_dataframe()["user_attrs_origin"].isin(["grid", "tpe"]).all()


def test_optuna_logs_nothing_and_its_level_is_restored(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    search(tmp_path / "study.journal", n_trials=2).fit(X, Y)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
