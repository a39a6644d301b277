"""What a training writes while it goes on, also when it is killed and goes on."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
from conftest import pipeline
from tensorboardX.proto.event_pb2 import Event

from pipeline.checkpoint import TrainConfig
from pipeline.errors import Interrupted, Missing
from pipeline.network import find_network
from pipeline.run_folder import RunFolder
from pipeline.train_stage import train_run

CONFIG = TrainConfig("mlp", "digits", 3, 2e-3, batch_size=512)
FIELDS = [
    "epoch",
    "loss",
    "accuracy",
    "validation_accuracy",
    "seconds",
    "learning_rate",
    "images_per_second",
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(tmp_path))
    return RunFolder.create("logged", "mlp")


def events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every scalar; a record is its length, a checksum, itself, another."""
    found = []
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            place += 16 + length
    return found


def interrupted_in(epoch: int, run: RunFolder, tensorboard: bool) -> None:
    def on_batch(number: int, *_: object) -> None:
        if number + 1 == epoch:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="--resume"):
        train_run(run, find_network("mlp"), CONFIG, tensorboard=tensorboard, on_batch=on_batch)


@pytest.mark.parametrize("left", ['{"epoch": 3, "lo', '{"epoch": 3}\n{"epoch": 4}\n'])
def test_each_epoch_is_logged_once_whatever_a_kill_left(run: RunFolder, left: str) -> None:
    interrupted_in(3, run, tensorboard=True)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(left)
    (file_of_events,) = (run.path / "tensorboard").iterdir()
    file_of_events.write_bytes(file_of_events.read_bytes()[:-7])
    facts = train_run(run, find_network("mlp"), CONFIG, resume=True)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(list(line) == FIELDS for line in lines)
    for line, epoch in zip(lines, facts["history"], strict=True):
        assert line.pop("epoch") == epoch.pop("number")
        assert line == epoch
    assert lines[-1]["learning_rate"] < lines[0]["learning_rate"] < CONFIG.learning_rate
    scalars = events(run.path / "tensorboard")
    validation = [(step, value) for step, tag, value in scalars if tag == "accuracy/validation"]
    expected = [(n, pytest.approx(lines[n - 1]["validation_accuracy"])) for n in (1, 2, 3)]
    assert validation == expected
    assert len(scalars) == 3 * 6


def test_a_training_anew_keeps_nothing_of_the_one_before(run: RunFolder) -> None:
    interrupted_in(3, run, tensorboard=True)
    interrupted_in(2, run, tensorboard=False)
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (run.path / "tensorboard").exists()

    def at_once(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before the first epoch: there is nothing to resume
        train_run(run, find_network("mlp"), CONFIG, on_batch=at_once)
    assert not run.path.exists()


def test_events_without_their_package(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(Missing, match=r"pi-pipeline\[tensorboard\]"):
        train_run(run, find_network("mlp"), CONFIG, tensorboard=True)
    assert not run.path.exists()


@pytest.mark.slow
def test_the_option_writes_events(tmp_path: Path) -> None:
    done = pipeline("train", "--epochs", "1", "--tensorboard", "--run", "a", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {step for step, _, _ in events(tmp_path / "a" / "tensorboard")} == {1}
