"""Options that several verbs share, and what is made from them: stores, extractors, classifiers."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from featx.exceptions import UsageError

DEFAULT_BACKBONE = "tf_efficientnet_lite0.in1k"
"""As in `featx.extractor`, which is slow to import."""

MODEL_ENDINGS, FIGURE_ENDINGS, TABLE_ENDINGS = (".featx",), (".png",), (".csv",)
PAGE_ENDINGS, TEXT_ENDINGS = (".html", ".htm"), (".md", ".markdown", ".txt")
"""Endings of model files, figures, tables, reports and Markdown."""

DECISIONS = ("auto", "argmax", "balanced")
"""Decisions that have a name."""

EXTRACTOR_OPTIONS = (
    "input_size", "checkpoint", "allow_download", "runtime", "precision", "dtype", "batch_size", "decode",
    "background", "pixel_range", "bands", "max_pixels", "isolate",
)  # fmt: skip
"""Options with the names of parameters of `FeatureExtractor` that `ImageClassifier` does not have."""


def shorten_help(parser: argparse.ArgumentParser, shown: Sequence[str], examples: str) -> None:
    """Let ``--help`` list some options and examples, and ``--help-all`` all options.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        With all its options; those that are added later are treated alike.
    shown : sequence of str
        Options that ``--help`` lists.
    examples : str
        Text below them.
    """
    whole = parser.format_help
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = examples + "\n`featx fit --help-all` lists all options."

    def short() -> str:
        kept = {"-h", "--help-all", *shown}
        hidden = [a for a in parser._actions if a.option_strings and not kept & set(a.option_strings)]
        groups = [group for group in parser._action_groups if set(group._group_actions) <= set(hidden)]
        texts = [(action, action.help) for action in hidden], [(g, g.description) for g in groups]
        try:
            for action in hidden:
                action.help = argparse.SUPPRESS
            for group in groups:
                group.description = None
            return whole()
        finally:
            for action, text in texts[0]:
                action.help = text
            for group, text in texts[1]:
                group.description = text

    class HelpAll(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            parser._print_message(whole(), sys.stdout)
            parser.exit()

    parser.format_help = short  # type: ignore[method-assign]
    parser.add_argument("--help-all", action=HelpAll, nargs=0, help="list all options")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache-dir`` and ``--no-cache``."""
    group = parser.add_argument_group("cache")
    group.add_argument("--cache-dir", metavar="DIR", help="folder of cached features (default: FEATX_CACHE)")
    group.add_argument("--no-cache", action="store_true", help="do not store features on disk")


def add_backbone(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the options of the network and of its input; with `several`, backbones can be compared."""
    group = parser.add_argument_group("backbone")
    one = "timm model (see `featx models`), or a fine-tuned .featx file"
    group.add_argument(
        "--backbone",
        default=None if several else DEFAULT_BACKBONE,
        metavar="NAME[,NAME...]|auto" if several else "NAME",
        help=f"{one}. Several, or all whose weights are on this machine (auto), are compared on at most 500 "
        "training images. The best is used, or the features of the best two"
        if several
        else one,
    )
    if several:
        group.add_argument(
            "--backbone-budget",
            type=seconds,
            metavar="TIME",
            help="time for the comparison of backbones, such as 90s or 10m (default: that of the features of "
            "the default network for all images; 10m if you name the backbones)",
        )
    add_weights(group)
    group.add_argument(
        "--pool", metavar="P[,P...]", help="avg, max, gem, avg+max, cls, cls+avg, grid2, grid4"
    )
    group.add_argument("--resize", metavar="R[,R...]", help="crop (as trained), squash or pad")
    group.add_argument("--input-size", type=_size, metavar="N|HxW", help="input size of the network, pixels")
    add_compute(parser)


def add_weights(group: argparse._ActionsContainer) -> None:
    """Add ``--checkpoint``, ``--random-weights`` and ``--allow-download``."""
    group.add_argument(
        "--checkpoint", metavar="PATH", help="load these weights instead of the pretrained ones"
    )
    group.add_argument("--random-weights", action="store_true", help="load no weights (for comparison)")
    add_allow_download(group)


def add_allow_download(group: argparse._ActionsContainer) -> None:
    """Add ``--allow-download``: True, or None if it is not given."""
    group.add_argument(
        "--allow-download",
        action="store_true",
        default=None,
        help="download missing weights also for a network that a .featx file names",
    )


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Add the options of the hardware; they change features only within the documented tolerance."""
    group = parser.add_argument_group("compute")
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, mps or xpu; cuda:0,cuda:1 or all: several share the images",
    )
    group.add_argument("--runtime", default="auto", help="auto, or a runtime that `featx doctor` lists")
    group.add_argument("--batch-size", type=_auto_or_int, default="auto", metavar="N|auto")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the options of decoding and of numerical precision; they change features."""
    group = parser.add_argument_group("precision")
    group.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    group.add_argument(
        "--decode", default="exact", choices=["exact", "fast"], help="fast: decode large JPEGs scaled down"
    )
    group.add_argument(
        "--max-pixels",
        type=whole(1),
        default=178_956_970,
        metavar="N",
        help="refuse larger images (default %(default)s)",
    )
    group.add_argument(
        "--range",
        dest="pixel_range",
        default="auto",
        metavar="LOW,HIGH",
        help="values of black and white in images of more than 8 bits; or full (of the type), minmax (of "
        "each image), or auto (from a sample of the set, default)",
    )
    group.add_argument(
        "--bands",
        default="",
        metavar="R,G,B",
        help="bands that are red, green and blue, such as 3,2,1, or one that is grey",
    )
    group.add_argument(
        "--background",
        type=_color,
        default=(255, 255, 255),
        metavar="R,G,B",
        help="colour behind transparent pixels (default white)",
    )
    add_isolate(group)


def add_isolate(group: argparse._ActionsContainer) -> None:
    """Add ``--isolate``."""
    group.add_argument(
        "--isolate", action="store_true", help="decode in a subprocess: its crash does not end the run"
    )


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """Add the options of manifests."""
    group = parser.add_argument_group("manifest")
    group.add_argument("--path-column", metavar="NAME", help="column of paths (default path)")
    group.add_argument("--label-column", metavar="NAME", help="column of labels (default label)")
    group.add_argument("--root", metavar="DIR", help="folder of the paths (default: that of the manifest)")
    group.add_argument(
        "--sep", metavar="SIGN", help="separator: comma, semicolon, tab, pipe, space or a character"
    )


def manifest_options(args: argparse.Namespace) -> Any:
    """Return the `featx.images.ManifestOptions` that the options of `add_manifest` describe."""
    from featx.images import ManifestOptions

    names = ("path_column", "label_column", "root", "sep")
    return ManifestOptions(**{name: getattr(args, name, None) for name in names})


def load(args: argparse.Namespace, paths: str | Sequence[str], *, labelled: bool | None = None) -> Any:
    """Return the `ImageSet` of paths, found as the options of `add_skipping` and `add_manifest` say."""
    from featx.images import load_images, load_paths

    options: dict[str, Any] = {"follow_links": args.follow_links, "labelled": labelled}
    options["table"] = manifest_options(args)
    return load_images(paths, **options) if isinstance(paths, str) else load_paths(paths, **options)


def add_skipping(parser: argparse.ArgumentParser) -> None:
    """Add the options of images that cannot be read."""
    group = parser.add_argument_group("unreadable images")
    group.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    group.add_argument(
        "--max-bad",
        type=fraction,
        default=0.05,
        metavar="F",
        help="largest fraction of unreadable images, such as 0.05 or 5%% (default 0.05)",
    )
    group.add_argument("--follow-links", action="store_true", help="follow symbolic links out of the folder")


def add_test_part(
    parser: argparse.ArgumentParser, of: str = "of each class", salt: str = "", *, may_be_none: bool = False
) -> None:
    """Add the options of the held-out test part."""
    group = parser.add_argument_group("test part")
    group.add_argument(
        "--test-size",
        type=fraction,
        default=0.2,
        metavar="F",
        help=f"held-out fraction {of} (default 0.2)",
    )
    if may_be_none:
        group.add_argument(
            "--no-test", action="store_true", help="learn from all images: no test part, no score"
        )
    group.add_argument(
        "--split-salt", default="", metavar="TEXT", help=salt or "another text draws another test part"
    )


def add_search(parser: argparse.ArgumentParser, *, by_preset: bool = False) -> argparse._ArgumentGroup:
    """Add the options of the search; return their group, for more of them.

    With `by_preset`, the number of trials is that of the preset if it is not given.
    """
    group = parser.add_argument_group("search")
    group.add_argument("--heads", metavar="A,B,...", help="heads to try (default: the fast ones)")
    if by_preset:
        add_trials(group, None)
    else:
        add_trials(group)
    add_seed(group)
    add_jobs(group)
    return group


def add_trials(
    group: argparse._ActionsContainer, default: int | None = 30, of: str = "beyond the grid"
) -> None:
    """Add ``--trials``."""
    group.add_argument(
        "--trials",
        type=whole(0),
        default=default,
        metavar="N",
        help=f"Optuna trials {of} (default {'30' if default is None else default})",
    )


def add_seed(group: argparse._ActionsContainer) -> None:
    """Add ``--seed``."""
    group.add_argument("--seed", type=whole(0), default=0, metavar="N", help="random seed (default 0)")


def add_jobs(group: argparse._ActionsContainer) -> None:
    """Add ``--jobs``."""
    group.add_argument("--jobs", type=whole(1), metavar="N", help="threads (default: all cores)")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run``."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be computed, and its time here"
    )


def add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--plot``."""
    parser.add_argument("--plot", metavar="FILE", help=f"draw {what}; a name ending in .png")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of verbs that use a saved classifier, which `load_classifier` reads."""
    parser.add_argument("model", help="a .featx file")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="weights of the backbone, if they are not found by name"
    )
    add_allow_download(parser)
    add_compute(parser)
    add_skipping(parser)
    add_cache(parser)


def add_min_confidence(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--min-confidence``."""
    parser.add_argument("--min-confidence", type=fraction, metavar="P", help=text)


def add_decide(parser: argparse._ActionsContainer, default: str | None, text: str) -> None:
    """Add ``--decide``."""
    parser.add_argument(
        "--decide",
        type=_decide,
        default=default,
        metavar="auto|argmax|balanced|CLASS=COST,...",
        help="how a label follows from probabilities: the most probable class (argmax), as if classes were "
        f"equally frequent (balanced), or by the cost of missing a class; others cost 1 ({text})",
    )


def decision(decide: str | dict[str, float], classes: Sequence[Any]) -> Any:
    """Return the parameter ``decide``: costs by the classes themselves, not by their text.

    Parameters
    ----------
    decide : str or dict
        As parsed.
    classes : sequence
        Labels.
    """
    if isinstance(decide, str):
        return decide
    of_text = {str(label): label for label in classes}
    return {of_text.get(name, name): cost for name, cost in decide.items()}


def load_classifier(args: argparse.Namespace, callback: Callable[[Any], None]) -> Any:
    """Load the `ImageClassifier` that the options of `add_model` describe."""
    from featx.classifier import load

    clf = load(
        args.model,
        store=store_of(args),
        checkpoint=args.checkpoint,
        allow_download=bool(args.allow_download),
    )
    if vars(args).get("decide") is not None:
        decide = decision(args.decide, clf.classes_.tolist())
        clf.model_.deciding(decide)  # an unknown class is named before the work
        clf.set_params(decide=decide)
    return clf.set_params(
        device=args.device,
        extractor__runtime=args.runtime,
        extractor__batch_size=args.batch_size,
        extractor__isolate=bool(vars(args).get("isolate")),
        callback=callback,
        max_bad=0.0 if args.strict else args.max_bad,
    )


def classifier(args: argparse.Namespace, callback: Callable[[Any], None], **given: Any) -> Any:
    """Make the `ImageClassifier` that the options of a verb describe.

    Parameters
    ----------
    args : argparse.Namespace
        Options of `add_backbone`, `add_search`, `add_skipping` and `add_cache`.
    callback : callable
        Called with every `featx.extractor.Progress` event.
    **given
        Parameters that the verb sets itself.
    """
    from featx.classifier import ImageClassifier

    options = {
        "backbone": args.backbone and one_or_list(args.backbone, ""),
        "cut": args.cut and one_or_list(args.cut, ""),
        "pool": args.pool and one_or_list(args.pool, ""),
        "resize": args.resize and one_or_list(args.resize, ""),
        "heads": listed(args.heads),
        "n_trials": args.trials,
    }
    given |= {name: value for name, value in options.items() if value is not None}  # others: by the preset
    return ImageClassifier(
        max_bad=0.0 if args.strict else args.max_bad,
        device=args.device,
        n_jobs=args.jobs,
        random_state=args.seed,
        callback=callback,
        extractor=extractor(args),
        **given,
    )


def feature_extractor(args: argparse.Namespace, callback: Callable[[Any], None]) -> Any:
    """Make the `FeatureExtractor` of a verb that has no classifier."""
    return extractor(
        args,
        backbone=args.backbone,
        cut="all" if args.cut == "all" else one_or_list(args.cut, "last"),
        pool=one_or_list(args.pool, "avg"),
        resize=one_or_list(args.resize, "crop"),
        store=store_of(args),
        device=args.device,
        callback=callback,
    )


def extractor(args: argparse.Namespace, **given: Any) -> Any:
    """Make a `FeatureExtractor` from `EXTRACTOR_OPTIONS`, from ``--views``, and from `given`.

    Parameters
    ----------
    args : argparse.Namespace
        Parsed options; a verb need not have all of them.
    **given
        Parameters that the verb sets itself.
    """
    from featx.extractor import FeatureExtractor

    options = vars(args)
    params = {name: options[name] for name in EXTRACTOR_OPTIONS if name in options}
    if "random_weights" in options:
        params["pretrained"] = not args.random_weights
    if options.get("views") is not None:  # range(1) is no view, whatever the preset says
        params |= {"view": range(args.views + 1), "view_policy": args.view_policy}
    return FeatureExtractor(**{**params, **given})


def store_of(args: argparse.Namespace) -> Any:
    """Return the parameter ``store`` that the options of the cache describe."""
    if args.cache_dir == "":
        raise UsageError("--cache-dir is empty; name a folder.")
    if args.no_cache and args.cache_dir:
        raise UsageError("--no-cache and --cache-dir exclude each other; give one of them.")
    return "memory" if args.no_cache else args.cache_dir


def listed(text: str | None) -> list[str] | None:
    """Split ``"a,b"``; None stays None."""
    if text is None:
        return None
    return [part.strip() for part in text.split(",") if part.strip()]


def one_or_list(text: str | None, default: str) -> str | list[str]:
    """Split ``"a,b"``; a single name stays a string."""
    parts = listed(text) or [default]
    return parts[0] if len(parts) == 1 else parts


def check_writable(path: str | os.PathLike[str] | None, endings: Sequence[str] = ()) -> None:
    """Refuse an output path before the work, not after it; None is no output.

    Parameters
    ----------
    path : path
        File to write. A device or a pipe may have any name.
    endings : sequence of str
        Endings of the formats that can be written; the ending of a file is its format.

    Raises
    ------
    UsageError
        If no file can be written there, or not in the format that its ending names.
    """
    if path is None:
        return
    if not os.path.basename(path):
        raise UsageError(f"{str(path)!r} names no file; give the name of a file to write.")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"{path}: the folder {folder} does not exist; make it, or choose another output.")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; give the name of a file to write.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the folder {folder} cannot be written; choose another output.")
    is_stream = os.path.exists(path) and not os.path.isfile(path)
    if endings and not is_stream and ending_of(path) not in endings:
        raise UsageError(
            f"{path}: this output is not written to files with this ending; choose a name that ends in "
            f"{', '.join(endings)}."
        )


def ending_of(path: str | os.PathLike[str]) -> str:
    """Return the ending of a file name, in lower case: ``".csv"``."""
    return os.path.splitext(path)[1].lower()


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Return the type of an option: an integer from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return read


def add_embedding(parser: argparse.ArgumentParser) -> None:
    """Add the method of a map of images."""
    parser.add_argument(
        "--map",
        choices=["tsne", "pca", "umap"],
        default="tsne",
        help="method of the map (default tsne; umap needs the package umap-learn)",
    )


def number(low: float, high: float) -> Callable[[str], float]:
    """Return the type of an option: a number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return read


def seconds(text: str) -> float:
    """Read an option: a time, such as ``90``, ``90s``, ``10m``, ``1.5h`` or ``1h30m``, in seconds."""
    from featx.duration import seconds_of

    try:
        return seconds_of(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def fraction(text: str) -> float:
    """Read an option: a fraction (``0.05``) or a percentage (``5%``)."""
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a fraction (0.05) nor a percentage (5%)")
    return value


def _size(text: str) -> int | tuple[int, int]:
    sides = [whole(1)(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: write one side (224) or height and width (224x320)")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _decide(text: str) -> str | dict[str, float]:
    """Read a decision: a word, or costs such as ``melanoma=5,other=2``."""
    if "=" not in text:
        if text not in DECISIONS:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not known; write {', '.join(DECISIONS)}, or costs such as melanoma=5"
            )
        return text
    costs = {}
    for part in re.split(r"(?<=[\d.]),", text):  # a comma after a number: names may have commas
        name, _, cost = part.rpartition("=")
        try:
            costs[name.strip()] = float(cost)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: write CLASS=COST, such as melanoma=5") from None
    return costs


def _auto_or_int(text: str) -> int | str:
    return text if text == "auto" else whole(1)(text)


def _color(text: str) -> tuple[int, ...]:
    try:
        channels = tuple(int(part) for part in text.split(","))
    except ValueError:
        channels = ()
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write red, green and blue from 0 to 255, such as 255,255,255"
        )
    return channels
