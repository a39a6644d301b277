"""What a person can get wrong in training, and what can happen to its checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from test_bad_input import one_line

from pipeline.checkpoint import TrainConfig, read
from pipeline.cli import main
from pipeline.errors import Interrupted
from pipeline.network import find_network
from pipeline.run_folder import RunFolder
from pipeline.train_stage import train_run

CONFIG = TrainConfig("mlp", "digits", 3, 2e-3, batch_size=512)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("PIPELINE_DEBUG", "")
    return tmp_path


@pytest.fixture
def checkpoint(runs: Path) -> Path:
    """Of the run `cut`, after two of three epochs."""

    def on_batch(epoch: int, *_: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    run = RunFolder.create("cut", "mlp")
    with pytest.raises(Interrupted):
        train_run(run, find_network("mlp"), CONFIG, on_batch=on_batch)
    return run.path / "checkpoint.safetensors"


def train(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "0"], "--lr 0; give a number above 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "inf"], "--lr inf"),
        (["--lr", "fast"], "'fast' is not a valid float"),
        (["--seed", "-1"], "'--seed': -1 is not in the range 0<=x<=4294967295"),
        (["--seed", str(2**32)], "'--seed': 4294967296 is not"),
        (["--seed", str(10**30)], "0<=x<=4294967295"),
        (["--weight-decay", "-0.1"], "--weight-decay -0.1"),
        (["--label-smoothing", "1"], "--label-smoothing 1"),
        (["--distortion", "nan"], "--distortion nan"),
        (["--distortion", "1", "--no-augment"], "leave out one of them"),
    ],
)
def test_a_setting_that_no_training_can_have(runs: Path, arguments: list[str], words: str) -> None:
    done = train("--model", "mlp", *arguments)
    assert done.exit_code == 2, done.stderr
    assert words in one_line(done.stderr)
    assert list(runs.iterdir()) == []


def test_the_largest_seed_is_one_that_trains(runs: Path) -> None:
    done = train("--model", "mlp", "--epochs", "1", "--seed", str(2**32 - 1), "--run", "a")
    assert done.exit_code == 0, done.stderr


def test_a_training_that_learned_nothing_is_told(runs: Path) -> None:
    done = train("--model", "mlp", "--epochs", "1", "--lr", "1e-12", "--run", "a", "--json")
    assert done.exit_code == 0, done.stderr
    assert "warning: nothing was learned" in done.stderr
    assert "--lr than 1e-12" in done.stderr
    assert json.loads(done.stdout)["learned"] is False


def changed_in(part: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        header = int.from_bytes(content[:8], "little")
        places = {"length": 3, "header": content.index(b"loss") + 8, "weights": header + 5000}
        content[places[part]] ^= 1
        path.write_bytes(content)

    return change


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [*map(changed_in, ("length", "header", "weights")), shortened, emptied],
    ids=["length", "header", "weights", "shortened", "emptied"],
)
def test_a_damaged_checkpoint_is_refused_with_a_way_that_works(
    runs: Path, checkpoint: Path, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint)
    done = train("--resume", "--run", "cut")
    assert done.exit_code == 3, done.stderr
    line = one_line(done.stderr)
    assert "checkpoint.safetensors: damaged" in line
    assert "--overwrite" in line
    again = train("--model", "mlp", "--epochs", "1", "--run", "cut", "--overwrite")
    assert again.exit_code == 0, again.stderr


def test_other_data_than_the_checkpoints_are_refused(
    runs: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from pipeline import train_stage

    usual = train_stage.load_dataset
    monkeypatch.setattr(
        train_stage, "load_dataset", lambda *a: replace(usual(*a), sha256="another")
    )
    done = train("--resume", "--run", "cut")
    assert done.exit_code == 3
    assert "the data set has changed since" in one_line(done.stderr)
    assert read(checkpoint).history[-1].number == 2  # it is still there


def test_data_may_have_moved_when_a_training_goes_on(runs: Path, checkpoint: Path) -> None:
    done = train("--resume", "--run", "cut", "--data-dir", str(runs), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["config"]["data_dir"] == str(runs)


def test_another_training_does_not_take_the_place_of_an_interrupted_one(
    runs: Path, checkpoint: Path
) -> None:
    options = ["--model", "mlp", "--run", "cut", "--epochs", "1"]
    for command in ("train", "run"):
        done = CliRunner().invoke(main, [command, *options])
        assert done.exit_code == 2, done.stderr
        assert "go on with 'pipeline train --resume --run cut'" in one_line(done.stderr)
        assert read(checkpoint).history[-1].number == 2


def test_what_a_network_cannot_be_trained_with_is_said(runs: Path) -> None:
    (runs / "net.py").write_text(
        "from torch import nn\n\n"
        "class Net(nn.Sequential):\n"
        "    input_shape = (1, 28, 28)\n\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))\n"
    )
    model = ["--model", f"{runs / 'net.py'}:Net", "--run", "single"]
    done = train(*model, "--batch-size", "1", "--epochs", "1")
    assert done.exit_code == 3, done.stderr
    assert "fails in training (Expected more than 1 value" in one_line(done.stderr)
    assert not (runs / "single").exists()


def test_resuming_with_other_threads_says_what_that_means(runs: Path, checkpoint: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        done = train("--resume", "--run", "cut")
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.stderr
    assert f"threads: {threads} then, {threads + 1} now" in done.stderr
    assert done.stderr.count(" now;") == 1


def test_a_cuda_training_is_not_resumed_without_cuda(
    runs: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from pipeline import checkpoint as module

    saved = read(checkpoint)
    on_cuda = replace(saved, config=replace(saved.config, device="cuda"))
    monkeypatch.setattr(module, "read", lambda path: on_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = train("--resume", "--run", "cut")
    assert done.exit_code == 4
    assert "go on where it was begun" in one_line(done.stderr)


# Trains once whole, and then again and again, each time killed at the next thing that it does to a
# file. Forked, so that torch is imported once.
KILLED_EVERYWHERE = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from pipeline import train_stage
from pipeline.checkpoint import TrainConfig
from pipeline.network import find_network
from pipeline.run_folder import CHECKPOINT, RunFolder
from pipeline.train_stage import WEIGHTS, train_run

CONFIG = TrainConfig("mlp", "digits", 2, 2e-3, batch_size=512, augment=True)
network = find_network("mlp")
dataset = train_stage.load_dataset("digits", network.input_shape, 0)
train_stage.load_dataset = lambda *_: dataset

def train(name, kill_at=None):
    count = 0
    def counting(usual):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(*arguments, **options)
        return operation
    for change in ("replace", "unlink", "write_bytes"):
        setattr(Path, change, counting(getattr(Path, change)))
    os.fsync = counting(os.fsync)
    run = RunFolder.create(name, "mlp")
    checkpoint = run.path / CHECKPOINT
    if not checkpoint.exists() and run.record["artefacts"]:
        run.need(WEIGHTS)
    else:
        train_run(run, network, CONFIG, resume=checkpoint.exists())

def forked(*arguments):
    child = os.fork()
    if child == 0:
        try:
            train(*arguments)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

root = Path(os.environ["PIPELINE_RUNS_DIR"])
assert forked("whole") == 0
weights = (root / "whole" / WEIGHTS).read_bytes()
for kill_at in range(1, 1000):
    name = f"cut-{kill_at}"
    first = forked(name, kill_at)
    if first == 0:
        break
    assert first == -signal.SIGKILL, first
    assert forked(name) == 0, kill_at
    folder = root / name
    assert (folder / WEIGHTS).read_bytes() == weights, kill_at
    RunFolder.open(name).need("mlp-fp32.pt2")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2, kill_at
    kept = ["metrics.jsonl", "mlp-fp32.pt2", "model.safetensors", "run.json"]
    assert sorted(path.name for path in folder.iterdir()) == kept, kill_at
print(kill_at - 1)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_change_of_a_file_changes_no_bit_of_the_weights(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 20


def test_a_checkpoint_is_a_plain_safetensors_file(checkpoint: Path) -> None:
    with safe_open(checkpoint, "pt") as file:
        names = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
    assert names == {"network", "average", "best", "optimizer"}
