"""Deterministic augmentations: view k of an image is always the same.

The number of the view, the policy and the digest of the image seed the random numbers. So the features of a
view can be cached like those of the plain image. A custom policy is stored as text
(``"flip=0.5,rotate=10"``), so that a spec describes the view completely. torchvision's v2 transforms change
the pixels; torchvision is imported only when a view is made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
"""RGB, shape (H, W, 3)."""

BORDERS = ("reflect", "edge", "background")


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """Bounds of the random changes; every change is drawn uniformly within its bounds.

    Parameters
    ----------
    flip : float
        Probability of a horizontal flip.
    crop : float
        Smallest share of the area of the image that is kept before resizing; 1 keeps all.
    rotate, shear : float
        Largest angle to either side, in degrees.
    shift : float
        Largest shift to either side, horizontally and vertically, as a fraction of width and height.
    zoom : float
        Largest change of scale: 0.1 draws from 0.9 to 1.1.
    brightness, contrast, saturation : float
        Largest change of the factor: 0.2 draws from 0.8 to 1.2.
    hue : float
        Largest change of the hue to either side, as a fraction of the colour circle (at most 0.5).
    border : {'reflect', 'edge', 'background'}
        What fills the area that the shifted image leaves empty.
    """

    flip: float = 0.0
    crop: float = 1.0
    rotate: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    border: str = "reflect"

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(
                    f"{name}={getattr(self, name):g} of a view policy is not within {low:g} to {high:g}."
                )
        if self.border not in BORDERS:
            raise UsageError(f"border={self.border} of a view policy is not one of {', '.join(BORDERS)}.")

    def __str__(self) -> str:
        """Canonical text: the fields that differ from their defaults. `parse_policy` reads it."""
        changed = (
            f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        )
        return ",".join(changed)


BOUNDS: Mapping[str, tuple[float, float]] = {
    "flip": (0, 1),
    "crop": (0.01, 1),
    "rotate": (0, 180),
    "shear": (0, 60),
    "shift": (0, 0.5),
    "zoom": (0, 0.9),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 0.5),
}

UNCHANGED: Mapping[str, float] = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}

POLICIES: Mapping[str, ViewPolicy] = {
    "none": ViewPolicy(),
    "light": ViewPolicy(flip=0.5, shift=0.05, zoom=0.1),
    "photo": ViewPolicy(
        flip=0.5,
        crop=0.6,
        rotate=15.0,
        shear=6.0,
        shift=0.1,
        zoom=0.1,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.02,
    ),
    "document": ViewPolicy(
        rotate=3.0, shear=3.0, shift=0.04, zoom=0.06, brightness=0.2, contrast=0.3, border="background"
    ),
    "medical": ViewPolicy(
        flip=0.5, rotate=10.0, shift=0.05, zoom=0.1, brightness=0.1, contrast=0.1, border="edge"
    ),
}
"""Policies by name. Tutorials of transfer learning use rotations of 10 to 40 degrees, shifts of 0.1 to 0.2, a
zoom of 0.2, and flips; ``photo`` has values near the lower ends. ``document`` does not mirror, since text has
a direction. ``medical`` does not change colours. Features are cached under these names: to change a number,
add a new name."""


def parse_policy(policy: str) -> ViewPolicy:
    """Return a named policy, or read a custom one from its text, e.g. ``"flip=0.5,rotate=10,border=edge"``.

    Raises
    ------
    UsageError
        If the text is neither. The message lists the names and the fields.
    """
    if policy in POLICIES:
        return POLICIES[policy]
    wrong = ""
    try:
        pairs = dict(pair.split("=", 1) for pair in policy.replace(" ", "").split(","))
        if unknown := [name for name in pairs if name not in (*BOUNDS, "border")]:
            wrong = f" ({', '.join(unknown)}?)"
            raise ValueError
        fields: dict[str, Any] = {
            name: text if name == "border" else float(text) for name, text in pairs.items()
        }
        return ViewPolicy(**fields)
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"view policy {policy!r} is not known{wrong}; choose one of {', '.join(POLICIES)}, or write one "
            f"as name=number pairs of {', '.join(BOUNDS)} and border, e.g. flip=0.5,rotate=10."
        ) from None


def name_policy(policy: str | ViewPolicy) -> str:
    """Return the text that a spec stores for a policy: its name, or its canonical text.

    Raises
    ------
    UsageError
        As for `parse_policy`.
    """
    if isinstance(policy, str) and policy in POLICIES:
        return policy
    parsed = policy if isinstance(policy, ViewPolicy) else parse_policy(policy)
    return next((name for name, known in POLICIES.items() if known == parsed), str(parsed))


@dataclass(frozen=True, kw_only=True)
class View:
    """One draw from a policy: the changes of an image before and after it is resized.

    Parameters
    ----------
    top, left, side : float
        Upper left corner and side of the part that is kept, as fractions of height and width.
    flip : bool
    angle, shear : float
        In degrees.
    shift : tuple of float
        Horizontally and vertically, as fractions of the side.
    scale, brightness, contrast, saturation : float
        Factors.
    hue : float
        Fraction of the colour circle.
    border : str
    """

    top: float
    left: float
    side: float
    flip: bool
    angle: float
    shear: float
    shift: tuple[float, float]
    scale: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    border: str

    def crop(self, pixels: Pixels) -> Pixels:
        """Crop before resizing, so that no detail is lost."""
        height, width = pixels.shape[:2]
        top, left = int(self.top * height), int(self.left * width)
        return pixels[
            top : top + max(round(self.side * height), 1), left : left + max(round(self.side * width), 1)
        ]

    def finish(self, pixels: Pixels, background: tuple[int, int, int]) -> Pixels:
        """Change colours and geometry of the resized image, shape (h, w, 3)."""
        import torch
        from torchvision.transforms.v2 import functional

        image = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
        with torch.inference_mode():
            for name, unchanged in UNCHANGED.items():
                amount = getattr(self, name)
                if amount != unchanged:
                    image = getattr(functional, f"adjust_{name}")(image, amount)
            image = functional.horizontal_flip(image) if self.flip else image
            if self.moves:
                image = self._move(image, background)
            return np.ascontiguousarray(image.permute(1, 2, 0).numpy())

    @property
    def moves(self) -> bool:
        """Whether there is a geometric change besides flip and crop."""
        return (self.angle, self.shear, *self.shift, self.scale) != (0, 0, 0, 0, 1)

    def _move(self, image: Tensor, background: tuple[int, int, int]) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode, functional

        height, width = image.shape[1:]
        margin = [width // 2, height // 2] if self.border != "background" else [0, 0]
        if self.border != "background":  # pad first: the affine map itself can only fill with a colour
            image = functional.pad(image, margin, padding_mode=self.border)
        image = functional.affine(
            image,
            angle=self.angle,
            translate=[self.shift[0] * width, self.shift[1] * height],
            scale=self.scale,
            shear=[self.shear, 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=[float(level) for level in background],
        )
        moved: Tensor = functional.crop(image, margin[1], margin[0], height, width)
        return moved


def draw_view(policy: str, number: int, digest: bytes) -> View:
    """Draw view `number` (from 1) of the image with this digest.

    Every field uses one random number, also if its bound is 0. So the other changes stay the same if a policy
    gets one more change.
    """
    limits = parse_policy(policy)
    seed = hashlib.sha256(b"%s/%s/%d" % (digest, policy.encode(), number)).digest()
    draws = dict(zip(DRAWS, np.random.default_rng(list(seed)).random(len(DRAWS)), strict=True))

    def within(name: str, limit: float) -> float:
        return float((2 * draws[name] - 1) * limit)

    side = math.sqrt(limits.crop + (1 - limits.crop) * draws["area"])
    return View(
        top=float(draws["top"] * (1 - side)),
        left=float(draws["left"] * (1 - side)),
        side=side,
        flip=bool(draws["flip"] < limits.flip),
        angle=within("rotate", limits.rotate),
        shear=within("shear", limits.shear),
        shift=(within("across", limits.shift), within("down", limits.shift)),
        scale=1 + within("zoom", limits.zoom),
        brightness=1 + within("brightness", limits.brightness),
        contrast=1 + within("contrast", limits.contrast),
        saturation=1 + within("saturation", limits.saturation),
        hue=within("hue", limits.hue),
        border=limits.border,
    )


DRAWS = (
    "flip",
    "area",
    "top",
    "left",
    "rotate",
    "shear",
    "across",
    "down",
    "zoom",
    "brightness",
    "contrast",
    "saturation",
    "hue",
)
"""Order of the random numbers. Do not change it: cached features of views depend on it."""
