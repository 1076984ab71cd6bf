"""The ways from image files to rows that are compared; run by `pairs.Worker` in a process of its own.

``ways.py NAME OPTIONS``: reads a JSON object a line (``paths``, and ``rows``: where to save what was found)
and answers with one (seconds, processor time, peak memory). It runs in the project's environment or in the
peers'; so everything that only one of them has is imported inside its way. Peers are used as their own pages
show, with two changes for equal work: they get our weights (nothing is downloaded), and eval mode where it
was forgotten.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Way = Callable[[list[str]], Rows]
CORES = os.cpu_count() or 1
MODELS = Path(__file__).resolve().parent / "out" / "models"
"""A store that holds what is known of the networks, so that each is looked at once; rows go elsewhere."""
CONVERTED = MODELS / "v1" / "models"


def serve(ways: Mapping[str, Callable[..., Way]]) -> None:
    """Make the way that the arguments name, say so, and answer requests until the input ends."""
    way = ways[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps({"way": sys.argv[1]}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if hasattr(way, "compared"):
            way.compared = bool(request["rows"])
        before = getattr(way, "before", None)
        if before is not None:
            before(request["paths"])
        began, spent = time.perf_counter(), time.process_time()
        rows = way(request["paths"])
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - spent
        if request["rows"]:
            np.save(request["rows"], np.asarray(rows, np.float32))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"seconds": seconds, "cpu_s": cpu_s, "peak_bytes": peak}
        print(json.dumps(answer | {"extra": getattr(way, "extra", {})}), flush=True)


# --- featx ---


class Extract:
    """FeatureExtractor with a store on disk: each run computes all rows and commits them to a fresh one."""

    def __init__(self, **settings: Any) -> None:
        from featx import FeatureExtractor

        self.folder = Path(tempfile.mkdtemp(prefix="featx-bench-"))
        self.extractor = FeatureExtractor(store=MODELS, **settings).fit()
        self.extractor.transform([np.zeros((64, 64, 3), np.uint8)])  # converts the network
        self.extra: dict[str, Any] = {}
        self._turn = 0

    def before(self, paths: list[str]) -> None:
        """A store without rows."""
        shutil.rmtree(self.folder / f"rows{self._turn}", ignore_errors=True)
        self._turn += 1
        self.fill(self.folder / f"rows{self._turn}", paths)

    def fill(self, folder: Path, paths: list[str]) -> None:
        """The converted network alone."""
        shutil.copytree(CONVERTED, folder / "v1" / "models", copy_function=os.link)

    def __call__(self, paths: list[str]) -> Rows:
        """Rows of all images."""
        found = self.extractor.extract(paths, store=open_store(self.folder / f"rows{self._turn}"))
        self.extra = {"computed": found.computed, "limit": found.limit, "batch_size": found.batch_size,
                      "runtime": found.runtime, "loading_s": found.loading_s}  # fmt: skip
        return found.blocks.stack(list(self.extractor.specs_))

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class ExtractAgain(Extract):
    """The same over a store that already holds all images but the last `new`."""

    def __init__(self, new: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self._new = new

    def fill(self, folder: Path, paths: list[str]) -> None:
        """The rows of all but the last."""
        kept = self.folder / "kept"
        if not kept.exists():
            super().fill(kept, paths)
            self.extractor.extract(paths[: len(paths) - self._new], store=open_store(kept))
        shutil.copytree(kept, folder)


def open_store(folder: Path) -> Any:
    """A store on disk."""
    from featx import stores

    return stores.open_store(folder)


class Passes:
    """Several cuts of one network: all from one pass, or each from a pass of its own."""

    def __init__(self, cuts: list[str], *, together: bool, **settings: Any) -> None:
        groups = [cuts] if together else [[cut] for cut in cuts]
        self.extractions = [Extract(cut=group, **settings) for group in groups]

    def before(self, paths: list[str]) -> None:
        """Stores without rows."""
        for each in self.extractions:
            each.before(paths)

    def __call__(self, paths: list[str]) -> Rows:
        """Rows of all cuts side by side."""
        return np.concatenate([each(paths) for each in self.extractions], axis=1)


class Decode:
    """The pipeline's read, hash, decode, resize and crop alone, by as many threads as it uses."""

    def __init__(self, **settings: Any) -> None:
        from featx import FeatureExtractor
        from featx.extractor.pipeline import ExtractionSettings
        from featx.images.policy import MAX_PIXELS

        self.extractor = FeatureExtractor(store=MODELS, **settings).fit()
        self.specs = list(self.extractor.specs_.values())
        self.settings = ExtractionSettings(self.specs, MAX_PIXELS)

    def __call__(self, paths: list[str]) -> Rows:
        """The network's input, reduced to one number an image."""
        with ThreadPoolExecutor(CORES, initializer=_one_torch_thread) as pool:
            return np.fromiter(pool.map(lambda path: float(self._one(path)[0, 0, 0]), paths), np.float32)

    def _one(self, path: str) -> NDArray[np.uint8]:
        from featx.images import read_picture

        wanted = np.ones(len(self.specs), bool)
        return self.settings.prepare(read_picture(path), wanted)[0].pixels


class ForwardAlone(Decode):
    """The forward pass alone: all inputs in memory, as many streams as the pipeline uses, its best batch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.compiled = self.compile(self.specs)
        self.extra: dict[str, Any] = {"streams": self.compiled.streams, "runtime": self.compiled.name}
        self._inputs: dict[int, NDArray[np.uint8]] = {}

    def compile(self, specs: Sequence[Any]) -> Any:
        """The network for some outputs."""
        from featx.backbones import load_backbone
        from featx.backbones.runtimes import compile_stem

        return compile_stem(
            lambda: load_backbone(self.extractor.card_, device="cpu").stem(specs),
            specs,
            model_cache=CONVERTED,
        )

    def before(self, paths: list[str]) -> None:
        """Decode what is not yet decoded, and find the batch size that is fastest."""
        if len(paths) not in self._inputs:
            with ThreadPoolExecutor(CORES, initializer=_one_torch_thread) as pool:
                self._inputs[len(paths)] = np.stack(list(pool.map(self._one, paths)))
        if "batch_size" not in self.extra:
            some = self._inputs[len(paths)][:128]
            self.extra["batch_size"] = min(
                BATCHES, key=lambda size: min(self.time(self.compiled, some, size) for _ in range(3))
            )

    def __call__(self, paths: list[str]) -> Rows:
        """Rows of all images."""
        return self.forward(self.compiled, self._inputs[len(paths)], self.extra["batch_size"])

    def time(self, compiled: Any, inputs: NDArray[np.uint8], size: int) -> float:
        """Seconds of a pass over all inputs."""
        began = time.perf_counter()
        self.forward(compiled, inputs, size)
        return time.perf_counter() - began

    def forward(self, compiled: Any, inputs: NDArray[np.uint8], size: int) -> Rows:
        """Rows of the first output."""
        parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        with ThreadPoolExecutor(compiled.streams, initializer=_one_torch_thread) as pool:
            return np.concatenate([rows[0] for rows in pool.map(compiled, parts)])


class Depths(ForwardAlone):
    """The forward pass alone for each of several cuts, one after the other; gives seconds instead of rows."""

    def __init__(self, cuts: list[str], **settings: Any) -> None:
        super().__init__(cut=cuts, **settings)
        self._each = [self.compile([spec]) for spec in self.specs]

    def __call__(self, paths: list[str]) -> Rows:
        """Seconds of each cut."""
        inputs = self._inputs[len(paths)]
        return np.array(
            [self.time(each, inputs, self.extra["batch_size"]) for each in self._each], np.float32
        )


BATCHES = (2, 4, 8, 16)


def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


# --- timm, as its documentation shows ---


class TimmLoop:
    """The loop of timm's model pages: open, transform, ``model(x.unsqueeze(0))``; without gradients."""

    def __init__(self, **settings: Any) -> None:
        self.model, self.transform, self.device = _timm_model(**settings)

    def __call__(self, paths: list[str]) -> Rows:
        """Rows of all images, one at a time."""
        import torch
        from PIL import Image

        rows = []
        with torch.inference_mode():
            for path in paths:
                image = self.transform(Image.open(path).convert("RGB"))
                rows.append(self.model(image.unsqueeze(0).to(self.device)).cpu().numpy()[0])
        return np.stack(rows)


class TimmLoader:
    """timm's own loader (`create_dataset`, `create_loader`), a worker process a core, batches of 32."""

    def __init__(self, **settings: Any) -> None:
        self.model, self.transform, self.device = _timm_model(**settings)

    def __call__(self, paths: list[str]) -> Rows:
        """Rows of all images, by batches."""
        import torch
        from torch.utils.data import DataLoader

        loader = DataLoader(_Photos(paths, self.transform), batch_size=32, num_workers=CORES)
        with torch.inference_mode():
            return np.concatenate([self.model(batch.to(self.device)).cpu().numpy() for batch in loader])


class _Photos:
    def __init__(self, paths: list[str], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def _timm_model(name: str, weights: str, size: int | None = None) -> tuple[Any, Any, str]:
    """The network with given weights, its evaluation transform, and the device."""
    import timm
    import torch

    model = timm.create_model(name, pretrained=False, **({"img_size": size} if size else {})).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.reset_classifier(0)
    config = timm.data.resolve_data_config({"input_size": (3, size, size)} if size else {}, model=model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), timm.data.create_transform(**config, is_training=False), device


# --- the peers ---


class Embetter:
    """`ImageLoader` and `TimmEncoder` in a pipeline, as its page shows. It knows no GPU."""

    def __init__(self, **settings: Any) -> None:
        import timm

        model, self.transform, _ = _timm_model(**settings)
        create, timm.create_model = timm.create_model, lambda *_, **__: model.cpu()
        try:
            from embetter.vision import ImageLoader, TimmEncoder
            from sklearn.pipeline import make_pipeline

            encoder = TimmEncoder(name=settings["name"])
        finally:
            timm.create_model = create
        encoder.transform_img = self.transform  # what it makes itself, but sized as `size` says
        self.pipeline = make_pipeline(ImageLoader(), encoder)

    def __call__(self, paths: list[str]) -> Rows:
        """Rows of all images."""
        return np.asarray(self.pipeline.fit_transform(paths))


class Img2Vec:
    """`get_vec` on lists of images. It knows torchvision's networks only: ours is put into its place.

    Its preprocessing (squashed to 224×224, ImageNet's mean) is its own. Where rows are compared it has timm's
    transform in the place of it; where it is timed it runs as it comes.
    """

    def __init__(self, **settings: Any) -> None:
        import torch
        from img2vec_pytorch import Img2Vec as Original

        model, transform, device = _timm_model(**settings)

        class Ours(Original):  # type: ignore[misc, valid-type]
            def _get_model_and_layer(self, name: str, layer: str) -> tuple[Any, Any]:
                pooled = getattr(model, "global_pool", None)
                return model, pooled if isinstance(pooled, torch.nn.Module) else model.fc_norm

        # "vgg16" is a name for which it takes the layer's output as flat rows
        self.encoder = Ours(cuda=device == "cuda", model="vgg16", layer_output_size=model.num_features)
        self.compared = False
        self._transforms = {False: self.encoder.transforms, True: transform}

    def __call__(self, paths: list[str]) -> Rows:
        """Rows of all images, 32 at a time."""
        from PIL import Image

        rows = []
        self.encoder.transforms = self._transforms[self.compared]
        for start in range(0, len(paths), 32):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + 32]]
            rows.append(self.encoder.get_vec(images))
        return np.concatenate(rows)


WAYS: dict[str, Callable[..., Way]] = {
    "featx": Extract,
    "featx-again": ExtractAgain,
    "featx-passes": Passes,
    "decode": Decode,
    "forward": ForwardAlone,
    "depths": Depths,
    "timm-loop": TimmLoop,
    "timm-loader": TimmLoader,
    "embetter": Embetter,
    "img2vec": Img2Vec,
}


if __name__ == "__main__":
    serve(WAYS)
