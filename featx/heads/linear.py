"""Linear heads: logistic regression (softmax and one against the rest), linear SVM, ridge regression, LDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.heads import formulas
from featx.heads.base import Head, Params, Shape, product
from featx.heads.saved import FLOAT, Array, Arrays, Dims, SavedForm

if TYPE_CHECKING:
    from featx.solvers import StreamedFit

LOGISTIC_TOLERANCE = 1e-6
"""scikit-learn stops at an absolute gradient; features of unit length have gradients of a hundredth."""

LINEAR = {"coef": Array(FLOAT, ("n_outputs", "n_features")), "intercept": Array(FLOAT, ("n_outputs",))}
"""Arrays of a linear model."""

MEANS = {
    "means": Array(FLOAT, ("n_classes", "n_features")),
    "priors": Array(FLOAT, ("n_classes",), low=1e-30),
}
"""Arrays of LDA beside those of a linear model."""

# Ranges of parameters are for features of about unit length: factors of ten around the best values on photos,
# hands, spectrograms and characters.


def suggest_c(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the inverse regularisation C."""
    return {"C": trial.suggest_float(prefix + "C", 1e-2, 1e5, log=True)}


def suggest_ridge(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the strength of the penalty."""
    return {"alpha": trial.suggest_float(prefix + "alpha", 1e-3, 1e3, log=True)}


def suggest_lda(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the share of the spherical covariance."""
    return {"shrinkage": trial.suggest_float(prefix + "shrinkage", 1e-3, 0.999)}


def make_logistic(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Softmax (multinomial) logistic regression, L2."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=params["C"], tol=LOGISTIC_TOLERANCE, max_iter=2000)


def make_logistic_ovr(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """One binary logistic regression for each class."""
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(make_logistic(params))


def make_linear_svm(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Linear SVM, squared hinge, one against the rest."""
    from sklearn.svm import LinearSVC

    return LinearSVC(C=params["C"], dual="auto", max_iter=20_000, random_state=random_state)


def make_ridge(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Least squares on -1/+1 targets with an L2 penalty."""
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=params["alpha"])


def make_lda(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Linear discriminant analysis with a shrunk covariance."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=params["shrinkage"])


# Fitted attributes, written as scikit-learn's own `fit` writes them.


def _has_classes(head: Any) -> bool:
    """Whether the classes are a property, as those of RidgeClassifier in scikit-learn 1.6."""
    return isinstance(getattr(type(head), "classes_", None), property)


def _write(head: Any, coef: NDArray[Any], intercept: NDArray[Any], classes: NDArray[Any], n: int) -> None:
    if not _has_classes(head):
        head.classes_ = classes
    head.coef_, head.intercept_, head.n_features_in_ = coef, intercept, n


def _write_logistic(head: Any, fitted: StreamedFit, classes: NDArray[Any]) -> None:
    _write(head, fitted.weights.T.copy(), fitted.intercept, classes, len(fitted.weights))
    head.n_iter_ = np.array([fitted.passes], np.int32)


def _write_linear_svm(head: Any, fitted: StreamedFit, classes: NDArray[Any]) -> None:
    _write_logistic(head, fitted, classes)
    head.n_iter_ = fitted.passes


def _write_logistic_ovr(head: Any, fitted: StreamedFit, classes: NDArray[Any]) -> None:
    from sklearn.base import clone
    from sklearn.preprocessing import LabelBinarizer

    from featx.solvers import StreamedFit

    head.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(classes)
    head.classes_, head.estimators_, head.n_features_in_ = classes, [], len(fitted.weights)
    for weights, intercept in zip(fitted.weights.T, fitted.intercept, strict=True):
        one, binary = (
            clone(head.estimator),
            StreamedFit(weights[:, None], intercept[None], passes=fitted.passes),
        )
        _write_logistic(one, binary, np.array([0, 1]))
        head.estimators_.append(one)


def _write_ridge(head: Any, fitted: StreamedFit, classes: NDArray[Any]) -> None:
    from sklearn.preprocessing import LabelBinarizer

    head._label_binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(classes)
    coef = fitted.weights.T.copy()
    flat = len(coef) == 1 and not _has_classes(head)  # scikit-learn 1.6 has one row for two classes
    _write(head, coef[0] if flat else coef, fitted.intercept, classes, len(fitted.weights))
    head.n_iter_, head.solver_ = None, "cholesky"


def _write_lda(head: Any, fitted: StreamedFit, classes: NDArray[Any]) -> None:
    _write(head, fitted.weights.T.copy(), fitted.intercept, classes, len(fitted.weights))
    head.means_, head.priors_ = fitted.means, fitted.count / fitted.count.sum()


def _saved(make: Any, write: Any, param: str, means: Mapping[str, Array] | None = None) -> SavedForm:
    """Saved form of a head that has one parameter, and that `write` can set from coefficients."""

    def to_arrays(head: Any) -> tuple[Arrays, dict[str, Any]]:
        models = getattr(head, "estimators_", [head])
        arrays: Arrays = {
            "coef": np.vstack([one.coef_ for one in models]),
            "intercept": np.concatenate([np.ravel(one.intercept_) for one in models]),
        }
        if means:
            arrays |= {"means": head.means_, "priors": np.asarray(head.priors_)}
        return arrays, {param: getattr(models[0], param)}

    def from_arrays(arrays: Arrays, params: dict[str, Any], classes: NDArray[Any], dims: Dims) -> Any:
        from featx.solvers import StreamedFit

        learnt: dict[str, Any] = {"means": arrays["means"], "count": arrays["priors"]} if means else {}
        head = make(params)
        write(head, StreamedFit(arrays["coef"].T, arrays["intercept"], **learnt), classes)
        return head

    return SavedForm(LINEAR | dict(means or {}), to_arrays, from_arrays, {param: float})


LOGISTIC = Head(
    "logistic",
    make_logistic,
    suggest_c,
    product(C=[10.0, 1.0, 100.0, 1000.0]),
    solver="softmax",
    cost=1,
    saved=_saved(make_logistic, _write_logistic, "C"),
    formula=formulas.LINEAR,
    write_streamed=_write_logistic,
)
LOGISTIC_OVR = Head(
    "logistic_ovr",
    make_logistic_ovr,
    suggest_c,
    product(C=[30.0, 300.0, 3000.0]),
    solver="logistic_ovr",
    cost=1,
    saved=_saved(make_logistic_ovr, _write_logistic_ovr, "C"),
    formula=formulas.LINEAR,
    write_streamed=_write_logistic_ovr,
    min_classes=3,
    scalings=("standard",),
)
LINEAR_SVM = Head(
    "linear_svm",
    make_linear_svm,
    suggest_c,
    product(C=[1.0, 0.1, 10.0, 100.0]),
    solver="squared_hinge",
    cost=1,
    saved=_saved(make_linear_svm, _write_linear_svm, "C"),
    formula=formulas.LINEAR,
    write_streamed=_write_linear_svm,
)
RIDGE = Head(
    "ridge",
    make_ridge,
    suggest_ridge,
    product(alpha=[1.0, 0.1, 10.0]),
    solver="ridge",
    cost=1,
    saved=_saved(make_ridge, _write_ridge, "alpha"),
    formula=formulas.LINEAR,
    write_streamed=_write_ridge,
    quick=True,
    draws_curve=True,
)
LDA = Head(
    "lda",
    make_lda,
    suggest_lda,
    product(shrinkage=[0.3, 0.1, 0.7, 0.03]),
    solver="lda",
    cost=1,
    saved=_saved(make_lda, _write_lda, "shrinkage", MEANS),
    formula=formulas.LINEAR,
    write_streamed=_write_lda,
    takes_weights=False,
    scalings=("standard", "center_l2"),
    quick=True,
    draws_curve=True,
)
