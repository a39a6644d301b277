"""The mathematics of the lecture in NumPy: cross-correlation, convolution and pooling of images.

Images are N x C x H x W and kernels M x C/groups x rows x columns, in float64, float32 or int64;
results have the dtype of the input, and int64 is exact. Pairs are (rows, columns) and pads are
(top, left, bottom, right), as torch.nn.Conv2d and ONNX have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .graph import Pair, output_size_between, pooled_up_size, same_padding

Array = npt.NDArray[Any]
Pads = tuple[int, int, int, int]
NO_PADS = (0, 0, 0, 0)
BLOCK = 2**20  # elements unrolled at a time: 8 MB of float64, near enough to the caches


@dataclass(frozen=True)
class Window:
    """What slides over an image. Raises ValueError for a size, stride or dilation below 1."""

    kernel: Pair
    stride: Pair = (1, 1)
    pads: Pads = NO_PADS
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        pairs = (self.kernel, self.stride, self.dilation)
        if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
            raise ValueError(f"kernel, stride and dilation {pairs} are not two positive numbers")
        if len(self.pads) != 4 or min(self.pads) < 0:
            raise ValueError(f"pads {self.pads} are not four numbers of 0 or more")

    @property
    def reach(self) -> Pair:
        """Rows and columns from the first tap to the last: d(k - 1) + 1."""
        (k, m), (d, e) = self.kernel, self.dilation
        return d * (k - 1) + 1, e * (m - 1) + 1

    def sizes(self, image: Pair) -> Pair:
        """Rows and columns of the output. Raises ValueError where the window does not fit."""
        rule = pooled_up_size if self.ceil_mode else output_size_between
        rows, columns = (
            rule(n, k, s, pads, d)
            for n, k, s, pads, d in zip(
                image,
                self.kernel,
                self.stride,
                (self.pads[::2], self.pads[1::2]),
                self.dilation,
                strict=True,
            )
        )
        if min(rows, columns) < 1:
            raise ValueError(f"kernel {self.kernel} is larger than its padded input")
        return rows, columns

    def padded(self, x: Array, value: float | int = 0) -> Array:
        """`x` with its padding, and what a last window of ceil_mode reaches beyond it."""
        after = [
            max(self.pads[a + 2], (size - 1) * self.stride[a] + self.reach[a] - n - self.pads[a])
            for a, (n, size) in enumerate(zip(x.shape[2:], self.sizes(_image(x)), strict=True))
        ]
        return pad(x, (self.pads[0], self.pads[1], after[0], after[1]), value)

    def positions(self, image: Pair, axis: int) -> Array:
        """Output size x kernel: where each tap of each window lies in the input, along one axis.

        Below 0 and from the input's size on it lies in the padding.
        """
        starts = np.arange(self.sizes(image)[axis]) * self.stride[axis] - self.pads[axis]
        return starts[:, None] + np.arange(self.kernel[axis]) * self.dilation[axis]


def pad(x: Array, pads: Pads, value: float | int = 0) -> Array:
    """`x` with rows and columns of `value` around it."""
    if not any(pads):
        return x
    top, left, bottom, right = pads
    n, c, h, w = x.shape
    padded = np.full((n, c, top + h + bottom, left + w + right), value, x.dtype)
    padded[:, :, top : top + h, left : left + w] = x
    return padded


def same_pads(kernel: Pair, dilation: Pair = (1, 1)) -> Pads:
    """Pads that keep the size at stride 1; of an even kernel's, the odd row and column first."""
    top, bottom = same_padding(dilation[0] * (kernel[0] - 1) + 1)
    left, right = same_padding(dilation[1] * (kernel[1] - 1) + 1)
    return top, left, bottom, right


def full_pads(kernel: Pair) -> Pads:
    """Pads of k - 1 on every side: each position where kernel and image meet at all."""
    rows, columns = kernel[0] - 1, kernel[1] - 1
    return rows, columns, rows, columns


def cross_correlate(
    x: Array,
    w: Array,
    stride: Pair = (1, 1),
    pads: Pads = NO_PADS,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Cross-correlation from its definition, N x M x rows x columns.

    y[n,m,r,c] = sum over k,i,j of w[m,k,i,j] x[n,k, r s + i d, c s + j d], with x padded by zeros
    and k running over the channels of m's group. ("Convolution" in deep learning and in ONNX.)
    Raises ValueError for shapes that do not fit and TypeError for dtypes, see `_split`.
    """
    weights = _split(x, w, groups)
    window = Window(_image(w), stride, pads, dilation)
    y = np.zeros((len(x), *weights.shape[:2], *window.sizes(_image(x))), x.dtype)
    for (i, j), seen in _taps(x, window):
        by_group = seen.reshape(len(x), groups, w.shape[1], *seen.shape[2:])
        y += np.einsum("gmk,ngkrc->ngmrc", weights[:, :, :, i, j], by_group)
    return y.reshape(len(x), len(w), *y.shape[3:])


def cross_correlate_unrolled(
    x: Array,
    w: Array,
    stride: Pair = (1, 1),
    pads: Pads = NO_PADS,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """`cross_correlate` as a matrix product (im2col): each window is unrolled to a column.

    The same arguments and errors; equal exactly for int64, up to the order of summation in floats.
    """
    weights = _split(x, w, groups)
    window = Window(_image(w), stride, pads, dilation)
    rows, columns = window.sizes(_image(x))
    matrix = weights.reshape(groups, len(w) // groups, -1)
    y = np.empty((len(x), *matrix.shape[:2], rows * columns), x.dtype)
    seen = np.lib.stride_tricks.sliding_window_view(window.padded(x), window.reach, (2, 3))
    seen = seen[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    seen = seen[:, :, :rows, :columns].transpose(0, 1, 4, 5, 2, 3)  # n, channel, tap, position
    images = max(1, BLOCK // max(1, seen[:1].size))
    for start in range(0, len(x), images):
        part = slice(start, start + images)
        unrolled = seen[part].reshape(len(seen[part]), groups, matrix.shape[2], rows * columns)
        np.matmul(matrix, unrolled, out=y[part])
    return y.reshape(len(x), len(w), rows, columns)


def convolve(
    x: Array,
    w: Array,
    stride: Pair = (1, 1),
    pads: Pads = NO_PADS,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """True convolution: cross-correlation with the kernel flipped in both axes."""
    return cross_correlate(x, w[:, :, ::-1, ::-1], stride, pads, dilation, groups)


def compose(g1: Array, g2: Array) -> Array:
    """The one kernel that does what g1 (M1 x C) and then g2 (M2 x M1) do: M2 x C, sizes added - 1.

    (f * g1) * g2 == f * (g1 * g2), at stride 1 and without padding between the two. It holds for
    cross-correlation too, because flipping both kernels flips the composed one.
    """
    composed = convolve(g1.transpose(1, 0, 2, 3), g2, pads=full_pads(_image(g2)))
    return composed.transpose(1, 0, 2, 3)


def max_pool(x: Array, window: Window) -> Array:
    """The largest value of each window. Padding is -inf, or the smallest integer of the dtype."""
    smallest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    y = np.full((*x.shape[:2], *window.sizes(_image(x))), smallest, x.dtype)
    for _, seen in _taps(x, window, smallest):
        np.maximum(y, seen, out=y)
    return y


def argmax_pool(x: Array, y: Array, window: Window) -> tuple[Array, Array]:
    """The row and the column in `x` of each value of `y`, its max_pool: the first in reading order.

    int64 in the shape of `y`; -1 where a window lies wholly in the padding.
    """
    image = _image(x)
    rows, columns = window.positions(image, 0), window.positions(image, 1)
    row, column = np.full(y.shape, -1), np.full(y.shape, -1)
    for (i, j), seen in reversed(list(_taps(x, window))):
        inside = _inside(rows[:, i, None], image[0]) & _inside(columns[:, j], image[1])
        found = inside & ((seen == y) | np.isnan(seen))  # a NaN is the largest of its window
        row = np.where(found, rows[:, i, None], row)
        column = np.where(found, columns[:, j], column)
    return row, column


def sum_pool(x: Array, window: Window) -> Array:
    """The sum of each window; padding counts nothing."""
    y = np.zeros((*x.shape[:2], *window.sizes(_image(x))), x.dtype)
    for _, seen in _taps(x, window):
        y += seen
    return y


def window_counts(image: Pair, window: Window, *, count_include_pad: bool = False) -> Array:
    """How many elements each window holds, int64 rows x columns; with or without the padding.

    What a last window of ceil_mode reaches beyond the padding never counts.
    """
    held = []
    for axis in range(2):
        before, after = window.pads[axis::2] if count_include_pad else (0, 0)
        positions = window.positions(image, axis) + before
        held.append(_inside(positions, before + image[axis] + after).sum(1))
    return np.outer(held[0], held[1])


def average_pool(x: Array, window: Window, *, count_include_pad: bool = False) -> Array:
    """The mean of each window, float64 for integers. NaN where a window holds no element."""
    counts = window_counts(_image(x), window, count_include_pad=count_include_pad)
    with np.errstate(invalid="ignore"):
        mean: Array = sum_pool(x, window) / counts.astype(x.dtype if x.dtype.kind == "f" else int)
    return mean


def _image(x: Array) -> Pair:
    """Rows and columns. Raises ValueError for what has not four axes."""
    _, _, rows, columns = x.shape
    return rows, columns


def _inside(positions: Array, size: int) -> Array:
    return np.asarray((positions >= 0) & (positions < size))


def _split(x: Array, w: Array, groups: int) -> Array:
    """The weights by group: groups x M/groups x C/groups x rows x columns.

    Raises ValueError where channels and groups do not fit, and TypeError for two dtypes or for
    integers narrower than int64: their sums would overflow in silence.
    """
    if x.dtype != w.dtype or (x.dtype.kind != "f" and x.dtype != np.int64):
        raise TypeError(f"cross-correlation of {x.dtype} and {w.dtype}: give floats or int64")
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"input {x.shape} and weights {w.shape}: only images, of four axes each")
    if groups < 1 or x.shape[1] != groups * w.shape[1] or len(w) % groups:
        raise ValueError(f"input {x.shape} and weights {w.shape} do not fit for {groups} groups")
    return w.reshape(groups, len(w) // groups, *w.shape[1:])


def _taps(
    x: Array, window: Window, value: float | int = 0
) -> Iterator[tuple[tuple[int, int], Array]]:
    """Each tap (row, column) of the kernel, and what it meets in every window, a view."""
    (rows, columns), (down, across) = window.sizes(_image(x)), window.stride
    padded = window.padded(x, value)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            top, left = i * window.dilation[0], j * window.dilation[1]
            yield (
                (i, j),
                padded[
                    :,
                    :,
                    top : top + (rows - 1) * down + 1 : down,
                    left : left + (columns - 1) * across + 1 : across,
                ],
            )
