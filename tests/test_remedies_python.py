"""What a message advises about parameters and objects in Python is done here, and it helps."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from classifiers import image_classifier
from sklearn.datasets import load_digits
from tinted import pictures

from featx import FeatureBlocks, FeatureExtractor, FineTuner, HeadSearchCV, check
from featx.backbones.runtimes import resolve_runtime
from featx.curves import few_shot, learning_curve
from featx.evaluation import check_decide
from featx.exceptions import FeatxError
from featx.finetune import Phase
from featx.images import DecodePolicy, ManifestOptions, load_images

pytestmark = [
    pytest.mark.filterwarnings("ignore::featx.exceptions.FeatxWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]

X, Y = load_digits(return_X_y=True)
X, Y = X[:120] / 16, Y[:120]
PHOTOS, LABELS = pictures(20)
QUICK = (Phase(trainable="head", epochs=0), Phase(epochs=1, batch_size=16, lr=1e-3, warmup=0))


def search(X: Any = X, y: Any = Y, **params: Any) -> Any:
    fixed = {"heads": ("ridge",), "n_trials": 1, "cv": 2, "random_state": 0, "n_jobs": 1}
    given = {name: params.pop(name) for name in ("groups", "view", "sample_weight") if name in params}
    return HeadSearchCV(**{**fixed, **params}).fit(X, y, **given)


def extract(images: Any = PHOTOS[:2], **params: Any) -> Any:
    fixed = {"pretrained": False, "store": "memory", "runtime": "torch", "input_size": 64}
    return FeatureExtractor(**{"backbone": "test_resnet", **fixed, **params}).fit_transform(images)


def classify(X: Any = PHOTOS, y: Any = LABELS, **params: Any) -> Any:
    fixed = {"pretrained": False, "runtime": "torch", "input_size": 64, "cut": None, "pool": "avg"}
    fixed |= {"resize": "crop", "heads": ["ridge"], "n_trials": 1, "cv": 2}
    return image_classifier(**{"backbone": "test_resnet", **fixed, **params}).fit(X, y)


def tune(X: Any = PHOTOS, y: Any = LABELS, **params: Any) -> Any:
    extractor = FeatureExtractor(
        "test_resnet", pretrained=False, store="memory", runtime="torch", input_size=64, precision="fp32"
    )
    fixed = {"unfreeze": 1, "phases": QUICK, "verdict": 0, "validation": 0, "random_state": 0}
    return FineTuner(extractor, **{**fixed, **params}).fit(X, y)


def tune_small(drop_path: float) -> Any:
    """`blocks.4` is below the last convolution only."""
    extractor = FeatureExtractor(
        "test_efficientnet", pretrained=False, store="memory", runtime="torch", input_size=64
    )
    phases = (Phase(epochs=1, batch_size=16, drop_path=drop_path),)
    tuner = FineTuner(extractor, unfreeze="blocks.4", phases=phases, verdict=0, validation=0)
    return tuner.fit(PHOTOS, LABELS)


TWO_BLOCKS = FeatureBlocks({"a": X, "b": X}, len(X))

call = functools.partial
BATCH = np.stack(PHOTOS[:3])

CHOICES: list[tuple[str, Callable[[Any], Any]]] = [
    ("scoring 'no' is not known; choose one of", lambda v: search(scoring=v)),
    (
        "class_weight 'no' is not known; choose None, 'balanced', 'sqrt', 'search'",
        lambda v: search(class_weight=v),
    ),
    ("grid 'no' is not known; choose auto, coarse, none", lambda v: search(grid=v)),
    ("scalings ['no'] are not known; choose from", lambda v: search(scalings=[v])),
    ("head 'no' is not known; choose from", lambda v: search(heads=[v])),
    ("head 'no' is not known; choose from", lambda v: learning_curve(X, Y, head=v)),
    ("head 'no' is not known; choose from", lambda v: few_shot(X, Y, head=v, shots=[1], n_draws=2)),
    ("runtime 'no' is not known; choose one of auto", lambda v: extract(runtime=v)),
    ("device 'no' is not known; choose one of auto", lambda v: extract(device=v)),
    ("precision 'no' is not known; choose one of auto", lambda v: extract(precision=v)),
    ("decode 'no' is not known; choose one of", lambda v: extract(decode=v)),
    ("resize 'no' is not known; choose one of", lambda v: extract(resize=v)),
    ("cut 'no' is not in test_resnet; choose one of", lambda v: extract(cut=v)),
    ("pixel range 'no' is not known; choose one of", lambda v: extract(pixel_range=v)),
    ("decide 'no' is not known; choose", lambda v: check_decide(v)),
    ("fine_tune 'no' is not known; choose 'auto'", lambda v: classify(fine_tune=v)),
    ("preset 'no' is not known; choose from", lambda v: image_classifier(preset=v).fit(PHOTOS, LABELS)),
    ("head 'no' is not known; choose one of", lambda v: tune(head=v)),
    ("class_weight 'no' is not known; choose balanced, sqrt", lambda v: tune(class_weight=v)),
    ("decoder 'no' is not known; choose auto or one of", lambda v: extract(decoder=v)),
]


@pytest.mark.parametrize(("fragment", "use"), CHOICES, ids=[text for text, _ in CHOICES])
def test_a_name_of_the_list_is_taken(fragment: str, use: Callable[[Any], Any]) -> None:
    with pytest.raises(FeatxError) as refused:
        use("no")
    message = str(refused.value)
    assert fragment in message
    listed = re.split(r"choose (?:one of|from|auto or one of)? ?", message, maxsplit=1)[1]
    taken = re.findall(r"[A-Za-z_][\w.]*", re.split(r", or |, a scikit|\. ", listed + " ")[0])
    usable = [word for word in taken if word not in ("fp16", "bf16", "cuda", "mps", "xpu", "or", "one", "of")]
    assert usable, message
    use(usable[0] if usable[0] != "None" else None)


SHAPES: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
    ("array.transpose(0, 2, 3, 1)", call(extract, BATCH.transpose(0, 3, 1, 2)), call(extract, BATCH)),
    (
        "channels come last: array.transpose(1, 2, 0)",
        call(extract, [PHOTOS[0].transpose(2, 0, 1)]),
        call(extract, [PHOTOS[0]]),
    ),
    (
        "e.g. (array * 255).round().astype('uint8')",
        call(extract, [PHOTOS[0] / 255]),
        call(extract, [((PHOTOS[0] / 255) * 255).round().astype("uint8")]),
    ),
    ("Make a list of it: list(...)", call(extract, iter(())), call(extract, list(iter(PHOTOS[:2])))),
    ("give one for each image", call(classify, PHOTOS, LABELS[:-1]), call(classify, PHOTOS, LABELS)),
    ("give one for each image", call(classify, PHOTOS, "red"), call(classify, PHOTOS, LABELS)),
    (
        "bin them or pass class names",
        call(search, X, X[:, 2] + 0.5),
        call(search, X, np.where(X[:, 2] > 0.3, "much", "little")),
    ),
    (
        "pass a single class for each image",
        call(classify, PHOTOS, np.eye(2)[(LABELS == "red").astype(int)]),
        call(classify, PHOTOS, np.eye(2)[(LABELS == "red").astype(int)].argmax(axis=1)),
    ),
    (
        "give all of them one type",
        call(search, X, [1, "a"] * 60),
        call(search, X, list(map(str, [1, "a"] * 60))),
    ),
    (
        "pass them as strings",
        call(search, X, [2**70, 1] * 60),
        call(search, X, list(map(str, [2**70, 1] * 60))),
    ),
    (
        "label these images or leave them out",
        call(search, X, [None, *map(str, Y[1:])]),
        call(search, X[1:], list(map(str, Y[1:]))),
    ),
    ("add images of another class", call(search, X, ["a"] * 120), call(search, X, ["a", "b"] * 60)),
    (
        "add some, or leave these classes out",
        call(search, X, ["alone", *["a", "b"] * 59, "a"]),
        call(search, X[1:], [*["a", "b"] * 59, "a"]),
    ),
    ("give one for each row", call(search, groups=np.arange(119)), call(search, groups=np.arange(120))),
    (
        "pass the image of each row as its group",
        call(search, np.repeat(X, 2, axis=0), np.repeat(Y, 2), view=np.tile([0, 1], 120)),
        call(
            search,
            np.repeat(X, 2, axis=0),
            np.repeat(Y, 2),
            view=np.tile([0, 1], 120),
            groups=np.repeat(np.arange(120), 2),
        ),
    ),
    (
        "give a positive number of seconds, 'auto', or None",
        call(search, budget=-1),
        call(search, budget=None),
    ),
    (
        "pass 'auto' or tuples of block names",
        call(search, TWO_BLOCKS, representations="b"),
        call(search, TWO_BLOCKS, representations=[("a", "b")]),
    ),
    (
        "choose blocks from a, b",
        call(search, TWO_BLOCKS, representations=[("c",)]),
        call(search, TWO_BLOCKS, representations=[("a",)]),
    ),
    (
        "grid is empty; pass configurations as in best_params_, or 'none'",
        call(search, grid=[]),
        call(search, grid="none"),
    ),
    (
        "n_jobs is 0; pass a positive number of threads, or -1",
        call(search, n_jobs=0),
        call(search, n_jobs=-1),
    ),
    (
        "made with refit=False: there is no fitted head to predict with",
        lambda: search(refit=False).predict(X),
        lambda: search(refit=True).predict(X),
    ),
    ("give one for each image", call(learning_curve, X, Y[:-1]), call(learning_curve, X, Y)),
    (
        "Label more of it",
        call(few_shot, X[:6], [0, 1] * 3, shots=[4]),
        call(few_shot, X, Y, shots=[4], n_draws=2),
    ),
    (
        "give one or three numbers from 1, such as 3,2,1",
        call(extract, bands="0"),
        call(extract, bands="3,2,1"),
    ),
    (
        "values of black and white, such as 0,4095",
        call(extract, pixel_range="9,1"),
        call(extract, pixel_range="0,4095"),
    ),
    ("give three numbers, 0 to 255", call(extract, background=(1, 2)), call(extract, background=(1, 2, 3))),
    ("give at least 1 and 0", call(extract, max_pixels=0), call(extract, max_pixels=10**6)),
    ("shrink the image or raise the limit", call(extract, max_pixels=100), call(extract, max_pixels=10**6)),
    ("choose a height and width of at most", call(extract, input_size=10**6), call(extract, input_size=64)),
    ("device='auto' takes what is there", call(extract, device="cuda"), call(extract, device="auto")),
    (
        "runtime='auto' takes what is there",
        call(resolve_runtime, "openvino", "cuda"),
        call(resolve_runtime, "auto", "cuda"),
    ),
    (
        "or use random ones (pretrained=False)",
        call(extract, backbone="ghostnet_050", pretrained=True, input_size=None),
        call(extract, backbone="ghostnet_050", input_size=None),
    ),
    (
        "use checkpoint=",
        call(extract, backbone="./weights"),
        call(extract),
    ),
    (
        "name=number pairs of",
        call(extract, view=range(2), view_policy="no"),
        call(extract, view=range(2), view_policy="flip=0.5,rotate=10"),
    ),
    (
        "give 0 alone, or range(k + 1) for k augmented views and a policy such as 'light'",
        call(classify, view=[0, 2]),
        call(classify, view=range(2), view_policy="light"),
    ),
    (
        "Pass random_state to ImageClassifier",
        call(classify, search=HeadSearchCV(random_state=3)),
        call(classify, random_state=3),
    ),
    ("write 90s, 10m or 2h", call(classify, budget=0), call(classify, budget=60)),
    (
        "allow no trials; pass images, and neither n_trials nor validation=0",
        call(tune, recipes="auto", validation=0),
        None,
    ),
    ("there are none; use drop_path=0", call(tune_small, drop_path=0.1), call(tune_small, drop_path=0)),
    (
        "use a smaller lr, a longer warmup, or clip_norm",
        call(tune, phases=(Phase(epochs=2, lr=1e12, warmup=0, optimizer="sgd"),)),
        call(tune, phases=(Phase(epochs=1, lr=1e-3, warmup=0),)),
    ),
    ("it is a number of stages from 1, a tap or 'all'", call(tune, unfreeze=0), call(tune, unfreeze=1)),
    (
        "only the head lies above 'last'; unfreeze a stage or a tap",
        call(tune, unfreeze="last"),
        call(tune, unfreeze="layer3"),
    ),
    (
        "unfreeze='all' streams images",
        call(tune, phases=(Phase(epochs=1, mixup=0.2),)),
        call(tune, phases=(Phase(epochs=1, mixup=0.2),), unfreeze="all"),
    ),
    (
        "recipes 'some' are not known; choose 'auto', a mapping or None",
        call(tune, recipes="some"),
        call(tune, recipes=None),
    ),
    (
        "extract with cut='layer3', pool='none', or change unfreeze",
        call(tune, np.zeros((20, 3, 4, 4), np.float32)),
        call(tune, np.random.default_rng(0).normal(size=(20, 192, 4, 4)).astype(np.float32)),
    ),
    ("give one for each image", call(check, PHOTOS, LABELS[:-1]), None),
    (
        "give one character, or one of comma",
        lambda: ManifestOptions(sep="::"),
        lambda: ManifestOptions(sep="semicolon"),
    ),
    ("choose one of exact, fast", lambda: DecodePolicy(decode="no"), lambda: DecodePolicy(decode="fast")),
    ("rename one", call(extract, pd.DataFrame([["a", "b"]], columns=["path", "path"])), None),
    ("an empty list of images; give at least one", call(load_images, []), call(load_images, PHOTOS[:1])),
    (
        "rename the column of images, or select it: frame['...']",
        call(extract, pd.DataFrame({"x": ["a"], "y": ["b"]})),
        None,
    ),
]


@pytest.mark.parametrize(
    ("fragment", "wrong", "right"), SHAPES, ids=[f"{k}-{row[0]}" for k, row in enumerate(SHAPES)]
)
def test_what_is_advised_is_accepted(
    fragment: str, wrong: Callable[[], Any], right: Callable[[], Any] | None
) -> None:
    with pytest.raises(FeatxError) as refused:
        wrong()
    assert fragment in str(refused.value)
    if right is not None:
        right()
