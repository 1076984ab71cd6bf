"""Errors and warnings of featx.

A message states what was given, what is allowed and what to do, and names the file if there is one. The
command line exits with the ``exit_code`` of the error.

::

    FeatxError                      exit code 1
    ├── UsageError                  2: wrong arguments (also a ValueError)
    ├── DataError                   images, labels or manifest cannot be used (also a ValueError)
    │   ├── ImageError              one image cannot be read or decoded
    │   ├── TooManyBadImagesError   more images cannot be used than max_bad allows
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
    ├── ModelFileError              a .featx file that is damaged, malicious or of another format
    └── Interrupted                 129, 130 or 143: stopped by the user; finished work is kept

    FeatxWarning (UserWarning)
    ├── ImageWarning                images were skipped, or read in a way that may be unexpected
    ├── StoreWarning                a file of the cache is damaged, or cannot be written
    ├── DriftWarning                the same image and settings now give other features
    └── SearchWarning               heads were left out, or fewer folds or trials were used
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
        The message of the decoder or of the operating system.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.name, self.reason)


class TooManyBadImagesError(DataError):
    """More images cannot be used than `max_bad` allows, or no image is left.

    Parameters
    ----------
    message : str
        What is wrong.
    skipped : sequence of Skipped
        The images that cannot be used, each with the reason.
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
    """The network cannot be split at that layer into a frozen and a trained part."""


class StoreError(FeatxError):
    """The cache cannot be used."""


class StoreFormatError(StoreError):
    """The cache was written by a newer featx."""


class StoreWriteError(StoreError, OSError):
    """The cache cannot be written: the disk is full or read-only."""


class SearchError(FeatxError):
    """No head could be fitted."""


class ModelFileError(FeatxError):
    """A model file that is damaged, malicious or of another format."""


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
    """Images were skipped, or read in a way that may be unexpected."""


class StoreWarning(FeatxWarning):
    """A file of the cache is damaged, or the cache cannot be written."""


class DriftWarning(FeatxWarning):
    """The same image and spec now give other features than before."""


class SearchWarning(FeatxWarning):
    """Heads were left out, or fewer folds or trials were used than requested."""
