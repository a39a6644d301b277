"""Random distortion of a batch of training images, affine and elastic in one resampling."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

# Chosen on MNIST by validation accuracy. Each image draws its own, evenly from minus to plus these.
ANGLE = 8  # degrees
SCALE = 0.1  # of the size, in x and y by itself
SHEAR = 0.1  # pixels sideways a row
SHIFT = 0.04  # of the side
# Simard, Steinkraus and Platt 2003: a random displacement of each pixel, made smooth by a Gaussian.
ELASTIC = 0.021  # root mean square, of the side: 0.6 of 28 pixels
KNOTS = 6  # random vectors along a side; the Gaussian is as wide as they are apart


def distort(
    images: Tensor, affine: float | Tensor = 1.0, elastic: float | Tensor = ELASTIC
) -> Tensor:
    """Float N x C x H x W images turned, scaled, sheared, moved and bent at random.

    The whole batch at once, with numbers from torch's generator of the images' device. `affine`
    multiplies all amounts but `elastic`. What comes in from outside is 0.
    """
    count, _, height, width = images.shape
    device = images.device
    draws = (torch.rand(6, count, device=device) * 2 - 1) * affine
    angle, shear, wide, tall = draws[0] * math.radians(ANGLE), draws[1] * SHEAR, *draws[2:4] * SCALE
    cosine, sine = angle.cos(), angle.sin()
    wide, tall, shift = 1 + wide, 1 + tall, draws[4:] * 2 * SHIFT
    bend = torch.randn(2, count, KNOTS * KNOTS, device=device) * 2 * elastic
    # Where the output's pixel takes its value from, with the image from -1 to 1 both ways: a matrix
    # for (x, y, 1), turning in pixels where the image is not square, and a sum of smooth bumps.
    aspect = height / width
    from_x = [wide * cosine, (shear * cosine - tall * sine) * aspect, shift[0]]
    from_y = [wide * sine / aspect, shear * sine + tall * cosine, shift[1]]
    rows = [
        torch.cat([torch.stack(matrix, 1), bumps], 1)
        for matrix, bumps in ((from_x, bend[0]), (from_y, bend[1]))
    ]
    grid = torch.stack(rows, 1) @ _positions(height, width, device)  # N x 2 x HW
    grid = grid.view(count, 2, height, width).permute(0, 2, 3, 1)
    return nn.functional.grid_sample(images, grid, align_corners=False)


@functools.cache
def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """(3 + KNOTS²) x HW: of each pixel x, y, 1 and the weight of each random vector."""
    (y, down), (x, across) = (_along(size, device) for size in (height, width))
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).flatten(1)
    weights = torch.einsum("hi,wj->ijhw", down, across).flatten(2).flatten(0, 1)
    return torch.cat([places, torch.ones_like(places[:1]), weights])


def _along(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Middles of `size` pixels from -1 to 1, and size x KNOTS weights of knots, squares summing
    to 1: so the displacement varies as much at the border as in the middle.
    """
    places = (torch.arange(size, device=device) * 2 + 1) / size - 1
    knots = (torch.arange(KNOTS, device=device) * 2 + 1) / KNOTS - 1
    weights = torch.exp(-(((places[:, None] - knots) * KNOTS / 2) ** 2) / 2)
    return places, nn.functional.normalize(weights, dim=1)
