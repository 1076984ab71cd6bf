"""The classifiers to try, one file each or for a close family, and one line each in `HEADS`.

A head is built as a plain scikit-learn pipeline. `featx.solvers` fits many of them at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featx.exceptions import UsageError
from featx.heads.base import Head, Params
from featx.heads.linear import LDA, LINEAR_SVM, LOGISTIC, LOGISTIC_OVR, RIDGE
from featx.heads.neighbours import KNN, NEAREST_MEAN
from featx.heads.scaling import LEARNT_SCALINGS, SCALINGS, make_scaler
from featx.heads.scores import decision_scores, vote_scores
from featx.heads.svm import RBF_SVM
from featx.heads.trees import BOOSTING, FOREST, TREE

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

HEADS: dict[str, Head] = {
    "logistic": LOGISTIC,
    "logistic_ovr": LOGISTIC_OVR,
    "linear_svm": LINEAR_SVM,
    "rbf_svm": RBF_SVM,
    "knn": KNN,
    "ridge": RIDGE,
    "lda": LDA,
    "nearest_mean": NEAREST_MEAN,
    "tree": TREE,
    "forest": FOREST,
    "boosting": BOOSTING,
}

DEFAULT_HEADS = (
    "logistic",
    "logistic_ovr",
    "linear_svm",
    "rbf_svm",
    "knn",
    "ridge",
    "lda",
    "nearest_mean",
)
"""The heads that are quick to fit. Trees are tried only if they are requested."""


OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "svc": ("linear_svm", "rbf_svm"),
    "logreg": ("logistic",),
    "lr": ("logistic",),
    "rf": ("forest",),
    "gbm": ("boosting",),
    "xgboost": ("boosting",),
}
"""What other tools call them, for messages."""


def check_heads(names: Any) -> None:
    """Refuse names of heads that are not in `HEADS`; suggest those that are meant.

    Raises
    ------
    UsageError
        With the names there are.
    """
    if names is None:
        return
    if isinstance(names, str):
        raise UsageError(f"heads {names!r}: give a list of names, [{names!r}].")
    unknown = next((name for name in names if name not in HEADS), None)
    if unknown is None and len(names):
        return
    word = str(unknown).lower()
    close = [name for name in HEADS if word and (word in name or name in word)]
    close = list(OTHER_NAMES.get(word, close)) or difflib.get_close_matches(word, HEADS, n=1)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    what = "no head is named" if unknown is None else f"head {unknown!r} is not known"
    raise UsageError(f"heads {list(names)!r}: {what}; choose from {', '.join(HEADS)}.{hint}")


def make_pipeline(
    head: str,
    params: Params,
    scaling: str,
    widths: Sequence[int],
    *,
    n_rows: int,
    columns: Sequence[int] | None = None,
    random_state: int | None = None,
) -> Pipeline:
    """Build the unfitted pipeline of a configuration: each block's scaler, then the head.

    Parameters
    ----------
    head : str
        A key of `HEADS`.
    params : mapping
        The head's parameters, without prefix.
    scaling : str
        One of `SCALINGS`.
    widths : sequence of int
        Columns of each block, in the order in which they stand side by side.
    n_rows : int
        Rows it will be fitted on.
    columns : sequence of int, optional
        The columns to keep (counted over all blocks), if not all; they are scaled as one block.
    random_state : int, optional
        Seed of heads that draw random numbers.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Steps ``"scale"`` and ``"head"``.
    """
    from sklearn.pipeline import Pipeline

    width = sum(widths) if columns is None else len(columns)
    classifier = HEADS[head].make(params, random_state, (n_rows, width))
    return Pipeline([("scale", make_scaler(scaling, widths, columns=columns)), ("head", classifier)])


__all__ = [
    "DEFAULT_HEADS", "HEADS", "LEARNT_SCALINGS", "SCALINGS", "Head", "check_heads", "decision_scores",
    "make_pipeline", "make_scaler", "vote_scores",
]  # fmt: skip
