"""The runner as a person on the device meets it: `python runner.pyz ...` beside a model file."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

import deploy
from deploy.runner import backends, bundle
from deploy.runner.__main__ import main
from deploy.runner.backends.onnxruntime import CONTRACT_KEY
from deploy.runner.backends.session import TensorInfo
from deploy.runner.contract import Contract
from deploy.runner.errors import BadInput, Missing, UsageError
from pipeline.package import archive, check_archive, zipapp

CONTRACT = Contract(
    model="bands",
    precision="fp32",
    dataset="drawn by hand",
    labels=("top", "middle", "bottom"),
    input_shape=(1, 28, 28),
    preparation="picture",
    scores="logits",
    input=None,
    output=None,
    program_sha256="0" * 64,
    pipeline_version="0.1.0",
)
BANDS = {"top": np.s_[:9], "middle": np.s_[9:19], "bottom": np.s_[19:]}
MODEL = "bands-fp32.onnx"


def weights():
    """Pixels x classes: how bright each third of the picture is, times 8."""
    columns = np.zeros((3, 28, 28), np.float32)
    for column, band in zip(columns, BANDS.values(), strict=True):
        column[band] = 8 / column[band].size
    return columns.reshape(3, -1).T


def onnx_model():
    shapes = {"image": ["batch", 1, 28, 28], "scores": ["batch", 3]}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
        for name, shape in shapes.items()
    )
    nodes = [
        helper.make_node("Flatten", ["image"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "weights", "bias"], ["scores"]),
    ]
    fixed = [
        onnx.numpy_helper.from_array(weights(), "weights"),
        onnx.numpy_helper.from_array(np.zeros(3, np.float32), "bias"),
    ]
    graph = helper.make_graph(nodes, "bands", inputs, outputs, fixed)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    helper.set_model_props(model, {CONTRACT_KEY: CONTRACT.to_json()})
    return model.SerializeToString()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def golden(spoil=0.0):
    images = np.random.default_rng(7).integers(0, 256, (5, 1, 28, 28), np.uint8)
    scores = images.reshape(5, -1) / 255 @ weights().astype(np.float64)
    scores[3, 1] += spoil
    return npz(images=images, fp32=scores.astype(np.float32))


def bundle_contents(golden_vectors):
    contents = {
        MODEL: onnx_model(),
        "golden.npz": golden_vectors,
        "runner.pyz": zipapp(Path(deploy.__file__).parent),
    }
    record = {"precision": "fp32", "accuracy": 1.0, "verified_with": "onnxruntime"}
    manifest = {
        "schema": bundle.SCHEMA,
        "run": "by-hand",
        "pipeline_version": "0.1.0",
        "contracts": {"fp32": json.loads(CONTRACT.to_json())},
        "models": {MODEL: record | {"equal_to_program": 1.0}},
        "int8_steps": 0,
        "test_images": 5,
        "files": {name: bundle.sha256(content) for name, content in contents.items()},
    }
    return contents | {bundle.MANIFEST: bundle.seal(manifest)}


def write(folder, contents):
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def contents():
    return bundle_contents(golden())


@pytest.fixture(scope="module")
def intact(tmp_path_factory, contents):
    """An unpacked bundle, which no test changes."""
    return write(tmp_path_factory.mktemp("device") / "bands-bundle", contents)


@pytest.fixture
def damaged(tmp_path, intact):
    """A copy that a test may damage."""
    return shutil.copytree(intact, tmp_path / "bands-bundle")


def banded(label, height=42, width=30):
    """Height x width, with one bright third."""
    picture = np.zeros((28, 28), np.uint8)
    picture[BANDS[label]] = 255
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with good pictures and bad ones; the runner is started in it."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "top.pgm").write_bytes(b"P5 30 42 255\n" + banded("top").tobytes())
    Image.fromarray(banded("middle")).save(folder / "middle.png")
    np.save(folder / "bottom.npy", banded("bottom"))
    (folder / "empty.png").touch()
    (folder / "diary.txt").write_text("Dear diary,\n")
    return folder


def runner(folder, *arguments, cwd=None, stdin=b"", python=()):
    """Run the folder's runner. A traceback is never an answer."""
    command = [sys.executable, *python, folder / "runner.pyz", *arguments]
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, check=False)
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in stderr, stderr
    return SimpleNamespace(code=done.returncode, stdout=stdout, stderr=stderr)


# --- predict --------------------------------------------------------------------------------------


def test_predict_answers_each_picture_on_a_line(intact, pictures):
    done = runner(intact, "predict", "top.pgm", "middle.png", "bottom.npy", cwd=pictures)
    assert (done.code, done.stderr) == (0, "")
    for line, label in zip(done.stdout.splitlines(), CONTRACT.labels, strict=True):
        assert line.startswith(f"{label}.") and f": {label} 99.9%" in line


def test_predict_prints_json(intact, pictures):
    done = runner(intact, "predict", "--json", "top.pgm", "bottom.npy", cwd=pictures)
    record = json.loads(done.stdout)
    assert done.code == 0
    assert record["runtime"].startswith("onnxruntime ")
    assert [answer["file"] for answer in record["answers"]] == ["top.pgm", "bottom.npy"]
    assert [answer["label"] for answer in record["answers"]] == ["top", "bottom"]
    for answer in record["answers"]:
        labels, chances = zip(*answer["top"], strict=True)
        assert set(labels) == set(CONTRACT.labels)
        assert chances[0] == answer["probability"] == max(chances)
        assert sum(chances) == pytest.approx(1)


@pytest.mark.parametrize(("top", "shown"), [("1", 1), ("2", 2), ("9", 3)])
def test_predict_shows_as_many_labels_as_asked(intact, pictures, top, shown):
    done = runner(intact, "predict", "--top", top, "top.pgm", cwd=pictures)
    assert (done.code, done.stdout.count("%")) == (0, shown)


def test_predict_reads_stdin(intact, pictures):
    done = runner(intact, "predict", "-", stdin=(pictures / "middle.png").read_bytes())
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("-: middle 99.9%")


def test_predict_answers_the_good_pictures_among_bad_ones(intact, pictures):
    names = ["top.pgm", "empty.png", "middle.png", "diary.txt", "bottom.npy"]
    done = runner(intact, "predict", *names, cwd=pictures)
    assert done.code == 3
    answered = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert answered == ["top.pgm", "middle.png", "bottom.npy"]
    empty, diary = done.stderr.splitlines()
    assert empty.startswith("error: empty.png: the file is empty")
    assert diary.startswith("error: diary.txt: not a picture")


def test_predict_says_what_is_too_large_for_the_memory(intact, pictures, monkeypatch, capsys):
    def prepare(*_):
        raise MemoryError

    monkeypatch.setattr("deploy.runner.__main__.prepare", prepare)
    assert main(["predict", "--bundle", str(intact), str(pictures / "top.pgm")]) == 3
    said = capsys.readouterr().err
    assert said.endswith("top.pgm: too large for the memory here; give a smaller picture\n")
    assert said.count("\n") == 1


def test_predict_ends_quietly_when_its_reader_has_gone(intact, pictures):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, intact / "runner.pyz", "predict", "top.pgm"]
    usual = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, cwd=pictures, stdout=writer, stderr=subprocess.PIPE, env=usual, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr.decode()) == (0, "")


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("predict gone.png", 4, "gone.png"),
        ("predict .", 4, "."),
        ("predict empty.png", 3, "empty.png"),
        ("predict diary.txt --json", 3, "diary.txt"),
        ("predict top.pgm --runtime tensorrt", 2, "tensorrt"),
        ("predict top.pgm --runtime litert", 4, "litert"),
        ("predict top.pgm --top 0", 2, "--top"),
        ("predict top.pgm --threads many", 2, "--threads"),
        ("predict top.pgm --turbo", 2, "unrecognized arguments: --turbo; see 'runner.pyz --help'"),
        ("guess top.pgm", 2, "guess"),
        ("predict - -", 2, "stdin"),
        ("predict", 2, "FILE"),
        ("", 2, "command"),
        ("predict top.pgm --precision int8", 2, "int8"),
        ("selftest --precision int8", 2, "int8"),
        ("bench --precision int8", 2, "int8"),
        ("info --precision int8", 2, "int8"),
        ("bench --count 0", 2, "--count"),
        ("info --bundle nowhere", 4, "nowhere"),
        ("info --bundle .", 4, "manifest.json"),
    ],
)
def test_what_cannot_be_done_is_said(intact, pictures, arguments, code, words):
    done = runner(intact, *arguments.split(), cwd=pictures)
    assert done.code == code
    assert words in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# --- selftest, bench, info ------------------------------------------------------------------------


def test_selftest_passes(intact):
    done = runner(intact, "selftest")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("passed: fp32 on onnxruntime")


def test_selftest_prints_json(intact):
    done = runner(intact, "selftest", "--json")
    (result,) = json.loads(done.stdout)
    assert done.code == 0
    assert result["passed"] is True
    assert (result["precision"], result["images"]) == ("fp32", 5)
    assert result["largest"] <= result["limit"]


@pytest.mark.parametrize("spoil", [0.01, np.nan], ids=["one score off", "one score NaN"])
def test_selftest_fails_where_a_golden_score_differs(tmp_path, spoil):
    folder = write(tmp_path / "bundle", bundle_contents(golden(spoil)))
    done = runner(folder, "selftest")
    assert done.code == 1
    assert done.stdout.startswith("FAILED: fp32 on onnxruntime")


ONE = ("bench", "--runtime", "onnxruntime", "--precision", "fp32", "--threads", "1")


def test_bench_of_one_way_prints_a_table(intact):
    done = runner(intact, *ONE, "--count", "20")
    assert (done.code, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first.startswith("onnxruntime ") and "20 inferences" in first
    assert {line.split("  ")[0] for line in rest} == {
        "import",
        "load",
        "first inference",
        "p50",
        "peak memory",
    }


def test_bench_of_one_way_prints_json(intact):
    done = runner(intact, *ONE, "--count", "20", "--json")
    timing = json.loads(done.stdout)
    assert (timing["file"], timing["inferences"]) == (MODEL, 20)
    assert 0 < timing["p50_us"] <= timing["p90_us"] <= timing["p99_us"]
    assert min(timing["load_ms"], timing["first_ms"], timing["peak_mb"]) > 0


def test_info_names_model_labels_files_and_runtimes(intact):
    done = runner(intact, "info")
    assert (done.code, done.stderr) == (0, "")
    for words in ("bands", "1 x 28 x 28", "top, middle, bottom", MODEL, "onnxruntime: onnxruntime"):
        assert words in done.stdout


def test_info_prints_json(intact):
    record = json.loads(runner(intact, "info", "--json").stdout)
    assert Contract.from_json(json.dumps(record["contract"]), "info") == CONTRACT
    assert list(record["models"]) == [MODEL]
    assert record["runtimes"]["onnxruntime"].startswith("onnxruntime ")
    assert {"runner", "python", "numpy", "machine"} <= set(record)


# --- a damaged bundle -----------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {"a flipped bit": flip, "no bytes": lambda path: path.write_bytes(b""), "no": Path.unlink}


@pytest.mark.parametrize("command", ["predict top.pgm", "selftest"])
@pytest.mark.parametrize("name", [MODEL, "golden.npz"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_bundle_is_refused(damaged, pictures, command, name, damage):
    damage(damaged / name)
    done = runner(damaged, *command.split(), cwd=pictures)
    assert (done.code, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {damaged / name}:")


@pytest.mark.parametrize(
    ("damage", "code"),
    [(flip, 3), (lambda path: path.write_bytes(b""), 3), (Path.unlink, 4)],
    ids=["a flipped bit", "no bytes", "none"],
)
def test_a_damaged_manifest_is_refused(damaged, damage, code):
    damage(damaged / bundle.MANIFEST)
    done = runner(damaged, "selftest")
    assert (done.code, done.stdout) == (code, "")
    assert bundle.MANIFEST in done.stderr


def test_the_runner_imports_nothing_of_the_workstation(intact, pictures):
    done = runner(intact, "predict", "middle.png", cwd=pictures, python=["-X", "importtime"])
    imported = {line.rpartition("|")[2].split(".")[0].strip() for line in done.stderr.splitlines()}
    assert {"deploy", "numpy", "onnxruntime", "PIL"} <= imported
    assert imported & {"torch", "click", "pipeline", "models", "onnx", "rich"} == set()


# --- the ladder of runtimes -----------------------------------------------------------------------

WORKING = SimpleNamespace(
    runtime="second 2.0",
    inputs=(TensorInfo("image", (-1, 1, 28, 28), np.dtype(np.float32), None),),
    outputs=(TensorInfo("scores", (-1, 3), np.dtype(np.float32), None),),
)


def backend(outcome, suffix=".onnx"):
    """A backend module whose interpreter is `outcome`, or raises it."""

    def open_session(path, threads, kernels):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return SimpleNamespace(
        SUFFIX=suffix,
        PIP="first-package",
        KERNELS=("usual",),
        open_session=open_session,
        read_contract=lambda path, session: CONTRACT,
    )


BROKEN = {
    "not installed": ImportError("No module named 'first'"),
    "built for another NumPy": AttributeError("_ARRAY_API not found"),
    # What pybind11 modules built for NumPy 1 raise under NumPy 2.
    "import that fails half-way": SystemError("returned a result with an exception set"),
}


@pytest.mark.parametrize("error", BROKEN.values(), ids=BROKEN)
def test_a_runtime_that_does_not_work_is_passed_over(monkeypatch, error):
    ladder = {"first": backend(error), "second": backend(WORKING)}
    monkeypatch.setattr(backends, "BACKENDS", ladder)
    assert backends.open_first({".onnx": Path("m.onnx")}).session is WORKING
    with pytest.raises(Missing, match="first"):
        backends.open_with("first", Path("m.onnx"))


def test_without_any_runtime_the_reason_of_each_is_said(monkeypatch):
    ladder = {name: backend(error) for name, error in BROKEN.items()}
    monkeypatch.setattr(backends, "BACKENDS", ladder)
    with pytest.raises(Missing) as caught:
        backends.open_first({".onnx": Path("m.onnx")})
    for name, error in BROKEN.items():
        assert name in str(caught.value) and str(error) in str(caught.value)
    assert "requirements" in caught.value.mend


def test_a_runtime_for_another_kind_of_file_is_not_tried(monkeypatch):
    ladder = {"first": backend(AssertionError("tried"), ".tflite"), "second": backend(WORKING)}
    monkeypatch.setattr(backends, "BACKENDS", ladder)
    assert backends.open_first({".onnx": Path("m.onnx")}).session is WORKING
    with pytest.raises(Missing, match="no runtime works here"):
        backends.open_first({".hailo": Path("m.hailo")})


@pytest.mark.parametrize("error", [ValueError("bad flatbuffer\nat 7"), RuntimeError("bad op")])
def test_a_file_that_a_runtime_cannot_load_is_bad_and_named(monkeypatch, error):
    monkeypatch.setattr(backends, "BACKENDS", {"first": backend(error)})
    with pytest.raises(BadInput, match=r"m\.onnx.*bad") as caught:
        backends.open_with("first", Path("m.onnx"))
    assert "\n" not in str(caught.value)


def test_an_unknown_runtime_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="litert, tflite-runtime, onnxruntime"):
        backends.open_with("tensorrt", Path("m.onnx"))


def refused_model(change, tmp_path):
    """The ONNX file with `change` made to its contract; None leaves the contract out."""
    model = onnx.load_from_string(onnx_model())
    del model.metadata_props[:]
    if change is not None:
        props = {CONTRACT_KEY: replace(CONTRACT, **change).to_json()}
        helper.set_model_props(model, props)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    "change", [None, {"layout": "NHWC"}, {"input_shape": (1, 28, 30)}], ids=str
)
def test_an_onnx_file_that_does_not_fit_its_contract_is_refused(tmp_path, change):
    with pytest.raises(BadInput, match=r"m\.onnx"):
        backends.open_with("onnxruntime", refused_model(change, tmp_path))


@pytest.mark.parametrize("content", [b"", b"no model", onnx_model()[:-1000]])
def test_a_file_that_is_no_onnx_model_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BadInput, match=r"m\.onnx"):
        backends.open_with("onnxruntime", tmp_path / "m.onnx")


# --- the archive that is copied to the device -----------------------------------------------------


def test_the_same_contents_are_the_same_archive(contents):
    backwards = dict(reversed(contents.items()))
    assert archive("bands-bundle", contents) == archive("bands-bundle", backwards)
    folder = Path(deploy.__file__).parent
    assert zipapp(folder) == zipapp(folder)


def test_an_older_python_is_told_what_the_runner_needs(tmp_path):
    app = tmp_path / "runner.pyz"
    app.write_bytes(zipapp(Path(deploy.__file__).parent))
    old = "import runpy, sys; sys.version_info = (3, 9, 2); "
    old += "runpy.run_path(sys.argv[1], None, '__main__')"
    done = subprocess.run(
        [sys.executable, "-c", old, app], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        "error: the runner needs Python 3.11 or newer, this is 3.9; "
        "use Raspberry Pi OS bookworm or newer, or classify\n"
    )
    with zipfile.ZipFile(app) as entries:
        ast.parse(entries.read("__main__.py"), feature_version=(3, 4))


def test_without_numpy_one_line_says_what_mends_it(tmp_path):
    app = tmp_path / "runner.pyz"
    app.write_bytes(zipapp(Path(deploy.__file__).parent))
    command = [sys.executable, "-I", "-S", app, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        "error: the runner needs NumPy (No module named 'numpy'); "
        "run 'sudo apt install python3-numpy'\n"
    )


def test_an_intact_archive_passes(tmp_path, contents):
    (tmp_path / "b.tar.gz").write_bytes(archive("bands-bundle", contents))
    assert check_archive(tmp_path / "b.tar.gz") == json.loads(contents[bundle.MANIFEST])


def test_an_archive_unpacks_to_a_bundle_that_works(tmp_path, contents):
    (tmp_path / "b.tar.gz").write_bytes(archive("bands-bundle", contents))
    subprocess.run(["tar", "xzf", "b.tar.gz"], cwd=tmp_path, check=True)
    assert runner(tmp_path / "bands-bundle", "selftest").code == 0


@pytest.mark.parametrize("kept", [0, 1, 9, 10, 100, -100, -8, -1])
def test_a_truncated_archive_is_refused(tmp_path, contents, kept):
    (tmp_path / "b.tar.gz").write_bytes(archive("bands-bundle", contents)[:kept])
    with pytest.raises(BadInput, match=r"b\.tar\.gz"):
        check_archive(tmp_path / "b.tar.gz")


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b", archive("b", {"photo.jpg": b"x"})])
def test_what_is_no_bundle_archive_is_refused(tmp_path, content):
    (tmp_path / "b.tar.gz").write_bytes(content)
    with pytest.raises((BadInput, Missing), match=r"b\.tar\.gz"):
        check_archive(tmp_path / "b.tar.gz")
