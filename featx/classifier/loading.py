"""`load`: a saved model as a scikit-learn classifier, or as a `Predictor` that starts in a moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, overload

from featx.classifier.predictor import Predictor
from featx.exceptions import FeatxError, ModelFileError

if TYPE_CHECKING:
    from featx.classifier.estimator import ImageClassifier


@overload
def load(
    path: str | os.PathLike[str],
    *,
    runtime: None = None,
    store: Any = "memory",
    checkpoint: str | os.PathLike[str] | None = None,
    allow_download: bool = False,
) -> ImageClassifier: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    runtime: str,
    checkpoint: str | os.PathLike[str] | None = None,
    allow_download: bool = False,
) -> Predictor: ...


def load(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    store: Any = "memory",
    checkpoint: str | os.PathLike[str] | None = None,
    allow_download: bool = False,
) -> ImageClassifier | Predictor:
    """Read a classifier that `ImageClassifier.save` wrote.

    This needs no training data, cache or internet, and never runs code from the file. The digests in the file
    show that it is not damaged, but not who made it: load only files from people you trust.

    Parameters
    ----------
    path : path-like
        A ``.featx`` file.
    runtime : str, optional
        With a runtime (``"openvino"``, ``"torch"``, ``"auto"``, ...) the result is a `Predictor`, which only
        predicts, and imports neither torch nor scikit-learn if the cache or the file has a converted network.
    store : path, FeatureStore or "memory", default "memory"
        Where features of predicted images are kept; by default only in memory. A `Predictor` keeps no
        features, but stores a network that it must convert in the default cache folder.
    checkpoint : path, optional
        Weights of the backbone, where they cannot be found by its name.
    allow_download : bool, default False
        Whether weights that are not on this machine are downloaded by the name in the file.

    Returns
    -------
    ImageClassifier or Predictor

    Raises
    ------
    ModelFileError
        If the file is damaged, hostile, of a newer format, or its head now gives other outputs.
    """
    if runtime is not None:
        machine = {"store": store, "checkpoint": checkpoint, "allow_download": allow_download}
        return Predictor(path, runtime=runtime, **machine)
    from featx.classifier.estimator import ImageClassifier
    from featx.classifier.fitting import Fitted
    from featx.classifier.packing import load_model
    from featx.classifier.settings import restore_params

    clf = ImageClassifier()
    loaded = load_model(
        path,
        checkpoint=checkpoint,
        allow_download=allow_download,
        restore=lambda params: restore_params(clf, params),
    )
    clf.set_params(store=store, extractor__checkpoint=checkpoint, extractor__allow_download=allow_download)
    clf._fitted = Fitted(loaded.model, loaded.record, expected=loaded.expected)
    try:
        clf._deciding()  # the decision of a forged file may not fit its classes
    except FeatxError as error:
        raise ModelFileError(f"{os.fspath(path)}: {error}") from None
    return clf
