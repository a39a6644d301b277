"""How much each layer of an int8 program costs: each quantized alone, the others in float, with the
ranges of the int8 program and no bias correction.
"""

from __future__ import annotations

from typing import Any

from .. import __version__
from ..data import dataset_of
from ..errors import BadInput
from ..program import accuracy, load, run
from ..run_folder import RunFolder
from .calibration import quantize
from .choice import Calibration, is_trained
from .measure import OnStep, measured
from .mixed import layers

SENSITIVITY = "sensitivity.json"


def sensitivity_run(folder: RunFolder, on_step: OnStep = lambda _: None) -> dict[str, Any]:
    """Measure a run's layers on its validation images, keep that as sensitivity.json, return it.

    A dry run returns nothing. Raises Missing or BadInput.
    """
    if is_trained(folder):
        raise BadInput(
            f"the int8 program of run {folder.name} was trained: no layer of it is quantized alone",
            f"run 'pipeline quantize --run {folder.name}' for one that is calibrated",
        )
    names = [folder.artefact(precision, "pt2") for precision in ("fp32", "int8")]
    paths = [folder.need(name) for name in names]
    if not folder.wants(SENSITIVITY):
        return {}
    program, int8 = (load(path) for path in paths)
    dataset, entry = dataset_of(folder), folder.entry(names[1])
    data = dataset.validation
    wanted = run(program, data.images)[0]
    # A corrected bias makes up for the rounding of layers that here are float: it has no place.
    chosen = next(each for each in entry["facts"]["tried"] if each["chosen"])
    calibration = Calibration(entry["config"]["size"], entry["config"]["seed"])
    plainly = quantize(program, calibration.images(dataset.train), chosen["observer"])
    record = {
        "images": len(data),
        "fp32": {"accuracy": accuracy(wanted, data.labels)},
        "int8": measured(int8, wanted, data),
        "layers": layers(plainly, wanted, data, on_step),
    }
    config = {"pipeline": __version__}
    folder.commit_json(SENSITIVITY, record, config, names, allow_nan=False)
    return record
