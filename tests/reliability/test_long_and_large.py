"""A hundred thousand pictures: memory stays under a ceiling, nothing leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, os, resource, sys, threading, warnings
import numpy as np
from featx import FeatureExtractor, ImageClassifier

def state():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB
    return peak, len(os.listdir("/proc/self/fd")), threading.active_count()

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
y = rng.integers(0, 2, 100_000)
images = [rng.integers(0, 200 + 55 * int(label), (32, 32), dtype=np.uint8) for label in y]
params = dict(pretrained=False, input_size=32, resize="squash", store=sys.argv[1], batch_size=64, n_jobs=2)
FeatureExtractor("test_resnet", **params).extract(images[:10_000])
few = state()
FeatureExtractor("test_resnet", **params).extract(images)
many = state()
classifier = ImageClassifier(
    "test_resnet", cut=None, pool="avg", heads=["logistic", "ridge", "nearest_mean"], n_trials=0, **params
).fit_with_test(images, y)
accuracy = classifier.evaluation_.metrics["accuracy"].value
width = classifier.best_estimator_.named_steps["head"].n_features_in_
print(json.dumps(dict(few=few, many=many, fitted=state(), computed=classifier.n_computed_,
                      accuracy=accuracy, width=width)))
"""

BUFFERS = 128
"""MB that an extraction may add, however many pictures: rows of a commit, queues, the allocator's slack."""

COPIES = 8
"""Times the float32 rows that a fit may hold: rows, centred rows, the folds' parts, resampled answers."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files through /proc")
def test_a_hundred_thousand_pictures_stay_under_the_ceiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "cache")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (few, *files), (many, *files_after), (fitted, *files_at_last) = (
        told[name] for name in ("few", "many", "fitted")
    )
    assert many - few < BUFFERS + 90_000 * 36 / 2**20
    assert fitted - many < BUFFERS + COPIES * 100_000 * told["width"] * 4 / 2**20
    assert files == files_after == files_at_last
    assert told["computed"] == 0
    assert told["accuracy"] > 0.99
    with capsys.disabled():
        print(
            f"\n100,000 pictures: {many - few:.0f} MB more than 10,000 to extract, {fitted - many:.0f} MB "
            f"more to fit; {files[0]} files and {files[1]} threads before and after"
        )
