"""Several processes with one study: each configuration is evaluated by one of them.

A process claims a configuration by adding a running trial. If two claim the same one, the trial with the
lower number counts: Optuna's storages give each number once, in the order in which trials are added. A
process has a heartbeat: an attribute of the study that it changes regularly. If it no longer changes, the
trials of the process are set to failed, and others evaluate their configurations. Optuna's own heartbeat
works with databases only; this one also with journals and gRPC servers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from featx.search.evaluator import FAILED, UNFINISHED, Result
from featx.search.space import Params, SearchSpace, identity
from featx.search.study import known_results, signals_delayed, tell_result

BEAT_S = 5.0
"""Seconds between two heartbeats of a process."""

GRACE_S = 60.0
"""Seconds without a heartbeat after which a process counts as dead."""

POLL_S = 0.5
"""Seconds between two reads of the results of others."""

WORKER, DROPPED, ORIGIN = "worker", "dropped", "origin"
"""Attributes of trials: the process that runs it, why it does not count, and why it was tried."""

BEAT = "alive "
"""Prefix of the study's attributes that are heartbeats."""


class SharedStudy:
    """A study that other processes may search at the same time.

    Parameters
    ----------
    study : optuna.Study
        In a storage that several processes can open.
    space : SearchSpace
        Configurations to choose from.
    """

    def __init__(self, study: Any, space: SearchSpace) -> None:
        self.study, self.space = study, space
        self.name = f"{_host()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._first = len(study.get_trials(deepcopy=False))
        self._signs: dict[str, tuple[Any, float]] = {}

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Show that this process lives, from a thread."""
        ended = threading.Event()

        def beat() -> None:
            for number in itertools.count(1):
                if ended.wait(BEAT_S):
                    return
                with contextlib.suppress(Exception):  # the search itself reports what a storage raises
                    self.study.set_user_attr(BEAT + self.name, number)

        with signals_delayed():
            self.study.set_user_attr(BEAT + self.name, 0)
        thread = threading.Thread(target=beat, name="featx-alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def results(self) -> dict[str, Result]:
        """Return finished configurations of all processes, by their identity; also those that failed now."""
        found = known_results(self.study, self.space)
        for trial in self._trials():
            error = trial.user_attrs.get("error")
            if trial.state.name == "FAIL" and error and trial.number >= self._first:
                params = dict(trial.params)
                failed = Result(params, self.space.read(params), state=FAILED, error=error)
                failed.origin = trial.user_attrs.get(ORIGIN, failed.origin)
                found.setdefault(identity(params), failed)
        return found

    def claim(self, configs: Sequence[Params], origin: str) -> list[tuple[Any, Params]]:
        """Claim configurations for this process.

        Returns
        -------
        list of (optuna.Trial, dict)
            Those that no other process has claimed or finished.
        """
        from optuna.trial import TrialState, create_trial

        taken = self._holders()
        free = [params for params in configs if identity(params) not in taken]
        claim = uuid.uuid4().hex
        with signals_delayed():
            for params in free:
                self.study.add_trial(
                    create_trial(
                        state=TrialState.RUNNING,
                        params=params,
                        distributions=self.space.distributions(params),
                        user_attrs={ORIGIN: origin, WORKER: self.name, "claim": claim},
                    )
                )
            return self._keep(lambda trial: trial.user_attrs.get("claim") == claim)

    def ask(self, count: int, n_trials: int) -> list[tuple[Any, Params]]:
        """Draw trials, no more than are left of `n_trials` of all processes.

        Returns
        -------
        list of (optuna.Trial, dict)
            Trials whose configuration no other process evaluates at this moment.
        """
        with signals_delayed():
            for _ in range(min(count, n_trials - len(self._drawn()))):
                trial = self.study.ask()
                trial.set_user_attr(WORKER, self.name)
                trial.set_user_attr(ORIGIN, "tpe")
                self.space.suggest(trial)
            counted = {trial.number for trial in self._drawn()[:n_trials]}
            return self._keep(
                lambda trial: (
                    trial.user_attrs.get(ORIGIN) == "tpe"
                    and trial.user_attrs.get(WORKER) == self.name
                    and trial.state.name == "RUNNING"
                ),
                counted,
            )

    def tell(self, trial: Any, result: Result) -> None:
        """Finish a trial; one that was given to others meanwhile is left as it is."""
        if result.state == UNFINISHED:
            self._drop(trial, "no time was left")
            return
        with signals_delayed(), contextlib.suppress(*_finished_errors()):
            tell_result(self.study, trial, result)

    def running(self) -> set[str]:
        """Identities of the configurations that other processes are evaluating; trials of dead ones fail."""
        signs, now, others = self.study.user_attrs, time.monotonic(), set()
        for trial in self._trials():
            worker = trial.user_attrs.get(WORKER)
            if trial.state.name != "RUNNING" or worker in (None, self.name):
                continue
            sign = signs.get(BEAT + worker)
            if worker not in self._signs or self._signs[worker][0] != sign:
                self._signs[worker] = sign, now
            if now - self._signs[worker][1] < GRACE_S and not _is_gone(worker):
                others.add(identity(trial.params))
                continue
            dropped = self._drop(trial, f"{worker} gave no sign of life")
            if dropped and trial.user_attrs.get(ORIGIN) == "tpe":
                with signals_delayed():
                    self.study.enqueue_trial(dict(trial.params))
        return others

    def _trials(self) -> list[Any]:
        """Trials that count."""
        return [one for one in self.study.get_trials(deepcopy=False) if DROPPED not in one.user_attrs]

    def _drawn(self) -> list[Any]:
        """TPE's trials that are finished or running, in their order."""
        return [one for one in self._trials() if one.user_attrs.get(ORIGIN) == "tpe"]

    def _holders(self) -> dict[str, int]:
        """Number of the first trial of each configuration that is finished or running."""
        first: dict[str, int] = {}
        for trial in self._trials():
            if trial.state.name == "WAITING" or ORIGIN not in trial.user_attrs:
                continue
            now = trial.number >= self._first and "error" in trial.user_attrs
            if trial.state.name != "FAIL" or now:
                first.setdefault(identity(trial.params), trial.number)
        return first

    def _keep(self, is_mine: Any, counted: set[int] | None = None) -> list[tuple[Any, Params]]:
        """Return own trials that hold their configuration, and drop the others.

        A drawn trial (`counted` is given) whose configuration is finished is kept: it gets that result.
        """
        import optuna

        first, kept = self._holders(), []
        trials = self.study.get_trials(deepcopy=False)
        for trial in filter(is_mine, trials):
            number = first.get(identity(trial.params), trial.number)
            of_other = trials[number].user_attrs.get(WORKER) != self.name
            beaten = of_other and (counted is None or trials[number].state.name == "RUNNING")
            if beaten or (counted is not None and trial.number not in counted):
                self._drop(trial, f"trial {number} has the configuration" if beaten else "there are enough")
            else:
                kept.append((optuna.trial.Trial(self.study, trial._trial_id), dict(trial.params)))
        return kept

    def _drop(self, trial: Any, reason: str) -> bool:
        """Set a trial to failed; return whether this process did."""
        import optuna

        with signals_delayed(), contextlib.suppress(*_finished_errors()):
            optuna.trial.Trial(self.study, trial._trial_id).set_user_attr(DROPPED, reason)
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            return True
        return False


def _host() -> str:
    """Name this machine, and the name space of its process numbers (containers have their own)."""
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.uuid4().hex[:8]}"


def _is_gone(worker: str) -> bool:
    """Whether a process of this machine has ended; False for those of other machines."""
    host, number, _ = worker.rsplit(":", 2)
    return host == _host() and not os.path.exists(f"/proc/{number}")


def _finished_errors() -> tuple[type[Exception], ...]:
    """What Optuna raises where a trial is finished already."""
    import optuna

    return optuna.exceptions.UpdateFinishedTrialError, ValueError, RuntimeError
