"""Programs between float and int8: some layers in float, or all but one.

The weights and the arithmetic of a layer in float are float32, and so is its value where it is the
program's output, or goes to such layers only. Any other value stays int8, the image among them,
whose bytes int8 holds exactly. Layers are named as `program.tap_nodes` names them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor, fx

from ..data import Split
from ..errors import VerificationFailed
from ..program import (
    MERGED,
    TRANSPARENT,
    accuracy,
    aten,
    decomposed,
    is_dequantize,
    is_quantize,
    layer_nodes,
    tap_nodes,
)
from .measure import OnStep, measured, rank

Tried = list[dict[str, Any]]
SETS = 35  # of layers in float that are tried, of each size: 7 layers have no more

# Where these are given int8 values, their own are among them: int8 is exact, and converters make it
# of them whatever is wanted. A ReLU that stands alone is one.
PICKING = {aten.max_pool2d.default, aten.relu.default, aten.relu_.default, aten.cat.default}


def layers(
    int8: fx.GraphModule, wanted: Tensor, data: Split, on_step: OnStep = lambda _: None
) -> Tried:
    """What `measured` tells of each layer of an int8 program quantized alone, in program order.

    `wanted` is what the float program computes, N x classes.
    """
    found = []
    for tap in tap_nodes(int8):
        on_step(f"quantizing each layer alone ({tap.layer})")
        cost = measured(alone(int8, tap.layer), wanted, data)
        found.append({"layer": tap.layer, "kind": tap.kind, **cost})
    return found


def fewest(
    plain: fx.GraphModule,
    quantized: Callable[[Sequence[str]], fx.GraphModule],
    costs: Tried,
    wanted: Tensor,
    data: Split,
    max_drop: float,
) -> tuple[fx.GraphModule, Tried]:
    """Keep more and more layers in float, sets of the costliest first, until the program is at most
    `max_drop` percentage points less accurate than the float one. Returns it, and of each number of
    layers the best set: its layers, what `measured` tells, and its "drop"; the last one is within.

    `plain` is the program all in int8, `quantized` makes the one with these layers in float, and
    `costs` are of `layers`. Of each number SETS sets are tried: of up to 7 layers all. Raises
    VerificationFailed where none of them is enough.
    """
    order = [each["layer"] for each in sorted(costs, key=rank)]
    exact = accuracy(wanted, data.labels)
    tried: Tried = []
    seen: set[tuple[str, ...]] = set()

    def fresh(count: int) -> Iterator[tuple[str, ...]]:
        """The sets that put other layers in float than all before: not every layer can be alone."""
        for names in itertools.combinations(order, count):
            module = copy.deepcopy(plain)
            keep_in_float(module, names)
            kept = tuple(in_float(module))
            if kept not in seen:
                seen.add(kept)
                yield names

    for count in range(len(order)):
        best: dict[str, Any] | None = None
        for names in itertools.islice(fresh(count), SETS):
            program = quantized(names)
            found = measured(program, wanted, data)
            drop = 100 * (exact - found["accuracy"])
            found = {"layers": list(in_float(program)), "drop": drop, **found}
            if drop <= max_drop + 1e-9:
                return program, [*tried, found]
            best = max(best or found, found, key=rank)
        if best is not None:
            tried.append(best)
    best = min(tried, key=lambda each: float(each["drop"]))
    raise VerificationFailed(
        f"no layers in float that were tried bring int8 within {max_drop:g} points of fp32 on "
        f"validation images: the best, {', '.join(best['layers']) or 'none'}, is "
        f"{best['drop']:.2f} below",
        "give a larger --max-drop, or ship fp32",
    )


def alone(int8: fx.GraphModule, layer: str) -> fx.GraphModule:
    """A copy in which only this layer's constants and its result are quantized."""
    module = copy.deepcopy(int8)
    rounding = [node for node in module.graph.nodes if _is_constant(node) or is_quantize(node)]
    _take_out(module, [node for node in rounding if layer_of(node) != layer])
    return module


def keep_in_float(int8: fx.GraphModule, names: Collection[str]) -> None:
    """Take the rounding of these layers' constants, and of values between them, out of an int8
    program, in place.
    """
    taken: list[fx.Node] = []

    def within(node: fx.Node) -> bool:
        if _is_constant(node):
            return layer_of(node) in names
        if not is_quantize(node) or not {_source(node).name, *_users(node)} <= set(names):
            return False
        inputs = [given.args[0] for given in _source(node).all_input_nodes if is_dequantize(given)]
        return _source(node).target not in PICKING or all(given in taken for given in inputs)

    for node in int8.graph.nodes:
        if within(node):
            taken.append(node)
    _take_out(int8, taken)


def in_float(int8: fx.GraphModule) -> dict[str, list[str]]:
    """The layers of an int8 program that are computed in float32, with the names of their nodes:
    those with float weights, and those from or to a float value.

    One without constants between int8 values, like a pooling, is an int8 layer whatever was wanted.
    """
    nodes = {node.name: node for node in int8.graph.nodes}
    found = {}
    for tap, value in tap_nodes(int8).items():
        inside = layer_nodes(nodes[tap.layer])
        given = {source for node in inside for source in node.all_input_nodes} - set(inside)
        if not is_dequantize(value) or not all(_is_int8(node) for node in given):
            found[tap.layer] = [node.name for node in inside]
    return found


def layer_of(quantize: fx.Node) -> str:
    """The layer whose result, weights, bias or other constant a quantize node rounds."""
    source = quantize.args[0]
    assert isinstance(source, fx.Node)
    if source.op != "get_attr":
        return source.name
    (dequantize,) = quantize.users
    (node,) = dequantize.users
    return _end(node)


def _is_constant(node: fx.Node) -> bool:
    """Whether this quantizes weights, a bias, or a number that is added or multiplied."""
    if node.target is decomposed.quantize_per_channel.default:
        return True
    return is_quantize(node) and node.args[0].op == "get_attr"  # type: ignore[union-attr]


def _take_out(module: fx.GraphModule, rounding: list[fx.Node]) -> None:
    for node in rounding:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        for user in list(node.users):
            user.replace_all_uses_with(source)
    module.graph.eliminate_dead_code()
    module.recompile()


def _moves(node: fx.Node) -> bool:
    return node.target in TRANSPARENT or is_quantize(node) or is_dequantize(node)


def _source(value: fx.Node) -> fx.Node:
    """The end of the layer whose value this is, however it was moved; or the image."""
    while _moves(value):
        value = value.args[0]  # type: ignore[assignment]
    return value


def _users(value: fx.Node) -> Iterator[str]:
    """The layers that a value goes to, however it is moved on the way."""
    for user in value.users:
        if _moves(user):
            yield from _users(user)
        elif user.op != "output":
            yield _end(user)


def _end(node: fx.Node) -> str:
    """The layer that a node is part of, in a program whose layers all have int8 results."""
    while not any(is_quantize(user) for user in node.users):  # a ReLU is part of the layer
        (node,) = (user for user in node.users if user.target in MERGED)
    return node.name


def _is_int8(value: fx.Node) -> bool:
    while value.target in TRANSPARENT:
        value = value.all_input_nodes[0]
    return is_dequantize(value) or value.target is decomposed.dequantize_per_channel.default
