"""What the exporters refuse, since the file would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, fx, nn

from deploy.runner.contract import Contract
from pipeline.errors import BadInput
from pipeline.export import EXPORTERS
from pipeline.program import capture, plain

SHAPE = (4, 7, 10)


class Then(nn.Module):
    """A pooling that is not the last layer."""

    def __init__(self, pooling: nn.Module, values: int | None = None) -> None:
        super().__init__()
        self.pooling, self.conv = pooling, nn.Conv2d(4, 5, 2)
        self.linear = None if values is None else nn.Linear(values, 3)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pooling(images)
        if self.linear is not None:
            return self.linear(pooled.flatten(1))  # type: ignore[no-any-return]
        return self.conv(pooled).mean((2, 3))  # type: ignore[no-any-return]


def program_of(network: nn.Module) -> fx.GraphModule:
    return plain(capture(network.eval(), SHAPE).module())


@pytest.fixture
def export(tmp_path: Path) -> Callable[[nn.Module, str], Path]:
    def write(network: nn.Module, kind: str) -> Path:
        contract = Contract(
            model="one",
            precision="fp32",
            dataset="none",
            labels=("none",),
            input_shape=SHAPE,
            preparation="picture",
            scores="logits",
            input=None,
            output=None,
            program_sha256="",
            pipeline_version="0",
        )
        path = tmp_path / f"one.{kind}"
        EXPORTERS[kind](program_of(network), contract, path, ())
        return path

    return write


ONE_AXIS = nn.MaxPool2d(3, 2, (1, 0))


@pytest.mark.parametrize(
    ("network", "kind", "words"),
    [
        (nn.AvgPool2d(2, divisor_override=3), "onnx", "divisor_override 3"),
        (Then(nn.AvgPool2d(2, divisor_override=4)), "onnx", "divisor_override 4"),
        (nn.MaxPool2d(2, (3, 4), 1, ceil_mode=True), "onnx", "a graph that is not valid"),
        (ONE_AXIS, "tflite", r"max_pool2d another shape than \(1, 4, 4, 4\)"),
        (Then(ONE_AXIS), "tflite", r"max_pool2d another shape than \(1, 4, 4, 4\)"),
        (Then(ONE_AXIS, 64), "tflite", "LiteRT .* cannot load what the converter wrote"),
        (nn.MaxPool2d(2, return_indices=True), "tflite", "returns indices"),
    ],
)
def test_what_would_be_wrong_is_refused_by_name_and_leaves_no_file(
    network: nn.Module,
    kind: str,
    words: str,
    export: Callable[[nn.Module, str], Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(BadInput, match=words) as raised:
        export(network, kind)
    assert raised.value.mend
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (Then(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), "onnx"),
        (Then(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), "tflite"),
        (Then(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), "tflite"),
        (Then(nn.AvgPool2d((7, 10)), 4), "tflite"),
        (nn.AvgPool2d(2, divisor_override=3), "tflite"),
    ],
)
def test_other_poolings_are_exported(
    network: nn.Module, kind: str, export: Callable[[nn.Module, str], Path]
) -> None:
    assert export(network, kind).stat().st_size > 0
