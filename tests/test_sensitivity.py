"""Observers, what `quantize` chooses by validation images, and each layer quantized alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli

from pipeline import program, quantize, sensitivity
from pipeline.observers import OBSERVERS, OUTSIDE, PercentileObserver, activation


def ends(name: str, values: torch.Tensor) -> tuple[float, float]:
    """The smallest and largest number that int8 has with this observer."""
    spec = activation(name)
    observer = spec.observer_or_fake_quant_ctr(
        dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
    )
    for part in values.split(1000):
        observer(part)
    scale, zero_point = observer.calculate_qparams()
    return float(scale * (-128 - zero_point)), float(scale * (127 - zero_point))


def test_observers_differ_in_what_they_make_of_outliers() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    values[17], values[4711] = -40, 60
    assert ends("minmax", values) == pytest.approx((-40, 60), abs=0.5)
    low, high = ends("percentile", values)
    assert -5 < low < -2 and 2 < high < 5
    low, high = ends("mse", values)
    assert -40.5 < low < high < 60.5 and high - low < 99


def test_a_percentile_leaves_out_its_part_and_keeps_the_zeros_of_a_relu() -> None:
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 100
    observer = PercentileObserver(dtype=torch.int8, quant_min=-128, quant_max=127)
    observer(values)
    low, high = (float(end) for end in observer._non_linear_param_search())
    assert float((values > high).float().mean()) == pytest.approx(OUTSIDE, abs=5e-4)
    assert float((values < low).float().mean()) == pytest.approx(OUTSIDE, abs=5e-4)
    assert ends("percentile", values.relu() - 0.0)[0] <= 0


def test_what_was_tried_and_chosen_is_kept(cli: Cli, runs: Path) -> None:
    entry = json.loads((runs / "small" / "run.json").read_text())["artefacts"]
    facts = entry["lenet5-classic-int8.pt2"]["facts"]
    assert list(facts["validation_accuracy"]) == list(OBSERVERS) or set(
        facts["validation_accuracy"]
    ) == set(OBSERVERS)
    best = max(facts["validation_accuracy"].values())
    assert facts["validation_accuracy"][facts["observer"]] == best
    done = cli("quantize", "--observer", "mse", "--json")
    assert done.returncode == 0, done.stderr
    chosen = json.loads(done.stdout)
    assert chosen["made"] and chosen["observer"] == "mse"
    assert set(chosen["validation_accuracy"]) == {"mse"}


def test_the_simplest_wins_where_all_are_as_good(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "_validated", lambda *_: 0.5)
    done = cli("quantize", "--calibration-size", "40", "--json")
    assert json.loads(done.stdout)["observer"] == "minmax"


def test_an_unknown_observer_is_told(cli: Cli) -> None:
    done = cli("quantize", "--observer", "percentle")
    assert done.returncode == 2 and "did you mean 'percentile'" in done.stderr


@pytest.fixture
def measured(cli: Cli) -> Any:
    done = cli("sensitivity", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_layer_is_quantized_alone(measured: Any, trained: Path) -> None:
    module = program.load(trained / "small" / "lenet5-classic-int8.pt2")
    taps = {tap.layer for tap in program.tap_nodes(module)}
    layers = [row["layer"] for row in measured["layers"]]
    assert taps <= set(layers) and sensitivity.INPUT in layers
    noise = [row["sqnr_db"] for row in measured["layers"] if row["sqnr_db"] is not None]
    assert noise == sorted(noise)
    assert measured["int8"]["sqnr_db"] < noise[0]  # all of them together are worse than any


def test_a_layer_alone_leaves_the_others_in_float(trained: Path) -> None:
    module = program.load(trained / "small" / "lenet5-classic-int8.pt2")
    everything = [n for n in module.graph.nodes if n.target in sensitivity.QUANTIZE]
    parts = {name: sensitivity.alone(module, name) for name in sensitivity.layers_of(module)}
    left = [
        [n.name for n in part.graph.nodes if n.target in sensitivity.QUANTIZE]
        for part in parts.values()
    ]
    assert sorted(name for names in left for name in names) == sorted(n.name for n in everything)
    (last,) = (name for name in parts if name.startswith("linear_2"))
    assert len(left[list(parts).index(last)]) == 3  # weights, bias and value


def test_the_report_shows_it(measured: Any, cli: Cli, runs: Path) -> None:
    assert cli("report").returncode == 0
    page = (runs / "small" / "report.html").read_text()
    assert f"{measured['layers'][0]['layer']} costs most" in page
    assert "Ranges by " in page
