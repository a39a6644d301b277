"""Verifying a run: its files pass, what is wrong with one is told, and the evidence is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deploy.runner.backends import Session
from pipeline.errors import BadInput, UsageError
from pipeline.files import sha256_file, sha256_files
from pipeline.run_folder import RunFolder
from pipeline.verify import laboratory, verify_run
from pipeline.verify.compiler import compiler
from pipeline.verify.mutants import mutants_of
from pipeline.verify.remote import tflite_runtime_python
from pipeline.verify.runtimes import JUDGED, VARIED, Configuration, Runtimes, kind_of

Report = dict[str, Any]
Array = npt.NDArray[Any]


def strict(content: str) -> Report:
    """JSON as every reader takes it: without NaN and Infinity, which are none."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    report: Report = json.loads(content, parse_constant=refuse)
    return report


# --- A run that is right --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(trained: Path) -> Report:
    """What verification wrote about the trained run."""
    return strict((trained / "small" / "verify.json").read_text())


def artefact(report: Report, file: str, configuration: str) -> Report:
    (found,) = [
        a
        for a in report["artefacts"]
        if a["file"].endswith(file) and a["configuration"] == configuration
    ]
    assert isinstance(found, dict)
    return found


def test_every_file_of_the_run_passes_in_every_runtime(report: Report) -> None:
    assert report["passed"] is True
    assert all(a["passed"] and a["error"] is None for a in report["artefacts"])
    for precision in ("fp32", "int8"):
        found = {a["configuration"] for a in report["artefacts"] if a["precision"] == precision}
        assert found >= {
            *("pytorch", "onnxruntime all", "onnxruntime extended", "onnxruntime basic"),
            *("onnxruntime disabled", "litert xnnpack", "litert builtin", "litert reference"),
        }
        other, c = tflite_runtime_python() is not None, compiler() is not None
        assert ("tflite-runtime xnnpack" in found) == other
        assert ("c best" in found) == c
        there = {"tflite-runtime": other, "c": c}
        assert report["skipped"] == sorted(name for name, is_there in there.items() if not is_there)


def test_no_element_is_outside_its_bound_or_unexplained(report: Report) -> None:
    for a in report["artefacts"]:
        for layer in a["layers"]:
            assert layer["isolated"] or not a["shipped"]
            for judgement in [layer[fed] for fed in ("in_place", "isolated") if layer[fed]]:
                where = (a["file"], a["configuration"], layer["layer"])
                assert judgement["outside"] == 0 and judgement["elements"] > 0, where
                if a["precision"] == "fp32":
                    assert judgement["fraction_of_bound"] <= 1, where
                else:
                    assert judgement["schemes"], where
                    assert sum(judgement["steps"].values()) == judgement["elements"], where


def test_the_fingerprints_are_those_that_runtimes_are_known_by(report: Report) -> None:
    xnnpack = artefact(report, "int8.tflite", "litert xnnpack")["fingerprints"]
    assert xnnpack["conv"] == xnnpack["linear"] == "float half even"
    assert xnnpack["average pool"] == "integer half away"
    builtin = artefact(report, "int8.tflite", "litert builtin")["fingerprints"]
    assert "double round" in builtin["conv"] and "double round" in builtin["linear"]
    shipped = artefact(report, "int8.onnx", "onnxruntime all")["fingerprints"]
    assert shipped["average pool"] == "half even"
    if compiler() is not None:
        generated = artefact(report, "int8-c", "c best")["fingerprints"]
        assert generated["conv"] == generated["linear"] == "float half even"
        assert not artefact(report, "fp32-c", "c best")["fingerprints"]
    assert not artefact(report, "fp32.onnx", "onnxruntime all")["fingerprints"]


def test_the_evidence_is_there(report: Report, trained: Path) -> None:
    machine = report["machine"]
    assert {"torch", "onnxruntime", "ai-edge-litert", "numpy"} <= set(machine["packages"])
    assert machine["processor"] and isinstance(machine["processor_flags"], list)
    assert machine["torch_threads"] >= 1
    entries = json.loads((trained / "small" / "run.json").read_text())["artefacts"]
    for name, digest in report["sha256"].items():
        assert len(digest) == 64
        if name.endswith("-c"):
            files = entries[name]["files"]
            assert sha256_files(trained / "small" / name, files) == digest
        elif name != "images":
            assert sha256_file(trained / "small" / name) == digest
    kinds = [kind_of(name) for name in report["sha256"]]
    assert sorted(kinds) == ["", "c", "c", "onnx", "onnx", "tflite", "tflite"]
    assert len(report["dataset_sha256"]) == 64
    assert report["cases"]["test images"] == 64 and len(report["cases"]) > 3
    assert isinstance(report["seed"], int)
    for a in report["artefacts"]:
        assert any(character.isdigit() for character in a["runtime"])  # a version
        assert a["observer"]["elements"] > 0
    for layer in artefact(report, "int8.tflite", "litert builtin")["layers"]:
        for fed in ("isolated", "in_place", "accumulated"):
            judgement = layer[fed]
            assert judgement["largest"] >= judgement["mean"] >= 0
            assert 0 < judgement["cosine"] <= 1 + 1e-9
            assert judgement["sqnr_db"] is None or judgement["sqnr_db"] > 0
            assert judgement["equal_part"] <= 1
    assert len(report["worst"]) == 3


def test_what_kernels_threads_and_batches_change_is_listed_with_its_cause(report: Report) -> None:
    configurations = {entry["configuration"] for entry in report["varied"]}
    assert configurations >= {
        *("onnxruntime disabled", "onnxruntime all, 2 threads", "onnxruntime all, batch 1"),
        *("litert builtin", "litert reference", "litert xnnpack, 2 threads"),
    }
    for entry in report["varied"]:
        assert entry["cause"] and entry["elements"] > 0
        assert (entry["differ"] > 0) == (entry["largest"] > 0)
        if entry["file"].endswith("int8.tflite") and entry["differ"]:
            assert "not float half even" in entry["cause"]


def test_final_outputs_are_over_the_whole_test_set(report: Report) -> None:
    shipped = [a for a in report["artefacts"] if a["final"] is not None]
    assert {a["configuration"] for a in shipped} >= {"onnxruntime all", "litert xnnpack"}
    for a in shipped:
        final = a["final"]
        assert sum(final["confusion_with_fp32"].values()) == report["test_images"] > 300
        assert 0.8 < final["accuracy"] <= 1
        for flip in final["flips"]:
            assert flip["program"] != flip["found"] and flip["margin"] >= 0
            assert 0 <= flip["image"] < report["test_images"]
        if a["precision"] == "fp32":
            assert final["flips"] == [] and final["relative"] < 1e-4


# --- Runs with something wrong --------------------------------------------------------------------


@pytest.fixture
def shipped_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the configuration that ships is judged, for speed."""
    for kind, configurations in list(JUDGED.items()):
        monkeypatch.setitem(JUDGED, kind, configurations[:1])
        monkeypatch.setitem(VARIED, kind, ())


def verified(runs: Path, monkeypatch: pytest.MonkeyPatch, kind: str, **options: Any) -> Report:
    """Verify one file of the run, which must leave in verify.json what it returned."""
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(runs))
    precision, _, suffix = kind.partition(".")
    found = verify_run(RunFolder.open("small"), 8, (suffix,), (precision,), **options)
    written = strict((runs / "small" / "verify.json").read_text())
    assert written["passed"] == found["passed"]
    assert len(written["artefacts"]) == len(found["artefacts"])
    return written


def replaced(runs: Path, kind: str, content: bytes) -> None:
    """Put another file in the place of the run's, hash and all."""
    name = f"lenet5-classic-{kind}"
    path = runs / "small" / name
    path.write_bytes(content)
    record = runs / "small" / "run.json"
    known = json.loads(record.read_text())
    digests = {name: sha256_file(path)}

    def renew(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            if key in digests and isinstance(inner, dict) and "sha256" in inner:
                inner["sha256"] = digests[key]
                inner["bytes"] = len(content)
            elif key in digests and isinstance(inner, str):
                value[key] = digests[key]
            renew(inner)

    renew(known)
    record.write_text(json.dumps(known))


def mutant(runs: Path, kind: str, name: str) -> bytes:
    path = runs / "small" / f"lenet5-classic-{kind}"
    return next(m.content for m in mutants_of(path) if m.name == name)


@pytest.mark.parametrize(
    ("kind", "name", "broken"),
    [
        ("fp32.tflite", "one tap", "conv2d"),
        ("int8.tflite", "channel permutation", "conv2d"),
        pytest.param("fp32.tflite", "shifted padding", "conv2d", marks=pytest.mark.slow),
        pytest.param("int8.tflite", "dropped activation", None, marks=pytest.mark.slow),
        ("fp32.tflite", "max for average", None),
    ],
)
def test_a_file_that_is_replaced_by_a_wrong_one_fails_and_the_layer_is_named(
    name: str,
    broken: str | None,
    kind: str,
    runs: Path,
    shipped_only: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replaced(runs, kind, mutant(runs, kind, name))
    report = verified(runs, monkeypatch, kind)
    assert report["passed"] is False
    program, shipped = (a for a in report["artefacts"] if a["configuration"] != "reference")
    assert program["passed"] and not shipped["passed"]
    if broken is None:
        assert "not mapped" in (shipped["error"] or "") or shipped["first_broken"] is not None
    else:
        assert shipped["first_broken"] == broken
        assert report["worst"][0]["layer"] == broken
        assert report["worst"][0]["outside"] > 0


@pytest.mark.parametrize(
    ("kind", "name"), [("fp32.onnx", "channel permutation"), ("int8.onnx", "one tap")]
)
@pytest.mark.slow
def test_a_wrong_onnx_file_is_not_believed_though_the_reference_is_read_from_it(
    name: str, kind: str, runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(runs, kind, mutant(runs, kind, name))
    report = verified(runs, monkeypatch, kind)
    assert report["passed"] is False
    program = report["artefacts"][0]
    assert not program["passed"] and program["first_broken"] == "conv2d"


@pytest.mark.parametrize("name", ["dropped activation", "max for average"])
def test_an_onnx_file_of_other_layers_is_refused(
    name: str, runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(runs, "fp32.onnx", mutant(runs, "fp32.onnx", name))
    with pytest.raises(BadInput, match="not mapped"):
        verified(runs, monkeypatch, "fp32.onnx")


@pytest.mark.parametrize("required", [True, False])
def test_a_missing_runtime_is_a_failure_where_it_is_required(
    required: bool, runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.verify.runtimes.tflite_runtime_python", lambda: None)
    other = Configuration("tflite-runtime", "xnnpack", shipped=True)
    monkeypatch.setitem(JUDGED, "tflite", (JUDGED["tflite"][0], other))
    require = ("litert", "tflite-runtime") if required else ()
    report = verified(runs, monkeypatch, "fp32.tflite", require=require)
    assert report["passed"] is not required
    assert report["required"] == list(require)
    if required:
        assert report["absent"] == ["tflite-runtime"]
        (found,) = [a for a in report["artefacts"] if "tflite-runtime" in a["configuration"]]
        assert not found["passed"] and "tflite-runtime" in found["error"]
    else:
        assert (report["absent"], report["skipped"]) == ([], ["tflite-runtime"])


def test_a_required_runtime_that_runs_none_of_the_files_is_absent(
    runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = verified(runs, monkeypatch, "fp32.onnx", require=("litert",))
    assert (report["passed"], report["absent"]) == (False, ["litert"])


def test_no_images_are_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(runs))
    with pytest.raises(UsageError, match="images"):
        verify_run(RunFolder.open("small"), 0)


@dataclasses.dataclass(frozen=True)
class Altered:
    """A session whose outputs are altered."""

    inner: Session
    alter: Callable[[Array], Array]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, *values: Array) -> list[Array]:
        return [self.alter(output) for output in self.inner.run(*values)]


def altering(
    monkeypatch: pytest.MonkeyPatch,
    alter: Callable[[Array], Array],
    when: Callable[[Configuration], bool],
) -> None:
    opener = Runtimes.open

    def open_altered(
        self: Runtimes, configuration: Configuration, content: bytes, name: str
    ) -> Any:
        session = opener(self, configuration, content, name)
        return Altered(session, alter) if when(configuration) else session

    monkeypatch.setattr(Runtimes, "open", open_altered)


def test_no_number_is_a_failure_and_never_turned_into_one(
    runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    altering(monkeypatch, lambda output: np.full_like(output, np.nan), lambda _: True)
    report = verified(runs, monkeypatch, "fp32.onnx")
    assert report["passed"] is False
    assert "NaN or infinity" in json.dumps(report["artefacts"][-1])


def test_scores_that_are_no_numbers_are_a_failure_and_still_json(
    runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the file's own output, whether its layers are observed or not."""

    def spoil(output: Array) -> Array:
        return np.full_like(output, np.nan) if output.shape[1:] == (10,) else output

    altering(monkeypatch, spoil, lambda _: True)
    report = verified(runs, monkeypatch, "fp32.tflite")
    assert report["passed"] is False
    found = report["artefacts"][-1]
    assert not found["passed"]
    assert found["error"] or found["first_broken"] == "linear_2"


@pytest.mark.parametrize("kind", ["fp32.onnx", "int8.tflite"])
@pytest.mark.slow
def test_more_threads_that_compute_something_else_are_a_failure(
    kind: str, runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their layers are not judged one by one, so their outputs must be."""
    suffix = kind.rpartition(".")[2]
    two = dataclasses.replace(JUDGED[suffix][0], threads=2, shipped=False)
    monkeypatch.setitem(VARIED, suffix, (two,))
    altering(monkeypatch, lambda output: output[:, ::-1], lambda c: c.threads == 2)
    report = verified(runs, monkeypatch, kind)
    (entry,) = [e for e in report["varied"] if "2 threads" in e["configuration"]]
    assert entry["differ"] > 0
    assert report["passed"] is False


def test_batches_are_judged_to_the_last_image(
    runs: Path, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are judged in parts, and positions count on from one to the next."""
    monkeypatch.setattr(laboratory, "BATCH", 7)
    report = verified(runs, monkeypatch, "fp32.onnx")
    assert report["passed"]
    images = sum(report["cases"].values())
    for a in report["artefacts"]:
        last = a["layers"][-1]["in_place"]
        if a["configuration"] == "reference":
            continue
        assert last["elements"] == images * 10
        assert 0 <= last["worst"]["position"][0] < images
