"""README's and docs' tables of results: they are those of docs/results.json, and so of `make
results`.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "results", ROOT / "benchmarks" / "results.py"
    )
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcome(results: ModuleType) -> Any:
    return json.loads(results.OUTCOME.read_text())


def test_the_pages_say_what_was_measured(results: ModuleType, outcome: Any) -> None:
    for page in results.PAGES:
        text = page.read_text()
        assert results.rendered(text, outcome) == text, f"{page}: run 'make results'"
    with pytest.raises(ValueError, match="no marks"):
        results.rendered("# a page", outcome)


def test_the_table_has_medians_intervals_and_the_worst(results: ModuleType, outcome: Any) -> None:
    rows = [line.split(" | ") for line in results.accuracy_table(outcome).splitlines()[2:]]
    group = [t for t in outcome["trainings"] if (t["model"], t["dataset"]) == results.SUBJECTS[0]]
    assert len(group) >= 5 and len({t["seed"] for t in group}) == len(group)
    median = statistics.median_low(t["ptq"] for t in group)
    assert f"**{100 * median / 10_000:.2f}**" in rows[1][2]
    worst = min(t["ptq"] - t["fp32"] for t in group)
    assert f"({100 * worst / 10_000:+.2f})" in rows[1][4]


def test_every_configuration_of_every_file_is_counted(results: ModuleType, outcome: Any) -> None:
    broken = json.loads(json.dumps(outcome))
    broken["parity"][0]["artefacts"][0] |= {"outside": 7, "passed": False}
    text = results.tables(broken)
    assert "**7 elements are outside their bound and 1 file with unexplained ones**" in text
    assert {network["model"] for network in outcome["parity"]} == set(results.VERIFIED)
