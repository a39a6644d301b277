"""The executable of generated C as a person meets it: pictures, IDX files, and what is wrong."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import called
from PIL import Image

from deploy.runner.backends import open_with
from deploy.runner.backends.onnxruntime import CONTRACT_KEY
from deploy.runner.contract import Contract
from deploy.runner.images import decode, prepare
from deploy.runner.scores import probabilities, real
from pipeline.verify.compiler import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C of the run `small` in int8, built."""
    place = tmp_path_factory.mktemp("built") / "c"
    file = trained / "small" / "lenet5-classic-int8.onnx"
    done = called("export", str(file), "--format", "c", "-o", str(place), runs=trained)
    assert done.returncode == 0, done.stderr
    command = ["make", "-s", "-j2", "classify", "CFLAGS=-O1"]
    subprocess.run(command, cwd=place, check=True)
    return place


def classify(folder: Path, *arguments: Any, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    command = [str(folder / "classify"), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(command, done.returncode, out, err)


def pgm(array: np.ndarray) -> bytes:
    return b"P5\n# made here\n%d %d\n255\n" % array.shape[::-1] + array.tobytes()


def idx(images: np.ndarray) -> bytes:
    return (
        struct.pack(">4B", 0, 0, 8, images.ndim)
        + struct.pack(f">{images.ndim}I", *images.shape)
        + images.tobytes()
    )


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Dark strokes on paper, of several sizes and kinds."""
    random = np.random.default_rng(4)
    paths = []
    for number, shape in enumerate(((64, 48), (28, 28), (200, 333), (9, 70))):
        paper = np.full(shape, 250, np.uint8) - random.integers(0, 9, shape, dtype=np.uint8)
        height, width = shape
        paper[height // 5 : -height // 5, width // 3 : width // 3 + max(2, width // 8)] = 20
        paper[height // 2 : height // 2 + 2, width // 4 : -width // 4] = 40
        path = tmp_path / f"{number}.{'ppm' if number % 2 else 'pgm'}"
        image = Image.fromarray(paper)
        (image.convert("RGB") if number % 2 else image).save(path)
        paths.append(path)
    return paths


def test_it_answers_as_the_python_runner(folder: Path, trained: Path, pictures: list[Path]) -> None:
    model = open_with("onnxruntime", trained / "small" / "lenet5-classic-int8.onnx")
    contract = model.contract
    done = classify(folder, "--json", "--top", 4, *pictures)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["runtime"].startswith("c ")
    assert document["errors"] == []
    for path, answer in zip(pictures, document["answers"], strict=True):
        image = decode(path.read_bytes(), path.name)
        pixels = prepare(image, contract.input_shape, contract.preparation)
        scores = real(model.run(pixels[None])[0], contract.output)
        chances = probabilities(scores, contract)[0]
        assert answer["file"] == str(path)
        assert len(answer["top"]) == 4
        found = dict(answer["top"])
        for label, chance in found.items():  # a step of the last layer apart at most
            assert chance == pytest.approx(chances[contract.labels.index(label)], abs=0.05)
        assert answer["blank"] is False


def test_a_picture_is_one_line_and_an_idx_file_one_line_an_image(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    line = classify(folder, pictures[0]).stdout
    assert line.startswith(f"{pictures[0]}: ")
    assert line.count("%") == 3
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    file = tmp_path / "images.idx"
    file.write_bytes(idx(images))
    lines = classify(folder, file).stdout.splitlines()
    assert len(lines) == 5
    assert all(len(row.split("\t")) == 2 for row in lines)
    bare = tmp_path / "bare"
    bare.write_bytes(images.tobytes())
    assert classify(folder, "--raw", bare).stdout.splitlines() == lines
    assert classify(folder, "-", stdin=idx(images)).stdout.splitlines() == lines
    assert classify(folder, "-", stdin=idx(images[:, None])).stdout.splitlines() == lines
    assert classify(folder, "-", stdin=idx(images[:0])).stdout == ""
    one = [classify(folder, "--raw", "-", stdin=image.tobytes()).stdout for image in images]
    assert "".join(one).splitlines() == lines


def test_every_instruction_set_gives_the_same(folder: Path, tmp_path: Path) -> None:
    sets = json.loads(classify(folder, "--version", "--json").stdout)["sets"]
    images = np.random.default_rng(1).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    answers = {classify(folder, "--set", name, "-", stdin=idx(images)).stdout for name in sets}
    assert len(answers) == 1
    for name in sets:
        done = classify(folder, "--selftest", "--set", name, "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["passed"], report["set"]) == (0, True, name)
        assert report["compared"] == report["layers"] > 0


def test_it_tells_its_version_and_its_time(folder: Path) -> None:
    version = json.loads(classify(folder, "--version", "--json").stdout)
    assert (version["model"], version["precision"]) == ("lenet5-classic", "int8")
    assert "instructions" in classify(folder, "--version").stdout
    bench = json.loads(classify(folder, "--bench", "--count", 20, "--json").stdout)
    assert 0 < bench["min_us"] <= bench["p50_us"] <= bench["p90_us"] <= bench["p99_us"]
    assert bench["inferences"] == 20
    assert "p99" in classify(folder, "--bench", "--count", 5).stdout
    assert "usage:" in classify(folder, "--help").stdout
    assert classify(folder, "-h").returncode == 0


def test_a_broken_weight_fails_the_selftest(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    source = (broken / "model.c").read_text()
    changed, count = re.subn(
        r"(_weights_0\[\d+\] = \{\s*)(-?\d+)",
        lambda found: f"{found[1]}{(int(found[2]) + 9) % 128}",
        source,
    )
    assert count == 1
    (broken / "model.c").write_text(changed)
    for name in ("model.o", "classify"):
        (broken / name).unlink()
    subprocess.run(["make", "-s", "classify", "CFLAGS=-O1"], cwd=broken, check=True)
    done = classify(broken, "--selftest")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "expected" in done.stdout


BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, world", "neither PGM nor PPM nor IDX"),
    "png": (b"\x89PNG\r\n\x1a\nxxxx", "PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0xxxxxxxx", "JPEG"),
    "gzip": (b"\x1f\x8b\x08xxxxxxxxx", "gzip"),
    "header": (b"P5 12", "broken PNM header"),
    "no width": (b"P5 0 4 255\n", "no pixels"),
    "maximum": (b"P5 2 2 65535\n" + bytes(8), "maximum"),
    "short": (b"P5 20 20 255\n" + bytes(399), "truncated"),
    "huge": (b"P5 99999 99999 255\n", "64,000,000"),
    "huge numbers": (b"P5 99999999999999999999 1 255\n", "broken PNM header"),
    "words": (b"P2 2 1 255\n3 x", "no number"),
    "few": (b"P2 2 1 255\n333", "exceeds"),
    "idx header": (b"\0\0\x08\x03\0\0\0\x01\0\0", "truncated"),
    "idx floats": (b"\0\0\x0d\x03" + bytes(12), "not of images in bytes"),
    "idx size": (b"\0\0\x08\x03\0\0\0\x01\xff\xff\xff\xff\xff\xff\xff\xff", "sensible size"),
    "idx short": (idx(np.zeros((2, 28, 28), np.uint8))[:-1], "truncated"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_the_others_are_answered(
    folder: Path, pictures: list[Path], tmp_path: Path, name: str
) -> None:
    content, reason = BAD[name]
    bad = tmp_path / "bad"
    bad.write_bytes(content)
    done = classify(folder, bad, pictures[1])
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {bad}: ")
    assert reason in done.stderr
    assert str(pictures[1]) in done.stdout
    document = json.loads(classify(folder, "--json", bad).stdout)
    assert [(e["file"], e["exit_code"]) for e in document["errors"]] == [(str(bad), 3)]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 2, "no file"),
        (["--tip"], 2, "unknown option --tip"),
        (["--top", "0", "x"], 2, "--top"),
        (["--top"], 2, "--top"),
        (["--count", "-3", "x"], 2, "--count"),
        (["-", "-"], 2, "once"),
        (["--set", "mmx", "--selftest"], 2, "unknown instruction set"),
        (["--selftest", "--bench"], 2, "only one"),
        (["--selftest", "x"], 2, "files"),
        (["no-such-file.pgm"], 4, "no such file"),
        (["."], 4, "cannot be read"),
    ],
)
def test_usage_and_missing_files(
    folder: Path, arguments: list[str], code: int, reason: str
) -> None:
    done = classify(folder, *arguments)
    assert done.returncode == code
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_after_two_dashes_a_file_may_be_called_like_an_option(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "--top").write_bytes(pictures[0].read_bytes())
    command = [str(folder / "classify"), "--json", "--", "--top"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (wanted,) = json.loads(classify(folder, "--json", pictures[0]).stdout)["answers"]
    assert json.loads(done.stdout)["answers"] == [{**wanted, "file": "--top"}]
    assert "a file of that name follows --" in classify(folder, "--tip").stderr


def test_a_full_disk_is_an_error(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [folder / "classify", "--version"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 3
    assert b"cannot be written" in done.stderr


def test_a_blank_picture_is_noted(folder: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.pgm"
    blank.write_bytes(pgm(np.full((40, 40), 200, np.uint8)))
    done = classify(folder, blank)
    assert done.returncode == 0
    assert "no ink" in done.stderr


def test_logits_are_divided_by_the_temperature(
    trained: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    model = onnx.load(trained / "small" / "lenet5-classic-fp32.onnx")
    (entry,) = (e for e in model.metadata_props if e.key == CONTRACT_KEY)
    contract = replace(Contract.from_json(entry.value, "it"), temperature=4.0)
    entry.value = contract.to_json()
    onnx.save(model, tmp_path / "warm.onnx")
    place = tmp_path / "c"
    done = called(
        "export", str(tmp_path / "warm.onnx"), "--format", "c", "-o", str(place), runs=trained
    )
    assert done.returncode == 0, done.stderr
    subprocess.run(["make", "-s", "-j2", "classify", "CFLAGS=-O0"], cwd=place, check=True)
    (answer,) = json.loads(classify(place, "--json", pictures[0]).stdout)["answers"]
    warm = open_with("onnxruntime", tmp_path / "warm.onnx")
    image = decode(pictures[0].read_bytes(), "it")
    pixels = prepare(image, contract.input_shape, contract.preparation)
    scores = real(warm.run(pixels[None])[0], None)
    assert warm.contract.temperature == 4.0
    assert answer["probability"] == pytest.approx(probabilities(scores, contract).max(), abs=1e-5)
    cold = probabilities(scores, replace(contract, temperature=1.0)).max()
    assert answer["probability"] < cold - 0.01
