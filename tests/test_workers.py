"""Several processes that torchrun starts train one network, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.workers import Workers

ROOT = Path(__file__).parents[1]
QUICK = ["--model", "lenet5", "--batch-size", "100"]  # of digits' 1,318: shares of 50, at last of 9


def torchrun(*arguments: str, runs: Path, processes: int = 2) -> subprocess.Popen[str]:
    """`pipeline train` under torchrun, with whatever port is free."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "--", "pipeline.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PIPELINE_RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1"},
    )


def trained(*arguments: str, runs: Path, processes: int = 2) -> dict[str, Any]:
    """What two processes print, which is what one prints."""
    started = torchrun("train", *arguments, "--json", runs=runs, processes=processes)
    out, err = started.communicate()
    assert started.returncode == 0, err
    facts: dict[str, Any] = json.loads(out)
    assert err.count("epoch 1/") <= 1
    return facts


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith(("error:", "Error:"))]


def weights(runs: Path, run: str) -> dict[str, Tensor]:
    return load_file(runs / run / "model.safetensors")


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "images"), [(1, 7), (2, 8), (2, 7), (2, 3), (3, 8), (3, 5)])
def test_the_mean_of_the_workers_gradients_is_the_batchs(count: int, images: int) -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 3).double()
    inputs, labels = torch.randn(images, 4).double(), torch.randint(0, 3, (images,))

    def gradient(share: Tensor, weight: float) -> Tensor:
        network.zero_grad()
        (nn.functional.cross_entropy(network(inputs[share]), labels[share]) * weight).backward()
        assert network.weight.grad is not None
        return network.weight.grad.clone()

    batch = torch.arange(images)
    found = []
    for rank in range(count):
        share, stands_for = Workers(rank, count).share(batch)
        assert len(share) >= min(images, 2)
        found.append(gradient(share, stands_for * len(share) / images))
    torch.testing.assert_close(torch.stack(found).mean(0), gradient(batch, 1))


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    options = [*QUICK, "--epochs", "3", "--no-augment"]
    one = pipeline("train", *options, "--run", "one", "--json", runs=tmp_path)
    assert one.returncode == 0, one.stderr
    alone, together = json.loads(one.stdout), trained(*options, "--run", "two", runs=tmp_path)
    assert (alone["workers"], together["workers"]) == (1, 2)
    for ours, theirs in zip(together["history"], alone["history"], strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)  # grown roundings
    assert together["history"][0]["loss"] == pytest.approx(alone["history"][0]["loss"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_with_distortion_know_as_much_as_one(tmp_path: Path) -> None:
    options = [*QUICK, "--epochs", "30"]
    one = pipeline("train", *options, "--run", "one", "--json", runs=tmp_path)
    two = trained(*options, "--run", "two", runs=tmp_path)
    # Of 359 images: four standard deviations of the difference, at an error of 2 %.
    noise = 4 * (2 * 0.02 * 0.98 / 359) ** 0.5
    assert abs(two["test_accuracy"] - json.loads(one.stdout)["test_accuracy"]) < noise
    assert two["test_accuracy"] > 0.95


def worker(launcher: int, rank: int) -> int:
    """The process that torchrun started as that rank."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def when(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    while not condition():
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_job_and_resume_goes_on(tmp_path: Path, rank: int) -> None:
    options = [*QUICK, "--epochs", "12"]
    trained(*options, "--run", "whole", runs=tmp_path)
    job = torchrun("train", *options, "--run", "cut", runs=tmp_path)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    when(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= 2, job)
    os.kill(worker(job.pid, rank), signal.SIGKILL)
    out, err = job.communicate(timeout=300)
    assert job.returncode != 0
    (line,) = errors(err)
    assert "killed or lost" in line
    assert "'pipeline train --resume --run cut'" in line
    assert out == ""
    trained("--resume", "--run", "cut", runs=tmp_path)
    whole, cut = weights(tmp_path, "whole"), weights(tmp_path, "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow
def test_from_one_process_to_two_and_back(tmp_path: Path) -> None:
    # Where a shell runs the tests in the background they ignore it, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    metrics = tmp_path / "a" / "metrics.jsonl"

    def epochs() -> int:
        return len(metrics.read_text().splitlines()) if metrics.is_file() else 0

    def interrupted(job: subprocess.Popen[str], goal: int) -> str:
        when(lambda: epochs() >= goal, job)
        job.send_signal(signal.SIGINT)
        stderr = job.communicate(timeout=300)[1]
        assert job.returncode != 0
        (line,) = errors(stderr)
        assert "'pipeline train --resume --run a'" in line
        return stderr

    def alone(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "train", *arguments, "--run", "a"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PIPELINE_RUNS_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )

    interrupted(alone(*QUICK, "--epochs", "400"), 2)
    two = torchrun("train", "--resume", "--run", "a", runs=tmp_path)
    assert "processes: 1 then, 2 now" in interrupted(two, epochs() + 2)
    assert "processes: 2 then, 1 now" in interrupted(alone("--resume"), epochs() + 2)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--batch-size", "3"], "2 images for each of 2 processes: give 4"),
        (["train", "--dataset", "digit"], "did you mean 'digits'"),
        (["train", "--no-such-option"], "--no-such-option"),
        (["train", "--epochs", "2", "--lr", "1e30"], "--lr"),
        (["run"], "torchrun is for training"),
    ],
)
def test_an_error_of_a_job_is_told_once(tmp_path: Path, arguments: list[str], words: str) -> None:
    job = torchrun(*arguments, runs=tmp_path)
    out, err = job.communicate()
    assert job.returncode != 0
    (line,) = errors(err)
    assert words in line
    assert out == ""
    assert list(tmp_path.iterdir()) == []
