"""The contract in every model file, the meaning of the scores, and the seal on a bundle."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.runner import bundle
from deploy.runner.contract import Contract, Quantization
from deploy.runner.errors import BadInput, Missing
from deploy.runner.scores import probabilities, real, steps
from deploy.runner.selftest import selftest

FP32 = Contract(
    model="lenet",
    precision="fp32",
    dataset="digits",
    labels=("zero", "one", "two"),
    input_shape=(1, 28, 20),
    preparation="glyph",
    scores="logits",
    input=None,
    output=None,
    program_sha256="0" * 64,
    pipeline_version="0.1.0",
)
INT8 = replace(
    FP32, precision="int8", input=Quantization(1 / 255, -128), output=Quantization(0.1, 7)
)
FLOAT_SCORES = replace(INT8, output=None)
ALL_INT8 = np.arange(-128, 128, dtype=np.int8)

# --- contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", [FP32, INT8, FLOAT_SCORES], ids=["fp32", "int8", "mixed"])
@pytest.mark.parametrize("encode", [str, str.encode], ids=["text", "bytes"])
def test_a_contract_survives_json(contract, encode):
    assert Contract.from_json(encode(contract.to_json()), "model.onnx") == contract


@pytest.mark.parametrize("key", sorted(json.loads(INT8.to_json())))
def test_a_contract_without_one_of_its_keys_is_refused(key):
    record = json.loads(INT8.to_json())
    del record[key]
    with pytest.raises(BadInput, match=r"model\.onnx"):
        Contract.from_json(json.dumps(record), "model.onnx")


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (FP32, {"schema": 2}),
        (FP32, {"schema": None}),
        (FP32, {"preparation": "sketch"}),
        (FP32, {"scores": "odds"}),
        (FP32, {"precision": "fp8"}),
        (FP32, {"layout": "NHWC"}),
        (FP32, {"labels": []}),
        (FP32, {"labels": None}),
        (FP32, {"input_shape": [2, 28, 20]}),
        (FP32, {"input_shape": [1, 28]}),
        (FP32, {"input_shape": [1, 0, 20]}),
        (FP32, {"input_shape": [1, "tall", 20]}),
        (FP32, {"input_shape": [1, float("inf"), 20]}),
        (FP32, {"invented": 1}),
        (FP32, {"input": {"scale": 0.1, "zero_point": 0}}),
        (INT8, {"input": None, "output": None}),
        (INT8, {"input": None}),
        (INT8, {"output": {"scale": 0.1}}),
        (INT8, {"output": {"scale": "small", "zero_point": 0}}),
        (INT8, {"output": {"scale": 0, "zero_point": 0}}),
        (INT8, {"output": {"scale": float("nan"), "zero_point": 0}}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.precision,
)
def test_a_malformed_contract_is_refused(base, change):
    text = json.dumps(json.loads(base.to_json()) | change)
    with pytest.raises(BadInput, match=r"model\.onnx"):
        Contract.from_json(text, "model.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "7", b"\xff\xfe\x00"])
def test_what_is_no_json_object_is_no_contract(text):
    with pytest.raises(BadInput, match=r"model\.onnx"):
        Contract.from_json(text, "model.onnx")


# --- scores ---------------------------------------------------------------------------------------

scales = st.floats(min_value=0, exclude_min=True, allow_infinity=False, width=32)
# A runtime's own float32 outputs must not overflow.
float32_scales = st.floats(min_value=0, max_value=2.0**100, exclude_min=True, width=32)
zero_points = st.integers(-128, 127)


@given(scales, zero_points)
@settings(deadline=None)
def test_steps_undo_real(scale, zero_point):
    quantization = Quantization(scale, zero_point)
    values = real(ALL_INT8, quantization)
    assert values[zero_point + 128] == 0
    np.testing.assert_array_equal(steps(values, quantization), ALL_INT8)
    np.testing.assert_array_equal(steps(ALL_INT8, quantization), ALL_INT8)


@given(float32_scales, zero_points)
@settings(deadline=None)
def test_steps_undo_real_after_a_runtime_rounded_it_to_float32(scale, zero_point):
    quantization = Quantization(scale, zero_point)
    values = real(ALL_INT8, quantization).astype(np.float32)
    np.testing.assert_array_equal(steps(values, quantization), ALL_INT8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_no_integer_stands_for_equals_none(value, dtype):
    found = steps(np.array([value, 0.5], dtype), Quantization(0.5, 3))
    assert found[0] not in ALL_INT8
    assert found[1] == 4


def test_real_leaves_floats_alone():
    values = np.array([[0.25, -1.5]], np.float32)
    np.testing.assert_array_equal(real(values, None), values)


logit_rows = st.lists(
    st.lists(st.floats(-1e308, 1e308), min_size=3, max_size=3), min_size=1, max_size=4
)


@given(logit_rows)
@settings(deadline=None)
def test_probabilities_of_any_logits_sum_to_one_in_the_same_order(rows):
    scores = np.array(rows)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        chances = probabilities(scores, FP32)
    # Three divisions and two sums, each within half a unit of 2**-52.
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=0, atol=2.0**-50)
    assert (chances >= 0).all()
    best = np.take_along_axis(chances, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(best, chances.max(axis=1))


def test_probabilities_of_known_logits():
    found = probabilities(np.log([[1.0, 2.0, 5.0]]), FP32)
    np.testing.assert_allclose(found, [[0.125, 0.25, 0.625]], rtol=1e-14)


def test_probabilities_stay_what_they_are():
    already = np.array([[0.7, 0.2, 0.1]])
    contract = replace(FP32, scores="probabilities")
    np.testing.assert_array_equal(probabilities(already, contract), already)


# --- selftest: the verdict over outputs -----------------------------------------------------------


@pytest.mark.parametrize(
    ("contract", "golden", "found", "passed"),
    [
        pytest.param(INT8, [-3, 0, 9], np.array([-3, 0, 9], np.int8), True, id="int8 equal"),
        pytest.param(INT8, [-3, 0, 9], np.array([-3, 1, 9], np.int8), True, id="int8 at the limit"),
        pytest.param(INT8, [-3, 0, 9], np.array([-3, 2, 9], np.int8), False, id="int8 beyond it"),
        pytest.param(INT8, [7, 8, 9], np.array([0, 0.1, 0.2]), True, id="int8 as reals"),
        pytest.param(INT8, [7, 0, 9], np.array([0, np.nan, 0.2]), False, id="int8 with a NaN"),
        pytest.param(INT8, [0, 0, 0], np.full(3, np.nan), False, id="int8 all NaN"),
        pytest.param(FLOAT_SCORES, [1.0, 2], np.array([1.0, 2.1]), True, id="int8, float scores"),
        pytest.param(FLOAT_SCORES, [1.0, 2], np.array([1.0, 2.3]), False, id="int8, float, beyond"),
        pytest.param(FP32, [1.0, 2, 4], np.array([1.0, 2, 4]), True, id="fp32 equal"),
        pytest.param(FP32, [1.0, 2, 4], np.array([1.0, 2.001, 4]), False, id="fp32 too far"),
        pytest.param(FP32, [1.0, 2, 4], np.array([1.0, np.nan, 4]), False, id="fp32 with a NaN"),
    ],
)
def test_selftest_judges_outputs(contract, golden, found, passed, tmp_path):
    images = np.zeros((1, *contract.input_shape), np.uint8)
    np.savez(tmp_path / "golden.npz", images=images, **{contract.precision: np.array([golden])})
    model = SimpleNamespace(contract=contract, runtime="test 1.0", run=lambda _: [found[None]])
    result = selftest(bundle.Bundle(tmp_path, {"int8_steps": 1, "int8_relative": 0.1}), model)
    assert result.passed is passed


# --- bundle ---------------------------------------------------------------------------------------

FILES = {"model.onnx": b"weights", "golden.npz": b"vectors", "LICENSE": b"Apache"}
HASHES = {name: bundle.sha256(content) for name, content in FILES.items()}
MANIFEST = {
    "schema": bundle.SCHEMA,
    "run": "by-hand",
    "pipeline_version": "0.1.0",
    "contracts": {"fp32": json.loads(FP32.to_json())},
    "models": {
        "model.onnx": {
            "precision": "fp32",
            "accuracy": 1.0,
            "verified_with": "onnxruntime",
            "equal_to_program": 1.0,
        }
    },
    "int8_steps": 1.0,
    "test_images": 5,
    "files": HASHES,
}
SEALED = FILES | {bundle.MANIFEST: bundle.seal(MANIFEST)}


def check(contents):
    return bundle.check(contents.__getitem__, set(contents), "bundle")


def flip(content, position, bit=0):
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


def test_an_intact_bundle_passes():
    assert check(SEALED)["files"] == HASHES


def test_a_file_of_the_user_in_the_folder_does_no_harm():
    assert check(SEALED | {"holiday.jpg": b"beach"})["files"] == HASHES


@given(st.integers(0, len(SEALED[bundle.MANIFEST]) - 1), st.integers(0, 7))
@settings(deadline=None, max_examples=500)
def test_any_flipped_bit_of_the_manifest_is_found(position, bit):
    manifest = flip(SEALED[bundle.MANIFEST], position, bit)
    with pytest.raises(BadInput, match=r"bundle/manifest\.json"):
        check(SEALED | {bundle.MANIFEST: manifest})


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="a list"),
        pytest.param(SEALED[bundle.MANIFEST][:-5], id="truncated"),
        pytest.param(SEALED[bundle.MANIFEST] + b"\n", id="longer"),
        pytest.param(bundle.seal({"schema": 1}), id="no files"),
        pytest.param(bundle.seal(MANIFEST | {"schema": 99}), id="a later schema"),
        pytest.param(b"[" * 100_000, id="endlessly nested"),
    ],
)
def test_a_manifest_that_is_none_is_refused(manifest):
    with pytest.raises(BadInput, match=r"bundle/manifest\.json"):
        check(SEALED | {bundle.MANIFEST: manifest})


def places(record, path=()):
    """Where anything is in a JSON document."""
    for key, value in record.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


WITH_ALL = MANIFEST | {
    "target": {"name": "host", "hardware": "this one"},
    "package": {"usr/bin/it": "0" * 64},
}


@pytest.mark.parametrize("path", list(places(WITH_ALL)), ids="/".join)
@pytest.mark.parametrize("value", [None, True, [], "word", 3, {"a": 1}, ...], ids=repr)
def test_a_sealed_manifest_with_a_missing_or_mistyped_field_is_refused_or_works(
    path, value, tmp_path
):
    """Whoever seals it, it is an error of one line, or all that the runner does with it works."""
    manifest = copy.deepcopy(WITH_ALL)
    place = manifest
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    for name, content in (FILES | {bundle.MANIFEST: bundle.seal(manifest)}).items():
        (tmp_path / name).write_bytes(content)
    try:
        opened = bundle.Bundle.open(tmp_path)
    except BadInput as error:
        assert "\n" not in str(error)
        assert bundle.MANIFEST in str(error) or any(name in str(error) for name in FILES)
        return
    assert opened.contract(opened.default_precision()).labels
    assert opened.models("fp32") == {".onnx": tmp_path / "model.onnx"}
    assert opened.manifest["models"]["model.onnx"]["accuracy"] >= 0
    assert opened.manifest["int8_steps"] >= 0
    if "target" in opened.manifest:
        assert opened.manifest["target"]["name"].islower()


@pytest.mark.parametrize(
    ("name", "position"), [(name, i) for name in FILES for i in range(len(FILES[name]))]
)
def test_a_flipped_byte_of_any_file_is_found(name, position):
    with pytest.raises(BadInput, match=f"bundle/{name}"):
        check(SEALED | {name: flip(FILES[name], position)})


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name):
    left = {other: content for other, content in SEALED.items() if other != name}
    with pytest.raises(BadInput, match=f"bundle/{name}: missing"):
        check(left)


def test_without_a_manifest_it_is_no_bundle():
    with pytest.raises(Missing, match=r"manifest\.json"):
        check(FILES)
