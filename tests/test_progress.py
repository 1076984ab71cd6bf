"""Progress in Python: from the first event through search and evaluation, as bars where a person looks."""

from __future__ import annotations

import os
import pty
import select
import termios
from pathlib import Path
from typing import Any

import apart
import pytest

from featx import FeatureExtractor, FineTuner, ImageClassifier
from featx.finetune import Phase
from featx.images import load_images


def _classifier(**params: Any) -> ImageClassifier:
    clf = ImageClassifier("test_resnet", cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=1)
    clf.set_params(cv=2, store="memory", extractor__pretrained=False, extractor__runtime="torch")
    return clf.set_params(**params)


def test_events_begin_at_once_and_go_through_search_refit_and_evaluation(class_folders: Path) -> None:
    events: list[Any] = []
    _classifier(callback=events.append).fit_with_test(class_folders)
    assert (events[0].stage, events[0].done, events[0].total) == ("extract", 0, 24)
    stages = list(dict.fromkeys(event.stage for event in events if not event.message))
    assert stages[0] == "extract"
    assert stages[-2:] == ["search (refit)", "evaluate"]
    assert "search (grid)" in stages
    for stage in stages:
        counts = [event.done for event in events if event.stage == stage and not event.message]
        assert counts == sorted(counts)


def _fit(folder: Path, terminal: str) -> None:
    file = os.open(terminal, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    _classifier().fit_with_test(folder)
    print("fitted", flush=True)


def _on_a_terminal(folder: Path) -> str:
    """What a fit writes to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = apart.start(_fit, folder, os.ttyname(theirs))
    said = b""
    while select.select([ours], [], [], 0.1)[0] or process.is_alive():
        if select.select([ours], [], [], 0)[0]:
            said += os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)
    assert process.exitcode == 0
    return said.decode(errors="replace")


def test_a_terminal_shows_bars_by_default(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = _on_a_terminal(class_folders)
    assert "extract:" in shown
    assert "search (" in shown
    assert shown.rstrip().endswith("fitted")


def test_where_nobody_looks_nothing_is_written_unless_it_is_asked_for(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _classifier().fit(class_folders)
    assert capsys.readouterr().err == ""
    _classifier(verbose=True).fit(class_folders)
    assert "extract:" in capsys.readouterr().err


def test_an_extractor_and_a_fine_tuner_draw_bars_where_they_are_asked_to(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params: dict[str, Any] = {"pretrained": False, "runtime": "torch", "store": "memory"}
    for verbose in (False, "auto", True):
        FeatureExtractor("test_resnet", verbose=verbose, **params).fit_transform(class_folders)
        assert ("extract" in capsys.readouterr().err) == (verbose is True)
    images = load_images(class_folders)
    for verbose in (False, True):
        FineTuner(
            FeatureExtractor("test_resnet", verbose=False, **params), verbose=verbose, unfreeze=1, verdict=0,
            phases=[Phase(epochs=1)], random_state=0,
        ).fit(images, images.labels)  # fmt: skip
        assert bool(capsys.readouterr().err.strip()) == verbose


def test_a_silent_classifier_keeps_its_parts_silent(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clf = _classifier(verbose=False, extractor__verbose=True).fit(class_folders)
    clf.predict(class_folders)
    assert capsys.readouterr().err == ""
