"""The semantics grid: its core, that it finds what is wrong, and layers that nobody picked."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx

from pipeline.errors import UsageError
from pipeline.export import EXPORTERS
from pipeline.program import aten, attribute
from pipeline.verify.bounds import exactly
from pipeline.verify.compiler import compiler
from pipeline.verify.grid import (
    Outcome,
    cells_in_c,
    core_cells,
    full_cells,
    group,
    run_cells,
    write_reproducers,
)
from pipeline.verify.grid.cells import OPERATORS, Cell, cell, is_valid
from pipeline.verify.grid.defects import KNOWN_DEFECTS, REFUSALS
from pipeline.verify.grid.truth import Truth, judge_output
from pipeline.verify.rounding import Exact

RUNTIMES = ("reference", "onnxruntime", "litert")
IN_C = ("c", "c portable") if compiler() else ()


@pytest.fixture(scope="module")
def core() -> list[Outcome]:
    return run_cells(core_cells())


@pytest.mark.slow
def test_the_core_has_every_cell_in_every_runtime_and_nothing_is_silently_wrong(
    core: list[Outcome],
) -> None:
    assert len(set(core_cells())) == len(core_cells()) >= 200
    everywhere = {(c, r) for c in core_cells() for r in RUNTIMES}
    assert {(o.cell, o.runtime) for o in core} == everywhere | {
        (c, r) for c in cells_in_c() for r in IN_C
    }
    assert [(o.runtime, o.cell.name, o.status, o.detail) for o in core if not o.ok] == []


@pytest.mark.slow
def test_every_operator_matches_in_each_precision_and_runtime(core: list[Outcome]) -> None:
    matches = {(o.cell.operator, o.cell.precision, o.runtime) for o in core if o.status == "match"}
    windows = 3  # convolutions and two kinds of pooling
    assert len(matches) == len(OPERATORS) * 2 * len(RUNTIMES) + windows * 2 * len(IN_C)


@pytest.mark.slow
def test_c_rounds_int8_as_it_is_written_to(core: list[Outcome]) -> None:
    assert len(cells_in_c()) >= 30 and cells_in_c() <= set(core_cells())
    found = [o for o in core if o.runtime in IN_C]
    assert all(o.status == "match" for o in found)
    for o in found:
        if o.cell.precision == "int8" and o.cell.operator == "conv":
            assert o.detail == "exact" or "float half even" in o.detail


def reason_to_refuse(cell: Cell, runtime: str) -> str:
    options = cell.options
    if cell.precision == "int8":
        if "pad" in options or options.get("padding_mode", "zeros") != "zeros":
            return "no quantization rule for aten.pad"
        if options.get("return_indices"):
            return "no quantization rule for aten.max_pool2d_with_indices"
    kernel, stride = options.get("kernel_size"), options.get("stride")
    # A last window that would begin after the image.
    beyond = (kernel, stride) == ((3, 1), (2, 4)) or stride in ((3, 2), (3, 4))
    beyond = beyond and bool(options.get("ceil_mode"))
    if runtime == "litert":
        if options.get("return_indices"):
            return "returns indices"
        if beyond and kernel == (3, 1):
            return "Pad value has to be greater"
        # Padding along one axis, by the user or by ceil_mode; SAME has more windows in the other.
        padded = not options.get("count_include_pad", cell.operator == "avg-pool")
        more = (options.get("padding", 0), bool(options.get("ceil_mode")))
        one_axis = (kernel, stride) == (3, 2) and more in (((1, 0), False), (0, True))
        return "another shape than" if padded and one_axis else ""
    if "divisor_override" in options:
        return "torch.onnx leaves out"
    # PyTorch drops that window; ONNX keeps it.
    return "Inferred shape and existing shape differ in dimension" if beyond else ""


@pytest.mark.slow
def test_what_is_refused_is_refused_with_a_reason(core: list[Outcome]) -> None:
    for outcome in core:
        reason = reason_to_refuse(outcome.cell, outcome.runtime)
        assert (outcome.status == "refused") == bool(reason), outcome
        assert not reason or reason in outcome.detail


@pytest.mark.slow
def test_every_known_defect_and_refusal_is_seen_and_has_its_versions(core: list[Outcome]) -> None:
    seen = [outcome.detail for outcome in core if outcome.status == "known defect"]
    for defect in KNOWN_DEFECTS:
        assert any(detail.startswith(f"{defect.reason} ({defect.versions}") for detail in seen)
    refused = [outcome.detail for outcome in core if outcome.status == "refused"]
    for refusal in REFUSALS:
        assert any(refusal.reason in detail for detail in refused)


@pytest.mark.slow
def test_int8_matches_say_how_they_are_rounded(core: list[Outcome]) -> None:
    matches = [o for o in core if o.status == "match" and o.cell.precision == "int8"]
    assert all(outcome.detail for outcome in matches)
    convolutions = [o.detail for o in matches if o.cell.operator == "conv"]
    assert any("float half even" in detail for detail in convolutions)


@pytest.mark.slow
def test_outcomes_are_json(core: list[Outcome]) -> None:
    record = json.loads(json.dumps([outcome.as_json() for outcome in core], allow_nan=False))
    assert {entry["cell"] for entry in record} == {found.name for found in core_cells()}


@pytest.mark.slow
def test_the_whole_grid_is_thousands_of_cells_that_differ() -> None:
    cells = list(full_cells())
    assert len(set(cells)) == len(cells) > 2000
    assert {found.operator for found in cells} == set(OPERATORS)


PLAIN = (
    cell("conv", {"kernel_size": (3, 2), "padding": (2, 1), "stride": (2, 1)}),
    cell("conv", {"kernel_size": 3, "groups": 4, "bias": False}, precision="int8"),
    cell("max-pool", {"kernel_size": 3, "stride": 1, "padding": 1}),
)


def flip_kernels(module: fx.GraphModule, node: fx.Node) -> None:
    if node.target is aten.conv2d.default:
        weight: Any = node.args[1]
        while weight.op != "get_attr":
            weight = weight.args[0]
        values = attribute(module, weight)
        values.data = values.data.flip(-1)


def swap_strides(_: fx.GraphModule, node: fx.Node) -> None:
    if node.target is aten.conv2d.default and len(node.args) > 3:
        node.update_arg(3, list(node.args[3])[::-1])  # type: ignore[arg-type]


def widen_pooling(_: fx.GraphModule, node: fx.Node) -> None:
    if node.target is aten.max_pool2d.default:
        node.update_arg(1, [3, 2])


@pytest.mark.parametrize(
    ("plant", "wrong"),
    [
        pytest.param(flip_kernels, {0, 1}, id="flipped kernel"),
        pytest.param(swap_strides, {0}, id="swapped strides", marks=pytest.mark.slow),
        pytest.param(widen_pooling, {2}, id="narrower window", marks=pytest.mark.slow),
    ],
)
def test_a_planted_bug_is_found_where_it_is_and_nowhere_else(
    plant: Callable[[fx.GraphModule, fx.Node], None],
    wrong: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export = EXPORTERS["onnx"]

    def planted(module: fx.GraphModule, *others: Any) -> None:
        module = copy.deepcopy(module)
        for node in module.graph.nodes:
            plant(module, node)
        module.recompile()
        export(module, *others)

    monkeypatch.setitem(EXPORTERS, "onnx", planted)
    outcomes = run_cells(PLAIN, ("reference", "onnxruntime"))
    found = [(PLAIN.index(o.cell), o.runtime) for o in outcomes if o.status == "MISMATCH"]
    assert sorted(found) == [(n, r) for n in sorted(wrong) for r in ("onnxruntime", "reference")]


def test_a_reference_that_is_off_by_a_float32_rounding_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execute = group.execute

    def rounded(*given: Any) -> dict[str, Any]:
        values = execute(*given).items()
        return {k: v.astype(np.float32).astype(v.dtype) for k, v in values}

    monkeypatch.setattr(group, "execute", rounded)
    outcomes = run_cells(PLAIN[:1], ("reference", "onnxruntime"))
    assert [outcome.status for outcome in outcomes] == ["MISMATCH", "match"]


def test_an_unknown_runtime_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown runtime 'onnxruntim'"):
        run_cells(PLAIN, ("onnxruntim",))


@pytest.mark.parametrize(
    "found", [np.full((1, 2), np.nan), np.zeros((2, 1)), np.zeros((1, 2)) + 1e-30]
)
def test_nan_another_shape_and_the_least_difference_fail(found: Any) -> None:
    zeros = np.zeros((1, 2))
    assert judge_output(Truth(exactly(zeros)), zeros).passed
    assert not judge_output(Truth(exactly(zeros)), found).passed
    eight = Truth(Exact(zeros, zeros, -3, -128, 127), 0.5)
    assert judge_output(eight, zeros).passed
    assert not judge_output(eight, found * 1e30).passed


def test_nothing_compared_is_no_match() -> None:
    assert not judge_output(Truth(exactly(np.zeros((0, 2)))), np.zeros((0, 2))).passed


def test_int8_is_one_rounding_and_the_reference_only_the_nearest_integer() -> None:
    real = np.array([[2.5, -2.5, 3.5]])
    truth = Truth(Exact(real, np.zeros(real.shape), -3, -128, 127), 0.5)

    def judged(*steps: float, finely: bool = False) -> str:
        return judge_output(truth, np.array([steps]) * 0.5, finely).fingerprint

    assert judged(2, -2, 4) == "half even"
    assert judged(3, -3, 4) == "half away"
    assert judged(2, -2, 3) == "1 unexplained"
    assert judged(2, -2, 3, finely=True) == "float32 arithmetic"
    assert judged(2, -2, 5, finely=True) == "1 unexplained"


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
PADDINGS = st.tuples(st.integers(0, 2), st.integers(0, 2))
SHAPES = st.tuples(st.sampled_from((2, 4)), st.integers(5, 9), st.integers(5, 9))
LAYERS = st.one_of(
    st.tuples(
        st.just("conv"),
        st.fixed_dictionaries(
            {"kernel_size": PAIRS, "stride": PAIRS, "dilation": PAIRS},
            optional={
                "padding": PADDINGS,
                "groups": st.sampled_from((1, 2)),
                "bias": st.booleans(),
                "padding_mode": st.sampled_from(("zeros", "reflect", "replicate", "circular")),
            },
        ),
    ),
    st.tuples(
        st.just("max-pool"),
        st.fixed_dictionaries(
            {"kernel_size": PAIRS, "stride": PAIRS},
            optional={"padding": PADDINGS, "dilation": PAIRS, "ceil_mode": st.booleans()},
        ),
    ),
    st.tuples(
        st.just("avg-pool"),
        st.fixed_dictionaries(
            {"kernel_size": PAIRS, "stride": PAIRS},
            optional={
                "padding": PADDINGS,
                "ceil_mode": st.booleans(),
                "count_include_pad": st.booleans(),
            },
        ),
    ),
)


@pytest.mark.slow
@settings(max_examples=10)
@given(LAYERS, SHAPES)
def test_layers_that_nobody_picked(
    layer: tuple[str, dict[str, Any]], shape: tuple[int, int, int]
) -> None:
    found = cell(*layer, shape=shape)
    assume(is_valid(found))
    for outcome in run_cells([found], ("reference", "onnxruntime")):
        assert outcome.ok, outcome


WRONG = (
    ("known defect", "onnxruntime", {"kernel_size": 2, "ceil_mode": True}, "int8"),
    pytest.param(
        *("known defect", "litert", {"kernel_size": 2, "ceil_mode": True}, "int8"),
        marks=pytest.mark.slow,
    ),
    pytest.param(
        *("refused", "onnxruntime", {"kernel_size": 2, "divisor_override": 3}, "fp32"),
        marks=pytest.mark.slow,
    ),
)


@pytest.mark.parametrize(("status", "runtime", "options", "precision"), WRONG)
def test_a_reproducer_runs_alone(
    status: str, runtime: str, options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    wrong = cell("avg-pool", options, precision=precision)
    outcome = Outcome(wrong, runtime, status, "why", 0.0)
    (script,) = write_reproducers([outcome], tmp_path / "new")
    done = subprocess.run(
        [sys.executable, "-I", script.name],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "expected (1, 4," in done.stdout
    assert "found (1, 4," in done.stdout
    assert float(done.stdout.split("largest difference ")[1]) > 0.1
    assert "import pipeline" not in script.read_text()


@pytest.mark.slow
def test_what_is_right_needs_no_reproducer(core: list[Outcome], tmp_path: Path) -> None:
    right = [outcome for outcome in core if outcome.status == "match"]
    assert write_reproducers(right, tmp_path) == []
