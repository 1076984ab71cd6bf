"""The figures. Each takes plain values, an optional `ax`, and returns a `Display`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation import CONFIDENCE, Evaluation, Metric
from featx.exceptions import UsageError
from featx.plot.base import BLUE, GREEN, INK, LINE, ORANGE, Display, drawing, short

MOST_CLASSES = 30
"""Classes that a figure shows; of more, the worst ones, with a note."""

BINS = 10


def confusion(evaluation: Evaluation, *, ax: Any = None) -> Display:
    """Draw the confusion matrix: shares of each true class, alike classes side by side.

    Parameters
    ----------
    evaluation : Evaluation
    ax : matplotlib Axes, optional
        A new figure by default; the same for all functions.

    Returns
    -------
    Display
    """
    matrix = evaluation.confusion
    order = worst_classes(matrix, MOST_CLASSES)
    note = ""
    if len(order) < len(matrix):
        note = f"; the {MOST_CLASSES} worst of {len(evaluation.classes)} classes"
    counts = matrix[np.ix_(order, order)]
    share = counts / np.maximum(matrix.sum(axis=1)[order, None], 1)
    n = len(order)
    side = min(max(3.2, 0.42 * n + 1.8), 11)
    with drawing(ax, size=(side + 0.8, side)) as display:
        ax = display.ax_
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        names = [short(evaluation.classes[code]) for code in order]
        ax.set_xticks(range(n), names, rotation=90 if n > 4 else 0)
        ax.set_yticks(range(n), names)
        ax.grid(False)
        size = 9 if n <= 12 else 6
        for i, j in zip(*np.nonzero(counts), strict=True):
            color = "white" if share[i, j] > 0.5 else "#1b1b1b"
            ax.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=size)
        ax.set(xlabel="prediction", ylabel="truth")
        wrong = int(evaluation.confusion.sum() - np.trace(evaluation.confusion))
        ax.set_title(f"{wrong:,} of {evaluation.n:,} images are mistaken{note}")
    return display


def worst_classes(matrix: NDArray[Any], most: int) -> NDArray[np.intp]:
    """Return the `most` classes of the lowest recall, in the order of `similar_order`."""
    recall = np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
    order = similar_order(matrix)
    return order[np.isin(order, np.argsort(recall, kind="stable")[:most])]


def similar_order(matrix: NDArray[Any]) -> NDArray[np.intp]:
    """Order classes so that those that are mistaken for each other are neighbours, shape (n_classes,)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    n = len(matrix)
    if n < 3:
        return np.arange(n)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    distance = 1 - np.minimum(share + share.T, 1)
    np.fill_diagonal(distance, 0)
    return np.asarray(leaves_list(linkage(squareform(distance), "average")), np.intp)


def classes(evaluation: Evaluation, *, ax: Any = None) -> Display:
    """Draw recall and precision of each class, the lowest recall first, with 95 % intervals of the recall."""
    scores = sorted(evaluation.per_class, key=lambda one: one.recall)
    note = f" ({MOST_CLASSES} of {len(scores)} classes)" if len(scores) > MOST_CLASSES else ""
    scores = scores[:MOST_CLASSES][::-1]
    with drawing(ax, size=(6.4, 0.9 + 0.3 * max(len(scores), 3))) as display:
        ax = display.ax_
        place = np.arange(len(scores))
        recall = np.array([one.recall for one in scores])
        low, high = _wilson(recall, np.array([one.support for one in scores]))
        ax.hlines(place, low, high, color=BLUE, linewidth=4, alpha=0.3)
        ax.plot(recall, place, "o", color=BLUE)
        precision = [one.precision for one in scores]
        ax.plot(precision, place, "D", color=ORANGE, mfc="none", markersize=8, mew=1.5, clip_on=False)
        ax.set_yticks(place, [f"{short(one.label)} ({one.support})" for one in scores])
        ax.set(xlim=(min(0.98, max(0, low.min() - 0.03)), 1.005), ylim=(-0.7, len(scores) - 0.3))
        ax.set(xlabel="● recall with its 95 % interval    ◇ precision")
        worst = scores[-1]
        lowest = f"{short(worst.label)} has the lowest recall: {worst.recall:.2f}"
        ax.set_title((lowest if worst.recall < 1 else "All images of every class are recognised") + note)
    return display


def calibration(truth: ArrayLike, proba: ArrayLike, *, ax: Any = None) -> Display:
    """Draw how often answers are right against their probability (reliability diagram).

    Parameters
    ----------
    truth : array of shape (n,), int
        Columns of the true classes.
    proba : array of shape (n, n_classes)
    """
    top, right = _answers(truth, proba)
    edges = np.unique(np.quantile(top, np.linspace(0, 1, BINS + 1)))
    bins = np.clip(np.searchsorted(edges, top, side="right") - 1, 0, max(len(edges) - 2, 0))
    size = np.bincount(bins)
    kept = size > 0
    mean = (np.bincount(bins, weights=top)[kept] / size[kept]).astype(float)
    share = (np.bincount(bins, weights=right)[kept] / size[kept]).astype(float)
    low, high = _wilson(share, size[kept])
    with drawing(ax, size=(4.6, 4.2)) as display:
        ax = display.ax_
        start = max(0.0, min(mean.min(), low.min()) - 0.05)
        ax.plot([start, 1], [start, 1], color=LINE, linewidth=1)
        ax.errorbar(mean, share, [share - low, high - share], fmt="o", color=BLUE, capsize=3)
        ax.set(xlabel="probability of the answer", ylabel="share that is right")
        ax.set(xlim=(start, 1.01), ylim=(start, 1.01))
        gap = float(np.average(np.abs(mean - share), weights=size[kept]))
        ax.set_title(f"Probabilities are off by {100 * gap:.1f} points on average")
    return display


def coverage(truth: ArrayLike, proba: ArrayLike, *, ax: Any = None) -> Display:
    """Draw accuracy against the share of images that are answered, the most certain first."""
    top, right = _answers(truth, proba)
    order = np.argsort(-top, kind="stable")
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    share = np.arange(1, len(order) + 1) / len(order)
    start = max(0, len(order) // 50)
    with drawing(ax, size=(4.6, 4.2)) as display:
        ax = display.ax_
        low, high = _wilson(accuracy[start:], np.arange(start + 1, len(order) + 1))
        ax.fill_between(share[start:], low, high, color=BLUE, alpha=0.2, linewidth=0)
        ax.plot(share[start:], accuracy[start:], color=BLUE)
        ax.set(xlabel="share of images answered", ylabel="accuracy on them", xlim=(0, 1))
        half = accuracy[max(0, len(order) // 2 - 1)]
        ax.set_title(f"The surer half is right in {100 * half:.1f} %")
    return display


def _check_two(truth: ArrayLike, curve: str) -> NDArray[Any]:
    """Return the truth as an array; refuse it unless it has both of two classes."""
    found = np.asarray(truth)
    if len(np.unique(found)) != 2:
        raise UsageError(f"{curve} needs images of both of two classes.")
    return found


def roc(truth: ArrayLike, score: ArrayLike, positive: Any = "positive", *, ax: Any = None) -> Display:
    """Draw the ROC curve of two classes.

    Parameters
    ----------
    truth : array of shape (n,), int
        1 for the positive class.
    score : array of shape (n,)
        Probability of the positive class.
    positive : any
        Its label.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    _check_two(truth, "a ROC curve")
    false, true, _ = roc_curve(truth, score)
    with drawing(ax, size=(4.6, 4.2)) as display:
        ax = display.ax_
        ax.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        ax.plot(false, true, color=BLUE)
        ax.set(xlabel="false positive rate", ylabel=f"true positive rate of {short(positive)}")
        ax.set(xlim=(-0.01, 1), ylim=(0, 1.01))
        ax.set_title(f"Area under the ROC curve {roc_auc_score(truth, score):.3f}")
    return display


def precision_recall(
    truth: ArrayLike, score: ArrayLike, positive: Any = "positive", *, ax: Any = None
) -> Display:
    """Draw the precision of two classes against the recall, for every threshold.

    Parameters
    ----------
    truth : array of shape (n,), int
        1 for the positive class.
    score : array of shape (n,)
        Probability of the positive class.
    positive : any
        Its label.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    of_class = _check_two(truth, "a precision-recall curve")
    precision, recall, _ = precision_recall_curve(of_class, score)
    with drawing(ax, size=(4.6, 4.2)) as display:
        ax = display.ax_
        ax.axhline(of_class.mean(), color=LINE, linewidth=1)
        ax.plot(recall, precision, color=BLUE, drawstyle="steps-post")
        name = short(positive)
        ax.set(xlabel=f"recall of {name}", ylabel=f"precision of {name}", xlim=(0, 1.01), ylim=(0, 1.02))
        ax.set_title(f"Average precision {average_precision_score(of_class, score):.3f}")
    return display


def balance(labels: ArrayLike, *, ax: Any = None) -> Display:
    """Draw the number of images of each class, the largest first; of many, the largest and the smallest."""
    from matplotlib.ticker import MaxNLocator

    names, sizes = np.unique(np.asarray(labels), return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    note, half = "", MOST_CLASSES // 2
    if len(order) > MOST_CLASSES:
        note = f"\nthe {half} largest and {half} smallest of {len(names)} classes"
        order = np.concatenate([order[:half], order[-half:]])
    order = order[::-1]
    with drawing(ax, size=(6.4, 0.9 + 0.28 * max(len(order), 3))) as display:
        ax = display.ax_
        ax.barh(np.arange(len(order)), sizes[order], color=BLUE)
        ax.set_yticks(range(len(order)), [short(names[code]) for code in order])
        for place, code in enumerate(order):
            ax.text(sizes[code], place, f" {sizes[code]:,}", va="center", fontsize=9)
        ax.set(xlabel="images")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y", visible=False)
        ratio = sizes.max() / sizes.min()
        title = f"The largest class has {ratio:.1f} times the images of the smallest"
        title = f"All classes have {sizes[0]:,} images" if ratio == 1 else title
        ax.set_title(title + note)
    return display


def layers(scores: Mapping[str, float], *, scoring: str = "accuracy", ax: Any = None) -> Display:
    """Draw the best cross-validation score with each layer, from the first layer to the last."""
    if not scores:
        raise UsageError("no scores of layers to draw.")
    with drawing(ax, size=(6.4, 3.4)) as display:
        ax = display.ax_
        values = list(scores.values())
        ax.plot(range(len(values)), values, "o-", color=BLUE)
        for place, value in enumerate(values):
            ax.annotate(
                f"{value:.3f}", (place, value), (0, 7), textcoords="offset points", ha="center", fontsize=9
            )
        ax.set_xticks(
            range(len(values)), [short(name) for name in scores], rotation=30 if len(values) > 6 else 0
        )
        ax.set(ylabel=f"best cross-validation {scoring.replace('_', ' ')}", xlim=(-0.4, len(values) - 0.6))
        ax.margins(y=0.2)
        best = max(scores, key=lambda name: scores[name])
        ax.set_title(f"Layer {short(best)} is the best of {len(scores)}")
    return display


def history(
    scores: Sequence[float], origins: Sequence[str], *, scoring: str = "accuracy", ax: Any = None
) -> Display:
    """Draw the score of each configuration in the order of the search, and the best so far."""
    values = np.asarray(scores, float)
    with drawing(ax, size=(6.4, 3.4)) as display:
        ax = display.ax_
        for origin, color in zip(dict.fromkeys(origins), (BLUE, ORANGE, GREEN), strict=False):
            member = np.array([one == origin for one in origins])
            ax.plot(
                np.flatnonzero(member),
                values[member],
                "o",
                markersize=3,
                color=color,
                label=origin,
                alpha=0.7,
            )
        ax.plot(
            np.fmax.accumulate(values), color=INK, linewidth=1.2, drawstyle="steps-post", label="best so far"
        )
        low = np.nanquantile(values, 0.1)
        ax.set(xlabel="configuration", ylabel=f"cross-validation {scoring.replace('_', ' ')}")
        top = float(np.nanmax(values))
        ax.set_ylim(low - 0.1 * (top - low) - 1e-3, top + 0.1 * (top - low) + 1e-3)
        ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
        ax.set_title(f"The best of {len(values)} configurations: {top:.4f}")
    return display


def scatter(
    points: ArrayLike, labels: ArrayLike, *, wrong: ArrayLike | None = None, ax: Any = None
) -> Display:
    """Draw a map of images: points coloured by class, mistakes with a ring.

    Parameters
    ----------
    points : array of shape (n, 2)
    labels : array of shape (n,)
    wrong : array of shape (n,), bool, optional
    """
    xy, names = np.asarray(points, float), np.asarray(labels)
    with drawing(ax, size=(6.4, 5.2)) as display:
        ax = display.ax_
        found, sizes = np.unique(names, return_counts=True)
        largest = found[np.argsort(-sizes)][:7]
        for label in largest:
            member = names == label
            ax.plot(*xy[member].T, "o", markersize=3, alpha=0.8, label=short(label))
        rest = ~np.isin(names, largest)
        if rest.any():
            ax.plot(*xy[rest].T, "o", markersize=3, color=LINE, label=f"{len(found) - 7} other classes")
        if wrong is not None and np.any(wrong):
            mistaken = np.asarray(wrong, bool)
            ax.plot(*xy[mistaken].T, "o", markersize=8, fillstyle="none", color=INK, label="mistaken")
        ax.set(xticks=[], yticks=[])
        ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
        ax.set_title(f"{len(xy):,} images by their features")
    return display


def learning(
    sizes: ArrayLike,
    accuracy: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    ahead: Mapping[str, ArrayLike],
    *,
    scratch: Mapping[str, ArrayLike] | None = None,
    ax: Any = None,
) -> Display:
    """Draw accuracy against the number of training images, and the band that is expected of more.

    Parameters
    ----------
    sizes, accuracy, low, high : array of shape (m,)
        Measured accuracy with its interval.
    ahead : mapping of str to array
        ``sizes``, ``value``, ``low`` and ``high`` of the power law, up to more images than there are.
    scratch : mapping of str to array, optional
        The same of a network that was trained from scratch on so many images.
    """
    x, y = np.asarray(sizes, float), np.asarray(accuracy, float)
    more = {name: np.asarray(values, float) for name, values in ahead.items()}
    with drawing(ax, size=(6.4, 3.4)) as display:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        ax = display.ax_
        ax.fill_between(more["sizes"], more["low"], more["high"], color=BLUE, alpha=0.2, linewidth=0)
        ax.plot(more["sizes"], more["value"], color=BLUE, linewidth=1.2)
        ax.errorbar(x, y, [y - low, high - y], fmt="o", color=BLUE, capsize=3)
        if scratch is not None:
            own = {name: np.asarray(values, float) for name, values in scratch.items()}
            errors = [own["value"] - own["low"], own["high"] - own["value"]]
            ax.errorbar(own["sizes"], own["value"], errors, fmt="o-", color=ORANGE, capsize=3)
            at = own["sizes"][-1], own["value"][-1]
            ax.annotate("from scratch", at, (8, 0), textcoords="offset points", va="center", color=ORANGE)
        ax.set(xscale="log", xlabel="training images", ylabel="accuracy out of fold")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        gain = 100 * float(more["value"][-1] - y[-1])
        ax.set_title(f"{more['sizes'][-1]:,.0f} images instead of {x[-1]:,.0f}: {gain:+.1f} points expected")
    return display


def training(epochs: Sequence[Mapping[str, Any]]) -> Display:
    """Draw loss, accuracy and learning rate of each epoch of fine-tuning, one above the other."""
    from matplotlib.ticker import MaxNLocator

    x = np.arange(1, len(epochs) + 1)
    panels = (("loss", "loss"), ("accuracy", "accuracy"), ("lr", "learning rate"))
    with drawing(size=(6.4, 6.0), rows=len(panels)) as display:
        for ax, (name, words) in zip(display.figure_.axes, panels, strict=True):
            ax.plot(x, [one[name] for one in epochs], "o-", markersize=3, color=BLUE, label="training")
            if f"val_{name}" in epochs[-1]:
                values = [one.get(f"val_{name}", np.nan) for one in epochs]
                ax.plot(x, values, "o-", markersize=3, color=ORANGE, label="validation")
                ax.legend(fontsize=9, loc="best")
            ax.set(ylabel=words)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        display.figure_.axes[-1].set(xlabel="epoch", yscale="log")
        kind = "val_accuracy" if "val_accuracy" in epochs[-1] else "accuracy"
        best = max(float(one.get(kind, 0)) for one in epochs)
        what = "validation" if kind == "val_accuracy" else "training"
        display.ax_.set_title(f"{len(epochs)} epochs; the highest {what} accuracy is {best:.3f}")
    return display


def sheet(
    rows: Sequence[Sequence[tuple[NDArray[Any], str]]], *, title: str = "", loose: bool = True
) -> Display:
    """Draw images with a caption each, in rows.

    Parameters
    ----------
    rows : sequence of sequences of (image, caption)
        Images are arrays of shape (h, w, 3), uint8.
    title : str
        Title of the figure.
    loose : bool
        Whether captions have two lines, each under its image; otherwise one line across the row.
    """
    n_columns = max(map(len, rows))
    with drawing(size=(1.6 * n_columns, 2.0 * len(rows))) as display:
        ax = display.ax_
        ax.axis("off")
        ax.set_title(title)
        ax.set(xlim=(0, n_columns), ylim=(len(rows), 0))
        for i, row in enumerate(rows):
            for j, (image, caption) in enumerate(row):
                height, width = image.shape[:2]
                scale = 0.46 / max(height, width * 1.0)
                w, h = scale * width, 0.8 * scale * height
                ax.imshow(image, extent=(j + 0.5 - w, j + 0.5 + w, i + 0.4 + h, i + 0.4 - h), aspect="auto")
                place, side = (j + 0.5, "center") if loose else (j + 0.04, "left")
                ax.text(place, i + 0.82, caption, ha=side, va="top", fontsize=8)
        ax.set(xlim=(0, n_columns), ylim=(len(rows), 0))
    return display


def metric_text(metric: Metric) -> str:
    """``0.993 (95 %: 0.982 to 0.999)``."""
    return f"{metric.value:.3f} ({round(100 * CONFIDENCE)} %: {metric.low:.3f} to {metric.high:.3f})"


def _answers(truth: ArrayLike, proba: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = np.asarray(proba, float)
    return rows.max(axis=1), (rows.argmax(axis=1) == np.asarray(truth)).astype(float)


def _wilson(share: NDArray[Any], size: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Wilson's 95 % interval of shares (Wilson, 1927)."""
    z, n = 1.96, np.maximum(size, 1)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return np.minimum(np.maximum(middle - half, 0), share), np.maximum(np.minimum(middle + half, 1), share)
