"""The report: what it says is what the run's files say, and it needs nothing else to be read."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WHOLE, Cli

from pipeline.interval import wilson
from pipeline.report.drawing import sheet
from pipeline.report.facts import _failures, facts_of
from pipeline.report.observations import Answers, observe
from pipeline.run_folder import RunFolder

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """All elements of a page; an end that closes nothing is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def ids(self, tag: str) -> list[str | None]:
        return [attributes.get("id") for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(trained: Path) -> str:
    return (trained / "small" / "report.html").read_text()


@pytest.fixture(scope="module")
def facts(trained: Path) -> Any:
    return json.loads((trained / "small" / "report.json").read_text())


def test_a_run_ends_with_a_report_of_all_its_stages(html: str) -> None:
    wanted = ["verdict", "network", "training", "quantization", "parity", "runtimes", "provenance"]
    page = Page(html)
    assert page.ids("section") == wanted
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert links == [f"#{name}" for name in wanted]
    assert len(html.encode()) < 3_000_000


def test_the_page_needs_nothing_else(html: str) -> None:
    page = Page(html)
    sources = [
        a[k] or "" for _, a in page.elements for k in ("src", "href", "xlink:href") if k in a
    ]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    # What is no address to fetch: the names of XML's vocabularies.
    assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_every_picture_has_its_words_and_every_id_is_one_element(html: str) -> None:
    page = Page(html)
    assert all(a.get("alt") for tag, a in page.elements if tag == "img")
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert len(drawings) > 5
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawings)
    assert "currentColor" in html and "#010203" not in html


def test_the_facts_are_those_of_the_run(facts: Any, trained: Path) -> None:
    record = json.loads((trained / "small" / "run.json").read_text())
    verified = json.loads((trained / "small" / "verify.json").read_text())
    assert facts["verdict"]["state"] == "verified" and facts["verdict"]["failures"] == []
    for precision in ("fp32", "int8"):
        accuracy = facts["verdict"]["accuracy"][precision]
        assert accuracy["value"] == verified["programs"][precision]["accuracy"]
        assert accuracy["low"] < accuracy["value"] < accuracy["high"]
        confusion = np.array(facts["training"]["confusion"][precision])
        assert confusion.sum() == 359 and np.trace(confusion) == accuracy["right"]
    assert facts["network"]["parameters"] == record["training"]["parameters"]
    moved = verified["programs"]["int8"]["confusion_with_fp32"]
    assert facts["quantization"]["flips_in_all"] >= (
        moved["only fp32 right"] + moved["only this right"]
    )
    table = facts["parity"]["tables"]["int8"]
    assert len(table["cells"]) == len(table["layers"])
    assert all(len(row) == len(table["columns"]) for row in table["cells"])
    files = {entry["file"]: entry["bytes"] for entry in facts["runtimes"]["files"]}
    assert all(record["artefacts"][name]["bytes"] == size for name, size in files.items())
    assert facts["runtimes"]["latencies"] and facts["verdict"]["fastest"][0]["p50_us"] > 0


def test_the_command_of_the_report_makes_the_same_run(facts: Any, cli: Cli) -> None:
    program, *arguments = shlex.split(facts["provenance"]["command"])
    assert program == "pipeline"
    done = cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert {s["name"] for s in json.loads(done.stdout)["stages"] if s["made"]} == set()


def test_a_stage_that_has_not_run_leaves_no_hole(cli: Cli, runs: Path) -> None:
    options = ["--model", "mlp", "--epochs", "1", "--run", "bare"]
    assert cli("train", *options).returncode == 0
    done = cli("report", "--run", "bare")
    assert done.returncode == 0, done.stderr
    text = (runs / "bare" / "report.html").read_text()
    assert Page(text).ids("section") == ["verdict", "training", "provenance"]
    assert "pipeline verify --run bare" in text


def test_what_is_no_longer_true_is_a_failure_in_the_verdict(cli: Cli, runs: Path) -> None:
    path = runs / "small" / "verify.json"
    path.write_text(path.read_text() + " ")
    done = cli("report", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["verdict"]["state"] == "failed" and "parity" not in facts
    assert "verify.json: changed by hand" in done.stderr
    assert "pipeline verify" in (runs / "small" / "report.html").read_text()


def test_a_failed_artefact_is_named_with_the_command_that_repeats_it(runs: Path) -> None:
    run = RunFolder(runs / "small", json.loads((runs / "small" / "run.json").read_text()))
    report = json.loads((runs / "small" / "verify.json").read_text())
    report["artefacts"][1] |= {"passed": False, "first_broken": "conv2d"}
    (failure,) = _failures(run, report)
    assert "conv2d is wrong" in failure["what"]
    assert f"--precision {report['artefacts'][1]['precision']}" in failure["mend"]


@pytest.mark.slow
def test_a_model_card_says_the_same(cli: Cli, runs: Path, facts: Any) -> None:
    assert cli("report", "--model-card").returncode == 0
    card = (runs / "small" / "model-card.md").read_text()
    assert card.startswith("---\n") and "# lenet5-classic on digits" in card
    for precision, accuracy in facts["verdict"]["accuracy"].items():
        assert f"| {precision} | {100 * accuracy['value']:.2f} % |" in card
    assert facts["provenance"]["command"] in card
    assert "{{" not in card and "\n\n\n" not in card


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(trained: Path, cli: Cli, runs: Path) -> None:
    assert cli("report").returncode == 0
    once, again = ((base / "small" / "report.html").read_text() for base in (trained, runs))
    lines = zip(once.splitlines(), again.splitlines(), strict=False)
    assert [pair for pair in lines if pair[0] != pair[1]][:3] == [] and again == once


def test_runs_are_put_side_by_side(cli: Cli) -> None:
    options = ["--model", "mlp", "--epochs", "1", "--run", "bare"]
    assert cli("train", *options).returncode == 0
    done = cli("compare", "small", "bare", "--json")
    assert done.returncode == 0, done.stderr
    rows = {(row["run"], row["precision"]): row for row in json.loads(done.stdout)["runs"]}
    assert set(rows) == {("small", "fp32"), ("small", "int8"), ("bare", "fp32")}
    assert rows["small", "int8"]["verified"] is True and rows["small", "int8"]["p50_us"] > 0
    assert rows["bare", "fp32"]["verified"] is rows["bare", "fp32"]["accuracy"] is None
    assert "small" in cli("compare", "small", "bare").stdout


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "name two or more"),
        (["small"], "name two or more"),
        (["small", "small"], "different runs"),
        (["small", "smal"], "did you mean 'small'"),
    ],
)
def test_a_comparison_of_less_than_two_is_refused(names: list[str], message: str, cli: Cli) -> None:
    done = cli("compare", *names)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_runs_of_other_data_are_not_compared(cli: Cli) -> None:
    options = ["--model", "mlp", "--epochs", "1", "--seed", "1", "--run", "other"]
    assert cli("train", *options).returncode == 0
    done = cli("compare", "small", "other")
    assert done.returncode == 2 and "different data" in done.stderr


def test_bench_refuses_what_it_cannot_time(cli: Cli) -> None:
    assert cli("bench", "--count", "0").returncode == 2
    options = ["--model", "mlp", "--epochs", "1", "--run", "bare"]
    assert cli("train", *options).returncode == 0
    done = cli("bench", "--run", "bare")
    assert done.returncode == 4 and "run 'pipeline verify'" in done.stderr


@pytest.mark.slow
def test_bench_times_c_too_and_leaves_the_bundles_alone(cli: Cli, runs: Path, packed: Path) -> None:
    before = {path.name for path in (runs / "small").iterdir()}
    done = cli("bench", "--count", "20", "--json")
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["model-index"]
    timed = {m["args"]["runtime"].split()[0] for r in model["results"] for m in r["metrics"]}
    assert timed >= {"c", "litert", "onnxruntime"}
    assert {path.name for path in (runs / "small").iterdir()} == before


def test_the_interval_is_wilsons() -> None:
    low, high = wilson(9, 10)  # the example of Brown, Cai and DasGupta 2001 works out to this
    assert (round(low, 4), round(high, 4)) == (0.5958, 0.9821)
    assert wilson(0, 50)[0] == 0.0 and wilson(50, 50)[1] == 1.0


def test_answers_are_counted_as_they_are() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    answers = Answers(probabilities, np.array([0, 0, 1, 1]))
    assert answers.confusion.tolist() == [[1, 1], [1, 1]]
    assert answers.most_confidently_wrong(5) == [2, 1]
    assert answers.most_confidently_wrong(1) == [2]


def test_a_sheet_lays_tiles_in_rows() -> None:
    tiles = np.arange(3, dtype=np.uint8).reshape(3, 1, 1)
    assert sheet(tiles, 2).tolist() == [[0, 128, 1], [128, 128, 128], [2, 128, 128]]


def test_a_network_of_colours_and_channels_has_its_pictures(runs: Path) -> None:
    run = RunFolder(runs / "small", json.loads((runs / "small" / "run.json").read_text()))
    seen = observe(run)
    assert set(seen.maps) == {"fp32", "int8"} and set(seen.maps["fp32"]) == set(seen.maps["int8"])
    assert all(each.low is not None for each in seen.activations)
    assert facts_of(run, seen)["quantization"]["layers"][0]["clipped"] <= 1


def study_of(run: RunFolder, folder: Path, **other: Any) -> None:
    """A study of the run's network on its data, as `pipeline sweep` leaves it."""
    settings = {"learning_rate": 0.01, "batch_size": 64}
    training = run.training
    subject = {key: training[key] for key in ("dataset_sha256", "source_sha256")}
    subject |= {key: training["config"][key] for key in ("model", "activation", "epochs")}
    document = {
        "study": folder.name.removeprefix("sweep-"),
        "storage": "sqlite",
        "command": "pipeline train --lr 0.01",
        "importance": {"learning_rate": 0.75, "batch_size": 0.25},
        "subject": subject | other,
        "best": None,
        "trials": [
            {
                "number": number,
                "state": state,
                "validation_accuracy": accuracy,
                "epochs": 2,
                "seconds": 1.0,
                "settings": settings,
            }
            for number, (state, accuracy) in enumerate(
                (("complete", 0.9), ("pruned", 0.5), ("complete", 0.95), ("pruned", None))
            )
        ],
    }
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(document))


@pytest.mark.slow
def test_it_shows_the_studies_of_its_network_and_data(cli: Cli, runs: Path) -> None:
    run = RunFolder.open("small")
    assert cli("run", *WHOLE, "--dry-run").stdout.count("unchanged") > 5
    study_of(run, runs / "sweep-mine")
    study_of(run, runs / "sweep-other", dataset_sha256="0")
    assert "report.html  replaced" in cli("run", *WHOLE, "--dry-run").stdout  # it lacks the study
    done = cli("report", "--run", "small", "--json")
    assert done.returncode == 0, done.stderr
    (study,) = json.loads(done.stdout)["sweeps"]
    assert (study["study"], study["best"]["number"]) == ("mine", 2)
    html = (runs / "small" / "report.html").read_text()
    assert "sweeps" in Page(html).ids("section")
    assert "Accuracies of 3 trials of study mine; learning rate matters most." in html
    assert "Best: trial 2, 95.00" in html
    (runs / "sweep-mine" / "sweep.json").write_text("{}")
    broken = cli("report", "--run", "small")
    assert (broken.returncode, "'pipeline sweep' writes it anew" in broken.stderr) == (3, True)
