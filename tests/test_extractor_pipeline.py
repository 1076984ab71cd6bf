"""The pipeline behind the extractor: order, bounds, memory that runs out, interrupts, decoders that crash."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featx import FeatureExtractor
from featx.backbones.runtimes import RUNTIMES, Batch, Runtime
from featx.backbones.runtimes.torch import TorchRuntime
from featx.cli import main
from featx.exceptions import BackboneError, ImageError, ImageWarning
from featx.extractor import Progress
from featx.extractor.forward import MAX_BATCH, BatchSize
from featx.extractor.isolation import CarefulDecoder
from featx.extractor.pipeline import ExtractionSettings
from featx.extractor.stages import Stage
from featx.finetune.stream import StreamedFeatures
from featx.images import MAX_PIXELS, read_picture, sandbox
from featx.spec import FeatureSpec
from featx.stores import open_store
from featx.stores.base import as_ids
from featx.stores.memory import MemoryStore

TINY: dict[str, Any] = {"pretrained": False, "input_size": 64, "precision": "fp32", "runtime": "torch"}


@pytest.fixture
def paths(class_folders: Path) -> list[str]:
    return sorted(map(str, class_folders.rglob("*.png")))


# --- a stage ---


def test_a_stage_hands_results_on_in_order_whoever_is_first() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 if number % 5 == 0 else 0)
        return number * number

    stage = Stage("square", work, workers=4)
    assert list(stage.run(range(40))) == [number * number for number in range(40)]
    stage.close()


def test_a_stage_takes_no_more_ahead_than_its_bounds() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    stage = Stage("slow", lambda number: number, workers=2, depth=4, max_depth=16)
    for result in stage.run(items()):
        assert len(taken) - result <= 17
        time.sleep(0.001)
    stage.close()


def test_large_results_narrow_the_look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featx.extractor.stages.STAGE_BYTES", 100)
    alive: list[int] = []
    most = 0

    def work(number: int) -> int:
        nonlocal most
        alive.append(number)
        most = max(most, len(alive))
        return number

    stage = Stage("large", work, workers=2, depth=4, max_depth=64, size_of=lambda _: 50)
    for result in stage.run(range(100)):
        time.sleep(0.001)
        alive.remove(result)
    stage.close()
    assert most <= 4 + 1


def test_a_stage_whose_workers_run_dry_looks_further_ahead() -> None:
    stage = Stage("fast", lambda number: number, workers=1, depth=2, max_depth=64)
    for _ in stage.run(range(50)):
        time.sleep(0.002)
    stage.close()
    assert stage.depth > 2


def test_an_error_in_a_stage_comes_out_where_it_is_pulled() -> None:
    stage = Stage("divide", lambda number: 1 // number, workers=2)
    with pytest.raises(ZeroDivisionError):
        list(stage.run([2, 1, 0, 3]))
    stage.close()


def test_what_takes_long_is_named() -> None:
    named: list[tuple[str, float]] = []
    stage = Stage(
        "read",
        lambda name: time.sleep(0.4) if name == "stuck.jpg" else None,
        workers=1,
        patience_s=0.1,
        on_stuck=lambda name, seconds: named.append((name, seconds)),
    )
    list(stage.run(["a.jpg", "stuck.jpg", "b.jpg"]))
    stage.close()
    assert {name for name, _ in named} == {"stuck.jpg"}
    assert named[0][1] >= 0.1


# --- batch size ---


def test_the_batch_grows_while_that_is_faster() -> None:
    size = BatchSize("auto", "cpu")
    cost = {2: 1.0, 4: 0.8, 8: 0.6, 16: 0.6, 32: 0.5}  # seconds an image
    for _ in range(200):
        size.observe(size.value, cost[size.value] * size.value)
    assert size.value == 8


def test_a_batch_size_that_was_asked_for_stays() -> None:
    size = BatchSize(5, "cpu")
    for _ in range(50):
        size.observe(5, 0.001)
    assert size.value == 5


def test_memory_that_ran_out_is_a_ceiling_for_good() -> None:
    size = BatchSize("auto", "cuda")
    assert size.value == 128
    size.forbid(128)
    for _ in range(100):
        size.observe(size.value, 1e-3)
    assert size.value == 64
    assert BatchSize("auto", "cuda")._ceiling == MAX_BATCH


def extract_in_little_memory() -> tuple[int, int, float]:
    """Images computed, batch size and difference."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (384, 384, 3), dtype=np.uint8) for _ in range(64)]
    settings: dict[str, Any] = {**TINY, "input_size": 384, "n_jobs": 1, "store": "memory"}
    right = FeatureExtractor("test_resnet", batch_size=4, **settings).fit_transform(images[:8])
    apart.limit_memory(384 << 20)
    result = FeatureExtractor("test_resnet", batch_size=64, **settings).extract(images)
    difference = np.abs(result.blocks["last:avg:crop"][:8] - right).max() / np.abs(right).max()
    return result.computed, result.batch_size, float(difference)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_batch_that_does_not_fit_is_halved_and_no_image_is_lost() -> None:
    """The first layer of 64 pictures of 384 pixels takes 600 MB, that of one 9 MB; 384 MB are free."""
    computed, batch_size, difference = apart.call(extract_in_little_memory)
    assert computed == 64
    assert 1 <= batch_size < 64
    assert difference < 1e-3


class Fails(TorchRuntime):
    """torch, that fails with the words of `says` for more than `most` images."""

    says, most = "", 0

    def __call__(self, batch: Batch) -> list[NDArray[np.float32]]:
        if len(batch) > self.most:
            raise RuntimeError(self.says)
        return super().__call__(batch)


@pytest.mark.parametrize(
    "says",
    [
        "could not create a primitive",
        "could not create a primitive descriptor for the matmul primitive",
        "could not execute a primitive",
        "could not create a memory object",
        "std::bad_alloc",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_every_way_to_say_that_memory_ran_out_halves_the_batch(
    says: str, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "runtime": "fails", "store": "memory", "batch_size": 16}
    monkeypatch.setitem(RUNTIMES, "fails", Runtime("torch", ("cpu",), Fails))
    monkeypatch.setattr(Fails, "says", says)
    monkeypatch.setattr(Fails, "most", 3)
    result = FeatureExtractor("test_resnet", **settings).extract(paths)
    right = FeatureExtractor("test_resnet", store="memory", **TINY).extract(paths)
    assert result.computed == len(paths)
    np.testing.assert_allclose(
        result.blocks["last:avg:crop"], right.blocks["last:avg:crop"], rtol=1e-4, atol=1e-5
    )
    monkeypatch.setattr(Fails, "most", 0)  # not even one image
    with pytest.raises(BackboneError, match="not enough memory") as caught:
        FeatureExtractor("test_resnet", **settings).extract(paths)
    if "could not" in says:  # oneDNN says so of other failures too
        assert f'probably not enough memory (oneDNN says "{says}") for this one image' in str(caught.value)


def test_an_error_that_is_not_of_memory_is_raised_as_it_is(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "fails", Runtime("torch", ("cpu",), Fails))
    monkeypatch.setattr(Fails, "says", "expected scalar type Float but found Half")
    with pytest.raises(RuntimeError, match=r"^expected scalar type Float but found Half$"):
        FeatureExtractor("test_resnet", **{**TINY, "runtime": "fails", "store": "memory"}).extract(paths)


# --- progress ---


def test_progress_counts_up_to_all_images_and_names_what_limits(paths: list[str], tmp_path: Path) -> None:
    events: list[Progress] = []
    extractor = FeatureExtractor("test_resnet", store=tmp_path, callback=events.append, **TINY)
    (tmp_path / "broken.jpg").write_bytes(b"no")
    extractor.extract([*paths, str(tmp_path / "broken.jpg"), paths[0]], on_error="skip")
    last = events[-1]
    assert (last.done, last.total, last.computed, last.skipped) == (26, 26, 24, 1)
    assert last.images_per_s > 0
    assert last.eta_s == 0
    assert last.limit in ("read", "decode", "forward", "disk")
    assert [event.done for event in events] == sorted(event.done for event in events)
    events.clear()
    extractor.extract(paths)
    assert (events[-1].cached, events[-1].computed) == (24, 0)


def test_a_run_leaves_threads_and_torchs_setting_as_they_were(paths: list[str], tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(2)
    before = threading.active_count()
    FeatureExtractor("test_resnet", store=tmp_path, n_jobs=3, **TINY).extract(paths)
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]


class SlowFile(io.BytesIO):
    """A file on a disk that does not answer for a while."""

    name = "slow.png"

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.3)
        return super().read(size)


def test_a_stuck_read_is_named(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featx.extractor.pipeline.STUCK_S", 0.1)
    slow = Image.open(SlowFile(Path(paths[0]).read_bytes()))
    told: list[str] = []
    extractor = FeatureExtractor(
        "test_resnet", store="memory", callback=lambda event: told.append(event.message), **TINY
    )
    with pytest.warns(ImageWarning, match=r"still reading slow\.png after"):
        assert extractor.extract([*paths[1:3], slow], names=["a.png", "b.png", "slow.png"]).computed == 3
    assert any("slow.png" in message for message in told)


# --- interrupts and crashes ---


def extract(
    cache: Path, paths: list[str], decoder: str = "pillow", isolate: bool = False, stop: int | None = None
) -> None:
    """Extract and print what happens, in a process of its own; send it the signal `stop` after 128 images."""
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # as where Python starts
    if isolate:
        sandbox.TIME_LIMIT_S = 5
    if stop == signal.SIGINT:  # a shell in the background starts programs without
        signal.signal(stop, signal.default_int_handler)

    def hear(event: Progress) -> None:
        if stop is not None and event.computed >= 128:
            os.kill(os.getpid(), stop)

    extractor = FeatureExtractor(
        "test_resnet", store=cache, decoder=decoder, batch_size=2, n_jobs=2, isolate=isolate, callback=hear,
        **TINY,
    )  # fmt: skip
    result = extractor.extract(paths, on_error="skip")
    for one in result.skipped:
        print("skipped", one.name, one.reason)
    print("computed", result.computed, flush=True)


MANY = 400


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """A run of some seconds, too short for a commit of 1,024 rows."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "many"
    folder.mkdir()
    names = [str(folder / f"{number:03d}.png") for number in range(MANY)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(name)
    return names


def run(said: Path, *arguments: Any) -> tuple[int | None, str]:
    """Extract in a process of its own: its exit code and what it said."""
    process = apart.start(extract, *arguments, output=said)
    process.join()
    return process.exitcode, said.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path: Path, many: list[str], number: int) -> None:
    cache = tmp_path / "cache"
    code, said = run(tmp_path / "said", cache, many, "pillow", False, number)
    assert "computed" not in said
    assert code != 0
    code, again = run(tmp_path / "again", cache, many)
    assert code == 0, again
    left = int(again.split()[-1])
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in said
        assert left <= MANY - 128 + 64  # what was ready is committed, but for the batches in the air
    else:
        assert left <= MANY  # no commit was due


CRASHING = textwrap.dedent(
    '''
    """A JPEG decoder in the place of another, that a comment in the file brings down."""
    import ctypes, io, time
    import numpy as np
    from PIL import Image

    def decode_jpeg(data, colorspace="RGB"):
        if b"CRASH" in data:
            ctypes.string_at(0)
        if b"HANG" in data:
            time.sleep(3600)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    '''
)


@pytest.fixture
def crashing_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts a decoder that crashes where simplejpeg would be, for this process's children."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "simplejpeg.py").write_text(CRASHING)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "simplejpeg"


@pytest.fixture
def jpegs(tmp_path: Path, picture: Any) -> list[str]:
    names = [str(tmp_path / f"{number:02d}.jpg") for number in range(12)]
    for number, name in enumerate(names):
        picture(number).save(name, comment=b"CRASH" if number == 7 else b"")
    return names


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_picture_that_crashed_a_run_is_found_by_the_next(
    tmp_path: Path, jpegs: list[str], crashing_decoder: str
) -> None:
    cache = tmp_path / "cache"
    assert run(tmp_path / "1", cache, jpegs, crashing_decoder)[0] == -signal.SIGSEGV
    code, second = run(tmp_path / "2", cache, jpegs, crashing_decoder)
    assert code == 0, second
    (skipped,) = [line for line in second.splitlines() if line.startswith("skipped")]
    assert jpegs[7] in skipped
    assert "it crashes the decoder (SIGSEGV)" in skipped
    _, third = run(tmp_path / "3", cache, jpegs, crashing_decoder)
    assert third.split()[-1] == "0"
    assert jpegs[7] in third
    assert not list((cache / "v1" / "decoding").glob("*.journal"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_isolated_pictures_crash_and_hang_alone(
    tmp_path: Path, jpegs: list[str], crashing_decoder: str, picture: Any
) -> None:
    picture(3).save(jpegs[3], comment=b"HANG")
    code, said = run(tmp_path / "said", tmp_path / "cache", jpegs, crashing_decoder, True)
    assert code == 0, said
    skipped = [line for line in said.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 2
    assert "did not end within 5 s" in skipped[0]
    assert "SIGSEGV" in skipped[1]
    assert said.split()[-1] == "10"


MODULES = [
    *sorted(sys.stdlib_module_names), "PIL", "cv2", "featx", "h5py", "huggingface_hub", "numpy", "openvino",
    "optuna", "pandas", "pillow_heif", "safetensors", "scipy", "simplejpeg", "sitecustomize", "sklearn",
    "tifffile", "timm", "torch", "torchvision", "usercustomize", "yaml",
]  # fmt: skip
NETWORK = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch", "--input-size", "32"]
VERBS = {
    "extract": ["extract", ".", *NETWORK],
    "fit": ["fit", ".", *NETWORK, "--heads", "nearest_mean", "-o", "other.featx"],
    "check": ["check", ".", *NETWORK],
    "curve": ["curve", ".", *NETWORK],
    "predict": ["predict", "model.featx", "."],
    "evaluate": ["evaluate", "model.featx", "."],
    "add": ["add", "model.featx", "../new", "--old", "."],
}


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, some of 16 bits, a model, and beside them a file under the name of every module."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(12):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) // (1 + (label == "a"))
            Image.fromarray(pixels).save(folder / label / f"{number}.jpg")
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(folder / label / f"{number}.png")
    new = folder.parent / "new" / "a"
    new.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(new / "0.jpg")
    assert apart.call(run_verb, folder, "fit", [*VERBS["fit"][:-1], "model.featx"])[1] == 0
    for name in MODULES:
        for place in (folder, folder / "a"):
            (place / f"{name}.py").write_text(
                f"open({str(folder / 'sprung')!r}, 'a').write({name!r})\nraise SystemExit(9)"
            )
    return folder


def run_verb(folder: Path, verb: str, argv: list[str]) -> tuple[list[str], int]:
    """Files that were decoded in this process, and the exit code."""
    import simplejpeg
    from PIL import ImageFile

    decoded = []
    of_pillow, of_simplejpeg = ImageFile.ImageFile.load, simplejpeg.decode_jpeg

    def load(image: Any) -> Any:
        decoded.append(str(image))
        return of_pillow(image)

    def decode_jpeg(*args: Any, **options: Any) -> Any:
        decoded.append("simplejpeg")
        return of_simplejpeg(*args, **options)

    ImageFile.ImageFile.load, simplejpeg.decode_jpeg = load, decode_jpeg  # type: ignore[method-assign]
    os.chdir(folder)
    code = main([*argv, "--isolate", "--cache-dir", str(folder.parent / f"cache of {verb}"), "--quiet"])
    return decoded, code


@pytest.mark.skipif(os.name == "nt", reason="paths")
@pytest.mark.parametrize(
    "verb",
    [pytest.param(verb, marks=() if verb in ("extract", "check") else pytest.mark.slow) for verb in VERBS],
)
def test_isolated_pictures_are_decoded_elsewhere_and_import_nothing_beside_them(
    trapped: Path, verb: str
) -> None:
    assert apart.call(run_verb, trapped, verb, VERBS[verb]) == ([], 0)
    assert not (trapped / "sprung").exists()


def start_a_decoding_process(end: Path) -> None:
    """Print its number and limits, and be killed; a child that holds its pipes open goes on until the end."""
    extractor = FeatureExtractor("test_resnet", store="memory", **TINY).fit()
    settings = ExtractionSettings(list(extractor.specs_.values()), MAX_PIXELS)
    process = CarefulDecoder(settings, MemoryStore(), isolate=True, workers=32)._sandboxes._take()
    about = Path(f"/proc/{process.pid}")
    print(process.pid, (about / "statm").read_text(), (about / "limits").read_text(), flush=True)
    if os.fork() == 0:  # so only the signal can end the process
        while end.parent.exists() and not end.exists():  # pytest may remove the folder at once
            time.sleep(0.05)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl and limits of Linux")
def test_a_decoding_process_is_limited_and_ends_with_its_parent(tmp_path: Path) -> None:
    apart.start(start_a_decoding_process, tmp_path / "end", output=tmp_path / "said").join()
    pid, pages, *_ = (tmp_path / "said").read_text().split()
    (space,) = [line for line in (tmp_path / "said").read_text().splitlines() if "Max address space" in line]
    used = int(pages) * os.sysconf("SC_PAGE_SIZE")
    assert 0 <= int(space.split()[3]) - used <= 2 * sandbox.LEAST_BYTES  # 32 of them share the memory
    while Path(f"/proc/{pid}").exists():  # until the test's time is over
        time.sleep(0.05)
    (tmp_path / "end").touch()


@pytest.mark.slow
def test_isolated_rows_are_the_same_rows(paths: list[str], tmp_path: Path) -> None:
    params: dict[str, Any] = {"resize": ["crop", "pad"], "store": "memory", "n_jobs": 1, **TINY}
    apart = FeatureExtractor("test_resnet", isolate=True, **params).fit_transform(paths[:3])
    here = FeatureExtractor("test_resnet", **params).fit_transform(paths[:3])
    np.testing.assert_array_equal(apart, here)


# --- settings and policies ---


def test_specs_share_inputs_and_outputs() -> None:
    extractor = FeatureExtractor(
        "test_resnet", cut=["layer1", "last"], resize=["crop", "squash", "pad"], store="memory", **TINY
    ).fit()
    settings = ExtractionSettings(list(extractor.specs_.values()), 10**8)
    assert len(settings.specs) == 6
    assert len(settings.inputs) == 3
    assert len(settings.outputs) == 2
    assert len(set(settings.policies)) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """20,000 small pictures; the store in memory is replaced by one on disk, so only the index grows."""
    script = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from featx import FeatureExtractor

        def images(start, n):
            rng = np.random.default_rng(start)
            return [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(n)]

        extractor = FeatureExtractor("test_resnet", store=sys.argv[1], pretrained=False, input_size=64,
                                     precision="fp32", batch_size=16)
        extractor.extract(images(0, 500))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        many = images(1, 20_000)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert extractor.extract(many).computed == 20_000
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - max(before, held)) // 1024)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150  # MB: buffers of a commit and the queues


@pytest.mark.slow
def test_notes_on_suspects_do_not_touch_rows(paths: list[str], tmp_path: Path) -> None:
    extractor = FeatureExtractor("test_resnet", store=tmp_path, **TINY)
    result = extractor.extract(paths)
    open_store(tmp_path).remember("decoding", "suspects", {result.ids[0].tobytes().hex(): paths[0]})
    again = FeatureExtractor("test_resnet", store=tmp_path, **{**TINY, "input_size": 96}).extract(paths)
    assert again.computed == 24  # the suspect was decoded apart, and proved harmless
    assert open_store(tmp_path).recall("decoding", "suspects") == {}
    assert not again.store.missing(again.specs["last:avg:crop"].key, as_ids([again.ids[0].tobytes()])).any()


# --- one policy for extraction and fine-tuning ---


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_extraction_and_fine_tuning_decode_alike(tmp_path: Path, decode: str) -> None:
    """A little more than twice the input, less than twice what it is resized to: shrinking would blur it."""
    spec = FeatureSpec(
        architecture="", weights="", input_size=(224, 224), crop_pct=0.875, interpolation="bicubic",
        mean=(0, 0, 0), std=(1, 1, 1), decoder="pillow", decode=decode,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (460, 470, 3), np.uint8)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(photo, quality=95)
    settings = ExtractionSettings([spec], MAX_PIXELS)
    (extracted,) = settings.prepare(read_picture(photo), np.ones(1, bool))
    streamed = StreamedFeatures([photo], spec).read(np.arange(1))
    np.testing.assert_array_equal(streamed[0].transpose(1, 2, 0), extracted.pixels)
    isolated = StreamedFeatures([photo], spec, isolate=True).read(np.arange(1))
    np.testing.assert_array_equal(isolated, streamed)


def test_fine_tuning_refuses_pictures_above_max_pixels() -> None:
    spec = FeatureSpec(
        architecture="", weights="", input_size=(32, 32), crop_pct=1.0, interpolation="bicubic",
        mean=(0, 0, 0), std=(1, 1, 1), decoder="pillow",
    )  # fmt: skip
    images = [np.zeros((40, 40, 3), np.uint8), np.zeros((41, 40, 3), np.uint8)]
    rows = StreamedFeatures(images, spec, max_pixels=1600)
    assert rows.read(np.arange(1)).shape == (1, 3, 32, 32)
    with pytest.raises(ImageError, match="more than max_pixels 1,600"):
        rows.read(np.arange(2))


def test_an_isolated_picture_larger_than_a_share_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (5000, 4000), (10, 200, 30)).save(path)
    params: dict[str, Any] = {"store": "memory", **TINY}
    here = FeatureExtractor("test_resnet", n_jobs=1, **params).fit_transform([path])
    elsewhere = FeatureExtractor("test_resnet", n_jobs=32, isolate=True, **params).fit_transform([path])
    np.testing.assert_array_equal(elsewhere, here)
