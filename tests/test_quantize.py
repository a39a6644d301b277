"""The rules of the int8 program, read off the program itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

from pipeline.data import Split
from pipeline.errors import BadInput, UsageError
from pipeline.program import (
    capture,
    constant,
    decomposed,
    is_quantize,
    plain,
    quantization_of,
    run,
    tap_nodes,
)
from pipeline.quantization import Calibration, quantize, quantize_run
from pipeline.quantization.bias import means
from pipeline.quantization.choice import choose
from pipeline.quantization.measure import measured, rank
from pipeline.run_folder import RunFolder

SHAPE = (3, 10, 14)
PIXELS = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator())


def int8(*layers: nn.Module) -> fx.GraphModule:
    torch.manual_seed(0)
    network = nn.Sequential(*layers).eval()
    return quantize(plain(capture(network, SHAPE).module()), PIXELS)


def head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)


def quantizations(module: fx.GraphModule) -> dict[str, tuple[float, int]]:
    return {
        str(node.args[0]): quantization_of(module, node)
        for node in module.graph.nodes
        if is_quantize(node)
    }


def test_the_input_is_pixels_minus_128() -> None:
    found = quantizations(int8(nn.Conv2d(3, 4, 3), *head(4)))
    scale, zero_point = next(iter(found.values()))
    assert (scale, zero_point) == (pytest.approx(1 / 255, rel=1e-7), -128)


def test_weights_are_symmetric_per_channel_and_biases_int32_of_input_times_weight() -> None:
    module = int8(nn.Conv2d(3, 4, 3), *head(4))
    weights = [
        node
        for node in module.graph.nodes
        if node.target is decomposed.quantize_per_channel.default
    ]
    weight, bias = (constant(module, node) for node in weights[:2])
    scales = [constant(module, node.args[1]) for node in weights[:2]]
    assert weight.dtype == torch.int8
    assert weight.abs().amax(dim=(1, 2, 3)).tolist() == [127] * 4
    assert bias.dtype == torch.int32
    assert torch.equal(scales[1], scales[0] * torch.tensor(1 / 255))
    assert not any(constant(module, node.args[2]).any() for node in weights)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_pooling_shares_its_parameters_with_its_input(pool: nn.Module) -> None:
    found = quantizations(int8(nn.Conv2d(3, 4, 3), pool, *head(4)))
    values = list(found.values())
    assert values[1] == values[2]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.Sigmoid(), (1 / 256, -128)), (nn.Tanh(), (1 / 128, 0))],
)
def test_squashing_outputs_have_fixed_parameters(
    activation: nn.Module, expected: tuple[float, int]
) -> None:
    found = quantizations(int8(nn.Conv2d(3, 4, 3), activation, *head(4)))
    assert found[type(activation).__name__.lower()] == expected


def test_conv_batchnorm_relu_is_quantized_once() -> None:
    module = int8(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), *head(4))
    kinds = [tap.kind for tap in tap_nodes(module)]
    assert kinds == ["conv + relu", "average pool", "linear"]
    assert quantizations(module)["relu"][1] == -128  # a ReLU's smallest value is 0


def test_int8_stays_near_fp32() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head(8)).eval()
    module = quantize(plain(capture(network, SHAPE).module()), PIXELS)
    with torch.no_grad():
        exact = network(PIXELS.float() / 255)
    error = (run(module, PIXELS)[0] - exact).abs().max()
    scale = next(reversed(quantizations(module).values()))[0]
    assert error < 4 * scale


class Branches(nn.Module):
    """Normalisation as the first layer, ReLU after pooling, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.3]).reshape(1, 3, 1, 1))
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) / 0.25
        pooled = torch.relu(torch.max_pool2d(self.left(x), 2))
        return torch.cat([pooled, torch.max_pool2d(self.right(x), 2)], 1)


def test_concatenated_values_share_their_parameters_and_span_them_all() -> None:
    found = quantizations(int8(Branches(), *head(6)))
    shared = {found[name] for name in ("conv2d", "relu", "conv2d_1", "cat")}
    assert len(shared) == 1
    assert found["sub"] != found["div"]


def test_an_operator_without_a_rule_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"aten\.gelu") as error:
        int8(nn.Conv2d(3, 4, 3), nn.GELU(), *head(4))
    assert "conv2d" in error.value.mend


def outliers(size: int = 2048) -> torch.Tensor:
    """Dark pictures of which few have a bright pixel."""
    pixels = torch.randint(0, 20, (size, *SHAPE), dtype=torch.uint8)
    pixels[0, :, 4, 4] = 255
    return pixels


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_observers_give_up_outliers_for_smaller_steps(observer: str) -> None:
    torch.manual_seed(0)
    program = plain(capture(nn.Sequential(nn.Conv2d(3, 4, 1), *head(4)).eval(), SHAPE).module())
    pixels = outliers()
    (wide, _), (narrow, _) = (
        quantizations(quantize(program, pixels, name))["conv2d"] for name in ("minmax", observer)
    )
    assert narrow < 0.9 * wide


def test_bias_correction_takes_the_mean_error_of_each_layer_away() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)).eval()
    program = plain(capture(network, SHAPE).module())
    wanted = means(program, PIXELS)
    plainly, corrected = (
        means(quantize(program, PIXELS, bias_correction=given), PIXELS) for given in (False, True)
    )
    for layer, exact in wanted.items():
        before, after = ((found[layer] - exact).abs().max() for found in (plainly, corrected))
        assert after < before / 10


def test_the_best_on_validation_images_is_chosen_and_among_equals_the_nearest() -> None:
    torch.manual_seed(0)
    program = plain(capture(nn.Sequential(nn.Conv2d(3, 4, 3), *head(4)).eval(), SHAPE).module())
    labels = run(program, PIXELS)[0].argmax(1)
    int8, tried = choose(program, PIXELS, Split(PIXELS, labels), Calibration())
    assert [(e["observer"], e["bias_correction"]) for e in tried] == Calibration().candidates()
    (chosen,) = (entry for entry in tried if entry["chosen"])
    assert rank(chosen) == max(map(rank, tried))
    again = measured(int8, run(program, PIXELS)[0], Split(PIXELS, labels))
    assert again == {key: chosen[key] for key in again}


def test_an_unknown_observer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="unknown observer 'mes'"):
        quantize_run(RunFolder.create("some", "lenet5"), Calibration(observer="mes"))
