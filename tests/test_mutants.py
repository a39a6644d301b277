"""Mutants are of use only if they load, keep every value's place, and compute something else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from deploy.runner.backends import open_with
from deploy.runner.contract import Contract, Quantization
from deploy.runner.quiet import quiet
from pipeline import program
from pipeline.errors import BadInput
from pipeline.export import EXPORTERS
from pipeline.quantization import quantize
from pipeline.verify.mutants import MUTATIONS, Mutant, mutants_of

SHAPE = (3, 17, 24)
PIXELS = torch.randint(
    0, 256, (16, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
KINDS = [(p, f) for p in ("fp32", "int8") for f in ("onnx", "tflite")]
RUNTIMES = {"onnx": "onnxruntime", "tflite": "litert"}
QUANTIZED = {"weight scale x1.01", "zero point", "scale x1.01", "saturating"}
# One step in an accumulator need not reach the result, and a ReLU that is quantized with zero at
# the lowest step is made by the quantization, too.
MAY_CHANGE_NOTHING = {"one tap", "bias", "weight scale x1.01", "dropped activation"}


def network() -> nn.Module:
    """Every mutation is possible somewhere, and no image is square.

    With this seed no channel is 0 after the ReLU: a weight on it could be anything.
    """
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=(2, 1), padding=(2, 1)),  # 4 x 10 x 24
        nn.Tanh(),
        nn.AvgPool2d(3, 2, 1),  # 4 x 5 x 12
        nn.Conv2d(4, 6, 3, padding=1),  # 6 x 5 x 12
        nn.ReLU(),
        nn.MaxPool2d((3, 2), stride=(1, 2)),  # 6 x 3 x 6
        nn.Conv2d(6, 6, (2, 3), groups=6),  # 6 x 2 x 4
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(48, 10),
    ).eval()


def contract_of(module: torch.fx.GraphModule, precision: str) -> Contract:
    def quantization(node: torch.fx.Node | None) -> Quantization | None:
        return Quantization(*program.quantization_of(module, node)) if node else None

    first = next((node for node in module.graph.nodes if program.is_quantize(node)), None)
    return Contract(
        model="net",
        precision=precision,
        dataset="none",
        labels=tuple("0123456789"),
        input_shape=SHAPE,
        preparation="picture",
        scores="logits",
        input=quantization(first),
        output=quantization(program.output_node(module) if first else None),
        program_sha256="0" * 64,
        pipeline_version="0",
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network as fp32 and int8, ONNX and TFLite."""
    folder = tmp_path_factory.mktemp("mutants")
    for precision in ("fp32", "int8"):
        module = program.plain(program.capture(network(), SHAPE).module())
        if precision == "int8":
            module = quantize(module, PIXELS)
        for name, export in EXPORTERS.items():
            contract = contract_of(module, precision)
            export(module, contract, folder / f"{precision}.{name}", ())
    return folder


def onnx_values(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The type and shape of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    typed = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    made = [name for node in graph.node for name in node.output]
    return {
        name: (typed[name].elem_type, tuple(d.dim_value for d in typed[name].shape.dim))
        for name in made
    }


def observe(path: Path, content: bytes, names: list[Any]) -> list[npt.NDArray[Any]]:
    """What these values of a model are for PIXELS: ONNX names, or numbers of TFLite tensors."""
    floats = PIXELS.numpy().astype(np.float32) / np.float32(255)
    if path.suffix == ".onnx":
        model = onnx.load_from_string(content)
        known = onnx_values(model)
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, known[name][0], None)
            for name in names
            if name not in present
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        found: list[npt.NDArray[Any]] = session.run(names, {"image": floats})
        return found
    with quiet():
        interpreter = Interpreter(
            model_content=content, experimental_preserve_all_tensors=True, num_threads=1
        )
        interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    int8 = given["dtype"] == np.int8
    images = (PIXELS.numpy().astype(np.int16) - 128).astype(np.int8) if int8 else floats
    rows = []
    for image in images:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        rows.append([interpreter.get_tensor(name) for name in names])
    return [np.stack(column) for column in zip(*rows, strict=True)]


def values_of(path: Path) -> list[Any]:
    """All values that the original computes."""
    if path.suffix == ".onnx":
        return list(onnx_values(onnx.load(path)))
    with quiet():
        interpreter = Interpreter(str(path))
        interpreter.allocate_tensors()
    return sorted({int(n) for op in interpreter._get_ops_details() for n in op["outputs"]})


def named(mutants: list[Mutant], name: str) -> list[Mutant]:
    return [mutant for mutant in mutants if mutant.name == name]


@pytest.mark.parametrize(("precision", "suffix"), KINDS)
def test_every_mutation_is_made_where_it_is_possible(
    precision: str, suffix: str, files: Path
) -> None:
    path = files / f"{precision}.{suffix}"
    mutants = list(mutants_of(path))
    possible = set(MUTATIONS) - (QUANTIZED if precision == "fp32" else {"one tap, 2^-20"})
    if suffix == "tflite":
        possible -= {"saturating"}
    assert {mutant.name for mutant in mutants} == possible
    weighted = 4  # layers with weights and biases
    counts = Counter(mutant.name for mutant in mutants)
    assert counts["one tap"] == counts["channel permutation"] == counts["bias"] == weighted
    contents = [path.read_bytes(), *(mutant.content for mutant in mutants)]
    assert len(set(contents)) == len(contents)
    assert list(mutants_of(path)) == mutants


@pytest.mark.parametrize(("precision", "suffix"), KINDS)
def test_the_runner_opens_every_mutant_and_its_scores_keep_their_shape(
    precision: str, suffix: str, files: Path, tmp_path: Path
) -> None:
    path = files / f"{precision}.{suffix}"
    pixels = PIXELS[:2].numpy()
    for mutant in mutants_of(path):
        copy = tmp_path / path.name
        copy.write_bytes(mutant.content)
        model = open_with(RUNTIMES[suffix], copy)
        assert model.contract == open_with(RUNTIMES[suffix], path).contract
        (scores,) = model.run(pixels)
        assert scores.shape == (2, 10), (mutant.name, mutant.layer)


@pytest.mark.parametrize(("precision", "suffix"), KINDS)
def test_every_value_of_the_original_is_in_its_place_and_one_is_wrong(
    precision: str, suffix: str, files: Path
) -> None:
    path = files / f"{precision}.{suffix}"
    names = values_of(path)
    right = observe(path, path.read_bytes(), names)
    for mutant in mutants_of(path):
        found = observe(path, mutant.content, names)
        where = (mutant.name, mutant.layer)
        assert [v.shape for v in found] == [v.shape for v in right], where
        assert [v.dtype for v in found] == [v.dtype for v in right], where
        same = all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))
        if same:
            assert (precision, mutant.name in MAY_CHANGE_NOTHING) == ("int8", True), where


@pytest.mark.parametrize(
    "name",
    [
        "transposed kernel",
        "flipped kernel",
        "channel permutation",
        "average for max",
        "pooling divisor",
        "dropped activation",
        "NCHW/NHWC swap",
    ],
)
def test_a_mutation_is_the_same_mistake_in_both_formats(name: str, files: Path) -> None:
    scores = []
    for suffix in ("onnx", "tflite"):
        path = files / f"fp32.{suffix}"
        last = values_of(path)[-1:]
        mutants = named(list(mutants_of(path)), name)
        if (name, suffix) == ("NCHW/NHWC swap", "tflite"):
            mutants = mutants[1:]  # the first is the image, which ONNX reads as it is
        found = [observe(path, mutant.content, last)[0].reshape(-1, 10) for mutant in mutants]
        assert found
        scores.append(np.stack(found))
    # Sums of at most 48 float32 in another order; every mutation changes 100 times as much.
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=48 * 2.0**-24)


def test_an_int8_step_is_one_step(files: Path) -> None:
    path = files / "int8.onnx"
    before = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    for mutant in named(list(mutants_of(path)), "one tap"):
        changed = onnx.load_from_string(mutant.content).graph.initializer
        (name,) = [i.name for i in changed if i.name not in before]
        after = next(onnx.numpy_helper.to_array(i) for i in changed if i.name == name)
        difference = after.astype(int) - before[name.removesuffix("_mutant")]
        assert np.abs(difference).sum() == 1


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"net\.pt2"):
        next(mutants_of(tmp_path / "net.pt2"))
