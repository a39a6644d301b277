"""Generated C beside the other runtimes: every layer of the very library, alone and in place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Cli
from test_layers import Exported, colours, exported_once, images
from torch import nn

from deploy.runner.backends import open_session, open_with
from pipeline.errors import BadInput, Missing
from pipeline.export.c import generate, write
from pipeline.package import check_archive
from pipeline.verify import compiler, self_check, show
from pipeline.verify.bounds import exactly
from pipeline.verify.compiler import LIBRARY, Sources, built
from pipeline.verify.laboratory import Laboratory
from pipeline.verify.merged import exact_of_merged, merged
from pipeline.verify.mutants import Mutant
from pipeline.verify.mutants.c import CHANGES, mutants_of_c
from pipeline.verify.pair import verify_files
from pipeline.verify.report import artefact_record, worst_of
from pipeline.verify.rounding import exact_of
from pipeline.verify.runtimes import JUDGED, Runtimes, kind_of, missing
from pipeline.verify.subject import reference_chain

PRECISIONS = ("fp32", "int8")
NAME = "net-c"

pytestmark = pytest.mark.skipif(compiler.compiler() is None, reason="there is no C compiler")


def pooled() -> tuple[nn.Module, tuple[int, int, int]]:
    """Two convolutions that C pools before they are requantized, and one that it does not."""
    torch.manual_seed(5)
    network = nn.Sequential(
        nn.Conv2d(3, 5, (3, 5), padding=(1, 2)),  # 5 x 12 x 10
        nn.ReLU(),
        nn.MaxPool2d((3, 2)),  # 5 x 4 x 5
        nn.Conv2d(5, 6, 3, padding=1),  # 6 x 4 x 5
        nn.MaxPool2d(2),  # 6 x 2 x 2: a column is left over
        nn.Conv2d(6, 4, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return network, (3, 12, 10)


def sources_of(made: Exported, folder: Path) -> Sources:
    write(generate(made.onnx, "net.onnx"), folder)
    return Sources.of(folder)


@pytest.fixture(scope="module", params=PRECISIONS)
def made(request: pytest.FixtureRequest) -> Exported:
    return exported_once(pooled, request.param)


@pytest.fixture(scope="module")
def generated(made: Exported, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return sources_of(made, tmp_path_factory.mktemp("generated"))


@pytest.fixture(scope="module")
def library(generated: Sources) -> bytes:
    return built(generated, ["CFLAGS=-O1"])


def judged(made: Exported, content: bytes | Sources, *require: str) -> Laboratory:
    """This against the network as it was exported."""
    with Runtimes() as runtimes:
        files = {NAME: content}
        laboratory = Laboratory(made.reference(), files, made.precision, runtimes, require)
        laboratory.judge(images(made.shape, 6, seed=1), images(made.shape, 4, seed=2), None)
    return laboratory


@pytest.fixture(scope="module")
def laboratory(made: Exported, library: bytes) -> Laboratory:
    return judged(made, library)


# --- Nothing is wrong -----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_set_of_instructions_passes(laboratory: Laboratory, library: bytes) -> None:
    found = [subject.configuration for subject in laboratory.subjects]
    with Runtimes() as runtimes:
        session: Any = runtimes.open(JUDGED["c"][0], library, "net.so")
    others = [name for name in session.sets if name != session.kernels]
    assert found == ["c best", *(f"c {name}" for name in others)]
    assert session.runtime == laboratory.subjects[0].runtime
    for subject in laboratory.subjects:
        assert subject.passed, subject.error or artefact_record(subject)["first_broken"]
        assert subject.observed > 0 and subject.observer == 0


def test_merged_layers_are_judged_as_one_and_nothing_of_the_hidden_one_is_counted(
    laboratory: Laboratory, made: Exported
) -> None:
    for subject in laboratory.subjects:
        layers = {verdict.layer.name: verdict for verdict in subject.layers}
        hidden = {name: v.together for name, v in layers.items() if v.together}
        assert [v.layer.name for v in hidden.values() if v] == ["max_pool2d", "max_pool2d_1"]
        for name, last in hidden.items():
            assert last is not None and last.isolated is not None
            assert last.layer.merged[0].name == name
            assert last.in_place.elements == 6 * np.prod(last.layer.shape)
            assert last.isolated.elements > last.in_place.elements
            assert layers[name].isolated is None and layers[name].in_place.elements == 0
        record = json.loads(json.dumps(artefact_record(subject), allow_nan=False))
        found = {layer["layer"]: layer for layer in record["layers"]}
        for name, verdict in hidden.items():
            assert verdict is not None and found[name]["with"] == verdict.layer.name
            assert found[name]["isolated"] is found[name]["in_place"] is None
            assert found[name]["passed"] is True
        assert [e["with"] for e in found.values()].count(None) == len(layers) - 2
        assert not {e["layer"] for e in worst_of([subject])} & set(hidden)
        if made.precision == "int8":
            fingerprints = record["fingerprints"]
            assert fingerprints["conv"] == "float half even"
            # Some machines' weights lead no sum of a linear layer to a half.
            assert "float half even" in fingerprints["linear"].split(" or ")


def test_a_hidden_layer_fails_with_the_one_that_it_is_judged_with(
    made: Exported, library: bytes
) -> None:
    (subject, *_) = judged(made, library).subjects
    hidden = next(verdict for verdict in subject.layers if verdict.together)
    last = hidden.together
    assert last is not None and hidden.passed
    last.in_place = last.in_place + type(last.in_place)(problem="spoilt")
    assert not hidden.passed and not subject.passed
    assert subject.first_broken is last


@pytest.mark.slow
def test_a_residual_network_passes(tmp_path: Path) -> None:
    made = exported_once(colours, "int8")
    model = onnx.load_from_string(made.onnx)
    del model.metadata_props[:]  # its contract has ten labels, it has five outputs
    write(generate(model.SerializeToString(), "net.onnx"), tmp_path)
    laboratory = judged(made, built(Sources.of(tmp_path), ["CFLAGS=-O1"]))
    wrong = [(s.configuration, s.error, artefact_record(s)) for s in laboratory.subjects]
    assert all(s.passed for s in laboratory.subjects), wrong


def test_the_library_keeps_its_contract(library: bytes, made: Exported, tmp_path: Path) -> None:
    path = tmp_path / LIBRARY
    path.write_bytes(library)
    model = open_with("c", path)
    assert (model.contract.model, model.contract.precision) == ("net", made.precision)
    assert len(model.run(images(made.shape, 3))[0]) == 3


# --- What both layers together must be ------------------------------------------------------------


def test_the_pooled_integers_are_the_largest_of_those_that_the_scheme_gives(
    made: Exported,
) -> None:
    network = made.reference().network
    convolution, pooling = network.layers[:2]
    (whole,) = merged(network, {layer.value for layer in network.layers[1:]}).values()
    assert (whole.name, whole.inputs) == (pooling.name, convolution.inputs)
    assert [part.name for part in whole.merged] == [convolution.name, pooling.name]
    if made.precision == "fp32":
        return
    chain = reference_chain(network, images(made.shape, 3))
    given = {name: chain[name] for name in whole.inputs}
    before = exact_of(convolution, network, given).schemes()
    after = exact_of_merged(whole, network, given).schemes()
    assert before.keys() == after.keys()
    for name, values in before.items():
        windows = values.reshape(3, 5, 4, 3, 5, 2)
        np.testing.assert_array_equal(after[name], windows.max(axis=(3, 5)))


def test_a_float_bound_goes_through_both_layers(made: Exported) -> None:
    if made.precision == "int8":
        pytest.skip("of float32 only")
    from pipeline.verify.judge import bounded

    network = made.reference().network
    (whole,) = merged(network, {layer.value for layer in network.layers[1:]}).values()
    given = {"image": images(made.shape, 3).astype(np.float32) / 255}
    both = bounded(whole, network, given)
    first = bounded(whole.merged[0], network, given)
    second = bounded(whole.merged[1], network, {whole.merged[0].name: first})
    np.testing.assert_array_equal(both.value, second.value)
    np.testing.assert_array_equal(both.error, second.error)
    assert both.error.max() > 0 and exactly(both.value).error.max() == 0


def test_a_value_that_nothing_explains_is_refused(made: Exported) -> None:
    network = made.reference().network
    last = network.layers[-1]
    with pytest.raises(BadInput, match=f"{last.name} is not mapped"):
        merged(network, {layer.value for layer in network.layers[:-1]})
    linear = merged(network, {last.value})
    if made.precision == "int8":
        chain = reference_chain(network, images(made.shape, 1))
        with pytest.raises(BadInput, match="are computed as one"):
            exact_of_merged(linear[last.name], network, {"image": chain["image"]})


def test_where_branches_meet_nothing_may_be_hidden() -> None:
    network = exported_once(colours, "fp32").reference().network
    meeting = next(layer for layer in network.layers if len(layer.inputs) > 1)
    hidden = {network.values[name] for name in meeting.inputs}
    present = {layer.value for layer in network.layers} - hidden
    with pytest.raises(BadInput, match="has no value of its own, and meets others"):
        merged(network, present)


# --- Something is wrong ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_generator_may_do_wrong_is_found(
    change: str, made: Exported, generated: Sources, tmp_path: Path
) -> None:
    if made.precision == "fp32" and change in ("C: zero point", "C: scale"):
        pytest.skip("float32 has none")
    for name in generated.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((generated.folder / name).read_bytes())
    fits = False
    for file, pattern, instead in CHANGES[change]:
        text, count = re.subn(pattern, instead, (tmp_path / file).read_text(), count=1)
        (tmp_path / file).write_text(text)
        fits = fits or bool(count)
        if fits:
            break
    assert fits, "the pattern is not what the generator writes"
    content = built(Sources(tmp_path, generated.files), ["CFLAGS=-O1"])
    for subject in judged(made, content).subjects:
        assert not subject.passed
        assert subject.error is None and subject.first_broken is not None
        assert subject.first_broken.layer.name == "max_pool2d"  # with the convolution before it


def test_rounding_in_another_way_is_wrong_though_it_has_a_name(made: Exported) -> None:
    if made.precision == "fp32":
        pytest.skip("of int8 only")
    from pipeline.verify.cases import isolated_inputs
    from pipeline.verify.judge import judge

    network = made.reference().network
    layer = network.layers[-1]
    chain = reference_chain(network, images(made.shape, 4))
    inputs = isolated_inputs(layer, network, {n: chain[n] for n in layer.inputs}, 0)
    schemes = exact_of(layer, network, inputs).schemes()
    demanded = JUDGED["c"][0].scheme
    for name, values in schemes.items():
        found = values.astype(np.int8)
        known = judge(layer, network, inputs, found, integer=True)
        wanted = judge(layer, network, inputs, found, integer=True, scheme=demanded)
        assert known.passed
        assert wanted.passed == np.array_equal(values, schemes[demanded]), name
        assert wanted.passed or "unexplained" in wanted.fingerprint
    assert any(not np.array_equal(values, schemes[demanded]) for values in schemes.values())


def test_c_that_does_not_compile_fails_with_what_the_compiler_said(
    made: Exported, generated: Sources, tmp_path: Path
) -> None:
    for name in generated.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((generated.folder / name).read_bytes())
    (tmp_path / "layers.c").write_text("#error broken on purpose\n")
    (subject,) = judged(made, Sources(tmp_path, generated.files)).subjects
    assert not subject.passed
    assert "does not compile it" in str(subject.error) and "on purpose" in str(subject.error)


def test_only_what_is_recorded_is_compiled(generated: Sources, tmp_path: Path) -> None:
    (tmp_path / "cheat.c").write_text("int cheat;\n")
    for name in generated.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((generated.folder / name).read_bytes())
    (tmp_path / "model.o").write_text("stale, and newer than its source")
    found = Sources.of(tmp_path)
    assert "cheat.c" in found.files
    assert built(Sources(tmp_path, generated.files), ["CFLAGS=-O1"]).startswith(b"\x7fELF")
    assert found.digest != Sources(tmp_path, generated.files).digest


# --- A compiler that is not there -----------------------------------------------------------------


def test_without_a_compiler_c_is_skipped_unless_it_is_required(
    made: Exported, generated: Sources, library: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiler.compiler() is None and missing(JUDGED["c"][0])
    assert judged(made, generated).subjects == []
    (subject,) = judged(made, generated, "c").subjects
    assert not subject.passed
    assert "no C compiler" in str(subject.error) and "CC" in str(subject.error)
    assert all(s.passed for s in judged(made, library).subjects)  # a library needs none
    with pytest.raises(Missing, match="install gcc and make"):
        built(generated)


def test_the_compiler_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "make -s")
    assert compiler.compiler() == ["make", "-s"]
    monkeypatch.setenv("PATH", "")
    assert compiler.compiler() is None


# --- Files, and the report ------------------------------------------------------------------------


def test_kinds_are_told_by_names() -> None:
    names = ["a.onnx", "b.tflite", "lenet5-int8-c", "x/libmodel.so", "a.pth", "onnx"]
    assert [kind_of(name) for name in names] == ["onnx", "tflite", "c", "c", "", ""]


@pytest.mark.parametrize("folder", [True, False])
def test_a_folder_or_a_library_is_compared_with_its_onnx_file(
    folder: bool, made: Exported, generated: Sources, library: bytes, tmp_path: Path
) -> None:
    reference, so = tmp_path / "net.onnx", tmp_path / LIBRARY
    reference.write_bytes(made.onnx)
    so.write_bytes(library)
    other = generated.folder if folder else so
    report = verify_files([reference, other], images=4, seed=0)
    assert report["passed"]
    name = str(other / LIBRARY if folder else other)
    found = [a for a in report["artefacts"] if a["file"] == name]
    assert found and all(a["configuration"].startswith("c ") for a in found)
    assert len(report["sha256"][name]) == 64


def test_a_folder_that_is_asked_for_is_not_skipped(
    made: Exported, generated: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    (tmp_path / "net.onnx").write_bytes(made.onnx)
    report = verify_files([tmp_path / "net.onnx", generated.folder], images=2, seed=0)
    assert not report["passed"]
    assert (report["absent"], report["skipped"]) == (["c"], [])


def test_the_tables_say_what_is_judged_with_what(
    laboratory: Laboratory, made: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    artefacts = [artefact_record(subject) for subject in laboratory.subjects]
    report = {
        "passed": True,
        "artefacts": artefacts,
        "worst": worst_of(laboratory.subjects),
        "varied": laboratory.varied,
        "absent": [],
        "skipped": ["c"],
    }
    show.show_verification(report)
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "install gcc and make" in text
    if made.precision == "fp32":
        assert "with max_pool2d" in text
    spoilt = json.loads(json.dumps(artefacts[0]))
    last = next(layer for layer in spoilt["layers"] if layer["layer"] == "max_pool2d")
    last["isolated"]["passed"] = last["passed"] = spoilt["passed"] = False
    spoilt["first_broken"] = "max_pool2d"
    show.show_verification(report | {"passed": False, "artefacts": [spoilt]})
    printed = capsys.readouterr()
    assert "are computed and judged as one" in printed.out + printed.err


@pytest.mark.slow
def test_c_is_required_by_name_and_goes_into_the_bundle_as_sources(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--format", "onnx,c", "--precision", "fp32"]
    verify = ["verify", *options, "--images", "4"]
    done = cli(*verify, "--require", "c")
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = ["--runtime", "onnx,c", "--precision", "fp32"]
    assert cli("package", *chosen).returncode == 0
    name = "lenet5-classic-fp32-c"
    bundle = runs / "small" / "lenet5-classic-bundle.tar.gz"
    manifest = check_archive(bundle)
    sources = {path for path in manifest["files"] if path.startswith("c/")}
    record = json.loads((runs / "small" / "run.json").read_text())["artefacts"][name]
    assert sources == {f"c/{name}/{file}" for file in record["files"]}
    assert f"c/{name}/Makefile" in sources and list(manifest["models"]) == [
        "lenet5-classic-fp32.onnx"
    ]
    (runs / "small" / name / "layers.c").write_text("int changed;\n")
    done = cli(*verify)
    assert done.returncode == 3 and f"{name}: changed by hand" in done.stderr
    assert cli("export", *options).returncode == 0
    monkeypatch.setenv("CC", "no-such-compiler")
    done = cli(*verify)
    assert done.returncode == 0 and "c: not there, skipped (install gcc" in done.stderr
    done = cli(*verify, "--require", "c")
    assert done.returncode == 1 and "no C compiler" in done.stderr
    assert cli(*verify).returncode == 0
    done = cli("package", *chosen)
    assert done.returncode == 0 and "note: C is not in it" in done.stderr
    assert not [path for path in check_archive(bundle)["files"] if path.startswith("c/")]


# --- The self-check -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_mutant_of_a_run_is_found(
    precision: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.export import export_run
    from pipeline.run_folder import RunFolder

    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(runs))
    run = RunFolder.open("small")
    export_run(run, ["c"], [precision])
    report = self_check.self_check(run, ["c"], [precision], images=8)
    assert report["passed"] and report["false_alarms"] == []
    assert report["total"]["killed_changed"] == report["total"]["changed"] > 10


@pytest.mark.slow
def test_mutants_are_libraries_of_their_own(
    made: Exported, generated: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.verify.mutants import c

    reference = tmp_path / "net.onnx"
    reference.write_bytes(made.onnx)

    def one(path: Path) -> list[Mutant]:
        return [Mutant("refused", "", b"no model"), Mutant("same", "", path.read_bytes())]

    monkeypatch.setattr(c, "mutants_of", one)
    monkeypatch.setattr(c, "CHANGES", {name: CHANGES[name] for name in ("C: weight",)})
    found = list(mutants_of_c(generated, reference))
    assert [mutant.name for mutant in found] == ["same", "C: weight"]
    paths = [tmp_path / f"{number}.so" for number in range(2)]
    for path, mutant in zip(paths, found, strict=True):
        path.write_bytes(mutant.content)
    sessions = [open_session("c", path) for path in paths]
    values = np.random.default_rng(0).integers(-128, 128, (64, *made.shape))
    values = values.astype(sessions[0].inputs[0].dtype)
    same, changed = (session.run(values)[0] for session in sessions)
    library = tmp_path / "unchanged.so"
    library.write_bytes(built(generated, ["CFLAGS=-O1"]))
    assert np.array_equal(same, open_session("c", library).run(values)[0])
    assert not np.array_equal(same, changed)
