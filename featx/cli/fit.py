"""``featx fit``: learn a classifier from labelled images, evaluate it and save it."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from pathlib import Path
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import UsageError
from featx.tables import count

SHOWN = (
    "--output", "--preset", "--budget", "--dry-run", "--test-size", "--no-test", "--heads", "--scoring",
    "--backbone", "--fine-tune", "--json", "--quiet",
)  # fmt: skip
"""Options that ``--help`` lists; ``--help-all`` lists all."""

EXAMPLES = """examples:
  featx fit photos                          photos/cat/1.jpg, photos/dog/2.jpg, ...
  featx fit list.csv -o pets.featx          a table with the columns path and label
  featx fit photos --dry-run                say how long it takes
  featx predict model.featx new_photos      use the model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "data", help="folder of class folders, folder with train/ and test/, or a CSV or parquet manifest"
    )
    parser.add_argument(
        "-o", "--output", default="model.featx", metavar="FILE", help="file to write (default model.featx)"
    )
    parser.add_argument(
        "--preset",
        choices=["quick", "good", "best"],
        default="good",
        help="values of several options, see `featx presets` (default good); other options override them",
    )
    parser.add_argument(
        "--budget",
        "--timeout",
        type=arguments.seconds,
        metavar="TIME",
        help="time for the whole fit, such as 90s, 10m or 2h; all features are computed in any case",
    )
    parser.add_argument("--report", metavar="FILE", help="page of results to write (see `featx report`)")
    arguments.add_dry_run(parser)
    arguments.add_test_part(parser, may_be_none=True)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--fixes", metavar="FILE", help="table of issues of `featx check`; actions in it are applied first"
    )
    group.add_argument(
        "--no-auto-groups",
        action="store_true",
        help="allow near copies, and images of one source, in training and test part",
    )
    group = arguments.add_search(parser, by_preset=True)
    group.add_argument(
        "--cv",
        type=arguments.whole(2),
        metavar="K",
        help="folds (default 5; for large sets of many classes, only some are evaluated)",
    )
    group.add_argument(
        "--scoring",
        default="auto",
        metavar="NAME",
        help="scikit-learn scorer to maximise (default auto: accuracy)",
    )
    arguments.add_decide(
        group, "auto", "default auto: rare classes are favoured if it gains macro-F1 and costs less accuracy"
    )
    group.add_argument(
        "--positive",
        metavar="LABEL",
        help="class for --scoring f1, precision, recall, jaccard or average_precision",
    )
    group.add_argument(
        "--class-weight",
        choices=["balanced", "sqrt", "search", "none"],
        default="none",
        help="weight classes by their size in training (default none)",
    )
    group.add_argument(
        "--min-per-class",
        type=arguments.whole(1),
        default=2,
        metavar="N",
        help="leave out classes with fewer images, or fewer groups where images have groups (default 2)",
    )
    group.add_argument(
        "--storage", metavar="URL", help="Optuna storage (journal file or RDB) to watch or resume the search"
    )
    group.add_argument("--study-name", metavar="NAME", help="name of the study in the storage")
    _add_fine_tuning(parser)
    arguments.add_backbone(parser, several=True)
    parser.add_argument(
        "--cut",
        "--taps",
        dest="cut",
        metavar="TAP[,TAP...]|auto",
        help="layers to choose from, see `featx taps` (default auto: all; last: the whole network)",
    )
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--views",
        type=arguments.whole(0),
        metavar="K",
        help="augmented views of each training image (default 0). They are used by fine-tuning, and if they "
        "improve the out-of-fold score",
    )
    group.add_argument(
        "--view-policy",
        default="light",
        metavar="NAME",
        help="light, photo, document, medical, or values such as flip=0.5,rotate=10 (default light; see "
        "`featx show augment`)",
    )
    arguments.add_precision(parser)
    arguments.add_manifest(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)
    arguments.shorten_help(parser, SHOWN, EXAMPLES)


def _add_fine_tuning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "fine-tuning",
        "Train the upper layers of the network, and keep them if they are expected to be better.",
    )
    group.add_argument(
        "--fine-tune",
        choices=["auto", "yes", "no"],
        help="auto: if a gain is expected (default no: it takes minutes to hours)",
    )
    group.add_argument(
        "--unfreeze", metavar="K|TAP|all", help="last K stages, layers above a tap, or all (default 2)"
    )
    group.add_argument(
        "--head",
        choices=["probe", "linear", "mlp"],
        help="start from the tuned linear probe (default), from zeros, or with a hidden layer, which is "
        "trained first",
    )
    group.add_argument(
        "--epochs", type=arguments.whole(0), metavar="N", help="most epochs of the last phase (default 12)"
    )
    group.add_argument(
        "--lr",
        type=arguments.number(0, 10),
        metavar="X",
        help="peak learning rate of that phase (default 3e-4)",
    )
    group.add_argument(
        "--fine-tune-trials", type=arguments.whole(0), metavar="N", help="Optuna trials for these settings"
    )
    group.add_argument(
        "--verdicts",
        type=arguments.whole(1),
        metavar="N",
        help="most disjoint parts of the training images to compare on (default: until the result is clear)",
    )
    group.add_argument(
        "--disk-limit",
        type=arguments.number(0, 1e6),
        metavar="GB",
        help="most disk space of cached features; if they need more, images are decoded in each epoch",
    )
    group.add_argument(
        "--checkpoints",
        metavar="DIR",
        help="write a checkpoint after each epoch; the same command resumes from it (trials start again)",
    )


def _fine_tuner(args: argparse.Namespace) -> Any:
    """Make the `FineTuner` with the options that were given; the others keep their defaults."""
    from featx.finetune import FineTuner, default_phases

    options = {
        "unfreeze": int(args.unfreeze) if args.unfreeze and args.unfreeze.isdigit() else args.unfreeze,
        "head": args.head,
        "n_trials": args.fine_tune_trials,
        "n_verdicts": args.verdicts,
        "disk_limit": None if args.disk_limit is None else int(args.disk_limit * 1e9),
        "checkpoints": args.checkpoints,
    }
    given = {name: value for name, value in options.items() if value is not None}
    changes = {"epochs": args.epochs, "lr": args.lr}
    if changes := {name: value for name, value in changes.items() if value is not None}:
        *first, last = default_phases(args.head or "probe")
        given["phases"] = (*first, last.replace(**changes))
    from featx.classifier.presets import PRESETS

    by_preset = PRESETS[args.preset].params["fine_tune"] is not False
    if by_preset if args.fine_tune is None else args.fine_tune != "no":
        given["view_policy"] = args.view_policy
        if args.views:
            given["views"] = args.views
    elif given:
        raise UsageError(f"{', '.join(given)} are options of fine-tuning; request it with --fine-tune yes.")
    return FineTuner(**given)


def run(args: argparse.Namespace, console: Console) -> int:
    """Fit, evaluate, save and report."""
    arguments.check_writable(args.output, arguments.MODEL_ENDINGS)
    arguments.check_writable(args.report, arguments.PAGE_ENDINGS)
    from featx.classifier.presets import PRESETS
    from featx.cli import render
    from featx.search import HeadSearchCV

    if args.test_size == 1:
        raise UsageError("--test-size 1 leaves no image to learn from; give less, such as 0.2.")
    began = time.monotonic()
    images = arguments.load(args, args.data)
    if args.fixes:
        images = _fixed(args, console, images)
    images = render.data_set(console, images, min_per_class=args.min_per_class)
    if args.views is None and args.view_policy != "light":  # another policy for the views of the preset
        args.views = len(PRESETS[args.preset].params.get("extractor__view", (0,))) - 1
    clf = arguments.classifier(
        args,
        console.progress,
        cv=args.cv or "auto",
        scoring=args.scoring if args.positive is None else f"{args.scoring}:{args.positive}",
        decide=arguments.decision(args.decide, [] if images.labels is None else images.labels.tolist()),
        class_weight=None if args.class_weight == "none" else args.class_weight,
        preset=args.preset,
        budget=args.budget,
        **_by_preset(args),
        store=arguments.store_of(args),
        auto_groups=not args.no_auto_groups,
        search=HeadSearchCV(n_repeats="auto", storage=args.storage, study_name=args.study_name),
        fine_tuner=_fine_tuner(args),
    )
    if args.dry_run:
        from featx.classifier.planning import plan_search
        from featx.classifier.settings import settings_of

        search = plan_search(images, settings_of(clf))  # what is not known is said first
        render.plans(console, clf.plans(images))
        render.search_time(console, search)
        render.fine_tune_plan(console, clf, images)
        return 0
    if args.no_test or args.test_size == 0:
        clf.fit(images)
    else:
        clf.fit_with_test(images, test_size=args.test_size, split_salt=args.split_salt)
    for remark in clf.remarks_:
        console.log(remark)
    before = _model_before(args.output)
    path = clf.save(args.output)
    seconds = time.monotonic() - began
    if clf.evaluation_ is None:
        render.no_test(console, clf)
    else:
        part = f"the held-out test part, {clf.evaluation_.n} images"
        render.evaluation(console, clf.evaluation_, title=part)
        render.apart(console, clf.record_.apart)
    render.operating_points(console, clf)
    if before is not None:
        _compare(console, before, clf, images)
    render.fine_tuning(console, clf)
    render.search(console, clf)
    render.saved(console, path, seconds)
    console.data(seconds=seconds, data=os.fspath(args.data), remarks=list(clf.remarks_))
    _report(args, console, clf)
    return render.skipped(console, args, clf.skipped_, args.output)


def _by_preset(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters that the preset sets, if they were given."""
    tune = {"auto": "auto", "yes": True, "no": False, None: None}[args.fine_tune]
    options = {"fine_tune": tune, "backbone_budget": args.backbone_budget}
    return {name: value for name, value in options.items() if value is not None}


def _report(args: argparse.Namespace, console: Console, clf: Any) -> None:
    """Write the page of results, or say how many mistakes there are and what shows them."""
    from featx.cli import render

    confusion = (clf.evaluation_ or clf.oof_evaluation_).confusion
    n = int(confusion.sum() - confusion.trace())
    where = "out of fold" if clf.evaluation_ is None else "on the test part"
    console.data(mistakes=n)
    if not args.report:
        command = shlex.join(["featx", "report", args.output, os.fspath(args.data), "-o", "report.html"])
        console.text(f"          {count(n, 'mistake') if n else 'no mistake'} {where}; see more: {command}")
        return
    with render.aside(console, "report"):
        from featx.reporting import report

        report(clf, args.report, title=f"Report of {Path(args.output).name}")
        console.text(f"report    {args.report} ({count(n, 'mistake')} {where}, and the others out of fold)")
        console.data(report=args.report)


def _compare(console: Console, before: Any, clf: Any, images: Any) -> None:
    """Compare with the replaced model. The new one is saved already, so a failure is only a warning."""
    from featx.classifier.comparison import compare_fits
    from featx.classifier.settings import machine_of
    from featx.cli import render

    with render.aside(console, "comparison with the replaced model"):
        old = before.deciding(clf.decide)
        render.refit(console, compare_fits(old, clf.model_, images, machine_of(clf)))


def _fixed(args: argparse.Namespace, console: Console, images: Any) -> Any:
    """Apply the actions of a table of issues."""
    from featx.audit import apply_fixes, read_fixes

    fixes = read_fixes(args.fixes)
    console.log(
        f"{args.fixes}: {count(len(fixes.drop), 'image')} dropped, {len(fixes.relabel)} relabelled, "
        f"{len(fixes.group)} grouped"
    )
    return apply_fixes(images, fixes)


def _model_before(output: str) -> Any:
    """Return the model that the output replaces, if it has a test part; else None."""
    from featx.classifier.packing import load_model

    if not Path(output).is_file():
        return None
    try:
        model = load_model(output).model
    except Exception:  # any other file is replaced
        return None
    return model if "test" in model.assignment.values() else None
