"""Make an ImageClassifier of parameters of its own and of its nested estimators, by their plain names."""

from __future__ import annotations

from typing import Any

from featx import ImageClassifier


def image_classifier(backbone: Any = None, **params: Any) -> ImageClassifier:
    """``image_classifier(pretrained=False)`` sets ``extractor__pretrained``; `tuning` is of the tuner."""
    clf = ImageClassifier() if backbone is None else ImageClassifier(backbone)
    known = clf.get_params(deep=True)
    if views := params.pop("views", 0):
        params |= {"view": range(views + 1), "view_policy": params.get("view_policy", "light")}
    clf.set_params(**{f"fine_tuner__{name}": value for name, value in params.pop("tuning", {}).items()})
    for name, value in params.items():
        places = [name, f"extractor__{name}", f"search__{name}", f"fine_tuner__{name}"]
        clf.set_params(**{next(place for place in places if place in known): value})
    return clf
