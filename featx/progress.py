"""Progress of a run as a bar, on a terminal and in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Callback = Callable[[Any], None]


class ProgressBar:
    """Draw events with ``stage``, ``done``, ``total`` and ``message`` as one bar for each stage.

    Bars are removed when their stage is done. Messages are not shown.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, event: Any) -> None:
        """Draw an event."""
        if event.message:
            return
        rate = f"{event.images_per_s:.0f} images/s" if event.images_per_s else ""
        self.draw(event, rate)
        if event.done >= event.total:
            self.close()

    def draw(self, event: Any, note: str) -> None:
        """Draw an event, with a note beside it."""
        if event.stage != self._stage:
            self.close()
            self._stage = event.stage
        if self._bar is None:
            self._bar = _tqdm()(
                total=event.total, desc=event.stage, leave=False, dynamic_ncols=True, unit="", file=sys.stderr
            )
        self._bar.total = event.total
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(event.done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""

    def __deepcopy__(self, memo: dict[int, Any]) -> ProgressBar:
        return self  # a copied estimator draws on the same terminal


def silent(event: Any) -> None:
    """Show nothing of an event."""


def shown_by(callback: Callback | None, verbose: bool | str) -> Callback:
    """Return the function that gets progress events: the callback, or one that draws bars, or `silent`.

    Parameters
    ----------
    callback : callable or None
        If given, it is returned, and there are no bars.
    verbose : bool or "auto"
        Whether bars are drawn; "auto" on a terminal and in a notebook.
    """
    if callback is not None:
        return callback
    return ProgressBar() if (is_watched() if verbose == "auto" else verbose) else silent


def is_watched() -> bool:
    """Whether a person sees stderr: on a terminal, or in a notebook."""
    return _in_notebook() or bool(getattr(sys.stderr, "isatty", lambda: False)())


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which has IPython loaded."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _tqdm() -> Any:
    if _in_notebook():
        from tqdm.auto import tqdm as for_notebooks

        return for_notebooks
    from tqdm import tqdm

    return tqdm
