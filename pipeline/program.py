"""Programs: a network frozen by torch.export, saved as `.pt2`, and the layers inside it.

A float program is what training leaves behind; those of other precisions are made from it once
(`pipeline.quantization`), and everything that ships is an export of one of them.
"""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines the q/dq operators in a .pt2
from torch import Tensor, fx, nn

from deploy.runner.quiet import quiet

from .errors import BadInput, first_line

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

# The layers whose values are compared, by operator. An operator that is in no table here runs in
# fp32 and is exported, but `quantize` refuses it.
LAYERS: dict[Any, str] = {
    aten.conv2d.default: "conv",
    aten.conv2d.padding: "conv",
    aten.linear.default: "linear",
    aten.max_pool2d.default: "max pool",
    aten.avg_pool2d.default: "average pool",
    aten.adaptive_avg_pool2d.default: "average pool",
    aten.mean.dim: "mean",
    aten.relu.default: "relu",
    aten.relu_.default: "relu",
    aten.relu6.default: "clip",
    aten.hardtanh.default: "clip",
    aten.hardtanh_.default: "clip",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.leaky_relu.default: "leaky relu",
    aten.hardswish.default: "hard swish",
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.softmax.int: "softmax",
    aten.log_softmax.int: "log softmax",
    aten.batch_norm.default: "batch norm",
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.cat.default: "concat",
}

WEIGHTED = {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}

# A clamp or a normalisation that is the only user of one of these kinds is merged into it by the
# converters, so the two are one layer.
MERGED = {
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.batch_norm.default,
}
MERGING = {"conv", "linear", "batch norm", "add", "sub", "mul", "max pool", "average pool", "mean"}

# What only moves values about. Every other operator is a layer, known by its own name if not above.
TRANSPARENT = {
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.dropout.default,
    aten.sym_size.int,
}

# What makes float32 of weights with fewer bits.
UNPACKING = {aten.to.dtype, decomposed.dequantize_per_channel.default}


@dataclass(frozen=True)
class Tap:
    """A layer's output in a program. `scale` and `zero_point` are set in an int8 program."""

    layer: str
    kind: str
    scale: float | None = None
    zero_point: int | None = None


def capture(network: nn.Module, input_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Freeze a network, which is in evaluation mode, with a dynamic batch. Raises BadInput."""
    example = (torch.zeros(2, *input_shape),)
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with quiet():
            return torch.export.export(network, example, dynamic_shapes=shapes)
    except Exception as error:  # torch.export reports what it cannot do in many exception types
        raise BadInput(
            f"torch.export cannot freeze this network ({first_line(error)})",
            "see the PyTorch documentation on torch.export for what forward may do",
        ) from error


def saved(exported: torch.export.ExportedProgram) -> bytes:
    """The bytes of a `.pt2` file."""
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def load(path: Path) -> fx.GraphModule:
    """A saved program as a graph module of one input and one output. Raises BadInput.

    `.pt2` files hold pickles: only read those whose hash the run folder has vouched for.
    """
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # a damaged archive raises many types
        raise BadInput(f"{path}: not a saved program ({' '.join(str(error).split())})") from error
    return plain(module)


def plain(module: nn.Module) -> fx.GraphModule:
    """The same graph without the guards and tree specs that torch.export wraps around it."""
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        guard = node.op == "call_module" and node.target == "_guards_fn"
        if guard or node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def output_node(module: fx.GraphModule) -> fx.Node:
    """The node whose value the program returns."""
    returned = next(node for node in module.graph.nodes if node.op == "output").args[0]
    while isinstance(returned, tuple | list):
        (returned,) = returned
    assert isinstance(returned, fx.Node)
    return returned


def value_of(module: fx.GraphModule, argument: Any) -> Any:
    """An argument of a node: the tensor behind a get_attr node as a float or int, else itself."""
    if not isinstance(argument, fx.Node):
        return argument
    found = attribute(module, argument)
    return found.item() if found.numel() == 1 else found


def attribute(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The parameter or buffer that a get_attr node names."""
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found


def constant(module: fx.GraphModule, node: Any) -> Any:
    """The value of a node that depends on constants only; other arguments pass."""
    if not isinstance(node, fx.Node):
        return node
    if node.op == "get_attr":
        return attribute(module, node).detach()
    return node.target(*(constant(module, argument) for argument in node.args))  # type: ignore[operator]


def fixed_nodes(module: fx.GraphModule) -> dict[fx.Node, None]:
    """The nodes that depend on constants only, in the program's order."""
    fixed: dict[fx.Node, None] = {}
    for node in module.graph.nodes:
        computed = node.op == "call_function" and all(n in fixed for n in node.all_input_nodes)
        if node.op == "get_attr" or computed:
            fixed[node] = None
    return fixed


def unpacked(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a float program whose small weights are the float32 numbers they stand for."""
    module = copy.deepcopy(module)
    fold(module, [node for node in fixed_nodes(module) if node.target in UNPACKING])
    return module


def fold(module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Replace nodes that depend on constants only by their values, in place."""
    for number, node in enumerate(nodes):
        name = f"folded_{number}"
        module.register_buffer(name, constant(module, node))
        with module.graph.inserting_before(node):
            folded = module.graph.get_attr(name)
        folded.meta["val"] = getattr(module, name)
        node.replace_all_uses_with(folded)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def is_quantize(node: Any) -> bool:
    """Whether the node quantizes an activation."""
    return isinstance(node, fx.Node) and node.target is decomposed.quantize_per_tensor.default


def is_dequantize(node: Any) -> bool:
    """Whether the node dequantizes an activation."""
    return isinstance(node, fx.Node) and node.target is decomposed.dequantize_per_tensor.default


def quantization_of(module: fx.GraphModule, node: fx.Node) -> tuple[float, int]:
    """(scale, zero point) of a quantize or dequantize node."""
    return float(value_of(module, node.args[1])), int(value_of(module, node.args[2]))


def tap_nodes(module: fx.GraphModule) -> dict[Tap, fx.Node]:
    """Every layer in program order, and the node that has its float output.

    A convolution and the ReLU after it are one layer: see `MERGED`. Where a layer's result is
    quantized, the node is the dequantization of the integers.
    """
    taps: dict[Tap, fx.Node] = {}
    fixed = fixed_nodes(module)
    for node in module.graph.nodes:
        moved = node.target in TRANSPARENT or is_quantize(node) or is_dequantize(node)
        layer = node.op == "call_function" and not moved and node not in fixed
        if not layer or not isinstance(node.meta.get("val"), Tensor) or _goes_on(node):
            continue
        quantize = next((user for user in node.users if is_quantize(user)), None)
        if quantize is None:
            taps[Tap(node.name, _kind(node))] = node
        else:
            tap = Tap(node.name, _kind(node), *quantization_of(module, quantize))
            taps[tap] = next(iter(quantize.users))
    return taps


def _goes_on(node: fx.Node) -> bool:
    """Whether the layer that this node is in ends at a later node."""
    users = list(node.users)
    return LAYERS.get(node.target) in MERGING and len(users) == 1 and users[0].target in MERGED


def layer_nodes(node: fx.Node) -> list[fx.Node]:
    """The nodes of the layer that ends here, in order: see `MERGED`."""
    nodes = [node]
    while nodes[0].target in MERGED:
        before = nodes[0].args[0]
        if not isinstance(before, fx.Node) or not _goes_on(before):
            break
        nodes.insert(0, before)
    return nodes


def _kind(node: fx.Node) -> str:
    """What the layer that ends here is made of: "conv + batch norm + relu"."""
    kinds = (LAYERS.get(n.target, str(n.target).split(".")[1]) for n in layer_nodes(node))
    return " + ".join(kinds)


def final_tap(module: fx.GraphModule) -> Tap:
    """The program's output, as the layer it is the value of."""
    final = output_node(module)
    if not is_dequantize(final):
        return Tap(final.name, _kind(final) if final.target in LAYERS else "output")
    source = final.args[0].args[0]  # type: ignore[union-attr]
    assert isinstance(source, fx.Node)
    known = {tap.layer: tap for tap in tap_nodes(module)}
    unknown = Tap(source.name, "output", *quantization_of(module, final))
    return known.get(source.name, unknown)


def with_taps(module: fx.GraphModule) -> tuple[fx.GraphModule, list[Tap]]:
    """A copy that returns (final output, every other layer's output ...), and what each one is.

    The last layer's value is the final output itself, so it is returned once.
    """
    module = copy.deepcopy(module)
    final, last = output_node(module), final_tap(module)
    taps = {tap: node for tap, node in tap_nodes(module).items() if tap != last}
    values = []
    for node in taps.values():
        # Integers get a dequantization of their own: where an output shares it with a flatten,
        # litert_torch 0.10.0 gives that output in N x H x W x C.
        if is_dequantize(node):
            with module.graph.inserting_after(node):
                node = module.graph.node_copy(node)
        values.append(node)
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = ((final, *values),)
    module.recompile()
    return module, [last, *taps]


def run(module: nn.Module, pixels: Tensor, batch: int = 500) -> list[Tensor]:
    """uint8 N x C x H x W through a program: every output, batch first, on the CPU."""
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for images in pixels.split(batch):
            outputs = module(images.float() / 255)
            parts.append(tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The part of N x classes scores whose largest is at the label."""
    return float((scores.argmax(1) == labels).double().mean())
