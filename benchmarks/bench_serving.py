"""A served model against a plain OpenVINO script with the same weights: start, one image, a service, memory.

``python benchmarks/bench_serving.py`` prints the table of docs/serving.md. The plain script runs the graph of
``featx export --to openvino`` in the same precision with as many streams. It decodes with Pillow, as people
write it, or with the decoder that featx uses. Ways alternate; a ratio is of neighbours in time. As in a web
service whose handlers run in threads, requests are the bytes of photos.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from machine import describe
from pairs import DATA, OUT, SEED, Spread, number, ratios

NETWORK = "tf_efficientnet_lite0.in1k"
ROUNDS = 7
IMAGES = 24
"""Photos of one round."""

THREADS = 4
"""Requests at a time."""

REQUESTS = 200
"""Requests of one round of the service: the 99th percentile is between its second and third largest."""

EQUAL = 0.03
"""Largest difference of a probability: Pillow's resize differs by a grey level, and bf16 rounds."""

HEAVY = ["torch", "timm", "optuna", "sklearn", "scipy"]

Way = Callable[[bytes], np.ndarray]


class Plain:
    """The script: a graph, a decoder, a resize; shorter side to 256, the centre 224 x 224."""

    def __init__(self, folder: Path, precision: str, decoder: str) -> None:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
            "NUM_STREAMS": str(os.cpu_count()),
            "INFERENCE_NUM_THREADS": os.cpu_count(),
            "ENABLE_CPU_PINNING": False,
        }
        self.model = openvino.Core().compile_model(folder / "serving.xml", "CPU", options)
        self.decoder = decoder

    def __call__(self, data: bytes) -> np.ndarray:
        """Probabilities of the photo in a file's bytes."""
        from PIL import Image

        if self.decoder == "simplejpeg":
            import simplejpeg

            image = Image.fromarray(simplejpeg.decode_jpeg(data))
        else:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        width, height = image.size
        short = min(width, height)
        width, height = 256 * width // short, 256 * height // short
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + 224, top + 224))
        request = self.model.create_infer_request()
        request.infer([np.asarray(image)[None]])
        return np.array(request.get_output_tensor(0).data)


def make_model(folder: Path) -> Path:
    """Fit a linear head on cats and dogs; write the graph, and the file with its network inside."""
    import featx
    from featx.classifier.exporting import export_model

    path, store = folder / "serving.featx", folder / "serving-cache"
    if not (folder / "serving.bin").exists():
        clf = featx.ImageClassifier(
            NETWORK,
            cut=None,
            pool="avg",
            resize="crop",
            heads=["logistic"],
            n_trials=4,
            random_state=SEED,
            store=store,
        )
        files = sorted((DATA / "catdog").glob("*/*.jpg"))[::7]
        clf.fit(files, [file.parent.name for file in files]).save(path)
        export_model(path, path, "featx", store=store)
        export_model(path, folder / "serving.xml", "openvino", store=store)
    return path


FEATX_START = """
import sys, time
began = time.perf_counter()
import featx
model = featx.load(sys.argv[1], runtime="auto")
model.predict_proba([open(sys.argv[2], "rb").read()])
print(time.perf_counter() - began, *(name for name in {heavy} if name in sys.modules))
"""

PREDICT_MEMORY = """
import re, sys
from featx.cli import main
assert main(["predict", *sys.argv[1:], "--no-cache"]) == 0
print(re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1])
"""

PLAIN_START = """
import sys, time
began = time.perf_counter()
import io, numpy as np, openvino
from PIL import Image
model = openvino.Core().compile_model(sys.argv[1], "CPU")
image = Image.open(sys.argv[2]).convert("RGB").resize((224, 224))
model([np.asarray(image)[None]])
print(time.perf_counter() - began)
"""


def start(code: str, *arguments: Path) -> list[str]:
    """Run a process; return what it prints: seconds to the first prediction, and more."""
    command = [sys.executable, "-c", code.format(heavy=HEAVY), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def one_by_one(way: Way, photos: Sequence[bytes]) -> float:
    """Milliseconds for each of some photos, one after the other."""
    began = time.perf_counter()
    for photo in photos:
        way(photo)
    return 1000 * (time.perf_counter() - began) / len(photos)


def service(way: Way, photos: Sequence[bytes]) -> tuple[float, float]:
    """Median and 99th percentile of the milliseconds of requests, `THREADS` at a time."""

    def request(number: int) -> float:
        began = time.perf_counter()
        way(photos[number % len(photos)])
        return 1000 * (time.perf_counter() - began)

    with ThreadPoolExecutor(THREADS) as pool:
        times = np.fromiter(pool.map(request, range(REQUESTS)), float)
    middle, late = np.percentile(times, [50, 99])
    return float(middle), float(late)


def predict_memory(model: Path, photos: Sequence[Path]) -> float:
    """Peak memory of `featx predict` on new photos, in MB."""
    *_, kilobytes = start(PREDICT_MEMORY, model, *photos)
    return int(kilobytes) / 1024


def main() -> None:
    """Measure, and print the table."""
    import featx

    OUT.mkdir(exist_ok=True)
    os.environ["FEATX_CACHE"] = str(OUT / "serving-machine")  # as a machine that has only the model file
    model = make_model(OUT)
    files = sorted((DATA / "catdog").glob("*/*.jpg"))[3::50][:IMAGES]
    photos = [file.read_bytes() for file in files]
    predictor = featx.load(model, runtime="auto")
    precision = predictor.model_.specs[predictor.model_.blocks[0]].precision
    ways: dict[str, Way] = {
        "featx": lambda photo: predictor.predict_proba([photo]),
        "pillow": Plain(OUT, precision, "pillow"),
        "simplejpeg": Plain(OUT, precision, "simplejpeg"),
    }
    rows = {name: np.concatenate([way(photo) for photo in photos]) for name, way in ways.items()}
    worst = max(float(np.abs(rows["featx"] - rows[name]).max()) for name in ("pillow", "simplejpeg"))
    assert worst <= EQUAL, f"the ways differ by {worst:.3f}"

    each: dict[str, list[float]] = {name: [] for name in ways}
    served: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    starts: dict[str, list[float]] = {"featx": [], "plain": []}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            each[name].append(one_by_one(way, photos))
        for name, way in ways.items():
            served[name].append(service(way, photos))
        seconds, *heavy = start(FEATX_START, model, files[0])
        assert not heavy, f"a process that predicts imported {heavy}"
        starts["featx"].append(float(seconds))
        starts["plain"].append(float(start(PLAIN_START, OUT / "serving.xml", files[0])[0]))

    medians = {name: [middle for middle, _ in values] for name, values in served.items()}
    tails = {name: Spread.of(late / middle for middle, late in values) for name, values in served.items()}
    memory = Spread.of(predict_memory(model, files[:8]) for _ in range(3))
    lines = [
        ("load and first prediction, s", starts["featx"], starts["plain"]),
        ("one image after the other, ms an image (script with Pillow)", each["featx"], each["pillow"]),
        ("the same (script with featx's decoder)", each["featx"], each["simplejpeg"]),
        (
            f"median of {THREADS} requests at a time, ms (script with Pillow)",
            medians["featx"],
            medians["pillow"],
        ),
        ("the same (script with featx's decoder)", medians["featx"], medians["simplejpeg"]),
    ]
    print("| | featx | plain script | featx / script |\n|---|---|---|---|")
    for what, ours, theirs in lines:
        ratio = ratios(ours, theirs)
        print(f"| {what} | {Spread.of(ours).text()} | {Spread.of(theirs).text()} | {ratio.text()} |")
    print(f"| p99 / median of {THREADS} requests at a time | {tails['featx'].text()} | "
          f"{tails['pillow'].text()} | |")  # fmt: skip
    print(f"| peak memory of `featx predict`, 8 new photos, MB | {number(memory.median, 3)} | | |")
    print(f"\nMedian [lower–upper quartile] of {ROUNDS} alternations; {len(photos)} photos of cats and dogs "
          f"(500 x 375), {NETWORK} in {precision}; the probabilities of all ways agree within "
          f"{worst:.3f}. {describe(SEED)}")  # fmt: skip


if __name__ == "__main__":
    main()
