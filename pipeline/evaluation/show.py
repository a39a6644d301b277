"""An evaluation as tables, and in words."""

from __future__ import annotations

from typing import Any

from ..console import out, say, table
from ..precisions import ending

Record = dict[str, Any]

SURE = 0.05  # a p-value below it is called a difference


def show_evaluation(report: Record) -> None:
    """Artefacts, what int8 cost, challenges."""
    rows = [
        [
            ending(row["file"], row["precision"]),
            row["configuration"].partition(" ")[0],
            f"{row['accuracy']:.2%}",
            "{:.2f} to {:.2f}".format(*(100 * end for end in row["interval"])),
            f"+{row['only_this_right']} -{row['only_fp32_right']}",
            f"{row['mcnemar_p']:.2f}",
            f"{row['calibration_error']:.2%}",
            "" if row["passed"] else "FAILED",
        ]
        for row in report["artefacts"]
    ]
    columns = ["file", "runtime", "accuracy", "95 % interval", "to fp32", "p", "ECE", ""]
    title = f"{report['dataset']}, {report['test_images']:,} test images"
    table(title, columns, rows, ["runtime"])
    for runtime in report["skipped"]:
        say(f"{runtime}: not there, skipped (run 'pipeline doctor')")
    for row in report["artefacts"]:
        if row["precision"] == "int8" and row["file"].endswith(".pt2"):
            out().print(cost(row))
    if "challenges" in report:
        _show_challenges(report["challenges"])


def cost(row: Record) -> str:
    """What quantization did to the decisions, in a sentence."""
    lost, won, p = row["only_fp32_right"], row["only_this_right"], row["mcnemar_p"]
    plural = "" if lost == 1 else "s"
    verdict = "no evidence of a loss or gain" if p >= SURE else "a difference"
    return (
        f"int8 decides {lost} image{plural} wrongly that fp32 decides rightly, and {won} the other "
        f"way: {verdict} (McNemar's test, p = {p:.2g})"
    )


def _show_challenges(record: Record) -> None:
    of = record["images"]
    artefacts = enumerate(record["artefacts"])
    programs = [(n, precision) for n, (file, _, precision) in artefacts if file.endswith(".pt2")]
    rows = []
    for entry in record["table"]:
        for number, precision in programs:
            parts = [f"{right / of:.1%}" for right in entry["right"][number]]
            rows.append([entry["challenge"] if number == 0 else "", precision, *parts])
    columns = ["challenge", "program", "none", *(str(n) for n in range(1, 6))]
    table(f"accuracy by severity, {of:,} images", columns, rows, ["program"])
    out().print(fragile(record))


def fragile(record: Record) -> str:
    """Whether int8 suffers more than fp32, in a sentence."""
    tests = {entry["challenge"]: entry["fragility"] for entry in record["table"]}
    known = {name: test for name, test in tests.items() if test is not None}
    if not known:
        return "int8 and fp32 are not both here to be compared"
    # Six tests: one of them would be below 0.05 by chance in a quarter of all cases (Bonferroni).
    worse = [
        name
        for name, test in known.items()
        if test["p"] < SURE / len(known) and test["only_first"] > test["only_second"]
    ]
    lost = sum(test["only_first"] for test in known.values())
    won = sum(test["only_second"] for test in known.values())
    of = sum(test["images"] for test in known.values())
    verdict = (
        f"int8 is more fragile under {', '.join(worse)}"
        if worse
        else ("int8 is no more fragile than fp32 under any of them")
    )
    return f"{verdict}: of {of:,} changed images it loses {lost} and wins {won}"
