"""One folder a run, `runs/NAME/`: its files, where each came from, and whether it is still true.

`run.json` records for every artefact its SHA-256, the configuration it was made with and the
SHA-256 of what it was made from. Reading an artefact checks all of it: a file changed by hand or
older than its source is an error that names the command to run, never a silent mix.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BadInput, Missing, UsageError, UserError, unknown
from .files import digest_of, make_folder, replace_folder, replacing, write_atomically
from .mending import command_for
from .precisions import artefact_name

RECORD = "run.json"
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
EVENTS = "tensorboard"  # a folder
SCHEMA = 1
NEW, REPLACED, UNCHANGED = "new", "replaced", "unchanged"  # what a plan says of a file
ENTRY = {"sha256", "bytes", "config", "inputs", "made", "facts"}  # what is known of an artefact


def runs_root() -> Path:
    """Where runs live: `runs` below the working directory, or PIPELINE_RUNS_DIR."""
    return Path(os.environ.get("PIPELINE_RUNS_DIR", "runs"))


def known_runs() -> list[str]:
    """The names of all runs."""
    return sorted(record.parent.name for record in runs_root().glob(f"*/{RECORD}"))


@dataclass
class RunFolder:
    """A run on disk. `record` mirrors run.json; `commit` is its writer.

    With a `plan` nothing is made: it says of each file what making it would do.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """The run's name: its folder's."""
        return self.path.name

    @property
    def model(self) -> str:
        """The network's name, with which artefact names begin."""
        return str(self.record["model"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The network's (C, H, W), known once it is trained."""
        channels, height, width = self.training["input_shape"]
        return channels, height, width

    @classmethod
    def create(cls, name: str, model: str, dry_run: bool = False) -> RunFolder:
        """A folder to work in, new or there already. A dry run has a plan, and writes nothing.
        Raises UsageError or BadInput.
        """
        if not name or name != Path(name).name or name.startswith("."):
            raise UsageError(f"{name!r} is no name for a run", "give a plain name, like 'trial-2'")
        path = runs_root() / name
        if (path / RECORD).exists():
            run = cls.open(name, dry_run)
            run.record["model"] = model
            return run
        run = cls(path, {"schema": SCHEMA, "model": model, "artefacts": {}})
        if dry_run:
            run.plan = {}
            return run
        make_folder(path)
        run._save()
        return run

    @classmethod
    def open(cls, name: str | None = None, dry_run: bool = False) -> RunFolder:
        """The named run, or the newest. A dry run has a plan. Raises Missing, UsageError or
        BadInput.
        """
        records = list(runs_root().glob(f"*/{RECORD}"))
        if not records:
            raise Missing(f"no run in {runs_root()}/", "run 'pipeline train'")
        if name is None:
            # A run whose training has not finished has nothing to go on with.
            path = max(
                records, key=lambda r: (len(list(r.parent.iterdir())) > 1, r.stat().st_mtime_ns)
            ).parent
        else:
            path = runs_root() / name
            if not (path / RECORD).is_file():
                raise unknown("run", name, known_runs())
        try:
            record = json.loads((path / RECORD).read_text())
            if record["schema"] != SCHEMA or not isinstance(record["artefacts"], dict):
                raise ValueError(f"schema {record['schema']}")
            for entry in record["artefacts"].values():
                if not (set(entry) >= ENTRY and isinstance(entry["inputs"], dict)):
                    raise ValueError("an artefact's entry is incomplete")
            plan: dict[str, str] | None = {} if dry_run else None
            return cls(path, record | {"model": str(record["model"])}, plan)
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise BadInput(
                f"{path / RECORD}: damaged or changed by hand ({reason})",
                f"delete the folder {path} and train again",
            ) from error

    def mending_command(self, filename: str) -> str:
        """What to do to have this artefact made anew."""
        words = ["pipeline", *command_for(self.record, filename), "--run", self.name]
        return f"run '{shlex.join(words)}'"

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the finished training. Raises Missing where there is none."""
        if "training" not in self.record:
            self.entry(self.artefact("fp32", "pt2"))
        facts: dict[str, Any] = self.record["training"]
        return facts

    def remove_if_empty(self) -> None:
        """Take back a folder in which nothing has come about."""
        found = {path.name for path in self.path.iterdir()}
        if found <= {RECORD, METRICS, EVENTS} and not self.record["artefacts"]:
            shutil.rmtree(self.path)

    def remove_leftovers(self) -> None:
        """Take away what a kill has left half-written."""
        for path in self.path.glob(".*.tmp*"):
            path.unlink(missing_ok=True)
        for path in self.path.glob(".work-*"):
            shutil.rmtree(path, ignore_errors=True)

    def artefact(self, precision: str, kind: str) -> str:
        """The file name MODEL-PRECISION.KIND; C is a folder, MODEL-PRECISION-c."""
        return artefact_name(self.model, precision, kind)

    def entry(self, filename: str) -> dict[str, Any]:
        """What run.json says of an artefact. Raises Missing when it was never made."""
        entry: dict[str, Any] | None = self.record["artefacts"].get(filename)
        if entry is None:
            mend = self.mending_command(filename)
            if not self.record["artefacts"] and (self.path / CHECKPOINT).is_file():
                mend = f"run 'pipeline train --resume --run {self.name}'"
            raise Missing(f"run {self.name} has no {filename}", mend)
        return entry

    def need(self, filename: str) -> Path:
        """The path of an artefact that is there, unchanged, and newer than all it came from."""
        entry, path = self.entry(filename), self.path / filename

        def wrong(kind: type[UserError], what: str) -> UserError:
            return kind(f"{path}: {what}", self.mending_command(filename))

        if not path.exists():
            raise wrong(Missing, "the file is gone")
        if digest_of(path, entry.get("files")) != entry["sha256"]:
            raise wrong(
                BadInput, "changed by hand or damaged (its SHA-256 is not the recorded one)"
            )
        for source, digest in entry["inputs"].items():
            if source not in self.record["artefacts"]:
                raise wrong(BadInput, f"made from {source}, which the run has no more")
            self.need(source)
            if self.entry(source)["sha256"] != digest:
                raise wrong(BadInput, f"made from an older {source} (stale)")
        return path

    def is_current(self, filename: str, config: dict[str, Any]) -> bool:
        """Whether making the artefact again with this configuration would give the same file."""
        try:
            self.need(filename)
        except (Missing, BadInput):
            return False
        return bool(self.entry(filename)["config"] == json.loads(json.dumps(config)))

    def wants(self, *filenames: str, config: dict[str, Any] | None = None) -> bool:
        """Whether any of these artefacts is to be made: it is not current, or is made anew each
        time (no `config`). With a plan all are noted there, and nothing is to be made.
        """
        wanted = [n for n in filenames if config is None or not self.is_current(n, config)]
        if self.plan is None:
            return bool(wanted)
        for name in filenames:
            there = REPLACED if (self.path / name).exists() else NEW
            self.plan[name] = there if name in wanted else UNCHANGED
        return False

    def commit(
        self,
        temporary: dict[str, Path],
        config: dict[str, Any],
        inputs: list[str],
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Move finished files into the run and record where they came from.

        `temporary` maps artefact names to finished files. A kill between the moves and the record
        leaves files that do not match it, which the next reader reports.
        """
        config = json.loads(json.dumps(config))  # as it will be read back: tuples are lists
        digests = {source: self.entry(source)["sha256"] for source in inputs}
        for filename, path in temporary.items():
            files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
            digest = digest_of(path, files or None)
            size = sum((path / name).stat().st_size for name in files or [""])
            if path.is_dir():
                replace_folder(path, self.path / filename)
            else:
                with replacing(self.path / filename) as place:
                    path.replace(place)
            self.record["artefacts"][filename] = {
                "sha256": digest,
                "bytes": size,
                **({"files": files} if files else {}),
                "config": config,
                "inputs": digests,
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "facts": facts or {},
            }
        self._save()

    def discard(self, folder: str) -> None:
        """Take an artefact that is a folder out of the run, which cannot have it any more."""
        if self.record["artefacts"].pop(folder, None) is not None:
            self._save()
            shutil.rmtree(self.path / folder, ignore_errors=True)

    def commit_json(
        self,
        filename: str,
        document: Any,
        config: dict[str, Any],
        inputs: list[str],
        facts: dict[str, Any] | None = None,
        *,
        allow_nan: bool = True,
    ) -> None:
        """`commit` a document as JSON. Raises ValueError for NaN or infinity unless `allow_nan`."""
        text = json.dumps(document, indent=1, allow_nan=allow_nan) + "\n"
        with self.workspace() as work:
            (work / filename).write_text(text)
            self.commit({filename: work / filename}, config, inputs, facts)

    def read_json(self, filename: str) -> Any:
        """The document in an artefact that `need` finds nothing wrong with."""
        return json.loads(self.need(filename).read_bytes())

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for files in the making, inside the run so that they can be moved; then gone."""
        work = self.path / f".work-{secrets.token_hex(4)}"
        try:
            work.mkdir()
        except OSError as error:
            raise BadInput(
                f"{self.path}: cannot be written ({error.strerror})",
                "give another run with --run, or another place with PIPELINE_RUNS_DIR",
            ) from error
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _save(self) -> None:
        text = json.dumps(self.record, indent=1, sort_keys=True) + "\n"
        write_atomically(self.path / RECORD, text.encode())
