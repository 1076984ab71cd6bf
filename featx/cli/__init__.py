"""The command line. `VERBS` is the table of its verbs; no other package of featx prints.

Results go to stdout, messages and progress to stderr. With ``--json``, stdout is one JSON document. The
module of a verb is imported when the verb is used, so ``featx --help`` is fast.

Exit codes: 0 success; 1 the data or the run failed, or results could not be printed; 2 wrong usage; 3
finished, but images were skipped; 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM, after computed
features were committed; 141 finished, but the reader of stdout had ended.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import featx
from featx.cli.console import Console
from featx.cli.memory import limit_arenas
from featx.cli.outputs import refuse_overwriting
from featx.cli.streams import open_closed_streams, tolerant_streams
from featx.exceptions import FeatxError, FeatxWarning, Interrupted, TooManyBadImagesError
from featx.signals import answered_by
from featx.tables import escape_name


@dataclass(frozen=True)
class Verb:
    """A row of `VERBS`: the module of a verb, and one line of help.

    The module has a function ``add_arguments(parser)``, and a function ``run(args, console)`` that returns
    the exit code.
    """

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "fit": Verb("featx.cli.fit", "learn a classifier from labelled images, evaluate it and save it"),
    "predict": Verb("featx.cli.predict", "label images with a saved classifier"),
    "evaluate": Verb("featx.cli.evaluate", "evaluate a saved classifier on labelled images"),
    "check": Verb("featx.cli.check", "look for problems of a data set, before a model is fitted"),
    "fix": Verb("featx.cli.fix", "write a manifest with the corrections of a table of issues"),
    "report": Verb("featx.cli.report", "write an HTML page about a model: scores, mistakes, what to do next"),
    "card": Verb("featx.cli.card", "write a model card in Markdown"),
    "export": Verb("featx.cli.export", "write a model as ONNX or OpenVINO, or for machines without torch"),
    "advise": Verb("featx.cli.advise", "measure what to do next: layer, labels, fine-tuning, backbone"),
    "add": Verb("featx.cli.add", "add new labelled images to a model, and print what changed"),
    "curve": Verb("featx.cli.curve", "measure accuracy by number of labels, and forecast the gain of more"),
    "bench": Verb("featx.cli.bench", "run a benchmark suite, show its results, and compare two runs"),
    "show": Verb("featx.cli.show", "draw the results of a model, or images as the network gets them"),
    "extract": Verb("featx.cli.extract", "compute features of images into the cache"),
    "cache": Verb("featx.cli.cache", "list, check, merge, delete or export cached features"),
    "models": Verb("featx.cli.models", "list backbones, and where their weights come from"),
    "heads": Verb("featx.cli.heads", "list the classifiers that a search can try"),
    "presets": Verb("featx.cli.presets", "list the presets of a fit, with sources and licences of networks"),
    "taps": Verb("featx.cli.taps", "list the layers of a backbone whose output can be used"),
    "download": Verb("featx.cli.download", "download the weights of a backbone, for later use offline"),
    "doctor": Verb("featx.cli.doctor", "check this machine: packages, devices, cache, weights"),
    "demo": Verb("featx.cli.demo", "check, fit, evaluate and predict on handwritten digits, offline"),
}


IMAGES = ("data", "images", "old", "missing")
"""Arguments that name images."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; never raises for an expected failure."""
    with tolerant_streams() as stdout:
        code = _run(sys.argv[1:] if argv is None else list(argv))
    return stdout.exit_code(code)


def console() -> None:
    """Run the ``featx`` script."""
    open_closed_streams()
    limit_arenas()
    sys.exit(main())


def _name_addresses(args: argparse.Namespace) -> argparse.Namespace:
    """Replace addresses among the arguments by `RemotePath`: the user has named them, so they may be read."""
    from featx.remote.address import RemotePath, is_readable_address

    def named(value: object) -> object:
        return RemotePath(value) if isinstance(value, str) and is_readable_address(value) else value

    for name in IMAGES:
        value = getattr(args, name, None)
        if value is not None:
            setattr(args, name, [named(one) for one in value] if isinstance(value, list) else named(value))
    return args


def _run(arguments: list[str]) -> int:
    try:
        args = _parser(arguments).parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    console = Console(json=args.json, quiet=args.quiet)
    with _stop_at_signals(), _print_warnings(console):
        try:
            refuse_overwriting(args)
            code: int = args.run(_name_addresses(args), console)
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, _Stopped) else signal.SIGINT
            return _fail(console, Interrupted(_how_to_resume(arguments), number))
        except TooManyBadImagesError as error:
            if error.skipped:
                _list_skipped(console, args, arguments, error)
            return _fail(console, error)
        except FeatxError as error:
            return _fail(console, error)
        except OSError as error:
            return _fail(console, error)
        except Exception as error:
            traceback.print_exc()
            return _fail(console, error)
    console.flush()
    return code


def _list_skipped(
    console: Console, args: argparse.Namespace, arguments: Sequence[str], error: TooManyBadImagesError
) -> None:
    """Print the images that were set aside, and write them beside the output."""
    from featx.cli import render

    verb = next(word for word in arguments if word in VERBS)
    render.skipped(console, args, error.skipped, getattr(args, "output", None) or verb)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="featx",
        description="Pretrained image features, computed once and stored; classifiers tuned in seconds.",
        epilog="`featx VERB --help` lists the options of a verb. Environment variables: FEATX_CACHE (cache "
        "folder), HF_HUB_OFFLINE=1 (download nothing from the hub), NO_COLOR.",
    )
    parser.add_argument("--version", action="version", version=f"featx {featx.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    used = next((word for word in arguments if word in VERBS), None)
    for name, verb in VERBS.items():
        child = verbs.add_parser(
            name, help=verb.summary, description=verb.summary[0].upper() + verb.summary[1:] + "."
        )
        if name != used:  # only its name and summary are needed
            continue
        module = importlib.import_module(verb.module)
        module.add_arguments(child)
        for leaf in _leaves(child):
            leaf.add_argument("--json", action="store_true", help="print one JSON document on stdout")
            leaf.add_argument(
                "--quiet", action="store_true", help="print no progress and no messages on stderr"
            )
            if leaf.get_default("run") is None:
                leaf.set_defaults(run=module.run)
    return parser


OTHER_VERBS = {"train": "fit", "learn": "fit", "classify": "predict", "infer": "predict"} | {
    "test": "evaluate",
    "eval": "evaluate",
    "score": "evaluate",
}
"""Verbs of other programs."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong, the nearest option or verb, and where all are listed; the usage is too long.

        Control characters are escaped: the message may quote a file name that a shell expanded.
        """
        prog, nearest, hint = self.prog, None, ""
        if option := re.match(r"unrecognized arguments:.*?(--[^\s=]+)", message):
            inner = [one for leaf in _leaves(self) for one in _leaves(leaf)]
            used = max(inner, key=lambda one: len(one._actions), default=self)
            known = {name: one.prog for one in inner for name in one._option_string_actions}
            nearest = next(iter(difflib.get_close_matches(option[1], known, 1)), None)
            prog = known.get(nearest or "", used.prog)
        elif verb := re.match(r"argument VERB: invalid choice: '(.*?)'", message):
            close = difflib.get_close_matches(verb[1].lower(), VERBS, 1)
            nearest = OTHER_VERBS.get(verb[1].lower()) or next(iter(close), None)
            message = f"{verb[1]!r} is not a command"
        elif any(os.path.exists(word) for word in message.partition(": ")[2].split()):
            message = "there is more than one file or folder of images"
            hint = " Give the folder that they are in, or a pattern in quotes, such as 'photos/*.jpg'."
        hint = f" Did you mean {nearest}?" if nearest else hint
        more = f"`{prog} --help` lists what is known."
        self.exit(2, f"{prog}: error: {escape_name(message)}.{hint} {more}\n")


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield parser
    for action in nested:
        yield from dict.fromkeys(action.choices.values())


class _Stopped(KeyboardInterrupt):
    """Raised at SIGINT, SIGTERM and SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _stop_at_signals() -> Iterator[None]:
    """At the first signal, commit and stop; at the second, end the process at once."""
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        raise _Stopped(number)

    with answered_by(stop):
        yield


@contextmanager
def _print_warnings(console: Console) -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, FeatxWarning):
            console.warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", FeatxWarning)
        warnings.showwarning = show
        yield


def _fail(console: Console, error: BaseException) -> int:
    code: int = getattr(error, "exit_code", 1)
    console.error(error, code)
    return code


def _how_to_resume(arguments: Sequence[str]) -> str:
    import shlex

    return (
        "stopped; all features computed so far are stored. The same command resumes:\n"
        f"  featx {shlex.join(arguments)}"
    )
