"""Layout: what the folders of an image's name mean (wrapper, split, class), read from all names together.

Known are classes (``cat/1.jpg``), splits of classes (``train/cat/1.jpg``), splits inside each class
(``cat/train/1.jpg``), splits without classes, and each of them inside wrapper folders. Other folders beside
splits, and copies of the set inside the set, are left out by name. What cannot be a class is an error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from featx.exceptions import DataError
from featx.images.labels import plain_text
from featx.tables import escape_name

SPLITS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "holdout": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Names of splits as people write them, in lower case."""

FILLERS = frozenset(
    {"set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "photo", "photos"}
    | {"picture", "pictures", "pic", "pics", "part", "split", "folder", "files", "samples", "subset"}
)
"""Words beside a split's name that change nothing: ``training_set``, ``test_images``."""

ALSO_CLASSES = frozenset({"valid", "dev"})
"""Names of splits that may be classes (``valid`` beside ``invalid``) where no other split is there."""

DRAWN = frozenset(
    {"annotations", "labels", "bboxes", "segmentation", "segmentations", "trimaps", "mask", "masks"}
)
"""Names of folders with what was drawn on the images."""

NO_CLASSES = DRAWN - {"mask", "masks"} | {"image", "images", "img", "imgs", "jpegimages", "data", "dataset"}
"""Names of folders that hold images or what belongs to them, never a class."""

UNLABELLED = frozenset({"unknown", "unlabeled", "unlabelled", "all", *NO_CLASSES})
"""Names of the only folder in a split whose images have no labels."""

FOLD = re.compile(r"(cv|fold|partition)[ _.-]?\d+")
"""Name of a part for cross-validation, in lower case."""

LISTED = 5
"""Folders that a message lists."""


@dataclass
class _Node:
    """A folder: the number of its own images, and its folders with images."""

    files: int = 0
    folders: dict[str, _Node] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.files + sum(folder.total for folder in self.folders.values())


@dataclass(frozen=True)
class Base:
    """A folder whose folders are classes.

    Parameters
    ----------
    prefix : str
        Its name, with ``/`` at the end; empty for the root.
    split : str, optional
        The split that its images belong to.
    """

    prefix: str = ""
    split: str | None = None


@dataclass
class Layout:
    """What the folders of names mean.

    Parameters
    ----------
    bases : list of Base
        Folders of class folders; of images, where there are no labels.
    has_labels : bool
        Whether the folders of the bases are classes.
    inside : bool
        Whether the folders of the classes are splits.
    left_out : list of str
        Folders that are not used, with ``/`` at the end.
    said : list of str
        What was guessed, as parts of a sentence.
    warned : list of str
        Why images are left out, as sentences.
    """

    bases: list[Base]
    has_labels: bool = True
    inside: bool = False
    left_out: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    @property
    def has_splits(self) -> bool:
        """Whether each image has a split."""
        return self.inside or any(base.split for base in self.bases)

    def is_left_out(self, name: str) -> bool:
        """Whether a file or folder lies in a folder that is not used."""
        return any(f"{name}/".startswith(folder) for folder in self.left_out)

    def place(self, name: str, *, is_folder: bool = False) -> tuple[str | None, str | None] | None:
        """Return class and split of a file (or folder); None if it lies beside them."""
        for base in self.bases:
            if not f"{name}/".startswith(base.prefix):
                continue
            parts = name[len(base.prefix) :].split("/")
            if not self.has_labels:
                return None, base.split
            if len(parts) + is_folder < 2 + self.inside:
                return None
            split = split_of(parts[1]) if self.inside else base.split
            return plain_text(parts[0]), split
        return None

    def class_folder(self, name: str) -> str | None:
        """The class folder that a file lies in, or a folder (with ``/`` at its end) is or lies in."""
        for base in self.bases if self.has_labels else ():
            if name.startswith(base.prefix) and "/" in name[len(base.prefix) :]:
                return name[: name.index("/", len(base.prefix))]
        return None


def read_layout(files: Sequence[str]) -> Layout:
    """Read what the folders of image names mean.

    Parameters
    ----------
    files : sequence of str
        Names below one folder, with ``/``.

    Raises
    ------
    DataError
        If a class would be named like a split, a fold, or a folder of all images.
    """
    root = _tree(files)
    prefix, node = _unwrapped(root, classes=_own_splits(root))
    said = [f"the set is read from {_shown(prefix)}"] if prefix else []
    if not node.folders:
        return Layout([Base(prefix)], has_labels=False, said=said)
    splits = _splits(node.folders)
    deep = [name for name in splits if node.folders[name].folders]
    others = [name for name in node.folders if name not in splits]
    if deep and (len(set(splits.values())) > 1 or len(others) < 2):
        return _split_layout(prefix, node, splits, others, said)
    if splits and not others:
        bases = [Base(f"{prefix}{name}/", split) for name, split in splits.items()]
        return Layout(bases, has_labels=False, said=[*said, _splits_in_words(splits)])
    if splits and not (len(splits) == 1 and set(splits) <= ALSO_CLASSES):
        _refuse_split_class(next(iter(splits)), others)
    return _class_layout(prefix, node, said)


def _class_layout(prefix: str, node: _Node, said: list[str]) -> Layout:
    """Folders are classes."""
    layout = Layout([Base(prefix)], said=said)
    names = list(node.folders)
    copies = [name for name in names if _is_copy(node.folders[name], [n for n in names if n != name])]
    for name in copies:
        layout.left_out.append(f"{prefix}{name}/")
        layout.warned.append(
            f"the folder {_shown(prefix + name)} ({node.folders[name].total} images) holds the folders of "
            "the set once more; it is left out."
        )
    classes = {name: folder for name, folder in node.folders.items() if name not in copies}
    _refuse_no_classes(list(classes), classes)
    _leave_out_drawn(layout, prefix, classes)
    inner = {name: {split_of(each) for each in folder.folders} for name, folder in classes.items()}
    if all(found and None not in found for found in inner.values()):
        if len(set().union(*inner.values())) > 1:
            layout.inside = True
            layout.said.append("the folders of each class are splits")
    elif [name for name, found in inner.items() if len(found - {None}) > 1]:
        some = [name for name, found in inner.items() if len(found - {None}) > 1]
        layout.warned.append(
            f"the folders of {_listed(some)} are named like splits, but those of other classes are not; "
            "they are not read as splits."
        )
    elif _same_inside(classes.values()):
        inside = list(next(iter(classes.values())).folders)
        guess = f"the classes are {_listed(list(classes))}, not the folders {_listed(inside)}"
        if all(name.isdecimal() for name in inside):  # years or numbers of cameras
            layout.said.append(f"{guess} inside them")
        else:
            layout.warned.append(
                f"{guess} that each of them has. If these are the classes, name the others train, val or "
                "test, or give a manifest with the columns path and label."
            )
    return layout


def _leave_out_drawn(layout: Layout, prefix: str, classes: dict[str, _Node]) -> None:
    """Leave out masks beside the images of a class."""
    left_out = {}
    for name, folder in classes.items():
        drawn = [inner for inner in folder.folders if _word(inner) in DRAWN]
        if drawn and (folder.files or len(drawn) < len(folder.folders)):
            for inner in drawn:
                left_out[f"{name}/{inner}"] = folder.folders.pop(inner).total
    if left_out:
        layout.left_out += [f"{prefix}{name}/" for name in left_out]
        layout.warned.append(
            f"the folders {_listed([prefix + name for name in left_out])} hold what was drawn on the images, "
            f"by their names ({sum(left_out.values())} images); they are left out."
        )


def _split_layout(
    prefix: str, node: _Node, splits: dict[str, str], others: Sequence[str], said: list[str]
) -> Layout:
    """Folders are splits, and hold class folders."""
    layout = Layout([], said=said)
    inside = [set(_unwrapped(node.folders[name])[1].folders) for name in splits]
    known = set().union(*(names for names in inside if len(names) > 1))
    for name, split in splits.items():
        inner, found = _unwrapped(node.folders[name], known)
        only = next(iter(found.folders)) if len(found.folders) == 1 else None
        no_label = only is not None and only not in known and (split_of(only) or _word(only) in UNLABELLED)
        if not found.folders or (no_label and known):
            layout.left_out.append(f"{prefix}{name}/")
            layout.warned.append(
                f"the {node.folders[name].total} images of {_shown(prefix + name)} are not in class folders, "
                "so they have no labels; they are left out (`featx predict` labels them)."
            )
            continue
        like_split = [each for each in found.folders if split_of(each) and _word(each) not in ALSO_CLASSES]
        if like_split:
            _refuse_split_class(f"{name}/{inner}{like_split[0]}", list(found.folders))
        if inner:
            layout.said.append(f"the classes of {_shown(name)} are in {_shown(f'{name}/{inner}')}")
        layout.bases.append(Base(f"{prefix}{name}/{inner}", split))
    used = {name: split for name, split in splits.items() if f"{prefix}{name}/" not in layout.left_out}
    if "train" in splits.values() and "train" not in used.values():
        unlabelled = next(name for name, split in splits.items() if split == "train")
        raise DataError(
            f"the folder {_shown(unlabelled)} has no class folders, so its images have no labels; put them "
            "into one folder per class, or give a manifest with the columns path and label."
        )
    if used:
        layout.said.append(_splits_in_words(used))
    for name in others:
        total = node.folders[name].total
        copy = _is_copy(node.folders[name], list(splits))
        why = "it holds the splits once more" if copy else "it is not a split"
        layout.left_out.append(f"{prefix}{name}/")
        layout.warned.append(
            f"the folder {_shown(prefix + name)} ({total} images) lies beside the splits; {why}, so it is "
            "left out."
        )
    return layout


def split_of(name: str) -> str | None:
    """Return the split that a folder is named after, or None.

    Examples
    --------
    >>> split_of("Training_Set"), split_of("testImages"), split_of("train2017"), split_of("train station")
    ('train', 'test', 'train', None)
    """
    words = _words(name)
    return SPLITS[words[0]] if len(words) == 1 and words[0] in SPLITS else None


def _splits(names: Iterable[str]) -> dict[str, str]:
    """Folders that are splits: by their own name, or by names that differ only in it (``seg_train``)."""
    names = list(names)
    found = {name: split for name in names if (split := split_of(name)) is not None}
    by_rest: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in names:
        words = _words(name)
        where = [position for position, word in enumerate(words) if word in SPLITS]
        if name not in found and len(where) == 1:
            rest = (*words[: where[0]], "", *words[where[0] + 1 :])
            by_rest[rest][name] = SPLITS[words[where[0]]]
    for same in by_rest.values():
        if len(set(same.values())) > 1:
            found |= same
    return {name: found[name] for name in names if name in found}


def _words(name: str) -> list[str]:
    """The words of a folder's name in lower case, without numbers and `FILLERS`, if another word is left."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", spaced.lower())
    split = [part for word in words for part in _unglued(word)]
    kept = [word for word in split if word not in FILLERS]
    return kept or words


def _unglued(word: str) -> list[str]:
    """``["train", "set"]`` for ``trainset``."""
    for name in SPLITS:
        if word.startswith(name) and word[len(name) :] in FILLERS:
            return [name, word[len(name) :]]
    return [word]


def _word(name: str) -> str:
    return plain_text(name).casefold()


def _tree(files: Iterable[str]) -> _Node:
    root = _Node()
    cached: dict[str, _Node] = {"": root}
    for name in files:
        folder = name.rpartition("/")[0]
        node = cached.get(folder)
        if node is None:
            node = root
            for part in folder.split("/"):
                node = node.folders.setdefault(part, _Node())
            cached[folder] = node
        node.files += 1
    return root


def _unwrapped(node: _Node, classes: Iterable[str] = ()) -> tuple[str, _Node]:
    """Descend through folders that hold nothing but one folder of folders; `classes` are no such folders."""
    classes, prefix = set(classes), ""
    while len(node.folders) == 1 and not node.files:
        name, inner = next(iter(node.folders.items()))
        if name in classes or inner.files or not inner.folders:
            break
        prefix, node = f"{prefix}{name}/", inner
    return prefix, node


def _own_splits(node: _Node) -> list[str]:
    """Names of the folders on the way down that are splits by their own name."""
    found, waiting = [], [node]
    while waiting and len(waiting[0].folders) == 1:
        name, inner = next(iter(waiting[0].folders.items()))
        if split_of(name):
            found.append(name)
        waiting = [inner]
    return found


def _refuse_split_class(name: str, others: Sequence[str]) -> None:
    raise DataError(
        f"the folder {_shown(name)} is named like a split (train, val, test), but lies beside "
        f"{_listed([each for each in others if each != name.rpartition('/')[2]])} as if it were a class. "
        "Rename it if it is a class; if it is a split, give it one folder for each class."
    )


def _refuse_no_classes(names: Sequence[str], folders: dict[str, _Node]) -> None:
    if len(names) < 2:
        return
    if all(FOLD.fullmatch(_word(name)) for name in names):
        raise DataError(
            f"the folders {_listed(names)} are named like parts of a cross-validation, not like classes. Put "
            "all images into one folder per class, or give a manifest with the columns path and label."
        )
    bad = [name for name in names if _word(name) in NO_CLASSES]
    for bad_name in sorted(bad, key=lambda name: not folders[name].folders)[:1]:
        inside = folders[bad_name].folders
        give = (
            f"give {_shown(bad_name)} itself, whose folders are {_listed(list(inside))}"
            if inside
            else ("give a manifest with the columns path and label")
        )
        raise DataError(
            f"the folder {_shown(bad_name)} would be a class beside "
            f"{_listed([name for name in names if name != bad_name])}; {give}, or rename it if it is a class."
        )


def _is_copy(folder: _Node, siblings: Sequence[str]) -> bool:
    """Whether a folder holds only folders, at least two, that are named as those beside it."""
    return not folder.files and len(folder.folders) > 1 and set(folder.folders) <= set(siblings)


def _same_inside(folders: Iterable[_Node]) -> bool:
    """Whether all folders hold only folders, at least two, of the same names."""
    folders = list(folders)
    names = {frozenset(folder.folders) for folder in folders}
    return (
        len(folders) > 1
        and len(names) == 1
        and len(next(iter(names))) > 1
        and not any(folder.files for folder in folders)
    )


def _splits_in_words(splits: dict[str, str]) -> str:
    order = ("train", "val", "test")
    return "splits are " + ", ".join(
        _shown(name) if name == split else f"{_shown(name)} ({split})"
        for name, split in sorted(splits.items(), key=lambda item: order.index(item[1]))
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(_shown(name) for name in names[:LISTED]) + more


def _shown(name: str) -> str:
    return escape_name(name)
