"""The one command that makes a run again."""

from __future__ import annotations

import shlex

from ..mending import training_options
from ..run_folder import RunFolder
from ..verify import REPORT


def reproducing_command(run: RunFolder) -> str:
    """`pipeline run` with the settings of the training, all of them said."""
    options = training_options(run.training["config"])
    words = ["pipeline", "run", "--run", run.name, *options]
    if REPORT in run.record["artefacts"]:
        verified = run.entry(REPORT)["config"]
        words += ["--format", ",".join(verified["formats"])]
        words += ["--precision", ",".join(verified["precisions"])]
        words += ["--images", str(verified["images"])]
    return shlex.join(words)
