"""What the runner finds out about a device: doctor, and bench over all that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_runner import MODEL, bundle_contents, golden, runner, write

from deploy.runner.apart import Answer, Choice
from deploy.runner.bundle import Bundle
from deploy.runner.doctor import FINE, NOTE, WRONG, Finding, examine, exit_code, mend_of
from deploy.runner.sweep import Row, recommended, thread_counts

HERE = "onnxruntime"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked bundle with one model, of ONNX Runtime."""
    contents = bundle_contents(golden())
    return Path(write(tmp_path_factory.mktemp("doctor") / "bands", contents))


def with_module(name: str, source: str, folder: Path) -> dict[str, str]:
    """An environment in which Python finds this module first."""
    (folder / f"{name}.py").write_text(source)
    return os.environ | {"PYTHONPATH": str(folder)}


def called(folder: Path, *arguments: str, env: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "runner.pyz"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


# --- doctor ---------------------------------------------------------------------------------------


def test_doctor_finds_what_works_here(folder: Path) -> None:
    done = runner(folder, "doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert (done.code, done.stderr) == (0, "")
    assert {"board", "processor", "Python", "C library", "NumPy", "camera"} <= set(findings)
    assert findings["runtime onnxruntime fp32"]["state"] == FINE
    assert findings["runtime onnxruntime fp32"]["found"].startswith("onnxruntime 1.")


def test_doctor_prints_a_line_for_each_finding_and_what_mends_it(folder: Path) -> None:
    done = runner(folder, "doctor")
    findings = json.loads(runner(folder, "doctor", "--json").stdout)
    lines = done.stdout.splitlines()
    assert len(lines) == len(findings) + sum(1 for finding in findings if finding["mend"])


def test_an_illegal_instruction_is_a_line_and_not_a_crash(folder: Path, tmp_path: Path) -> None:
    dies = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
    done = called(folder, "doctor", "--json", env=with_module(HERE, dies, tmp_path))
    assert (done.returncode, done.stderr) == (4, "")  # no runtime is left
    (finding,) = [f for f in json.loads(done.stdout) if f["what"].startswith("runtime")]
    assert finding["state"] == NOTE
    assert finding["found"] == "an instruction that this processor lacks (SIGILL)"
    assert finding["mend"] == "do not use --runtime onnxruntime here"


def test_a_missing_runtime_comes_with_the_command_that_installs_it(
    folder: Path, tmp_path: Path
) -> None:
    gone = "raise ModuleNotFoundError('No module named onnxruntime')\n"
    done = called(folder, "doctor", env=with_module(HERE, gone, tmp_path))
    assert done.returncode == 4
    assert "not installed" in done.stdout and "-> pip install onnxruntime" in done.stdout


def test_a_missing_runtime_is_installed_from_the_wheels_of_the_bundle(tmp_path: Path) -> None:
    more = {"requirements-onnxruntime.txt": b"onnxruntime\n"}
    folder = write(tmp_path / "bands", bundle_contents(golden()) | more)
    (folder / "wheels").mkdir()
    gone = "raise ModuleNotFoundError('No module named onnxruntime')\n"
    done = called(folder, "doctor", env=with_module(HERE, gone, tmp_path))
    assert f"pip install --require-hashes --no-deps --no-index --find-links {folder}/wheels -r" in (
        done.stdout
    )


def test_a_runtime_of_numpy_1_has_an_environment_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "requirements-tflite-runtime.txt").touch()
    (tmp_path / "requirements-litert.txt").touch()
    bundle = Bundle(tmp_path, {})
    for runtime, lack in (("tflite-runtime", "not installed"), ("tflite-runtime", "does not fit")):
        mend = mend_of(bundle, runtime, Answer(None, f"{runtime}: {lack}"))
        assert mend.startswith("python3 -m venv ~/tflite-runtime && ~/tflite-runtime/bin/python")
        assert mend.endswith(f"--require-hashes --no-deps -r {tmp_path}/requirements-{runtime}.txt")
    mend = mend_of(bundle, "litert", Answer(None, "litert: not installed"))
    assert mend.startswith(f"{sys.executable} -m pip install --require-hashes")


def test_a_runtime_that_computes_something_else_is_wrong(tmp_path: Path) -> None:
    done = runner(write(tmp_path / "bands", bundle_contents(golden(0.5))), "doctor")
    assert done.code == 1
    assert "WRONG runtime onnxruntime fp32" in done.stdout
    assert "do not use --runtime onnxruntime here" in done.stdout


def pi(root: Path, **files: str) -> Path:
    """A root with /proc and /sys as a Raspberry Pi 4 has them, and other contents where given."""
    known = {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "0",
        "sys/class/thermal/thermal_zone0/temp": "48200\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    }
    renamed = {next(path for path in known if path.endswith(k)): v for k, v in files.items()}
    for name, content in (known | renamed).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def found(folder: Path, root: Path) -> dict[str, list[Finding]]:
    """By name, without the runtimes: those of another file than the tests' are not asked."""
    findings: dict[str, list[Finding]] = {}
    for finding in examine(Bundle.open(folder), root):
        findings.setdefault(finding.what, []).append(finding)
    return findings


def test_a_board_in_good_order(folder: Path, tmp_path: Path) -> None:
    findings = found(folder, pi(tmp_path))
    assert findings["board"][0].found.startswith("Raspberry Pi 4 Model B Rev 1.4, ")
    assert findings["processor"][0].found == "NEON"
    assert findings["power"] == [Finding("power", FINE, "no under-voltage, not throttled")]
    assert findings["temperature"] == [Finding("temperature", FINE, "48.2 °C")]
    assert findings["clock"] == [Finding("clock", FINE, "ondemand")]


def test_a_board_in_trouble(folder: Path, tmp_path: Path) -> None:
    trouble = {"get_throttled": "50005", "temp": "83100", "scaling_governor": "powersave"}
    findings = found(folder, pi(tmp_path, **trouble))
    assert [(f.state, f.found) for f in findings["power"]] == [
        (WRONG, "under-voltage now"),
        (NOTE, "under-voltage since it was started"),
        (WRONG, "throttling now"),
        (NOTE, "throttling since it was started"),
    ]
    assert findings["temperature"][0].state == WRONG
    assert "scaling_governor" in findings["clock"][0].mend
    assert all(f.mend for name in ("power", "temperature", "clock") for f in findings[name])


@pytest.mark.parametrize("word", ["", "garbage", "0x"])
def test_a_board_that_does_not_tell_its_power_has_no_line_of_it(
    word: str, folder: Path, tmp_path: Path
) -> None:
    assert "power" not in found(folder, pi(tmp_path, get_throttled=word))


def test_troubles_of_the_board_alone_are_no_failure() -> None:
    hot = Finding("temperature", WRONG, "90 °C")
    assert exit_code([hot, Finding("runtime c int8", FINE, "")]) == 0
    assert exit_code([hot, Finding("runtime c int8", NOTE, "")]) == 4
    assert exit_code([Finding("runtime c int8", WRONG, ""), Finding("runtime a", FINE, "")]) == 1


# --- bench over all that works --------------------------------------------------------------------


def test_bench_measures_every_choice_and_recommends_one(folder: Path) -> None:
    done = runner(folder, "bench", "--count", "20")
    assert (done.code, done.stderr) == (0, "")
    head, *rows, last = done.stdout.splitlines()
    assert head.split()[:4] == ["runtime", "thr", "p50", "us"]
    assert {tuple(row.split()[:2]) for row in rows} == {(HERE, "fp32")}
    assert [int(row.split()[2]) for row in rows] == thread_counts(HERE)
    assert all(len(row) == len(head) for row in rows)
    assert last.startswith(f"recommended: --runtime {HERE} --precision fp32 --threads ")


def test_bench_prints_a_model_card(folder: Path) -> None:
    done = runner(folder, "bench", "--count", "20", "--threads", "1", "--json")
    record = json.loads(done.stdout)
    (model,) = record["model-index"]
    (result,) = model["results"]
    assert model["name"] == "bands"
    assert result["task"]["type"] == "image-classification"
    metrics = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert 0 < metrics["p50_us"] <= metrics["p90_us"] <= metrics["p99_us"]
    assert min(metrics["load_ms"], metrics["first_ms"], metrics["peak_mb"]) > 0
    assert metrics["accuracy"] == 1.0
    args = {"precision": "fp32", "threads": 1, "file": MODEL}
    for metric in result["metrics"]:
        assert metric["args"].items() >= args.items()
    assert record["unusable"] == {}
    assert record["recommendation"] == f"--runtime {HERE} --precision fp32 --threads 1"


def test_what_is_not_usable_is_a_line_and_ends_with_an_error_where_nothing_is(
    folder: Path, tmp_path: Path
) -> None:
    dies = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
    done = called(folder, "bench", "--count", "20", env=with_module(HERE, dies, tmp_path))
    assert done.returncode == 4
    assert "not usable: an instruction that this processor lacks (SIGILL)" in done.stdout
    assert done.stderr == "error: no runtime works here; see the command doctor\n"


def row(runtime: str, p50: float, memory: float) -> Row:
    return Row(Choice(runtime, "int8"), {"p50_us": p50, "peak_mb": memory}, "")


def test_the_fastest_is_recommended_and_of_equals_the_smaller() -> None:
    fast, small, slow = row("a", 10.0, 50), row("b", 10.4, 30), row("c", 20.0, 1)
    broken = Row(Choice("d", "int8"), None, "broken")
    assert recommended([slow, fast, broken]) == fast
    assert recommended([slow, fast, small]) == small
    assert recommended([broken]) is None
    assert recommended([]) is None


def test_threads_double_as_far_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.runner.sweep.processors", lambda: 4)
    assert thread_counts(HERE) == [1, 2, 4]
    assert thread_counts("c") == [1]


# --- the camera -----------------------------------------------------------------------------------

PICAMERA2 = """
import numpy as np
class Picamera2:
    def __enter__(self):
        {start}
        return self
    def __exit__(self, *_):
        pass
    def create_still_configuration(self, main):
        return main
    def configure(self, main):
        assert main["format"] == "BGR888"
        self.shape = (main["size"][1], main["size"][0], 3)
    def start(self):
        pass
    def capture_array(self):
        picture = np.zeros(self.shape, np.uint8)
        picture[self.shape[0] // 3 : 2 * self.shape[0] // 3] = 255
        return picture
"""


def test_a_picture_of_the_camera_is_classified(folder: Path, tmp_path: Path) -> None:
    env = with_module("picamera2", PICAMERA2.format(start="pass"), tmp_path)
    done = called(folder, "predict", "--camera", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("camera: middle 99")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ImportError('no libcamera')", "run 'sudo apt install python3-picamera2'"),
        ("raise ValueError('numpy.dtype size changed')", "run '/usr/bin/python3 "),
        ("raise ImportError('numpy.core.multiarray failed to import')", "run '/usr/bin/python3 "),
        (PICAMERA2.format(start="raise IndexError('list index out of range')"), "rpicam-hello"),
    ],
    ids=["no picamera2", "of another NumPy", "of NumPy 1", "no camera"],
)
def test_without_a_camera_one_line_says_so(
    source: str, words: str, folder: Path, tmp_path: Path
) -> None:
    done = called(folder, "predict", "--camera", env=with_module("picamera2", source, tmp_path))
    assert done.returncode == 4
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_doctor_imports_picamera2(folder: Path, tmp_path: Path) -> None:
    """That it is there does not say that it fits the NumPy of an environment."""
    sources = {NOTE: "raise ValueError('numpy.dtype size changed')", FINE: "Picamera2 = None"}
    for state, source in sources.items():
        done = called(folder, "doctor", "--json", env=with_module("picamera2", source, tmp_path))
        findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
        assert findings["camera"]["state"] == state
        assert ("predict --camera --runtime c" in findings["camera"]["mend"]) == (state == NOTE)


def test_files_and_the_camera_exclude_each_other(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 9), np.uint8))
    done = runner(folder, "predict", "--camera", "a.npy", cwd=tmp_path)
    assert done.code == 2 and "give one of the two" in done.stderr
