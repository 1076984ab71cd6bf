"""The command line: one row per verb; it parses, calls and prints, and nothing else in featx prints.

Results go to stdout, logs and progress to stderr; with ``--json`` stdout is one JSON document. A verb's
module is imported when the verb is used, so ``featx --help`` answers at once.

Exit codes: 0 done, 1 the data or the run failed, 2 wrong usage, 3 finished but pictures were skipped,
130 and 143 stopped by Ctrl-C and SIGTERM after committing what was ready.
"""

from __future__ import annotations

import argparse
import importlib
import os
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
from featx.exceptions import FeatxError, FeatxWarning, Interrupted
from featx.signals import answered_by
from featx.tables import escape_name


@dataclass(frozen=True)
class Verb:
    """A row of the table of verbs: where its code is, and one line of help."""

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "fit": Verb("featx.cli.fit", "learn a classifier from labelled images and save it"),
    "predict": Verb("featx.cli.predict", "label images with a saved classifier"),
    "evaluate": Verb("featx.cli.evaluate", "score a saved classifier on labelled images"),
    "advise": Verb("featx.cli.advise", "measure what to do next: layer, labels, fine-tuning, backbone"),
    "add": Verb("featx.cli.add", "take new labelled images into a model, and say what changed"),
    "curve": Verb("featx.cli.curve", "score k images a class, and foretell what more labels bring"),
    "show": Verb("featx.cli.show", "look at pictures as the network sees them"),
    "extract": Verb("featx.cli.extract", "turn images into rows of features in the cache"),
    "cache": Verb("featx.cli.cache", "list, verify, pack, prune or export the cached rows"),
    "models": Verb("featx.cli.models", "list backbones and where their weights would come from"),
    "taps": Verb("featx.cli.taps", "list the layers of a backbone that can be tapped"),
    "download": Verb("featx.cli.download", "fetch a backbone's weights for offline use"),
    "doctor": Verb("featx.cli.doctor", "check this machine: packages, devices, cache, weights"),
    "demo": Verb("featx.cli.demo", "run the main job on scikit-learn's handwritten digits, offline"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; never raises for an expected failure."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # locale C must not break a file name
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser(arguments).parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    console = Console(json=args.json, quiet=args.quiet)
    with _stopped_by_signals(), _warnings_shown_by(console):
        try:
            code: int = args.run(args, console)
        except KeyboardInterrupt as stop:
            number = getattr(stop, "signal_number", signal.SIGINT)
            return _fail(console, Interrupted(_how_to_resume(arguments), int(number)))
        except FeatxError as error:
            return _fail(console, error)
        except BrokenPipeError:  # `featx models | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            return _fail(console, error)
        except Exception as error:
            traceback.print_exc()
            return _fail(console, error)
    console.flush()
    return code


def console() -> None:
    """Run as the ``featx`` script."""
    sys.exit(main())


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="featx",
        description="Pretrained image features, computed once; classifiers tuned on them in seconds.",
        epilog="`featx VERB --help` tells a verb's options. Environment: FEATX_CACHE (cache folder), "
        "HF_HUB_OFFLINE=1 (never ask the hub), NO_COLOR.",
    )
    parser.add_argument("--version", action="version", version=f"featx {featx.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    used = next((word for word in arguments if word in VERBS), None)
    for name, verb in VERBS.items():
        child = verbs.add_parser(name, help=verb.summary, description=verb.summary.capitalize() + ".")
        if name != used:  # the other verbs are only named
            continue
        module = importlib.import_module(verb.module)
        module.add_arguments(child)
        for leaf in _leaves(child):
            leaf.add_argument("--json", action="store_true", help="print one JSON document on stdout")
            leaf.add_argument("--quiet", action="store_true", help="no progress and no remarks on stderr")
            if leaf.get_default("run") is None:
                leaf.set_defaults(run=module.run)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Echo without its escapes what a shell may have made of a stranger's file names."""
        super().error(escape_name(message))


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield parser
    for action in nested:
        yield from dict.fromkeys(action.choices.values())


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where SIGINT would be, so that both unwind the same way."""

    signal_number = signal.SIGTERM


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """First SIGINT or SIGTERM unwinds (what is ready is committed); the second ends the process at once."""
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with answered_by(stop):
        yield


@contextmanager
def _warnings_shown_by(console: Console) -> Iterator[None]:
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
        "stopped; every row that was ready is kept. The same command goes on from there:\n"
        f"  featx {shlex.join(arguments)}"
    )
