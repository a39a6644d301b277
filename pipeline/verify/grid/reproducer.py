"""Python files that show one cell going wrong, without this project."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from deploy.runner.backends import BACKENDS

from ..bounds import Bounded
from .cells import OPERATORS, Cell
from .defects import known_refusal
from .group import KINDS, REFERENCE, export_cells, found_by, group_of
from .outcome import KNOWN_DEFECT, MISMATCH, REFUSED, Outcome, described
from .truth import judge_output

RUNTIME_FILE = '''\
"""{name}, in {runtime}.

Expected is what torch {torch} computes in float64{rounded}. Exported by {exporters}.
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
    REFERENCE: "import onnx\n\nfrom pipeline.reference import execute\n",
    "onnxruntime": "import onnxruntime\n",
    "litert": "from ai_edge_litert.interpreter import Interpreter\n",
}
RUNS = {
    REFERENCE: """\
model = onnx.load_from_string(MODEL)
values = execute(model, {model.graph.input[0].name: IMAGE})
found = values[model.graph.output[OUTPUT].name]
""",
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
CONVERTER_FILE = '''\
"""{name}: what a converter makes of it ({versions}).

{detail}
"""

import numpy as np
import torch
from torch import nn

layer = nn.{module}(**{options!r}).eval()
image = torch.randn(1, *{shape}, generator=torch.Generator().manual_seed(0))
expected = layer(image)
{run}
for want, have in zip(expected if isinstance(expected, tuple) else [expected], found):
    print("expected", tuple(want.shape), want.numpy())
    print("found", have.shape, have)
    if have.shape == tuple(want.shape):
        print("largest difference", np.abs(have - want.numpy()).max())
'''
CONVERTERS = {
    "onnx": """\
program = torch.onnx.export(layer, (image,), dynamo=True)
import onnxruntime

session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
""",
    "tflite": """\
import litert_torch

found = litert_torch.convert(layer, (image,))(image)
found = found if isinstance(found, (list, tuple)) else [found]
""",
}


def write_reproducers(outcomes: Iterable[Outcome], folder: Path) -> list[Path]:
    """A file for each cell that is wrong, in `folder`, which is made if need be.

    For what is refused because a converter is known to be wrong, a file that calls the converter;
    fp32 is enough there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for outcome in outcomes:
        if KINDS[outcome.runtime] == "c":
            continue  # what it takes is a folder: pipeline export FILE.onnx --format c -o FOLDER
        if outcome.status in (KNOWN_DEFECT, MISMATCH):
            paths.append(write_reproducer(outcome.cell, folder, outcome.runtime))
        elif outcome.status == REFUSED and outcome.runtime != REFERENCE:
            paths += _converter_file(outcome, folder)
    return paths


def _path(cell: Cell, what: str, folder: Path) -> Path:
    return folder / f"{cell.name.replace(' ', '_').replace('=', '_')}_{what}.py"


def _converter_file(outcome: Outcome, folder: Path) -> list[Path]:
    cell, kind = outcome.cell, KINDS[outcome.runtime]
    refusal = known_refusal(cell, kind)
    if refusal is None or not refusal.versions or cell.precision != "fp32":
        return []
    path = _path(cell, kind, folder)
    path.write_text(
        CONVERTER_FILE.format(
            name=cell.name,
            versions=refusal.versions,
            detail=outcome.detail,
            module=OPERATORS[cell.operator].__name__,
            options=cell.options,
            shape=cell.shape,
            run=CONVERTERS[kind],
        )
    )
    return [path]


def write_reproducer(cell: Cell, folder: Path, runtime: str = "litert") -> Path:
    """A file that shows one image of this cell in this runtime, with NumPy and the runtime alone.

    The image and the output are those of the largest error. Raises BadInput where it is refused.
    """
    group = group_of([cell])
    truths = group.truths[0]
    with tempfile.TemporaryDirectory() as work:
        ((path, _),) = export_cells(group, [0], KINDS[runtime], Path(work))
        found, model = found_by(path, runtime, group.values), path.read_bytes()
    judgements = [
        judge_output(truth, each, runtime == REFERENCE)
        for truth, each in zip(truths, found, strict=True)
    ]
    wrong = next((n for n, judgement in enumerate(judgements) if not judgement.passed), 0)
    truth, judgement = truths[wrong], judgements[wrong]
    place = judgement.first_outside
    number = place.position[0] if place else 0
    image = group.values[[number]]
    exact = truth.exact
    if isinstance(exact, Bounded):
        expected = exact.value.astype(np.float64)
    else:
        expected = exact.clamp(exact.real + exact.zero_point)
        if KINDS[runtime] == "onnx":  # it speaks real numbers
            image = (image.astype(np.float32) + 128) / np.float32(255)
            expected = (expected - exact.zero_point) * truth.scale
    expected = expected[[number]]
    backend = BACKENDS.get(runtime)
    encode = base64.encodebytes
    path = _path(cell, runtime, folder)
    path.write_text(
        RUNTIME_FILE.format(
            name=cell.name,
            runtime=f"{runtime} {version(backend.PIP)}" if backend else runtime,
            torch=torch.__version__,
            rounded="" if isinstance(exact, Bounded) else ", in int8 before it is rounded",
            exporters=", ".join(f"{p} {version(p)}" for p in ("onnxscript", "litert-torch")),
            detail=described(judgement) if not judgement.passed else "It is right here.",
            imports=IMPORTS[runtime],
            model=encode(model).decode(),
            image=encode(image.tobytes()).decode(),
            image_dtype=str(image.dtype),
            image_shape=image.shape,
            expected=encode(expected.tobytes()).decode(),
            expected_shape=expected.shape,
            run=RUNS[runtime].replace("OUTPUT", str(wrong)),
        )
    )
    return path
