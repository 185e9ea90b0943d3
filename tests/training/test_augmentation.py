from collections.abc import Callable
from dataclasses import replace
from math import pi
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from embedding_studio.training import augmentation
from embedding_studio.training.augmentation import (
    Augmentation,
    blurred,
    moved,
    scaled_brightness,
    scaled_contrast,
    scaled_saturation,
)

NOTHING = Augmentation(**dict.fromkeys(Augmentation.switches(), False), chance=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 4, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(9))


def amounts_given(
    monkeypatch: pytest.MonkeyPatch, change: str, switches: Augmentation, count: int = 500
) -> list[Tensor]:
    """Return the amounts by which a batch is changed: what the change's function is called with."""
    seen: list[Tensor] = []
    original: Callable[..., Tensor] = getattr(augmentation, change)

    def watched(images: Tensor, *amounts: Tensor) -> Tensor:
        seen.extend(amounts)
        return original(images, *amounts)

    monkeypatch.setattr(augmentation, change, watched)
    switches(noise(count), seeded())
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize(("switch", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_a_flip_swaps_sides_and_twice_gives_the_image_back(switch: str, axis: int) -> None:
    """At chance 1 every image is mirrored along one axis."""
    flip = replace(NOTHING, **{switch: True})
    once = flip(noise(), seeded())
    torch.testing.assert_close(once, noise().flip(axis), atol=1e-5, rtol=0)
    torch.testing.assert_close(flip(once, seeded()), noise(), atol=1e-5, rtol=0)


def test_a_quarter_turn_takes_the_top_to_the_right() -> None:
    """A pixel in the middle of the top edge ends in the middle of the right edge."""
    image = torch.zeros(1, 3, 5, 5)
    image[0, :, 0, 2] = 1
    turned = moved(image, torch.tensor([pi / 2]), torch.ones(1), torch.ones(1))
    assert turned[0, 0, 2, 4] == pytest.approx(1)
    torch.testing.assert_close(turned, image.rot90(-1, (2, 3)), atol=1e-5, rtol=0)


def test_a_turn_does_not_shear_an_oblong_image() -> None:
    """Half a turn of any shape, and a quarter turn of an oblong's middle square, are exact."""
    image = noise(1, height=4, width=8)
    ones = torch.ones(1)
    half = moved(image, torch.tensor([pi]), ones, ones)
    torch.testing.assert_close(half, image.flip(2, 3), atol=1e-5, rtol=0)
    quarter = moved(image, torch.tensor([pi / 2]), ones, ones)[..., 2:6]
    torch.testing.assert_close(quarter, image[..., 2:6].rot90(-1, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("switch", "degrees"), [("small_rotation", 30), ("large_rotation", 90)])
def test_rotations_stay_within_their_bounds(
    monkeypatch: pytest.MonkeyPatch, switch: str, degrees: float
) -> None:
    """Angles fill the range to both sides and never leave it."""
    angle, *_ = amounts_given(monkeypatch, "moved", replace(NOTHING, **{switch: True}))
    turned = angle.rad2deg()
    assert -degrees <= turned.min() < -0.95 * degrees
    assert 0.95 * degrees < turned.max() <= degrees


def test_a_large_rotation_replaces_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both together never turn by more than 90 degrees."""
    both = replace(NOTHING, small_rotation=True, large_rotation=True)
    angle, *_ = amounts_given(monkeypatch, "moved", both)
    assert angle.abs().max() <= pi / 2


def test_a_crop_enlarges_the_middle_and_keeps_the_aspect() -> None:
    """At one half, the middle half of an oblong's width and height fills it, as an oblong."""
    image, half = noise(1, height=8, width=16), torch.tensor([0.5])
    cropped = moved(image, torch.zeros(1), half, half)
    middle = interpolate(image[..., 2:6, 4:12], scale_factor=2, mode="bilinear")
    # at the rim the crop also sees what lies just outside the middle
    torch.testing.assert_close(cropped[..., 1:-1, 1:-1], middle[..., 1:-1, 1:-1])


def test_a_crop_keeps_at_least_half_and_one_factor_for_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Width and height shrink alike, to between one half and the whole."""
    crop = replace(NOTHING, center_crop=True)
    angle, across, down = amounts_given(monkeypatch, "moved", crop)
    assert across.equal(down)
    assert 0.5 <= across.min() < 0.52
    assert 0.98 < across.max() <= 1
    assert not angle.any()


def test_colour_changes_by_hand() -> None:
    """One image of two grey pixels, 0.2 and 0.6, and one of pure red."""
    greys = torch.tensor([0.2, 0.6]).expand(1, 3, 1, 2)
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]

    def grey_of(images: Tensor) -> list[float]:
        return images[0, 0, 0].tolist()

    assert grey_of(scaled_brightness(greys, torch.tensor([1.5]))) == pytest.approx([0.3, 0.9])
    assert grey_of(scaled_brightness(greys, torch.tensor([2.0]))) == pytest.approx([0.4, 1.0])
    assert grey_of(scaled_contrast(greys, torch.tensor([0.5]))) == pytest.approx([0.3, 0.5])
    assert grey_of(scaled_saturation(greys, torch.tensor([0.5]))) == pytest.approx([0.2, 0.6])
    faded = scaled_saturation(red, torch.tensor([0.5]))[0, :, 0, 0]
    assert faded.tolist() == pytest.approx([0.6495, 0.1495, 0.1495])


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
def test_jitters_stay_within_their_bounds(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Factors lie between 0.7 and 1.3."""
    switches = replace(NOTHING, **{f"{change}_jitter": True})
    (factor,) = amounts_given(monkeypatch, f"scaled_{change}", switches)
    assert 0.7 <= factor.min() < 0.72
    assert 1.28 < factor.max() <= 1.3


def test_a_blur_spreads_light_and_loses_none() -> None:
    """A dot becomes a round spot of the same sum; without a deviation it stays a dot."""
    dot = torch.zeros(2, 3, 41, 41)
    dot[..., 20, 20] = 1
    spread, same = blurred(dot, torch.tensor([0.4, 0.0]))
    assert same.equal(dot[1])
    assert spread[0].sum() == pytest.approx(1)
    assert 0.2 < spread[0, 20, 20] < 0.95
    assert spread[0, 19, 20] == spread[0, 20, 21] > spread[0, 19, 21] > 0


def test_a_blur_stays_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one percent of the height."""
    (deviation,) = amounts_given(monkeypatch, "blurred", replace(NOTHING, blur=True))
    assert deviation.min() > 0
    assert 0.0095 * 8 < deviation.max() <= 0.01 * 8


def test_values_stay_colours() -> None:
    """Whatever happens, every value is in [0, 1]."""
    changed = replace(Augmentation(), chance=1.0)(noise(200), seeded())
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_a_switch_that_is_off_leaves_the_others_draws_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Brightness changes by the same factors with and without rotation and blur."""
    everything = amounts_given(monkeypatch, "scaled_brightness", Augmentation())
    fewer = Augmentation(small_rotation=False, large_rotation=False, blur=False)
    assert everything[0].equal(amounts_given(monkeypatch, "scaled_brightness", fewer)[0])


def test_a_change_befalls_images_by_chance() -> None:
    """About one in four, by default, and each image for itself."""
    flip: dict[str, Any] = {"horizontal_flip": True, "chance": 0.25}
    images = noise(1).expand(2000, -1, -1, -1)
    changed = (replace(NOTHING, **flip)(images, seeded()) - images).abs().amax((1, 2, 3)) > 1e-3
    assert changed.float().mean() == pytest.approx(0.25, abs=0.03)


def test_a_seed_fixes_the_changes() -> None:
    """The same seed gives the same images, another one others, and the originals are kept."""
    images = noise(50)
    first = Augmentation()(images, seeded(1))
    assert first.equal(Augmentation()(images, seeded(1)))
    assert not first.equal(Augmentation()(images, seeded(2)))
    assert images.equal(noise(50))


def test_all_is_on_by_default_and_all_can_be_off() -> None:
    """With nothing on, or no chance, there is no augmentation."""
    assert all(getattr(Augmentation(), switch) for switch in Augmentation.switches())
    assert len(Augmentation.switches()) == 9
    assert Augmentation().is_on
    assert not NOTHING.is_on
    assert not Augmentation(chance=0.0).is_on
