"""Checks of files and of how images look: format, size, sharpness, exposure, information.

What is unusual is judged against the set itself: a modified z-score (Iglewicz & Hoaglin, 1993) beyond
`UNUSUAL`. Blur is measured by the Laplacian (Pech-Pacheco et al., ICPR 2000), information by the entropy of
the grey levels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from featx.audit.values import AuditData, Finding, Severity, listed
from featx.images.facts import MODES, ImageFacts, expected_format
from featx.tables import count

UNUSUAL = 3.5
"""Modified z-score from which a value is unusual (Iglewicz & Hoaglin, 1993)."""

LEAST_SPREAD = 0.25
"""Smallest robust deviation of logarithms: in an even set, half as sharp or as bright is not unusual yet."""

TINY, EXTREME_ASPECT = 32, 4.0
"""Shorter side in pixels, and ratio of the sides, from which an image is named in any set."""

HUGE_PIXELS = 40e6
ODD_MODES = ("CMYK", "I;16", "I", "F")

Mask = NDArray[np.bool_]


def find_unreadable(data: AuditData) -> Finding | None:
    """Find images that cannot be read; `value` is their number."""
    if not data.skipped:
        return None
    names, reasons = zip(*data.skipped, strict=True)
    shown = listed([f"{name}: {reason}" for name, reason in data.skipped])
    sentence = f"{count(len(names), 'image')} cannot be used: {shown}. Repair or remove them."
    return Finding(
        "unreadable", "warning", sentence, (), names, len(names), reasons, ("drop",) * len(names), ()
    )


def find_wrong_extensions(data: AuditData) -> Finding | None:
    """Find files whose extension names another format; `value` is their number."""
    if data.facts is None:
        return None
    kinds = data.facts.kinds()
    wrong = [i for i, kind in enumerate(kinds) if kind and (expected_format(data.names[i]) or kind) != kind]
    if not wrong:
        return None
    shown = listed([f"{data.names[i]} holds {kinds[i]}" for i in wrong])
    sentence = f"{count(len(wrong), 'file')} with the extension of another format: {shown}. Rename them."
    evidence = [f"holds {kinds[i]}" for i in wrong]
    return Finding.of(data, "wrong_extension", "note", sentence, wrong, len(wrong), evidence=evidence)


def find_animated(data: AuditData) -> Finding | None:
    """Find files of several frames, of which only the first is used; `value` is their number."""
    return _find(
        data, "animated", lambda d: d["n_frames"] > 1, lambda d, i: f"{d['n_frames'][i]:.0f} frames",
        "{n} of several frames; only the first is used: {shown}.",
    )  # fmt: skip


def find_odd_modes(data: AuditData) -> Finding | None:
    """Find images in CMYK or of more than 8 bits among others; `value` is their number.

    Nothing is reported where most images of the set are of that mode.
    """

    def odd(d: ImageFacts) -> Mask:
        modes = d["mode"].astype(int)
        codes = [MODES.index(mode) for mode in ODD_MODES] + [len(MODES)]
        usual = np.bincount(modes, minlength=len(MODES) + 1) > len(modes) / 2
        return np.asarray(np.isin(modes, codes) & ~usual[modes])

    def mode(d: ImageFacts, i: int) -> str:
        return f"mode {[*MODES, 'other'][int(d['mode'][i])]}"

    return _find(
        data, "odd_mode", odd, mode,
        "{n} in an unusual mode (CMYK, more than 8 bits), unlike most: {shown}. "
        "They are converted to RGB.",
    )  # fmt: skip


def find_rotated(data: AuditData) -> Finding | None:
    """Find images with an EXIF rotation; featx turns them upright, other programs may not."""
    return _find(
        data, "exif_rotation", lambda d: d["orientation"] > 1,
        lambda d, i: f"EXIF orientation {d['orientation'][i]:.0f}",
        "{n} to be rotated as EXIF says. featx does so; other programs may not: {shown}.",
    )  # fmt: skip


def find_odd_sizes(data: AuditData) -> Finding | None:
    """Find images that are tiny, huge or of an extreme aspect; `value` is their number."""

    def odd(d: ImageFacts) -> Mask:
        width, height = d["width"], d["height"]
        short, ratio = (
            np.minimum(width, height),
            np.maximum(width, height) / np.maximum(1, np.minimum(width, height)),
        )
        usual = np.median(short)
        tiny = (short < TINY) & (usual >= 2 * TINY) | (_z(np.log(short + 1)) < -2 * UNUSUAL)
        odd = tiny | (ratio > EXTREME_ASPECT) & (np.median(ratio) < 2) | (width * height > HUGE_PIXELS)
        return np.asarray(odd)

    return _find(
        data, "odd_size", odd, lambda d, i: f"{d['width'][i]:.0f} x {d['height'][i]:.0f} pixels",
        "{n} much smaller, much larger or much narrower than most: {shown}.",
    )  # fmt: skip


def find_blurred(data: AuditData) -> Finding | None:
    """Find images that are much less sharp than the others; `value` is their number."""
    return _find(
        data, "blurred", lambda d: (_z(np.log(d["sharpness"] + 0.1)) < -UNUSUAL) & _seen(d),
        lambda d, i: f"sharpness {d['sharpness'][i]:.1f} (median {np.median(d['sharpness']):.1f})",
        "{n} much less sharp than the others: {shown}. Look whether they can be recognised.",
    )  # fmt: skip


def find_dark(data: AuditData) -> Finding | None:
    """Find images that are much darker than the others; `value` is their number."""
    return _find(
        data, "dark",
        lambda d: (_z(np.log(d["brightness"] + 2)) < -UNUSUAL) & (d["brightness"] < 64) & _seen(d),
        lambda d, i: f"brightness {d['brightness'][i]:.0f} of 255",
        "{n} much darker than the others: {shown}.",
    )  # fmt: skip


def find_overexposed(data: AuditData) -> Finding | None:
    """Find images that are much brighter than the others; `value` is their number."""
    return _find(
        data, "overexposed",
        lambda d: (_z(np.log(257 - d["brightness"])) < -UNUSUAL) & (d["light"] > 0.5) & _seen(d),
        lambda d, i: f"brightness {d['brightness'][i]:.0f} of 255",
        "{n} much brighter than the others: {shown}.",
    )  # fmt: skip


def find_little_information(data: AuditData) -> Finding | None:
    """Find images that are (almost) of one colour, where the others are not; `value` is their number."""
    return _find(
        data, "little_information",
        lambda d: (d["entropy"] < 1) & (np.median(d["entropy"]) > 2)
        | (d["contrast"] < 2) & (np.median(d["contrast"]) > 8),
        lambda d, i: f"{d['entropy'][i]:.1f} bits a pixel",
        "{n} almost of one colour: {shown}.", severity="warning", suggestion="drop",
    )  # fmt: skip


def _find(
    data: AuditData,
    check: str,
    condition: Callable[[ImageFacts], Mask],
    evidence: Callable[[ImageFacts, int], str],
    sentence: str,
    *,
    severity: Severity = "note",
    suggestion: str = "",
) -> Finding | None:
    """Return the finding on images that meet a condition on their facts."""
    if data.facts is None or not len(data.facts):
        return None
    found = np.flatnonzero(condition(data.facts)).tolist()
    if not found:
        return None
    texts = [evidence(data.facts, i) for i in found]
    shown = listed([f"{data.names[i]} ({text})" for i, text in zip(found, texts, strict=True)])
    said = sentence.format(n=count(len(found), "image"), shown=shown)
    return Finding.of(
        data, check, severity, said, found, len(found),
        evidence=texts, suggestions=[suggestion] * len(found),
    )  # fmt: skip


def _z(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Modified z-scores."""
    middle = np.median(values)
    spread = max(float(np.median(np.abs(values - middle))) / 0.6745, LEAST_SPREAD)
    return np.asarray((values - middle) / spread, np.float32)


def _seen(d: ImageFacts) -> Mask:
    """Images that are not of one colour; those are named by another check."""
    return np.asarray(d["contrast"] >= 2)
