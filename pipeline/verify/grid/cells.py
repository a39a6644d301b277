"""The cells of the semantics grid: one layer each, over what Conv2d, MaxPool2d ... can be told."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...precisions import USUAL

SHAPE = (4, 7, 10)  # C x H x W: no two sizes equal, one odd and one even
OTHER_SHAPE = (3, 11, 6)
OUT_CHANNELS = {1: 5, 2: 6, 3: 3, 4: 8}  # by groups: 3 and 4 are depthwise, 4 with two filters each

OPERATORS: dict[str, type[nn.Module]] = {
    "conv": nn.Conv2d,
    "max-pool": nn.MaxPool2d,
    "avg-pool": nn.AvgPool2d,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Cell:
    """One layer with its arguments, in one precision, on inputs of C x H x W `shape`.

    `kwargs` are those of the operator's module, sorted; a convolution may also have `pad`, the
    (left, right, top, bottom) of an F.pad before it, in the convolution's own `padding_mode`.
    """

    operator: str
    kwargs: tuple[tuple[str, Any], ...]
    shape: tuple[int, int, int]
    precision: str

    @property
    def name(self) -> str:
        """Such as "conv kernel_size=3x2 padding=same int8"."""
        words = (f"{key}={_text(value)}" for key, value in self.kwargs)
        size = () if self.shape == SHAPE else (_text(self.shape),)
        return " ".join((self.operator, *words, *size, self.precision))

    @property
    def options(self) -> dict[str, Any]:
        """The arguments by name."""
        return dict(self.kwargs)


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def cell(
    operator: str,
    kwargs: dict[str, Any] | None = None,
    shape: tuple[int, int, int] = SHAPE,
    precision: str = "fp32",
) -> Cell:
    """A cell, its arguments in the order of their names."""
    return Cell(operator, tuple(sorted((kwargs or {}).items())), shape, precision)


class PaddedConv(nn.Module):
    """F.pad in any mode, and then a convolution without padding of its own."""

    def __init__(self, conv: nn.Conv2d, pad: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.pad = conv, pad
        self.mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    def forward(self, images: Tensor) -> Tensor:
        """N x C x H x W."""
        return self.conv(nn.functional.pad(images, self.pad, self.mode))  # type: ignore[no-any-return]


def module_of(cell: Cell) -> nn.Module:
    """The cell's module in evaluation mode; a convolution's weights follow from its arguments.

    Raises as the module's own constructor does where arguments do not go together.
    """
    options = cell.options
    if cell.operator != "conv":
        return OPERATORS[cell.operator](**options).eval()
    pad = options.pop("pad", None)
    channels = (cell.shape[0], OUT_CHANNELS[options.get("groups", 1)])
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(repr((cell.kwargs, cell.shape)).encode()))
        conv = nn.Conv2d(*channels, **options)
    return (PaddedConv(conv, pad) if pad else conv).eval()


def outputs_of(cell: Cell) -> int:
    """How many outputs the cell has: values, and indices where they are asked for."""
    return 2 if cell.options.get("return_indices") else 1


def is_valid(cell: Cell) -> bool:
    """Whether PyTorch itself takes these arguments on this shape."""
    try:
        module_of(cell)(torch.zeros(1, *cell.shape))
    except (ValueError, RuntimeError):
        return False
    return True


def _conv(kernel_size: Any, **kwargs: Any) -> dict[str, Any]:
    return {"kernel_size": kernel_size, **kwargs}


# The core: what each argument does alone, and the combinations in which runtimes are known to err.
CONVOLUTIONS = (
    *(_conv(k) for k in (1, 2, (1, 5), (5, 1), (3, 2), (2, 3), (7, 10))),
    *(_conv(3, bias=False, stride=s) for s in (1, (2, 1))),
    *(_conv((3, 2), stride=s) for s in (2, (1, 3), (4, 5))),
    *(_conv(3, padding=p) for p in (1, (2, 1), (0, 1), "same", "valid")),
    *(_conv(k, padding="same") for k in (2, (2, 3), (1, 4), (5, 2))),
    *(_conv(k, padding="same", dilation=d) for k, d in ((3, 2), (2, (2, 1)), ((3, 2), (1, 3)))),
    *(_conv(3, padding=(2, 1), stride=s) for s in (2, (1, 2), (3, 1))),
    *(_conv((2, 3), dilation=(2, 1), padding=(1, 2), stride=s) for s in (1, (1, 2))),
    _conv(3, dilation=(1, 3)),
    *(_conv((3, 2), groups=g, padding=1, stride=(2, 1)) for g in (2, 4)),
    *(_conv(3, groups=4, bias=False, padding=p) for p in ((2, 1), "same")),
    *(_conv(3, groups=g, dilation=(2, 1), padding=2) for g in (2, 4)),
    *(_conv(2, groups=g, padding="same") for g in (2, 4)),
    _conv(1, groups=2, bias=False),
    *(_conv(3, pad=pad) for pad in ((1, 0, 0, 0), (1, 2, 2, 1))),
    _conv((2, 3), pad=(0, 1, 1, 0), stride=(2, 1)),
    *(
        _conv(3, padding_mode=mode, padding=padding)
        for mode in ("reflect", "replicate", "circular")
        for padding in ((2, 1), "same")
    ),
    _conv((3, 2), padding_mode="reflect", pad=(1, 0, 2, 1)),
    _conv((3, 2), padding_mode="circular", padding=(2, 1), stride=(2, 1), groups=2),
    _conv((3, 2), padding_mode="replicate", padding=(2, 1), stride=(1, 2), groups=4),
)
MAX_POOLS: tuple[dict[str, Any], ...] = (
    *({"kernel_size": k} for k in (2, 3, (1, 2), (3, 2))),
    *({"kernel_size": 2, "stride": s} for s in (1, (2, 1), (1, 3), 3)),
    *({"kernel_size": 3, "stride": 2, "padding": p} for p in (1, (1, 0), (0, 1))),
    {"kernel_size": (2, 3), "padding": 1},
    *({"kernel_size": k, "ceil_mode": True} for k in (2, (3, 4))),
    *({"kernel_size": 3, "stride": s, "ceil_mode": True} for s in (2, (2, 3))),
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": (3, 4), "padding": (1, 1), "ceil_mode": True},
    *({"kernel_size": 2, "stride": 1, "dilation": d} for d in (2, (1, 3))),
    {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1},
    {"kernel_size": (2, 3), "dilation": (2, 1), "ceil_mode": True},
    *({"kernel_size": 2, "return_indices": True, **more} for more in ({}, {"ceil_mode": True})),
)
AVERAGE_POOLS: tuple[dict[str, Any], ...] = (
    *({"kernel_size": k} for k in (2, 3, (1, 2), (3, 2))),
    *({"kernel_size": 2, "stride": s} for s in (1, (2, 1), (1, 3), 3)),
    *({"kernel_size": 2, "divisor_override": d} for d in (3, 4)),
    *({"kernel_size": k, "ceil_mode": True} for k in (2, (3, 4))),
    {"kernel_size": (3, 1), "stride": (2, 4), "ceil_mode": True},
    *(
        {"kernel_size": 3, "stride": 2, "padding": p, "ceil_mode": c, "count_include_pad": i}
        for p, c in ((1, False), ((1, 0), False), (1, True))
        for i in (False, True)
    ),
    *(
        {"kernel_size": (2, 3), "stride": (3, 2), "padding": 1, "ceil_mode": c, **more}
        for c in (False, True)
        for more in ({}, {"divisor_override": 5})
    ),
)
ACTIVATIONS = ("relu", "sigmoid", "tanh")
ON_THE_OTHER_SHAPE: list[tuple[str, dict[str, Any]]] = [
    ("conv", _conv((3, 2), padding=(2, 1), stride=(2, 1))),
    ("conv", _conv(2, padding="same")),
    ("conv", _conv(3, groups=3, padding=1, bias=False)),
    ("conv", _conv(11, padding=5)),
    ("max-pool", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("avg-pool", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
]

# --full: every combination that PyTorch takes.
CONV_AXES: dict[str, Sequence[Any]] = {
    "kernel_size": ((1, 1), (2, 2), (3, 3), (3, 2), (1, 4), (5, 1)),
    "stride": ((1, 1), (2, 1), (1, 3)),
    "padding": (0, 1, (2, 1), "same", "valid"),
    "pad": (None, (1, 0, 2, 1)),
    "dilation": ((1, 1), (2, 1)),
    "groups": (1, 2, 4),
    "bias": (True, False),
    "padding_mode": ("zeros", "reflect", "replicate", "circular"),
}
MAX_POOL_AXES: dict[str, Sequence[Any]] = {
    "kernel_size": ((2, 2), (3, 3), (2, 3), (3, 1)),
    "stride": (None, (1, 1), (2, 2), (3, 2), (1, 2)),
    "padding": (0, 1, (1, 0), (0, 1)),
    "dilation": ((1, 1), (2, 1), (1, 2)),
    "ceil_mode": (False, True),
    "return_indices": (False, True),
}
AVERAGE_POOL_AXES: dict[str, Sequence[Any]] = {
    "kernel_size": ((2, 2), (3, 3), (2, 3), (3, 1)),
    "stride": (None, (1, 1), (2, 2), (3, 2), (1, 2)),
    "padding": (0, 1, (1, 0), (0, 1)),
    "ceil_mode": (False, True),
    "count_include_pad": (False, True),
    "divisor_override": (None, 5),
}


def core_cells() -> list[Cell]:
    """The hand-picked core in both precisions."""
    tables: dict[str, Sequence[dict[str, Any]]] = {
        "conv": CONVOLUTIONS,
        "max-pool": MAX_POOLS,
        "avg-pool": AVERAGE_POOLS,
        **dict.fromkeys(ACTIVATIONS, ({},)),
    }
    here = [(operator, kwargs) for operator, table in tables.items() for kwargs in table]
    return [
        cell(operator, kwargs, shape, precision)
        for precision in USUAL
        for shape, table in ((SHAPE, here), (OTHER_SHAPE, ON_THE_OTHER_SHAPE))
        for operator, kwargs in table
    ]


def full_cells() -> Iterator[Cell]:
    """The whole product of the tables in both precisions, where PyTorch takes it."""
    axes = {"conv": CONV_AXES, "max-pool": MAX_POOL_AXES, "avg-pool": AVERAGE_POOL_AXES}
    layers: list[tuple[str, dict[str, Any]]] = [(operator, {}) for operator in ACTIVATIONS]
    for operator, table in axes.items():
        for values in itertools.product(*table.values()):
            kwargs = {k: v for k, v in zip(table, values, strict=True) if v is not None}
            says_something = operator != "conv" or _says_something(kwargs)
            if says_something and is_valid(cell(operator, kwargs)):
                layers.append((operator, kwargs))
    for precision in USUAL:
        for operator, kwargs in layers:
            yield cell(operator, kwargs, SHAPE, precision)


def _says_something(conv: dict[str, Any]) -> bool:
    """A padding mode needs padding, and F.pad stands before a convolution without any."""
    pads = "pad" in conv
    return not (pads and conv["padding"] != 0) and (
        conv["padding_mode"] == "zeros" or pads or conv["padding"] not in (0, "valid")
    )
