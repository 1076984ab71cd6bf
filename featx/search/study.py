"""The Optuna study of one space and data set: in memory, in a journal file or in a database."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from featx.exceptions import SearchError, SearchWarning, UsageError
from featx.search.evaluator import COMPLETE, FAILED, PRUNED, Result
from featx.search.plan import SearchPlan
from featx.search.space import SearchSpace, identity
from featx.signals import answered_by
from featx.tables import hide_password

GRPC = re.compile(r"^grpc://(?P<host>[^/]+):(?P<port>\d+)/?$")
JOURNAL = re.compile(r"^journal://(?P<path>.+)$")
OPEN_TRIES = 5
"""How often a database is opened whose tables another process makes."""

SERVER_S = 10.0
"""Seconds to wait for a gRPC server."""

REPORT_LOCK_S, REMOVE_LOCK_S = 10, 30
"""Seconds after which a journal's lock that is not released is reported, and removed."""

PRUNE_AFTER = 8
"""Completed configurations before the score of a fold can prune another."""


def open_study(plan: SearchPlan) -> Any:
    """Create the study of a plan, or open that of an earlier search of the same space and data.

    Raises
    ------
    SearchError
        If the study of that name is of another space or other data.
    UsageError
        If the storage cannot be opened.
    """
    import optuna

    storage, space_key, data_key = plan.settings.storage, plan.space.key, _data_key(plan)
    name = plan.settings.study_name or (f"featx-{space_key}-{data_key}" if storage is not None else None)
    sampler = optuna.samplers.TPESampler(seed=plan.seed, n_startup_trials=0, constant_liar=True)
    try:
        with quiet():
            study = optuna.create_study(
                storage=_open_in_turn(storage),
                study_name=name,
                direction="maximize",
                sampler=sampler,
                pruner=_pruner(plan.settings.pruner),
                load_if_exists=storage is not None,
            )
    except Exception as error:  # database drivers raise exceptions of their own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(
            hide_password(f"storage {storage!r} cannot be opened ({reason}); ")
            + "give the path of a .journal file, a database URL such as sqlite:///study.db, or "
            "grpc://HOST:PORT."
        ) from error
    known = study.user_attrs
    for attribute, key, what in (("data", data_key, "other data"), ("space", space_key, "another space")):
        if attribute not in known:
            study.set_user_attr(attribute, key)
        elif known[attribute] != key:
            raise SearchError(
                f"study {name!r} was made for {what} ({attribute} {known[attribute]}, now {key}); leave "
                "study_name out, so that each space and data set has its own study, or choose a new name."
            )
    return study


def open_storage(storage: Any) -> Any:
    """Return a storage for Optuna: None, a database URL, or a journal without an incomplete last line.

    ``"journal:///path/to/file"`` and paths that end in ``.journal`` or ``.log`` are journal files.
    ``"grpc://host:port"`` is a server that `optuna.storages.run_grpc_proxy_server` started.
    """
    if not isinstance(storage, str | os.PathLike):
        return storage
    text = os.fspath(storage)
    server = GRPC.match(text)
    if server is not None:
        from optuna.storages import GrpcStorageProxy

        proxy = GrpcStorageProxy(host=server["host"], port=int(server["port"]))
        proxy.wait_server_ready(timeout=SERVER_S)
        return proxy
    match = JOURNAL.match(text)
    if match is None and not text.endswith((".journal", ".log")):
        return text
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(match["path"] if match else text).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalLock(path)
    _trim_journal(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _open_in_turn(storage: Any) -> Any:
    """Open a storage; again if another process makes the tables of the same empty database at this moment."""
    opened = open_storage(storage)
    if not isinstance(opened, str):
        return opened
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for _ in range(OPEN_TRIES - 1):
        try:
            return RDBStorage(opened)
        except (IntegrityError, ProgrammingError):
            time.sleep(0.5)
    return RDBStorage(opened)


class JournalLock:
    """Optuna's lock of a journal file; a lock that nobody releases is reported.

    A killed process leaves the lock file behind. Optuna waits for it, and removes it after some time.

    Parameters
    ----------
    path : Path
        The journal.
    """

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

        kind = JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock
        self._lock = kind(str(path), grace_period=REMOVE_LOCK_S - REPORT_LOCK_S)
        self._file = Path(f"{path}.lock")

    def acquire(self) -> bool:
        """Wait for the lock and take it."""
        began, holder = time.monotonic(), self._holder()
        while holder is not None:
            if time.monotonic() - began > REPORT_LOCK_S:
                warnings.warn(
                    f"{self._file} has locked the journal for {REPORT_LOCK_S} s: a killed process left it or "
                    f"a process that is stopped holds it. It is removed after {REMOVE_LOCK_S} s; if no other "
                    "search uses this journal, delete it now.",
                    SearchWarning,
                    stacklevel=2,
                )
                break
            time.sleep(0.01)
            before, holder = holder, self._holder()
            if holder != before:
                began = time.monotonic()
        return bool(self._lock.acquire())

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _holder(self) -> tuple[int, int] | None:
        """Identity of the lock file, to distinguish it from later ones; None if there is none."""
        try:
            status = self._file.lstat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def _trim_journal(path: Path, lock: JournalLock) -> None:
    """Remove an incomplete last line, which a killed process has left: Optuna cannot read past it."""
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - 65_536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
    finally:
        lock.release()


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off Optuna's log messages; the search has its own progress reports."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def signals_delayed() -> Iterator[None]:
    """Delay signals that stop the program while trials are written.

    Optuna's journal locks and unlocks by renaming a file. An exception between the two would leave errors
    about missing files.
    """
    received: list[int] = []
    with answered_by(lambda number, _: received.append(number)):
        yield
    for number in received:
        signal.raise_signal(number)


def known_results(study: Any, space: SearchSpace) -> dict[str, Result]:
    """Return finished trials of an earlier run, by the identity of their configuration."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in ("COMPLETE", "PRUNED") or "origin" not in trial.user_attrs:
            continue
        attributes = trial.user_attrs
        params = dict(trial.params)
        found[identity(params)] = Result(
            params,
            space.read(params),
            [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
            COMPLETE if trial.state.name == "COMPLETE" else PRUNED,
            attributes["origin"],
            attributes.get("approximate", ""),
            attributes.get("brier", float("nan")),
        )
    return found


def count_trials(study: Any, origin: str) -> int:
    """Return the number of finished trials of an origin, including those of earlier runs."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.is_finished() and trial.user_attrs.get("origin") == origin for trial in trials)


def add_result(study: Any, space: SearchSpace, result: Result) -> None:
    """Add an evaluated configuration as a finished trial."""
    from optuna.trial import TrialState, create_trial

    states = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
    study.add_trial(
        create_trial(
            state=states[result.state],
            value=result.score if result.state in (COMPLETE, PRUNED) else None,
            params=result.params,
            distributions=space.distributions(result.params),
            intermediate_values=dict(enumerate(result.scores)),
            user_attrs=_attributes(result),
        )
    )


def tell_result(study: Any, trial: Any, result: Result) -> None:
    """Finish a trial that the study has suggested."""
    from optuna.trial import TrialState

    for step, score in enumerate(result.scores):
        trial.report(score, step)
    for name, value in _attributes(result).items():
        trial.set_user_attr(name, value)
    if result.state == COMPLETE:
        study.tell(trial, result.score)
    else:
        study.tell(trial, state=TrialState.PRUNED if result.state == PRUNED else TrialState.FAIL)


def should_prune(study: Any, scores: Sequence[float]) -> bool:
    """Return whether the study's pruner stops a configuration with these scores of its first folds."""
    from optuna.trial import TrialState, create_trial

    trial = create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(scores)))
    return bool(study.pruner.prune(study, trial))


def _pruner(pruner: Any) -> Any:
    import optuna

    if pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER)
    return optuna.pruners.NopPruner() if pruner is None else pruner


def _data_key(plan: SearchPlan) -> str:
    """Short hash of features, labels, classes, folds, weights and score. It is part of the study's name."""
    if plan.settings.storage is None:
        return "memory"
    folds, blocks = plan.folds, plan.blocks
    digest = hashlib.sha256()
    for name in blocks:
        digest.update(name.encode())
        _update(digest, blocks.source(name) if plan.streamed else blocks[name])
    weight = np.empty(0) if folds.weight is None else folds.weight
    splits = [np.concatenate([train, [-1], test]) for train, test in folds.splits]
    classes = np.array([repr(label) for label in plan.scorer.classes.tolist()])  # a score may be of one
    for array in (folds.y, classes, weight, np.array([str(plan.scorer.scoring)]), *splits):
        _update(digest, np.asarray(array))
    return digest.hexdigest()[:12]


def _update(digest: Any, array: Any) -> None:
    digest.update(f"{array.dtype}{array.shape}".encode())
    if array.dtype == object or array.dtype.kind == "U":
        digest.update("\0".join(map(str, array.ravel().tolist())).encode())
        return
    for start in range(0, len(array), 4096) if array.shape else ():
        digest.update(np.ascontiguousarray(array[start : start + 4096]).data)


def _attributes(result: Result) -> dict[str, Any]:
    attributes: dict[str, Any] = {"origin": result.origin}
    if result.approximate:
        attributes["approximate"] = result.approximate
    if np.isfinite(result.brier):
        attributes["brier"] = result.brier
    if result.error:
        attributes["error"] = result.error
    return attributes
