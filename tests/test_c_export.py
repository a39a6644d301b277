"""C from other people's files: what is understood, what is refused, and what the folder is like."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from c_networks import PORTABLE, Compiled
from conftest import Cli
from onnx import parser
from PIL import Image

import deploy
from pipeline.errors import BadInput
from pipeline.export.c import generate, write
from pipeline.export.c.evaluate import evaluate, seen
from pipeline.export.c.generate import RESERVED
from pipeline.export.c.golden import golden_image, goldens, image_for
from pipeline.export.c.literals import text
from pipeline.export.c.lowering import Lowering
from pipeline.export.c.operators import OPERATORS
from pipeline.export.c.reading import read
from pipeline.export.c.values import Program
from pipeline.reference import execute
from pipeline.verify.compiler import compiler

SOURCES = Path(deploy.__file__).parent / "c"
WARNINGS = "-Wall -Wextra -Wconversion -Wshadow -Werror"
SANITIZERS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DUNROLL="
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


def parsed(body: str, opset: int = 17, **constants: Any) -> onnx.ModelProto:
    """A model in ONNX's textual form, with constants beside it."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model: onnx.ModelProto = parser.parse_model(f"{header} {body}")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    return model


def lowered(model: onnx.ModelProto) -> Program:
    return Lowering(read(model.SerializeToString(), "some.onnx")).program(OPERATORS)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [layer.kind for layer in lowered(model).layers]


def integers_of(model: onnx.ModelProto, *inputs: Any) -> Any:
    """The output by the layers in NumPy, integers in signed terms."""
    program = lowered(model)
    given = {value.name: x for value, x in zip(program.inputs, inputs, strict=True)}
    (output,) = program.outputs
    return seen(output, evaluate(program, given)[output.root])


RANDOM = np.random.default_rng(1)
SCALES: dict[str, Any] = {"s": np.float32(0.05), "t": np.float32(0.1)}
SCALES |= {"z": np.int8(-3), "zero": np.int8(0), "ws": np.float32(0.01)}
IMAGE = "float[1,2,5,5]"


# --- What is understood ---------------------------------------------------------------------------


def test_an_older_definition_is_converted() -> None:
    old = parsed("g (float[1,4] x) => (float[1,4] y) {y = Clip<min=-1.0, max=2.0>(x)}", 9)
    (layer,) = lowered(old).layers
    assert (layer.kind, layer.low, layer.high) == ("clip", -1.0, 2.0)


def test_a_definition_that_cannot_be_converted_is_refused() -> None:
    body = "g (float[1,4] x) => (float[1,4] y) {y = Pad<paddings = [0, 0, 0, 0]>(x)}"
    with pytest.raises(BadInput, match="opset 1 cannot be converted to 13"):
        lowered(parsed(body, 1))


def test_nodes_of_a_layer_are_checked_too() -> None:
    """A definition newer than those that are known, in what a convolution would take in."""
    model = parsed(f"g ({IMAGE} x) => (float[1,2,5,5] y) {{c = Conv(x, w)\n y = Relu(c)}}", w=W)
    model.opset_import[0].version = 99
    with pytest.raises(BadInput):
        lowered(model)


W = RANDOM.normal(0, 1, (2, 2, 1, 1)).astype(np.float32)


def test_an_integer_input_is_taken_for_what_its_reader_says() -> None:
    body = """g (int8[1,2,5,5] q) => (int8[1,3,5,5] y) {
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear(w, ws, zero)
        c = Conv<pads=[1, 1, 1, 1]>(d, v)
        y = QuantizeLinear(c, t, zero)
    }"""
    w = RANDOM.integers(-127, 128, (3, 2, 3, 3)).astype(np.int8)
    model = parsed(body, w=w, **SCALES)
    (value,) = lowered(model).inputs
    assert value.quantization is not None and value.quantization.zero_point == -3
    q = RANDOM.integers(-128, 128, (1, 2, 5, 5)).astype(np.int8)
    exact = execute(model, {"q": q})["y"]
    assert np.array_equal(integers_of(model, q.astype(np.int64)), exact)


def test_readers_that_disagree_are_refused() -> None:
    body = """g (int8[1,4] q) => (float[1,4] y) {
        a = DequantizeLinear(q, s, z)
        b = DequantizeLinear(q, t, z)
        y = Add(a, b)
    }"""
    with pytest.raises(BadInput, match="which was made as"):
        lowered(parsed(body, **SCALES))


def test_integers_stay_integers_though_a_float_layer_reads_them_first() -> None:
    body = """g (float[1,2,5,5] x) => (float[1,2,5,5] e, float[1,2,5,5] o) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        e = Sigmoid(d)
        v = DequantizeLinear(w, ws, zero)
        c = Conv(d, v)
        y = QuantizeLinear(c, t, zero)
        o = DequantizeLinear(y, t, zero)
    }"""
    model = parsed(body, w=RANDOM.integers(-127, 128, (2, 2, 1, 1)).astype(np.int8), **SCALES)
    (convolution,) = [layer for layer in lowered(model).layers if layer.kind == "convolution"]
    assert convolution.weights is not None and convolution.weights.multiplier is not None


@pytest.mark.parametrize("low", [-300.0, 20.0])
def test_a_clamp_outside_of_the_integers_gives_the_nearest(low: float) -> None:
    body = """g (int8[1,4] q) => (int8[1,3] y) {
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear(w, ws, zero)
        c = MatMul(d, v)
        k = Clip(c, low, high)
        y = QuantizeLinear(k, t, zero)
    }"""
    ends = {"low": np.float32(low), "high": np.float32(low + 5)}
    w = RANDOM.integers(-127, 128, (4, 3)).astype(np.int8)
    model = parsed(body, w=w, **ends, **SCALES)
    q = RANDOM.integers(-128, 128, (1, 4)).astype(np.int8)
    exact = execute(model, {"q": q})["y"]
    assert set(np.unique(exact)) <= {-128, 127}
    assert np.array_equal(integers_of(model, q.astype(np.int64)), exact)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (1, 3)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_bias_of_gemm_may_be_of_any_row(shape: tuple[int, ...], beta: float) -> None:
    body = f"""g (int8[1,4] q) => (int8[1,3] y) {{
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear(w, ws, zero)
        b = DequantizeLinear(bi, bs)
        c = Gemm<beta={beta}>(d, v, b)
        y = QuantizeLinear(c, t, zero)
    }}"""
    w = RANDOM.integers(-127, 128, (4, 3)).astype(np.int8)
    bi = RANDOM.integers(-9000, 9000, shape).astype(np.int32)
    model = parsed(body, w=w, bi=bi, bs=np.float32(0.05 * 0.01), **SCALES)
    q = RANDOM.integers(-128, 128, (1, 4)).astype(np.int8)
    exact = execute(model, {"q": q})["y"].astype(np.int64)
    found = integers_of(model, q.astype(np.int64))
    # A bias that is no whole number of steps is rounded to one, which may be seen at a half.
    assert np.abs(found - exact).max() <= (beta != 1.0)


REFUSED = {
    "a bias for rows": (
        "g (float[3,4] x) => (float[3,3] y) {y = Gemm(x, w, b)}",
        {"w": np.ones((4, 3), np.float32), "b": np.ones((3, 1), np.float32)},
        "a bias of shape",
    ),
    "normalised rows": (
        "g (float[1,4,6] x) => (float[1,4,6] y) {y = BatchNormalization(x, p, p, p, p)}",
        {"p": np.ones(4, np.float32)},
        "only two or four axes",
    ),
    "no scale": (
        "g (float[1,4] x) => (uint8[1,4] y) {y = QuantizeLinear(x, nothing, un)}",
        {"nothing": np.float32(0), "un": np.uint8(0)},
        "a scale of 0",
    ),
    "scale that varies": (
        "g (float[1,4] x, float k) => (uint8[1,4] y) {a = Relu(x)\n y = QuantizeLinear(a, k)}",
        {},
        "must be a constant",
    ),
    "axes": (
        "g (float[1,1,1,1,1,1,4] x) => (float[1,1,1,1,1,1,4] y) {y = Relu(x)}",
        {},
        "7 axes",
    ),
    "another domain": (
        "g (float[1,4] x) => (float[1,4] y) {y = Celu(x)}",
        {},
        "this operator is not known; known are Add",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name: str) -> None:
    body, constants, reason = REFUSED[name]
    model = parsed(body, **constants)
    with pytest.raises(BadInput) as found:
        lowered(model)
    assert reason in str(found.value)
    assert str(found.value).startswith("some.onnx: ")


# --- Names and texts ------------------------------------------------------------------------------


def picture_model() -> onnx.ModelProto:
    """One picture to three scores, float32."""
    body = "g (float[1,3,6,6] x) => (float[1,3] y) {c = Conv(x, w)\n r = Relu(c)\n" + (
        "p = GlobalAveragePool(r)\n y = Flatten(p)}"
    )
    return parsed(body, w=RANDOM.normal(0, 1, (3, 3, 3, 3)).astype(np.float32))


def test_a_node_may_have_any_name() -> None:
    named = picture_model()
    for node in named.graph.node:
        node.name = f"keep_{node.name}"  # as a Sum that keeps a layer in float is called
    assert kinds(named) == kinds(picture_model())


def test_no_name_of_a_model_clashes_with_one_of_the_runner() -> None:
    code = "\n".join(path.read_text() for path in SOURCES.glob("*.[ch]"))
    found = re.findall(r"\b([a-z]\w*)_(?:model|predict|predict_raw|selftest)\b", code)
    assert set(found) <= RESERVED
    guards = set(re.findall(r"#ifndef (\w+_H)\b", code))
    assert guards and not [guard for guard in guards if guard.startswith("MODEL_")]


@needs_compiler
@pytest.mark.parametrize("name", ["model", "library", "runner", "cpu", "größe", "3d"])
def test_a_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    write(generate(picture_model().SerializeToString(), f"{name}.onnx"), tmp_path)
    command = [*(compiler() or []), "-std=c99", "-Werror", "-O0", "-fsyntax-only"]
    subprocess.run([*command, "model.c", "main.c"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("value", ["plain", 'a "b" \\ c', "\\u00e9", "tab\t??/", "größe", "\x7f"])
def test_text_is_what_c_reads(value: str) -> None:
    literal = text(value)
    assert literal.isascii() and "??" not in literal
    octal = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), literal[1:-1].encode())
    assert re.sub(rb'\\(["\\?])', rb"\1", octal).decode() == value


# --- Golden values --------------------------------------------------------------------------------


def test_a_golden_integer_is_never_near_a_half() -> None:
    """The input in steps of 1 / 510, quantized in steps of 1 / 255: every odd one is a half."""
    body = """g (float[1,1,2,2] x) => (float[1,4] y) {
        h = Mul(x, half)
        q = QuantizeLinear(h, s, zero)
        d = DequantizeLinear(q, s, zero)
        y = Flatten(d)
    }"""
    half, step = np.float32(0.5), np.float32(1 / 255)
    program = lowered(parsed(body, half=half, s=step, zero=np.int8(0)))
    odd, even = (np.full((1, 2, 2), value, np.uint8) for value in (101, 100))
    assert [golden.value.is_float for golden in goldens(program, odd)] == [True]
    assert len(goldens(program, even)) == len(program.layers)
    pixels, found = golden_image(program, (1, 2, 2))
    assert (
        len(found) == len(goldens(program, pixels)) >= len(goldens(program, image_for((1, 2, 2))))
    )


# --- The folder -----------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "int8"])
def test_all_of_it_compiles_without_a_warning(
    trained: Path, tmp_path: Path, precision: str
) -> None:
    content = (trained / "small" / f"lenet5-classic-{precision}.onnx").read_bytes()
    write(generate(content, "net.onnx"), tmp_path)
    make = ["make", "-s", "-j2", "all", f"CFLAGS=-O1 {WARNINGS}"]
    subprocess.run(make, cwd=tmp_path, check=True)
    (tmp_path / "user.cc").write_text(
        '#include "model.h"\nint main() { return !library_model(); }\n'
    )
    cxx = ["g++", "-Wall", "-Wextra", "-Werror", "user.cc", "-L.", "-lmodel", "-o", "user"]
    subprocess.run(cxx, cwd=tmp_path, check=True)
    subprocess.run(["./user"], cwd=tmp_path, env={"LD_LIBRARY_PATH": "."}, check=True)


@pytest.mark.slow
@needs_compiler
def test_the_program_is_clean_under_sanitizers(trained: Path, tmp_path: Path) -> None:
    content = (trained / "small" / "lenet5-classic-int8.onnx").read_bytes()
    write(generate(content, "net.onnx"), tmp_path)
    subprocess.run(["make", "-s", "classify", f"CFLAGS={SANITIZERS}"], cwd=tmp_path, check=True)
    picture = tmp_path / "picture.ppm"
    Image.fromarray(RANDOM.integers(0, 256, (40, 33, 3), dtype=np.uint8)).save(picture)
    for arguments in (["--selftest"], ["--bench", "--count", "3"], ["--json", str(picture)]):
        done = subprocess.run(
            ["./classify", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "ERROR" not in done.stderr and "runtime error" not in done.stderr


@pytest.mark.slow
def test_the_fuzzers_find_nothing_at_once(trained: Path, tmp_path: Path) -> None:
    """A thousand inputs, by clang where it is there: it brings libFuzzer."""
    runtime = subprocess.run(
        ["sh", "-c", 'echo "int LLVMFuzzerTestOneInput(char *p, long n) { return !p && n; }" |'
        "clang -x c -fsanitize=fuzzer - -o fuzzer"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    if runtime.returncode != 0:
        pytest.skip("there is no clang with libFuzzer")
    content = (trained / "small" / "lenet5-classic-int8.onnx").read_bytes()
    write(generate(content, "net.onnx"), tmp_path / "c")
    make = ["make", "-s", "-j2", "fuzz", "CC=clang", "CFLAGS=-O1"]
    subprocess.run(make, cwd=tmp_path / "c", check=True)
    for program in ("fuzz-images", "fuzz-predict"):
        command = [f"./{program}", "-runs=1000", "-max_len=4096"]
        subprocess.run(command, cwd=tmp_path / "c", capture_output=True, check=True)


@needs_compiler
def test_one_model_in_every_way_that_it_is_seen(tmp_path: Path) -> None:
    """The library of a file without a contract of its own: one picture, three scores."""
    model = picture_model()
    compiled = Compiled(model.SerializeToString(), tmp_path, PORTABLE)
    x = RANDOM.normal(0, 1, (1, 3, 6, 6)).astype(np.float32)
    (found,) = compiled.run(x)
    exact = execute(model, {"x": x})["y"]
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


def test_a_folder_is_replaced_only_where_all_of_it_is_ours(cli: Cli, tmp_path: Path) -> None:
    file, folder = tmp_path / "net.onnx", tmp_path / "c"
    file.write_bytes(picture_model().SerializeToString())
    export = ["export", str(file), "--format", "c", "-o", str(folder)]
    assert cli(*export).returncode == 0
    done = cli(*export)
    assert done.returncode == 2 and "give --overwrite" in done.stderr
    (folder / "main.o").write_bytes(b"built")
    assert cli(*export, "--overwrite").returncode == 0
    assert not (folder / "main.o").exists()
    (folder / "mine.c").write_text("int mine;\n")
    done = cli(*export, "--overwrite")
    assert done.returncode == 2 and "mine.c is not of an export" in done.stderr
    assert (folder / "mine.c").read_text() == "int mine;\n"
    assert not list(tmp_path.glob(".c.*"))


def test_the_folder_may_be_the_one_that_one_is_in(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "net.onnx", tmp_path / "here"
    file.write_bytes(picture_model().SerializeToString())
    folder.mkdir()
    monkeypatch.chdir(folder)
    done = cli("export", str(file), "--format", "c", "-o", ".")
    assert done.returncode == 0, done.stderr
    assert (folder / "model.c").is_file()
    assert file.name in (folder / "model.c").read_text().splitlines()[0]
