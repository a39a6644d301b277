"""The semantics grid: one-layer models through the exporters and runners that ship, cell by cell.

A conversion takes a second or two whatever its size, so up to `GROUP` cells go through one file:
parallel branches from one input. Where a file is refused, halving finds the cells that are to
blame, and the others are converted without them. An ONNX file is then cut into its branches: ONNX
Runtime fuses no int8 layer that shares its input with another, and would run other kernels.
"""

from __future__ import annotations

import base64
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from deploy.runner.backends import BACKENDS, open_session
from deploy.runner.contract import Contract, Quantization

from .. import __version__
from ..errors import BadInput, UserError, first_line
from ..export import FORMATS
from ..program import (
    attribute,
    capture,
    decomposed,
    is_dequantize,
    is_quantize,
    plain,
    quantization_of,
)
from .grid_cells import (
    KNOWN_DEFECTS,
    Cell,
    core_cells,
    drops_a_window,
    full_cells,
    module_of,
    outputs_of,
)

__all__ = ["Cell", "Outcome", "core_cells", "full_cells", "judge", "run_cells", "write_reproducer"]

Array = npt.NDArray[Any]

GROUP = 50  # cells in one file
INPUT = Quantization(1 / 255, -128)
UNIT = 2.0**-24  # half the distance from 1 to the next float32
ACTIVATION_ULPS = 4  # sigmoid and tanh: of 1.0, that is 2**-23 each
GRID = 1e-3  # steps; a dequantized integer is off its step by some roundings of 2**-24
SAVED = 1e9  # a fraction of a bound that is 0, as JSON has no infinity


@dataclass(frozen=True)
class Verdict:
    """One output judged. `worst` is the largest error as a fraction of its bound; above 1 fails."""

    ok: bool
    worst: float
    detail: str
    image: int = 0  # where the largest error is


@dataclass(frozen=True)
class Outcome:
    """`status` is "match", "refused", "known defect", "defect gone" or "MISMATCH"."""

    cell: Cell
    runtime: str
    status: str
    detail: str
    worst: float

    @property
    def ok(self) -> bool:
        """Whether this is as it should be, or at least as it is known to be."""
        return self.status in {"match", "refused", "known defect"}

    def as_json(self) -> dict[str, Any]:
        """For verify.json."""
        return asdict(self) | {"cell": self.cell.name, "operator": self.cell.operator}


@dataclass(frozen=True)
class Truth:
    """One output. `expected` float64 is exact; `magnitude` is the sum of the absolute terms.

    In int8, `expected` is the int8 number before it is rounded, and `magnitude` in its steps.
    Indices are integers.
    """

    expected: Array
    magnitude: Array
    quantization: Quantization | None = None


def gamma(roundings: int) -> float:
    """The relative error of that many float32 roundings; Higham, Accuracy and Stability, 3.1."""
    return roundings * UNIT / (1 - roundings * UNIT)


def terms_of(cell: Cell) -> int:
    """The most products or values that the layer adds up to one element."""
    options = cell.options
    if cell.operator not in ("conv", "avg-pool"):
        return 1
    kernel = np.broadcast_to(options["kernel_size"], 2).prod()
    channels = cell.shape[0] // options.get("groups", 1) if cell.operator == "conv" else 1
    return int(kernel) * channels


def judge(cell: Cell, expected: Array, magnitude: Array, found: Array) -> Verdict:
    """One output of a cell, N x ..., against its truth; see `Truth` for units.

    fp32: within gamma(n + 1) of the magnitude, bias included; equal for max pooling and ReLU;
    within ACTIVATION_ULPS of 1 for sigmoid and tanh. int8: the nearest integer, or either one of
    two whose middle is no farther off than the error of a float32 sum.
    """
    if found.shape != expected.shape:
        return Verdict(False, SAVED, f"shape {found.shape}, expected {expected.shape}")
    if not np.isfinite(found).all():
        return Verdict(False, SAVED, "NaN or infinity")
    error = np.abs(found - expected)
    if cell.precision == "int8" and magnitude.dtype == np.float64:
        # Six roundings more than the sum: both scales of each product, two requantizations.
        bound = 0.5 + gamma(terms_of(cell) + 7) * magnitude
    elif cell.operator in ("conv", "avg-pool"):
        bound = gamma(terms_of(cell) + 1) * magnitude
    elif cell.operator in ("sigmoid", "tanh"):
        bound = np.full(error.shape, ACTIVATION_ULPS * 2 * UNIT)
    else:
        bound = np.zeros(error.shape)
    within = error <= bound
    fraction = np.where(within, 0, SAVED)
    np.divide(error, bound, out=fraction, where=bound > 0)
    worst = min(float(fraction.max(initial=0)), SAVED)
    if not within.all():
        where = tuple(int(i) for i in np.unravel_index(int(fraction.argmax()), error.shape))
        return Verdict(
            False,
            worst,
            f"{int((~within).sum())} of {error.size} elements; at {where} "
            f"expected {expected[where]:.9g}, found {found[where]:.9g}",
            where[0],
        )
    return Verdict(
        error.size > 0, worst, _halves(expected, found) if bound.min(initial=1) >= 0.5 else ""
    )


def _halves(expected: Array, found: Array) -> str:
    """Where the exact halves went."""
    half = np.abs(expected - np.trunc(expected)) == 0.5
    found, expected = found[half], expected[half]
    even = int((found == np.rint(expected)).sum())
    away = int((np.abs(found) > np.abs(expected)).sum())
    return f"{half.sum()} halves: {even} to even, {away} away from zero" if half.any() else ""


class Branches(nn.Module):
    """Cells side by side on one input; returns every output of every cell, in order."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(module_of(cell) for cell in cells)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """N x C x H x W."""
        outputs: list[Tensor] = []
        for layer in self.layers:
            result = layer(images)
            outputs += result if isinstance(result, tuple) else (result,)
        return tuple(outputs)


@functools.lru_cache(maxsize=2)
def program_of(cells: tuple[Cell, ...]) -> fx.GraphModule:
    """The program of these cells, whose shape and precision are the same. Raises BadInput."""
    program = plain(capture(Branches(cells).eval(), cells[0].shape).module())
    if cells[0].precision == "fp32":
        return program
    from ..quantize import quantize

    program = quantize(program, torch.from_numpy(_random_pixels(cells[0].shape)))
    return program


def _random_pixels(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)


def inputs_for(cell: Cell) -> Array:
    """N x C x H x W of what tells layers apart, as float32 or, for an int8 cell, int8.

    Random signed values; constants, which show what padding adds; and impulses in each channel,
    in corners and inside, which show where each tap is. int8 has its extremes as well.
    """
    channels, height, width = cell.shape
    impulses = np.zeros((2 * channels, *cell.shape), np.int64)
    corners = itertools.cycle(((0, 0), (height - 1, 0), (height // 2, width // 2), (1, width - 1)))
    for number, (row, column) in zip(range(len(impulses)), corners, strict=False):
        impulses[number, number % channels, row, column] = (-1) ** (number // channels)
    if cell.precision == "int8":
        random = _random_pixels(cell.shape).astype(np.int64) - 128
        constants = [np.full((1, *cell.shape), value) for value in (-128, -1, 127)]
        extremes = np.where(random > 0, 127, -128)
        return np.concatenate((random, extremes, *constants, impulses * 127)).astype(np.int8)
    normal = np.random.default_rng(0).standard_normal((6, *cell.shape))
    ones = np.ones((1, *cell.shape))
    return np.concatenate((normal, -ones, ones, impulses * 1.5)).astype(np.float32)


class _Exact(fx.Interpreter):
    """An int8 program in float64; what is quantized last keeps its unrounded value, in steps.

    With `magnitude`, of the absolute values of weights and biases: the input is never negative.
    """

    def __init__(self, module: fx.GraphModule, magnitude: bool = False) -> None:
        super().__init__(module)
        self.program, self.magnitude = module, magnitude

    def run_node(self, n: fx.Node) -> Any:
        if is_quantize(n):
            value = self._value(n.args[0]) / quantization_of(self.program, n)[0]
            last = all(next(iter(user.users)).op == "output" for user in n.users)
            return value if last else value.round()
        if is_dequantize(n):
            last = next(iter(n.users)).op == "output"
            return self._value(n.args[0]) * (1 if last else quantization_of(self.program, n)[0])
        if n.target is decomposed.dequantize_per_channel.default:
            integers, scales = (self._value(argument).double() for argument in n.args[:2])
            value = integers * scales.reshape(-1, *[1] * (integers.dim() - 1))
            return value.abs() if self.magnitude else value
        if n.op == "get_attr":
            return attribute(self.program, n).detach()
        return super().run_node(n)

    def _value(self, argument: Any) -> Tensor:
        value = self.env[argument]
        assert isinstance(value, Tensor)
        return value


def truths_of(cells: tuple[Cell, ...], values: Array) -> list[list[Truth]]:
    """Each output of each cell on `values` of `inputs_for`: see `Truth`."""
    with torch.inference_mode():
        if cells[0].precision == "int8":
            return [[truth] for truth in _int8_truths(program_of(cells), values)]
        return [_fp32_truths(module_of(cell), torch.from_numpy(values).double()) for cell in cells]


def _fp32_truths(module: nn.Module, images: Tensor) -> list[Truth]:
    expected = module.double()(images)
    for parameter in module.parameters():
        parameter.abs_()
    magnitude = module(images.abs())
    if isinstance(expected, Tensor):
        return [Truth(expected.numpy(), magnitude.numpy())]
    return [Truth(each.numpy(), each.numpy()) for each in expected]


def _int8_truths(program: fx.GraphModule, values: Array) -> list[Truth]:
    images = (torch.from_numpy(values).double() + 128) / 255
    truths = []
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    both = (_Exact(program).run(images), _Exact(program, magnitude=True).run(images))
    for node, value, magnitude in zip(outputs, *both, strict=True):
        scale, zero_point = quantization_of(program, node)
        halves = np.rint(value.numpy() * 2) / 2  # float64 leaves a half off by some 2**-50
        exact = np.where(np.abs(value.numpy() - halves) < 1e-9, halves, value.numpy())
        exact = (exact + zero_point).clip(-128, 127)
        truths.append(Truth(exact, magnitude.numpy(), Quantization(scale, zero_point)))
    return truths


def exported(cells: tuple[Cell, ...], runtime: str, folder: Path) -> Path:
    """The file for a runtime in which these cells are side by side. Raises BadInput."""
    int8 = INPUT if cells[0].precision == "int8" else None
    contract = Contract(
        model="grid",
        precision=cells[0].precision,
        dataset="grid",
        labels=("none",),
        input_shape=cells[0].shape,
        preparation="picture",
        scores="logits",
        input=int8,
        output=int8,
        program_sha256="",
        pipeline_version=__version__,
    )
    suffix = BACKENDS[runtime].SUFFIX
    path = folder / f"grid{suffix}"
    count = sum(outputs_of(cell) for cell in cells)
    taps = tuple(str(number) for number in range(1, count))
    try:
        FORMATS[suffix.removeprefix(".")](program_of(cells), contract, path, taps)
    except UserError:
        raise
    except Exception as error:  # a file that its own checker finds wrong
        raise BadInput(f"{path.name}: {' '.join(str(error).split())}") from error
    return path


def branches_of(path: Path, cells: Sequence[Cell]) -> list[Path]:
    """One ONNX file for each cell, cut out of one that has them side by side."""
    import onnx
    from onnx.utils import Extractor

    model = onnx.load(path)
    cutter = Extractor(model)
    image, names = model.graph.input[0].name, iter([value.name for value in model.graph.output])
    parts = []
    for number, cell in enumerate(cells):
        outputs = [next(names) for _ in range(outputs_of(cell))]
        parts.append(path.with_stem(f"{path.stem}-{number}"))
        onnx.save(cutter.extract_model([image], outputs), parts[-1])
    return parts


def found_by(path: Path, runtime: str, values: Array) -> list[Array]:
    """Every output of the file, as real numbers in float64, or as it is where it is an index.

    `values` are float32, or int8 that stand for `INPUT`. Raises UserError.
    """
    session = open_session(runtime, path, threads=1)
    if values.dtype != session.inputs[0].dtype:
        values = (values.astype(np.float32) + 128) / np.float32(255)
    try:
        outputs = session.run(values)
    except UserError:
        raise
    except Exception as error:  # the runtimes' own exceptions share no base
        raise BadInput(f"{runtime} cannot run it ({first_line(error)})") from error
    real = []
    for tensor, output in zip(session.outputs, outputs, strict=True):
        if tensor.quantization is not None:
            output = (
                output - np.float64(tensor.quantization.zero_point)
            ) * tensor.quantization.scale
        real.append(output.astype(np.float64) if output.dtype == np.float32 else output)
    return real


def run_cells(
    cells: Iterable[Cell],
    runtimes: Sequence[str] = ("onnxruntime", "litert"),
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Each cell in each runtime; cells that may share a file come together."""
    families: dict[Any, list[Cell]] = {}
    for cell in cells:
        families.setdefault(_family(cell), []).append(cell)
    outcomes = []
    for family in families.values():
        for start in range(0, len(family), GROUP):
            group = tuple(family[start : start + GROUP])
            for runtime in runtimes:
                on_step(f"{group[0].name} and {len(group) - 1} more in {runtime}")
                outcomes += _outcomes(group, runtime)
    return outcomes


def _family(cell: Cell) -> tuple[Any, ...]:
    """Cells that go through one file; those that tend to be refused are kept together."""
    pads = "pad" in cell.options or cell.options.get("padding_mode", "zeros") != "zeros"
    drops = drops_a_window(cell)
    return cell.precision, cell.shape, pads, drops, cell.options.get("return_indices", False)


def _outcomes(cells: tuple[Cell, ...], runtime: str) -> list[Outcome]:
    """All in one file; where that is refused, each half for itself."""
    values = inputs_for(cells[0])
    with tempfile.TemporaryDirectory() as folder:
        try:
            truths = truths_of(cells, values)
            path = exported(cells, runtime, Path(folder))
            parts = branches_of(path, cells) if path.suffix == ".onnx" else [path]
            found = [output for part in parts for output in found_by(part, runtime, values)]
        except UserError as error:
            if len(cells) == 1:
                detail = error.message.replace(f"{folder}/", "")
                return [Outcome(cells[0], runtime, "refused", detail, 0.0)]
            half = len(cells) // 2
            return _outcomes(cells[:half], runtime) + _outcomes(cells[half:], runtime)
    outcomes, outputs = [], iter(found)
    for cell, each in zip(cells, truths, strict=True):
        verdicts = [_verdict(cell, truth, next(outputs)) for truth in each]
        outcome = _outcome(cell, runtime, verdicts)
        if outcome.status == "MISMATCH" and len(cells) > 1:  # it may be so beside others only
            (alone,) = _outcomes((cell,), runtime)
            detail = f"{alone.detail} alone; beside other layers: {outcome.detail}"
            outcome = replace(alone, detail=detail)
        outcomes.append(outcome)
    return outcomes


def _verdict(cell: Cell, truth: Truth, found: Array) -> Verdict:
    if truth.quantization is not None:
        steps = found / truth.quantization.scale + truth.quantization.zero_point
        found = np.where(np.abs(steps - np.rint(steps)) < GRID, np.rint(steps), steps)
    return judge(cell, truth.expected, truth.magnitude, found)


def _outcome(cell: Cell, runtime: str, verdicts: Sequence[Verdict]) -> Outcome:
    worst = max(verdict.worst for verdict in verdicts)
    ok = all(verdict.ok for verdict in verdicts)
    detail = "; ".join(verdict.detail for verdict in verdicts if verdict.detail)
    for defect in KNOWN_DEFECTS:
        if defect.runtime == runtime and defect.applies(cell):
            if not ok:
                detail = f"{defect.reason} ({defect.versions}): {detail}"
                return Outcome(cell, runtime, "known defect", detail, worst)
            if defect.always:
                return Outcome(cell, runtime, "defect gone", f"{defect.reason}: not here", worst)
    return Outcome(cell, runtime, "match" if ok else "MISMATCH", detail, worst)


REPRODUCER = '''\
"""{name}, in {runtime}.

Expected is what {torch} computes in float64{rounded}. Exported by {exporters}.
{detail}
"""

import base64

import numpy as np
{imports}

def array(text, dtype, shape):
    return np.frombuffer(base64.b64decode("".join(text.split())), dtype).reshape(shape)


MODEL = base64.b64decode("""{model}""")
IMAGE = array("""{image}""", {image_dtype!r}, {image_shape})
EXPECTED = array("""{expected}""", "float64", {expected_shape})

{run}
print("expected", EXPECTED.shape, EXPECTED)
print("found", found.shape, found)
if found.shape == EXPECTED.shape:
    print("largest difference", np.abs(found - EXPECTED).max())
'''
IMPORTS = {
    "onnxruntime": "import onnxruntime\n",
    "litert": "from ai_edge_litert.interpreter import Interpreter\n",
}
RUNS = {
    "onnxruntime": """\
session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
found = session.run(None, {session.get_inputs()[0].name: IMAGE})[OUTPUT]
""",
    "litert": """\
interpreter = Interpreter(model_content=MODEL)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], IMAGE)
interpreter.invoke()
details = interpreter.get_signature_runner("serving_default").get_output_details()["output_OUTPUT"]
found = interpreter.get_tensor(details["index"])
""",
}


def write_reproducer(cell: Cell, folder: Path, runtime: str = "litert") -> Path:
    """A Python file that shows one image of this cell in this runtime, alone with NumPy.

    The image and the output are those of the largest error. Raises BadInput where it is refused.
    """
    values = inputs_for(cell)
    (truths,) = truths_of((cell,), values)
    with tempfile.TemporaryDirectory() as work:
        path = exported((cell,), runtime, Path(work))
        found, model = found_by(path, runtime, values), path.read_bytes()
    verdicts = [_verdict(cell, truth, each) for truth, each in zip(truths, found, strict=True)]
    output = max(range(len(verdicts)), key=lambda number: verdicts[number].worst)
    truth, verdict = truths[output], verdicts[output]
    image, expected = values[[verdict.image]], truth.expected[[verdict.image]].astype(np.float64)
    if truth.quantization is not None and runtime == "onnxruntime":  # it speaks real numbers
        image = (image.astype(np.float32) + 128) / np.float32(255)
        expected = (expected - truth.quantization.zero_point) * truth.quantization.scale
    encode = base64.encodebytes
    path = folder / f"{cell.name.replace(' ', '_').replace('=', '_')}_{runtime}.py"
    path.write_text(
        REPRODUCER.format(
            name=cell.name,
            runtime=f"{runtime} {version(BACKENDS[runtime].PIP)}",
            torch=f"torch {torch.__version__}",
            rounded=", in int8 before it is rounded" if truth.quantization else "",
            exporters=", ".join(f"{p} {version(p)}" for p in ("onnxscript", "litert-torch")),
            detail=verdict.detail,
            imports=IMPORTS[runtime],
            model=encode(model).decode(),
            image=encode(image.tobytes()).decode(),
            image_dtype=str(image.dtype),
            image_shape=image.shape,
            expected=encode(expected.tobytes()).decode(),
            expected_shape=expected.shape,
            run=RUNS[runtime].replace("OUTPUT", str(output)),
        )
    )
    return path
