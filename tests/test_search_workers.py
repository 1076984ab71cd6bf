"""Several processes search one study: the work is divided, nothing is evaluated twice, nothing is lost."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apart
import joblib
import numpy as np
import optuna
import pytest
from sklearn.datasets import load_digits

from featx import HeadSearchCV
from featx.search import sharing
from featx.search.space import identity
from featx.search.study import open_storage

X, Y = load_digits(return_X_y=True)
X, Y = X[:300] / 16, Y[:300] % 3
TRIALS = 12


def search(storage: Any, **changes: Any) -> HeadSearchCV:
    quick = {"heads": ("ridge", "knn"), "n_trials": TRIALS, "cv": 3, "random_state": 0, "n_jobs": 1}
    return HeadSearchCV(storage=storage, **{**quick, **changes})


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """URL of a database of Debian's package `postgresql`, made for this test."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'featx[postgresql]')")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    bin_folder = programs[-1].parent
    user: dict[str, Any] = {}
    folder = tmp_path
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        user = {"user": "postgres"}
        folder = Path("/tmp") / f"featx-postgresql-{os.getpid()}"
        folder.mkdir()
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
    port, data = free_port(), folder / "data"
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    run = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL, **user}
    try:
        subprocess.run([bin_folder / "initdb", "-D", data, "-A", "trust", "-U", "featx"], **run)
        subprocess.run(
            [bin_folder / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], **run
        )
        try:
            yield f"postgresql+psycopg://featx@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([bin_folder / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **run)
    finally:
        if user:
            shutil.rmtree(folder)


def serve(path: Path, port: int) -> None:
    optuna.storages.run_grpc_proxy_server(open_storage(path), host="127.0.0.1", port=port)


@pytest.fixture
def grpc(tmp_path: Path) -> Iterator[str]:
    """URL of Optuna's gRPC server of a journal."""
    pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'featx[grpc]')")
    port = free_port()
    server = apart.start(serve, tmp_path / "served.journal", port)
    yield f"grpc://127.0.0.1:{port}"
    server.kill()
    server.join()


@pytest.fixture(params=["journal", "grpc", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return str(tmp_path / "study.journal")
    return str(request.getfixturevalue(request.param))


def work(storage: str, output: Path, killed_at: int = 0) -> None:
    """Search; a process that is to be killed dies in its n-th evaluation, with its trials still running."""
    from featx.search.evaluator import Evaluator

    evaluate, count = Evaluator._evaluate_group, iter(range(1, 10_000))
    sharing.BEAT_S, sharing.GRACE_S = 0.2, 2.0

    def dying(self: Any, group: Any, *rest: Any) -> None:
        if next(count) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)  # so that the others get their part, too
        evaluate(self, group, *rest)

    Evaluator._evaluate_group = dying  # type: ignore[method-assign]
    found = search(storage).fit(X, Y)
    output.write_text(identity(found.best_params_))


def counted(storage: str) -> list[Any]:
    (name,) = optuna.get_all_study_names(open_storage(storage))
    trials = optuna.load_study(study_name=name, storage=open_storage(storage)).get_trials()
    assert all(trial.state.is_finished() for trial in trials)
    return [trial for trial in trials if "dropped" not in trial.user_attrs]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [(0, 0, 0), (2, 0, 0), (0, 1, 2)])
def test_workers_divide_a_search_and_take_over_from_dead_ones(
    storage: str, killed: tuple[int, ...], tmp_path: Path
) -> None:
    alone = search(str(tmp_path / "alone.journal"), n_trials=0, grid="coarse").fit(X, Y)
    outputs = [tmp_path / f"{number}.txt" for number in range(len(killed))]
    workers = [apart.start(work, storage, output, at) for output, at in zip(outputs, killed, strict=True)]
    for worker in workers:
        worker.join()
    codes = [worker.exitcode for worker in workers]
    assert codes == [-signal.SIGKILL if at else 0 for at in killed]
    trials = counted(storage)
    grid = Counter(identity(trial.params) for trial in trials if trial.user_attrs["origin"] == "grid")
    assert set(grid.values()) == {1}  # no configuration was evaluated twice
    assert set(map(identity, alone.cv_results_["params"])) == set(grid)  # and none was lost
    assert sum(trial.user_attrs["origin"] == "tpe" for trial in trials) == TRIALS
    assert len({trial.user_attrs["worker"] for trial in trials}) > 1
    assert len({output.read_text() for output, at in zip(outputs, killed, strict=True) if not at}) == 1
    scores = dict(
        zip(map(identity, alone.cv_results_["params"]), alone.cv_results_["mean_test_score"], strict=True)
    )
    for trial in trials:
        if trial.user_attrs["origin"] == "grid" and trial.state.name == "COMPLETE":
            assert trial.value == pytest.approx(scores[identity(trial.params)])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_joblibs_backends_fit_folds_on_a_cluster(backend: str) -> None:
    settings: dict[str, Any] = {"heads": ("tree", "forest"), "n_trials": 0, "grid": "coarse", "budget": None}
    alone = search(None, **settings).fit(X, Y)
    own = os.getpid()
    if backend == "ray":
        ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'featx[ray]')")
        from ray.util.joblib import register_ray

        ray.init(address="local", num_cpus=2, log_to_driver=False)
        register_ray()
        close = ray.shutdown
    else:
        distributed = pytest.importorskip(
            "distributed", reason="Dask is not installed (pip install distributed)"
        )
        client = distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
        close = client.shutdown
    try:
        with joblib.parallel_config(backend=backend):
            pids = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(4))
            found = search(None, **settings).fit(X, Y)
    finally:
        close()
    assert own not in pids
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert found.best_params_ == alone.best_params_
