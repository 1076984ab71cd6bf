"""Checks of shortcuts, and of test images that differ from the training images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from featx.audit.probe import balanced_accuracy, binned, probe_folds, probe_scores
from featx.audit.values import AuditData, Finding, joined, listed
from featx.images.facts import CHANNELS, ImageFacts
from featx.threads import map_in_threads, n_threads

NEAR, CLOSE = 0.4, 0.8
"""Share of what the features gain over chance that a shortcut must gain to be named, and to be named loudly.
Colour reaches 0.19 on catdog, and 0.60 where 3 % of orange are mixed into the cats; 0.15 on clothing_dev and
sign_digits, 0.30 on fsdd_spectrograms, 0.65 on skin6. Colour cast reaches 0.25 on catdog, and 0.49 where the
red of the cats is multiplied by 1.03 (saved as JPEG again; 0.55 if not): means hardly change, but grey is
grey no longer."""

MOST_BINNED = 50
"""With fewer columns than this, the quantiles of the values are used as columns, too."""

SHAPES = "16-pixel copy"
RANDOM = "network with random weights"
TOLD = (SHAPES, RANDOM)
"""They contain the subject, too, so their scores are listed, and never reported as shortcuts."""

RANDOM_FILTERS, RANDOM_IMAGES = ((32, 5), (64, 3)), 128
"""Number and side of the filters of each layer of the network with random weights, and images at a time."""

LARGE_AUC, HUGE_AUC = 0.75, 0.95
"""Area under the curve from which parts are called different, and entirely different."""

TYPICAL = 10
"""Images of either part that are named as typical."""

FEWEST = 20
"""With fewer images, shortcuts and parts are not looked at."""


def _columns(*names: str) -> Callable[[ImageFacts], NDArray[np.float32]]:
    return lambda facts: np.column_stack([facts[name] for name in names])


def _colours(facts: ImageFacts) -> NDArray[np.float32]:
    """Mean, darkest and lightest values of the channels, and their differences."""
    rows = []
    for what in ("mean", "low", "high"):
        red, green, blue = (facts[f"{channel}_{what}"] for channel in CHANNELS)
        rows += [red, green, blue, red - green, green - blue, red / (green + 1), green / (blue + 1)]
    return np.column_stack(rows)


def _shape(facts: ImageFacts) -> NDArray[np.float32]:
    width, height = np.maximum(facts["width"], 1), np.maximum(facts["height"], 1)
    return np.column_stack([width, height, np.log(width / height)])


def random_features(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean and largest outputs of a small convolutional network with random weights, shape (n, 128).

    Two layers of `RANDOM_FILTERS` with stride 2, weights as of He et al. (ICCV 2015), seed 0.
    """

    def outputs(start: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(0)
        maps = thumbs[start : start + RANDOM_IMAGES].astype(np.float32) / 127.5 - 1
        for n_filters, side in RANDOM_FILTERS:
            windows = sliding_window_view(maps, (side, side), axis=(1, 2))[:, ::2, ::2]
            columns = windows.reshape(*windows.shape[:3], -1)
            weights = rng.standard_normal((columns.shape[-1], n_filters)).astype(np.float32)
            maps = np.maximum(columns @ (weights * (2 / len(weights)) ** 0.5), 0)
        return np.concatenate([maps.mean(axis=(1, 2)), maps.max(axis=(1, 2))], axis=1)

    return np.concatenate(map_in_threads(n_threads(), outputs, range(0, len(thumbs), RANDOM_IMAGES)))


SHORTCUTS: dict[str, Callable[[ImageFacts], NDArray[np.float32]]] = {
    "file size": lambda facts: np.log(facts["n_bytes"] + 1)[:, None],
    "width and height": _shape,
    "file metadata": _columns("format", "mode", "orientation", "has_exif", "has_profile", "quantisation"),
    "brightness": _columns("brightness", "contrast"),
    "colour": _colours,
    "colour cast": lambda facts: np.sqrt(facts.tints),
    "sharpness": _columns("sharpness"),
    "border": _columns(*(f"{channel}_border" for channel in CHANNELS)),
    SHAPES: lambda facts: (
        facts.thumbs.reshape(len(facts), 16, 2, 16, 2, 3).mean(axis=(2, 4)).reshape(len(facts), -1)
    ),
    RANDOM: lambda facts: random_features(facts.thumbs),
}
"""What a classifier could use instead of the subject of an image."""


def shortcut_scores(data: AuditData) -> dict[str, float]:
    """Balanced accuracy of a cross-validated ridge classifier of each shortcut."""
    assert data.facts is not None
    assert data.codes is not None
    found = {}
    for name, of in SHORTCUTS.items():
        values = np.asarray(of(data.facts), np.float32)
        values = binned(values) if values.shape[1] < MOST_BINNED else values
        found[name] = balanced_accuracy(probe_scores(values, data.codes, data.folds), data.codes)
    return found


def find_shortcuts(data: AuditData) -> Finding | None:
    """Compare the score of features with that of what has nothing to do with the subject.

    `value` is the share of the features' gain over chance that the best shortcut reaches.
    """
    if data.facts is None or data.codes is None or data.proba is None or len(data.codes) < FEWEST:
        return None
    chance = 1 / (int(data.codes.max()) + 1)
    real = balanced_accuracy(data.proba, data.codes)
    scores = shortcut_scores(data)
    share = {name: (score - chance) / max(real - chance, 1e-3) for name, score in scores.items()}
    order = sorted(scores, key=lambda name: -scores[name])
    best = next(name for name in order if name not in TOLD)
    told = ", ".join(f"{name} {scores[name]:.3f}" for name in order)
    near = [name for name in order if share[name] >= NEAR and name not in TOLD]
    if not near:
        sentence = (
            f"No shortcut is nearly as good as the features (balanced accuracy {real:.3f}; chance "
            f"{chance:.3f}): {told}."
        )
        return Finding.of(data, "shortcuts", "note", sentence, (), share[best])
    sentence = (
        f"{joined(near).capitalize()} alone {'predicts' if len(near) == 1 else 'predict'} the class: "
        f"balanced accuracy {scores[best]:.3f}, and {real:.3f} from features (chance {chance:.3f}). The "
        f"model may learn this instead of the subject. All: {told}."
    )
    return Finding.of(
        data, "shortcuts", "error" if share[best] >= CLOSE else "warning", sentence, (), share[best]
    )


def find_part_differences(data: AuditData) -> Finding | None:
    """Distinguish training images from test images by their features; `value` is the area under the curve."""
    if data.features is None or data.parts is None:
        return None
    is_test = data.parts == "test"
    if min(is_test.sum(), (~is_test).sum()) < FEWEST:
        return None
    side = is_test.astype(np.intp)
    scores = probe_scores(data.features, side, probe_folds(side, data.units))
    used = np.flatnonzero(~np.isnan(scores).any(axis=1))
    if not 0 < is_test[used].sum() < len(used):
        return None
    margin = scores[used, 1] - scores[used, 0]
    auc = float(roc_auc_score(is_test[used], margin))
    if auc < LARGE_AUC:
        sentence = f"Test and training images look alike (area under the curve {auc:.2f})."
        return Finding.of(data, "part_differences", "note", sentence, (), auc)
    order = used[np.argsort(-margin, kind="stable")]
    typical = [*order[is_test[order]][:TYPICAL].tolist(), *order[~is_test[order]][::-1][:TYPICAL].tolist()]
    how = "unlike" if auc >= HUGE_AUC else "somewhat unlike"
    sentence = (
        f"The test images are {how} the training images: a classifier distinguishes them with an area under "
        f"the curve of {auc:.2f}. Expect a lower score than in cross-validation. Most typical of the test "
        f"part: {listed([data.names[i] for i in typical if is_test[i]])}."
    )
    return Finding.of(
        data, "part_differences", "error" if auc >= HUGE_AUC else "warning", sentence, typical, auc,
        evidence=[f"typical of the {'test' if is_test[i] else 'training'} part" for i in typical],
    )  # fmt: skip
