"""``featx fit``: a folder or manifest of labelled images to a tuned, tested, saved classifier."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import FeatxError, TooManyBadImagesError, UsageError


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
        default=30,
        metavar="N",
        help="Optuna trials beyond the grid (default 30)",
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
    _add_fine_tuning(parser)
    arguments.add_backbone(parser, several=True)
    parser.add_argument(
        "--cut",
        "--taps",
        dest="cut",
        metavar="TAP[,TAP...]|auto",
        help="layers to choose from (default auto: all; `last` is the whole network; see `featx taps`)",
    )
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--views",
        type=arguments.whole(0),
        default=0,
        metavar="K",
        help="augmented views of each training image (default 0): tried for the head, and kept if they help "
        "out of fold; also what fine-tuning learns from",
    )
    group.add_argument(
        "--view-policy",
        default="light",
        metavar="NAME",
        help="light, photo, document, medical, or such as flip=0.5,rotate=10 (see `featx show augment`)",
    )
    arguments.add_precision(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def _add_fine_tuning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "fine-tuning", "the network's upper layers retrained on the training part, and kept only if they win"
    )
    group.add_argument(
        "--fine-tune",
        choices=["auto", "yes", "no"],
        default="no",
        help="auto: where a better network could be told from chance at all (default no: it takes minutes)",
    )
    group.add_argument(
        "--unfreeze", metavar="K|TAP|all", help="last K stages, layers above a tap, or all (default 2)"
    )
    group.add_argument(
        "--head",
        choices=["probe", "linear", "mlp"],
        help="start as the tuned probe (default), from zeros, or with a hidden layer that is trained first",
    )
    group.add_argument(
        "--epochs",
        type=arguments.whole(0),
        metavar="N",
        help="at most, with layers unfrozen (default 12)",
    )
    group.add_argument(
        "--lr", type=arguments.number(0, 10), metavar="X", help="peak learning rate there (default 3e-4)"
    )
    group.add_argument(
        "--fine-tune-trials", type=arguments.whole(0), metavar="N", help="let Optuna tune these with N trials"
    )
    group.add_argument(
        "--verdicts", type=arguments.whole(1), metavar="N", help="disjoint parts that judge (1 to 5)"
    )
    group.add_argument(
        "--disk-limit",
        type=arguments.number(0, 1e6),
        metavar="GB",
        help="of rows; above it images stream",
    )
    group.add_argument(
        "--checkpoints",
        metavar="DIR",
        help="write one after each epoch; the same command goes on from there (trials begin anew)",
    )


def _fine_tune_params(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of the fine-tuner that were given; the others keep their defaults."""
    given = {
        "unfreeze": int(args.unfreeze) if args.unfreeze and args.unfreeze.isdigit() else args.unfreeze,
        "head": args.head,
        "n_trials": args.fine_tune_trials,
        "n_verdicts": args.verdicts,
        "disk_limit": None if args.disk_limit is None else int(args.disk_limit * 1e9),
        "checkpoints": args.checkpoints,
    }
    if args.fine_tune != "no":  # views serve both
        given |= {"views": args.views or None, "view_policy": args.view_policy}
    said = {name: value for name, value in given.items() if value is not None}
    if args.epochs is not None or args.lr is not None:
        from featx.finetune import default_phases

        *first, last = default_phases(args.head or "probe")
        changes = {"epochs": args.epochs, "lr": args.lr}
        said["phases"] = (*first, last.replace(**{k: v for k, v in changes.items() if v is not None}))
    if said and args.fine_tune == "no":
        raise UsageError(f"{', '.join(said)} are about fine-tuning; ask for it: --fine-tune yes.")
    return said


def run(args: argparse.Namespace, console: Console) -> int:
    """Fit, test, save; say each."""
    arguments.check_writable(args.output)
    from featx.classifier import ImageClassifier
    from featx.cli import render
    from featx.finetune import FineTuner
    from featx.images import load_images
    from featx.search import HeadSearchCV

    began = time.monotonic()
    images = load_images(args.data, follow_links=args.follow_links)
    images = render.data_set(console, images, min_per_class=args.min_per_class)
    clf = ImageClassifier(
        arguments.one_or_list(args.backbone, "auto"),
        cut=arguments.one_or_list(args.cut, "auto"),
        pool=arguments.one_or_list(args.pool, "auto"),
        resize=arguments.one_or_list(args.resize, "auto"),
        heads=arguments.listed(args.heads),
        n_trials=args.trials,
        timeout=args.timeout,
        cv=args.cv,
        scoring=args.scoring,
        class_weight=None if args.class_weight == "none" else args.class_weight,
        fine_tune=args.fine_tune if args.fine_tune == "auto" else args.fine_tune == "yes",
        backbone_budget=args.backbone_budget,
        max_bad=0.0 if args.strict else args.max_bad,
        store=arguments.store_of(args),
        device=args.device,
        n_jobs=args.jobs,
        random_state=args.seed,
        callback=console.progress,
        extractor=arguments.extractor(args),
        search=HeadSearchCV(n_repeats="auto", storage=args.storage, study_name=args.study_name),
        fine_tuner=FineTuner(**_fine_tune_params(args)),
    )
    if args.dry_run:
        render.plans(console, clf.plans(images))
        if args.fine_tune != "no":
            render.fine_tune_plan(console, clf, images)
        return 0
    skipped_csv = Path(args.output).with_suffix(".skipped.csv")
    try:
        clf.fit_with_test(images, test_size=args.test_size, split_salt=args.split_salt)
    except TooManyBadImagesError as error:
        render.skipped(console, error.skipped, skipped_csv)
        raise
    for remark in clf.remarks_:
        console.log(remark)
    before = _model_before(args.output)
    path = clf.save(args.output)
    seconds = time.monotonic() - began
    render.search(console, clf)
    render.fine_tuning(console, clf)
    render.evaluation(console, clf.evaluation_, title=f"held-out test part, {clf.evaluation_.n} images")
    if before is not None:
        _compare(console, before, clf, images)
    render.saved(console, path, seconds)
    console.data(seconds=seconds, data=os.fspath(args.data), remarks=list(clf.remarks_))
    return render.skipped(console, list(clf.skipped_), skipped_csv, strict=args.strict)


def _compare(console: Console, before: Any, clf: Any, images: Any) -> None:
    """Say what changed since the model before. The new model is saved: a failure here is only reported."""
    from featx.classifier.comparison import compare_fits
    from featx.classifier.settings import machine_of
    from featx.cli import render

    try:
        found = compare_fits(before, clf.model_, images, machine_of(clf))
    except Exception as error:  # whatever goes wrong, the model is complete
        console.warn(
            f"the new model was not compared with the one before ({type(error).__name__}: {error}). The new "
            "model is saved and complete."
        )
        return
    render.refit(console, found)


def _model_before(output: str) -> Any:
    """The model that is at the place of the output and has a test part; None if there is none."""
    from featx.classifier.packing import load_model

    if not Path(output).is_file():
        return None
    try:
        model = load_model(output).model
    except FeatxError:  # whatever it is, it is replaced
        return None
    return model if "test" in model.assignment.values() else None
