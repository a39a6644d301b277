"""The C kernels against NumPy: integers exactly, floats within a bound, nothing out of bounds."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from emulation import NEEDS_ZIG

import deploy
from pipeline.errors import Missing
from pipeline.export.c.packing import lanes, packed
from pipeline.export.c.values import Layer, Value, Weights, Window
from pipeline.package.toolchain import BOARDS, emulator
from pipeline.verify.compiler import compiler

SOURCES = Path(deploy.__file__).parent / "c"
HARNESS = Path(__file__).parent / "kernels.c"
SLACK = 64  # bytes beyond an array that kernels may read
FILLED = 0x5A  # what output bytes are that no kernel may write
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = dict(re.findall(r"^FLAGS_(\w+) := (.*)$", (SOURCES / "Makefile").read_text(), re.MULTILINE))
NATIVE = {
    "portable": "cpu_always",
    **({"avx2": "cpu_avx2", "avx512": "cpu_avx512"} if X86 else {}),
    **({"neon": "cpu_always", "dotprod": "cpu_dotprod"} if platform.machine() == "aarch64" else {}),
}
EMULATED = [(board, name) for board in BOARDS for name in BOARDS[board].runs]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DUNROLL="]

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@dataclass(frozen=True)
class Convolution:
    """One shape; `inputs` is of a group, `size` of the output before pooling, `gap` elements lie
    between the rows of the input and between the pixels of the output."""

    kernel: str
    inputs: int
    outputs: int
    window: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pool: tuple[int, int] = (1, 1)
    groups: int = 1
    gap: int = 0
    low: int = -128
    high: int = 127
    zero: int = 3
    extreme: bool = False  # whether all integers are as far from zero as they can be

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the input, margins included."""
        height, width = (
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(self.size, self.stride, self.dilation, self.window, strict=True)
        )
        return height, width

    @property
    def pooled(self) -> tuple[int, int]:
        return self.size[0] // self.pool[0], self.size[1] // self.pool[1]


CONVOLUTIONS = [
    Convolution("channels", 1, 10, (1, 1), (1, 1)),
    Convolution("channels", 401, 33, (1, 1), (1, 1), low=-7),
    Convolution("channels", 70, 84, (1, 1), (1, 1), zero=-128),
    Convolution("channels", 13, 150, (1, 1), (1, 3), high=20),
    Convolution("channels", 6, 16, (5, 5), (10, 10), pool=(2, 2)),
    Convolution("channels", 3, 12, (3, 2), (7, 11), stride=(2, 1), gap=5),
    Convolution("channels", 5, 20, (2, 3), (5, 9), stride=(1, 3), dilation=(2, 1), pool=(1, 3)),
    Convolution("channels", 4, 6, (3, 3), (4, 7), dilation=(1, 2), pool=(2, 1), gap=3),
    Convolution("channels", 8, 33, (1, 3), (3, 13), stride=(3, 2), pool=(3, 3)),
    Convolution("lanes", 1, 6, (5, 5), (12, 28), pool=(2, 2)),
    Convolution("lanes", 1, 20, (3, 2), (3, 37), stride=(2, 1), gap=5),
    Convolution("lanes", 1, 9, (2, 9), (5, 8), dilation=(3, 1), pool=(2, 1), gap=1),
    Convolution("lanes", 1, 1, (1, 1), (2, 17), zero=127),
    Convolution("depthwise", 1, 12, (3, 3), (5, 6), pool=(2, 2), groups=12),
    Convolution("depthwise", 1, 33, (2, 3), (4, 5), stride=(2, 1), groups=33, gap=2),
    Convolution("depthwise", 1, 16, (3, 1), (3, 4), dilation=(2, 3), groups=16, low=-20),
    Convolution("plain", 3, 10, (3, 2), (4, 6), stride=(1, 2), groups=2, pool=(2, 2)),
    Convolution("plain", 2, 7, (2, 3), (3, 5), dilation=(2, 1), gap=4),
]
EXTREMES = [replace(CONVOLUTIONS[index], extreme=True) for index in (2, 4, 9, 13)]


@dataclass(frozen=True)
class Pooling:
    """One shape; `size` is of the input, `pads` are top, left, bottom, right."""

    channels: int
    size: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceiling: int = 0  # rows and columns more than fit
    count_padding: int = 0

    @property
    def out(self) -> tuple[int, int]:
        height, width = (
            (n + before + after - d * (k - 1) - 1) // s + 1 + self.ceiling
            for n, k, s, d, before, after in zip(
                *(self.size, self.window, self.stride, self.dilation),
                *(self.pads[:2], self.pads[2:]),
                strict=True,
            )
        )
        return height, width


POOLINGS = [
    Pooling(3, (4, 6), (2, 3), stride=(2, 3)),
    Pooling(20, (7, 5), (3, 2), stride=(2, 1), pads=(1, 0, 2, 1)),
    Pooling(1, (6, 9), (2, 3), dilation=(3, 2), pads=(0, 2, 1, 0)),
    Pooling(17, (5, 8), (3, 4), (2, 3), pads=(1, 2, 0, 1), ceiling=1, count_padding=1),
    Pooling(5, (6, 7), (6, 7)),
]


@dataclass(frozen=True)
class Case:
    """C that calls a kernel, what it is given, and what must come out: bytes, or floats that may be
    off by `bound`. Elements that are not `written` must stay as they were."""

    name: str
    call: str
    arrays: tuple[np.ndarray, ...]  # input, weights, bias, scale
    output: np.ndarray
    written: np.ndarray  # which elements of the output
    bound: np.ndarray | None = None


def stored(integers: np.ndarray, flip: int) -> np.ndarray:
    """int8 as bytes."""
    return integers.astype(np.int8).view(np.uint8) ^ np.uint8(flip)


def initializer(fields: dict[str, int]) -> str:
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def exact(shape: Convolution, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """height x width x outputs of an image height x width x channels, in float64 or int64."""
    (height, width), each = shape.size, shape.outputs // shape.groups
    found = np.zeros((height, width, shape.outputs), x.dtype)
    for k in range(shape.outputs):
        first = k // each * shape.inputs
        for i, j in np.ndindex(shape.window):
            top, left = i * shape.dilation[0], j * shape.dilation[1]
            taken = x[top:, left:, first : first + shape.inputs]
            taken = taken[:: shape.stride[0], :: shape.stride[1]][:height, :width]
            found[:, :, k] += taken @ w[k, :, i, j]
    return found


def most(shape: Convolution, sums: np.ndarray) -> np.ndarray:
    """Max pooling, windows side by side."""
    (height, width), (down, across) = shape.pooled, shape.pool
    cut = sums[: height * down, : width * across]
    return cut.reshape(height, down, width, across, -1).max((1, 3))


def placed(array: np.ndarray, pixel: int, row: int, filled: float) -> np.ndarray:
    """height x width x channels in memory, all that lies between them `filled`."""
    height, width, channels = array.shape
    memory = np.full((height, row), filled, array.dtype)
    pixels = memory[:, : width * pixel].reshape(height, width, pixel)
    pixels[:, :, :channels] = array
    memory[:, : width * pixel] = pixels.reshape(height, -1)
    return memory.ravel()


def weights_of(shape: Convolution, array: np.ndarray, integers: bool) -> np.ndarray:
    value = Value("x", (1, 1, 1, 1), np.dtype(np.int8))
    scale = np.ones(1, np.float32) if integers else None
    weights = Weights(array, array, scale)
    window = Window(shape.window, shape.stride, shape.dilation)
    layer = Layer("convolution", ("Conv",), (value,), value, window, weights, shape.groups)
    return packed(layer, shape.kernel)


def shape_fields(shape: Convolution, row: int, out_pixel: int, out_row: int) -> str:
    pairs = {
        "kernel": shape.window,
        "pool": shape.pool,
        "": shape.size,
    }
    sizes = {
        f"{name}_{side}".strip("_"): number
        for name, pair in pairs.items()
        for side, number in zip(("height", "width"), pair, strict=True)
    }
    steps = {
        f"{name}_{axis}": number
        for name, pair in {"stride": shape.stride, "dilation": shape.dilation}.items()
        for axis, number in zip("yx", pair, strict=True)
    }
    rest = {
        **{"in_channels": shape.inputs, "pixel": shape.inputs * shape.groups, "row": row},
        **{"channels": shape.outputs, "groups": shape.groups},
        **{"out_pixel": out_pixel, "out_row": out_row},
    }
    return initializer({**rest, **sizes, **steps})


def integers_of(shape: Convolution, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image and weights, int64."""
    x_shape = (*shape.padded, shape.inputs * shape.groups)
    w_shape = (shape.outputs, shape.inputs, *shape.window)
    if shape.extreme:
        x = np.broadcast_to(random.choice([-128, 127], (shape.padded[0], 1, 1)), x_shape)
        return x, np.broadcast_to(random.choice([-127, 127], (shape.outputs, 1, 1, 1)), w_shape)
    most = 255 if shape.kernel == "plain" else 127
    w = random.integers(-most, most + 1, w_shape)
    w[0] = 0
    w[0, -1, -1, -1] = 1  # where halves come from
    return random.integers(-128, 128, x_shape), w


def int8_case(shape: Convolution, flip: int, random: np.random.Generator) -> Case:
    x, w = integers_of(shape, random)
    sums = most(shape, exact(shape, x, w))
    bias = random.integers(-9999, 9999, shape.outputs)
    bias[0] = 7 - sums.flat[0] % 2
    spread = 60 / (75 * 75 * np.sqrt(w[0].size))
    scale = (spread * random.uniform(0.2, 2, shape.outputs)).astype(np.float32)
    scale[-1] = 2.0**100  # numbers that no int32 holds
    scale[0] = 0.5
    real = (sums + bias).astype(np.float32) * scale
    assert shape.extreme or np.any(np.abs(real) % 1 == 0.5)
    steps = np.clip(np.rint(real.astype(np.float64)) + shape.zero, shape.low, shape.high)
    arrays = (
        stored(x, flip),
        weights_of(shape, w.astype(np.int16), True),
        lanes((bias - flip * w.reshape(shape.outputs, -1).sum(1)).astype(np.int32), shape.kernel),
        lanes(scale, shape.kernel),
    )
    clamp = f"(struct requantization){{array[SCALE], {shape.zero}, {shape.low}, {shape.high}}}"
    return convolution_case(shape, "int8", clamp, arrays, stored(steps, flip), None)


def float_case(shape: Convolution, random: np.random.Generator) -> Case:
    x = random.standard_normal((*shape.padded, shape.inputs * shape.groups), np.float32)
    w = random.standard_normal((shape.outputs, shape.inputs, *shape.window), np.float32)
    bias = random.standard_normal(shape.outputs, np.float32)
    low, high = (-0.5, np.inf) if shape.low > -128 else (-np.inf, 1.5)
    wide = [array.astype(np.float64) for array in (x, w)]
    output = np.clip(most(shape, exact(shape, *wide)) + bias, low, high)
    magnitude = most(shape, exact(shape, *map(np.abs, wide)))
    bound = (w[0].size + 2) * 2.0**-24 * (magnitude + np.abs(bias))
    arrays = (x, weights_of(shape, w, False), lanes(bias, shape.kernel), np.zeros(0))
    clamp = "-0.5f, INFINITY" if high == np.inf else "-INFINITY, 1.5f"
    return convolution_case(shape, "float", clamp, arrays, output.astype(np.float32), bound)


def convolution_case(
    shape: Convolution,
    kind: str,
    clamp: str,
    arrays: tuple[np.ndarray, ...],
    output: np.ndarray,
    bound: np.ndarray | None,
) -> Case:
    """`arrays` has the image itself, `output` and `bound` are height x width x channels."""
    x, *rest = arrays
    channels, out_pixel = x.shape[2], shape.outputs + shape.gap
    row, out_row = x.shape[1] * channels + shape.gap, output.shape[1] * out_pixel + shape.gap
    fields = shape_fields(shape, row, out_pixel, out_row)
    call = (
        f"static const struct convolution c = {fields};\n"
        f"    convolution_{kind}_{shape.kernel}(array[INPUT], array[OUTPUT], &c, array[WEIGHTS], "
        f"array[BIAS], {clamp});"
    )
    if shape.kernel in ("channels", "lanes"):
        rest[0] = np.append(rest[0], np.zeros(SLACK // rest[0].itemsize, rest[0].dtype))
    filled = np.nan if kind == "float" else FILLED
    return Case(
        f"{kind} {shape}",
        call,
        (placed(x, channels, row, filled), *rest),
        placed(output, out_pixel, out_row, 0),
        placed(np.ones(output.shape, bool), out_pixel, out_row, False),
        None if bound is None else placed(bound, out_pixel, out_row, 0),
    )


def taps(shape: Pooling, y: int, x: int) -> tuple[list[tuple[int, int]], int]:
    """Pixels of the window at an output pixel that are in the image, and how many are counted."""
    (top, left, bottom, right), (height, width) = shape.pads, shape.size
    every = [
        (
            y * shape.stride[0] + i * shape.dilation[0] - top,
            x * shape.stride[1] + j * shape.dilation[1] - left,
        )
        for i, j in np.ndindex(shape.window)
    ]
    inside = [(i, j) for i, j in every if 0 <= i < height and 0 <= j < width]
    padded = [(i, j) for i, j in every if i < height + bottom and j < width + right]
    return inside, len(padded if shape.count_padding else inside)


def pooling_case(
    shape: Pooling, kind: str, integers: bool, flip: int, random: np.random.Generator
) -> Case:
    """Max or average pooling, of integers or floats; rows are 3 elements apart."""
    image = (*shape.size, shape.channels)
    x = random.integers(-128, 128, image) if integers else random.standard_normal(image, np.float32)
    (height, width), ratio, in_zero, out_zero = shape.out, np.float32(0.7), -4, 9
    output = np.zeros((height, width, shape.channels), np.int64 if integers else np.float32)
    bound = None if integers else np.zeros(output.shape)
    for i, j in np.ndindex(height, width):
        inside, count = taps(shape, i, j)
        values = np.array([x[tap] for tap in inside])
        if kind == "max":
            output[i, j] = values.max(0)
        elif integers:
            real = (values - in_zero).sum(0).astype(np.float32) * (ratio / np.float32(count))
            output[i, j] = np.clip(np.rint(real) + out_zero, -128, 127)
        else:
            output[i, j] = values.sum(0, np.float64) / count
            bound[i, j] = (len(values) + 2) * 2.0**-24 * np.abs(values).sum(0) / count
    row, out_row = image[1] * image[2] + 3, width * image[2] + 3
    names = "channels height width row kernel_height kernel_width stride_y stride_x dilation_y"
    names += " dilation_x top left bottom right out_height out_width out_row count_padding"
    numbers = (shape.channels, *shape.size, row, *shape.window, *shape.stride, *shape.dilation)
    numbers += (*shape.pads, height, width, out_row, shape.count_padding)
    fields = initializer(dict(zip(names.split(), numbers, strict=True)))
    scales = f", {ratio}f, {in_zero}, {out_zero}" if kind == "average" and integers else ""
    dtype = "int8" if integers else "float"
    call = (
        f"static const struct pooling p = {fields};\n"
        f"    {kind}_pool_{dtype}(array[INPUT], array[OUTPUT], &p{scales});"
    )
    memory = placed(stored(x, flip) if integers else x, shape.channels, row, FILLED)
    return Case(
        f"{kind} {dtype} {shape}",
        call,
        (memory, np.zeros(0), np.zeros(0), np.zeros(0)),
        placed(stored(output, flip) if integers else output, shape.channels, out_row, 0),
        placed(np.ones(output.shape, bool), shape.channels, out_row, False),
        None if bound is None else placed(bound, shape.channels, out_row, 0),
    )


def operator_cases(flip: int, random: np.random.Generator) -> list[Case]:
    """Integers of reals, reals of integers, and two operands of which one is repeated."""
    none, cases = np.zeros(0), []
    x = np.concatenate([np.arange(-300, 300) / 4, [1e30, -1e30]]).astype(np.float32)
    steps = stored(np.clip(np.rint(x / np.float32(0.5)) - 5, -128, 127), flip)
    call = f"quantize_float(array[INPUT], array[OUTPUT], {x.size}, 0.5f, -5);"
    cases.append(Case("quantize", call, (x, none, none, none), steps, np.ones(x.size, bool)))
    q = np.arange(-128, 128)
    call = "dequantize_int8(array[INPUT], array[OUTPUT], 256, 0.3f, -5);"
    real = (q + 5).astype(np.float32) * np.float32(0.3)
    arrays = (stored(q, flip), none, none, none)
    cases.append(Case("dequantize", call, arrays, real, np.ones(256, bool)))
    a, b = random.integers(-128, 128, (4, 3, 70)), random.integers(-128, 128, (4, 1, 70))
    fields = "{.rank = 3, .shape = {4, 3, 70}, .a = {210, 70, 1}, .b = {70, 0, 1}, "
    fields += ".out = {210, 70, 1}}"
    scales = "{0.1f, 0.3f, 0.7f, 2, -3, 4, -128, 120}"
    for name, operator in {"ADD": np.add, "SUB": np.subtract, "MUL": np.multiply}.items():
        left = (a - 2).astype(np.float32) * np.float32(0.1)
        right = (b + 3).astype(np.float32) * np.float32(0.3)
        steps = np.rint(operator(left, right) / np.float32(0.7)) + 4
        call = (
            f"static const struct nd n = {fields};\n    binary_int8(array[INPUT], array[WEIGHTS], "
            f"array[OUTPUT], &n, {name}, (struct binary_scales){scales});"
        )
        arrays = (stored(a, flip).ravel(), stored(b, flip).ravel(), none, none)
        output = stored(np.clip(steps, -128, 120), flip).ravel()
        cases.append(Case(name, call, arrays, output, np.ones(a.size, bool)))
    return cases


def all_cases(flip: int) -> list[Case]:
    random = np.random.default_rng(0)
    return [
        *(int8_case(shape, flip, random) for shape in CONVOLUTIONS + EXTREMES),
        *(float_case(shape, random) for shape in CONVOLUTIONS),
        *(
            pooling_case(shape, kind, integers, flip, random)
            for shape in POOLINGS
            for kind in ("max", "average")
            for integers in (True, False)
        ),
        *operator_cases(flip, random),
    ]


def source_of(cases: list[Case]) -> str:
    functions = [
        f"static void case_{index}(void *const *array)\n{{\n    {case.call}\n}}\n"
        for index, case in enumerate(cases)
    ]
    names = ", ".join(f"case_{index}" for index in range(len(cases)))
    return "\n".join(functions) + f"\nstatic const kernel cases[] = {{{names}}};\n"


def compiled(folder: Path, command: list[str], name: str, supported: str, flip: int) -> Path:
    """The harness with one set of instructions."""
    (folder / "cases.h").write_text(source_of(all_cases(flip)))
    program = folder / "kernels"
    flags = ["-std=c99", "-ffp-contract=off", *WARNINGS, *FLAGS[name].split()]
    flags += [f"-DSUPPORTED={supported}", f"-I{SOURCES}", f"-I{folder}"]
    files = [str(HARNESS), str(SOURCES / "cpu.c"), "-lm", "-o", str(program)]
    subprocess.run([*command, *flags, *files], check=True)
    return program


def compare(case: Case, found: np.ndarray) -> None:
    """Raises AssertionError with the first position that is wrong."""
    untouched = np.full(case.output.nbytes, FILLED, np.uint8).view(case.output.dtype)
    expected = np.where(case.written, case.output, untouched)
    if case.bound is None:
        wrong = expected != found
    else:
        wrong = ~(np.abs(expected.astype(np.float64) - found) <= case.bound)
    if np.any(wrong):
        at = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"{case.name}: {np.sum(wrong)} of {wrong.size} wrong, first {at}: {found[at]}, "
            f"not {expected[at]}"
        )


def check(program: list[str], flip: int) -> None:
    """Run all cases and compare what they give."""
    cases, given = all_cases(flip), bytearray()
    for case in cases:
        slack = b"\xff" * SLACK
        arrays = [case.arrays[0].tobytes() + slack, *(a.tobytes() for a in case.arrays[1:])]
        for array in (*arrays, bytes([FILLED]) * case.output.nbytes):
            given += len(array).to_bytes(4, "little") + array
    done = subprocess.run(program, input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    assert len(done.stdout) == sum(case.output.nbytes for case in cases)
    start = 0
    for case in cases:
        found = np.frombuffer(done.stdout, case.output.dtype, case.output.size, start)
        compare(case, found)
        start += case.output.nbytes


def run_here(folder: Path, command: list[str], name: str) -> None:
    flip = 0x80 if X86 else 0
    program = str(compiled(folder, command, name, NATIVE[name], flip))
    if subprocess.run([program, "--supported"], check=False).returncode != 0:
        pytest.skip(f"this processor has no {name}")
    check([program], flip)


@pytest.mark.parametrize("name", NATIVE)
def test_kernels_give_the_results_of_numpy(tmp_path: Path, name: str) -> None:
    run_here(tmp_path, [*(compiler() or ()), "-O3"], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_kernels_stay_within_their_arrays(tmp_path: Path, name: str) -> None:
    run_here(tmp_path, [*(compiler() or ()), "-O1", *SANITIZERS], name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang") is None, reason="there is no clang")
@pytest.mark.parametrize("name", NATIVE)
def test_kernels_compiled_by_clang(tmp_path: Path, name: str) -> None:
    run_here(tmp_path, ["clang", "-O2"], name)


@pytest.mark.emulated
@NEEDS_ZIG
@pytest.mark.parametrize(("board", "name"), EMULATED)
def test_kernels_of_boards(tmp_path: Path, board: str, name: str) -> None:
    try:
        run = emulator(board)
    except Missing as error:
        pytest.skip(str(error))
    command = [*BOARDS[board].compiler("static"), "-O3", "-static"]
    check([*run, str(compiled(tmp_path, command, name, "cpu_always", 0))], 0)
