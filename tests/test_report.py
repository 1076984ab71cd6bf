"""The report of a model: plain data, a page that loads nothing, and names that are only ever text."""

from __future__ import annotations

import hashlib
import html.parser
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier

import featx
from featx import ImageClassifier, plot
from featx.cli import main
from featx.curves import ScorePath
from featx.evaluation import Evaluation, Metric, evaluate
from featx.evaluation.answers import COLUMNS
from featx.exceptions import ImageWarning, UsageError
from featx.plot.charts import similar_order
from featx.reporting import model_card, report
from featx.reporting.drawing import draw
from featx.reporting.sections import flat_map, importance

TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch"]
FAST = [
    "--cut",
    "last",
    "--pool",
    "avg",
    "--resize",
    "crop",
    "--heads",
    "ridge",
    "--trials",
    "1",
    "--cv",
    "3",
]
HOSTILE = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """What a page consists of: tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def fitted(folder: Path) -> ImageClassifier:
    clf = image_classifier("test_resnet", pretrained=False, runtime="torch", cut=None, pool="avg")
    clf.set_params(resize="crop", heads=["ridge"], n_trials=1, cv=3, store="memory", random_state=0)
    return clf.fit_with_test(folder, test_size=0.3)


@pytest.fixture
def hostile(class_folders: Path) -> Path:
    """Class folders of which one, and an image in the other, have a name that is a script."""
    (class_folders / "red").rename(class_folders / HOSTILE.replace("/", "∕"))
    blue = class_folders / "blue"
    shutil.copy(blue / "blue_00.png", blue / "<img src=x onerror=alert(1)>.png")
    return class_folders


def test_a_report_has_plain_data_and_a_page_that_loads_nothing(class_folders: Path, tmp_path: Path) -> None:
    made = featx.report(fitted(class_folders), tmp_path / "r.html")
    data = json.loads((tmp_path / "r.json").read_text())
    assert list(data)[1:7] == ["answer", "quality", "mistakes", "map", "choosing", "repeating"]
    assert data["quality"]["held_out"] is True
    assert len(data["map"]["points"]) == 24
    assert data["mistakes"]["total"] == len(made.sections["mistakes"]["shown"])
    page = Page((tmp_path / "r.html").read_text())
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    text = (tmp_path / "r.html").read_text()
    assert "url(http" not in text
    assert "@import" not in text
    assert sum(tag == "svg" for tag, _ in page.tags) >= 3


def test_a_large_set_is_checked_in_part_and_the_page_says_so(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = sorted((class_folders / "red").iterdir())[-1]
    last.write_bytes(min((class_folders / "blue").iterdir()).read_bytes())
    with pytest.warns(ImageWarning, match="several labels"):
        clf = fitted(class_folders)
    every = {one.check: one for one in report(clf).known.findings}
    monkeypatch.setattr("featx.reporting.model.MOST_CHECKED", 8)
    made = report(clf)
    assert "8 of 24 images, evenly spread, were checked" in made.to_html()
    conflict = next(one for one in made.known.findings if one.check == "conflicts")
    assert conflict.indices == every["conflicts"].indices == (0, 23)  # positions among all images


def test_names_are_only_text(hostile: Path, tmp_path: Path, class_folders: Path) -> None:
    clf = fitted(hostile)
    page = Page(report(clf).to_html())
    assert "alert(1)" in page.text
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "thumbs"}, {}]
    sources = [
        attributes["src"] or "" for tag, attributes in page.tags if tag == "img" and "src" in attributes
    ]
    assert sources
    assert all(source.startswith("data:image/jpeg;") for source in sources)
    assert not any("onerror" in attributes for _, attributes in page.tags)


def test_a_saved_model_is_reported_with_and_without_images(
    class_folders: Path, six_more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tmp_path / "m.featx")
    assert main(["fit", str(class_folders), "-o", model, *TINY, *FAST]) == 0
    assert " on the test part; see more: featx report" in capsys.readouterr().out
    assert main(["report", model, "-o", str(tmp_path / "bare.html")]) == 0
    assert "This report was made without images" in (tmp_path / "bare.html").read_text()
    assert main(["report", model, str(class_folders), "-o", str(tmp_path / "same.html")]) == 0
    same = json.loads((tmp_path / "same.json").read_text())
    parts = {point["part"] for point in same["map"]["points"]}
    assert parts == {"train", "test"}
    assert main(["report", model, str(six_more), "-o", str(tmp_path / "new.html")]) == 0
    new = json.loads((tmp_path / "new.json").read_text())
    assert new["quality"]["n"] == 6
    assert (
        main(["fit", str(class_folders), "-o", model, "--report", str(tmp_path / "fit.html"), *TINY, *FAST])
        == 0
    )
    assert (tmp_path / "fit.html").stat().st_size > 20_000


def example(n_classes: int = 3, n: int = 120) -> tuple[Evaluation, Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n)
    proba = rng.dirichlet(np.ones(n_classes), n) * 0.6
    proba[np.arange(n), y] += 0.4
    return evaluate(y, proba, range(n_classes), n_boot=50), y, proba


def test_figures_return_displays() -> None:
    evaluation, y, proba = example()
    drawn = [
        plot.confusion(evaluation),
        plot.classes(evaluation),
        plot.calibration(y, proba),
        plot.coverage(y, proba),
        plot.roc(y == 1, proba[:, 1], "b"),
        plot.precision_recall(y == 1, proba[:, 1], "b"),
        plot.balance(y),
        plot.layers({"blocks.1": 0.8, "last": 0.9}),
        plot.history([0.5, 0.7, float("nan"), 0.6], ["grid", "grid", "tpe", "tpe"]),
        plot.scatter(proba[:, :2], y, wrong=proba.argmax(axis=1) != y),
    ]
    for display in drawn:
        assert display.figure_ is display.ax_.figure
        assert display.to_png().startswith(b"\x89PNG")
        svg = display.to_svg("name")
        assert svg.startswith('<svg role="img"')
        assert "var(--ink)" in svg


def test_figures_say_what_is_seen_and_take_axes_and_many_classes() -> None:
    evaluation, y, proba = example()
    wrong = int((proba.argmax(axis=1) != y).sum())
    assert plot.confusion(evaluation).ax_.get_title(loc="left") == f"{wrong} of 120 images are mistaken"
    ax = plot.balance(y).ax_
    assert plot.classes(evaluation, ax=ax).ax_ is ax
    many, _, _ = example(60, 600)
    assert len(plot.confusion(many).ax_.get_xticks()) == 30
    assert "30 of 60 classes" in plot.classes(many).ax_.get_title(loc="left")
    two = plot.balance([f"a class with a long name {number}" for number in (1, 2)])
    assert len({tick.get_text() for tick in two.ax_.get_yticklabels()}) == 2
    assert plot.balance([1, 2, 1, 2]).ax_.get_title(loc="left") == "All classes have 2 images"
    names = [str(number) for number in range(40)]
    sizes = plot.balance(np.repeat(names, range(1, 41)))
    shown = [tick.get_text() for tick in sizes.ax_.get_yticklabels()]
    assert shown == [*names[:15], *names[25:]]  # from below: the smallest and the largest
    assert "15 largest and 15 smallest of 40 classes" in sizes.ax_.get_title(loc="left")
    assert "a$b$" in plot.balance(["a$b$", "c"]).to_svg()  # no formula
    with pytest.raises(UsageError, match="both of two classes"):
        plot.roc(np.ones(4), np.ones(4))
    with pytest.raises(UsageError, match="both of two classes"):
        plot.precision_recall(np.zeros(4), np.ones(4))


def test_a_network_from_scratch_is_drawn_beside_the_learning_curve(class_folders: Path) -> None:
    clf = fitted(class_folders)
    path = ScorePath("from scratch", (4.0, 16.0), (Metric(0.4, 0.3, 0.5), Metric(0.6, 0.5, 0.7)))
    made = report(clf, scratch=path)
    curve = made.sections["choosing"]["curve"]
    assert curve["scratch"] == {"sizes": [4, 16], "value": [0.4, 0.6], "low": [0.3, 0.5], "high": [0.5, 0.7]}
    assert "Orange: a small network trained from scratch." in made.to_html()
    texts = [text.get_text() for text in draw(made.known, made.sections, "learning").ax_.texts]
    assert texts == ["from scratch"]
    assert "from scratch" not in report(clf).to_html()


@pytest.mark.slow
def test_report_trains_a_network_from_scratch_if_it_is_asked_to(
    class_folders: Path, six_more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, page = str(tmp_path / "m.featx"), tmp_path / "r.html"
    assert main(["fit", str(class_folders), "-o", model, *TINY, *FAST]) == 0
    assert main(["report", model, str(class_folders), "--scratch", "-o", str(page)]) == 0
    found = json.loads(page.with_suffix(".json").read_text())["choosing"]["curve"]["scratch"]
    n_train = int((~featx.load(model).model_.images.is_test).sum())
    assert found["sizes"][-1] == pytest.approx(0.8 * n_train, abs=2)
    assert main(["report", model, str(six_more), "--scratch", "-o", str(page)]) == 2
    assert "give the images of the fit as DATA" in capsys.readouterr().err


def test_a_report_says_how_to_repeat_the_fit_and_what_mattered_in_the_search(class_folders: Path) -> None:
    clf = image_classifier("test_resnet", pretrained=False, runtime="torch", cut=["layer2", "last"])
    clf.set_params(pool="avg", resize="crop", heads=["ridge", "nearest_mean"], n_trials=1, cv=3)
    clf.set_params(store="memory", random_state=3)
    made = report(clf.fit_with_test(class_folders, test_size=0.3))
    again = made.sections["repeating"]
    assert "random_state=3" in again["call"]
    assert again["call"].endswith(".fit_with_test(DATA)")
    assert "cores" in again["hardware"]
    ids = sorted(bytes(one) for one in clf.model_.images.ids)
    assert again["data"] == hashlib.sha256(b"".join(ids)).hexdigest()
    found = made.sections["choosing"]["importance"]
    assert {one["name"] for one in found} <= {"representation", "scaling", "head"}
    assert all(0 <= one["share"] <= 1.0001 for one in found)
    assert "share of the variance of scores" in made.to_html()


def test_the_parameter_that_explains_the_scores_comes_first() -> None:
    params = [{"head": head, "scaling": scaling} for head in "ab" for scaling in "xyz" for _ in range(4)]
    scores = [0.5 if one["head"] == "a" else 0.9 for one in params]
    found = importance([*params, {"head": "c", "scaling": "x"}], [*scores, float("nan")])
    assert found == [
        {"name": "head", "share": pytest.approx(1), "best": "b", "n": 2},
        {"name": "scaling", "share": pytest.approx(0, abs=1e-9), "best": "x", "n": 3},
    ]
    assert importance(params, [0.5] * len(params)) == []


@pytest.mark.slow
def test_a_map_by_umap_keeps_groups_together() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(9 * place, 1, (30, 12)) for place in range(2)]).astype(np.float32)
    flat = flat_map(rows, "umap")
    assert flat.shape == (60, 2)
    apart = np.linalg.norm(flat[:30].mean(axis=0) - flat[30:].mean(axis=0))
    assert apart > 2 * max(flat[:30].std(axis=0).max(), flat[30:].std(axis=0).max())
    np.testing.assert_array_equal(flat, flat_map(rows, "umap"))


def test_classes_that_are_mistaken_for_each_other_are_neighbours() -> None:
    matrix = np.array([[9, 0, 5, 0], [0, 9, 0, 5], [5, 0, 9, 0], [0, 5, 0, 9]])
    order = similar_order(matrix).tolist()
    assert abs(order.index(0) - order.index(2)) == 1
    assert abs(order.index(1) - order.index(3)) == 1


def test_tables_name_each_image_with_its_answer(class_folders: Path) -> None:
    clf = fitted(class_folders)
    oof, wrong = clf.oof_table(), clf.mistakes()
    columns = list(COLUMNS)
    assert list(oof.columns) == columns
    assert set(oof.part) == {"train"}
    assert len(oof) == len(clf.oof_proba_)
    assert (oof.probability == clf.oof_proba_.max(axis=1)).all()
    assert len(wrong) == (oof.truth != oof.answer).sum() + int(
        clf.evaluation_.confusion.sum() - np.trace(clf.evaluation_.confusion)
    )
    assert (wrong.truth != wrong.answer).all()
    sets = clf.predict_sets(class_folders, coverage=0.9)
    assert [one[0] for one in sets] == clf.predict(class_folders).tolist()


def test_a_loaded_classifier_has_tables_of_images_that_are_given(class_folders: Path, tmp_path: Path) -> None:
    clf = fitted(class_folders)
    again = featx.load(clf.save(tmp_path / "m.featx"))
    with pytest.raises(UsageError, match="was loaded"):
        again.mistakes()
    found, before = again.predictions(class_folders), clf.predictions()
    order = [found.images.names.index(name) for name in before.images.names]
    np.testing.assert_allclose(found.proba[order], before.proba, atol=1e-3)  # kept in half precision
    assert again.record_.conformal == clf.record_.conformal


def test_evaluate_and_predict_write_what_is_asked(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, table = str(tmp_path / "m.featx"), tmp_path / "wrong.csv"
    assert main(["fit", str(class_folders), "-o", model, *TINY, *FAST]) == 0
    assert main(["evaluate", model, str(class_folders), "-o", str(table)]) == 0
    rows = table.read_text().splitlines()
    assert rows[0] == "path,part,truth,answer,probability,runner_up,runner_up_probability,unlike"
    assert len(rows) == 25
    capsys.readouterr()
    assert main(["predict", model, str(class_folders), "--coverage", "0.9", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert all(one["labels"][0] == one["label"] for one in predictions)
    assert main(["card", model]) == 0
    card = capsys.readouterr().out
    assert "| accuracy | " in card
    assert "licence" in card
    for what in ("confusion", "map", "balance", "neighbours", "coverage"):
        assert main(["show", what, model, str(class_folders), "-o", str(tmp_path / f"{what}.png")]) == 0
        assert (tmp_path / f"{what}.png").read_bytes().startswith(b"\x89PNG")
    assert main(["show", "map", model, "-o", str(tmp_path / "x.png")]) == 2
    assert "give those of the fit, or others" in capsys.readouterr().err


def test_a_card_shows_names_as_they_are(hostile: Path) -> None:
    card = model_card(fitted(hostile), "m_1.featx")
    assert card.startswith(r"# m\_1.featx")
    assert "<script>" not in card
    assert r"\<script\>alert(1)" in card
