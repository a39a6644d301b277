"""A verification report as tables: what is worst first, then every layer, then what differs."""

from __future__ import annotations

import math
from typing import Any

from ..console import say, table
from ..precisions import INTEGERS, PRECISIONS, ending
from .compiler import MEND
from .report import has_bound
from .runtimes import kind_of

Record = dict[str, Any]


def percent(part: float) -> str:
    """Rounded down, so that only all of it is 100 %."""
    return f"{math.floor(part * 1e5) / 1e3:.3f}%"


def show_verification(report: Record) -> None:
    """Worst layers, layers by runtime, files, what differs and why, failures."""
    _show_worst(report["worst"])
    for precision in PRECISIONS:
        artefacts = [a for a in report["artefacts"] if a["precision"] == precision]
        judged = [a for a in artefacts if a["error"] is None]
        kernels = [a for a in judged if "," not in a["configuration"]]
        for file in dict.fromkeys(a["file"] for a in kernels):
            of_file = [a for a in kernels if a["file"] == file]
            _show_bounds(file, of_file, precision in INTEGERS)
        explained = [a for a in judged if a["fingerprints"]]
        if explained:
            _show_fingerprints(precision, explained)
    if "test_images" in report:
        _show_files(report)
    _show_varied(report["varied"])
    for artefact in report["artefacts"]:
        _show_failure(artefact, report.get("run"))
    for runtime in report["absent"]:
        say(f"{runtime}: required, but no file ran in it")
    for runtime in report["skipped"]:
        mend = MEND if runtime == "c" else "run 'make install'"
        say(f"{runtime}: not there, skipped ({mend}; --require makes it a failure)")
    what = "every file computes what its program does"
    if "reference" in report:
        what = f"the files compute the same as {report['reference']}"
    say(f"verified: {what}" if report["passed"] else "FAILED")


def _show_worst(worst: list[Record]) -> None:
    def size(entry: Record) -> str:
        if entry["problem"]:
            return f"FAILED: {entry['problem']}"
        if entry["outside"]:
            return f"FAILED: {entry['outside']:,} outside"
        return entry["fingerprint"] or f"{entry['fraction_of_bound']:.0%} of its bound"

    rows = [[e["layer"], e["fed"], e["file"], e["configuration"], size(e)] for e in worst]
    columns = ["layer", "fed", "file", "runtime", "largest error"]
    if rows:
        table("nearest to failing", columns, rows, columns)


def _show_bounds(file: str, artefacts: list[Record], int8: bool) -> None:
    """Floats: the largest error as a part of its bound, in place or alone. In an int8 file these
    are the values of layers that stayed in float.
    """

    def cell(layer: Record) -> str:
        if layer["with"]:
            return f"with {layer['with']}" if layer["passed"] else f"FAILED with {layer['with']}"
        judgements = [j for j in (layer["isolated"], layer["in_place"]) if j is not None]
        if any(j["problem"] for j in judgements):
            return "FAILED"
        part = f"{max(j['fraction_of_bound'] for j in judgements):.0%}"
        unlikely = any(j["unlikely"] for j in judgements)
        return part + ("!" if unlikely else "") if layer["passed"] else f"FAILED {part}"

    rows = [
        [layer["layer"], *(cell(a["layers"][number]) for a in artefacts)]
        for number, layer in enumerate(artefacts[0]["layers"])
        if not int8 or all(has_bound(a["layers"][number]) for a in artefacts)
    ]
    if not rows:
        return
    names = [a["configuration"] for a in artefacts]
    table(f"{file}: error as a part of its bound", ["layer", *names], rows)
    if any(cell.endswith("!") for row in rows for cell in row):
        say("!: beyond the probabilistic bound, which is a warning")


def _show_fingerprints(precision: str, artefacts: list[Record]) -> None:
    """How each kind of layer rounds in each runtime; or, of floats, how it quantizes inputs."""
    rows = []
    for artefact in artefacts:
        told = " · ".join(f"{kind}: {how}" for kind, how in artefact["fingerprints"].items())
        judgements = [
            j
            for layer in artefact["layers"]
            for j in (layer["isolated"], layer["in_place"])
            if j is not None
        ]
        outside = sum(j["outside"] for j in judgements)
        elements = sum(j["elements"] for j in judgements)
        rows.append([artefact["configuration"], f"{outside:,}", f"{elements:,}", told])
    rounds, what = ("rounding", f"how {precision} is rounded")
    if precision not in INTEGERS:
        rounds, what = ("way", f"{precision}: how inputs are quantized while it runs")
    columns = [precision, "unexplained", "of", f"{rounds} that reproduces all of them"]
    table(what, columns, rows, columns[-1:])


def _show_files(report: Record) -> None:
    def change(entry: Record) -> str:
        confusion = entry["confusion_with_fp32"]
        return f"+{confusion['only this right']} -{confusion['only fp32 right']}"

    rows = []
    for artefact in report["artefacts"]:
        name = [ending(artefact["file"], artefact["precision"]), artefact["configuration"]]
        verdict = "ok" if artefact["passed"] else "FAILED"
        final = artefact.get("final")
        if final is None:
            if not artefact["passed"]:
                rows.append([*name, "", "", "", "", "", verdict])
            continue
        size = _steps(final["largest"]) if final["in_steps"] else f"{final['relative']:.1e}"
        equal = percent(final["equal_part"])
        flips = str(len(final["flips"])) if final["flips"] else ""
        accuracy = f"{final['accuracy']:.2%}"
        rows.append([*name, accuracy, size, equal, change(final), flips, verdict])
    columns = ["file", "runtime", "accuracy", "off by", "equal", "to fp32", "flips", ""]
    table(f"final outputs, {report['test_images']:,} test images", columns, rows, ["runtime"])


def _steps(count: float) -> str:
    return f"{count:.0f} step{'' if count == 1 else 's'}"


def _show_varied(varied: list[Record]) -> None:
    rows = [
        [
            entry["file"],
            entry["configuration"],
            percent(entry["differ"] / entry["elements"]),
            _steps(entry["largest"]) if entry["in_steps"] else f"{entry['largest']:.1e}",
            entry["cause"],
        ]
        for entry in varied
        if entry["differ"]
    ]
    if rows:
        columns = ["file", "runtime", "outputs", "by at most", "cause"]
        title = "final outputs unlike those of the kernels that ship"
        table(title, columns, rows, ["runtime", "cause"])
    else:
        say("final outputs are bit-equal for all kernels, threads and batches")


def _show_failure(artefact: Record, run: str | None) -> None:
    name = f"{artefact['file']} in {artefact['configuration']}"
    if artefact["error"] is not None:
        say(f"{name}: {artefact['error']}")
        return
    observer = artefact["observer"]
    if observer["differ"]:
        say(
            f"{name}: observing the layers changes {observer['differ']:,} of "
            f"{observer['elements']:,} final outputs (observer effect)"
        )
    output = artefact["output"]
    if artefact["first_broken"] is None:
        if output is not None and not artefact["passed"]:
            say(
                f"{name}: every layer is right, the file's own output is not its last layer's value"
            )
            _show_outside(output)
        return
    layer = next(e for e in artefact["layers"] if e["layer"] == artefact["first_broken"])
    fed, judgement = next(
        (words, layer[key])
        for words, key in (("alone", "isolated"), ("in place", "in_place"))
        if layer[key] is not None and not layer[key]["passed"]
    )
    say(f"{name}: the first layer that is wrong is {layer['layer']} ({layer['kind']}), {fed}")
    if hidden := [e["layer"] for e in artefact["layers"] if e["with"] == layer["layer"]]:
        say(f"  {' and '.join((*hidden, layer['layer']))} are computed and judged as one")
    _show_outside(judgement)
    kind = kind_of(artefact["file"])
    kind = f" --format {kind}" if kind else ""
    again = f"pipeline verify --run {run}{kind} --precision {artefact['precision']}"
    if artefact["configuration"] in ("reference", "pytorch"):
        say("  the ONNX file, which is the reference, and the program differ: 'pipeline export'")
    if run:
        say(f"  again: {again}")


def _show_outside(judgement: Record) -> None:
    if judgement["problem"]:
        say(f"  {judgement['problem']}")
    found = judgement["first_outside"]
    if found:
        say(
            f"  {judgement['outside']:,} of {judgement['elements']:,} outside; at "
            f"{tuple(found['position'])} expected {found['expected']:.9g}, found "
            f"{found['found']:.9g}, bound {found['bound']:.3g}"
        )


def show_self_check(report: Record) -> None:
    """How many broken files were found, by what was broken, beside plain allclose."""

    def part(count: int, of: int) -> str:
        return f"{count}/{of}" if of else ""

    def row(name: str, entry: Record) -> list[str]:
        changed = entry["changed"]
        return [
            name,
            str(entry["mutants"]),
            str(changed),
            part(entry["killed_changed"], changed),
            part(entry["allclose_1e-3"], changed),
            part(entry["allclose_1e-5"], changed),
            str(entry["killed"] - entry["killed_changed"]),
            str(entry["equivalent"]),
        ]

    columns = ["broken", "files", "output changed", "found", "allclose 1e-3", "allclose 1e-5"]
    columns += ["found unchanged", "equivalent"]
    for file in report["files"]:
        table(file["file"], columns, [row(entry["mutation"], entry) for entry in file["rows"]])
    total = report["total"]
    table("in all", columns, [row("", total)])
    for file in report["files"]:
        for entry in file["rows"]:
            for layer in entry["missed"]:
                say(f"{file['file']}: {entry['mutation']} in {layer} was not found")
    for alarm in report["false_alarms"]:
        say(f"{alarm}: fails although nothing was broken")
    say("the verifier finds what it must" if report["passed"] else "FAILED")


def show_grid(outcomes: Any) -> None:
    """Cells by operator, precision and runtime; then all that is not a match."""
    statuses = ("match", "refused", "known defect", "MISMATCH")
    groups: dict[tuple[str, str, str], dict[str, int]] = {}
    for outcome in outcomes:
        place = (outcome.cell.operator, outcome.cell.precision, outcome.runtime)
        groups.setdefault(place, dict.fromkeys(statuses, 0))[outcome.status] += 1
    rows = [[*key, *(str(n or "") for n in counts.values())] for key, counts in groups.items()]
    table("cells", ["operator", "precision", "runtime", *statuses], rows)
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status != "match":
            key = f"{outcome.status}, {outcome.runtime}: {outcome.detail}"
            reasons.setdefault(key, []).append(outcome.cell.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(f"{reason}\n  {', '.join(names[:3])}{more}")
    wrong = sum(not outcome.ok for outcome in outcomes)
    say(
        f"{len(outcomes)} cells: all match, are refused for a reason, or are known defects"
        if not wrong
        else f"FAILED: {wrong} wrong"
    )
