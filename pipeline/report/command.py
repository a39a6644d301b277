"""The one command that makes a run again."""

from __future__ import annotations

import shlex

from ..checkpoint import option_of
from ..run_folder import RunFolder
from ..verify import REPORT

SETTINGS = (  # of TrainConfig, that have a value of their own on the command line
    *("model", "dataset", "epochs", "batch_size", "learning_rate", "seed", "activation", "device"),
    *("weight_decay", "label_smoothing"),
)


def reproducing_command(run: RunFolder) -> str:
    """`pipeline run` with the settings of the training, all of them said."""
    config = run.training["config"]
    words = ["pipeline", "run", "--run", run.name]
    for name in SETTINGS:
        if config.get(name) is not None:
            words += [option_of(name), str(config[name])]
    words += ["--input-shape", ",".join(str(size) for size in run.training["input_shape"])]
    distorted = ["--augment", "--distortion", str(config["distortion"])]
    words += distorted if config["augment"] else ["--no-augment"]
    if REPORT in run.record["artefacts"]:
        verified = run.entry(REPORT)["config"]
        words += ["--format", ",".join(verified["formats"])]
        words += ["--precision", ",".join(verified["precisions"])]
        words += ["--images", str(verified["images"])]
    return shlex.join(words)
