"""The images, and the features, pass few modules, and seldom come back to one that they have left."""

from __future__ import annotations

import walk


def test_a_fit_of_images_passes_few_modules() -> None:
    found = walk.of_image_classifier()
    assert len(found.modules) <= 12, found
    assert found.returns <= 3, found


def test_a_search_passes_few_modules() -> None:
    found = walk.of_head_search()
    assert len(found.modules) <= 20, found
    assert found.returns <= 8, found
