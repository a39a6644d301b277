"""A study as its folder has it: the trials of a search, and which of them did best."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInput, UsageError
from .run_folder import NEW, REPLACED, RunFolder, runs_root

RESULT = "sweep.json"
DATABASE = "study.db"  # where no other storage is given
PICTURES = ("history.png", "importance.png")


@dataclass(frozen=True)
class Trial:
    """One training of a study. The accuracy is the best on validation images, in [0, 1]."""

    number: int
    state: str  # complete, pruned, fail, running (or killed)
    validation_accuracy: float | None
    epochs: int
    seconds: float | None
    settings: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """A study so far; `importance` is each setting's part of what the accuracy's spread is due to
    (fANOVA: Hutter, Hoos and Leyton-Brown 2014), empty where there are too few trials.
    """

    study: str
    folder: Path
    storage: str  # without its password
    trials: tuple[Trial, ...]
    importance: dict[str, float]
    command: str  # trains with the best settings
    subject: dict[str, Any]  # what all trials have in common, as `_subject` has it

    @property
    def best(self) -> Trial | None:
        """The best trial that was not cut short."""
        whole = [t for t in self.trials if t.state == "complete"]
        return max(whole, key=lambda t: t.validation_accuracy or 0, default=None)


def folder_of(study: str) -> Path:
    """Where a study's files are. Raises UsageError for what is no name of one."""
    if not study or study != Path(study).name or study.startswith("."):
        raise UsageError(f"{study!r} is no name for a study", "give a plain name, like 'lenet-2'")
    return runs_root() / f"sweep-{study}"


def planned(study: str, storage: str | None) -> dict[Path, str]:
    """What a search would do to the files of a study."""
    names = [*([] if storage else [DATABASE]), RESULT, *PICTURES]
    paths = [folder_of(study) / name for name in names]
    return {path: REPLACED if path.exists() else NEW for path in paths}


def as_document(result: Sweep) -> dict[str, Any]:
    """What --json prints and sweep.json keeps."""
    return {
        "study": result.study,
        "folder": str(result.folder),
        "storage": result.storage,
        "best": vars(result.best) if result.best else None,
        "command": result.command,
        "importance": result.importance,
        "subject": result.subject,
        "trials": [vars(trial) for trial in result.trials],
    }


def from_document(document: dict[str, Any]) -> Sweep:
    """What `as_document` made a document of. Raises KeyError or TypeError for another one."""
    trials = tuple(Trial(**trial) for trial in document["trials"])
    names = ("study", "storage", "importance", "command", "subject")
    known = {name: document[name] for name in names}
    return Sweep(folder=Path(document["folder"]), trials=trials, **known)


def studies_of(run: RunFolder) -> list[Sweep]:
    """Every study of a run's network on its data, by name. Raises BadInput."""
    training = run.training
    wanted = {key: training[key] for key in ("dataset_sha256", "source_sha256")}
    wanted |= {key: training["config"][key] for key in ("model", "activation")}
    studies = [_read(path) for path in sorted(runs_root().glob(f"sweep-*/{RESULT}"))]
    return [
        study
        for study in studies
        if all(study.subject.get(key) == value for key, value in wanted.items())
    ]


def _read(path: Path) -> Sweep:
    try:
        return from_document(json.loads(path.read_bytes()) | {"folder": path.parent})
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: not what this version's 'pipeline sweep' writes ({error!r})",
            "go on with the study: 'pipeline sweep' writes it anew",
        ) from error
