"""Searching for a better recipe: many short trainings, judged by validation accuracy.

Optuna proposes the settings and keeps the trials in a database, which several machines can share.
The test images are never looked at.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpoint import Epoch, TrainConfig
from .data import Dataset, load_dataset
from .errors import UsageError, VerificationFailed
from .files import make_folder, write_atomically
from .mending import option_of
from .network import Network
from .study import DATABASE, RESULT, Sweep, Trial, as_document, folder_of
from .study_storage import need_optuna, reaching
from .train import fit
from .train_stage import fitting

if TYPE_CHECKING:
    import optuna

# What is searched: least and most.
LEARNING_RATE = (0.2, 5.0)  # times the model's
WEIGHT_DECAY = (0.002, 0.5)
LABEL_SMOOTHING = 0.2  # from 0, or more where the model has more
BATCH_SIZES = (32, 64, 128, 256)
DISTORTION = (0.25, 2.0)
# Pruned is what is worse than the median of the trials so far at the same epoch.
NEVER_PRUNED = 5  # trials; the median of fewer says little
SPARED = 0.25  # of the epochs; early accuracies say little

OnTrial = Callable[[Trial], None]


def suggested(trial: optuna.Trial, usual: TrainConfig) -> TrainConfig:
    """The settings of a trial, with three digits: they are to be typed."""

    def number(name: str, low: float, high: float, log: bool = False) -> float:
        return _short(trial.suggest_float(name, low, high, log=log))

    rate = usual.learning_rate
    low, high = (_short(rate * factor) for factor in LEARNING_RATE)
    config = replace(
        usual,
        learning_rate=number("learning_rate", low, high, log=True),
        weight_decay=number("weight_decay", *WEIGHT_DECAY, log=True),
        label_smoothing=number("label_smoothing", 0, max(LABEL_SMOOTHING, usual.label_smoothing)),
        batch_size=trial.suggest_categorical("batch_size", BATCH_SIZES),
    )
    if usual.augment:
        config = replace(config, distortion=number("distortion", *DISTORTION))
    return config


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def sweep(
    name: str,
    network: Network,
    usual: TrainConfig,
    trials: int,
    storage: str | None = None,
    on_trial: OnTrial = lambda _: None,
) -> Sweep:
    """Go on with a study until it has `trials` finished trials, those of other machines included.

    The first trial that is not interrupted has the usual settings. What a trial is follows from the
    seed and the trials before. Raises UsageError, Missing, BadInput, Interrupted.
    """
    optuna = need_optuna()
    folder = folder_of(name)
    place = Path(usual.data_dir) if usual.data_dir else None
    dataset = load_dataset(usual.dataset, network.input_shape, usual.seed, place)
    network.build(len(dataset.labels))  # what cannot be built is better known now
    if storage is None:
        make_folder(folder)  # SQLite does not
    url = storage or f"sqlite:///{folder / DATABASE}"
    with reaching(url) as shown:
        # Two machines may well wait for one another's SQLite.
        engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(url, engine_kwargs=engine),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=NEVER_PRUNED, n_warmup_steps=1 + round(SPARED * usual.epochs)
            ),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )
        subject = _subject(network, usual, dataset)
        _same_study(study, subject)
        make_folder(folder)  # of a storage that can be used, and before hours of trials
        done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        while sum(t.state in done for t in study.get_trials(deepcopy=False)) < trials:
            trial = study.ask()
            # As new for each trial, so that a study that goes on draws what it would have drawn.
            study.sampler = optuna.samplers.TPESampler(
                seed=(usual.seed * 100_003 + trial.number) % 2**32, multivariate=False
            )
            before = study.get_trials(deepcopy=False)[: trial.number]
            if all(t.state == optuna.trial.TrialState.FAIL for t in before):
                study.sampler = optuna.samplers.PartialFixedSampler(_fixed(usual), study.sampler)
            _try(study, trial, network, usual, dataset)
            on_trial(_trial(study.trials[trial.number]))
        result = Sweep(
            name,
            folder,
            shown,
            tuple(_trial(t) for t in study.trials),
            _importance(study, usual.seed),
            command="",
            subject=subject,
        )
    best = result.best
    result = replace(result, command=_command(network, usual, best))
    write_atomically(folder / RESULT, (json.dumps(as_document(result), indent=1) + "\n").encode())
    return result


def _try(
    study: optuna.Study, trial: optuna.Trial, network: Network, usual: TrainConfig, dataset: Dataset
) -> None:
    """Train once, and say what came of it; what diverges is as bad as what is pruned."""
    optuna = need_optuna()
    state = optuna.trial.TrialState
    config = suggested(trial, usual)

    def on_epoch(epoch: Epoch) -> None:
        trial.report(epoch.validation_accuracy, epoch.number)
        if epoch.number < config.epochs and trial.should_prune():
            raise optuna.TrialPruned

    try:
        torch.manual_seed(config.seed)
        module = network.build(len(dataset.labels))
        with fitting(network.name):
            history = fit(module, dataset, config, None, False, {}, lambda *_: None, on_epoch)
    except (optuna.TrialPruned, VerificationFailed):
        study.tell(trial, state=state.PRUNED)
    except BaseException:
        study.tell(trial, state=state.FAIL)
        raise
    else:
        study.tell(trial, max(epoch.validation_accuracy for epoch in history))


def _fixed(usual: TrainConfig) -> dict[str, float]:
    """The usual settings by the names that they are searched by."""
    names = ["learning_rate", "weight_decay", "label_smoothing", "batch_size"]
    return {name: getattr(usual, name) for name in [*names, *["distortion"] * usual.augment]}


def _subject(network: Network, usual: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """What all trials of a study have in common."""
    return {
        "model": usual.model,
        "activation": usual.activation,
        "source_sha256": network.source_sha256,
        "dataset": usual.dataset,
        "dataset_sha256": dataset.sha256,
        "input_shape": list(usual.input_shape),
        "epochs": usual.epochs,
        "seed": usual.seed,
        "augment": usual.augment,
    }


def _same_study(study: optuna.Study, subject: dict[str, Any]) -> None:
    """Raises UsageError where the study is of something else; a new one is of this from now on."""
    known = study.user_attrs
    if not known:
        for key, value in subject.items():
            study.set_user_attr(key, value)
        return
    for key, value in subject.items():
        if known.get(key) != value:
            raise UsageError(
                f"study {study.study_name}: its {key} is {known.get(key)}, not {value}",
                "give another --study NAME",
            )


def _trial(trial: optuna.trial.FrozenTrial) -> Trial:
    reported = trial.intermediate_values
    return Trial(
        trial.number,
        trial.state.name.lower(),
        max(reported.values(), default=None),
        len(reported),
        trial.duration.total_seconds() if trial.duration else None,
        {
            name: _short(value) if isinstance(value, float) else value
            for name, value in trial.params.items()
        },
    )


def _importance(study: optuna.Study, seed: int) -> dict[str, float]:
    """Nothing where there are too few whole trials, or all came to the same."""
    optuna = need_optuna()
    values = {t.value for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE}
    if len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _command(network: Network, usual: TrainConfig, best: Trial | None) -> str:
    """Trains what the study is of, with the best settings."""
    words = ["pipeline", "train", "--model", usual.model, "--dataset", usual.dataset]
    if usual.activation:
        words += ["--activation", usual.activation]
    if getattr(network.factory, "input_shape", None) != usual.input_shape:
        words += ["--input-shape", ",".join(str(size) for size in usual.input_shape)]
    if usual.data_dir:
        words += ["--data-dir", usual.data_dir]
    words += ["--epochs", str(usual.epochs), "--seed", str(usual.seed)]
    words += [] if usual.augment else ["--no-augment"]
    for name, value in best.settings.items() if best else ():
        words += [option_of(name), f"{value:g}"]
    return shlex.join(words)
