"""Where trials are kept: an Optuna study of one space and data set, in memory, a journal or a database."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import SearchError, UsageError
from featx.search.evaluator import COMPLETE, FAILED, PRUNED, Result
from featx.search.space import Space, identity
from featx.signals import answered_by

JOURNAL = re.compile(r"^journal://(?P<path>.+)$")


def open_study(
    storage: Any,
    study_name: str | None,
    *,
    space_key: str,
    data_key: str,
    random_state: int | None,
    pruner: Any,
) -> Any:
    """Create the study, or open the one that an earlier search of the same space and data left.

    Raises
    ------
    SearchError
        If the study that `study_name` names is of another space or other data.
    UsageError
        If the storage cannot be opened.
    """
    import optuna

    name = study_name or (f"featx-{space_key}-{data_key}" if storage is not None else None)
    sampler = optuna.samplers.TPESampler(seed=random_state, n_startup_trials=0, constant_liar=True)
    try:
        with quiet():
            study = optuna.create_study(
                storage=open_storage(storage),
                study_name=name,
                direction="maximize",
                sampler=sampler,
                pruner=pruner,
                load_if_exists=storage is not None,
            )
    except Exception as error:  # whatever a database driver, or a file that is no journal, raises
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(
            f"storage {storage!r} cannot be opened ({reason}); "
            "give the path of a .journal file or a database URL such as sqlite:///study.db."
        ) from error
    kept = study.user_attrs
    for attribute, key, what in (("data", data_key, "other data"), ("space", space_key, "another space")):
        if attribute not in kept:
            study.set_user_attr(attribute, key)
        elif kept[attribute] != key:
            raise SearchError(
                f"study {name!r} was made for {what} ({attribute} {kept[attribute]}, now {key}); leave "
                "study_name out, so that each space and data set gets a study of its own, or name a new one."
            )
    return study


def open_storage(storage: Any) -> Any:
    """Return what Optuna takes: None, a database URL, or a journal whose torn last line was cut off.

    ``"journal:///path/to/file"`` and paths that end in ``.journal`` or ``.log`` are journal files.
    """
    if not isinstance(storage, str | os.PathLike):
        return storage
    text = os.fspath(storage)
    match = JOURNAL.match(text)
    if match is None and not text.endswith((".journal", ".log")):
        return text
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(match["path"] if match else text).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _journal_lock(path)
    _trim_journal(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _journal_lock(path: Path) -> Any:
    from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock

    return (JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock)(str(path))


def _trim_journal(path: Path, lock: Any) -> None:
    """Cut off a last line that a killed process left half written: Optuna could not read past it."""
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
    """Keep Optuna's log lines off the user's terminal; the search reports by itself."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while trials are written.

    Optuna's journal takes and gives back a lock by renaming a file; an exception between the two leaves
    errors about files that are gone instead of an orderly end.
    """
    held: list[int] = []
    with answered_by(lambda number, _: held.append(number)):
        yield
    for number in held:
        signal.raise_signal(number)


def known_results(study: Any) -> dict[str, Result]:
    """Finished trials of an earlier run, by the identity of their configuration."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in ("COMPLETE", "PRUNED") or "origin" not in trial.user_attrs:
            continue
        attributes = trial.user_attrs
        config = dict(trial.params)
        found[identity(config)] = Result(
            config,
            [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
            COMPLETE if trial.state.name == "COMPLETE" else PRUNED,
            attributes["origin"],
            attributes.get("approximate", ""),
            attributes.get("brier", float("nan")),
        )
    return found


def count_trials(study: Any, origin: str) -> int:
    """Number of finished trials of an origin, also of earlier runs."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.is_finished() and trial.user_attrs.get("origin") == origin for trial in trials)


def add_result(study: Any, space: Space, result: Result) -> None:
    """Enter an evaluated configuration as a finished trial."""
    from optuna.trial import TrialState, create_trial

    states = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
    study.add_trial(
        create_trial(
            state=states[result.state],
            value=result.score if result.state in (COMPLETE, PRUNED) else None,
            params=result.config,
            distributions=space.distributions(result.config),
            intermediate_values=dict(enumerate(result.scores)),
            user_attrs=_attributes(result),
        )
    )


def tell_result(study: Any, trial: Any, result: Result) -> None:
    """Finish a trial that was asked for."""
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
    """Ask the study's pruner about a configuration that has these scores of its first folds."""
    from optuna.trial import TrialState, create_trial

    trial = create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(scores)))
    return bool(study.pruner.prune(study, trial))


def data_key(blocks: Mapping[str, Any], *arrays: Any) -> str:
    """Short hash of the rows, labels, folds and weights: part of a study's name."""
    digest = hashlib.sha256()
    for name, rows in blocks.items():
        digest.update(name.encode())
        _update(digest, rows)
    for array in arrays:
        _update(digest, np.asarray(array))
    return digest.hexdigest()[:12]


def _update(digest: Any, array: NDArray[Any]) -> None:
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
