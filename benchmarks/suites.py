"""Write the pages of the two suites from their results.

``featx bench benchmarks/tutorials.toml -o benchmarks/out/tutorials``, the same with ``ablation.toml``, and
then ``python benchmarks/suites.py benchmarks/out`` write docs/suite_tutorials.md, docs/suite_ablation.md
and their figures in docs/images. The advice of each data set is measured by a fit of the training images of
the first seed, and is kept in the results folder.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from page import table
from pairs import ROOT

from featx import ImageClassifier
from featx.exceptions import FeatxWarning
from featx.suite.config import read_config
from featx.suite.data import load_data
from featx.suite.folder import ResultsFolder
from featx.suite.page import Figure, budget_figure, front_figure, rank_figure, summary, to_markdown
from featx.suite.ranking import Worth, differences

DOCS = ROOT / "docs"
NETWORK, LAST = "tf_efficientnet_lite0.in1k", "last:avg:crop"
SUITE = ROOT / "benchmarks" / "tutorials.toml"
SCRATCH = ("scratch", "scratch_batch_norm")
NEEDED: tuple[dict[str, Any], ...] = (
    {"method": "auto"},
    {"method": "logistic", "backbone": "tf_efficientnet_lite1.in1k"},
    {"method": "logistic", "backbone": "tf_efficientnet_lite2.in1k"},
)
"""Results without which a data set is left out of the page."""
Rows = list[dict[str, Any]]

QUADRANTS = {
    ("small", "similar"): "features of the last layer",
    ("large", "similar"): "fine-tuning",
    ("small", "different"): "features of earlier layers",
    ("large", "different"): "fine-tuning",
}
"""What the tutorials advise."""

METHODS = {
    "use_last": ("logistic", "features of the last layer"),
    "use_block": ("auto", "features of the best layers"),
    "combine": ("auto", "features of the best layers"),
    "fine_tune": ("two_phases", "fine-tuning"),
}
"""Methods of the suite that do what featx advises, by `Option.action`."""


def main() -> None:
    """Write the page of each suite that has results."""
    folder = Path(sys.argv[1])
    for name, write in (("tutorials", tutorials), ("ablation", ablation)):
        results = folder / name
        if not results.is_dir():
            continue
        rows = ResultsFolder(results).rows()
        (DOCS / f"suite_{name}.md").write_text(write(rows, results), encoding="utf-8")


def where(rows: Rows, **fields: Any) -> Rows:
    """Finished rows with these values; a tuple stands for any of its values."""
    return [
        row
        for row in rows
        if not row["error"]
        and all(
            row[key] in value if isinstance(value, tuple) else row[key] == value
            for key, value in fields.items()
        )
    ]


def mean(rows: Rows, metric: str = "accuracy") -> float:
    """Mean over seeds; NaN without results."""
    return float(np.mean([row[metric] for row in rows])) if rows else float("nan")


def percent(value: float) -> str:
    """A share in percent, or a blank."""
    return "" if np.isnan(value) else f"{100 * value:.1f}"


def shown(figure: Figure | None, name: str) -> str:
    """Write a figure into docs/images; the lines that show it."""
    if figure is None:
        return ""
    start, _, rest = figure.svg.partition(">")
    (DOCS / "images" / f"{name}.svg").write_text(f"{start}>{COLORS}{rest}", encoding="utf-8")
    return f"\n\n![{figure.caption}](images/{name}.svg)"


def described(rows: Rows) -> str:
    """The days of the results, and the machine that writes the page."""
    days = sorted({row["time"][:10] for row in rows})
    return f"Results of {' to '.join(dict.fromkeys((days[0], days[-1])))}. {describe(0)}"


NOTES = """\
## What follows

* Layers, grids and their combination are most of the gain over the last layer.
* Other resizings help where a centre crop cuts away what counts, and cost little.
* Trials (Optuna's, after the grid): a gain is likely, but not certain on these sets.
* Groups of near copies are not there for accuracy: without them, copies of an image can stand on both sides
  of a split, and scores are too good.
* Calibration changes probabilities, not answers: without it, log loss is higher by {calibration} on the mean.
* Several networks gain little on these sets; [networks.md](networks.md) has other sets, for which they take
  part by default. `--preset quick` takes one network.
* Without the limit of the search, the score is higher by {limit} points on the mean: what the limit costs.
"""


COLORS = """
<style>
svg { --ink: #1b1f24; --line: #d8dee4; font-family: sans-serif }
svg { --mark: #0072b2; --mark2: #d55e00; --mark3: #009e73 }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --line: #3d444d; --mark: #6cb6ea; --mark2: #ff9d5c; --mark3: #4fd0a5 }
}
</style>"""
"""Colours that a report's page sets, for a figure in a file of its own."""

TUTORIALS = """\
# The tutorials' table

From scratch, frozen features with classical classifiers, early layers, warm-up, and fine-tuning in two
phases, on the image sets of the project. Written by `featx bench benchmarks/tutorials.toml -o
benchmarks/out/tutorials` and `python benchmarks/suites.py benchmarks/out`.

{when}

## What each way reaches

Accuracy in % on held-out images, mean over {seeds}, all labels. Features are those of {network}.
*From scratch*: the best of the small networks. *Earlier layer*: the better of `blocks.4` and
`blocks.2` with logistic regression. Blank: not in the suite for its time, or not computed when this
page was written.

{by_data}

## Classifiers on the last features

{board}{ranks}

## Score against time

`auto` is `ImageClassifier` with its defaults. The time of methods on images includes the extraction of
features that no method before has computed.{front}

## Networks

Logistic regression on the last features.

{networks}

## Layers

Accuracy in % of logistic regression on the averaged output of a layer, and of what featx chooses.

{layers}

## Labels, with and without transfer

Mean over {sets}: five images of each class, and all; networks from scratch where all of them have
results.{labels}

## Advice

The tutorials advise by two questions: is the set small, and is it like the images of the pretraining?
featx measures both (`clf.advice()`): a set is small if more labels would help, and similar if the last
layers are the best ones. Then it names what is worthwhile. Regret: the best score of the set in this
suite, minus that of the advised way.

{advice}
{left_out}"""

ABLATION = """\
# What the parts of featx are worth

`ImageClassifier` with its defaults (`auto`), and with one part switched off or changed, on all image
sets of the project. Written by `featx bench benchmarks/ablation.toml -o benchmarks/out/ablation` and
`python benchmarks/suites.py benchmarks/out`. All features were in the cache, so seconds are those of a
warm fit; other work ran on the machine.

{when}

{board}{ranks}

{notes}
"""


def config_names() -> list[str]:
    """Names of the data sets of the suite."""
    return [one.name for one in read_config(SUITE).data]


def tutorials(rows: Rows, folder: Path) -> str:
    """Page of benchmarks/tutorials.toml."""
    rows = [row for row in rows if row["seed"] in read_config(SUITE).seeds]
    every = list(dict.fromkeys(row["data"] for row in rows))
    ready = [name for name in every if all(where(rows, data=name, **cells) for cells in NEEDED)]
    rows = [row for row in rows if row["data"] in ready]
    whole = where(rows, budget="all")
    from_scratch = list(dict.fromkeys(row["data"] for row in where(whole, method=SCRATCH)))
    wanted = [use.data for use in read_config(SUITE).methods if use.name in SCRATCH]
    with_nets = all(set(names) <= set(from_scratch) for names in wanted)
    last = where(whole, backbone=NETWORK, features=LAST)
    board = summary(last, by=("method",))
    front = summary([*where(whole, method=("auto", "warm_up")), *last], by=("method",))
    networks = summary(where(whole, method="logistic", features=LAST), by=("backbone",))
    probes = where(rows, backbone=NETWORK, features=LAST, method=("logistic", "lsr", "simpleshot", "rbf_svm"))
    labels = [*probes, *where(rows, method=SCRATCH)] if with_nets else probes
    shared = from_scratch if with_nets else ready
    failed = {row["backbone"]: row["error"] for row in rows if row["error"] and row["backbone"]}
    absent = [
        f"* {name}: no weights on this machine ({reason.partition(':')[0]})"
        for name, reason in failed.items()
    ]
    absent += [f"* {name}: the suite was stopped before it" for name in config_names() if name not in ready]
    n_seeds = len({row["seed"] for row in whole})
    return TUTORIALS.format(
        when=described(whole),
        seeds="one split" if n_seeds == 1 else f"{n_seeds} splits",
        network=NETWORK,
        by_data="\n".join(by_data(whole, ready)),
        board=to_markdown(board).rstrip(),
        ranks=shown(rank_figure(board), "suite_tutorials_ranks"),
        front=shown(front_figure(front), "suite_tutorials_front"),
        networks=to_markdown(networks).rstrip(),
        layers="\n".join(by_layer(whole, ready)),
        sets=", ".join(shared),
        labels=shown(
            budget_figure([row for row in labels if row["data"] in shared], "accuracy"),
            "suite_tutorials_labels",
        ),
        advice="\n".join(advised(whole, ready, folder)),
        left_out="\n".join(["", "## Left out", "", *absent, ""]) if absent else "",
    )


def worth(rows: Rows, name: str, metric: str) -> Worth:
    """Difference of a method to `auto`."""
    return next(one for one in differences(rows, "auto", metric=metric, by=("method",)) if one.name == name)


def ablation(rows: Rows, folder: Path) -> str:
    """Page of benchmarks/ablation.toml."""
    own = where(rows)
    board = summary(own, by=("method",))
    worths = differences(own, "auto", by=("method",))
    return ABLATION.format(
        when=described(own),
        board=to_markdown(board, against="auto", worths=worths).rstrip(),
        ranks=shown(rank_figure(board), "suite_ablation_ranks"),
        notes=NOTES.format(
            calibration=f"{-worth(own, 'auto_no_calibration', 'log_loss').difference:.3f}",
            limit=f"{100 * worth(own, 'auto_no_limit', 'accuracy').difference:.2f}",
        ),
    )


def by_data(rows: Rows, data: Sequence[str]) -> list[str]:
    """Table of the ways, a row for each data set."""
    features = dict[str, Any](backbone=NETWORK)
    ways: dict[str, Callable[[str], float]] = {
        "from scratch": lambda name: best(mean(where(rows, data=name, method=way)) for way in SCRATCH),
        "logistic regression": lambda name: mean(
            where(rows, data=name, method="logistic", features=LAST, **features)
        ),
        "SVM, RBF": lambda name: mean(where(rows, data=name, method="rbf_svm", features=LAST, **features)),
        "5 neighbours": lambda name: mean(where(rows, data=name, method="knn5", features=LAST, **features)),
        "tree": lambda name: mean(where(rows, data=name, method="tree", features=LAST, **features)),
        "earlier layer": lambda name: best(
            mean(where(rows, data=name, method="logistic", features=f"{layer}:avg:crop", **features))
            for layer in ("blocks.4", "blocks.2")
        ),
        "featx": lambda name: mean(where(rows, data=name, method="auto")),
        "warm-up": lambda name: mean(where(rows, data=name, method="warm_up")),
        "two phases": lambda name: mean(where(rows, data=name, method="two_phases")),
    }
    return table(
        ["set", "training images", "classes", *ways],
        [
            [name, str(where(rows, data=name)[0]["n_train"]), str(where(rows, data=name)[0]["n_classes"])]
            + [percent(way(name)) for way in ways.values()]
            for name in data
        ],
    )


def best(values: Any) -> float:
    """The largest value that is not NaN; NaN if there is none."""
    found = [value for value in values if not np.isnan(value)]
    return max(found, default=float("nan"))


def by_layer(rows: Rows, data: Sequence[str]) -> list[str]:
    """Table of the layers, a row for each data set."""
    layers = ("blocks.2", "blocks.4", "last")
    return table(
        ["set", *layers, "featx"],
        [
            [name]
            + [
                percent(
                    mean(
                        where(
                            rows, data=name, method="logistic", backbone=NETWORK, features=f"{layer}:avg:crop"
                        )
                    )
                )
                for layer in layers
            ]
            + [percent(mean(where(rows, data=name, method="auto")))]
            for name in data
        ],
    )


def advised(rows: Rows, data: Sequence[str], folder: Path) -> list[str]:
    """Table of the measured size and similarity, what is advised, and its regret."""
    path = folder / "advice.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    config = read_config(SUITE)
    lines = []
    for one in config.data:
        if one.name not in data:
            continue
        if one.name not in known:
            known[one.name] = measure(load_data(one), config)
            path.write_text(json.dumps(known, indent=1), encoding="utf-8")
        found = known[one.name]
        method, words = METHODS[found["action"]]
        own = where(rows, data=one.name)
        ways = {key: mean(where(own, method=key)) for key in {row["method"] for row in own}}
        ways["logistic"] = mean(where(own, method="logistic", backbone=NETWORK, features=LAST))
        top = max(ways, key=lambda key: ways[key])
        usual = QUADRANTS.get((found["size"], found["domain"]), "")
        regret = 100 * (ways[top] - ways[method]) if method in ways else float("nan")
        lines.append(
            [
                one.name,
                found["size"],
                found["domain"],
                usual,
                words,
                top,
                "" if np.isnan(regret) else f"{regret:.1f}",
            ]
        )
    return table(
        ["set", "size", "similarity", "tutorials' advice", "featx's advice", "best method", "regret, points"],
        lines,
    )


def measure(data: Any, config: Any) -> dict[str, str]:
    """Fit the training images of the first seed, and ask for advice."""
    part = data.part(config, config.seeds[0], "all")
    images = data.images.select(part.train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FeatxWarning)
        clf = ImageClassifier(NETWORK, random_state=0).fit(images.sources, data.codes[part.train])
        advice = clf.advice()
    ways = [
        option for option in advice.options if option.action in METHODS and (option.worthwhile or option.done)
    ]
    done = next((option for option in ways if option.done), None)
    chosen = next((option for option in ways if option.worthwhile), done)
    return {
        "size": advice.size,
        "domain": advice.domain.verdict if advice.domain else "unknown",
        "action": chosen.action if chosen else "use_last",
    }


if __name__ == "__main__":
    main()
