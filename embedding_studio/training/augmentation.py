"""Images changed at random, so that a model learns what they show and not how they show it."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

_ROTATION_DEGREES = {"small": 30.0, "large": 90.0}
_LEAST_CROP = 0.5
_JITTER = 0.3
_BLUR = (0.002, 0.01)  # standard deviations of the Gaussian, as shares of an image's height
_BLUR_RADIUS = 0.025
_GREY = (0.299, 0.587, 0.114)  # what red, green and blue weigh in grey (ITU-R BT.601)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may happen to a training image. Switch off what would change what an image means.

    Each change that is on befalls each image with probability `chance`, whatever else befalls it.
    horizontal_flip swaps left and right: wrong for lettering. vertical_flip swaps up and down.
    small_rotation turns by up to 30 degrees either way, large_rotation by up to 90 (and replaces a
    small one); corners are filled by reflection. center_crop enlarges the middle, at least half of
    width and height, both by the same factor. brightness_jitter multiplies all values,
    contrast_jitter their distance from the image's mean grey, saturation_jitter a pixel's distance
    from its own grey, by 0.7 to 1.3. blur is Gaussian, of at most 1 % of the height."""

    horizontal_flip: bool = True
    vertical_flip: bool = True
    small_rotation: bool = True
    large_rotation: bool = True
    center_crop: bool = True
    brightness_jitter: bool = True
    contrast_jitter: bool = True
    saturation_jitter: bool = True
    blur: bool = True
    chance: float = 0.25

    @property
    def is_on(self) -> bool:
        """Whether anything may happen at all."""
        return self.chance > 0 and any(getattr(self, switch) for switch in self.switches())

    @classmethod
    def switches(cls) -> list[str]:
        """Return the names of the changes."""
        return [field.name for field in fields(cls) if field.name != "chance"]

    def __call__(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Return changed copies. images: (n, 3, height, width) float in [0, 1], on any device.

        `random` is a CPU generator. A switch takes its draws whether on or off, so turning one off
        leaves the others' changes as they were."""

        def amounts(is_on: bool, low: float, high: float, neutral: float) -> Tensor:
            luck, place = torch.rand((2, len(images)), generator=random)
            drawn = torch.where((luck < self.chance) & is_on, low + (high - low) * place, neutral)
            return drawn.to(images.device)

        def turns(is_on: bool, name: str) -> Tensor:
            most = math.radians(_ROTATION_DEGREES[name])
            return amounts(is_on, -most, most, 0.0)

        def jitter(is_on: bool) -> Tensor:
            return amounts(is_on, 1 - _JITTER, 1 + _JITTER, 1.0)

        across = amounts(self.horizontal_flip, -1.0, -1.0, 1.0)
        down = amounts(self.vertical_flip, -1.0, -1.0, 1.0)
        small, large = turns(self.small_rotation, "small"), turns(self.large_rotation, "large")
        kept = amounts(self.center_crop, _LEAST_CROP, 1.0, 1.0)
        images = moved(images, torch.where(large == 0, small, large), across * kept, down * kept)
        images = scaled_brightness(images, jitter(self.brightness_jitter))
        images = scaled_contrast(images, jitter(self.contrast_jitter))
        images = scaled_saturation(images, jitter(self.saturation_jitter))
        deviation = amounts(self.blur, *_BLUR, 0.0) * images.shape[2]
        # the dearest change: nothing is computed for those that it spares
        chosen = deviation > 0
        images[chosen] = blurred(images[chosen], deviation[chosen])
        return images


def moved(images: Tensor, angle: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Turn each image about its centre, and show `across` of its width and `down` of its height.

    angle: (n,) radians, clockwise; across, down: (n,), negative to flip. One interpolation does all
    three."""
    height, width = images.shape[2:]
    cosine, sine, aspect = torch.cos(angle), torch.sin(angle), width / height
    # a row gives where, in [-1, 1] across the old image, a place of the new one is found
    x = torch.stack([cosine * across, sine * across / aspect, torch.zeros_like(angle)], dim=1)
    y = torch.stack([-sine * down * aspect, cosine * down, torch.zeros_like(angle)], dim=1)
    grid = functional.affine_grid(
        torch.stack([x, y], dim=1), list(images.shape), align_corners=False
    )
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def scaled_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply all values of each image. factor: (n,), 1 for no change."""
    return (images * _per_image(factor)).clamp(0, 1)


def scaled_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image's distance from its mean grey. factor: (n,), 1 for no change."""
    mean = _grey(images).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_image(factor)).clamp(0, 1)


def scaled_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each pixel's distance from its grey. factor: (n,), 1 for no change, 0 for grey."""
    return torch.lerp(_grey(images), images, _per_image(factor)).clamp(0, 1)


def blurred(images: Tensor, deviation: Tensor) -> Tensor:
    """Blur each image. deviation: (n,) of the Gaussian, in pixels; 0 for no change."""
    radius = max(1, round(_BLUR_RADIUS * images.shape[2]))
    places = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (places / deviation.clamp_min(1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    for axis in (2, 3):
        edges = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = functional.pad(images, edges, mode="replicate")
        images = torch.zeros_like(images)
        for tap in range(2 * radius + 1):
            shifted = padded.narrow(axis, tap, images.shape[axis])
            images.addcmul_(shifted, _per_image(kernel[:, tap]))
    return images


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor(_GREY)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
