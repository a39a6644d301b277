"""What is fed to every layer: real images, and made ones that real images never resemble."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Dataset

MADE = 16  # images of each random kind


@dataclass(frozen=True)
class Case:
    """`pixels` uint8 N x C x H x W."""

    name: str
    pixels: Tensor


def cases_for(dataset: Dataset, images: int, seed: int) -> list[Case]:
    """The first `images` test images, and made ones that follow from the seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (MADE, *dataset.test.images.shape[1:])
    random = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    saturated = torch.randint(0, 2, shape, dtype=torch.uint8, generator=generator) * 255
    constant = torch.stack([torch.full(shape[1:], v, dtype=torch.uint8) for v in (0, 1, 128, 255)])
    return [
        Case("test images", dataset.test.images[:images]),
        Case("uniformly random", random),
        Case("saturated: 0 or 255", saturated),
        Case("constant: 0, 1, 128, 255", constant),
    ]
