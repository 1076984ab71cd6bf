"""Tune fine-tuning by Optuna: layers, learning rate, regularisation; trials are pruned by epoch.

All trials use the same images for training and validation, and not those of the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from featx.exceptions import UsageError
from featx.finetune.phases import BATCH_NORMS, Phase
from featx.finetune.verdict import Parts

if TYPE_CHECKING:
    import optuna

    from featx.finetune.job import Job

LR_RANGE = (3e-5, 3e-3)
WEIGHT_DECAY_RANGE = (1e-4, 0.2)
LAYER_DECAY_RANGE = (0.6, 1.0)
DROPOUT_MAX = 0.5
STARTUP_TRIALS = 3
"""Complete trials before the first is pruned."""


def tune(
    open_job: Callable[[int | str], Job],
    unfreezes: Sequence[int | str],
    parts: Parts,
    phases: tuple[Phase, ...],
    *,
    n_trials: int,
    timeout: float | None,
    seed: int,
    tell: Callable[[str], None] = lambda message: None,
) -> tuple[optuna.Study, int | str, tuple[Phase, ...]]:
    """Tune the last phase and the cut.

    Parameters
    ----------
    open_job : callable
        Returns the job of a value of `unfreeze`.
    unfreezes : sequence of int or str
        Values to choose from. The first one, with the phases as given, is the first trial.
    parts : Parts
        Images for training and validation.
    phases : tuple of Phase
        The last one is tuned.
    n_trials, timeout, seed
        As in Optuna.
    tell : callable
        Called with a sentence about each trial.

    Returns
    -------
    study : optuna.Study
        The value of a trial is its best validation accuracy (log loss breaks ties).
    unfreeze : int or str
    phases : tuple of Phase
    """
    import optuna

    if not len(parts.validation):
        raise UsageError("tuning needs validation images; set validation to a share above 0.")

    def objective(trial: optuna.Trial) -> float:
        which = unfreezes[trial.suggest_int("unfreeze", 0, len(unfreezes) - 1)]
        job, step = open_job(which), 0

        def listen(record: dict[str, Any]) -> None:
            nonlocal step
            step += 1
            trial.report(_value(record), step)
            if trial.should_prune():
                raise optuna.TrialPruned

        trained = job.train(
            parts.train, parts.validation, _suggested(trial, phases), on_epoch=listen, resumable=False
        )
        accuracy, negative_loss = _best(trained.run.best_score, job.monitor)
        trial.set_user_attr("best_epochs", trained.run.best_epochs)
        return accuracy + 1e-4 * negative_loss

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no output from a library call
    try:
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
        )
        study.enqueue_trial({"unfreeze": 0, **_first(phases[-1])})
        study.optimize(
            objective,
            n_trials=n_trials,
            timeout=timeout,
            callbacks=[lambda study, trial: tell(_words(study, trial, n_trials))],
        )
    finally:
        optuna.logging.set_verbosity(before)
    best = study.best_trial
    return study, unfreezes[best.params["unfreeze"]], _suggested(best, phases)


def _words(study: optuna.Study, trial: optuna.trial.FrozenTrial, n_trials: int) -> str:
    """Describe a trial; the contribution of the log loss to the value is too small to show."""
    if trial.value is None:
        found = "failed"
    elif trial.state.name == "PRUNED":
        found = f"pruned after {len(trial.intermediate_values)} epochs"
    else:
        found = f"{trial.value:.1%} of the validation images"
    return f"fine-tuning trial {trial.number + 1} of {n_trials}: {found}; best {study.best_value:.1%}"


def _suggested(trial: Any, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """Return the phases with the suggested last one (a frozen trial suggests its own parameters)."""
    last = phases[-1].replace(
        lr=trial.suggest_float("lr", *LR_RANGE, log=True),
        weight_decay=trial.suggest_float("weight_decay", *WEIGHT_DECAY_RANGE, log=True),
        layer_decay=trial.suggest_float("layer_decay", *LAYER_DECAY_RANGE),
        dropout=trial.suggest_float("dropout", 0.0, DROPOUT_MAX),
        batch_norm=trial.suggest_categorical("batch_norm", BATCH_NORMS),
    )
    return (*phases[:-1], last)


def _first(last: Phase) -> dict[str, Any]:
    """Return the parameters of the given phase, limited to the search ranges."""
    return {
        "lr": _within(last.lr, LR_RANGE),
        "weight_decay": _within(last.weight_decay, WEIGHT_DECAY_RANGE),
        "layer_decay": _within(last.layer_decay, LAYER_DECAY_RANGE),
        "dropout": min(last.dropout, DROPOUT_MAX),
        "batch_norm": last.batch_norm,
    }


def _value(record: dict[str, Any]) -> float:
    return float(record["val_accuracy"]) - 1e-4 * float(record["val_loss"])


def _best(score: tuple[float, float] | None, monitor: str) -> tuple[float, float]:
    """Return accuracy and negative loss of a best score."""
    assert score is not None
    return score if monitor == "accuracy" else (score[1], score[0])


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
