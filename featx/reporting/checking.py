"""`check`: look at a data set before any model is fitted."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featx.audit import (
    CHECKS,
    AuditData,
    FactsOfDecoded,
    Finding,
    audit,
    image_facts,
    issue_rows,
    write_issues,
)
from featx.audit.fixes import COLUMNS
from featx.exceptions import DataError
from featx.extractor import FeatureExtractor
from featx.files import atomic_write
from featx.images import ImageSet, ImageSource, load_images
from featx.records import as_frame
from featx.reporting.findings import TITLES, images_shown, shown_findings
from featx.reporting.page import render, thumbnails
from featx.stores import open_store
from featx.tables import count

RANK = ("error", "warning", "note")
"""Severities in the order of findings."""

CLASSES_SHOWN = 8


@dataclass(frozen=True, eq=False)
class DataCheck:
    """What `check` found.

    Parameters
    ----------
    images : ImageSet
        The images that can be read.
    data : AuditData
        What the checks read.
    findings : tuple of Finding
        The findings, errors first, then warnings, then notes.
    seconds : dict of str to float
        Wall-clock time of each stage.
    title : str
        Name of the data set.
    """

    images: ImageSet
    data: AuditData
    findings: tuple[Finding, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    title: str = ""

    def __repr__(self) -> str:
        return (
            f"DataCheck({self.title!r}, {', '.join(one.check for one in self.findings) or 'nothing found'})"
        )

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of a check; KeyError if it found nothing."""
        return {finding.check: finding for finding in self.findings}[check]

    def __contains__(self, check: str) -> bool:
        return any(finding.check == check for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values, ready for JSON."""
        return {
            "title": self.title,
            "n": len(self.images),
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": self.seconds,
        }

    def to_frame(self) -> Any:
        """Return a row for each image of each finding: a DataFrame, or a list of dicts without pandas."""
        return as_frame(issue_rows(self.findings), COLUMNS)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the page of the findings, one self-contained document; write it if a path is given."""
        shown = shown_findings(self.findings, self.images)
        counts = Counter(str(finding.severity) for finding in self.findings)
        labels = self.images.labels
        sizes = [] if labels is None else list(zip(*np.unique(labels, return_counts=True), strict=True))
        page = render(
            "check.html",
            title=self.title or "these images",
            n=len(self.images),
            n_skipped=len(self.data.skipped),
            classes=sizes,
            classes_text=", ".join(f"{label} {size}" for label, size in sizes[:CLASSES_SHOWN])
            + (", ..." if len(sizes) > CLASSES_SHOWN else ""),
            counts={severity: counts[severity] for severity in RANK},
            findings=shown,
            thumbs=thumbnails({index: self.images.sources[index] for index in images_shown(shown)}),
            answer=self.answer(),
        )
        if path is not None:
            atomic_write(path, page.encode("utf-8", "backslashreplace"))
        return page

    def answer(self) -> str:
        """Return what was found, in one or two sentences."""
        loud = [finding for finding in self.findings if finding.severity != "note"]
        if not loud:
            return f"Nothing is wrong with this data set as far as {len(CHECKS)} checks can see."
        names = [TITLES.get(finding.check, finding.check).lower() for finding in loud]
        return f"{count(len(loud), 'finding')} to look at: {', '.join(names)}."

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of issues; fill in its column `action`, and give it to ``featx fix``."""
        write_issues(path, self.findings)


def check(
    data: ImageSet | str | os.PathLike[str] | Sequence[ImageSource],
    labels: Sequence[Any] | None = None,
    *,
    extractor: FeatureExtractor | None = None,
    n_jobs: int | None = None,
    callback: Callable[[Any], None] | None = None,
    title: str | None = None,
) -> DataCheck:
    """Look for what is wrong with a data set: files, copies, labels, classes, parts, shortcuts, outliers.

    Parameters
    ----------
    data : path, ImageSet or list of image sources
        As for `ImageClassifier.fit`; labels are not necessary.
    labels : sequence of length n, optional
        Labels, where `data` does not bring them.
    extractor : FeatureExtractor, optional
        Network and store; by default the default network and the cache folder.
    n_jobs : int, optional
        Threads.
    callback : callable, optional
        Called with `featx.extractor.Progress` events.
    title : str, optional
        Name of the data set on the page; by default the path.

    Returns
    -------
    DataCheck
        With ``to_frame()``, ``to_csv(path)`` and ``to_dict()``.

    Examples
    --------
    >>> from PIL import Image
    >>> from featx import FeatureExtractor
    >>> from featx.reporting import check
    >>> images = [Image.new("RGB", (40, 40), (9 * i, 10, 10)) for i in range(8)]
    >>> extractor = FeatureExtractor("test_resnet", pretrained=False, store="memory")
    >>> found = check([*images, images[0]], ["a", "b"] * 4 + ["b"], extractor=extractor)
    >>> found["conflicts"].indices
    (0, 8)
    """
    seconds: dict[str, float] = {}
    began = time.monotonic()
    images = data if isinstance(data, ImageSet) else load_images(data)
    if labels is not None:
        if len(labels) != len(images):
            raise DataError(f"{len(images)} images but {len(labels)} labels; give one for each image.")
        images.labels = np.asarray(labels)
    extractor = FeatureExtractor() if extractor is None else extractor
    store = open_store(extractor.store)
    extractor.set_params(store=store, callback=callback)
    with FactsOfDecoded(store) as measure:
        found = extractor.extract(images.sources, names=images.names, on_error="skip", on_decode=measure)
    skipped = [(one.name, one.reason) for one in (*images.skipped, *found.skipped)]
    images = images.select(found.kept)
    seconds["features"], began = time.monotonic() - began, time.monotonic()
    facts, _ = image_facts(images.sources, found.ids, store, n_jobs=n_jobs, isolate=extractor.isolate)
    seconds["facts"], began = time.monotonic() - began, time.monotonic()
    known = AuditData(
        images.names,
        digests=found.ids,
        labels=images.labels,
        parts=images.splits,
        groups=images.groups,
        facts=facts,
        features=found.blocks[next(iter(found.blocks))],
        skipped=skipped,
    )
    findings = tuple(sorted(audit(known, CHECKS), key=lambda finding: RANK.index(finding.severity)))
    seconds["checks"] = time.monotonic() - began
    if title is None:
        title = str(data) if isinstance(data, str | Path) else ""
    return DataCheck(images, known, findings, seconds, title)
