"""Pages: one self-contained HTML file from plain data, by Jinja2 with autoescape.

No request leaves a page: style, script, plots and thumbnails are inside. Names of files and classes are not
trusted; they only ever become text.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from PIL import Image

from featx.exceptions import ImageError
from featx.images import DecodePolicy, ImageSource, decode_to_see, read_picture
from featx.plot.base import abbreviated
from featx.tables import escape_name
from featx.threads import n_threads
from featx.version import __version__

if TYPE_CHECKING:
    import jinja2

THUMB = 112
"""Longest side of a thumbnail in pixels."""

BRIEF = 20
"""Characters of a class name beside a confusion matrix."""

QUALITY = 72
"""JPEG quality of thumbnails: about 3 kB each."""


def render(template: str, **values: Any) -> str:
    """Return the page of a template of ``featx/reporting/templates``."""
    page: str = _environment().get_template(template).render(version=__version__, **values)
    return page


@functools.cache
def _environment() -> jinja2.Environment:
    """The templates, which are compiled once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("featx.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = lambda text: escape_name(str(text))
    environment.filters["brief"] = lambda text: abbreviated(escape_name(str(text)), BRIEF)
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %"
    return environment


def thumbnails(sources: Mapping[int, ImageSource], *, side: int = THUMB) -> dict[int, str]:
    """Return thumbnails as data addresses; images that cannot be read are left out.

    Parameters
    ----------
    sources : mapping of int to image source
        Images by a number of the caller.
    side : int
        Longest side in pixels.
    """
    policy = DecodePolicy(decode="fast", min_side=side)

    def small(item: tuple[int, ImageSource]) -> tuple[int, str]:
        try:
            image = Image.fromarray(decode_to_see(read_picture(item[1]), policy))
        except ImageError:
            return item[0], ""
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        return item[0], "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    with ThreadPoolExecutor(n_threads(None)) as pool:
        return {number: address for number, address in pool.map(small, sources.items()) if address}


def spread_over(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
