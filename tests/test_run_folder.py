import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.checkpoint import TrainConfig
from pipeline.cli import main
from pipeline.cli_options import training
from pipeline.errors import BadInput, Missing, UsageError
from pipeline.files import replacing, write_atomically
from pipeline.precisions import FORMATS, USUAL
from pipeline.quantization import Calibration
from pipeline.quantization.training import FineTuning
from pipeline.run_folder import RECORD, RunFolder
from pipeline.verify import verify_config

FLOAT, INT8, ONNX = "lenet5-fp32.pt2", "lenet5-int8.pt2", "lenet5-int8.onnx"
FLOAT_ONNX = "lenet5-fp32.onnx"
TFLITE, BUNDLE, WEIGHTS = "lenet5-int8.tflite", "lenet5-bundle.tar.gz", "model.safetensors"
CONFIG = {"seed": 0, "input_shape": (1, 28, 28)}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(run, filename, inputs=(), content=b"content", config=CONFIG):
    with run.workspace() as work:
        (work / filename).write_bytes(content)
        run.commit({filename: work / filename}, config, list(inputs))


@pytest.fixture
def run():
    """A run with a chain of artefacts: float program, int8 program, ONNX."""
    run = RunFolder.create("trial", "lenet5")
    make(run, FLOAT)
    make(run, INT8, [FLOAT])
    make(run, ONNX, [INT8])
    return run


def test_what_was_committed_can_be_read_in_another_process(run):
    again = RunFolder.open("trial")
    assert again.model == "lenet5"
    assert again.need(ONNX).read_bytes() == b"content"
    assert again.artefact("int8", "onnx") == ONNX
    assert sorted(path.name for path in run.path.iterdir()) == sorted([FLOAT, INT8, ONNX, RECORD])


@pytest.mark.parametrize(
    ("filename", "command"),
    [
        (WEIGHTS, "train --overwrite"),
        (FLOAT, "train --overwrite"),
        (INT8, "quantize"),
        (ONNX, "export --format onnx --precision int8"),
        (TFLITE, "export --format tflite --precision int8"),
        ("verify.json", "verify"),
        (BUNDLE, "package"),
    ],
)
@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ("never made", Missing, "has no"),
        ("deleted", Missing, "gone"),
        ("changed by hand", BadInput, "changed by hand"),
    ],
)
def test_an_artefact_that_cannot_be_used_names_its_command(filename, command, state, error, says):
    run = RunFolder.create("trial", "lenet5")
    if state != "never made":
        make(run, filename)
    if state == "deleted":
        (run.path / filename).unlink()
    if state == "changed by hand":
        (run.path / filename).write_bytes(b"Content")
    with pytest.raises(error, match=says) as caught:
        run.need(filename)
    assert filename in str(caught.value)
    assert f"run 'pipeline {command} --run trial'" in str(caught.value)


BOARD = {"target": "pi-4", "os": "trixie", "wheels": True, "models": [ONNX], "c": ["lenet5-int8-c"]}


@pytest.mark.parametrize(
    ("filename", "config", "command"),
    [
        (
            "lenet5-pi-4-trixie-bundle.deb",
            BOARD,
            "package --target pi-4 --os trixie --runtime onnx,c --precision int8 --wheelhouse "
            "--format deb",
        ),
        (
            "lenet5-pi-4-trixie-bundle.deb",
            {"target": "pi-4", "os": "trixie"},
            "package --target pi-4 --os trixie --format deb",
        ),
        ("lenet5-fp32-c", {}, "export --format c --precision fp32"),
        (
            "verify.json",
            verify_config(64, ("onnx",), ("fp32",), require=("litert",)),
            "verify --format onnx --precision fp32 --images 64 --require litert",
        ),
        ("verify.json", verify_config(1000, FORMATS, USUAL), "verify"),
        (BUNDLE, {"models": [ONNX, TFLITE, FLOAT_ONNX], "c": ["lenet5-int8-c"]}, "package"),
        (INT8, Calibration().config, "quantize"),
        (
            INT8,
            Calibration(50, 3, "mse", bias_correction=True, max_drop=0.5).config,
            "quantize --calibration-size 50 --calibration-seed 3 --observer mse --bias-correction "
            "--mixed --max-drop 0.5",
        ),
        (INT8, Calibration(keep=("a", "b")).config, "quantize --keep a --keep b"),
        (
            INT8,
            {"qat": asdict(FineTuning(epochs=2))},
            "train --qat --epochs 2 --lr 0.0002 --seed 0",
        ),
    ],
)
def test_the_command_has_the_settings_that_the_artefact_was_made_with(filename, config, command):
    run = RunFolder.create("trial", "lenet5")
    make(run, filename, config=config)
    (run.path / filename).unlink()
    with pytest.raises(Missing) as caught:
        run.need(filename)
    assert caught.value.mend == f"run 'pipeline {command} --run trial'"


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig("lenet5", "mnist", 3, 0.01, data_dir="some where", augment=True),
        TrainConfig("lenet5-classic", "digits", 3, 0.01, 32, 7, activation="tanh"),
    ],
)
def test_the_training_is_made_again_as_it_was(config):
    run = RunFolder.create("trial", "lenet5")
    make(run, FLOAT)
    run.record["training"] = {"config": json.loads(json.dumps(asdict(config)))}
    words = shlex.split(run.mending_command(FLOAT)[len("run '") : -1])
    with main.make_context("pipeline", words[1:]) as context:
        name, command, rest = main.resolve_command(context, words[1:])
        assert (name, words[2]) == ("train", "--overwrite")
        options = command.make_context(name, rest, parent=context).params
    _, again, folder = training(options)
    assert (again, folder) == (config, "trial")


@pytest.mark.parametrize(
    ("made_again", "stale", "command"),
    [
        ((INT8, [FLOAT]), ONNX, "export --format onnx --precision int8"),
        ((FLOAT, []), INT8, "quantize"),  # two steps before the ONNX that is asked for
    ],
)
def test_an_artefact_of_an_older_source_is_refused(run, made_again, stale, command):
    make(run, *made_again, content=b"newer")
    with pytest.raises(BadInput, match="stale") as caught:
        RunFolder.open("trial").need(ONNX)
    for word in (stale, made_again[0], f"pipeline {command} --run trial"):
        assert word in str(caught.value)


@pytest.mark.parametrize("source", [INT8, FLOAT])
@pytest.mark.parametrize(("damage", "error"), [(Path.unlink, Missing), (Path.touch, None)])
def test_the_sources_are_checked_too(run, source, damage, error):
    damage(run.path / source)
    if error is None:
        run.need(ONNX)  # a new time stamp is no change
        return
    with pytest.raises(error, match=source):
        run.need(ONNX)


def test_making_the_same_again_keeps_what_came_from_it(run):
    make(run, FLOAT)
    assert run.need(ONNX).is_file()


@pytest.mark.parametrize("reopen", [False, True])
def test_an_artefact_is_current_until_config_file_or_source_changes(run, reopen):
    if reopen:
        run = RunFolder.open("trial")
    assert run.is_current(ONNX, CONFIG)
    assert not run.is_current(ONNX, CONFIG | {"seed": 1})
    assert not run.is_current(TFLITE, CONFIG)
    make(run, FLOAT, content=b"newer")
    assert not run.is_current(ONNX, CONFIG)


GOOD = {"schema": 1, "model": "lenet5", "artefacts": {}}
HALF_AN_ENTRY = GOOD | {"artefacts": {ONNX: {"bytes": 7}}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        json.dumps(GOOD | {"schema": 99}).encode(),
        json.dumps(GOOD | {"artefacts": []}).encode(),
        json.dumps({"schema": 1, "artefacts": {}}).encode(),
        json.dumps(HALF_AN_ENTRY).encode(),
        json.dumps(GOOD | {"artefacts": {ONNX: "no entry"}}).encode(),
    ],
    ids=[
        "empty",
        "cut",
        "not text",
        "a list",
        "no schema",
        "another schema",
        "artefacts are a list",
        "no model",
        "half an entry",
        "no entry",
    ],
)
def test_a_damaged_record_is_named(run, content):
    (run.path / RECORD).write_bytes(content)
    (run.path / ONNX).write_bytes(b"")
    with pytest.raises(BadInput) as caught:
        RunFolder.open("trial").need(ONNX)
    assert str(run.path / RECORD) in str(caught.value)


def test_the_newest_run_is_the_default(root):
    for name, when in (("a", 2), ("b", 3), ("c", 1)):
        os.utime(RunFolder.create(name, "mlp").path / RECORD, (when, when))
    assert RunFolder.open().name == "b"
    os.utime(root / "c" / RECORD, (4, 4))
    assert RunFolder.open().name == "c"


def test_an_unknown_run_is_guessed(run):
    with pytest.raises(UsageError, match="unknown run 'trail'; did you mean 'trial'"):
        RunFolder.open("trail")


@pytest.mark.parametrize("name", [None, "trial"])
def test_without_a_run_training_is_the_next_step(name):
    with pytest.raises(Missing, match="pipeline train"):
        RunFolder.open(name)


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "/x", "..", "."])
def test_a_bad_name_is_refused(root, name):
    with pytest.raises(UsageError, match="is no name for a run"):
        RunFolder.create(name, "mlp")
    assert not root.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(tmp_path / "file" / "runs"))
    with pytest.raises(BadInput, match=r"file/runs/trial: cannot be created.*PIPELINE_RUNS_DIR"):
        RunFolder.create("trial", "mlp")


def no_space(*_):
    raise OSError(28, "No space left on device")


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "pathlib.Path.write_bytes"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(call, no_space)
    with pytest.raises(BadInput, match=r"file: cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert files_in(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_while_writing_passes_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.onnx"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as temporary:
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"ne")
        raise error
    assert files_in(tmp_path) == {"file.onnx": b"old"}


def test_a_commit_that_fails_leaves_the_run_as_it_was(run, monkeypatch):
    before = files_in(run.path)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", no_space)
        with pytest.raises(BadInput, match=ONNX):
            make(run, ONNX, [INT8], content=b"newer")
    assert files_in(run.path) == before
    assert RunFolder.open("trial").need(ONNX).read_bytes() == b"content"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_workspace_is_gone_after_an_exception(run, error):
    before = files_in(run.path)
    with pytest.raises(error), run.workspace() as work:
        (work / "half.onnx").write_bytes(b"half")
        raise error
    assert not work.exists()
    assert files_in(run.path) == before
