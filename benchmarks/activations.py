"""How far runtimes are off in smooth functions: where the numbers of `bounds.SMOOTH` are from.

Every float32 input of a dense grid goes through a one-layer model, made by the exporters and run by
the shipped runner, in every kernel. The largest error is printed in units of u max(1, |y|), with
u = 2^-24, beside what the verifier allows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from deploy.runner.contract import Contract
from pipeline import program
from pipeline.console import say, table
from pipeline.errors import UserError, first_line
from pipeline.export import FORMATS
from pipeline.reference import execute
from pipeline.verify.bounds import SMOOTH, U
from pipeline.verify.runtimes import JUDGED, Runtimes, missing

SHAPE = (1, 256, 256)  # C x H x W: so many inputs in one image
FUNCTIONS = {
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "Softmax": nn.Softmax(-1),
    "LogSoftmax": nn.LogSoftmax(-1),
    "Gelu": nn.GELU(),
    "Elu": nn.ELU(),
    "HardSigmoid": nn.Hardsigmoid(),
    "HardSwish": nn.Hardswish(),
    "LeakyRelu": nn.LeakyReLU(0.01),
}


def inputs() -> np.ndarray:
    """float32 4 x SHAPE: evenly spaced far and near, over all magnitudes, normally distributed."""
    random = np.random.default_rng(0)
    size = int(np.prod(SHAPE))
    powers = 2.0 ** random.uniform(-40, 6, size) * random.choice([-1, 1], size)
    grids = (
        np.linspace(-30, 30, size),
        np.linspace(-2, 2, size),
        powers,
        random.normal(0, 3, size),
    )
    return np.stack([grid.reshape(SHAPE) for grid in grids]).astype(np.float32)


def main() -> None:
    values = inputs()
    configurations = [c for kind in JUDGED.values() for c in kind if not missing(c)]
    rows = []
    with tempfile.TemporaryDirectory() as folder, Runtimes() as runtimes:
        for name, function in FUNCTIONS.items():
            module = program.plain(program.capture(function.eval(), SHAPE).module())
            contract = Contract(
                name, "fp32", "", ("",), SHAPE, "picture", "logits", None, None, "", ""
            )
            exact, cells = None, {}
            for kind, export in FORMATS.items():
                path = Path(folder) / f"{name}.{kind}"
                try:
                    export(module, contract, path, ())
                except UserError as error:
                    say(f"{name}: {first_line(error)}")
                    continue
                if kind == "onnx":
                    model = onnx.load(path)
                    exact = execute(model, {"image": values})["scores"].astype(np.float64)
                for configuration in JUDGED[kind]:
                    if exact is None or missing(configuration):
                        continue
                    session = runtimes.open(configuration, path.read_bytes(), path.name)
                    off = np.abs(session.run(values)[0] - exact) / (
                        U * np.maximum(1, np.abs(exact))
                    )
                    cells[configuration.name] = f"{off.max():.2f}"
            allowed = f"{SMOOTH[name].roundings + (SHAPE[-1] if 'oftmax' in name else 0):g}"
            rows.append([name, *(cells.get(c.name, "") for c in configurations), allowed])
    names = [c.name for c in configurations]
    table("largest error in u max(1, |y|)", ["function", *names, "allowed"], rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
