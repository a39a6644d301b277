"""The report of a run: one HTML page that needs nothing else, and the same facts as JSON."""

from __future__ import annotations

import json
from importlib.resources import files as resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from deploy.runner.sweep import METRICS

from .. import __version__
from ..evaluation.show import cost, fragile
from ..files import sha256_file
from ..precisions import INTEGERS
from ..run_folder import RunFolder
from ..study import RESULT, studies_of
from ..verify.show import percent
from . import figures
from .drawing import picture
from .facts import CARD, FACTS, PAGE, facts_of
from .observations import WATCHED, Observations, observe
from .pictures import answered, challenge_examples, filters, layer_maps

__all__ = ["CARD", "FACTS", "PAGE", "is_wanted", "report_run"]

# Sections that the page links to, by their name in the facts.
CONTENTS = {
    "verdict": "Verdict",
    "network": "Network",
    "training": "Training",
    "quantization": "Quantization",
    "parity": "Parity",
    "runtimes": "Formats and runtimes",
    "evaluation": "Calibration",
    "challenges": "Challenges",
    "sweeps": "Sweeps",
    "provenance": "Provenance",
}


def is_wanted(run: RunFolder) -> bool:
    """Whether the report does not tell of all that the run has, as it is now."""
    return run.wants(PAGE, FACTS, config=_config(run))


def _config(run: RunFolder) -> dict[str, Any]:
    known = {
        name: entry["sha256"]
        for name, entry in run.record["artefacts"].items()
        if name not in (PAGE, FACTS, CARD)
    }
    studies = {found.study: sha256_file(found.folder / RESULT) for found in studies_of(run)}
    return {"pipeline": __version__, "of": known, "studies": studies}


def report_run(run: RunFolder, *, card: bool = False) -> dict[str, Any]:
    """Write a run's report.html and report.json, and a model card where one is asked for. Returns
    the facts; a dry run, nothing. Raises Missing or BadInput.
    """
    run.need(run.artefact("fp32", "pt2"))
    names = [PAGE, FACTS, *([CARD] if card else [])]
    if not run.wants(*names):
        return {}
    seen = observe(run)
    facts = facts_of(run, seen)
    sources = [run.artefact(precision, "pt2") for precision in seen.answers]
    with run.workspace() as work:
        (work / PAGE).write_text(page(facts, seen), encoding="utf-8")
        (work / FACTS).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
        if card:
            (work / CARD).write_text(model_card(facts), encoding="utf-8")
        run.commit({name: work / name for name in names}, _config(run), sources)
    return facts


def _template(name: str) -> Template:
    """Nothing that a template names may be missing, and in HTML nothing stands unescaped."""
    environment = Environment(
        loader=PackageLoader("pipeline", "report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(name)


def _sections(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts.get(name) for name in (*CONTENTS, "self_check")}


def model_card(facts: dict[str, Any]) -> str:
    """The same facts in Markdown, with the metadata that model hubs read."""
    return _template("model-card.md.j2").render(equal=percent, **_sections(facts))


def page(facts: dict[str, Any], seen: Observations) -> str:
    """The HTML."""
    return _template("page.html.j2").render(
        run=facts["run"],
        contents=[(name, words) for name, words in CONTENTS.items() if facts.get(name)],
        style=Markup(_text("style.css")),
        script=Markup(_text("sort.js")),
        metrics=METRICS,
        integers=INTEGERS,
        equal=percent,
        cost=cost,
        fragile=fragile,
        watched=min(WATCHED, len(seen.dataset.test)),
        drawings=_drawings(facts, seen),
        pictures=_pictures(facts, seen),
        **_sections(facts),
    )


def _text(name: str) -> str:
    return (resources("pipeline.report") / name).read_text(encoding="utf-8")


def _drawings(facts: dict[str, Any], seen: Observations) -> dict[str, Any]:
    image = picture(seen.dataset.test.images[seen.example].numpy())
    network, parity = facts.get("network"), facts.get("parity")
    sensitivity = facts.get("quantization", {}).get("sensitivity")
    rows = facts.get("runtimes", {}).get("latencies", [])
    steps = parity["tables"].get("int8") if parity else None
    challenges, evaluation = facts.get("challenges"), facts.get("evaluation")
    programs = [
        row for row in (evaluation or {}).get("artefacts", ()) if row["file"].endswith(".pt2")
    ]
    return {
        "calibration": figures.calibration(programs) if programs else None,
        "challenges": figures.challenge_curves(challenges) if challenges else None,
        "fields": figures.receptive_fields(image, network["layers"]) if network else None,
        "curves": figures.learning_curves(facts["training"]["history"]),
        "confusion": figures.confusions(
            {precision: each.confusion for precision, each in seen.answers.items()},
            seen.dataset.labels,
        ),
        "activations": figures.histograms(seen.activations),
        "weights": figures.weights(seen.weights),
        "sensitivity": figures.sensitivity(sensitivity) if sensitivity else None,
        "steps": figures.steps_off(steps) if steps else None,
        "latencies": {
            where: figures.latencies([row for row in rows if row["where"] == where])
            for where in dict.fromkeys(row["where"] for row in rows)
        },
        "sweeps": {study["study"]: figures.study(study) for study in facts.get("sweeps", ())},
    }


def _pictures(facts: dict[str, Any], seen: Observations) -> dict[str, Any]:
    flips = facts.get("quantization", {}).get("flips", [])
    images = [image for image, _ in answered(seen, [flip["fp32"] for flip in flips])]
    return {
        "filters": filters(seen.weights),
        "challenges": challenge_examples(seen) if facts.get("challenges") else None,
        "maps": layer_maps(seen),
        "wrong": answered(seen, facts["training"]["wrong"]),
        "flips": list(zip(images, flips, strict=True)),
    }
