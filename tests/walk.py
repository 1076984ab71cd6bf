"""Follow a value through the calls of a function, and count the modules that it passes.

``python tests/walk.py`` prints the walks of a small `ImageClassifier.fit` and `HeadSearchCV.fit`. It follows
the calls of that method and those of the functions that it calls directly; what these call in turn is another
walk. A call is on the walk if one of its arguments is the value, or comes from it: what a call on the walk
returned, or a field of such an object. Making a value (``__init__``) is no stop.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Walk:
    """The modules that a value passed, in order; no module stands twice in a row."""

    modules: tuple[str, ...]

    @property
    def returns(self) -> int:
        """How often the value came back to a module that it had left."""
        return len(self.modules) - len(set(self.modules))


DEPTH = 2
"""Calls of the method, and calls of the functions that it calls."""


def follow(function: Callable[..., Any], value: Any, *arguments: Any) -> Walk:
    """Call ``function(value, *arguments)`` and follow the value.

    Parameters
    ----------
    function : callable
        What is called.
    value : object
        What is followed.
    *arguments
        Other arguments.
    """
    known: dict[int, Any] = {}
    depths: dict[FrameType, int] = {}
    passed: list[str] = []

    def remember(thing: Any) -> None:
        """The object, and its parts: they come from the value, too."""
        if thing is None or isinstance(thing, bool | int | float | str | bytes | type):
            return
        if id(thing) in known:
            return
        known[id(thing)] = thing
        if isinstance(thing, tuple):
            for item in thing:
                remember(item)
        elif dataclasses.is_dataclass(thing):
            for field in dataclasses.fields(thing):
                remember(getattr(thing, field.name))

    def watch(frame: FrameType, event: str, result: Any) -> None:
        if event == "call":
            module = frame.f_globals.get("__name__", "")
            if not module.startswith("featx.") or frame.f_code.co_name.startswith(("<", "__")):
                return
            depth = depths.get(frame.f_back, DEPTH) + 1 if passed else 0
            if depth > DEPTH:
                return
            names = frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
            if not any(id(frame.f_locals.get(name)) in known for name in names if name != "self"):
                return
            if not passed or passed[-1] != module:
                passed.append(module)
            depths[frame] = depth
        elif event == "return" and frame in depths:
            remember(result)

    remember(value)
    sys.setprofile(watch)
    try:
        function(value, *arguments)
    finally:
        sys.setprofile(None)
    return Walk(tuple(passed))


def of_image_classifier() -> Walk:
    """The walk of the images through `ImageClassifier.fit`."""
    import numpy as np

    from featx import FeatureExtractor, ImageClassifier

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) // (1 + k % 2) for k in range(24)]
    clf = ImageClassifier(
        "test_resnet", heads=["ridge", "lda"], n_trials=2, store="memory", random_state=0,
        extractor=FeatureExtractor(pretrained=False, runtime="torch"),
    )  # fmt: skip
    return follow(clf.fit, images, ["a", "b"] * 12)


def of_head_search() -> Walk:
    """The walk of the features through `HeadSearchCV.fit`."""
    from sklearn.datasets import load_iris

    from featx import HeadSearchCV

    X, y = load_iris(return_X_y=True)
    return follow(HeadSearchCV(n_trials=5, random_state=0, n_jobs=1).fit, X, y)


if __name__ == "__main__":
    for name, walk in (
        ("ImageClassifier.fit", of_image_classifier()),
        ("HeadSearchCV.fit", of_head_search()),
    ):
        print(f"{name}: {len(walk.modules)} modules, {walk.returns} returns")
        for module in walk.modules:
            print(f"  {module}")
