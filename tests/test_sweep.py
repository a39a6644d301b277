"""Studies: what is searched, going on, sharing, and what can be wrong with a storage."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import pipeline
from PIL import Image
from test_bad_input import one_line

from pipeline import sweep as module
from pipeline.checkpoint import Epoch, TrainConfig
from pipeline.cli import main
from pipeline.errors import Interrupted, VerificationFailed
from pipeline.network import find_network
from pipeline.sweep import Sweep, sweep

USUAL = TrainConfig("mlp", "digits", 4, 2e-3, label_smoothing=0.1)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("PIPELINE_DEBUG", "")
    return tmp_path


def searched(name: str, trials: int, usual: TrainConfig = USUAL, **options: Any) -> Sweep:
    return sweep(name, find_network("mlp"), usual, trials, **options)


def fake(accuracies: Callable[[int, int], float]) -> Callable[..., list[Epoch]]:
    """Instead of training: the accuracy of a trial (counted from 0) in an epoch (from 1)."""
    count = -1

    def fit(*arguments: Any) -> list[Epoch]:
        nonlocal count
        count += 1
        config, on_epoch = arguments[2], arguments[7]
        history = []
        for number in range(1, config.epochs + 1):
            history.append(Epoch(number, 1.0, 0.5, accuracies(count, number), 1.0, 1e-3, 1.0))
            on_epoch(history[-1])
        return history

    return fit


@pytest.mark.slow
def test_a_study_that_goes_on_is_the_study_that_was_not_interrupted(runs: Path) -> None:
    whole = searched("whole", 4)
    searched("cut", 2)
    cut = searched("cut", 4)
    assert [t.settings for t in cut.trials] == [t.settings for t in whole.trials]
    accuracies = [t.validation_accuracy for t in cut.trials]
    assert accuracies == [t.validation_accuracy for t in whole.trials]
    assert len({t.settings["learning_rate"] for t in whole.trials}) == 4
    usual = {"learning_rate": 2e-3, "weight_decay": 0.05, "label_smoothing": 0.1, "batch_size": 128}
    assert whole.trials[0].settings == usual
    again = searched("whole", 4)
    assert again.trials == whole.trials  # there is nothing left to do
    assert json.loads((runs / "sweep-whole" / "sweep.json").read_text())["study"] == "whole"


def test_the_printed_command_trains_what_the_best_trial_trained(runs: Path) -> None:
    options = ["--model", "mlp", "--epochs", "3", "--trials", "3", "--json"]
    done = CliRunner().invoke(main, ["sweep", *options])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    accuracies = [t["validation_accuracy"] for t in report["trials"] if t["state"] == "complete"]
    assert report["best"]["validation_accuracy"] == max(accuracies)
    assert set(report["best"]["settings"]) >= {"distortion", "batch_size"}
    assert sum(report["importance"].values()) == pytest.approx(1)
    names = {Path(path).name for path in report["pictures"]}
    assert names == {"history.png", "importance.png"}
    for path in report["pictures"]:
        with Image.open(path) as picture:
            low, high = picture.convert("L").getextrema()
            assert low < high  # not a blank page
    command = shlex.split(report["command"])
    assert command[0] == "pipeline"
    trained = CliRunner().invoke(main, [*command[1:], "--json"])
    assert trained.exit_code == 0, trained.stderr
    history = json.loads(trained.stdout)["history"]
    best = max(epoch["validation_accuracy"] for epoch in history)
    assert best == report["best"]["validation_accuracy"]


def test_what_does_worse_than_the_median_is_pruned(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", fake(lambda trial, epoch: 0.5 if trial == 5 else 0.9))
    result = searched("pruned", 7)
    assert [t.state for t in result.trials] == ["complete"] * 5 + ["pruned", "complete"]
    assert result.trials[5].epochs == 2
    assert result.best is not None
    assert result.best.validation_accuracy == 0.9
    assert result.importance == {}  # all whole trials came to the same


def test_what_diverges_is_a_bad_trial_and_no_end(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accuracy(trial: int, epoch: int) -> float:
        if trial == 1:
            raise VerificationFailed("training diverged")
        return 0.8

    monkeypatch.setattr(module, "fit", fake(accuracy))
    result = searched("diverged", 3)
    assert [t.state for t in result.trials] == ["complete", "pruned", "complete"]
    assert result.trials[1].validation_accuracy is None


def test_ctrl_c_keeps_the_finished_trials(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def accuracy(trial: int, epoch: int) -> float:
        if (trial, epoch) == (2, 2):
            raise KeyboardInterrupt
        return 0.5 + trial / 10

    monkeypatch.setattr(module, "fit", fake(accuracy))
    with pytest.raises(Interrupted, match="finished trials are kept"):
        searched("cut", 4)
    monkeypatch.setattr(module, "fit", fake(lambda trial, epoch: 0.9))
    result = searched("cut", 4)
    assert [t.state for t in result.trials] == [
        "complete",
        "complete",
        "fail",
        "complete",
        "complete",
    ]


def test_the_recipe_is_tried_although_the_first_trial_was_interrupted(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", fake(interrupted))
    with pytest.raises(Interrupted):
        searched("begun", 2)
    monkeypatch.setattr(module, "fit", fake(lambda trial, epoch: 0.9))
    result = searched("begun", 2)
    assert [t.state for t in result.trials] == ["fail", "complete", "complete"]
    assert result.trials[1].settings["learning_rate"] == USUAL.learning_rate
    assert result.trials[2].settings["learning_rate"] != USUAL.learning_rate


def test_the_largest_seed_is_one_that_is_searched_with(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", fake(lambda trial, epoch: 0.9))
    options = ["--model", "mlp", "--epochs", "1", "--trials", "2", "--seed", str(2**32 - 1)]
    done = CliRunner().invoke(main, ["sweep", *options])
    assert done.exit_code == 0, done.stderr


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared.db'}"
        return
    pgserver = pytest.importorskip("pgserver", reason="no pgserver for this Python")
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket has to be short
        server = pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_two_share_a_storage(runs: Path, storage: str) -> None:
    options = ["sweep", "--model", "mlp", "--epochs", "3", "--study", "shared"]
    options += ["--storage", storage]
    program = (
        "import os, sys\nfrom pipeline import sweep\nfrom pipeline.cli import main\n"
        "usual, count = sweep.fit, []\n"
        "def fit(*arguments):\n"
        "    count.append(1)\n"
        "    return os.kill(os.getpid(), 9) if len(count) == 3 else usual(*arguments)\n"
        "sweep.fit = fit\nmain(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, *options], check=False)
    assert killed.returncode == -9
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *options, "--trials", "10", "--json"],
            stdout=subprocess.PIPE,
            env=os.environ | {"PIPELINE_RUNS_DIR": str(runs / place)},
        )
        for place in ("here", "there")
    ]
    for job in started:
        job.communicate()
    assert [job.returncode for job in started] == [0, 0]
    trials = json.loads(pipeline(*options, "--trials", "10", "--json", runs=runs).stdout)["trials"]
    assert [t["number"] for t in trials] == list(range(len(trials)))
    states = [t["state"] for t in trials]
    assert states.count("running") == 1  # the killed one
    assert 10 <= len(trials) - 1 <= 11  # each may have begun the last
    assert len({json.dumps(t["settings"]) for t in trials}) == len(trials)


@pytest.mark.parametrize(
    ("storage", "module", "package"),
    [
        ("postgresql://here/x", "psycopg", "psycopg[binary]"),
        ("postgresql+psycopg2://here/x", "psycopg2", "psycopg2-binary"),
        ("mysql+pymysql://here/x", "pymysql", "PyMySQL"),
    ],
)
def test_the_driver_that_is_lacking_is_named(
    runs: Path, storage: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hidden:
        """As if the module were not installed, whether it is or not."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    arguments = ["--model", "mlp", "--epochs", "1", "--trials", "1", "--storage", storage]
    done = CliRunner().invoke(main, ["sweep", *arguments])
    assert done.exit_code == 4
    assert one_line(done.stderr).endswith(f"; run 'pip install {package}'")


@pytest.mark.parametrize(
    ("storage", "code", "words"),
    [
        ("nonsense", 2, "not the URL of a database"),
        ("sqlite:///{runs}/gone/study.db", 4, "unable to open database file"),
        ("sqlite:///{runs}/text.db", 3, "not a database"),
        ("oracel://somewhere/x", 2, "no such kind of database is known; give postgresql://"),
        ("postgresql://me:secret@127.0.0.1:1/x", 4, "postgresql://me:***@127.0.0.1:1/x"),
    ],
)
def test_a_storage_that_cannot_be_used(runs: Path, storage: str, code: int, words: str) -> None:
    (runs / "text.db").write_text("just a text that is long enough to be read as a header" * 20)
    arguments = ["--model", "mlp", "--epochs", "1", "--trials", "1"]
    done = CliRunner().invoke(main, ["sweep", *arguments, "--storage", storage.format(runs=runs)])
    assert done.exit_code == code, done.stderr
    line = one_line(done.stderr)
    assert words in line
    assert "secret" not in line
    assert [path.name for path in runs.iterdir()] == ["text.db"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--trials", "0"], 2, "--trials 0"),
        (["--study", "../out"], 2, "no name for a study"),
        (["--study", "known", "--epochs", "2"], 2, "its epochs is 1, not 2"),
        (["--study", "known", "--epochs", "1", "--seed", "1"], 2, "give another --study"),
        (["--study", "known", "--epochs", "1", "--model", "lenet5"], 2, "its model is mlp"),
    ],
)
def test_what_a_study_cannot_be(
    runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.setattr(module, "fit", fake(lambda trial, epoch: 0.5))
    known = ["sweep", "--model", "mlp", "--epochs", "1", "--study", "known", "--trials", "1"]
    assert CliRunner().invoke(main, known).exit_code == 0
    done = CliRunner().invoke(main, ["sweep", "--model", "mlp", *arguments])
    assert done.exit_code == code, done.stderr
    assert words in one_line(done.stderr)


def test_a_sweep_without_optuna(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = CliRunner().invoke(main, ["sweep", "--trials", "1"])
    assert done.exit_code == 4
    assert "pi-pipeline[sweep]" in one_line(done.stderr)


@pytest.mark.slow
def test_a_sweep_in_a_process_of_its_own(tmp_path: Path) -> None:
    options = ["--model", "mlp", "--epochs", "2", "--trials", "2", "--study", "small"]
    done = pipeline("sweep", *options, runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "study small" in done.stdout
    assert "next: pipeline train --model mlp --dataset digits" in done.stderr
    assert done.stderr.count("trial ") == 2
