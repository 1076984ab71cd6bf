"""Options and commands that a message of the command line advises are used here, and they help."""

from __future__ import annotations

import csv
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from answers import RIDGE, TINY, Answer
from PIL import Image
from sklearn.base import clone

from featx import HeadSearchCV, load
from featx.cli import main
from featx.exceptions import SearchWarning
from featx.stores import open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore::featx.exceptions.FeatxWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/` (red and blue), their `cache/` and `m.featx`."""
    folder = tmp_path_factory.mktemp("fitted")
    rng = np.random.default_rng(0)
    for label, tint in (("red", (90, -60, -60)), ("blue", (-60, -60, 90))):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = (rng.integers(60, 190, (48, 64, 3)) + np.array(tint)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number:02d}.png")
    command = ["fit", folder / "photos", "-o", folder / "m.featx", *RIDGE, "--cache-dir", folder / "cache"]
    assert main([str(word) for word in command]) == 0
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of skipped images are written into the working directory where no output is named."""
    monkeypatch.chdir(tmp_path)


def one_of(text: str) -> str:
    """The last choice of a message that ends in ``choose one of a, b, c.``"""
    return re.split(r", |one of ", text.strip().rstrip("."))[-1].strip("'\" ")


@pytest.mark.parametrize(
    ("wrong", "said_so", "right"),
    [
        (["models", "resnet5O"], "nearest names:", ["models", "resnet50"]),
        (["cache", "prune"], "or --space KEY to delete one space", ["cache", "prune", "--max-size", "20GB"]),
        (
            ["cache", "ls", "--no-cache"],
            "give --cache-dir instead of --no-cache",
            ["cache", "ls", "--cache-dir", "."],
        ),
        (["bench", "show"], "write `featx bench show DIR`", None),
        (["taps", "test_resnet.a1"], "See: featx models test_resnet", ["models", "test_resnet"]),
        (["taps", "hf-hub:timm/resnet18"], "See: featx models PATTERN", ["models", "*resnet18*"]),
        (["heads"], "such as `featx fit photos --heads logistic,rbf_svm`", None),
        (["presets"], "such as `featx fit photos --preset quick`", None),
        (["models"], "`featx models 'resnet*'` searches all of timm", ["models", "resnet*"]),
    ],
)
def test_the_command_that_is_named_works(
    wrong: list[str], said_so: str, right: list[str] | None, answer: Answer, own_cache: Path
) -> None:
    open_store(own_cache).close()
    code, said = answer(*wrong)
    assert said_so in said
    if right is not None:
        if "--cache-dir" in right:
            right = [*right[:-1], str(own_cache)]
        assert answer(*right)[0] == 0
        return
    for command in re.findall(r"`featx ([^`]+)`", said):
        if "--dry-run" not in command and "photos" in command:
            words = command.replace("'", "").split()
            code, said = answer(*words, "--dry-run")
            assert code in (0, 1)
            assert "no such" in said or "does not exist" in said or code == 0  # the words are understood


def test_choices_of_curve_bench_and_costs_are_taken(fitted: Path, answer: Answer, tmp_path: Path) -> None:
    photos, cache = fitted / "photos", ["--cache-dir", fitted / "cache"]
    command = ["curve", photos, *TINY, "--cut", "last", "--pool", "avg", "--resize", "crop", *cache]
    code, said = answer(*command, "--shots", "0")
    assert (code, "write whole numbers above 0, such as 1,2,5,10" in said) == (2, True)
    assert answer(*command, "--shots", "1,2,5")[0] == 0
    code, said = answer("bench", "--metric", "nothing", "show", tmp_path)
    assert (code, "--metric 'nothing' is not known; choose one of" in said) == (2, True)
    code, said = answer("bench", "--metric", one_of(said.strip()), "show", tmp_path)
    assert "there are no results of a suite; run `featx bench FILE -o" in said
    (tmp_path / "suite.toml").write_text(
        f'data = [{{path = "{photos}"}}]\nmethods = [{{name = "ridge"}}]\nseeds = [0]\n'
        '[[backbones]]\nname = "test_resnet"\npretrained = false\n'
    )
    predict = ["predict", fitted / "m.featx", photos, *cache, "-o", tmp_path / "p.csv"]
    code, said = answer(*predict, "--decide", "best")
    assert (code, "or costs such as melanoma=5" in said) == (2, True)
    code, said = answer(*predict, "--decide", "red=much")
    assert (code, "write CLASS=COST, such as melanoma=5" in said) == (2, True)
    assert answer(*predict, "--decide", "red=5")[0] == 0
    assert answer(*predict, "--decide", "balanced")[0] == 0


def test_a_table_of_issues_is_written_filled_in_and_applied(
    fitted: Path, answer: Answer, tmp_path: Path
) -> None:
    photos, table = tmp_path / "photos", tmp_path / "issues.csv"
    shutil.copytree(fitted / "photos", photos)
    shutil.copy(photos / "red" / "00.png", photos / "blue" / "copy.png")
    table.write_text("name,what\na,b\n")
    code, said = answer("fit", photos, *RIDGE, "-o", tmp_path / "m.featx", "--fixes", table)
    assert (code, "`featx check DATA --csv` writes such a table" in said) == (1, True)
    code, said = answer("check", photos, *TINY, "--csv", table)
    assert "fill in the column action, then: featx fit" in said
    rows = list(csv.DictReader(table.read_text("utf-8-sig").splitlines()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "action": "drop" if "copy.png" in row["path"] else ""} for row in rows)
    code, said = answer("fit", photos, *RIDGE, "-o", tmp_path / "m.featx", "--fixes", table)
    assert (code, "1 image dropped" in said) == (0, True)


@pytest.mark.slow
def test_what_has_no_graph_is_exported_in_the_way_that_is_named(
    fitted: Path, answer: Answer, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'featx[onnx]'")
    photos, cache = fitted / "photos", ["--cache-dir", fitted / "cache"]
    out = {"onnx": tmp_path / "m.onnx", "featx": tmp_path / "out.featx"}
    code, said = answer(
        "export", fitted / "m.featx", "--to", "featx", "-o", out["featx"], "--resizing", *cache
    )
    assert (code, "--resizing is for --to onnx" in said) == (2, True)
    views = ["--views", "1", "--view-policy", "flip=0.5", "-o", tmp_path / "v.featx", *cache]
    code, said = answer("fit", photos, *RIDGE, *views)
    if load(tmp_path / "v.featx").model_.augmentation.averages:
        code, said = answer("export", tmp_path / "v.featx", "--to", "onnx", "-o", out["onnx"], *cache)
        assert (code, "fit without --views, or use --to featx" in said) == (2, True)
        assert answer("export", tmp_path / "v.featx", "--to", "featx", "-o", out["featx"], *cache)[0] == 0
    squash = [word if word != "crop" else "pad" for word in RIDGE]
    assert answer("fit", photos, *squash, *cache, "-o", tmp_path / "s.featx")[0] == 0
    code, said = answer(
        "export", tmp_path / "s.featx", "--to", "onnx", "-o", out["onnx"], "--resizing", *cache
    )
    assert (code, "export without --resizing, and resize as the metadata say" in said) == (2, True)
    assert answer("export", tmp_path / "s.featx", "--to", "onnx", "-o", out["onnx"], *cache)[0] == 0
    import onnx

    assert "preprocessing" in {one.key for one in onnx.load(out["onnx"]).metadata_props}


def test_images_are_found_by_the_options_that_are_named(fitted: Path, answer: Answer, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    rows = [(f.relative_to(fitted), f.parent.name) for f in sorted((fitted / "photos").glob("*/*.png"))]
    (lists / "a.csv").write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    fit = ["fit", lists / "a.csv", *RIDGE, "-o", tmp_path / "m.featx"]
    code, said = answer(*fit)
    assert (code, "name the folder that holds them (--root DIR)" in said) == (1, True)
    assert answer(*fit, "--root", fitted)[0] == 0
    (lists / "b.csv").write_text(
        "path,kind,shape\n" + "".join(f"{fitted / name},{label},x\n" for name, label in rows)
    )
    fit += ["--root", fitted]
    code, said = answer("fit", lists / "b.csv", *fit[2:])
    assert code == 1
    assert "The table has the columns path, kind, shape; choose one with --label-column." in said
    assert answer("fit", lists / "b.csv", *fit[2:], "--label-column", "kind")[0] == 0
    (lists / "c.csv").write_text(
        "where is it,label\n" + "".join(f"{fitted / n},{label}\n" for n, label in rows)
    )
    code, said = answer("fit", lists / "c.csv", *fit[2:])
    assert (code, "choose the column of paths (--path-column)" in said) == (1, True)
    assert answer("fit", lists / "c.csv", *fit[2:], "--path-column", "where is it")[0] == 0
    fit = fit[:-2]
    (tmp_path / "linked" / "red").mkdir(parents=True)
    shutil.copytree(fitted / "photos" / "blue", tmp_path / "linked" / "blue")
    for file in (fitted / "photos" / "red").iterdir():
        (tmp_path / "linked" / "red" / file.name).symlink_to(file)
    code, said = answer("fit", tmp_path / "linked", *fit[2:], "--max-bad", "60%")
    assert "--follow-links follows it" in said
    code, said = answer("fit", tmp_path / "linked", *fit[2:], "--follow-links")
    assert code == 0, said
    assert load(tmp_path / "m.featx").classes_.tolist() == ["blue", "red"]


def test_bands_and_range_are_chosen_as_the_remark_says(answer: Answer, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4096, (20, 20, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "five.tif", pixels, photometric="minisblack", planarconfig="contig")
    command = ["extract", tmp_path / "five.tif", *TINY]
    said = answer(*command)[1]
    assert "(--bands chooses others, such as 4,3,2)" in said
    assert "--bands" not in answer(*command, "--bands", "4,3,2")[1]


def test_deep_pixels_take_the_range_that_is_given(answer: Answer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 4096, (20, 20)).astype(np.uint16)).save(tmp_path / f"{number}.png")
    code, said = answer("extract", tmp_path, *TINY)
    assert (code, "chosen from a sample (--range LOW,HIGH chooses others)" in said) == (0, True)
    code, said = answer("extract", tmp_path, *TINY, "--range", "0,4095")
    assert (code, "--range" in said) == (0, False)
    code, said = answer("extract", tmp_path, *TINY, "--range", "100,1000")
    assert "beyond the range, and become black or white (--range)" in said
    said = answer("extract", tmp_path, *TINY, "--bands", "9")[1]
    assert "band 9 was chosen (--bands), and there are 1" in said
    assert answer("extract", tmp_path, *TINY, "--bands", "1")[0] == 0
    code, said = answer("extract", tmp_path, *TINY, "--max-pixels", "100")
    assert "raise the limit (--max-pixels)" in said
    assert answer("extract", tmp_path, *TINY, "--max-pixels", "400")[0] == 0


def test_weights_are_given_as_the_message_says(answer: Answer, fitted: Path, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    plain = [
        "extract",
        fitted / "photos",
        "--cache-dir",
        tmp_path / "c",
        "--cut",
        "last",
        "--runtime",
        "torch",
    ]
    code, said = answer(*plain, "--backbone", "test_resnet.r160_in1k")
    assert (code, "or name a file of weights: --checkpoint FILE" in said) == (1, True)
    weights = ["--checkpoint", tmp_path / "weights.safetensors"]
    assert answer(*plain, "--backbone", "test_resnet.r160_in1k", *weights)[0] == 0
    code, said = answer(*plain, "--backbone", "resnet18", *weights)
    assert (code, "trained as the backbone (`featx models` lists names)" in said) == (1, True)
    assert "test_resnet" in answer("models", "test_*")[1]
    assert answer(*plain, "--backbone", "test_resnet", *weights)[0] == 0


def test_drifted_features_are_deleted_by_the_command_that_is_named(
    fitted: Path, answer: Answer, tmp_path: Path
) -> None:
    cache = ["--cache-dir", tmp_path / "cache"]
    command = [
        "extract",
        fitted / "photos",
        *TINY,
        "--cut",
        "last",
        "--pool",
        "avg",
        "--resize",
        "crop",
        *cache,
    ]
    assert answer(*command)[0] == 0
    store = open_store(tmp_path / "cache")
    (usage,) = store.usage()
    assert usage.spec is not None
    rows = tmp_path / "rows.npz"
    assert answer("cache", "export", usage.key[:16], "-o", rows, *cache)[0] == 0
    with np.load(rows) as found:
        ids, values = found["id"], found[str(usage.spec.block)]
    shutil.rmtree(tmp_path / "cache")
    drifted = open_store(tmp_path / "cache")
    drifted.append(usage.key, ids, values * 1.5, usage.spec)
    drifted.close()
    said = answer(*command)[1]
    remedy = re.search(r"computed anew: featx (cache prune --space \w+)", " ".join(said.split()))
    assert remedy, said
    code, said = answer(*remedy[1].split(), *cache)
    assert (code, "1 segments deleted" in said) == (0, True)
    code, said = answer(*command)
    assert (code, "not those of today" in said) == (0, False)


def test_a_model_of_another_network_is_told_what_helps(fitted: Path, answer: Answer, tmp_path: Path) -> None:
    """Options of fine-tuning without fine-tuning, views in a graph, and the demo's folder."""
    fit = ["fit", fitted / "photos", *RIDGE, "-o", tmp_path / "m.featx", "--cache-dir", fitted / "cache"]
    code, said = answer(*fit, "--epochs", "1")
    assert (code, "request it with --fine-tune yes" in said) == (2, True)
    (tmp_path / "demo-output").mkdir()
    (tmp_path / "demo-output" / "mine.txt").write_text("mine")
    code, said = answer("demo", "-o", tmp_path / "demo-output")
    assert (code, "choose another with --output" in said) == (2, True)


def test_too_many_broken_images_do_not_stop_a_prediction_that_allows_them(
    fitted: Path, answer: Answer, tmp_path: Path
) -> None:
    shutil.copytree(fitted / "photos" / "red", tmp_path / "new")
    for number in range(3):
        (tmp_path / "new" / f"broken{number}.png").write_bytes(b"no image")
    predict = ["predict", fitted / "m.featx", tmp_path / "new", "-o", tmp_path / "p.csv"]
    predict += ["--cache-dir", fitted / "cache", "--runtime", "torch"]
    code, said = answer(*predict)
    assert (code, "Repair or remove them, or raise --max-bad" in said) == (1, True)
    assert answer(*predict, "--max-bad", "20%")[0] == 3


def test_a_search_without_time_gets_more(answer: Answer, fitted: Path, tmp_path: Path) -> None:
    rows, labels = np.random.default_rng(0).normal(size=(60, 8)), ["a", "b"] * 30
    short = HeadSearchCV(timeout=1e-6, n_trials=3, cv=2, random_state=0)
    with pytest.warns(SearchWarning, match=r"\(a longer --budget gives it more, or timeout= in Python\)"):
        short.fit(rows, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SearchWarning)
        clone(short).set_params(timeout=600).fit(rows, labels)
    fit = ["fit", fitted / "photos", *RIDGE, "--cache-dir", fitted / "cache", "-o", tmp_path / "m.featx"]
    code, said = answer(*fit, "--budget", "10m")
    assert (code, "ended the search" in said) == (0, False)


def test_an_exercise_of_unknown_layers_and_splits(answer: Answer, tmp_path: Path, fitted: Path) -> None:
    """Images without labels beside splits are labelled by the command that is named."""
    photos = tmp_path / "set"
    shutil.copytree(fitted / "photos", photos / "train")
    (photos / "test").mkdir()
    shutil.copy(fitted / "photos" / "red" / "00.png", photos / "test")
    cache = ["--cache-dir", tmp_path / "cache"]
    code, said = answer("fit", photos, *RIDGE, "-o", tmp_path / "m.featx", *cache)
    assert (code, "they are left out (`featx predict` labels them)" in " ".join(said.split())) == (0, True)
    code, said = answer("predict", tmp_path / "m.featx", photos / "test", *cache, "--runtime", "torch")
    assert (code, "00.png" in said) == (0, True)


def test_a_map_is_drawn_as_the_message_says(fitted: Path, answer: Answer, tmp_path: Path) -> None:
    model, photos, cache = fitted / "m.featx", fitted / "photos", ["--cache-dir", fitted / "cache"]
    report = ["report", model, photos, "-o", tmp_path / "r.html", "--runtime", "torch", *cache]
    code, said = answer(*report, "--map", "umap")
    if code == 0:
        return  # umap-learn is installed
    assert "pip install umap-learn; or use tsne or pca" in said
    assert answer(*report, "--map", "pca")[0] == 0


def test_without_a_home_a_cache_is_named_or_none_is_used(
    fitted: Path, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEATX_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    extract = ["extract", fitted / "photos", *TINY]
    code, said = answer(*extract)
    assert (code, "Name one (--cache-dir, FEATX_CACHE), or store nothing (--no-cache)" in said) == (1, True)
    assert answer(*extract, "--cache-dir", tmp_path / "c")[0] == 0
    assert answer(*extract, "--no-cache", "-o", tmp_path / "x.npz")[0] == 0
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "d"))
    assert answer(*extract)[0] == 0


def test_a_cache_that_cannot_be_used_is_replaced_or_left_out(
    fitted: Path, answer: Answer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    extract = ["extract", fitted / "photos", *TINY]
    code, said = answer(*extract, "--cache-dir", tmp_path / "file")
    assert (code, "use another folder (--cache-dir, FEATX_CACHE) or none (--no-cache)" in said) == (1, True)
    assert answer(*extract, "--cache-dir", tmp_path / "c")[0] == 0
    newer = tmp_path / "newer" / "v99"
    newer.mkdir(parents=True)
    (newer / "format.json").write_text('{"format": 99, "featx": "9.0"}')
    code, said = answer(*extract, "--cache-dir", tmp_path / "newer")
    assert (code, "Upgrade featx, or use another folder (--cache-dir, FEATX_CACHE)" in said) == (1, True)


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (["fit", "photos", "--max-pixel", "9", "--trails", "4"], "--trials"),
        (["fit", "photos", "--scorings", "f1"], "--scoring"),
        (["predict", "m.featx", "photos", "--cach-dir", "c"], "--cache-dir"),
        (["extract", "photos", "--backbones=resnet18"], "--backbone"),
        (["cache", "prune", "--maxsize", "1GB"], "--max-size"),
        (["fitt", "photos"], "fit"),
        (["train", "photos"], "fit"),
        (["Predict", "m.featx"], "predict"),
        (["classify", "photos"], "predict"),
        (["eval", "m.featx"], "evaluate"),
    ],
    ids=lambda words: words[1] if isinstance(words, list) else words,
)
def test_a_misspelt_option_or_verb_is_answered_by_the_nearest(
    command: list[str], meant: str, answer: Answer
) -> None:
    code, said = answer(*command)
    assert code == 2
    assert f"Did you mean {meant}?" in said
    assert len(said.splitlines()) == 1
    lists = re.search(r"`featx(.*) --help` lists what is known", said)
    assert lists
    assert meant in answer(*lists[1].split(), "--help-all" if lists[1] == " fit" else "--help")[1]


def test_files_that_the_shell_listed_are_named_by_their_folder_or_a_pattern(
    fitted: Path, answer: Answer
) -> None:
    folders = sorted((fitted / "photos").iterdir())
    code, said = answer("fit", *folders, "-o", "m.featx")
    assert (code, "Give the folder that they are in, or a pattern in quotes, such as" in said) == (2, True)
    assert answer("fit", fitted / "photos", "-o", "m.featx", *RIDGE)[0] == 0
    code, said = answer("check", *sorted(folders[0].iterdir()), *TINY)
    assert (code, "or a pattern in quotes, such as 'photos/*.jpg'" in said) == (2, True)
    assert answer("check", folders[0] / "*.png", *TINY)[0] == 0


def test_images_of_several_scales_have_each_its_own_with_the_range_minmax(
    tmp_path: Path, answer: Answer
) -> None:
    grey = np.random.default_rng(0).integers(5, 250, (48, 64)).astype(np.uint16)
    for number, factor in enumerate((1, 1, 257, 257)):
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(grey * np.uint16(factor)).save(tmp_path / "deep" / f"{number}.png")
    _, said = answer("extract", "deep", *TINY, "-o", "auto.npy")
    assert "let each image have its own (--range minmax)" in said
    _, said = answer("extract", "deep", *TINY, "--range", "minmax", "-o", "own.npy")
    assert "nearly black" not in said
    auto, own = np.load("auto.npy"), np.load("own.npy")
    assert np.abs(own[0] - own[2]).max() < 0.01 < np.abs(auto[0] - auto[2]).max()
