"""Files to matrix: featx against timm's documented loop, its loader, embetter and img2vec; and the roofline.

``python benchmarks/run.py --only extraction,roofline,reuse,stems``. Sizes: featx computes all photos; the
peers, which are several times slower, are timed on a sample in each round (images/s do not depend on how many
there are; what a run costs besides is on featx's side).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import photos
from pairs import OUT, Answer, Figure, Section, Spread, Table, Worker, alternate, ratios

EQUAL = 0.9999
"""Least cosine between two rows that count as the same."""

CHECKED = 32
"""Photos whose rows are compared; they warm every way up as well."""

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Network:
    """A network, and the parameters with which featx computes what timm calls its features."""

    name: str
    pool: str = "avg"
    pretrained: bool = True
    size: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """For FeatureExtractor."""
        sized = {"input_size": self.size} if self.size else {}
        return {"backbone": self.name, "pool": self.pool, "pretrained": self.pretrained, **sized}

    def export(self) -> dict[str, Any]:
        """The same weights as a file, for everybody else; options of `ways._timm_model`."""
        import torch

        from featx.backbones import load_backbone

        path = OUT / "weights" / f"{self.name}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            backbone = load_backbone(self.name, pretrained=self.pretrained, device="cpu")
            size = (self.size, self.size) if self.size else backbone.card.input_size
            torch.save(backbone.sized(size).state_dict(), path)
        return {"name": self.name, "weights": str(path), "size": self.size}


@dataclass(frozen=True)
class Case:
    """Photos and a network; how many of them featx and the peers see in a round."""

    key: str
    title: str
    network: Network
    photos: Callable[[int], list[str]]
    ours: int
    theirs: int
    rounds: int


LITE0 = Network("tf_efficientnet_lite0.in1k")
RESNET50 = Network("resnet50", pretrained=False)
VIT = Network("vit_small_patch14_dinov2", "cls", pretrained=False, size=224)
CASES = (
    Case("lite0", "1,399 photos of catdog, EfficientNet-Lite0", LITE0, photos.small, 1399, 80, 9),
    Case("large", "300 photos of 2,000×1,500 pixels, EfficientNet-Lite0", LITE0, photos.large, 300, 20, 9),
    Case("resnet50", "catdog, ResNet-50 (random weights)", RESNET50, photos.small, 80, 24, 3),
    Case("vit", "catdog, ViT-S/14 of DINOv2 at 224 pixels (random weights)", VIT, photos.small, 80, 24, 3),
)
"""Sized so that all of it takes about six minutes on two cores, a round of a peer one to three seconds.
Rounds are at most so many; the two networks without a target get fewer."""

PEER_OF = {"timm-loop": "", "timm-loader": "", "embetter": "embetter", "img2vec": "img2vec_pytorch"}
"""Ways of the peers, and the package that each needs besides timm."""

TITLES = {
    "timm-loop": "timm, the documented loop",
    "timm-loader": "timm, DataLoader (2 workers, batches of 32)",
    "embetter": "embetter",
    "img2vec": "img2vec_pytorch, our network put into it",
    "fp32": "**featx, fp32**",
    "bf16": "**featx, bf16**",
}


def measure(rounds: int, quick: bool) -> Section:
    """All cases."""
    state = peers.prepare()
    tables, figures = [], {}
    for network in dict.fromkeys(case.network for case in CASES):
        cases = [case for case in CASES if case.network == network]
        for table, found in compare(network, cases, rounds, state, quick):
            tables.append(table)
            figures |= found
    missing = "; ".join(f"{name} ({words})" for name, words in state.items() if not peers.works(words))
    versions = ", ".join(f"{name} {words}" for name, words in state.items() if peers.works(words))
    about = (
        "From image files to a matrix of rows. All ways have the same weights and are warmed up, with the "
        "files in the page cache; loading and converting the network is outside the clock (*The whole job* "
        "has it). featx's time includes hashing the files and committing the rows to a fresh store on disk. "
        "The peers compute fp32 with as many threads as they take by themselves, on a sample of the photos "
        "(they are slower, and images/s do not depend on the number). For embetter the `eval()` that it "
        "forgets was called; img2vec's rows were compared with timm's transform in the place of its own, "
        "which squashes to 224 pixels. Where torch sees a GPU, all run there but embetter, which knows none."
        f"\n\nPeers: {versions}. Not measured: {missing or 'none'}."
    )
    return Section("Extraction", about, tables, figures)


def compare(
    network: Network, cases: list[Case], rounds: int, state: dict[str, str], quick: bool
) -> Iterator[tuple[Table, dict[str, Figure]]]:
    """One network on one or two kinds of photos."""
    weights = network.export()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        workers = {
            way: stack.enter_context(Worker(way, python=peers.PYTHON, **weights))
            for way, package in PEER_OF.items()
            if not package or peers.works(state[package])
        } | {
            precision: stack.enter_context(Worker("featx", precision=precision, **network.settings))
            for precision in PRECISIONS
        }
        for case in cases:
            ours, theirs = (16, 8) if quick else (case.ours, case.theirs)
            counts = {name: theirs if name in PEER_OF else ours for name in workers}
            paths = case.photos(ours)
            agreement = check_rows(workers, paths[:CHECKED], Path(folder))
            ways = {
                name: lambda worker=worker, n=counts[name], paths=paths: worker.run(paths[:n])
                for name, worker in workers.items()
            }
            turns = min(rounds, case.rounds)
            found = alternate(ways, turns, what=f"extraction {case.key}", show=_seconds)
            yield render(case, found, counts, agreement, turns)


def check_rows(workers: dict[str, Worker], paths: list[str], folder: Path) -> dict[str, float]:
    """Least cosine of each way's rows with the documented loop's; refuses a way that computes others."""
    rows: dict[str, Any] = {}
    for name, worker in workers.items():
        worker.run(paths, rows=folder / name)
        rows[name] = np.load(folder / f"{name}.npy")
    found = {name: least_cosine(part, rows["timm-loop"]) for name, part in rows.items()}
    wrong = [name for name, cosine in found.items() if name != "bf16" and cosine < EQUAL]
    if wrong:
        raise AssertionError(f"{', '.join(wrong)}: rows differ from the documented loop's ({found})")
    return found


def _seconds(answer: Answer) -> str:
    return f"{answer.seconds:.2f} s"


def least_cosine(rows: Any, others: Any) -> float:
    """Between rows of the same number."""
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return float(((rows * others).sum(axis=1) / norms).min())


def render(
    case: Case,
    found: dict[str, list[Answer]],
    counts: dict[str, int],
    agreement: dict[str, float],
    rounds: int,
) -> tuple[Table, dict[str, Figure]]:
    """The table of one case, and its ratios."""
    rates = {name: [counts[name] / answer.seconds for answer in answers] for name, answers in found.items()}
    rows, figures = [], {}
    for name, speeds in rates.items():
        against = {precision: ratios(rates[precision], speeds) for precision in PRECISIONS}
        peak = max(answer.peak_bytes for answer in found[name])
        rows.append([
            TITLES[name], f"{counts[name]:,}", Spread.of(speeds).text(),
            *(ratio.text(2) if name in PEER_OF else "" for ratio in against.values()),
            f"{peak / 2**20:,.0f} MB", f"{agreement[name]:.5f}",
        ])  # fmt: skip
        if name in PEER_OF:
            check = f"least cosine {{}} with the documented loop's rows on {CHECKED} photos"
            figures |= {
                f"{case.key}.{name}.{precision}": Figure.of(
                    ratio, check.format(f"{agreement[precision]:.5f}")
                )
                for precision, ratio in against.items()
            }
    header = ["way", "images a round", "images/s", "featx fp32 is faster by", "featx bf16 is faster by",
              "peak memory", "rows: least cosine"]  # fmt: skip
    title = f"### {case.title}\n\nMedian and [quartiles] of {rounds} alternations."
    return Table(header, rows, title), figures


# --- the roofline ---


def measure_roofline(rounds: int, quick: bool) -> Section:
    """Decode alone, forward alone, and both in the pipeline, on all photos of catdog."""
    paths = photos.small(48 if quick else None)
    table, figures = [], {}
    for precision in PRECISIONS:
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(Worker(name, precision=precision, **LITE0.settings))
                for name in ("decode", "forward", "featx")
            }
            for worker in workers.values():
                worker.run(paths)
            ways = {name: lambda worker=worker: worker.run(paths) for name, worker in workers.items()}
            turns = rounds if precision == PRECISIONS[-1] else min(rounds, 3)
            found = alternate(ways, turns, what=f"roofline {precision}", show=_show_roofline)
        seconds = {name: [answer.seconds for answer in answers] for name, answers in found.items()}
        work = {name: [answer.cpu_s for answer in answers] for name, answers in found.items()}
        reached = _reached(seconds)
        table.append([
            f"{precision}, {turns} rounds",
            *(Spread.of(len(paths) / value for value in each).text() for each in seconds.values()),
            Spread.of(100 * value for value in reached).text(2),
            Spread.of(100 * value for value in _reached(work)).text(2),
            str(found["featx"][-1].extra["batch_size"]), str(found["forward"][-1].extra["batch_size"]),
        ])  # fmt: skip
        figures[f"roofline.{precision}"] = Figure.of(Spread.of(reached), "same specs, same photos")
    header = ["precision", "decode alone, images/s", "forward alone, images/s", "pipeline, images/s",
              "of the roofline, %", "of it in processor time, %", "batch found", "best batch"]  # fmt: skip
    about = (
        f"{len(paths):,} photos of catdog, EfficientNet-Lite0, in alternation, each on all cores. "
        "Both need the same cores, so the roofline is 1 / (1 / decode + 1 / forward). Decode alone is read, "
        "hash, decode, resize and crop; forward alone has all inputs in memory and the best of several batch "
        "sizes. What the pipeline does besides: look up, stack batches, commit rows to disk, find its own "
        "batch size from 2 upwards."
    )
    return Section("The roofline", about, [Table(header, table)], figures)


def _show_roofline(answer: Answer) -> str:
    return f"{answer.seconds:.2f} s, {answer.cpu_s:.2f} s of processor time"


def _reached(seconds: dict[str, list[float]]) -> list[float]:
    triples = zip(seconds["decode"], seconds["forward"], seconds["featx"], strict=True)
    return [(decode + forward) / pipeline for decode, forward, pipeline in triples]


# --- what is kept ---


def measure_reuse(rounds: int, quick: bool) -> Section:
    """All rows kept, a hundred images new, and memory against the number of images."""
    paths = photos.small(48 if quick else None)
    new = 8 if quick else 100
    with ExitStack() as stack:
        workers = {
            "nothing kept": stack.enter_context(Worker("featx", **LITE0.settings)),
            f"{new} new": stack.enter_context(Worker("featx-again", new=new, **LITE0.settings)),
            "all kept": stack.enter_context(Worker("featx-again", **LITE0.settings)),
        }
        for worker in workers.values():
            worker.run(paths)
        ways = {name: lambda worker=worker: worker.run(paths) for name, worker in workers.items()}
        found = alternate(ways, rounds, what="reuse", show=_seconds)
    cold = [answer.seconds for answer in found["nothing kept"]]
    rows = [
        [
            name, str(answers[-1].extra["computed"]), Spread.of(a.seconds for a in answers).text(),
            ratios(cold, [a.seconds for a in answers]).text(2) if name != "nothing kept" else "",
        ]
        for name, answers in found.items()
    ]  # fmt: skip
    grown, flat = memory_by_number(quick)
    about = (
        f"{len(paths):,} photos of catdog, EfficientNet-Lite0, {rounds} alternations, from files to the "
        "matrix in memory. Rows that are kept are found by the files' digests: a warm run reads and hashes "
        "every file and decodes none."
    )
    header = ["store", "computed", "seconds", "faster than nothing kept by"]
    memory = Table(
        ["photos", "peak memory of the process"], grown,
        "Memory against the number of images, each in a fresh process, rows handed over in the store (the "
        "same photos with other trailing bytes count as others):",
    )  # fmt: skip
    return Section("What is kept is not computed again", about, [Table(header, rows), memory],
                   {"memory": Figure(flat, flat, flat, 1)})  # fmt: skip


def memory_by_number(quick: bool) -> tuple[list[list[str]], float]:
    """Peak memory of an extraction by number of photos; the largest over the first."""
    with tempfile.TemporaryDirectory() as folder:
        every = photos.more(1 if quick else 3, Path(folder))
        counts = (16, 32) if quick else (350, 1400, len(every))
        peaks = []
        for count in counts:
            with Worker("featx", **LITE0.settings) as worker:
                peaks.append(worker.run(every[:count]).peak_bytes)
    rows = [[f"{count:,}", f"{peak / 2**20:,.0f} MB"] for count, peak in zip(counts, peaks, strict=True)]
    return rows, peaks[-1] / peaks[0]


# --- truncated stems ---

TAPS = ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6", "last"]
SEVERAL = ["blocks.2", "blocks.4", "blocks.6", "last"]


def measure_stems(rounds: int, quick: bool) -> Section:
    """What a cut saves, and what several cuts cost in one pass and in several."""
    paths = photos.small(16 if quick else 200)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        depths = stack.enter_context(Worker("depths", cuts=TAPS, **LITE0.settings))
        workers = {
            name: stack.enter_context(
                Worker("featx-passes", cuts=SEVERAL, together=together, **LITE0.settings)
            )
            for name, together in (("one pass", True), ("several passes", False))
        }
        for name, worker in workers.items():
            worker.run(paths, rows=Path(folder, name))
        agreement = least_cosine(*(np.load(Path(folder, f"{name}.npy")) for name in workers))
        ways = {name: lambda worker=worker: worker.run(paths) for name, worker in workers.items()}
        found = alternate(ways, rounds, what="stems", show=_seconds)
        each = []
        for _ in range(rounds + 1):
            depths.run(paths, rows=Path(folder, "depths"))
            each.append(np.load(Path(folder, "depths.npy")))
    measured = np.array(each[1:])  # the first warms up
    seconds = {name: [answer.seconds for answer in answers] for name, answers in found.items()}
    depth = [
        [
            f"`{cut}`",
            Spread.of(1000 / len(paths) * measured[:, column]).text(),
            Spread.of(measured[:, column] / measured[:, -1]).text(2),
        ]
        for column, cut in enumerate(TAPS)
    ]
    gain = ratios(seconds["several passes"], seconds["one pass"])
    passes = [[name, Spread.of(seconds[name]).text()] for name in ("one pass", "several passes")]
    about = (
        f"EfficientNet-Lite0 on {len(paths)} photos of catdog, {rounds} alternations. Layers above the cut "
        "are not executed, nor are they in the converted model."
    )
    tables = [
        Table(["cut", "forward alone, ms an image", "of the whole network"], depth),
        Table(["ways", "seconds"], passes,
              f"{', '.join(f'`{cut}`' for cut in SEVERAL)}, from files to rows, in one pass or in one "
              f"for each (least cosine of the rows {agreement:.5f}):",
              f"One pass is {gain.text(2)} times as fast."),
    ]  # fmt: skip
    return Section("Truncated networks", about, tables, {"passes": Figure.of(gain)})
