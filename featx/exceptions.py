"""Errors and warnings of featx.

A message says what was given, what is allowed and what to do, and names the file if there is one. The CLI
exits with the ``exit_code`` of the error.

::

    FeatxError                      exit code 1
    ├── UsageError                  2: wrong arguments (also a ValueError)
    ├── DataError                   images, labels or manifest cannot be used (also a ValueError)
    │   ├── ImageError              one image cannot be read or decoded
    │   ├── TooManyBadImagesError   more images were set aside than the user allows
    │   └── LabelError              labels that cannot be learnt or scored
    ├── BackboneError
    │   ├── UnknownModelError       no such timm architecture or tag
    │   ├── WeightsNotFoundError    known, but its weights were not found
    │   ├── UnknownTapError         no such layer in this network
    │   └── UnsupportedCutError     the network cannot be split there
    ├── StoreError                  the cache cannot be used
    │   ├── StoreFormatError        written by a newer featx
    │   └── StoreWriteError         full or read-only disk (also an OSError)
    ├── SearchError                 no head could be fitted
    ├── ModelFileError              a .featx file that is damaged, hostile or of another format
    └── Interrupted                 129, 130 or 143: stopped by the user; finished work is kept

    FeatxWarning (UserWarning)
    ├── ImageWarning                an image was accepted with a remark
    ├── StoreWarning                a segment was quarantined
    ├── DriftWarning                an image now has other features
    └── SearchWarning               a budget, a head or a number of folds was lowered
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FeatxError(Exception):
    """Base of all errors of featx."""

    exit_code = 1


class UsageError(FeatxError, ValueError):
    """An argument is wrong."""

    exit_code = 2


class DataError(FeatxError, ValueError):
    """Images, labels or a manifest that cannot be used."""


class ImageError(DataError):
    """One image cannot be read or decoded.

    Parameters
    ----------
    name : str
        The image's path, or its position for an image given in memory.
    reason : str
        Why, in the decoder's or the operating system's words.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.name, self.reason)


class TooManyBadImagesError(DataError):
    """More images were set aside than the user allows.

    Parameters
    ----------
    message : str
        What is wrong.
    skipped : sequence of Skipped
        The images that were set aside, each with its reason.
    """

    def __init__(self, message: str, skipped: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.skipped = list(skipped)


class LabelError(DataError):
    """Labels that cannot be learnt or scored."""


class BackboneError(FeatxError):
    """A pretrained network cannot be made or used."""


class UnknownModelError(BackboneError, ValueError):
    """No such architecture or tag in timm's registry."""


class WeightsNotFoundError(BackboneError):
    """The architecture is known, but its weights were not found."""


class UnknownTapError(BackboneError, ValueError):
    """The network has no layer of that name or number."""


class UnsupportedCutError(BackboneError, ValueError):
    """The network cannot be split into stem and tail at that layer."""


class StoreError(FeatxError):
    """The cache cannot be used."""


class StoreFormatError(StoreError):
    """The cache was written by a newer featx."""


class StoreWriteError(StoreError, OSError):
    """The cache cannot be written: the disk is full or read-only."""


class SearchError(FeatxError):
    """No head could be fitted."""


class ModelFileError(FeatxError):
    """A model file that is damaged, hostile or of another format."""


class Interrupted(FeatxError):
    """Stopped by SIGINT, SIGTERM or SIGHUP; finished work is kept.

    Parameters
    ----------
    message : str
        What was kept and how to go on.
    signal_number : int
        2 for SIGINT, 15 for SIGTERM, 1 for SIGHUP.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class FeatxWarning(UserWarning):
    """Base of all warnings of featx."""


class ImageWarning(FeatxWarning):
    """An image was accepted with a remark."""


class StoreWarning(FeatxWarning):
    """The cache was repaired, or differs from the request in few fields."""


class DriftWarning(FeatxWarning):
    """The same image and spec now have other features."""


class SearchWarning(FeatxWarning):
    """A budget, a head or a number of folds was lowered."""
