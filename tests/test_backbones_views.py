"""Views: deterministic, bounded, and what their policy says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featx.backbones import open_card
from featx.backbones.transform import prepare
from featx.backbones.views import POLICIES, ViewPolicy, draw_view, name_policy, parse_policy
from featx.exceptions import UsageError
from featx.spec import FeatureSpec

NAMED = [name for name in POLICIES if name != "none"]
DIGEST = hashlib.sha256(b"a picture").digest()


def make_spec(view: int, policy: str, **changes: Any) -> FeatureSpec:
    fields: dict[str, Any] = {
        "architecture": "any",
        "weights": "0" * 64,
        "input_size": (48, 48),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "decoder": "pillow",
        "view": view,
        "view_policy": policy,
    }
    return FeatureSpec(**(fields | changes))


@pytest.fixture
def photo(picture: Any) -> NDArray[np.uint8]:
    return np.array(picture(3, width=90, height=70))


@pytest.mark.parametrize("policy", [*NAMED, "flip=0.5,rotate=40,shift=0.2,zoom=0.2,border=edge"])
def test_a_view_is_the_same_each_time_and_another_for_another_number_or_picture(
    photo: NDArray[np.uint8], policy: str
) -> None:
    first = prepare(photo, make_spec(1, policy), digest=DIGEST)
    assert first.shape == (48, 48, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(prepare(photo, make_spec(1, policy), digest=DIGEST), first)
    assert (prepare(photo, make_spec(2, policy), digest=DIGEST) != first).any()
    assert (prepare(photo, make_spec(1, policy), digest=hashlib.sha256(b"b").digest()) != first).any()


def test_draws_are_the_same_on_every_run_and_machine() -> None:
    """Rows of views are kept: a change of the draw would need another name of the policy."""
    view = draw_view("photo", 1, DIGEST)
    script = f"from featx.backbones.views import draw_view; print(draw_view('photo', 1, {DIGEST!r}))"
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == str(view)
    assert (round(view.angle, 6), round(view.scale, 6), view.flip) == GOLDEN


GOLDEN = (-9.389582, 1.038938, True)


@pytest.mark.parametrize("policy", NAMED)
def test_draws_stay_within_their_bounds_and_reach_both_sides(policy: str) -> None:
    limits = POLICIES[policy]
    views = [draw_view(policy, number, DIGEST) for number in range(1, 400)]
    angles = np.array([view.angle for view in views])
    scales = np.array([view.scale for view in views])
    assert np.abs(angles).max() <= limits.rotate
    assert angles.min() <= -0.95 * limits.rotate
    assert angles.max() >= 0.95 * limits.rotate
    assert np.abs(scales - 1).max() <= limits.zoom
    assert all(limits.crop - 1e-9 <= view.side**2 <= 1 for view in views)
    assert all(view.top >= 0 and view.top + view.side <= 1 + 1e-9 for view in views)
    assert abs(np.mean([view.flip for view in views]) - limits.flip) < 0.1


def test_documents_are_never_mirrored_and_medical_pictures_keep_their_colours() -> None:
    assert not any(draw_view("document", number, DIGEST).flip for number in range(1, 200))
    assert POLICIES["medical"].saturation == POLICIES["medical"].hue == 0


def test_a_flip_mirrors_the_plain_picture(photo: NDArray[np.uint8]) -> None:
    plain = prepare(photo, make_spec(0, "none"))
    np.testing.assert_array_equal(prepare(photo, make_spec(1, "flip=1"), digest=DIGEST), plain[:, ::-1])


def test_a_crop_keeps_detail_of_the_original() -> None:
    checks = np.zeros((480, 480, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255  # single pixels: grey once the whole is shrunk
    plain = prepare(checks, make_spec(0, "none"))
    view = prepare(checks, make_spec(1, "crop=0.01"), digest=bytes(32))
    assert plain.std() < 10
    assert view.std() > plain.std()


@pytest.mark.parametrize(("border", "corner"), [("background", 7), ("edge", 200), ("reflect", 200)])
def test_what_comes_in_at_the_border_is_the_policys_choice(border: str, corner: int) -> None:
    flat = np.full((48, 48, 3), 200, np.uint8)
    policy = f"rotate=45,border={border}"
    angles = {number: abs(draw_view(policy, number, DIGEST).angle) for number in range(1, 20)}
    spec = make_spec(max(angles, key=lambda number: angles[number]), policy, background=(7, 7, 7))
    assert prepare(flat, spec, digest=DIGEST)[0, 0].tolist() == [corner] * 3


def test_brightness_alone_scales_the_pixels() -> None:
    flat = np.full((48, 48, 3), 100, np.uint8)
    factor = draw_view("brightness=0.5", 1, DIGEST).brightness
    view = prepare(flat, make_spec(1, "brightness=0.5"), digest=DIGEST)
    assert abs(int(view[0, 0, 0]) - 100 * factor) <= 1
    assert (view == view[0, 0]).all()


def test_a_custom_policy_is_its_own_text_and_comes_back_from_it() -> None:
    policy = ViewPolicy(rotate=12.5, flip=0.25, border="edge")
    assert str(policy) == "flip=0.25,rotate=12.5,border=edge"
    assert parse_policy(str(policy)) == policy
    assert name_policy("rotate=12.5, border=edge, flip=0.25") == str(policy)
    assert name_policy(POLICIES["light"]) == name_policy("light") == "light"


@pytest.mark.parametrize(
    "text", ["", "lite", "rotate", "rotate=x", "spin=3", "rotate=nan", "rotate=500", "border=sky"]
)
def test_a_policy_that_is_none_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match=r"choose one of none, light, photo|is not within|is not one of"):
        parse_policy(text)
    with pytest.raises(UsageError, match=r"is not known \(colour, brigthness\?\)"):
        parse_policy("flip=0.5,colour=0.2,brigthness=1")


def test_a_card_takes_policies_in_any_form_and_refuses_unknown_ones() -> None:
    card = open_card("test_resnet", pretrained=False)
    spec = card.spec(decoder="pillow", view=2, view_policy=ViewPolicy(flip=1.0))
    assert (spec.view, spec.view_policy) == (2, "flip=1")
    assert card.spec(decoder="pillow", view=2, view_policy="photo").key != spec.key
    with pytest.raises(UsageError, match="view policy 'foto' is not known"):
        card.spec(decoder="pillow", view=1, view_policy="foto")


def test_a_view_needs_the_pictures_digest(photo: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="needs the digest of the image"):
        prepare(photo, make_spec(1, "light"))
