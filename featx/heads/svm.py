"""SVM with an RBF kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads import formulas
from featx.heads.base import Head, Params, Shape, product
from featx.heads.saved import Array, Arrays, Dims, SavedForm, require


def suggest(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the inverse regularisation C and the kernel's gamma."""
    return {
        "C": trial.suggest_float(prefix + "C", 1e-1, 1e4, log=True),
        "gamma": trial.suggest_float(prefix + "gamma", 1e-2, 1e2, log=True),
    }


def make(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """RBF-kernel SVM; it predicts the argmax of its decision scores (`break_ties`)."""
    from sklearn.svm import SVC

    return SVC(C=params["C"], gamma=params["gamma"], break_ties=True, cache_size=500)


def to_arrays(svc: Any) -> tuple[Arrays, dict[str, Any]]:
    """Return the support vectors, their coefficients and their counts by class."""
    arrays = {
        "vectors": svc.support_vectors_,
        "support": svc.support_,
        "counts": svc._n_support,
        "dual_coef": svc._dual_coef_,
        "intercept": svc._intercept_,
    }
    return arrays, {"C": svc.C, "gamma": svc.gamma, "n_rows": int(svc.shape_fit_[0])}


def check(arrays: Arrays, params: dict[str, Any], dims: Dims) -> None:
    """Check what libsvm uses without a check of its own: it reads the support vectors by their counts."""
    n_classes, n_vectors, n_rows = dims["n_classes"], dims["n_vectors"], params["n_rows"]
    dual, counts, support = arrays["dual_coef"], arrays["counts"], arrays["support"]
    require(params["gamma"] > 0, "an SVM's gamma is not positive")
    require(int(counts.sum(dtype=np.int64)) == n_vectors, "an SVM's counts do not fit its support vectors")
    require(len(dual) == n_classes - 1, "an SVM's coefficients do not fit its classes")
    require(len(arrays["intercept"]) == n_classes * (n_classes - 1) // 2, "an SVM's intercepts do not fit")
    require(int(support.max()) < n_rows < 2**31, "an SVM's support vectors are of rows that do not exist")


def from_arrays(arrays: Arrays, params: dict[str, Any], classes: NDArray[Any], dims: Dims) -> Any:
    """Build the SVM."""
    n_rows, dual = params["n_rows"], arrays["dual_coef"]
    svc = make(params)
    binary = len(classes) == 2  # scikit-learn turns the signs, so that positive means the second class
    vars(svc).update(
        classes_=classes,
        class_weight_=np.ones(len(classes)),
        n_features_in_=dims["n_features"],
        shape_fit_=(n_rows, dims["n_features"]),
        support_vectors_=arrays["vectors"],
        support_=arrays["support"],
        _n_support=arrays["counts"],
        _dual_coef_=dual,
        dual_coef_=-dual if binary else dual,
        _intercept_=arrays["intercept"],
        intercept_=-arrays["intercept"] if binary else arrays["intercept"],
        _probA=np.empty(0),
        _probB=np.empty(0),
        _effective_probability=False,
        _gamma=params["gamma"],
        _sparse=False,
        fit_status_=0,
    )
    return svc


RBF_SVM = Head(
    "rbf_svm",
    make,
    suggest,
    product(gamma=[1.0, 0.3, 3.0], C=[10.0, 1.0, 100.0]),
    solver="rbf_svm",
    cost=3,
    saved=SavedForm(
        {
            "vectors": Array(("float64",), ("n_vectors", "n_features")),
            "support": Array(("int32",), ("n_vectors",), low=0),
            "counts": Array(("int32",), ("n_classes",), low=0),
            "dual_coef": Array(("float64",), ("n_others", "n_vectors")),
            "intercept": Array(("float64",), ("n_pairs",)),
        },
        to_arrays,
        from_arrays,
        {"C": float, "gamma": float, "n_rows": int},
        check,
    ),
    formula=formulas.SVM,
    scalings=("standard", "l2", "center_l2"),
)
