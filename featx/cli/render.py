"""How results look on a terminal: tables, intervals, and paths of written files."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from featx.cli.console import Console
from featx.exceptions import LabelError, TooManyBadImagesError
from featx.files import atomic_write
from featx.images import ImageSet, Skipped
from featx.splits import is_unnamed
from featx.tables import count, escape_name, write_csv

MAX_CLASSES_SHOWN = 12
"""Most classes of a table on a terminal; JSON output has all."""

SKIPPED_SHOWN = 10
"""Most skipped images that are printed; the CSV file has all."""

UNLIKE_FROM, UNLIKE_SHARE, UNLIKE_FEWEST = 99.0, 0.2, 3
"""Percentile from which images are unlike the training images, and the share and number of such images from
which there is a warning. For a model of 24 images, a sixth of ordinary images are beyond this percentile."""

BLOCKS_SHOWN = 3
"""Most blocks that are printed by name; JSON output has all."""


def data_set(console: Console, images: ImageSet, *, min_per_class: int = 1) -> ImageSet:
    """Print the number of images and classes; leave out classes that are too small, with a warning."""
    counts = Counter(str(label) for label in images.labels) if images.labels is not None else Counter()
    units, of_what = _units(images)
    small = {label: n for label, n in units.items() if n < min_per_class}
    if small:
        listed = ", ".join(f"{escape_name(label)} ({n})" for label, n in sorted(small.items()))
        if len(small) > len(units) - 2:
            enough = sum(n > 1 for n in units.values()) > 1
            more = {"images": "Add images, two of each class.", "groups": "Add images of other groups."}[
                of_what
            ]
            keep = "Add images, or keep smaller classes: --min-per-class 2 --no-test."
            raise LabelError(
                f"{len(units) - len(small)} of {len(units)} classes have {min_per_class} {of_what} or more "
                f"(others: {listed}), and two classes are needed. {keep if enough else more}"
            )
        console.warn(
            f"classes with fewer than {min_per_class} {of_what} are left out (--min-per-class): {listed}"
        )
        labels = np.array([str(label) for label in images.labels])  # type: ignore[union-attr]
        images = images.select(~np.isin(labels, list(small)))
    kept = sorted((label, n) for label, n in counts.items() if label not in small)
    classes = f", {len(kept)} {'class' if len(kept) == 1 else 'classes'}" if kept else ""
    if 0 < len(kept) <= MAX_CLASSES_SHOWN:
        classes += " (" + ", ".join(f"{escape_name(label)} {n}" for label, n in kept) + ")"
    console.log(f"{len(images):,} images{classes}")
    for remark in images.remarks:
        console.log(remark)
    console.data(data_remarks=images.remarks)
    return images


def _units(images: ImageSet) -> tuple[Counter[str], str]:
    """Images of each class, or groups where several images are of one group; and what was counted."""
    labels = [] if images.labels is None else [str(label) for label in images.labels]
    if images.groups is None:
        return Counter(labels), "images"
    named = [index if is_unnamed(group) else group for index, group in enumerate(images.groups.tolist())]
    return Counter(label for label, _ in set(zip(labels, named, strict=True))), "groups"


def _metric(scoring: Any) -> str:
    """Return the name of the metric, to stand before its value; accuracy is not named."""
    return "" if scoring == "accuracy" or not isinstance(scoring, str) else f"{scoring.replace('_', ' ')} "


def search(console: Console, clf: Any) -> None:
    """Print the selected configuration and its cross-validation score."""
    origins = clf.record_.n_configurations
    n_configurations = sum(origins.values())
    tried = " + ".join(f"{count} {origin}" for origin, count in sorted(origins.items()))
    settings = dict(clf.best_params_)
    head = settings.pop("head", "head")
    listed = ", ".join(f"{name} {_number(value)}" for name, value in settings.items())
    blocks = clf.best_blocks_
    where = ", ".join(blocks) if len(blocks) <= BLOCKS_SHOWN else f"{len(blocks)} layers and poolings"
    if clf.backbone_comparison_ is not None:
        for sentence in clf.backbone_comparison_.sentences():
            console.text(f"backbone  {sentence}")
        console.data(backbones=clf.backbone_comparison_.to_dict())
    used = {clf.specs_[name].weights for name in blocks}
    networks = " and ".join(card.name for card in clf.cards_ if card.weights in used)
    console.text()
    console.text(f"selected  {head} ({listed}) on {where} of {networks}")
    console.text(
        f"          cross-validation {_metric(clf.scoring_)}{clf.best_score_:.4f} over "
        f"{count(n_configurations, 'configuration')} ({tried});"
    )
    console.text(
        "          this score is optimistic, since it was used to select; use the score on the held-out part"
    )
    for why in dict.fromkeys(clf.record_.left_out.values()):
        heads = ", ".join(head for head, own in clf.record_.left_out.items() if own == why)
        console.text(f"          not fitted on all images: {heads} ({why})")
    if clf.choice_ is not None:
        console.text(f"          {' '.join(clf.choice_.sentences())}")
    for one in clf.tried_:
        verdict = "kept" if one.kept else "not kept"
        error = "" if one.error is None else f" (standard error {100 * one.error:.1f})"
        console.text(f"          {one.name}: {100 * one.gain:+.1f} points out of fold{error}, {verdict}")
    console.data(
        choice=clf.choice_ and clf.choice_.to_dict(),
        augmentation=clf.augmentation_.to_dict(),
        tried=[one.to_dict() for one in clf.tried_],
        model={
            "backbone": networks,
            "blocks": list(clf.best_blocks_),
            "params": clf.best_params_,
            "cross_validation_score": clf.best_score_,
            "scoring": str(clf.scoring_),
            "n_configurations": n_configurations,
            "left_out": clf.record_.left_out,
        },
        computed=clf.n_computed_,
    )


def fine_tuning(console: Console, clf: Any) -> None:
    """Print whether the fine-tuned network is used, and why."""
    report = clf.fine_tune_
    console.data(fine_tuning=None if report is None else report.to_dict())
    if report is None:
        return
    console.text()
    title = "fine-tuned" if report.kept else "not used" if report.tried else "fine-tuning"
    console.text(f"{title.ljust(9)} {report.reason}")
    for line in report.phases:
        console.text(f"          {line}")


def fine_tune_plan(console: Console, clf: Any, images: ImageSet) -> None:
    """Print what fine-tuning would do, if it was requested: the recipes, or the phases and the disk space."""
    from featx.classifier.finetuning import AUTO_TIMEOUT, chooses_recipe, tuner_of
    from featx.classifier.settings import settings_of
    from featx.finetune import describe_phases
    from featx.finetune.recipes import RECIPES

    settings = settings_of(clf)
    if settings.fine_tune is False:
        return
    if chooses_recipe(settings):
        limit = AUTO_TIMEOUT if not settings.budget.is_limited else settings.budget.left
        limit = settings.fine_tuner.get("timeout") or limit
        console.text(
            f"fine-tuning within {duration(limit)}, if a gain is expected: the best of these recipes, "
            "by successive halving"
        )
        lines = [f"{name}: {recipe.describe(len(images))}" for name, recipe in RECIPES.items()]
        for line in lines:
            console.text(f"          {line}")
        console.data(fine_tuning={"recipes": lines, "timeout": limit})
        return
    tuner = tuner_of(settings)
    found = tuner.plan(images)
    n_classes = len(np.unique(np.asarray(images.labels, dtype=str)))
    phases, trained = tuner.first_phases(), tuner.describe(n_classes)
    lines = describe_phases(phases, trained)
    console.text(f"fine-tuning {found.reason}")
    for line in lines:
        console.text(f"          {line}")
    console.data(fine_tuning={"plan": dict(vars(found)), "phases": lines})


def refit(console: Console, found: Any) -> None:
    """Print the comparison with the model that was replaced."""
    console.text()
    if found is None:
        console.text("no test image is new to both models, so that they cannot be compared")
        return
    for sentence in found.sentences():
        console.text(sentence)
    console.data(refit=found.to_dict())


def evaluation(console: Console, result: Any, *, title: str) -> None:
    """Print the accuracy, metrics with intervals, and the confusion matrix or the classes of lowest F1."""
    console.text(f"accuracy {result.metrics['accuracy'].as_share()} on {title}")
    console.text()
    console.table(
        ["metric", "value", "95 % interval"],
        [
            [name.replace("_", " "), f"{m.value:.4f}", interval(m, ".4f")]
            for name, m in result.metrics.items()
        ],
        right=(1,),
    )
    names = [escape_name(str(label)) for label in result.classes]
    if len(names) <= MAX_CLASSES_SHOWN:
        console.text()
        console.text("confusion matrix (rows: truth, columns: prediction)")
        console.table(["", *names, "recall"], _confusion_rows(names, result), right=range(1, len(names) + 2))
    else:
        worst = sorted(result.per_class, key=lambda c: c.f1)[:5]
        console.text()
        console.text("classes with the lowest F1")
        console.table(
            ["class", "precision", "recall", "F1", "images"],
            [
                [escape_name(str(c.label)), f"{c.precision:.2f}", f"{c.recall:.2f}", f"{c.f1:.2f}", c.support]
                for c in worst
            ],
            right=(1, 2, 3, 4),
        )
    if result.accuracy_answered is not None:
        console.text(
            f"  {result.coverage:.1%} of the images have a probability of at least {result.abstain_below:g}; "
            f"accuracy on them {result.accuracy_answered}"
        )
    console.data(evaluation=result.to_dict())


def unlike(console: Console, percentiles: Any, flagged: float | None) -> None:
    """Warn of images unlike the training images, if requested or if there are more than by chance."""
    limit = UNLIKE_FROM if flagged is None else flagged
    n, total = int((percentiles >= limit).sum()), len(percentiles)
    if flagged is None and n < max(UNLIKE_FEWEST, UNLIKE_SHARE * total):
        return
    expected = f"{100 - limit:g} % would be usual"
    console.warn(
        f"{n:,} of {total:,} images are unlike the training images: their distance to them is above the "
        f"percentile {limit:g} ({expected}); do not trust their labels (column unlike)"
    )
    console.data(n_unlike=n)


def apart(console: Console, found: Any) -> None:
    """Print the score without images that have kin among the training images, if there are any."""
    console.data(apart=None if found is None else found.to_dict())
    if found is not None:
        console.text()
        console.text(found.sentence())


def no_test(console: Console, clf: Any) -> None:
    """Say that nothing was held out, and what is known of the score instead."""
    found = clf.oof_evaluation_
    accuracy = found.metrics["accuracy"].as_share()
    console.text(f"accuracy {accuracy} out of fold on the {found.n} training images (optimistic)")
    console.text("no test part was held out")
    console.data(evaluation=None, out_of_fold=found.to_dict())


def operating_points(console: Console, clf: Any) -> None:
    """Print what other decisions score with the same probabilities, if classes are imbalanced."""
    points = clf.operating_points_
    console.data(operating_points=[point.to_dict() for point in points], decision=clf.decision_.to_dict())
    if not points:
        return
    console.text()
    where = " out of fold" if clf.evaluation_ is None else ""
    console.text(f"decisions (--decide){where}, from the same probabilities")
    console.table(
        ["", "accuracy", "balanced accuracy", "macro F1"],
        [
            [
                f"{escape_name(point.name)}{' (used)' if point.used else ''}",
                *(f"{value:.3f}" for value in (point.accuracy, point.balanced_accuracy, point.macro_f1)),
            ]
            for point in points
        ],
        right=(1, 2, 3),
    )


def saved(console: Console, path: Path, seconds: float) -> None:
    """Print path and size of the model, and the time."""
    size = path.stat().st_size
    console.text()
    console.text(f"model     {path} ({size_text(size)}), {seconds:.1f} s in total")
    console.data(output=str(path), output_bytes=size)


def skipped(
    console: Console,
    args: argparse.Namespace,
    images: Sequence[Skipped],
    output: str,
    *,
    total: int | None = None,
) -> int:
    """Print skipped images on stderr, and write them to a CSV file beside the output.

    Parameters
    ----------
    console : Console
    args : argparse.Namespace
        With the options of `featx.cli.arguments.add_skipping`, if the verb has them.
    images : sequence of Skipped
    output : str
        Path of the output, to which ``.skipped.csv`` is appended.
    total : int, optional
        Number of all images, to check ``--max-bad``; by default it is not checked.

    Returns
    -------
    int
        The exit code: 0 if no image was skipped, 1 with ``--strict``, else 3.

    Raises
    ------
    TooManyBadImagesError
        If the fraction of skipped images is above ``--max-bad``.
    """
    console.data(skipped=[{"path": s.name, "reason": s.reason, "label": s.label} for s in images])
    if not images:
        return 0
    path = Path(f"{output}.skipped.csv")
    n = len(images)
    console.warn(f"{n} {'image was' if n == 1 else 'images were'} skipped; the list is {path}")
    for image in images[:SKIPPED_SHOWN]:
        console.log(f"  {escape_name(image.name)}: {image.reason}")
    with aside(console, f"list of skipped images in {path}"):
        write_csv(path, ["path", "label", "reason"], [[s.name, s.label, s.reason] for s in images])
    if total is not None and len(images) > args.max_bad * max(total, len(images)):
        raise TooManyBadImagesError(
            f"{len(images):,} of {total:,} images cannot be used, more than the {args.max_bad:.0%} that "
            "--max-bad allows. Repair or remove them, or raise --max-bad. The other images are done."
        )
    return 1 if getattr(args, "strict", False) else 3


def plans(console: Console, plans: dict[str, Any]) -> None:
    """Print what a run would compute with each backbone."""
    if len(plans) == 1:
        plan(console, next(iter(plans.values())))
        return
    console.table(
        ["backbone", "images", "cached", "to compute", "time here"],
        [[name, p.total, p.cached, p.to_compute, duration(p.seconds)] for name, p in plans.items()],
        right=(1, 2, 3),
    )
    console.data(backbones={name: vars(p) for name, p in plans.items()})


def plan(console: Console, plan: Any) -> None:
    """Print what a run would compute."""
    console.text(f"images    {plan.total:,}")
    console.text(f"cached    {plan.cached:,}")
    console.text(f"compute   {plan.to_compute:,}, about {duration(plan.seconds)} here")
    console.data(total=plan.total, cached=plan.cached, to_compute=plan.to_compute, seconds=plan.seconds)


def search_time(console: Console, found: Any) -> None:
    """Print how long the search takes."""
    console.text(
        f"search    {count(found.representations, 'block')} of features, {count(found.heads, 'head')}; about "
        f"{duration(found.seconds)} at most"
    )
    console.data(search=vars(found))


def scores(console: Console, header: Sequence[str], sizes: Iterable[int], metrics: Iterable[Any]) -> None:
    """Print a metric for each number of training images; `header` names both."""
    rows = [[n, f"{m.value:.3f}", interval(m)] for n, m in zip(sizes, metrics, strict=True)]
    console.table([*header, "95 % interval"], rows, right=(0, 1))


def interval(metric: Any, number: str = ".3f", *, scale: float = 1) -> str:
    """Return the interval of a metric as text, with both bounds in the format `number`."""
    if math.isnan(metric.low) or math.isnan(metric.high):  # all images are of one group
        return "not known"
    return f"[{scale * metric.low:{number}}, {scale * metric.high:{number}}]"


@contextmanager
def aside(console: Console, what: str) -> Iterator[None]:
    """Write an additional output; a failure is reported in one line, and does not change the result."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        console.warn(f"no {what}: {reason}. The result is complete without it.")


def figure(console: Console, path: str, png: bytes) -> None:
    """Write a figure, and print its path."""
    atomic_write(path, png)
    console.text(f"figure    {path}")


def duration(seconds: float) -> str:
    """``75`` -> ``"1 min 15 s"``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _confusion_rows(names: list[str], result: Any) -> list[list[str]]:
    rows: list[list[str]] = []
    for name, counts in zip(names, np.asarray(result.confusion), strict=True):
        recall = f"{counts[len(rows)] / counts.sum():.3f}" if counts.sum() else "no image"
        rows.append([name, *(str(count) if count else "." for count in counts), recall])
    return rows


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def size_text(size: float) -> str:
    """``1500`` -> ``"1.5 kB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
