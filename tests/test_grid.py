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

from pipeline.export import FORMATS
from pipeline.program import aten, attribute
from pipeline.verify import grid
from pipeline.verify.grid import Outcome, core_cells, full_cells, judge, run_cells
from pipeline.verify.grid_cells import KNOWN_DEFECTS, OPERATORS, Cell, cell, is_valid

RUNTIMES = ("onnxruntime", "litert")


@pytest.fixture(scope="module")
def core() -> list[Outcome]:
    return run_cells(core_cells(), RUNTIMES)


def test_the_core_has_every_cell_in_every_runtime_and_nothing_is_silently_wrong(
    core: list[Outcome],
) -> None:
    assert len(set(core_cells())) == len(core_cells()) >= 200
    assert {(o.cell, o.runtime) for o in core} == {(c, r) for c in core_cells() for r in RUNTIMES}
    assert [(o.runtime, o.cell.name, o.status, o.detail) for o in core if not o.ok] == []


def test_every_operator_matches_in_each_precision_and_runtime(core: list[Outcome]) -> None:
    matches = {(o.cell.operator, o.cell.precision, o.runtime) for o in core if o.status == "match"}
    assert len(matches) == len(OPERATORS) * 2 * len(RUNTIMES)


def reason_to_refuse(cell: Cell, runtime: str) -> str:
    options = cell.options
    if cell.precision == "int8":
        if "pad" in options or options.get("padding_mode", "zeros") != "zeros":
            return "no quantization rule for aten.pad"
        if options.get("return_indices"):
            return "no quantization rule for aten.max_pool2d_with_indices"
    # PyTorch drops the last window where it would begin in the padding; ONNX keeps it.
    beyond = options.get("ceil_mode") and options.get("stride") in ((3, 2), (3, 4))
    if runtime == "onnxruntime" and beyond:
        return "Inferred shape and existing shape differ in dimension 2"
    return ""


def test_what_is_refused_is_refused_with_a_reason(core: list[Outcome]) -> None:
    for outcome in core:
        reason = reason_to_refuse(outcome.cell, outcome.runtime)
        assert (outcome.status == "refused") == bool(reason), outcome
        assert reason in outcome.detail


def test_every_known_defect_is_seen_with_its_versions(core: list[Outcome]) -> None:
    seen = [outcome.detail for outcome in core if outcome.status == "known defect"]
    for defect in KNOWN_DEFECTS:
        assert any(detail.startswith(f"{defect.reason} ({defect.versions}") for detail in seen)


def test_outcomes_are_json(core: list[Outcome]) -> None:
    record = json.loads(json.dumps([outcome.as_json() for outcome in core], allow_nan=False))
    assert {entry["cell"] for entry in record} == {found.name for found in core_cells()}


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
    [(flip_kernels, {0, 1}), (swap_strides, {0}), (widen_pooling, {2})],
    ids=["flipped kernel", "swapped strides", "narrower window"],
)
def test_a_planted_bug_is_found_where_it_is_and_nowhere_else(
    plant: Callable[[fx.GraphModule, fx.Node], None],
    wrong: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export = FORMATS["onnx"]

    def planted(module: fx.GraphModule, *others: Any) -> None:
        module = copy.deepcopy(module)
        for node in module.graph.nodes:
            plant(module, node)
        module.recompile()
        export(module, *others)

    monkeypatch.setitem(FORMATS, "onnx", planted)
    outcomes = {outcome.cell: outcome for outcome in run_cells(PLAIN, ("onnxruntime",))}
    assert {n for n, c in enumerate(PLAIN) if outcomes[c].status == "MISMATCH"} == wrong


@pytest.mark.parametrize(
    "found", [np.full((1, 2), np.nan), np.zeros((2, 1)), np.zeros((1, 2)) + 1e-30]
)
def test_nan_another_shape_and_the_least_difference_fail(found: Any) -> None:
    relu = cell("relu")
    assert judge(relu, np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 2))).ok
    assert not judge(relu, np.zeros((1, 2)), np.zeros((1, 2)), found).ok


def test_nothing_compared_is_no_match() -> None:
    assert not judge(cell("relu"), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2))).ok


def test_int8_is_the_nearest_integer_and_says_where_halves_go() -> None:
    exact, found = np.array([[2.5, -2.5, 1.4]]), np.array([[2.0, -3.0, 1.0]])
    pool = cell("avg-pool", {"kernel_size": 2}, precision="int8")
    verdict = judge(pool, exact, np.abs(exact), found)
    assert verdict.ok
    assert verdict.detail == "2 halves: 1 to even, 1 away from zero"
    assert not judge(pool, exact, np.abs(exact), np.array([[2.0, -3.0, 2.0]])).ok


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


@settings(max_examples=12)
@given(LAYERS, SHAPES)
def test_layers_that_nobody_picked(
    layer: tuple[str, dict[str, Any]], shape: tuple[int, int, int]
) -> None:
    found = cell(*layer, shape=shape)
    assume(is_valid(found))
    (outcome,) = run_cells([found], ("onnxruntime",))
    assert outcome.ok, outcome


@pytest.mark.parametrize(
    ("wrong", "runtime"),
    [
        (cell("avg-pool", {"kernel_size": 2, "divisor_override": 3}), "onnxruntime"),
        (cell("max-pool", {"kernel_size": 3, "stride": 2, "padding": (1, 0)}), "litert"),
    ],
    ids=RUNTIMES,
)
def test_a_reproducer_runs_alone(wrong: Cell, runtime: str, tmp_path: Path) -> None:
    script = grid.write_reproducer(wrong, tmp_path, runtime)
    done = subprocess.run(
        [sys.executable, "-I", script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "expected (1, 4," in done.stdout
    assert "found (1, 4," in done.stdout
    text = script.read_text()
    assert "pipeline" not in text.split("MODEL =")[0].split("import base64")[1]
