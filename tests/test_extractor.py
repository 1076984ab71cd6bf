"""FeatureExtractor: images to rows, each computed once, whatever the call looks like."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from featx import FeatureExtractor
from featx.backbones import load_backbone
from featx.backbones.runtimes import agree
from featx.backbones.transform import prepare
from featx.exceptions import (
    DataError,
    DriftWarning,
    ImageError,
    ImageWarning,
    StoreWarning,
    TooManyBadImagesError,
    UsageError,
)
from featx.extractor.stages import Stage
from featx.images import decode_picture, image_digest, read_picture
from featx.spec import FeatureSpec
from featx.stores import open_store
from featx.stores.base import as_ids
from featx.stores.memory import MemoryStore

Make = Callable[..., FeatureExtractor]
WIDTH = 96
"""Of test_resnet's features."""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An extractor of a tiny random network on a store of the test's own, in fp32."""

    def build(backbone: Any = "test_resnet", **params: Any) -> FeatureExtractor:
        settings: dict[str, Any] = {
            "pretrained": False,
            "input_size": 64,
            "precision": "fp32",
            "runtime": "torch",
        }
        return FeatureExtractor(backbone, **{"store": tmp_path / "cache", **settings, **params})

    return build


@pytest.fixture
def paths(class_folders: Path) -> list[str]:
    """24 files, red and blue in turn."""
    red, blue = (sorted((class_folders / label).iterdir()) for label in ("red", "blue"))
    return [str(path) for pair in zip(red, blue, strict=True) for path in pair]


@pytest.fixture
def labels() -> list[str]:
    return ["red", "blue"] * 12


def by_hand(extractor: FeatureExtractor, paths: list[str]) -> np.ndarray:
    """The rows of `extractor.specs_`, one picture at a time, without pipeline and store."""
    import torch

    backbone = load_backbone(extractor.card_, device="cpu")
    rows = []
    for path in paths:
        row = []
        for spec in extractor.specs_.values():
            pixels = prepare(decode_picture(read_picture(path)), spec)
            with torch.inference_mode():
                row.append(backbone.stem([spec])(torch.from_numpy(pixels)[None])[0].numpy().reshape(-1))
        rows.append(np.concatenate(row))
    return np.stack(rows)


# --- rows ---


def test_rows_are_those_of_the_network_in_the_callers_order(make: Make, paths: list[str]) -> None:
    extractor = make(dtype="float32").fit(paths)
    rows = extractor.transform(paths)
    assert rows.shape == (24, WIDTH)
    assert rows.dtype == np.float32
    assert agree(rows, by_hand(extractor, paths), "fp32")
    np.testing.assert_array_equal(extractor.transform(paths[::-1]), rows[::-1])


def test_rows_kept_as_float16_lose_half_a_unit_in_the_last_place(make: Make, paths: list[str]) -> None:
    exact = make(dtype="float32").fit_transform(paths)
    np.testing.assert_allclose(make(dtype="float16").fit_transform(paths), exact, rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_rows_do_not_depend_on_batch_size_order_threads_or_batch_mates(
    make: Make, paths: list[str], runtime: str
) -> None:
    def rows(order: list[int], **params: Any) -> np.ndarray:
        extractor = make(store="memory", runtime=runtime, dtype="float32", **params)
        return extractor.fit_transform([paths[index] for index in order])

    whole = rows(list(range(24)), batch_size=24, n_jobs=1)
    limit = 1e-6 * np.abs(whole).max() if runtime == "torch" else 0.0
    for size, jobs in ((1, 2), (7, 3), ("auto", None)):
        order = list(np.random.default_rng(jobs).permutation(24))
        found = rows(order, batch_size=size, n_jobs=jobs)
        assert np.abs(found - whole[order]).max() <= limit
    assert np.abs(rows([5], batch_size=8)[0] - whole[5]).max() <= limit


def test_all_kinds_of_sources_give_the_same_rows(make: Make, paths: list[str]) -> None:
    extractor = make(store="memory").fit(paths)
    rows = extractor.transform(paths)
    images = [Image.open(path) for path in paths]
    batch = np.stack([np.asarray(image) for image in images])
    assert batch.shape == (24, 48, 64, 3)
    for sources in (
        [Path(path).read_bytes() for path in paths],
        images,
        batch,
        list(batch),
        np.array(paths),
        np.array(paths, object)[:, None],
    ):
        np.testing.assert_array_equal(extractor.transform(sources), rows)


def test_cuts_pools_and_resizes_come_out_of_one_pass(make: Make, paths: list[str]) -> None:
    extractor = make(cut=["layer2", "last"], pool=["avg", "grid2"], resize=["crop", "pad"], dtype="float32")
    result = extractor.extract(paths)
    assert list(result.blocks) == list(extractor.specs_)
    assert set(result.blocks) == {
        f"{cut}:{pool}:{resize}"
        for cut in ("layer2", "last")
        for pool in ("avg", "grid2")
        for resize in ("crop", "pad")
    }
    assert result.computed == 24
    assert agree(result.blocks.stack(list(result.blocks)), by_hand(extractor, paths), "fp32")


def test_all_cuts_leave_out_the_pools_that_one_does_not_allow(make: Make, paths: list[str]) -> None:
    extractor = make("test_vit", input_size=160, cut="all", pool=["avg", "cls"], resize="squash").fit(
        paths[:2]
    )
    assert {spec.cut for spec in extractor.specs_.values()} == {tap.name for tap in extractor.card_.taps}
    assert extractor.transform(paths[:2]).shape[1] == len(extractor.get_feature_names_out())
    with pytest.raises(UsageError, match="'cls'"):
        make(cut="all", pool="cls").fit()


def test_views_are_blocks_of_their_own_and_always_the_same(make: Make, paths: list[str]) -> None:
    extractor = make(view=[0, 1, 2], view_policy="light", dtype="float32")
    result = extractor.extract(paths[:6])
    assert list(result.blocks) == ["last:avg:crop", "last:avg:crop:view1", "last:avg:crop:view2"]
    plain, first, second = (result.blocks[name] for name in result.blocks)
    assert not np.array_equal(plain, first)
    assert not np.array_equal(first, second)
    alone = make(view=2, view_policy="light", dtype="float32", store="memory").extract(paths[5:])
    np.testing.assert_allclose(alone.blocks["last:avg:crop:view2"][0], second[5], rtol=1e-5, atol=1e-6)


def test_a_map_without_pooling_is_flattened(make: Make, paths: list[str]) -> None:
    result = make(cut="layer4", pool="none", input_size=None).extract(paths[:3])
    spec = result.specs["layer4:none:crop"]
    shape = result.store.row_shape(spec.key)
    assert shape is not None
    assert len(shape) == 3
    assert result.blocks["layer4:none:crop"].shape == (3, np.prod(shape))


# --- nothing twice ---


def test_a_second_call_computes_nothing_and_a_larger_one_what_is_new(make: Make, paths: list[str]) -> None:
    assert make().extract(paths[:14]).computed == 14
    assert make().extract(paths[:14]).computed == 0
    assert make().extract(paths).computed == 10


def test_renaming_and_repeating_cost_nothing(make: Make, paths: list[str], tmp_path: Path) -> None:
    first = make().extract(paths)
    moved = [str(tmp_path / f"copy {number}.bin") for number in range(24)]
    for old, new in zip(paths, moved, strict=True):
        shutil.copy(old, new)
    again = make().extract(moved + paths)
    assert again.computed == 0
    np.testing.assert_array_equal(again.ids, np.concatenate([first.ids, first.ids]))


def test_what_occurs_twice_in_a_call_is_computed_once(make: Make, paths: list[str]) -> None:
    result = make(store="memory").extract([*paths, *paths, *paths])
    assert result.computed == 24
    rows = result.blocks["last:avg:crop"]
    np.testing.assert_array_equal(rows[:24], rows[24:48])


def test_a_new_tap_computes_only_that_tap(make: Make, paths: list[str]) -> None:
    first = make(cut="last").extract(paths)
    both = make(cut=["layer1", "last"]).extract(paths)
    assert both.computed == 24
    assert both.store.keys().keys() >= {spec.key for spec in both.specs.values()}
    np.testing.assert_array_equal(both.blocks["last:avg:crop"], first.blocks["last:avg:crop"])


def test_a_picture_that_lacks_one_block_of_several_gets_that_one(make: Make, paths: list[str]) -> None:
    make(cut="layer1").extract(paths[:12])
    make(cut="last", resize="pad").extract(paths[12:])
    extractor = make(cut=["layer1", "last"], resize=["crop", "pad"], dtype="float16")
    result = extractor.extract(paths)
    assert result.computed == 24
    expected = by_hand(extractor, paths)
    assert agree(result.blocks.stack(list(result.blocks)), expected, "fp16")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input_size": 96}, "input_size"),
        ({"resize": "squash"}, "resize"),
        ({"pool": "max"}, "pool"),
        ({"dtype": "float32"}, "dtype"),
        ({"seed": 1}, "weights"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_a_changed_field_is_a_new_space_and_the_remark_names_it(
    make: Make, paths: list[str], change: dict[str, Any], field: str
) -> None:
    make().extract(paths[:4])
    told: list[str] = []
    result = make(**change, callback=lambda event: told.append(event.message)).extract(paths[:4])
    assert result.computed == 4
    assert any(field in remark for remark in result.remarks)
    assert set(result.remarks) <= set(told)


OTHER_VALUES: dict[str, dict[str, Any]] = {
    "architecture": {"architecture": "resnet18"},
    "weights": {"weights": "0" * 64},
    "cut": {"cut": "layer1"},
    "pool": {"pool": "max"},
    "final_norm": {"final_norm": False},
    "input_size": {"input_size": (64, 96)},
    "resize": {"resize": "pad"},
    "crop_pct": {"crop_pct": 0.5},
    "interpolation": {"interpolation": "lanczos"},
    "mean": {"mean": (0.1, 0.2, 0.3)},
    "std": {"std": (0.1, 0.2, 0.3)},
    "background": {"background": (0, 0, 0)},
    "pixel_range": {"pixel_range": "minmax"},
    "bands": {"bands": "3,2,1"},
    "decoder": {"decoder": "another"},
    "decode": {"decode": "fast"},
    "view": {"view": 1, "view_policy": "light"},
    "view_policy": {"view": 1, "view_policy": "light"},
    "precision": {"precision": "fp16"},
    "dtype": {"dtype": "float32"},
    "format": {"format": 0},
}
"""For each field of a spec, another value (a policy comes with a view)."""


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(FeatureSpec)])
def test_every_field_that_differs_alone_is_a_miss_that_names_it(
    make: Make, paths: list[str], field: str
) -> None:
    store = MemoryStore()
    extractor = make(store=store).fit()
    (spec,) = extractor.specs_.values()
    other = spec.replace(**OTHER_VALUES[field])
    wrong = np.full((1, WIDTH), 7.0, np.float32)
    store.append(other.key, as_ids([image_digest(paths[0])]), wrong, other)
    result = extractor.extract(paths[:1])
    assert result.computed == 1
    assert (result.blocks["last:avg:crop"] != wrong).any()
    assert any(f" {field} (cached: " in remark for remark in result.remarks)


def test_a_warm_call_imports_no_network_library(paths: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from featx import FeatureExtractor\n"
        "extractor = FeatureExtractor('test_resnet', pretrained=False, store=sys.argv[1])\n"
        "result = extractor.extract(sys.argv[2:])\n"
        "assert result.blocks['last:avg:crop'].shape == (24, 96)\n"
        "print(result.computed, *sorted({'torch', 'timm', 'openvino', 'torchvision'} & set(sys.modules)))\n"
    )
    cold = FeatureExtractor("test_resnet", pretrained=False, store=tmp_path / "cache").extract(paths)
    assert cold.computed == 24
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), *paths]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["0"]


def test_an_empty_call_is_an_answer(make: Make) -> None:
    result = make().extract([])
    assert result.blocks["last:avg:crop"].shape == (0, WIDTH)
    assert result.computed == 0


# --- bad pictures ---


@pytest.fixture
def mixed(paths: list[str], tmp_path: Path) -> list[str]:
    """Readable files with a broken one, its copy, and an absent one among them."""
    broken, copy, absent = (str(tmp_path / name) for name in ("broken.jpg", "copy.jpg", "absent.jpg"))
    for path in (broken, copy):
        Path(path).write_bytes(b"\xff\xd8\xff\xe0 no picture")
    return [paths[0], broken, paths[1], absent, paths[2], copy, *paths[3:]]


def test_what_has_its_rows_and_a_known_digest_is_not_read(make: Make, paths: list[str]) -> None:
    ids = as_ids([image_digest(path) for path in paths])
    right = make().extract(paths[:20]).blocks.stack(["last:avg:crop"])
    for path in paths[:20]:
        Path(path).unlink()
    found = make().extract(paths, ids=ids)
    assert found.computed == 4
    assert found.kept.tolist() == list(range(24))
    np.testing.assert_array_equal(found.blocks.stack(["last:avg:crop"])[:20], right)


def test_unreadable_pictures_are_skipped_with_their_reason(make: Make, mixed: list[str]) -> None:
    result = make().extract(mixed, on_error="skip")
    assert [one.name for one in result.skipped] == [mixed[1], mixed[3], mixed[5]]
    assert all(one.reason for one in result.skipped)
    assert result.kept.tolist() == [0, 2, 4, *range(6, 27)]
    assert result.blocks["last:avg:crop"].shape == (24, WIDTH)
    np.testing.assert_array_equal(result.ids[1], np.frombuffer(image_digest(mixed[2]), np.uint8))


def test_an_unreadable_picture_raises_and_what_was_ready_is_kept(
    make: Make, paths: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.jpg: text, not an image"):
        make(batch_size=1).extract([*paths, str(broken)])
    assert make().extract(paths).computed < 24
    with pytest.raises(ImageError):
        make().fit(paths).transform([str(broken)])


def test_a_remark_on_a_picture_is_told_once(make: Make, paths: list[str], tmp_path: Path) -> None:
    small = [str(tmp_path / f"small {number}.png") for number in range(3)]
    for number, path in enumerate(small):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    with pytest.warns(ImageWarning, match=r"a side is shorter than 32 pixels \(and 2 other images\)"):
        result = make().extract([*paths, *small])
    assert result.computed == 27
    assert make().extract(small).remarks == ()


def test_rows_that_overflow_half_precision_are_computed_again_in_fp32(make: Make, paths: list[str]) -> None:
    backbone = load_backbone("test_resnet", pretrained=False, device="cpu")
    for parameter in backbone.module.conv1.parameters():
        parameter.data *= 1e6  # beyond 65,504, the largest float16
    loud = make(backbone, precision="fp16", cut="layer1", input_size=None)
    exact = make(backbone, precision="fp32", cut="layer1", input_size=None, dtype="float32")
    result = loud.extract(paths[:3])
    assert result.skipped == []
    np.testing.assert_allclose(
        result.blocks["layer1:avg:crop"], exact.extract(paths[:3]).blocks["layer1:avg:crop"], rtol=2**-10
    )


def test_rows_that_are_not_finite_in_fp32_either_are_never_kept(make: Make, paths: list[str]) -> None:
    backbone = load_backbone("test_resnet", pretrained=False, device="cpu")
    for parameter in backbone.module.parameters():
        parameter.data *= 1e20
    extractor = make(backbone, input_size=None)
    with pytest.raises(TooManyBadImagesError, match="none of the 3 images can be used") as caught:
        extractor.extract(paths[:3], on_error="skip")
    assert [one.reason for one in caught.value.skipped] == [
        "the network gives NaN or Inf for it, in fp32 too"
    ] * 3
    key = extractor.specs_["last:avg:crop"].key
    assert extractor.store_.missing(key, as_ids([image_digest(paths[0])])).all()
    with pytest.raises(ImageError, match="NaN or Inf"):
        make(backbone, input_size=None).extract(paths[:3])


# --- the store behind it ---


def test_a_damaged_segment_is_computed_again_when_it_is_read(
    make: Make, paths: list[str], tmp_path: Path
) -> None:
    right = make().fit(paths).transform(paths)
    (segment,) = (tmp_path / "cache").rglob("seg-*.h5")
    content = bytearray(segment.read_bytes())
    position = content.find(np.float16(right[0, :16]).tobytes())
    assert position > 0
    content[position] ^= 0xFF
    segment.write_bytes(content)
    with pytest.warns(StoreWarning):
        rows = make().fit(paths).transform(paths)
    np.testing.assert_array_equal(rows, right)


def test_a_store_for_one_call_leaves_the_own_one_alone(make: Make, paths: list[str]) -> None:
    extractor = make().fit(paths)
    own = MemoryStore()
    assert extractor.extract(paths[:3], store=own).computed == 3
    assert extractor.extract(paths[:3], store=own).computed == 0
    assert extractor.extract(paths[:3]).computed == 3


def test_auto_precision_takes_the_rows_that_are_there(make: Make, paths: list[str]) -> None:
    hardware = next(iter(make(precision="auto").fit().specs_.values())).precision
    other = "fp32" if hardware != "fp32" else "bf16"
    make(precision=other).extract(paths)
    adopted = make(precision="auto").extract(paths)
    assert adopted.computed == 0
    assert adopted.specs["last:avg:crop"].precision == other
    assert any(f"precision {other} is taken from the cached features" in remark for remark in adopted.remarks)
    new = [Image.new("RGB", (40, 40), (0, number, 0)) for number in range(20)]
    assert make(precision="auto").fit(new).specs_["last:avg:crop"].precision == hardware


def test_a_plan_counts_and_keeps_nothing(make: Make, paths: list[str], tmp_path: Path) -> None:
    make().extract(paths[:10])
    plan = make().plan([*paths, paths[0], str(tmp_path / "absent.png")])
    assert (plan.total, plan.cached, plan.to_compute, plan.unreadable) == (24, 10, 14, 1)
    assert plan.missing == {"last:avg:crop": 14}
    assert plan.images_per_s > 0
    assert plan.seconds > 0
    assert make().plan(paths).to_compute == 14
    make().extract(paths)
    assert make().plan(paths).seconds == 0


# --- canary ---


def forget_environments(store: Any, key: str) -> None:
    store.remember("spaces", key, {"block": "", "environments": [{"torch": "0.1"}]})


def test_other_versions_make_a_canary_that_confirms_and_is_quiet_then(make: Make, paths: list[str]) -> None:
    result = make().extract(paths)
    assert result.canaries == 0
    forget_environments(result.store, result.specs["last:avg:crop"].key)
    checked = make().extract(paths)
    assert (checked.computed, checked.canaries) == (0, 4)
    assert make().extract(paths).canaries == 0


def test_rows_that_are_no_longer_computed_so_are_reported_with_numbers(make: Make, paths: list[str]) -> None:
    store = MemoryStore()
    extractor = make(store=store).fit(paths)
    spec = extractor.specs_["last:avg:crop"]
    rows = make(store="memory", dtype="float32").fit_transform(paths)
    store.append(spec.key, as_ids([image_digest(path) for path in paths]), 1.5 * rows, spec)
    forget_environments(store, spec.key)
    for _ in range(2):  # it is said again until something is done
        with pytest.warns(DriftWarning, match=r"differ by up to 0\.33 .*torch 0\.1 -> "):
            assert extractor.extract(paths).canaries == 4


# --- scikit-learn ---


def test_clone_repr_and_params_load_no_network(paths: list[str], tmp_path: Path) -> None:
    script = (
        "import sys, pickle\n"
        "from sklearn.base import clone\n"
        "from featx import FeatureExtractor\n"
        "extractor = FeatureExtractor('resnet50.a1_in1k', cut='layer3', store=sys.argv[1])\n"
        "copy = pickle.loads(pickle.dumps(clone(extractor)))\n"
        "assert copy.get_params() == extractor.get_params()\n"
        "assert repr(copy) == repr(extractor)\n"
        "assert extractor.set_params(cut='layer2').cut == 'layer2'\n"
        "assert not {'torch', 'timm', 'openvino'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_it_is_not_fitted_before_fit(make: Make, paths: list[str]) -> None:
    with pytest.raises(NotFittedError):
        make().transform(paths)
    with pytest.raises(NotFittedError):
        make().get_feature_names_out()


def test_fit_runs_no_image_through_the_network(make: Make, paths: list[str]) -> None:
    extractor = make().fit(paths)
    store = open_store(extractor.store)
    assert store.keys() == {}


def test_a_clone_is_unfitted_and_shares_the_store(make: Make, paths: list[str]) -> None:
    extractor = make(store=MemoryStore()).fit(paths)
    extractor.transform(paths)
    copy = clone(extractor)
    assert not hasattr(copy, "specs_")
    assert copy.extract(paths).computed == 0


def test_refitting_forgets(make: Make, paths: list[str]) -> None:
    extractor = make().fit(paths)
    extractor.set_params(cut="layer1").fit(paths)
    assert list(extractor.specs_) == ["layer1:avg:crop"]


def test_a_fitted_one_is_pickled_with_its_recipes(make: Make, paths: list[str]) -> None:
    extractor = make().fit(paths)
    rows = extractor.transform(paths)
    copy = pickle.loads(pickle.dumps(extractor))
    np.testing.assert_array_equal(copy.transform(paths), rows)


def test_it_works_in_pipelines_searches_calibration(make: Make, paths: list[str], labels: list[str]) -> None:
    pipeline = make_pipeline(make(store=MemoryStore()), LogisticRegression(max_iter=500))
    assert cross_val_score(pipeline, paths, labels, cv=3).mean() > 0.9
    search = GridSearchCV(pipeline, {"featureextractor__cut": [None, "layer1"]}, cv=3).fit(paths, labels)
    assert search.best_score_ > 0.9
    calibrated = CalibratedClassifierCV(pipeline, cv=3).fit(np.array(paths, object), labels)
    assert (calibrated.predict(paths) == labels).mean() > 0.9


def test_columns_are_named_and_set_output_makes_frames(make: Make, paths: list[str]) -> None:
    import pandas as pd

    extractor = make(pool=["avg", "max"]).set_output(transform="pandas")
    frame = extractor.fit_transform(pd.DataFrame({"path": paths}, index=range(100, 124)))
    assert frame.columns[0] == "last:avg:crop:0"
    assert frame.columns[-1] == f"last:max:crop:{WIDTH - 1}"
    assert frame.shape == (24, 2 * WIDTH)
    assert frame.index[0] == 100
    assert extractor.feature_names_in_.tolist() == ["path"]


def test_it_is_rebuilt_from_its_recipes(make: Make, paths: list[str]) -> None:
    extractor = make(cut=["layer1", "last"]).fit(paths)
    rows = extractor.extract(paths).blocks["layer1:avg:crop"]
    one = {"layer1:avg:crop": extractor.specs_["layer1:avg:crop"]}
    rebuilt = FeatureExtractor.from_specs(one, extractor.card_, store=MemoryStore(), runtime="torch")
    np.testing.assert_array_equal(rebuilt.transform(paths), rows)


def test_threads_may_share_one(make: Make, paths: list[str]) -> None:
    extractor = make(store=MemoryStore()).fit(paths)
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        found[number] = extractor.transform(paths[number:] + paths[:number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, rows in found.items():
        np.testing.assert_array_equal(np.roll(rows, number, axis=0), found[0])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"n_jobs": 0}, "n_jobs 0"),
        ({"cut": "layer9"}, "'layer9' is not in"),
        ({"pool": "cls"}, "pool 'cls' is not possible"),
        ({"runtime": "tpu"}, "runtime 'tpu'"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"decoder": "magic"}, "decoder 'magic'"),
    ],
)
def test_a_wrong_parameter_is_refused_by_fit_in_words(make: Make, params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**params).fit()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (5, "a int is not an image"),
        (b"bytes", "text, not an image"),
        (np.zeros((2, 2), np.float32), "no agreed range"),
    ],
)
def test_what_is_no_image_is_refused_in_words(make: Make, sources: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make().extract(sources)


def test_a_single_image_is_a_list_of_one(make: Make) -> None:
    assert len(make().extract(np.zeros((48, 64, 3), np.uint8)).ids) == 1


# --- the real thing ---


@pytest.mark.data
def test_real_photos_agree_with_timms_own_transform(real_data: Path, tmp_path: Path) -> None:
    """Against Pillow's decoding and resizing as timm documents it: cosine of the embedding."""
    import timm
    import torch

    files = sorted((real_data / "catdog").rglob("*.jpg"))[::120]
    extractor = FeatureExtractor(store=tmp_path, precision="fp32", dtype="float32")
    rows = extractor.fit_transform([str(path) for path in files])
    module = load_backbone(extractor.card_, device="cpu").module
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    with torch.inference_mode():
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in files])
        expected = module.forward_head(module.forward_features(batch), pre_logits=True).numpy()
    cosine = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9999


def test_a_call_that_keeps_no_rows_still_keeps_its_converted_network(
    make: Make, paths: list[str], tmp_path: Path
) -> None:
    extractor = make(
        store=tmp_path, runtime="openvino", pool="gem"
    )  # a recipe that no other test has compiled
    found = extractor.extract(paths[:2], store=MemoryStore())
    assert found.computed == 2
    assert len(list((tmp_path / "v1" / "models").glob("*.openvino"))) == 1
    assert extractor.extract(paths[:2]).computed == 2


def fork_after_a_stage() -> None:
    """End with 0 if each child that is forked when a stage has ended can multiply by torch."""
    import torch

    def work(size: int) -> float:
        return float((torch.ones(size, size) @ torch.ones(size, size)).sum())

    def run() -> list[float]:
        stage = Stage("multiply", work, workers=1)
        try:
            return list(stage.run([300]))
        finally:
            stage.close()

    for _ in range(150):
        run()
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends a child that waits
            run()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
def test_a_fork_waits_for_threads_that_are_about_to_end() -> None:
    code = "from test_extractor import fork_after_a_stage; fork_after_a_stage()"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, timeout=300)


def predict_and_fork(runtime: str) -> None:
    """End with 0 if a fork gives the features that its parent gave before."""
    images = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8) for seed in range(2)]
    extractor = FeatureExtractor(
        "test_resnet", pretrained=False, store="memory", runtime=runtime, precision="fp32", n_jobs=2
    )

    def extract() -> float:
        return float(extractor.extract(images, store=MemoryStore()).blocks["last:avg:crop"].sum())

    first = extract()
    child = os.fork()
    if child == 0:
        os._exit(extract() != first)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
def test_a_forked_child_predicts_after_its_parent_did() -> None:
    code = "from test_extractor import predict_and_fork as run; run('openvino'); run('torch')"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, timeout=300)
