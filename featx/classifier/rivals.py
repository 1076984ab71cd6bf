"""Whether a grown training part would choose otherwise: a paired test of the old winner and two rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.classifier.record import FitRecord
from featx.evaluation import Comparison, class_indices, compare
from featx.exceptions import SearchError
from featx.features import FeatureBlocks
from featx.representation import SIDE_BY_SIDE, is_picked
from featx.search.space import Params
from featx.selection.tuning import TunedHead, tune_again

N_RIVALS = 2
"""Rivals that are tried: the best of other heads or representations in the search before."""


def rivals_of(
    tuned: TunedHead, record: FitRecord, here: Sequence[str]
) -> list[tuple[Params, tuple[str, ...]]]:
    """Return rivals of the selected configuration, with the blocks that each needs.

    Parameters
    ----------
    tuned : TunedHead
        The selected configuration. Its representation is that of trials that name none.
    record : FitRecord
        Its trials are those of the last search, best first.
    here : sequence of str
        Blocks whose features are there. Rivals that need others are left out, and so are picked features.
    """
    usual = str(tuned.representation)
    own = (tuned.params["head"], usual)
    found: dict[tuple[str, str], tuple[Params, tuple[str, ...]]] = {}
    for trial in record.trials:
        text = str(trial.params.get("representation", usual))
        key, blocks = (trial.params["head"], text), tuple(text.split(SIDE_BY_SIDE))
        if key != own and key not in found and not is_picked(text) and set(blocks) <= set(here):
            found[key] = ({**trial.params, "representation": text}, blocks)
    return list(found.values())[:N_RIVALS]


def better_rival(
    tuned: TunedHead,
    record: FitRecord,
    blocks: FeatureBlocks,
    y: NDArray[Any],
    *,
    groups: NDArray[Any],
    settings: Mapping[str, Any],
) -> tuple[str, bool]:
    """Cross-validate the rivals on the rows of the winner; return what was found in words, and its verdict.

    Parameters
    ----------
    tuned : TunedHead
        The old winner, cross-validated on these rows.
    record : FitRecord
        The record of the model before.
    blocks : FeatureBlocks
        Features of the training part.
    y : array of shape (n,)
        Labels.
    groups : array of shape (n,)
        Rows of a group stay in one fold.
    settings : mapping
        Parameters of the search.

    Returns
    -------
    str
        A sentence; empty if there is no rival.
    bool
        Whether a rival is better beyond chance, so that the search should be repeated.
    """
    codes = class_indices(y, tuned.classes.tolist())
    tried: list[str] = []
    for params, names in rivals_of(tuned, record, list(blocks)):
        try:
            rival = tune_again(blocks.only(names), y, groups=groups, settings=settings, params=params)
        except SearchError:  # it cannot be fitted on these rows
            continue
        scored = np.isfinite(tuned.oof_proba).all(axis=1) & np.isfinite(rival.oof_proba).all(axis=1)
        found = compare(
            codes[scored], rival.oof_proba[scored], tuned.oof_proba[scored], groups=groups[scored]
        )
        name = f"{params['head']} on {params['representation']}"
        if found.verdict == "a":
            return (
                f"{name} is now better than the old choice ({_points(found)}); the search is repeated.",
                True,
            )
        tried.append(f"{name} ({_points(found)})")
    if not tried:
        return "", False
    return f"The old choice stays; no rival is better beyond chance: {', '.join(tried)}.", False


def _points(found: Comparison) -> str:
    return f"{100 * found.difference:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
