"""Layers that a runtime computes as one, so that only the last one's value is ever there.

Generated C pools a convolution's sums before they are requantized. The convolution's own value is
nowhere, and both are judged together: by what the pooling makes of what the convolution must have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ..errors import BadInput
from ..reference import compute
from .layers import Layer, Network
from .rounding import Exact, exact_of

Array = npt.NDArray[Any]

LINKS = ("QuantizeLinear", "DequantizeLinear")
CAN_BE = "in int8 only a convolution or linear layer and a max pooling of its integers can be"


def merged(network: Network, present: Collection[str]) -> dict[str, Layer]:
    """By the name of the last one, the layers that end at a value that is `present` and hold others
    whose values are not. Raises BadInput where a value is missing that cannot be judged so.
    """
    found: dict[str, Layer] = {}
    hidden: dict[str, Layer] = {}  # by name, with all that is hidden before it
    for layer in network.layers:
        before = [hidden[name] for name in layer.inputs if name in hidden]
        if before and len(layer.inputs) > 1:
            raise BadInput(f"{before[0].name} has no value of its own, and meets others")
        whole = _joined(before[0], layer) if before else layer
        if layer.value in present:
            if before:
                found[layer.name] = whole
        else:
            hidden[layer.name] = whole
    ends = [part.name for layer in found.values() for part in layer.merged[:-1]]
    for name in hidden:
        if ends.count(name) != 1:
            raise BadInput(f"{name} is not mapped: no value of the file is its own")
    return found


def _joined(first: Layer, last: Layer) -> Layer:
    return replace(
        last,
        kind=f"{first.kind} + {last.kind}",
        inputs=first.inputs,
        nodes=(*first.nodes, *last.nodes),
        merged=(*(first.merged or (first,)), last),
    )


def exact_of_merged(layer: Layer, network: Network, given: Mapping[str, Array]) -> Exact:
    """What is known of int8 layers computed as one: the first is computed as any layer is, each
    rounding scheme gives it integers, and the others only pick some of them.

    Raises BadInput for other layers than max poolings after a convolution or linear layer.
    """
    first, *others = layer.merged
    poolings = [_pooling(one, first, network) for one in others]
    exact = exact_of(first, network, given)
    if exact.accumulator is None:
        raise BadInput(f"{first.name} and {others[0].name} are computed as one", CAN_BE)

    def pick(values: Array) -> Array:
        values = values.astype(np.float64)
        for node in poolings:
            values = np.asarray(compute(node, [values], network.opset)[0])
        return values

    reach = np.broadcast_to(exact.reach, exact.real.shape)
    return replace(exact, real=pick(exact.real), reach=pick(reach), pick=pick)


def _pooling(layer: Layer, before: Layer, network: Network) -> onnx.NodeProto:
    """The one node of a max pooling that keeps its input's integers."""
    pools = [node for node in layer.nodes if node.op_type == "MaxPool"]
    links = [node for node in layer.nodes if node.op_type in LINKS]
    scales = {tuple(network.constants[name].tobytes() for name in n.input[1:]) for n in links}
    same = layer.quantization == before.quantization and len(scales) == 1
    if len(pools) != 1 or len(pools) + len(links) < len(layer.nodes) or not same:
        raise BadInput(f"{before.name} and {layer.name} are computed as one", CAN_BE)
    return pools[0]


def head(layer: Layer) -> Layer:
    """The layer that is fed when this one is."""
    return layer.merged[0] if layer.merged else layer
