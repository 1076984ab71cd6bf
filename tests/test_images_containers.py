"""What programs hold images in is read as images: data frames, tensors, datasets, iterators, patterns."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featx import FeatureExtractor, ImageClassifier
from featx.cli import main
from featx.exceptions import DataError, ImageWarning
from featx.images import ImageSet, decode_picture, load_images, read_picture
from featx.images.policy import DecodePolicy

Make = Callable[..., Image.Image]


@pytest.fixture
def files(class_folders: Path) -> list[Path]:
    return sorted(class_folders.glob("*/*.png"))


def _pixels(images: ImageSet) -> list[np.ndarray]:
    return [decode_picture(read_picture(source), DecodePolicy()) for source in images.sources]


def _features(X: Any) -> np.ndarray:
    params: dict[str, Any] = {"pretrained": False, "runtime": "torch", "store": "memory", "cut": "last"}
    return FeatureExtractor("test_resnet", **params).fit_transform(X)


def test_every_container_of_the_same_images_gives_the_same_pixels(
    class_folders: Path, files: list[Path]
) -> None:
    pd = pytest.importorskip("pandas")
    pa = pytest.importorskip("pyarrow")
    torch = pytest.importorskip("torch")
    arrays = [np.asarray(Image.open(file)) for file in files]
    batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    paths = [str(file) for file in files]
    containers: dict[str, Any] = {
        "paths": paths,
        "generator": (file for file in files),
        "map": map(str, files),
        "tuple": tuple(files),
        "dict view": dict.fromkeys(paths).keys(),
        "array of paths": np.array(paths),
        "column of paths": np.array(paths, dtype=object)[:, None],
        "series": pd.Series(paths, index=range(7, 31)),
        "index": pd.Index(paths),
        "categorical": pd.Series(paths, dtype="category"),
        "frame": pd.DataFrame({"n": range(24), "Path": paths}),
        "frame of one column": pd.DataFrame({"anything": paths}),
        "dict of columns": {"path": paths, "label": [0, 1] * 12},
        "arrow": pa.table({"n": list(range(24)), "path": paths}),
        "bytes": [file.read_bytes() for file in files],
        "frame of bytes": pd.DataFrame({"image": [{"bytes": f.read_bytes(), "path": None} for f in files]}),
        "open files": [io.BytesIO(file.read_bytes()) for file in files],
        "PIL": [Image.open(file) for file in files],
        "frame of PIL": pd.DataFrame({"image": [Image.open(file) for file in files]}),
        "arrays": arrays,
        "batch": np.stack(arrays),
        "tensor": batch,
        "tensor, channels last": batch.permute(0, 2, 3, 1),
        "float tensor": batch / 255,
        "half tensor": (batch / 255).half(),
        "list of tensors": list(batch),
        "pairs": list(zip(paths, [0, 1] * 12, strict=True)),
        "dataset": torch.utils.data.TensorDataset(batch, torch.arange(24) % 2),
        "subset": torch.utils.data.Subset(torch.utils.data.TensorDataset(batch), range(24)),
        "pattern": str(class_folders / "*" / "*.png"),
        "deep pattern": str(class_folders.parent / "**" / "*.png"),
    }
    for name, X in containers.items():
        np.testing.assert_array_equal(_pixels(load_images(X)), arrays, err_msg=name)


def test_a_transformer_takes_iterators_frames_open_files_and_datasets(
    class_folders: Path, files: list[Path]
) -> None:
    pd = pytest.importorskip("pandas")
    torch = pytest.importorskip("torch")
    some = files[::6]
    arrays = [np.asarray(Image.open(file)) for file in some]
    batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    expected = _features(some)
    assert expected.shape[0] == 4
    for X in (
        iter(some),
        pd.DataFrame({"path": some, "label": [0, 0, 1, 1]}),
        [io.BytesIO(file.read_bytes()) for file in some],
        torch.utils.data.TensorDataset(batch),
    ):
        np.testing.assert_allclose(_features(X), expected, atol=1e-3)
    order = [files.index(file) for file in class_folders.glob("*/*.png")]
    found = _features(class_folders.glob("*/*.png"))
    np.testing.assert_allclose(found[[order.index(files.index(file)) for file in some]], expected, atol=1e-3)


@pytest.mark.parametrize(
    "empty",
    [
        lambda folder: folder.glob("*.nothing"),
        lambda folder: iter(()),
        lambda folder: str(folder / "*.nothing"),
        lambda folder: np.zeros((0, 8, 8, 3), np.uint8),
        lambda folder: {"path": []},
        lambda folder: range(0),
    ],
)
def test_no_image_is_an_error_and_no_empty_array(empty: Callable[[Path], Any], class_folders: Path) -> None:
    with pytest.raises(DataError, match=r"no image|no file matches|at least one"):
        _features(empty(class_folders))


def test_an_iterator_that_was_used_says_so(files: list[Path]) -> None:
    paths = iter(files)
    extractor = FeatureExtractor("test_resnet", pretrained=False, store="memory").fit(paths)
    with pytest.raises(DataError, match=r"used before.*list\(\.\.\.\)"):
        extractor.transform(paths)


def test_a_frame_brings_labels_splits_groups_and_weights(files: list[Path]) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "id": range(24),
            "Label": ["a", "b"] * 12,
            "path": files,
            "split": ["training", "Test", "dev"] * 8,
            "group": ["p", None] * 12,
            "weight": [1, 2.5] * 12,
        }
    )
    images = load_images(frame)
    assert images.names == [str(file) for file in files]
    assert images.labels.tolist() == ["a", "b"] * 12
    assert images.splits.tolist() == ["train", "test", "val"] * 8
    assert images.groups.tolist() == ["p", None] * 12
    assert images.weights.tolist() == [1, 2.5] * 12
    assert load_images(frame[["path", "id"]]).labels is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x"], "b": ["y"]}, r"columns \(a, b\).*path or image"),
        ({"path": ["x", "y"], "label": ["cat", None]}, "1 of 2 values are missing, the first in row 1"),
        ({"path": ["x", "y"], "label": [["a", "b"], ["a"]]}, "one value for each image"),
        ({"path": ["x", 3]}, "item 1: a int is not an image"),
        ({"path": ["x"], "split": ["fold3"]}, "'fold3' is not a split"),
        ({"path": ["x", "y"], "label": ["a"]}, "different lengths"),
        ({"path": ["x"], "weight": ["heavy"]}, "column 'weight'"),
    ],
)
def test_a_frame_that_cannot_be_used_says_which_column(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(columns)


def test_labels_of_a_frame_without_any_are_not_known(files: list[Path]) -> None:
    assert load_images({"path": files[:2], "label": [None, float("nan")]}).labels is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda torch: torch.randn(4, 3, 8, 8), "from 0 to 1; give images before they are normalised"),
        (lambda torch: torch.zeros(4, 7, 8, 8, dtype=torch.uint8), r"\(n, 3, H, W\)"),
        (lambda torch: torch.zeros(5), "not a batch of images"),
        (lambda torch: [torch.zeros(2, 3, 8, 8)], "item 0: a tensor of shape"),
        (lambda torch: torch.utils.data.DataLoader([1, 2]), "loader.dataset"),
    ],
)
def test_a_tensor_or_loader_that_is_no_image_says_why(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(make(pytest.importorskip("torch")))


def test_a_grey_tensor_and_a_single_one_are_images() -> None:
    torch = pytest.importorskip("torch")
    grey = torch.arange(2 * 5 * 4).reshape(2, 1, 5, 4).to(torch.uint8)
    assert [one.shape for one in load_images(grey).sources] == [(5, 4), (5, 4)]
    assert [one.shape for one in load_images(torch.zeros(3, 5, 4)).sources] == [(5, 4, 3)]
    assert [one.shape for one in load_images(torch.zeros(3, 4, 3)).sources] == [(4, 3, 3)]  # as torch has it


def test_torchvision_folders_and_sets_with_classes_have_names_for_labels(class_folders: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    folder = torchvision.datasets.ImageFolder(str(class_folders), transform=lambda image: image)
    with pytest.warns(ImageWarning, match="its transform is not applied"):
        images = load_images(folder)
    assert images.labels.tolist() == ["blue"] * 12 + ["red"] * 12
    assert all(isinstance(source, str) for source in images.sources)
    fake = torchvision.datasets.FakeData(6, (3, 8, 8), 2)
    fake.classes = ["no", "yes"]
    assert set(load_images(fake).labels.tolist()) <= {"no", "yes"}


class ClassLabel:
    """As `datasets.ClassLabel`: names by number."""

    names = ("cat", "dog")


class HubImage:
    """As `datasets.Image`."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


HubImage.__name__ = "Image"


class HubDataset:
    """The protocol of `datasets.Dataset` that featx uses, for machines without that package."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        self.rows, self.features = rows, features

    def cast_column(self, name: str, feature: HubImage) -> HubDataset:
        return HubDataset(self.rows, {**self.features, name: feature})

    def remove_columns(self, names: list[str]) -> HubDataset:
        rows = [{name: row[name] for name in row if name not in names} for row in self.rows]
        return HubDataset(rows, {name: self.features[name] for name in self.features if name not in names})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            raw = any(isinstance(one, HubImage) and not one.decode for one in self.features.values())
            yield row if raw else {**row, "image": Image.open(io.BytesIO(row["image"]["bytes"]))}


def _hub_datasets(files: list[Path], labels: list[int]) -> list[tuple[Any, Callable[..., Any]]]:
    """A dataset of the protocol, and real ones where the package is there; each with its dict of splits."""
    encoded = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    rows = [{"image": image, "label": label, "n": 1} for image, label in zip(encoded, labels, strict=True)]
    found: list[tuple[Any, Callable[..., Any]]] = [
        (HubDataset(rows, {"n": None, "image": HubImage(), "label": ClassLabel()}), dict)
    ]
    try:
        import datasets
    except ImportError:
        return found
    features = {
        "n": datasets.Value("int32"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
    }
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    return [*found, (made, datasets.DatasetDict), (made.to_iterable_dataset(), dict)]


def test_a_hub_dataset_gives_encoded_images_and_names_of_classes(files: list[Path]) -> None:
    labels = [0, 1] * 12
    for dataset, make_dict in _hub_datasets(files, labels):
        images = load_images(dataset)
        assert images.sources == [file.read_bytes() for file in files]
        assert images.labels.tolist() == ["cat", "dog"] * 12
        parts = load_images(make_dict({"train": dataset, "test": dataset}))
        assert len(parts) == 48
        assert parts.splits.tolist() == ["train"] * 24 + ["test"] * 24
    for dataset, make_dict in _hub_datasets(files, [-1] * 24):
        assert load_images(dataset).labels is None
        with pytest.raises(DataError, match="splits test have no labels"):
            load_images(make_dict({"test": dataset}))


def test_fit_and_predict_take_a_frame_and_an_iterator(class_folders: Path, files: list[Path]) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"path": files, "label": [file.parent.name for file in files]})
    clf = ImageClassifier("test_resnet", cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=1)
    clf.set_params(cv=2, store="memory", extractor__pretrained=False, extractor__runtime="torch")
    clf.fit(frame)
    assert clf.score(frame) >= 0.9
    expected = clf.predict(files).tolist()
    assert clf.predict(iter(files)).tolist() == expected
    assert clf.predict(frame[["path"]]).tolist() == expected
    assert clf.predict(str(class_folders / "*" / "*.png")).tolist() == expected
    again = clf.fit((file for file in files), [file.parent.name for file in files])
    assert again.predict(files).tolist() == expected


def test_the_command_line_takes_a_pattern_in_quotes(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch", "--no-cache"]
    assert main(["extract", str(class_folders / "*" / "*_0[0-4].png"), *tiny]) == 0
    assert "10 images, 10 computed" in capsys.readouterr().out
    assert main(["extract", str(class_folders / "*.gif"), *tiny]) == 1
    assert "no file matches this pattern" in capsys.readouterr().err


def test_signs_as_classes_and_paths_survive_csv_that_is_safe_in_a_spreadsheet(
    tmp_path: Path, picture: Make
) -> None:
    from featx.tables import write_csv

    labels = ["=", "+1", "-", "@home", "'", "'=", "''+", "'quoted'", "plain", "-1.5"]
    paths = [f"{label}{number}.png" for number, label in enumerate(labels)]
    for path in paths:
        picture(3).save(tmp_path / path)
    write_csv(tmp_path / "list.csv", ["path", "label"], zip(paths, labels, strict=True))
    cells = [line.split(",")[1] for line in (tmp_path / "list.csv").read_text("utf-8").splitlines()[1:]]
    assert not [cell for cell in cells if cell[0] in "=+-@"]
    images = load_images(tmp_path / "list.csv")
    assert images.labels.tolist() == labels
    assert [Path(source).name for source in images.sources] == paths
    assert all(Path(source).is_file() for source in images.sources)
