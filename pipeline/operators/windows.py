"""Conv, QLinearConv and the pools, of images N x C x H x W."""

from __future__ import annotations

import numpy as np

from .. import convolution
from ..convolution import NO_PADS, Array, Pads, Window
from ..graph import Pair
from .call import Call, Ints, per_channel
from .types import saturated


def _pair(values: Ints) -> Pair:
    first, second = values or (1, 1)
    return first, second


def _window(
    x: Array,
    kernel: Ints,
    auto_pad: str,
    dilations: Ints,
    pads: Ints,
    strides: Ints,
    ceil_mode: bool = False,
) -> Window:
    """The window of Conv and the pools, with auto_pad resolved by ONNX's formula for pad_shape."""
    if x.ndim != 4 or len(kernel) != 2:
        raise ValueError(
            f"kernel {list(kernel)} on {x.shape}: only images, N x C x H x W, are supported"
        )
    if auto_pad not in {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"}:
        raise ValueError(f"auto_pad {auto_pad} is not supported")
    if auto_pad != "NOTSET" and (any(pads) or ceil_mode):
        # The standard forbids the one, and gives two different sizes for the other.
        raise ValueError(f"auto_pad {auto_pad} together with pads or ceil_mode")
    size, stride, dilation = _pair(kernel), _pair(strides), _pair(dilations)
    top, left, bottom, right = pads or NO_PADS
    window = Window(size, stride, (top, left, bottom, right), dilation, ceil_mode)
    if not auto_pad.startswith("SAME"):
        return window
    rows, columns = (
        max(0, (-(-n // s) - 1) * s + reach - n)
        for n, s, reach in zip(x.shape[2:], stride, window.reach, strict=True)
    )
    odd_first = auto_pad == "SAME_LOWER"
    top, left = (rows + odd_first) // 2, (columns + odd_first) // 2
    same: Pads = (top, left, rows - top, columns - left)
    return Window(size, stride, same, dilation)


def _conv(
    x: Array,
    w: Array,
    bias: Array | None,
    auto_pad: str,
    group: int,
    dilations: Ints,
    kernel_shape: Ints,
    pads: Ints,
    strides: Ints,
) -> Array:
    kernel = w.shape[2:]
    if tuple(kernel_shape or kernel) != kernel:
        raise ValueError(f"kernel_shape {list(kernel_shape)} but weights of shape {w.shape}")
    window = _window(x, kernel, auto_pad, dilations, pads, strides)
    y = convolution.cross_correlate_unrolled(
        x, w, window.stride, window.pads, window.dilation, group
    )
    if bias is not None:
        y += per_channel(bias, len(w))
    return y


def conv(
    call: Call,
    *,
    auto_pad: str,
    group: int,
    dilations: Ints = (),
    kernel_shape: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> list[Array]:
    """Cross-correlation, and a bias per output channel."""
    x, w, bias = call[0], call[1], call.optional(2)
    return [_conv(x, w, bias, auto_pad, group, dilations, kernel_shape, pads, strides)]


def q_linear_conv(
    call: Call,
    *,
    auto_pad: str,
    group: int,
    dilations: Ints = (),
    kernel_shape: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> list[Array]:
    """Exact sums of integers, then one rounding: half to even of float64, saturated.

    float64 holds the sums exactly, because none comes near 2**53, and has BLAS.
    """
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (call[i] for i in range(8))
    for value in (x_scale, x_zero, y_scale, y_zero):
        if value.shape != ():
            raise ValueError(f"scale or zero point of shape {value.shape}, expected a scalar")
    scale, zero = (
        per_channel(v if v.ndim else np.full(len(w), v), len(w)).astype(np.float64)
        for v in (w_scale, w_zero)
    )
    bias = call.optional(8)
    sums = _conv(
        x - x_zero.astype(np.float64),
        w - zero[..., None],
        None if bias is None else bias.astype(np.float64),
        auto_pad,
        group,
        dilations,
        kernel_shape,
        pads,
        strides,
    )
    real = sums * (x_scale.astype(np.float64) * scale / y_scale.astype(np.float64))
    return [saturated(np.rint(real) + y_zero.astype(np.float64), y_zero.dtype)]


def _pooled(
    call: Call,
    auto_pad: str,
    ceil_mode: int,
    dilations: Ints,
    kernel_shape: Ints,
    pads: Ints,
    strides: Ints,
    *,
    count_include_pad: bool = False,
) -> Window:
    """The window of a pool. Raises ValueError where the standard leaves the result open."""
    x = call[0]
    window = _window(x, kernel_shape, auto_pad, dilations, pads, strides, bool(ceil_mode))
    image = (x.shape[2], x.shape[3])
    if ceil_mode and call.opset < 22:
        padded = (n + sum(window.pads[axis::2]) for axis, n in enumerate(image))
        every = tuple(
            -((reach - n) // s) + 1
            for n, s, reach in zip(padded, window.stride, window.reach, strict=True)
        )
        if window.sizes(image) != every:
            raise ValueError(
                f"ceil_mode before opset 22 keeps a last window that begins in the padding "
                f"({every} windows), and no runtime does"
            )
    if not convolution.window_counts(image, window, count_include_pad=count_include_pad).all():
        raise ValueError("a window lies wholly in the padding: it has no value")
    return window


def max_pool(
    call: Call,
    *,
    auto_pad: str,
    ceil_mode: int,
    kernel_shape: Ints,
    storage_order: int,
    dilations: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> list[Array]:
    """The second output is where each maximum lies in the flattened input."""
    x = call[0]
    window = _pooled(call, auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    y = convolution.max_pool(x, window)
    if call.outputs == 1:
        return [y]
    row, column = convolution.argmax_pool(x, y, window)
    n, c, h, w = x.shape
    place = column * h + row if storage_order else row * w + column
    return [y, np.arange(n * c).reshape(n, c, 1, 1) * (h * w) + place]


def average_pool(
    call: Call,
    *,
    auto_pad: str,
    ceil_mode: int,
    count_include_pad: int,
    kernel_shape: Ints,
    dilations: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> list[Array]:
    """The mean of each window, with or without its padding."""
    if call.opset < 19 and auto_pad != "NOTSET":
        raise ValueError(f"auto_pad {auto_pad} before opset 19 has other sizes")
    include = bool(count_include_pad)
    window = _pooled(
        call,
        auto_pad,
        ceil_mode,
        dilations,
        kernel_shape,
        pads,
        strides,
        count_include_pad=include,
    )
    return [convolution.average_pool(call[0], window, count_include_pad=include)]


def global_average_pool(call: Call) -> list[Array]:
    """The mean of each channel of each image."""
    x = call[0]
    if x.ndim < 3:
        raise ValueError(f"input of shape {x.shape} has no axes to average over")
    return [x.mean(tuple(range(2, x.ndim)), keepdims=True)]
