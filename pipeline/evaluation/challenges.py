"""The lecture's challenges: what makes recognition hard, each in five severities.

Every transform takes uint8 N x C x H x W pictures and gives as many; what is random in it follows
from the generator that it is given, so the same seed makes the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ..distortion import distort

SEVERITIES = 5
GREY = 0.5  # of what occludes: neither ink nor ground
PATCHES = 7  # patches of clutter along a side

Transform = Callable[[Tensor, float, Generator], Tensor]  # of float pictures in [0, 1]


@dataclass(frozen=True)
class Challenge:
    """One kind of difficulty; `levels` are its parameter at severity 1 to 5, `meaning` says of what
    in which unit.
    """

    name: str
    meaning: str
    levels: tuple[float, float, float, float, float]
    transform: Transform


def apply(challenge: Challenge, severity: int, pixels: Tensor, seed: int) -> Tensor:
    """The pictures at severity 1 to 5; 0 leaves them as they are."""
    if severity == 0:
        return pixels
    random = torch.Generator().manual_seed(seed * 1009 + 10 * _number(challenge) + severity)
    level = challenge.levels[severity - 1]
    changed = challenge.transform(pixels.float() / 255, level, random)
    return (changed * 255).round().clamp(0, 255).to(torch.uint8)


def _number(challenge: Challenge) -> int:
    return list(CHALLENGES).index(challenge.name)


def _uniform(count: int, random: Generator) -> Tensor:
    """From -1 to 1."""
    return torch.rand(count, generator=random) * 2 - 1


def _sign(count: int, random: Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=random) * 2.0 - 1


def _resampled(images: Tensor, matrices: Tensor) -> Tensor:
    """Through N x 3 x 3 projective matrices from places in the result to places in the picture,
    both from -1 to 1; outside of the picture there is nothing.
    """
    count, _, height, width = images.shape
    y, x = torch.meshgrid(
        (torch.arange(height) * 2 + 1) / height - 1,
        (torch.arange(width) * 2 + 1) / width - 1,
        indexing="ij",
    )
    places = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    found = matrices @ places  # N x 3 x HW
    grid = (found[:, :2] / found[:, 2:]).transpose(1, 2).reshape(count, height, width, 2)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def _viewpoint(images: Tensor, degrees: float, random: Generator) -> Tensor:
    """Turned by plus or minus the angle, and tilted: the far side is as much smaller as a plane is
    that is turned away by the angle, seen from three picture widths.
    """
    count = len(images)
    angle = _sign(count, random) * math.radians(degrees)
    tilt = _sign(count, random) * math.sin(math.radians(degrees)) / 3
    matrices = torch.zeros(count, 3, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
    matrices[:, 2, 0], matrices[:, 2, 2] = tilt, 1
    return _resampled(images, matrices)


def _scale(images: Tensor, factor: float, random: Generator) -> Tensor:
    """Smaller by the factor, or larger by it."""
    size = factor ** _sign(len(images), random)
    matrices = torch.eye(3).repeat(len(images), 1, 1)
    matrices[:, 0, 0] = matrices[:, 1, 1] = size
    return _resampled(images, matrices)


def _illumination(images: Tensor, part: float, random: Generator) -> Tensor:
    """Contrast lowered by the part, and so much light from one side, fading to the other."""
    count, _, height, width = images.shape
    angle = _uniform(count, random) * math.pi
    y = torch.linspace(-1, 1, height)[None, :, None] * angle.sin()[:, None, None]
    x = torch.linspace(-1, 1, width)[None, None, :] * angle.cos()[:, None, None]
    light = (1 + (x + y) / math.sqrt(2)) / 2  # from 0 to 1
    return images * (1 - part) + part * light[:, None]


def _deformation(images: Tensor, share: float, random: Generator) -> Tensor:
    """Bent by smooth random displacements, as in training, but stronger."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=random)))
        return distort(images, affine=0.0, elastic=share)


def _occlusion(images: Tensor, share: float, random: Generator) -> Tensor:
    """A grey square somewhere on the picture."""
    count, _, height, width = images.shape
    tall, wide = round(share * height), round(share * width)
    top = torch.randint(0, height - tall + 1, (count, 1, 1), generator=random)
    left = torch.randint(0, width - wide + 1, (count, 1, 1), generator=random)
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    covered = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    return torch.where(covered[:, None], GREY, images)


def _clutter(images: Tensor, most: float, random: Generator) -> Tensor:
    """Patches of random brightness behind the picture, which is seen where it is brighter."""
    count, channels, height, width = images.shape
    patches = torch.rand(count, channels, PATCHES, PATCHES, generator=random) * most
    ground = nn.functional.interpolate(patches, (height, width), mode="bilinear")
    return torch.maximum(images, ground)


CHALLENGES = {
    challenge.name: challenge
    for challenge in (
        Challenge("viewpoint", "turned and tilted by degrees", (8, 16, 24, 32, 40), _viewpoint),
        Challenge("scale", "smaller or larger by the factor", (1.15, 1.3, 1.5, 1.75, 2), _scale),
        Challenge(
            "illumination",
            "part of the light from one side",
            (0.2, 0.4, 0.55, 0.7, 0.8),
            _illumination,
        ),
        Challenge(
            "deformation",
            "displacement, RMS, part of the side",
            (0.02, 0.03, 0.045, 0.06, 0.08),
            _deformation,
        ),
        Challenge("occlusion", "covered part of the side", (0.2, 0.3, 0.4, 0.5, 0.6), _occlusion),
        Challenge("clutter", "brightest patch behind", (0.2, 0.4, 0.6, 0.8, 1.0), _clutter),
    )
}
