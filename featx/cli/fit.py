"""``featx fit``: a folder or manifest of labelled images to a tuned, tested, saved classifier."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import TooManyBadImagesError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "data", help="folder of class folders, folder with train/ and test/, or a CSV/parquet manifest"
    )
    parser.add_argument(
        "-o", "--output", default="model.featx", metavar="FILE", help="where to save (default model.featx)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be computed and how long it takes here"
    )
    group = parser.add_argument_group("test part")
    group.add_argument(
        "--test-size",
        type=arguments.number(0, 1),
        default=0.2,
        metavar="F",
        help="held-out fraction of each class (default 0.2)",
    )
    group.add_argument(
        "--split-salt", default="", metavar="TEXT", help="another text draws another test part"
    )
    group = parser.add_argument_group("search")
    group.add_argument(
        "--heads", metavar="A,B,...", help="heads to try (default: the cheap ones; see the docs)"
    )
    group.add_argument(
        "--trials",
        type=arguments.whole(0),
        default=50,
        metavar="N",
        help="Optuna trials beyond the grid (default 50)",
    )
    group.add_argument("--timeout", type=arguments.number(0, 1e9), metavar="S", help="seconds for the search")
    group.add_argument("--cv", type=arguments.whole(2), default=5, metavar="K", help="folds (default 5)")
    group.add_argument(
        "--scoring",
        default="auto",
        metavar="NAME",
        help="scikit-learn scorer to choose by (default auto: balanced accuracy from 3:1 on, else accuracy)",
    )
    group.add_argument(
        "--class-weight",
        choices=["auto", "balanced", "sqrt", "search", "none"],
        default="auto",
        help="weigh classes by their size (default auto: from 3:1 on, if it helps)",
    )
    group.add_argument(
        "--min-per-class",
        type=arguments.whole(1),
        default=2,
        metavar="N",
        help="drop smaller classes (default 2)",
    )
    group.add_argument(
        "--storage", metavar="URL", help="Optuna storage (journal file or RDB) to watch or resume"
    )
    group.add_argument("--study-name", metavar="NAME")
    group.add_argument("--seed", type=arguments.whole(0), default=0)
    group.add_argument("--jobs", type=arguments.whole(1), metavar="N", help="threads of the search")
    arguments.add_backbone(parser, several=True)
    parser.add_argument(
        "--cut",
        "--taps",
        dest="cut",
        metavar="TAP[,TAP...]|auto",
        help="layers to choose from (default auto: all; `last` is the whole network; see `featx taps`)",
    )
    arguments.add_precision(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Fit, test, save; say each."""
    arguments.check_writable(args.output)
    from featx.classifier import ImageClassifier
    from featx.cli import show
    from featx.images import load_images

    began = time.monotonic()
    images = load_images(args.data, follow_links=args.follow_links)
    images = show.data_set(console, images, min_per_class=args.min_per_class)
    clf = ImageClassifier(
        arguments.one_or_list(args.backbone, "auto"),
        backbone_budget=args.backbone_budget,
        cut=arguments.one_or_list(args.cut, "auto"),
        pool=arguments.one_or_list(args.pool, "auto"),
        resize=arguments.one_or_list(args.resize, "auto"),
        input_size=args.input_size,
        checkpoint=args.checkpoint,
        pretrained=not args.random_weights,
        heads=arguments.listed(args.heads),
        n_trials=args.trials,
        timeout=args.timeout,
        cv=args.cv,
        scoring=args.scoring,
        class_weight=None if args.class_weight == "none" else args.class_weight,
        store=arguments.store_of(args),
        runtime=args.runtime,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        decode=args.decode,
        background=args.background,
        bit_depth=args.bit_depth,
        max_pixels=args.max_pixels,
        isolate=args.isolate,
        storage=args.storage,
        study_name=args.study_name,
        max_bad=0.0 if args.strict else args.max_bad,
        n_jobs=args.jobs,
        random_state=args.seed,
        callback=console.progress,
    )
    if args.dry_run:
        show.plans(console, clf.plans(images))
        return 0
    skipped_csv = Path(args.output).with_suffix(".skipped.csv")
    try:
        clf.fit_with_test(images, test_size=args.test_size, split_salt=args.split_salt)
    except TooManyBadImagesError:
        show.skipped(console, clf.skipped_, skipped_csv)
        raise
    for remark in clf.remarks_:
        console.log(remark)
    path = clf.save(args.output)
    seconds = time.monotonic() - began
    show.search(console, clf)
    show.evaluation(console, clf.evaluation_, title=f"held-out test part, {clf.evaluation_.n} images")
    show.saved(console, path, seconds)
    console.data(seconds=seconds, data=os.fspath(args.data), remarks=list(clf.remarks_))
    return show.skipped(console, clf.skipped_, skipped_csv, strict=args.strict)
