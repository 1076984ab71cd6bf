"""`report`: one page of what a model does, how good it is, and where it fails."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.audit import CHECKS, Finding, audit, image_facts
from featx.classifier import ImageClassifier, load
from featx.classifier.inputs import Images, as_images, as_learnt
from featx.classifier.predictions import Predictions
from featx.classifier.record import ApartFromKin
from featx.curves import ScorePath
from featx.evaluation import evaluate
from featx.exceptions import FeatxError, UsageError
from featx.features import FeatureBlocks
from featx.files import atomic_write
from featx.images.facts import ImageFacts
from featx.reporting.checking import RANK
from featx.reporting.drawing import ON_PAGE, draw
from featx.reporting.findings import images_shown, shown_findings
from featx.reporting.page import render, thumbnails
from featx.reporting.sections import EMBEDDINGS, MAP_THUMBS, SECTIONS, Known, audit_data
from featx.stores import open_store
from featx.tables import count

SMALL = 56
"""Side in pixels of the thumbnails of a map and of images beside others."""

MOST_BYTES, COMPACT = 1 << 30, 512
"""Bytes of all features from which they are projected, and the columns that remain."""

MOST_CHECKED = 10_000
"""Images that the checks of a report look at; `check` looks at all."""

BEGINNING = b'{\n "title":'
"""How the JSON of a report begins."""

IN_REPORT = {name: check for name, check in CHECKS.items() if name not in ("outliers", "unlike_class")}
"""Checks of a report; the predictions say more than the others."""


@dataclass(frozen=True, eq=False)
class Report:
    """A report of a model.

    Parameters
    ----------
    known : Known
        What it is made from.
    sections : dict of str to dict
        Plain data of each section of `SECTIONS`.
    title : str
        Its title.
    """

    known: Known
    sections: dict[str, dict[str, Any]]
    title: str

    def __repr__(self) -> str:
        return f"Report({self.title!r}, {count(len(self.known.findings), 'finding')})"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        findings = [finding.to_dict() for finding in self.known.findings]
        return {"title": self.title, **self.sections, "findings": findings}

    def to_html(self) -> str:
        """Return the page: one self-contained HTML document."""
        predictions = self.known.predictions
        findings: list[dict[str, Any]] = []
        thumbs: dict[int, str] = {}
        small: dict[int, str] = {}
        if predictions is not None:
            sources = predictions.images.sources
            findings = shown_findings(self.known.findings, predictions.images)
            wrong = self.sections["mistakes"]["shown"]
            large = images_shown(findings) | {row["index"] for row in wrong}
            points = self.sections["map"]["points"]
            step = max(1, len(points) // MAP_THUMBS)
            beside = {one["index"] for row in wrong for one in row["beside"]}
            beside |= {one["index"] for place, one in enumerate(points) if place % step == 0 or one["wrong"]}
            thumbs = thumbnails({i: sources[i] for i in sorted(large)})
            small = thumbnails({i: sources[i] for i in sorted(beside)}, side=SMALL)
        return render(
            "report.html",
            title=self.title,
            sections=self.sections,
            findings=findings,
            checked=MOST_CHECKED,
            thumbs=thumbs,
            small=small,
            figures=self.figures(),
        )

    def figures(self) -> dict[str, str]:
        """Return the figures of the page as SVG, by name; figures that have no data are left out."""
        drawn = {}
        for name in ON_PAGE:
            with contextlib.suppress(FeatxError):  # no data, or no weights on this machine
                drawn[name] = draw(self.known, self.sections, name).to_svg(name)
        return drawn

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, and the same content as JSON beside it.

        Raises
        ------
        UsageError
            If another file has the name of the JSON.
        """
        refuse_other_json(path)
        atomic_write(path, self.to_html().encode("utf-8", "backslashreplace"))
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=True, default=str)
        atomic_write(Path(path).with_suffix(".json"), text.encode())


def refuse_other_json(path: str | os.PathLike[str]) -> None:
    """Refuse a page beside which a JSON file stands that is not of a report: it would be lost.

    Raises
    ------
    UsageError
        Naming it.
    """
    beside = Path(path).with_suffix(".json")
    if beside.is_file() and not beside.read_bytes()[: len(BEGINNING)].startswith(BEGINNING):
        raise UsageError(
            f"{beside} is not of a report, and would be overwritten by the content of {Path(path).name} as "
            "JSON; give the page another name."
        )


def report(
    model: ImageClassifier | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    data: Images | None = None,
    labels: Sequence[Any] | None = None,
    *,
    title: str | None = None,
    embedding: str = "tsne",
    scratch: ScorePath | None = None,
) -> Report:
    """Make a report of a model, and write it if a path is given.

    Parameters
    ----------
    model : ImageClassifier or path
        A fitted classifier, or a ``.featx`` file.
    path : path, optional
        HTML file to write; the same content as JSON is written beside it.
    data : Images, optional
        The images of the fit, or new labelled images; by default those of the fit, if it was in this process.
        Without images, the report has what the model file has.
    labels : sequence, optional
        Labels of `data`, if it does not bring them.
    title : str, optional
        Title of the page.
    embedding : {'tsne', 'pca', 'umap'}
        Method of the map of images; the last needs the package umap-learn.
    scratch : ScorePath, optional
        Accuracy of a network that was trained from scratch on parts of the training images
        (`featx.finetune.scratch.scratch_path`), to be drawn beside the learning curve.

    Returns
    -------
    Report
        With ``to_dict()`` and ``to_html()``.
    """
    if path is not None:
        refuse_other_json(path)
    clf = model if isinstance(model, ImageClassifier) else load(model)
    if title is None:
        name = "a classifier" if isinstance(model, ImageClassifier) else Path(model).name
        title = f"Report of {name}"
    if embedding not in EMBEDDINGS:
        raise UsageError(f"embedding {embedding!r} is not known; choose {', '.join(EMBEDDINGS)}.")
    known = replace(_known(clf, data, labels), embedding=embedding, scratch=scratch)
    made = Report(known, {name: section(known) for name, section in SECTIONS.items()}, title)
    if path is not None:
        made.write(path)
    return made


def _known(clf: ImageClassifier, data: Images | None, labels: Sequence[Any] | None) -> Known:
    images = clf._fitted.images if data is None else as_learnt(as_images(data, labels), clf.classes_)
    if images is None:
        return Known(clf, None, clf.evaluation_, None, None, (), apart=clf.record_.apart)
    found = clf.extract(images, on_error="skip")
    predictions = Predictions.of(clf.model_, images, found, clf.oof_proba_)
    features = _compact(found.blocks, clf.model_.used_blocks)
    sources, store = predictions.images.sources, open_store(clf.store)
    facts, _ = image_facts(sources, predictions.ids, store, n_jobs=clf.n_jobs)
    evaluation = clf.evaluation_
    is_new = (predictions.parts == "new") & (predictions.truth >= 0)
    new = predictions.take(is_new)
    if len(new.images):
        assert new.images.labels is not None
        evaluation = evaluate(new.images.labels, new.proba, new.classes, decision=new.decision)
    findings, units = check_predictions(predictions, facts, features)
    apart = clf.record_.apart
    if len(new.images):
        assert evaluation is not None
        kin = None if units is None else np.isin(units[is_new], units[predictions.parts == "train"])
        apart = None if kin is None else ApartFromKin.of(evaluation, kin)
    return Known(clf, predictions, evaluation, facts, features, findings, apart=apart)


def check_predictions(
    predictions: Predictions, facts: ImageFacts, features: NDArray[np.float32]
) -> tuple[tuple[Finding, ...], NDArray[np.intp] | None]:
    """Return the findings on the images of a report, the worst first, and the unit of each image.

    Of more than `MOST_CHECKED` images, so many are checked, evenly spread; units are then None.
    """
    n = len(predictions.images)
    some = np.unique(np.linspace(0, n - 1, min(n, MOST_CHECKED)).round().astype(np.intp))
    if len(some) < n:
        predictions, facts, features = predictions.take(some), facts.take(some), features[some]
    data = audit_data(predictions, facts, features)
    found = sorted(audit(data, IN_REPORT), key=lambda finding: RANK.index(finding.severity))
    if len(some) == n:
        return tuple(found), data.units
    places = some.tolist()
    return tuple(
        replace(
            one,
            indices=tuple(places[i] for i in one.indices),
            beside=tuple(tuple(places[i] for i in others) for others in one.beside),
        )
        for one in found
    ), None


def _compact(blocks: FeatureBlocks, names: Sequence[str]) -> NDArray[np.float32]:
    """Features side by side; a random projection of them where they would not fit in memory.

    Distances hardly change (Johnson & Lindenstrauss, 1984): by about 3 % with `COMPACT` columns.
    """
    width = sum(blocks.width(name) for name in names)
    if 4 * width * blocks.n_rows <= MOST_BYTES or width <= COMPACT:
        return blocks.stack(list(names))
    from sklearn.random_projection import GaussianRandomProjection

    project = GaussianRandomProjection(COMPACT, random_state=0)
    project.fit(np.empty((1, width), np.float32))
    rows = np.empty((blocks.n_rows, COMPACT), np.float32)
    for where, part in blocks.chunks(names):
        rows[where] = project.transform(part)
    return rows
