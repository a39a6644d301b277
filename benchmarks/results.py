"""Every figure of the tables in README's results, by one command: `make results`.

    python benchmarks/results.py [--seeds 5] [--images 10000] [--threads 2]
    python benchmarks/results.py --render

Trains with each seed, makes the int8 program by calibration and by training, and measures both and
the fp32 program on all test images. Of seed 0 it also evaluates what ships in every runtime,
verifies all layers on --images of them, breaks the files on purpose, and packs. What was done is
kept in runs/results/ and not done again; delete that to start anew. The outcome goes to
docs/results.json, and from there into README.md and docs/results.md, between marks; --render does
that alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.interval import wilson
from pipeline.verify.evidence import processor

ROOT = Path(__file__).parents[1]
OUTCOME = ROOT / "docs" / "results.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
SUBJECTS = (("lenet5", "mnist"), ("lenet5-classic", "mnist"), ("lenet5", "digits"))
VERIFIED = tuple(model for model, dataset in SUBJECTS if dataset == "mnist")  # of seed 0
KINDS = {"fp32": "fp32", "ptq": "int8, calibrated", "qat": "int8, trained"}
SHIPPED = {"onnxruntime all": "ONNX Runtime", "litert xnnpack": "LiteRT", "c best": "C"}

Record = dict[str, Any]


def pipeline(*words: str) -> Any:
    """The JSON that a command prints; what it says goes to stderr. A failure ends the program."""
    print("$ pipeline", *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pipeline.cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def right(name: str, precision: str) -> tuple[int, int]:
    """How many test images a run's program decides rightly, of how many."""
    from pipeline import program
    from pipeline.data import dataset_of
    from pipeline.run_folder import RunFolder

    run = RunFolder.open(name)
    test = dataset_of(run).test
    module = program.load(run.need(run.artefact(precision, "pt2")))
    answers = program.run(module, test.images)[0].argmax(1)
    return int((answers == test.labels).sum()), len(test)


def training(model: str, dataset: str, seed: int) -> Record:
    """One seed's training, and what each kind of program then knows."""
    name = f"results-{model}-{dataset}-{seed}"
    options = ["--model", model, "--dataset", dataset, "--seed", str(seed), "--device", "cpu"]
    facts = pipeline("train", *options, "--run", name, "--overwrite")
    found: Record = {"model": model, "dataset": dataset, "seed": seed}
    found["seconds"] = sum(epoch["seconds"] for epoch in facts["history"])
    found["fp32"], found["of"] = right(name, "fp32")
    if (dataset, seed) == ("mnist", 0):
        found["shipped"] = shipped(name)
    else:
        pipeline("quantize", "--run", name)
    found["ptq"], _ = right(name, "int8")
    trained = Path("runs") / f"{name}-qat"
    shutil.rmtree(trained, ignore_errors=True)
    shutil.copytree(Path("runs") / name, trained)
    pipeline("train", "--qat", "--run", trained.name)
    found["qat"], _ = right(trained.name, "int8")
    return found


def shipped(name: str) -> list[Record]:
    """What is exported of a run, in the runtimes of the device: right answers of each."""
    pipeline("export", "--run", name)
    rows = pipeline("evaluate", "--run", name)["artefacts"]
    keys = ("file", "configuration", "precision", "right", "mcnemar_p")
    return [{key: row[key] for key in keys} for row in rows]


def parity(model: str, images: int) -> Record:
    """A verification of seed 0's run, its self-check, and the size of its bundle."""
    name = f"results-{model}-mnist-0"
    required = "onnxruntime,litert"
    report = pipeline("verify", "--run", name, "--images", str(images), "--require", required)
    check = pipeline("verify", "--run", name, "--self-check")
    bundle = pipeline("package", "--run", name)
    return {
        "model": model,
        "images": images,
        "machine": report["machine"],
        "artefacts": [judged(artefact) for artefact in report["artefacts"]],
        "self_check": check["total"] | {"false_alarms": len(check["false_alarms"])},
        "bundle_bytes": bundle["bytes"],
    }


def judged(artefact: Record) -> Record:
    """What one file in one configuration came to, over all layers in place and alone."""
    verdicts = [
        verdict
        for layer in artefact["layers"]
        for verdict in (layer["isolated"], layer["in_place"])
        if verdict is not None
    ]
    final = artefact["layers"][-1]["accumulated"]
    parts = [v["fraction_of_bound"] for v in verdicts if v["fraction_of_bound"] is not None]
    keys = ("file", "precision", "configuration", "runtime", "shipped", "passed", "fingerprints")
    return {key: artefact[key] for key in keys} | {
        "elements": sum(verdict["elements"] for verdict in verdicts),
        "outside": sum(verdict["outside"] for verdict in verdicts),
        "of_bound": max(parts, default=None),
        "final_equal": final and final["equal_part"],
        "final_largest": final and final["largest"],
    }


def measured(options: argparse.Namespace) -> Record:
    """All of it, what was done before taken from runs/results/."""
    done = Path("runs") / "results"
    done.mkdir(parents=True, exist_ok=True)

    def kept(name: str, make: Callable[..., Record], *arguments: Any) -> Record:
        path = done / f"{name}.json"
        if not path.is_file():
            path.write_text(json.dumps(make(*arguments)))
        found: Record = json.loads(path.read_text())
        return found

    trainings = [
        kept(f"{model}-{dataset}-{seed}", training, model, dataset, seed)
        for model, dataset in SUBJECTS
        for seed in range(options.seeds)
    ]
    verified = [kept(model, parity, model, options.images) for model in VERIFIED]
    return {
        "processor": processor(),
        "threads": options.threads,
        "trainings": trainings,
        "parity": verified,
    }


def percent(count: float, of: int) -> str:
    return f"{100 * count / of:.2f}"


def group(outcome: Record, model: str, dataset: str) -> list[Record]:
    """One subject's trainings, of all seeds."""
    return [t for t in outcome["trainings"] if (t["model"], t["dataset"]) == (model, dataset)]


def accuracy_table(outcome: Record) -> str:
    """Medians over the seeds; the interval is Wilson's of the median."""
    lines = [
        "| network, data | program | % right: median (least to most) | 95 % interval "
        "| points from fp32: median (worst) |",
        "|---|---|---|---|---|",
    ]
    for model, dataset in SUBJECTS:
        trainings = group(outcome, model, dataset)
        of = trainings[0]["of"]
        for kind, meaning in KINDS.items():
            counts = [t[kind] for t in trainings]
            middle = statistics.median_low(counts)
            low, high = wilson(middle, of)
            gains = [t[kind] - t["fp32"] for t in trainings]
            change = f"{100 * statistics.median(gains) / of:+.2f} ({100 * min(gains) / of:+.2f})"
            lines.append(
                f"| {f'{model}, {dataset}' if kind == 'fp32' else ''} | {meaning} "
                f"| **{percent(middle, of)}** ({percent(min(counts), of)} to "
                f"{percent(max(counts), of)}) | {100 * low:.2f} to {100 * high:.2f} "
                f"| {'' if kind == 'fp32' else change} |"
            )
    return "\n".join(lines)


def parity_table(outcome: Record) -> str:
    """What shipped runtimes compute: fp32 by the bound, int8 by the integers."""
    lines = [
        f"| network | file | elements judged, a runtime | {' | '.join(SHIPPED.values())} |",
        f"|---|---|---|{'---|' * len(SHIPPED)}",
    ]
    for network in outcome["parity"]:
        for precision in ("fp32", "int8"):
            found = {
                SHIPPED[a["configuration"]]: a
                for a in network["artefacts"]
                if a["precision"] == precision and a["configuration"] in SHIPPED
            }
            cells = [_agreement(found[name]) for name in SHIPPED.values()]
            elements = max(a["elements"] for a in found.values()) / 1e6
            first = f"{network['model']} | {precision} | {elements:.1f} million"
            lines.append(f"| {first} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _agreement(artefact: Record) -> str:
    if artefact["precision"] == "fp32":
        return f"{100 * artefact['of_bound']:.0f} % of the bound"
    steps = round(artefact["final_largest"])
    rest = f", else {steps} step{'s' if steps > 1 else ''}" if steps else ""
    return f"{100 * artefact['final_equal']:.3f} % equal{rest}"


def tables(outcome: Record) -> str:
    """What stands between the marks."""
    seeds = sorted({t["seed"] for t in outcome["trainings"]})
    judged_by = [a for network in outcome["parity"] for a in network["artefacts"]]
    checks = [network["self_check"] for network in outcome["parity"]]
    total = {key: sum(check[key] for check in checks) for key in checks[0]}
    answers = [
        abs(row["right"] - t["fp32" if row["precision"] == "fp32" else "ptq"])
        for t in outcome["trainings"]
        for row in t.get("shipped", ())
    ]
    unlike = f", but for {max(answers)}" if any(answers) else ""
    machine = outcome["parity"][0]["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    configurations = {(a["runtime"], a["configuration"]) for a in judged_by}
    failed = sum(not a["passed"] for a in judged_by)
    images, size = outcome["parity"][0]["images"], outcome["parity"][0]["bundle_bytes"] / 1e6
    return "\n".join(
        [
            f"`make results`: seeds {seeds[0]} to {seeds[-1]}, {outcome['threads']} threads of "
            f"{outcome['processor']}; Python {machine['python']}, {packages}.",
            "",
            accuracy_table(outcome),
            "",
            f"Training takes {_seconds(outcome)}. In ONNX Runtime, LiteRT, tflite-runtime and C as "
            f"many of 10,000 answers are right as in the program{unlike} (both "
            f"networks, seed 0). The bundle of lenet5 has {size:.2f} MB without a runtime.",
            "",
            f"Every layer, in place and alone, on {images:,} test images and made ones (seed 0, "
            f"MNIST): in {len(configurations)} configurations of runtimes "
            f"**{sum(a['outside'] for a in judged_by)} elements are outside their bound and "
            f"{failed or 'no'} file{'' if failed == 1 else 's'} with unexplained ones**.",
            "",
            parity_table(outcome),
            "",
            f"{total['mutants']} files broken on purpose, of which {total['changed']} change a "
            f"final output: `pipeline verify` finds {total['killed_changed']}, and names "
            f"{total['false_alarms'] or 'nothing'} wrong with the intact ones; `allclose` at 1e-3 "
            f"finds {total['allclose_1e-3']}, at 1e-5 {total['allclose_1e-5']}.",
        ]
    )


def _seconds(outcome: Record) -> str:
    found = []
    for model, dataset in SUBJECTS:
        taken = [t["seconds"] for t in group(outcome, model, dataset)]
        span = f"{min(taken):.0f} to {max(taken):.0f}"
        found.append(f"{statistics.median(taken):.0f} s ({span}; {model}, {dataset})")
    return ", ".join(found)


def rendered(page: str, outcome: Record) -> str:
    """The page with the tables of this outcome between its marks."""
    marked = re.compile(r"(<!-- made by make results -->\n).*?(\n<!-- until here -->)", re.DOTALL)
    if not marked.search(page):
        raise ValueError("the page has no marks")
    return marked.sub(lambda found: found[1] + tables(outcome) + found[2], page)


def main() -> None:
    """Measure what is not measured yet, and render it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--render", action="store_true", help="docs/results.json as it is")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.pop("PIPELINE_RUNS_DIR", None)
    if not options.render:
        OUTCOME.write_text(json.dumps(measured(options), indent=1) + "\n")
    outcome = json.loads(OUTCOME.read_text())
    for page in PAGES:
        page.write_text(rendered(page.read_text(), outcome))


if __name__ == "__main__":
    main()
