"""Finding pictures and reading each once: folders, manifests, lists, links, permissions, names."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.exceptions import DataError, ImageError, ImageWarning
from featx.images import image_digest, load_images, load_paths, read_picture

Make = Callable[..., Image.Image]


def fill(folder: Path, picture: Make, names: list[str]) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / name, format="PNG")


# Folders


def test_class_folders_give_their_names_as_labels_in_sorted_order(class_folders: Path) -> None:
    found = load_images(class_folders)
    assert found.names[0] == "blue/blue_00.png"
    assert found.names == sorted(found.names)
    assert Counter(found.labels.tolist()) == {"blue": 12, "red": 12}
    assert (found.splits, found.groups, found.weights, found.skipped) == (None, None, None, [])
    assert found.root == class_folders


def test_folders_below_a_class_folder_belong_to_the_class(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["cat/2020/may/a.png", "cat/b.png", "dog/c.png"])
    assert load_images(tmp_path).labels.tolist() == ["cat", "cat", "dog"]


def test_train_and_validation_folders_give_splits(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["Train/a/1.png", "Train/b/2.png", "validation/a/3.png", "test/b/4.png"])
    found = load_images(tmp_path)
    assert list(zip(found.splits.tolist(), found.labels.tolist(), strict=True)) == [
        ("train", "a"),
        ("train", "b"),
        ("test", "b"),
        ("val", "a"),
    ]


def test_split_folders_without_class_folders_have_no_labels(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["train/1.png", "test/2.png"])
    found = load_images(tmp_path)
    assert (found.labels, found.splits.tolist()) == (None, ["test", "train"])


def test_a_flat_folder_has_no_labels(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["b.png", "a.png"])
    found = load_images(tmp_path)
    assert (found.names, found.labels) == (["a.png", "b.png"], None)


def test_pictures_beside_class_folders_are_set_aside_by_name(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["cat/1.png", "dog/2.png", "stray.png"])
    found = load_images(tmp_path)
    assert len(found) == 2
    assert [(each.name, each.label) for each in found.skipped] == [("stray.png", None)]


def test_unlabelled_takes_every_picture_below_a_folder(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["cat/1.png", "stray.png"])
    found = load_images(tmp_path, labelled=False)
    assert (found.names, found.labels, found.skipped) == (["cat/1.png", "stray.png"], None, [])


def test_labels_that_are_asked_for_and_missing_are_an_error_with_the_way_out(
    tmp_path: Path, picture: Make
) -> None:
    fill(tmp_path, picture, ["a.png"])
    with pytest.raises(DataError, match="one folder per class"):
        load_images(tmp_path, labelled=True)


def test_hidden_and_system_files_are_ignored(tmp_path: Path, picture: Make) -> None:
    fill(
        tmp_path,
        picture,
        [
            "a/1.png",
            "a/._1.png",
            "a/.hidden/2.png",
            "__MACOSX/a/1.png",
            ".git/x.png",
            "a/Thumbs.db",
            "a/desktop.ini",
        ],
    )
    found = load_images(tmp_path)
    assert (found.names, found.skipped) == (["a/1.png"], [])


def test_a_folder_named_like_a_picture_is_walked_into(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["cat/x.jpg/1.png", "dog/2.png"])
    assert load_images(tmp_path).names == ["cat/x.jpg/1.png", "dog/2.png"]


def test_files_of_other_kinds_are_ignored_and_pictures_without_extension_are_not(
    tmp_path: Path, picture: Make
) -> None:
    fill(tmp_path, picture, ["a/scan", "a/1.dat"])
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "a" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")  # listed, so that its reader is told
    assert load_images(tmp_path).names == ["a/1.dat", "a/photo.heic", "a/scan"]


def test_an_empty_class_folder_is_dropped_with_a_warning(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["cat/1.png"])
    (tmp_path / "dog").mkdir()
    with pytest.warns(ImageWarning, match="class folder dog holds no image"):
        found = load_images(tmp_path)
    assert found.labels.tolist() == ["cat"]


def test_an_empty_folder_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        DataError, match=r"no image found \(1 files of other kinds\); featx looks for one folder"
    ):
        load_images(tmp_path)


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        load_images(tmp_path / "nowhere")


def test_names_of_any_bytes_are_found_and_read(tmp_path: Path, picture: Make) -> None:
    weird = [
        "Äpfel 日本.png",
        "a b.png",
        "two\nlines.png",
        os.fsdecode(b"caf\xe9.png"),
        "=cmd.png",
        "<b>.png",
    ]
    fill(tmp_path, picture, [f"class \udce9/{name}" for name in weird] + ["other/1.png"])
    found = load_images(tmp_path)
    assert {name.partition("/")[2] for name in found.names[:-1]} == set(weird)
    assert found.labels[0] == "class \udce9"
    assert len({read_picture(source).digest for source in found.sources}) == len(found) == 7


def test_a_named_pipe_is_set_aside_and_never_waited_for(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["a/1.png"])
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    found = load_images(tmp_path)
    assert [(each.name, each.label) for each in found.skipped] == [("a/pipe.jpg", "a")]
    with pytest.raises(ImageError, match="not a regular file"):
        read_picture(tmp_path / "a" / "pipe.jpg")


# Links


def test_a_loop_of_links_is_named_once_and_read_once(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["cat/1.png", "dog/2.png"])
    (tmp_path / "cat" / "back").symlink_to(tmp_path)
    with pytest.warns(ImageWarning, match="a loop") as warned:
        found = load_images(tmp_path)
    assert (len(warned), found.names) == (1, ["cat/1.png", "dog/2.png"])


@pytest.mark.parametrize("follow", [False, True])
def test_a_link_to_itself_is_set_aside(tmp_path: Path, picture: Make, follow: bool) -> None:
    fill(tmp_path, picture, ["cat/1.png"])
    (tmp_path / "cat" / "me.png").symlink_to("me.png")
    found = load_images(tmp_path, follow_links=follow)
    assert (len(found), [each.name for each in found.skipped]) == (1, ["cat/me.png"])
    assert "cannot be followed" in found.skipped[0].reason


def test_links_out_of_the_folder_are_followed_only_when_asked(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["set/cat/1.png", "elsewhere/x/2.png", "lone.png"])
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "lone.png").symlink_to(tmp_path / "lone.png")
    found = load_images(tmp_path / "set")
    assert found.names == ["cat/1.png"]
    assert [(each.name, each.label) for each in found.skipped] == [("cat/lone.png", "cat"), ("dog", "dog")]
    assert "--follow-links" in found.skipped[0].reason

    followed = load_images(tmp_path / "set", follow_links=True)
    assert followed.names == ["cat/1.png", "cat/lone.png", "dog/x/2.png"]
    assert followed.skipped == []


def test_a_link_to_a_file_inside_the_folder_is_a_picture(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["cat/1.png", "dog/2.png"])
    (tmp_path / "dog" / "3.png").symlink_to("../cat/1.png")
    found = load_images(tmp_path)
    assert found.names == ["cat/1.png", "dog/2.png", "dog/3.png"]


def test_folders_that_link_to_each_other_end(tmp_path: Path, picture: Make) -> None:
    names = [f"{letter}/{letter}.png" for letter in "abcdef"]
    fill(tmp_path / "out", picture, names)
    for one in "abcdef":
        for other in "abcdef":
            (tmp_path / "out" / one / f"to_{other}").symlink_to(tmp_path / "out" / other)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "all").symlink_to(tmp_path / "out")
    with pytest.warns(ImageWarning, match="read once"):
        found = load_images(tmp_path / "set", follow_links=True)
    assert len(found) == 6


# Permissions


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that everyone can reach, while the test runs as a user without privileges."""
    if os.name != "posix":
        pytest.skip("needs POSIX users")
    folder = Path(tempfile.mkdtemp(prefix="featx-"))
    folder.chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path, folders, _ in os.walk(folder):
            for name in folders:
                os.chmod(os.path.join(path, name), 0o755)
        shutil.rmtree(folder)


def test_an_unreadable_file_or_folder_is_set_aside_with_the_permission_to_give(
    nobody: Path, picture: Make
) -> None:
    fill(nobody, picture, ["cat/1.png", "cat/2.png", "dog/3.png", "dog/deep/4.png"])
    (nobody / "cat" / "1.png").chmod(0)
    (nobody / "dog" / "deep").chmod(0)
    found = load_images(nobody)
    assert found.names == ["cat/1.png", "cat/2.png", "dog/3.png"]
    assert [(each.name, each.label) for each in found.skipped] == [("dog/deep", "dog")]
    assert "permission denied" in found.skipped[0].reason
    assert "chmod" in found.skipped[0].reason
    with pytest.raises(ImageError, match=r"1\.png: permission denied; make it readable \(chmod"):
        read_picture(found.sources[0])


def test_a_root_folder_that_may_not_be_read_is_an_error(nobody: Path) -> None:
    (nobody / "set").mkdir(mode=0)
    with pytest.raises(DataError, match=r"permission denied.*chmod"):
        load_images(nobody / "set")


# Lists, arrays, single pictures


def test_a_list_keeps_its_order_and_names_what_has_a_path(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["b.png", "a.png"])
    paths = [str(tmp_path / "b.png"), tmp_path / "a.png"]
    sources = [*paths, (tmp_path / "a.png").read_bytes(), picture(3), np.zeros((4, 5, 3), np.uint8)]
    found = load_images(sources)
    assert found.names == [str(tmp_path / "b.png"), str(tmp_path / "a.png"), "image 2", "image 3", "image 4"]
    assert found.labels is None
    assert [len(read_picture(source).digest) for source in found.sources] == [32] * 5


@pytest.mark.parametrize(
    ("shape", "count"), [((7, 8, 9, 3), 7), ((8, 9, 3), 1), ((8, 9), 1), ((7, 8, 9), 7), ((7, 8, 9, 4), 7)]
)
def test_an_array_is_one_picture_or_a_batch_by_its_shape(shape: tuple[int, ...], count: int) -> None:
    assert len(load_images(np.zeros(shape, np.uint8))) == count


def test_channels_first_is_refused_with_the_transposition_to_make() -> None:
    with pytest.raises(DataError, match=r"transpose\(0, 2, 3, 1\)"):
        load_images(np.zeros((7, 3, 8, 9), np.uint8))
    with pytest.raises(ImageError, match=r"transpose\(1, 2, 0\)"):
        read_picture(np.zeros((3, 8, 9), np.uint8))


def test_an_array_of_floats_is_refused_with_the_conversion_to_make() -> None:
    with pytest.raises(ImageError, match=r"\(array \* 255\)\.round\(\)\.astype\('uint8'\)"):
        read_picture(np.zeros((8, 9, 3)))


@pytest.mark.parametrize("bad", [[1, 2], [None], 7, [["a.png"]]])
def test_what_is_no_source_is_an_error_that_lists_the_sources(bad: object) -> None:
    with pytest.raises(DataError, match="is not an image; give a path, the bytes of a file"):
        load_images(bad)  # type: ignore[arg-type]


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(DataError, match="empty list"):
        load_images([])


def test_several_paths_are_one_set_in_the_order_given(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["new/b/1.png", "new/a.png", "lone.png"])
    (tmp_path / "m.csv").write_text("path,label\nlone.png,x\n")
    paths = [tmp_path / "lone.png", tmp_path / "new", tmp_path / "m.csv"]
    found = load_paths(paths, labelled=False)
    assert [os.path.relpath(name, tmp_path) for name in found.names] == [
        "lone.png",
        "new/a.png",
        "new/b/1.png",
        "lone.png",
    ]
    assert [os.fsdecode(source) for source in found.sources] == found.names
    assert found.labels is None


def test_labelled_folders_given_together_keep_their_labels(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["x/cat/1.png", "y/dog/2.png", "y/stray.png"])
    found = load_paths([tmp_path / "y", tmp_path / "x"])
    assert found.labels.tolist() == ["dog", "cat"]
    assert [each.name for each in found.skipped] == [str(tmp_path / "y" / "stray.png")]


def test_numbers_and_texts_of_tables_given_together_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\nx.jpg,1\n")
    (tmp_path / "b.csv").write_text("path,label\nx.jpg,one\n")
    assert load_paths([tmp_path / "a.csv", tmp_path / "b.csv"]).labels.tolist() == ["1", "one"]


def test_no_paths_are_an_error() -> None:
    with pytest.raises(DataError, match="no paths"):
        load_paths([])


def test_select_takes_pictures_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "path,label,split,group,weight\na,x,train,g,1\nb,y,test,h,2\nc,x,val,g,3\n"
    )
    some = load_images(tmp_path / "m.csv").select(np.array([True, False, True]))
    assert (some.names, some.labels.tolist(), some.splits.tolist()) == (
        ["a", "c"],
        ["x", "x"],
        ["train", "val"],
    )
    assert (some.groups.tolist(), some.weights.tolist()) == (["g", "g"], [1.0, 3.0])
    assert some.select([1, 0]).names == ["c", "a"]


# Reading once


def test_the_digest_is_the_sha256_of_the_file_wherever_it_lies(tmp_path: Path, picture: Make) -> None:
    fill(tmp_path, picture, ["a.png"])
    shutil.copy(tmp_path / "a.png", tmp_path / "b.jpg")
    data = (tmp_path / "a.png").read_bytes()
    expected = hashlib.sha256(data).digest()
    assert (
        image_digest(tmp_path / "a.png") == image_digest(tmp_path / "b.jpg") == image_digest(data) == expected
    )


def test_what_was_hashed_is_what_is_kept_when_the_file_changes_or_vanishes(
    tmp_path: Path, picture: Make
) -> None:
    fill(tmp_path, picture, ["a.png"])
    read = read_picture(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"other")
    (tmp_path / "a.png").unlink()
    assert hashlib.sha256(read.data).digest() == read.digest


def test_one_flipped_byte_is_another_picture(tmp_path: Path, picture: Make) -> None:
    data = bytearray(encode(picture(), "JPEG"))
    before = image_digest(bytes(data))
    data[len(data) // 2] ^= 1
    assert image_digest(bytes(data)) != before


def encode(image: Image.Image, kind: str) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_equal_pixels_have_one_digest_as_pil_image_and_as_array(picture: Make) -> None:
    image = picture()
    assert image_digest(image) == image_digest(np.asarray(image)) == image_digest(np.asfortranarray(image))


def test_shape_dtype_and_pixels_each_make_another_digest() -> None:
    arrays = [
        np.zeros((4, 6), np.uint8),
        np.zeros((6, 4), np.uint8),
        np.zeros((4, 6), np.uint16),
        np.zeros((4, 6), bool),
        np.zeros((4, 6, 3), np.uint8),
        np.zeros((4, 6, 4), np.uint8),
        np.eye(4, 6, dtype=np.uint8),
    ]
    assert len({image_digest(array) for array in arrays}) == len(arrays)


def test_byte_order_does_not_move_the_digest() -> None:
    pixels = np.arange(24, dtype=np.uint16).reshape(4, 6)
    assert image_digest(pixels) == image_digest(pixels.astype(">u2"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.touch(), "empty file"),
        (lambda path: path.mkdir(), "a folder, not an image"),
        (lambda path: None, "no such file or directory; it was moved or deleted"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    make(tmp_path / "x.jpg")
    with pytest.raises(ImageError, match=reason) as caught:
        read_picture(tmp_path / "x.jpg", name="cat/x.jpg")
    assert caught.value.name == "cat/x.jpg"


def test_a_file_of_three_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.tif").open("wb") as file:
        file.truncate(3 << 30)  # sparse: takes no space
    with pytest.raises(ImageError, match="may have at most 2,147,483,648"):
        read_picture(tmp_path / "x.tif")


def test_a_name_with_a_nul_is_a_picture_that_cannot_be_read() -> None:
    with pytest.raises(ImageError, match="null"):
        read_picture("a\0.jpg")


# The real sets


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "classes"),
    [
        ("catdog", 1399, 2),
        ("clothing_dev", 972, 10),
        ("sign_digits", 2062, 10),
        ("fsdd_spectrograms", 960, 10),
        ("omniglot_small1", 2720, 136),
        ("azure_trees2", 20, 2),
    ],
)
def test_a_real_set_is_found_whole(real_data: Path, name: str, count: int, classes: int) -> None:
    found = load_images(real_data / name)
    assert (len(found), len(set(found.labels.tolist())), found.skipped) == (count, classes, [])


@pytest.mark.data
def test_the_given_split_of_a_real_set_is_found(real_data: Path) -> None:
    assert Counter(load_images(real_data / "clothing_dev").splits.tolist()) == {"train": 600, "test": 372}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_too_many_open_files_are_no_fault_of_an_image(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))
    held = [os.dup(0) for _ in range(highest + 1)]  # no number below the limit is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    closing = threading.Timer(0.1, os.close, [held.pop(0)])
    try:
        with pytest.raises(DataError, match=r"a\.png: too many open files; allow more") as found:
            read_picture(path)
        assert not isinstance(found.value, ImageError)  # that would be skipped
        closing.start()
        read = read_picture(path)  # waits until another file is closed
        closing.join()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
    assert read.data == path.read_bytes()
