"""What `check` and `report` cost, as ratios to the extraction and the fit of the same images in one run.

``python benchmarks/bench_report.py DATA`` takes a folder of class folders (1,399 photos of catdog in the
docs). It alternates the extraction of the features alone and a check with empty stores, then checks with a
full store, fits, and reports. ``--rows 100000`` also makes the page of a simulated set of so many images, and
says its peak of memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from PIL import Image

import featx
from featx.classifier.predictions import Predictions
from featx.evaluation import ARGMAX, evaluate, make_decision
from featx.extractor import Extraction, FeatureExtractor
from featx.images import ImageSet, load_images, read_picture
from featx.images.facts import ImageFacts, measure_facts
from featx.reporting.model import Report, check_predictions
from featx.reporting.sections import SECTIONS, Known
from featx.stores.memory import MemoryStore


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def processor_seconds() -> float:
    """Processor time of this process and its children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def processor(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and processor time of a call."""
    began = processor_seconds()
    return seconds(function), processor_seconds() - began


def quartiles(values: list[float]) -> str:
    """Median and lower quartile, in words."""
    return f"{np.median(values):.2f} (lower quartile {np.quantile(values, 0.25):.2f})"


def measure(data: Path, repeats: int) -> None:
    """Time check, fit and report on real images."""
    images = load_images(data)
    FeatureExtractor(store=MemoryStore()).extract(images.sources[:8])  # imports and converts
    ratios = []
    for _ in range(repeats):
        alone = processor(lambda: FeatureExtractor(store=MemoryStore()).extract(images.sources))
        store = MemoryStore()
        checked = processor(lambda store=store: featx.check(images, extractor=FeatureExtractor(store=store)))  # type: ignore[misc]
        ratios.append([checked[kind] / alone[kind] for kind in (0, 1)])
        print(
            f"extraction {alone[0]:.1f} s (processor {alone[1]:.1f} s), check {checked[0]:.1f} s "
            f"({checked[1]:.1f} s)",
            flush=True,
        )
    print(f"check, cold, / extraction: {quartiles([one[0] for one in ratios])}")
    print(f"  in processor time: {quartiles([one[1] for one in ratios])}")
    warm = [
        processor(lambda: featx.check(images, extractor=FeatureExtractor(store=store)))
        for _ in range(repeats)
    ]
    print(f"check, warm: {quartiles([one[0] for one in warm])} s")
    print(f"  in processor time: {quartiles([one[1] for one in warm])} s")
    clf = featx.ImageClassifier(store=store, random_state=0, n_trials=5)
    fitted = seconds(lambda: clf.fit_with_test(images))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        times = [processor(lambda: featx.report(clf, page)) for _ in range(repeats)]
        size = page.stat().st_size
    print(f"fit {fitted:.1f} s; page {size / 1e6:.1f} MB")
    print(f"report {quartiles([one[0] for one in times])} s, first {times[0][0]:.1f} s")
    print(f"  in processor time: {quartiles([one[1] for one in times])} s, first {times[0][1]:.1f} s")


def simulated(n: int, n_classes: int = 20, width: int = 320) -> Known:
    """What a report is made from, for n images whose features, facts and answers are drawn."""
    rng = np.random.default_rng(0)
    pictures = [np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120)))
                for _ in range(200)]  # fmt: skip
    labels = np.array([f"class {code}" for code in np.arange(200) % n_classes])
    clf = featx.ImageClassifier(
        "test_resnet", cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=0, store="memory",
        random_state=0, extractor=FeatureExtractor(pretrained=False, runtime="torch"),
    ).fit_with_test(pictures, labels)  # fmt: skip
    codes = rng.integers(0, n_classes, n)
    base = np.stack([measure_facts(read_picture(picture)) for picture in pictures])
    rows = base[rng.integers(0, len(base), n)]
    facts = ImageFacts.of_rows(rows)
    noise = rng.integers(-20, 21, facts.thumbs.shape, np.int8)
    facts = ImageFacts(
        facts.values * rng.uniform(0.9, 1.1, facts.values.shape).astype(np.float32), facts.tints,
        (facts.thumbs.astype(np.int16) + noise).clip(0, 255).astype(np.uint8),
    )  # fmt: skip
    features = (rng.normal(size=(n_classes, width))[codes] + rng.normal(size=(n, width)) * 2).astype(
        np.float32
    )
    proba = rng.dirichlet(np.full(n_classes, 0.05), n)
    proba[np.arange(n), codes] += 0.8
    proba /= proba.sum(axis=1, keepdims=True)
    names = [f"class {code}/{number:06d}.jpg" for number, code in enumerate(codes)]
    images = ImageSet([pictures[i % 200] for i in range(n)], names, labels=clf.classes_[codes])
    parts = np.where(rng.random(n) < 0.2, "test", "train")
    ids = rng.integers(0, 256, (n, 32), np.uint8)
    found: Extraction = clf.extract(pictures[:1])
    decision = make_decision(ARGMAX, clf.classes_, np.ones(n_classes))
    predictions = Predictions(images, ids, parts, clf.classes_, proba, 100 * rng.random(n), found, decision)
    test = parts == "test"
    evaluation = evaluate(images.labels[test], proba[test], clf.classes_)
    return Known(clf, predictions, evaluation, facts, features, ())


def measure_rows(n: int) -> None:
    """Time the page of n simulated images."""
    known: list[Known] = []
    made = seconds(lambda: known.append(simulated(n)))
    own = known[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    assert own.predictions is not None
    assert own.facts is not None
    assert own.features is not None
    findings = check_predictions(own.predictions, own.facts, own.features)[0]
    checked = time.perf_counter() - began
    own = replace(own, findings=findings)
    sections = {name: section(own) for name, section in SECTIONS.items()}
    page = Report(own, sections, "simulated").to_html()
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{n:,} images, drawn in {made:.0f} s: page in {took:.1f} s, of which checks {checked:.1f} s")
    print(f"page {len(page) / 1e6:.1f} MB; peak of memory {peak / 1e6:.2f} GB, {before / 1e6:.2f} before")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    print(describe(0))
    if options.data:
        measure(options.data, options.repeats)
    if options.rows:
        measure_rows(options.rows)
