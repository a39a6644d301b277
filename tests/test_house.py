"""The house's own rules: who may import whom, what nothing is called, what no file says."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import main

ROOT = Path(__file__).parents[1]
OURS = ("pipeline", "models", "deploy")
VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "misc", "common"}
HOSTS = ["pypi" + ".org", "python" + "hosted"]
HOMES = [f"/{name}/" for name in ("root", "home", "work")]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in OURS for path in (ROOT / name).rglob("*.py")}


def statements(tree, top_level):
    """All nodes, or those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not (top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from statements(node, top_level)


def imports(module, top_level=False):
    """What a module imports, by absolute name, down to a module or a name in one."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(path.read_text()), top_level):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_modules_are_found():
    assert {"pipeline.cli", "models.lenet", "deploy.runner.backends.tflite"} <= set(MODULES)
    assert "pipeline.errors.unknown" in imports("pipeline.cli", top_level=True)
    assert "pipeline.graph.read_graph" in imports("pipeline.cli")
    assert "pipeline.program.decomposed" in imports("pipeline.export.onnx")


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, ["models"])])
def test_the_networks_import_nothing_else_of_ours(module):
    assert [name for name in imports(module) if within(name, ["pipeline", "deploy"])] == []


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, ["deploy"])])
def test_the_device_side_needs_nothing_of_the_workstation(module):
    forbidden = ["pipeline", "models", "torch", "click"]
    assert [name for name in imports(module) if within(name, forbidden)] == []


def test_nothing_imports_the_command_line():
    assert [m for m in MODULES if any(within(n, ["pipeline.cli"]) for n in imports(m))] == []


def test_the_pipeline_has_no_import_cycles():
    graph = {}
    for module in (name for name in MODULES if within(name, ["pipeline"])):
        # A name that is no module is in the module before its last dot.
        names = {n if n in MODULES else n.rpartition(".")[0] for n in imports(module, True)}
        graph[module] = {name for name in names if within(name, ["pipeline"])}
    assert any("pipeline.export" in needed for needed in graph.values())
    graphlib.TopologicalSorter(graph).prepare()


def test_the_command_line_starts_without_heavy_libraries():
    program = "import json, sys, pipeline.cli; print(json.dumps(list(sys.modules)))"
    output = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT)
    assert {"torch", "numpy", "rich", "onnx"} & set(json.loads(output)) == set()


def test_no_module_has_a_vague_name():
    assert [name for name in MODULES if VAGUE & set(name.split("."))] == []


def test_no_file_names_a_package_index_or_a_home():
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    paths = [ROOT / name for name in listed.split("\0") if name]
    contents = {path: path.read_bytes() for path in paths if path.is_file()}
    texts = {path: text for path, text in contents.items() if b"\0" not in text}
    assert ROOT / "README.md" in texts
    words = [word.encode() for word in HOSTS + HOMES]
    assert [(str(p), w) for p, text in texts.items() for w in words if w in text] == []


def commands(group=main, path=()):
    yield path
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=lambda path: " ".join(("pipeline", *path)))
def test_every_command_has_an_example(path):
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
