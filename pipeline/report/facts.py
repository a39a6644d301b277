"""The report as data: a section for each stage that has run, nothing for one that has not."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ..bench import BENCH
from ..deployment.installation import latencies
from ..errors import BadInput, Missing
from ..evaluation import EVALUATION
from ..graph import Layer, read_graph
from ..interval import wilson
from ..quantization.sensitivity import SENSITIVITY
from ..run_exports import in_float
from ..run_folder import RunFolder
from ..study import as_document, studies_of
from ..verify import REPORT
from ..verify.self_check import SELF_CHECK
from .command import reproducing_command
from .observations import Answers, Observations
from .parity import parity_of

Record = dict[str, Any]

PAGE, FACTS, CARD = "report.html", "report.json", "model-card.md"
WRONG = 20  # most confidently wrong images that are shown
FLIPS = 40  # images that the two precisions answer differently, at most


def facts_of(run: RunFolder, seen: Observations) -> Record:
    """All sections, as JSON has it. What has been made and is no longer true is a failure."""
    failures: list[Record] = []

    def read(name: str) -> Record | None:
        if name not in run.record["artefacts"]:
            return None
        try:
            record: Record = run.read_json(name)
        except (BadInput, Missing) as error:
            failure = {"what": error.message, "mend": error.mend}
            if failure not in failures:  # one file may be what several were made from
                failures.append(failure)
            return None
        return record

    verification, bench, evaluation = read(REPORT), read(BENCH), read(EVALUATION)
    devices = {
        run.entry(name)["config"]["host"]: record
        for name in sorted(run.record["artefacts"])
        if name.startswith("device-") and (record := read(name)) is not None
    }
    if verification is not None:
        failures += _failures(run, verification)
    if evaluation is not None:
        failures += _dropped(run, evaluation)
    sections = {
        "network": _network(run),
        "training": _training(run, seen),
        "quantization": _quantization(run, seen, read(SENSITIVITY))
        if "int8" in seen.answers
        else None,
        "parity": parity_of(verification) if verification else None,
        "self_check": read(SELF_CHECK),
        "runtimes": _runtimes(run, verification, bench, devices),
        "evaluation": evaluation,
        "challenges": evaluation.get("challenges") if evaluation else None,
        "sweeps": [as_document(study) for study in studies_of(run)],
        "provenance": _provenance(run, verification),
    }
    present = {name: section for name, section in sections.items() if section}
    return {"run": run.name, "verdict": _verdict(run, seen, verification, present, failures)} | (
        present
    )


def _failures(run: RunFolder, verification: Record) -> list[Record]:
    found = []
    for artefact in verification["artefacts"]:
        if artefact["passed"]:
            continue
        name = f"{artefact['file']} in {artefact['configuration']}"
        broken = artefact["first_broken"]
        why = artefact["error"] or (
            f"{broken} is wrong" if broken else "its output is not its last layer's value"
        )
        command = f"pipeline verify --run {run.name} --precision {artefact['precision']}"
        found.append({"what": f"{name}: {why}", "mend": f"again: {command}"})
    for runtime in verification["absent"]:
        found.append(
            {"what": f"{runtime}: required, but no file ran in it", "mend": "run 'make install'"}
        )
    return found


def _dropped(run: RunFolder, evaluation: Record) -> list[Record]:
    command = f"pipeline evaluate --run {run.name} --max-drop {evaluation['max_drop']}"
    return [
        {
            "what": f"{row['file']} in {row['configuration']}: {row['drop']:.2f} percentage points "
            f"less accurate than fp32",
            "mend": f"again: {command}",
        }
        for row in evaluation["artefacts"]
        if not row["passed"]
    ]


def _verdict(
    run: RunFolder,
    seen: Observations,
    verification: Record | None,
    sections: Record,
    failures: list[Record],
) -> Record:
    state = "not verified" if verification is None else "verified"
    if failures:
        state = "failed"
    bundles = {
        name: entry["bytes"]
        for name, entry in sorted(run.record["artefacts"].items())
        if name.endswith((".tar.gz", ".deb"))
    }
    rows = sections["runtimes"]["latencies"] if "runtimes" in sections else []
    fastest: Record = {}
    for row in rows:
        best = fastest.get(row["where"])
        if best is None or row["p50_us"] < best["p50_us"]:
            fastest[row["where"]] = row
    return {
        "state": state,
        "failures": failures,
        "model": run.model,
        "dataset": seen.dataset.name,
        "test_images": len(seen.dataset.test),
        "accuracy": {
            name: accuracy_of(int(each.right.sum()), len(each.right))
            for name, each in seen.answers.items()
        },
        "judged": [
            sum(a["error"] is None for a in verification["artefacts"]) if verification else 0,
            len({a["file"] for a in verification["artefacts"]}) if verification else 0,
        ],
        "bundles": bundles,
        "fastest": list(fastest.values()),
    }


def accuracy_of(right: int, of: int) -> Record:
    """An accuracy with its 95 % interval."""
    low, high = wilson(right, of)
    return {"value": right / of, "low": low, "high": high, "right": right, "of": of}


def _network(run: RunFolder) -> Record | None:
    name = run.artefact("fp32", "onnx")
    if name not in run.record["artefacts"]:
        return None
    graph = read_graph(run.need(name))
    return {
        "input_shape": list(graph.input_shape),
        "parameters": graph.parameters,
        "macs": graph.macs,
        "layers": [_layer(layer) for layer in graph.layers],
    }


def _layer(layer: Layer) -> Record:
    record = dataclasses.asdict(layer)
    rows, columns = layer.field
    return record | {"field": [rows.size, columns.size], "jump": [rows.jump, columns.jump]}


def _training(run: RunFolder, seen: Observations) -> Record:
    labels = seen.dataset.labels
    answers = seen.answers["fp32"]
    confusion = answers.confusion
    classes = []
    for number, label in enumerate(labels):
        of, answered = int(confusion[number].sum()), int(confusion[:, number].sum())
        hit = int(confusion[number, number])
        entry = {"label": label, "images": of, "recall": hit / of if of else None}
        entry["precision"] = hit / answered if answered else None
        if "int8" in seen.answers:
            entry["change_int8"] = int(seen.answers["int8"].confusion[number, number]) - hit
        classes.append(entry)
    return {
        "history": run.training["history"],
        "confusion": {name: each.confusion.tolist() for name, each in seen.answers.items()},
        "labels": list(labels),
        "classes": classes,
        "wrong": [answer_of(i, answers, labels) for i in answers.most_confidently_wrong(WRONG)],
        "wrong_in_all": int((~answers.right).sum()),
    }


def answer_of(index: int, answers: Answers, labels: tuple[str, ...]) -> Record:
    """One image's answer."""
    chosen = int(answers.chosen[index])
    return {
        "index": index,
        "label": labels[int(answers.truth[index])],
        "answer": labels[chosen],
        "probability": float(answers.probabilities[index, chosen]),
    }


def _quantization(run: RunFolder, seen: Observations, sensitivity: Record | None) -> Record:
    labels = seen.dataset.labels
    return {
        "in_float": in_float(run),
        "sensitivity": sensitivity,
        "layers": [
            {
                "layer": each.layer,
                "kind": each.kind,
                "seen": [float(each.edges[0]), float(each.edges[-1])],
                "range": None if each.low is None else [each.low, each.high],
                "clipped": each.clipped,
            }
            for each in seen.activations
        ],
        "flips_in_all": len(seen.flips),
        "flips": [
            {name: answer_of(index, each, labels) for name, each in seen.answers.items()}
            for index in seen.flips[:FLIPS]
        ],
    }


def _runtimes(
    run: RunFolder, verification: Record | None, bench: Record | None, devices: Record
) -> Record | None:
    files = []
    for artefact in verification["artefacts"] if verification else ():
        if artefact["shipped"] and artefact.get("final"):
            final = artefact["final"]
            of = verification["test_images"] if verification else 0
            files.append(
                {
                    "file": artefact["file"],
                    "configuration": artefact["configuration"],
                    "precision": artefact["precision"],
                    "bytes": run.entry(artefact["file"])["bytes"],
                    "accuracy": accuracy_of(round(final["accuracy"] * of), of),
                    "equal_part": final["equal_part"],
                    "largest": final["largest"],
                    "in_steps": final["in_steps"],
                    "flips": len(final["flips"]),
                }
            )
    rows = [{"where": "this machine", **row} for row in latencies(bench)]
    for host, record in devices.items():
        rows += [{"where": host, **row} for row in latencies(record.get("bench"))]
    if not files and not rows:
        return None
    return {
        "files": files,
        "latencies": rows,
        "machine": bench["device"] if bench else None,
        "devices": {
            host: [f for f in record.get("doctor", []) if f["state"] != "fine"]
            for host, record in devices.items()
        },
    }


def _provenance(run: RunFolder, verification: Record | None) -> Record:
    config = run.training["config"]
    return {
        "command": reproducing_command(run),
        "config": json.loads(json.dumps(config, sort_keys=True)),
        "dataset_sha256": run.training["dataset_sha256"],
        "torch": run.training["torch"],
        "threads": run.training["threads"],
        "machine": verification["machine"] if verification else None,
        "artefacts": {
            name: {key: entry[key] for key in ("sha256", "bytes", "made")}
            for name, entry in sorted(run.record["artefacts"].items())
            if name not in (PAGE, FACTS, CARD)
        },
    }
