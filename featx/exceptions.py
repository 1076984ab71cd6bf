"""The error tree: what can go wrong, in the user's words.

Every message says what came, what is allowed and what to do, and names the file where there is one.
The CLI turns an error into its ``exit_code``; a library user catches the class.

::

    FeatxError                      exit code 1
    ├── UsageError                  2: the call's own words are off (also a ValueError)
    ├── DataError                   the images, labels or manifest cannot be used (also a ValueError)
    │   ├── ImageError              one picture cannot be read or decoded
    │   ├── TooManyBadImagesError   more pictures were set aside than the user allows
    │   └── LabelError              labels that cannot be learnt or scored
    ├── BackboneError
    │   ├── UnknownModelError       no such timm architecture or tag
    │   ├── WeightsNotFoundError    known, but its weights are nowhere to be had
    │   ├── UnknownTapError         no such layer in this network
    │   └── UnsupportedCutError     the network cannot be split there
    ├── StoreError                  the cache cannot be used
    │   ├── StoreFormatError        written by a newer featx
    │   └── StoreWriteError         full or read-only disk (also an OSError)
    ├── SearchError                 no head could be fitted
    ├── ModelFileError              a .featx file that is damaged, hostile or of another format
    └── Interrupted                 130 or 143: stopped by the user; what was ready is committed

    FeatxWarning (UserWarning)
    ├── ImageWarning                a picture was accepted with a remark
    ├── StoreWarning                a segment was quarantined, a space missed by one field
    ├── DriftWarning                the same picture now gives another row
    └── SearchWarning               a budget or a fold count was lowered
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FeatxError(Exception):
    """Base of all errors that featx raises on purpose."""

    exit_code = 1


class UsageError(FeatxError, ValueError):
    """An argument is not of the form that the call takes."""

    exit_code = 2


class DataError(FeatxError, ValueError):
    """Images, labels or a manifest that cannot be used."""


class ImageError(DataError):
    """One picture cannot be read or decoded.

    Parameters
    ----------
    name : str
        The picture's path, or its position for a picture given in memory.
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
    """The architecture is known, its weights are nowhere to be had."""


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
    """Stopped by SIGINT or SIGTERM after committing what was ready.

    Parameters
    ----------
    message : str
        What was kept and how to go on.
    signal_number : int
        2 for SIGINT, 15 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class FeatxWarning(UserWarning):
    """Base of all warnings that featx gives on purpose."""


class ImageWarning(FeatxWarning):
    """A picture was accepted with a remark."""


class StoreWarning(FeatxWarning):
    """Something in the cache was put right, or missed by one field."""


class DriftWarning(FeatxWarning):
    """The same picture and recipe now give another row."""


class SearchWarning(FeatxWarning):
    """A budget, a head or a number of folds was lowered."""
