"""The canary: are kept rows still what this machine would compute?

A space remembers the environments (versions, runtime, device, CPU) that made or confirmed it. When today's is
not among them, a few cached pictures of the call at hand are computed again and compared.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featx.backbones.runtimes import TOLERANCE
from featx.exceptions import DriftWarning, FeatxError
from featx.extractor.forward import Forward
from featx.extractor.pipeline import ExtractionSettings, spread
from featx.images import ImageSource, read_picture
from featx.spec import FeatureSpec
from featx.stores.base import FeatureStore, Ids

CANARIES = 4
"""Pictures that are computed again."""

KEPT_ENVIRONMENTS = 16
NOTES = "spaces"


@dataclass(frozen=True)
class Checked:
    """What the canary found."""

    canaries: int
    """Pictures that were computed again."""
    drifts: dict[str, float]
    """Largest difference relative to the row's largest value, for each block that drifted."""


def unproven(
    store: FeatureStore, specs: Sequence[FeatureSpec], environment: dict[str, str]
) -> list[FeatureSpec]:
    """Spaces with rows that this environment has neither made nor confirmed."""
    return [
        spec
        for spec in specs
        if store.row_shape(spec.key) is not None and environment not in _environments(store, spec)
    ]


def vouch(store: FeatureStore, specs: Sequence[FeatureSpec], environment: dict[str, str]) -> None:
    """Note that the spaces' rows are those of this environment."""
    for spec in specs:
        known = _environments(store, spec)
        if environment not in known:
            kept = [*known, environment][-KEPT_ENVIRONMENTS:]
            store.remember(NOTES, spec.key, {"block": spec.block, "environments": kept})


def check(
    settings: ExtractionSettings,
    store: FeatureStore,
    forward: Forward,
    sources: Sequence[ImageSource],
    ids: Ids,
    environment: dict[str, str],
) -> Checked:
    """Compute some cached pictures again and compare; vouch for the spaces that agree.

    Parameters
    ----------
    settings : ExtractionSettings
        Of the spaces to check.
    sources, ids
        Pictures with rows in all of them, and their digests.
    environment : dict of str to str
        Today's.

    Warns
    -----
    DriftWarning
        With the numbers and the way out.
    """
    differences = dict.fromkeys(settings.specs, 0.0)
    canaries = 0
    for index in spread(len(ids), CANARIES):
        with contextlib.suppress(FeatxError):  # moved, or no weights here to compute it with
            picture = read_picture(sources[index])
            if picture.digest != ids[index].tobytes():
                continue
            for one in settings.prepare(picture, np.ones(len(settings.specs), bool)):
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
    """Largest relative difference that is no drift: the runtimes' tolerance and the stored dtype's."""
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
        else ["no record of what made them"]
    )
    return (
        f"kept rows of {spec.architecture} {spec.block} are not what is computed now: they differ by up to "
        f"{value:.2g} of a row's largest value (tolerance {limit(spec):.2g}; {len(drifts)} blocks). Changed: "
        f"{', '.join(changes)}. Go back to those versions, use another cache folder (--cache-dir), or remove "
        f"the space {spec.key[:16]} from the cache so that it is computed anew."
    )
