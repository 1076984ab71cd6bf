"""One code path for every architecture: the main job on seven families, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from classifiers import image_classifier

import featx
from featx import FeatureExtractor

FAMILIES = {
    "vgg16": 64,
    "inception_v3": 107,
    "resnet50": 64,
    "vit_small_patch14_dinov2": 70,
    "convnext_tiny": 64,
    "swin_tiny_patch4_window7_224": None,
    "mobilenetv3_large_100": 64,
}
"""timm names, with an input size that keeps a test short (None: the network's own, which is fixed)."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), FAMILIES.items())
def test_a_family_is_extracted_tapped_fitted_saved_loaded_and_used(
    name: str, side: int | None, class_folders: Path, tmp_path: Path
) -> None:
    paths = sorted(map(str, class_folders.rglob("*.png")))
    labels = [Path(path).parent.name for path in paths]
    whole = FeatureExtractor(name, pretrained=False, input_size=side).fit_transform(paths[:2])
    early = FeatureExtractor(name, pretrained=False, input_size=side, cut=1, pool="grid4").fit_transform(
        paths[:2]
    )
    assert whole.shape[0] == early.shape[0] == 2
    assert whole.shape[1] != early.shape[1]
    clf = image_classifier(
        name, pretrained=False, input_size=side, cut=[0, 1], pool="avg", resize="crop",
        heads=["logistic"], n_trials=1, cv=2, random_state=0,
    ).fit(paths, labels)  # fmt: skip
    loaded = featx.load(clf.save(tmp_path / "m.featx"))
    np.testing.assert_allclose(loaded.predict_proba(paths), clf.predict_proba(paths), atol=5e-3)
    assert loaded.score(paths, labels) >= 0.9
