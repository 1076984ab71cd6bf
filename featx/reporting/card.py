"""Model cards in Markdown (Mitchell et al., FAT* 2019), from the sections of a report."""

from __future__ import annotations

import re
from typing import Any

from featx.classifier import ImageClassifier
from featx.reporting.sections import Known, answer, choosing, quality, repeating
from featx.tables import escape_name

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def model_card(clf: ImageClassifier, name: str) -> str:
    """Return the card of a model.

    Parameters
    ----------
    clf : ImageClassifier
        Fitted or loaded.
    name : str
        Title of the card.
    """
    known = Known(clf, None, clf.evaluation_, None, None, ())
    told, good, how, again = answer(known), quality(known), choosing(known), repeating(known)
    where = "images that the model has not seen" if good["held_out"] else "training images, out of fold"
    lines = [f"# {_text(name)}", "", _text(told["does"]), "", _text(f"{told['good']} {told['fails']}"), ""]
    lines += ["## Results", "", f"On {good['n']:,} {where}.", ""]
    metrics = [
        [m["name"], f"{m['value']:.4f}", f"{m['low']:.4f} to {m['high']:.4f}"] for m in good["metrics"]
    ]
    lines += _table(["metric", "value", "95 % interval"], metrics)
    classes = [
        [one["label"], one["support"], f"{one['recall']:.3f}", f"{one['precision']:.3f}", f"{one['f1']:.3f}"]
        for one in good["per_class"]
    ]
    lines += ["## Classes", "", *_table(["class", "images", "recall", "precision", "F1"], classes)]
    parts = f"{again['n_train']:,} training and {again['n_test']:,} test images"
    lines += ["## How it was made", "", f"- Fitted {again['created']} on {parts}, seed {again['seed']}."]
    lines += [f"- Selected: {_text(', '.join(f'{k}={v}' for k, v in how['params'].items()))}."]
    lines += [f"- {_text(sentence)}" for sentence in how["sentences"]]
    for one in again["networks"]:
        lines.append(
            f"- Network: {_text(one['name'])} from {_text(one['source'])}, licence {_text(one['licence'])}, "
            f"weights sha256 {one['weights'][:16]}."
        )
    lines.append(f"- Call: {_text(again['call'])}; images sha256 {again['data'][:16]}.")
    if again["hardware"]:
        lines.append(f"- Hardware: {_text(again['hardware'])}.")
    lines.append(f"- Versions: {_text(', '.join(f'{k} {v}' for k, v in again['versions'].items()))}.")
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]


def _text(value: Any) -> str:
    """Text that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\1", escape_name(str(value)))
