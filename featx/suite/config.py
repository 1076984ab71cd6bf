"""The suite file: data sets, backbones, methods, label budgets and seeds, as checked values.

Errors name the file and the line.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from featx.evaluation import METRICS
from featx.exceptions import UsageError
from featx.suite.methods import FEATURES, METHODS, SCRATCH, Method, import_method

ALL, VTAB = "all", "vtab"
"""Budgets: all training images; 800 for training and 200 for validation (VTAB-1k, Zhai et al., 2019)."""

NO_BACKBONE = "none"
"""Backbone of methods that train from scratch."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A labelled image set of a suite.

    Parameters
    ----------
    name : str
    path : str
        Folder or manifest, relative to the suite file; or ``sklearn:digits``, ``torchvision:NAME`` or
        ``huggingface:NAME``.
    group : str
        Regular expression; the first group of its match in an image's name is the group of the image.
    per_class : int or None
        At most so many images of each class.
    """

    name: str
    path: str
    group: str = ""
    per_class: int | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneUse:
    """A backbone of a suite, with the blocks that methods on features are fitted on.

    Parameters
    ----------
    name : str
        timm's name with its tag.
    cut, pool, resize : list of str
        As for `FeatureExtractor`; each combination is a block.
    options : dict
        Other parameters of `FeatureExtractor`.
    """

    name: str
    cut: tuple[str, ...] = ("last",)
    pool: tuple[str, ...] = ("avg",)
    resize: tuple[str, ...] = ("crop",)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodUse:
    """A method of a suite.

    Parameters
    ----------
    name : str
        Its name in the results.
    method : Method
    use : str
        Name of `METHODS`, or an import path.
    params : dict
    data, backbones, budgets : tuple
        Where it is run; empty means everywhere.
    """

    name: str
    method: Method
    use: str
    params: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    budgets: tuple[int | str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What a suite computes.

    Parameters
    ----------
    name : str
    data, backbones, methods : tuple
    budgets : tuple of int or str
        Labels: "all", images of each class, or "vtab".
    seeds : tuple of int
        Seeds of splits, of the draw of the labels and of methods.
    folds : int
        0: each seed is another split with `test_size` test images. Otherwise the seeds number the folds.
    test_size : float
        Share of test images where the data set has no test part.
    metric : str
        A name of `METRICS`; the leaderboard is made of it.
    """

    name: str
    data: tuple[DataSet, ...]
    backbones: tuple[BackboneUse, ...]
    methods: tuple[MethodUse, ...]
    budgets: tuple[int | str, ...] = (ALL,)
    seeds: tuple[int, ...] = (0,)
    folds: int = 0
    test_size: float = 0.2
    metric: str = "accuracy"


def read_config(path: str | Path) -> SuiteConfig:
    """Read a suite file.

    Parameters
    ----------
    path : path
        A TOML file. With ``extends = "other.toml"`` the values of the other file are used where this file
        has none; lists of tables are replaced as a whole. Paths are relative to the file that states them.

    Raises
    ------
    UsageError
        With the file and the line of what is wrong.
    """
    path = Path(path)
    text, values = _read(path)
    parent, folder = values.pop("extends", None), path.parent
    if parent is not None:
        base_path = path.parent / str(parent)
        base = _read(base_path)[1]
        folder = base_path.parent if "data" in base.keys() - values.keys() else folder
        values = {**base, **values}
    return parse_config(values, folder=folder, where=_Where(path, text))


def parse_config(
    values: Mapping[str, Any], *, folder: Path | None = None, where: _Where | None = None
) -> SuiteConfig:
    """Check plain values (the content of a suite file) and make the configuration of a suite.

    Parameters
    ----------
    values : dict
    folder : Path, optional
        Paths of data sets are relative to it.

    Raises
    ------
    UsageError
        If something is missing or unknown.
    """
    where = where or _Where(None, "")
    known = {"name", "data", "backbone", "method", "budgets", "seeds", "folds", "test_size", "metric"}
    for key in values.keys() - known:
        where.fail(f"{key!r} is not known; a suite has {', '.join(sorted(known))}", key)
    seeds = values.get("seeds", 1)
    folds = values.get("folds", 0)
    if not isinstance(folds, int) or folds < 0 or folds == 1:
        where.fail(f"folds = {folds!r}: write a whole number from 2", "folds")
    if folds and "seeds" in values:
        where.fail("give seeds or folds, not both", "seeds")
    seeds = range(folds) if folds else range(seeds) if isinstance(seeds, int) else seeds
    metric = values.get("metric", "accuracy")
    if metric not in METRICS:
        where.fail(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}", "metric")
    config = SuiteConfig(
        name=str(values.get("name", where.name)),
        data=_tables(values, "data", where, lambda table, n: _data(table, n, where, folder)),
        backbones=_tables(values, "backbone", where, lambda table, n: _backbone(table, n, where), least=0),
        methods=_tables(values, "method", where, lambda table, n: _method(table, n, where)),
        budgets=tuple(_budget(budget, where) for budget in _listed(values.get("budgets", [ALL]))),
        seeds=tuple(int(seed) for seed in seeds),
        folds=folds,
        test_size=float(values.get("test_size", 0.2)),
        metric=metric,
    )
    if not config.backbones and any(use.method.kind != SCRATCH for use in config.methods):
        where.fail("there is no [[backbone]], and not all methods are from scratch", "method")
    for n, use in enumerate(config.methods):
        for key, allowed in (
            ("data", [one.name for one in config.data]),
            ("backbones", [one.name for one in config.backbones]),
        ):
            for name in getattr(use, key):
                if name not in allowed:
                    where.fail(
                        f"{key} names {name!r}; the suite has {', '.join(allowed)}", key, ("method", n)
                    )
    return config


def _tables(
    values: Mapping[str, Any], key: str, where: _Where, parse: Any, least: int = 1
) -> tuple[Any, ...]:
    tables = values.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(one, Mapping) for one in tables):
        where.fail(f"write {key} as tables: [[{key}]]", key)
    if len(tables) < least:
        where.fail(f"there is no [[{key}]]", None)
    parsed = tuple(parse(table, number) for number, table in enumerate(tables))
    names = [one.name for one in parsed]
    for number, name in enumerate(names):
        if name in names[:number]:
            where.fail(f"two [[{key}]] have the name {name!r}", "name", (key, number))
    return parsed


def _data(table: Mapping[str, Any], number: int, where: _Where, folder: Path | None) -> DataSet:
    place = ("data", number)
    _check_keys(table, ("name", "path", "group", "per_class"), where, place)
    if "path" not in table:
        where.fail("a data set needs a path", None, place)
    path = str(table["path"])
    if ":" not in path or Path(path).is_absolute():
        path = str((folder or Path()) / path)
    group = str(table.get("group", ""))
    try:
        if group and re.compile(group).groups < 1:
            where.fail(f"group = {group!r} has no parentheses around the name of the group", "group", place)
    except re.error as error:
        where.fail(f"group = {group!r} is not a regular expression ({error})", "group", place)
    name = str(table.get("name", Path(path).stem))
    return DataSet(name=name, path=path, group=group, per_class=table.get("per_class"))


def _backbone(table: Mapping[str, Any], number: int, where: _Where) -> BackboneUse:
    from featx.extractor import FeatureExtractor

    place = ("backbone", number)
    options = FeatureExtractor().get_params()
    _check_keys(table, ("name", *options), where, place)
    if "name" not in table:
        where.fail("a backbone needs a name, such as resnet50.a1_in1k", None, place)
    parts = {key: _listed(table[key]) for key in ("cut", "pool", "resize") if key in table}
    others = {key: value for key, value in table.items() if key not in ("name", "cut", "pool", "resize")}
    return BackboneUse(name=str(table["name"]), options=others, **parts)


def _method(table: Mapping[str, Any], number: int, where: _Where) -> MethodUse:
    place = ("method", number)
    _check_keys(table, ("name", "use", "params", "scale", "data", "backbones", "budgets"), where, place)
    use = str(table.get("use", table.get("name", "")))
    if not use:
        where.fail(f"a method needs a name, one of {', '.join(METHODS)}, or use = 'module:name'", None, place)
    if use in METHODS:
        method = METHODS[use]
        if "scale" in table:
            method = dataclasses.replace(method, scale=bool(table["scale"]))
    elif ":" in use:
        try:
            method = import_method(use, scale=bool(table.get("scale", False)))
        except UsageError as error:
            where.fail(str(error).rstrip("."), "use", place)
    else:
        key = "use" if "use" in table else "name"
        where.fail(
            f"method {use!r} is not known; choose one of {', '.join(METHODS)}, or use = 'module:name'",
            key,
            place,
        )
    params = dict(table.get("params", {}))
    if method.kind == FEATURES:
        try:
            made = method.estimator(params, 0)
        except (UsageError, ValueError, TypeError) as error:
            where.fail(str(error).rstrip("."), "params", place)
        if not (hasattr(made, "fit") and hasattr(type(made), "predict")):
            where.fail(f"{use!r} is not a classifier: it has no fit or predict", "use", place)
    return MethodUse(
        name=str(table.get("name", use)),
        method=method,
        use=use,
        params=params,
        data=_listed(table.get("data", ())),
        backbones=_listed(table.get("backbones", ())),
        budgets=tuple(_budget(one, where, place) for one in _listed(table.get("budgets", ()))),
    )


def _budget(value: Any, where: _Where, place: tuple[str, int] | None = None) -> int | str:
    if value in (ALL, VTAB):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        where.fail(f"budget {value!r}: write 'all', 'vtab', or images of each class", "budgets", place)
    return value


def _check_keys(
    table: Mapping[str, Any], known: Sequence[str], where: _Where, place: tuple[str, int]
) -> None:
    for key in table:
        if key not in known:
            where.fail(f"{key!r} is not known in [[{place[0]}]]; it has {', '.join(known)}", key, place)


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such suite file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: the suite file cannot be read: {error}.") from None


@dataclass(frozen=True)
class _Where:
    """The suite file, to name the line of an error."""

    path: Path | None
    text: str

    @property
    def name(self) -> str:
        return self.path.stem if self.path else "suite"

    def fail(self, reason: str, key: str | None, place: tuple[str, int] | None = None) -> NoReturn:
        """Raise UsageError with the line of a key, or of the n-th table of a name."""
        line = self._line(key, place)
        at = f"{self.path}{f', line {line}' if line else ''}: " if self.path else ""
        raise UsageError(f"{at}{reason}.")

    def _line(self, key: str | None, place: tuple[str, int] | None) -> int:
        lines = self.text.splitlines()
        start, stop = 0, len(lines)
        if place:
            heads = [n for n, line in enumerate(lines) if line.strip().replace(" ", "") == f"[[{place[0]}]]"]
            if place[1] >= len(heads):
                return 0
            start = heads[place[1]]
            tables = (n for n in range(start + 1, len(lines)) if lines[n].lstrip().startswith("["))
            stop = next(tables, len(lines))
        for number in range(start, stop):
            if key and re.match(rf"\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]", lines[number]):
                return number + 1
        return start + 1 if place else 0
