"""The canary: check that cached features are what this environment computes.

The store's notes list the environments (versions, runtime, device, CPU) that computed or confirmed a space.
If the current one is not listed, a few cached images of the call are computed again and compared.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featx.backbones.runtimes import TOLERANCE
from featx.exceptions import DriftWarning, FeatxError
from featx.extractor.forward import Forward
from featx.extractor.pipeline import ExtractionSettings, Input, spread
from featx.images import ImageSource, read_picture
from featx.images.pixels import ignore_remark
from featx.spec import FeatureSpec
from featx.stores.base import FeatureStore, Ids

CANARIES = 4
"""Images that are computed again."""

KEPT_ENVIRONMENTS = 16
NOTES = "spaces"


@dataclass(frozen=True)
class Checked:
    """Result of the check."""

    canaries: int
    """Images that were computed again."""
    drifts: dict[str, float]
    """Largest difference relative to an image's largest value, for each block that drifted."""


def unproven(
    store: FeatureStore, specs: Sequence[FeatureSpec], environment: dict[str, str]
) -> list[FeatureSpec]:
    """Specs with features that this environment has neither computed nor confirmed."""
    return [
        spec
        for spec in specs
        if store.row_shape(spec.key) is not None and environment not in _environments(store, spec)
    ]


def vouch(store: FeatureStore, specs: Sequence[FeatureSpec], environment: dict[str, str]) -> None:
    """Record that the features of specs are those of this environment."""
    for spec in specs:
        known = _environments(store, spec)
        if environment not in known:
            kept = [*known, environment][-KEPT_ENVIRONMENTS:]
            store.remember(NOTES, spec.key, {"block": spec.block, "environments": kept})


def check(
    settings: ExtractionSettings,
    decode: Callable[..., list[Input]],
    store: FeatureStore,
    forward: Forward,
    sources: Sequence[ImageSource],
    ids: Ids,
    environment: dict[str, str],
) -> Checked:
    """Compute some cached images again and compare; record the environment for specs that agree.

    Parameters
    ----------
    settings : ExtractionSettings
        Of the specs to check.
    decode : callable
        As ``settings.prepare``.
    sources, ids
        Images with features for all of them, and their digests.
    environment : dict of str to str
        The current one.

    Warns
    -----
    DriftWarning
        If features differ; with the numbers and what to do.
    """
    differences = dict.fromkeys(settings.specs, 0.0)
    canaries = 0
    for index in spread(len(ids), CANARIES):
        with contextlib.suppress(FeatxError):  # the image was moved, or there are no weights
            picture = read_picture(sources[index])
            if picture.digest != ids[index].tobytes():
                continue
            for one in decode(picture, np.ones(len(settings.specs), bool), ignore_remark):
                rows = forward(one.pixels[None], settings.outputs, [one.name])
                for number in np.flatnonzero(one.wanted).tolist():
                    spec = settings.specs[number]
                    new = rows[settings.outputs[settings.output_of[number]]].reshape(-1)
                    kept = store.read(spec.key, ids[index][None]).astype(np.float64).reshape(-1)
                    scale = max(float(np.abs(kept).max()), float(np.finfo(np.float32).tiny))
                    differences[spec] = max(differences[spec], float(np.abs(new - kept).max()) / scale)
            canaries += 1
    if not canaries:
        return Checked(0, {})
    drifts = {spec: value for spec, value in differences.items() if value > limit(spec)}
    vouch(store, [spec for spec in settings.specs if spec not in drifts], environment)
    if drifts:
        warnings.warn(_words(drifts, store, environment), DriftWarning, stacklevel=2)
    return Checked(canaries, {spec.block: value for spec, value in drifts.items()})


def limit(spec: FeatureSpec) -> float:
    """Largest allowed relative difference: the tolerance of runtimes and the rounding of the stored dtype."""
    return TOLERANCE[spec.precision] + (2.0**-10 if spec.dtype == "float16" else 0.0)


def _environments(store: FeatureStore, spec: FeatureSpec) -> list[dict[str, str]]:
    note = store.recall(NOTES, spec.key)
    return list(note["environments"]) if note else []


def _words(drifts: dict[FeatureSpec, float], store: FeatureStore, environment: dict[str, str]) -> str:
    spec, value = max(drifts.items(), key=lambda item: item[1])
    known = _environments(store, spec)
    changes = (
        [
            f"{name} {known[-1].get(name, 'absent')} -> {environment.get(name, 'absent')}"
            for name in sorted({*known[-1], *environment})
            if known[-1].get(name) != environment.get(name)
        ]
        if known
        else ["no record of what computed them"]
    )
    return (
        f"cached features of {spec.architecture} {spec.block} are not those of today: they differ by up to "
        f"{value:.2g} of the largest value (tolerance {limit(spec):.2g}; {len(drifts)} blocks). Changed: "
        f"{', '.join(changes)}. Go back to those versions, use another cache folder (--cache-dir), or delete "
        f"the space, so that it is computed anew: featx cache prune --space {spec.key[:16]}"
    )
