"""Each layer quantized alone."""

from __future__ import annotations

import torch
from torch import fx, nn

from pipeline.program import capture, is_quantize, plain, run, tap_nodes
from pipeline.quantization import quantize
from pipeline.quantization.measure import sqnr
from pipeline.quantization.mixed import alone

SHAPE = (1, 8, 8)
PIXELS = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator())


def programs() -> tuple[fx.GraphModule, fx.GraphModule]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    ).eval()
    program = plain(capture(network, SHAPE).module())
    return program, quantize(program, PIXELS)


def test_each_layer_alone_is_nearer_to_float_than_all_and_none_is_exact() -> None:
    program, int8 = programs()
    wanted = run(program, PIXELS)[0]
    together = sqnr(wanted, run(int8, PIXELS)[0])
    names = [tap.layer for tap in tap_nodes(int8)]
    assert names == ["relu", "avg_pool2d", "linear"]
    for name in names:
        assert together < sqnr(wanted, run(alone(int8, name), PIXELS)[0]) < 80
    nothing = run(alone(int8, "no layer"), PIXELS)[0]
    assert torch.allclose(nothing, wanted, atol=1e-6)


def test_a_layer_alone_has_one_result_quantized_and_its_constants() -> None:
    module = alone(programs()[1], "relu")
    assert [str(n.args[0]) for n in module.graph.nodes if is_quantize(n)] == ["relu"]
    constants = [n for n in module.graph.nodes if "quantize_per_channel.default" in str(n.target)]
    assert [n.args[0].op for n in constants if n.args[0].op == "get_attr"] == ["get_attr"] * 2
