"""ONNX's own conformance cases for the operators of the reference: each passes or is refused."""

import unittest
import warnings

import onnx
import pytest
from onnx.backend.test import BackendTest

from pipeline.errors import BadInput
from pipeline.operators import OPERATORS
from pipeline.reference import Reference

with warnings.catch_warnings(action="ignore"):  # onnx divides by zero where it makes its cases
    from onnx.backend.test.loader import load_model_tests

    CASES = {case.name: case for case in load_model_tests(kind="node")}
    RUN = BackendTest(Reference, __name__).test_cases

NEEDED = [
    "Conv",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Gemm",
    "MatMul",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softmax",
    "Flatten",
    "Reshape",
    "Pad",
    "Add",
    "Mul",
    "Clip",
    "BatchNormalization",
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
]
IMAGES, TRAINING = "only images", "training_mode"
REFUSED = {
    "test_averagepool_1d_default": IMAGES,
    "test_averagepool_3d_default": IMAGES,
    "test_averagepool_3d_dilations_small": IMAGES,
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True": IMAGES,
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False": IMAGES,
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True": IMAGES,
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False": IMAGES,
    "test_maxpool_1d_default": IMAGES,
    "test_maxpool_3d_default": IMAGES,
    "test_maxpool_3d_dilations": IMAGES,
    "test_maxpool_3d_dilations_use_ref_impl": IMAGES,
    "test_maxpool_3d_dilations_use_ref_impl_large": IMAGES,
    "test_batchnorm_example_training_mode": TRAINING,
    "test_batchnorm_epsilon_training_mode": TRAINING,
    "test_training_dropout_default": TRAINING,
    "test_training_dropout_default_mask": TRAINING,
    "test_training_dropout": TRAINING,
    "test_training_dropout_mask": TRAINING,
    "test_training_dropout_zero_ratio": TRAINING,
    "test_training_dropout_zero_ratio_mask": TRAINING,
    "test_dropout_default_old": "definition at opset 11",
    "test_dropout_random_old": "definition at opset 11",
    "test_identity_sequence": "only tensors",
    "test_identity_opt": "only tensors",
    "test_pow_types_int64_float32": "may not be an integer",
    "test_pow_types_int32_float32": "may not be an integer",
    "test_dequantizelinear_e4m3fn": "FLOAT8E4M3FN",
    "test_dequantizelinear_e4m3fn_float16": "FLOAT8E4M3FN",
    "test_dequantizelinear_e4m3fn_zero_point": "FLOAT8E4M3FN",
    "test_dequantizelinear_e5m2": "FLOAT8E5M2",
    "test_dequantizelinear_uint4": "UINT4",
    "test_dequantizelinear_int4": "INT4",
    "test_dequantizelinear_uint2": "UINT2",
    "test_dequantizelinear_int2": "INT2",
    "test_dequantizelinear_float4e2m1": "FLOAT4E2M1",
    "test_quantizelinear_e4m3fn": "FLOAT8E4M3FN",
    "test_quantizelinear_e5m2": "FLOAT8E5M2",
    "test_quantizelinear_uint4": "UINT4",
    "test_quantizelinear_int4": "INT4",
    "test_quantizelinear_uint2": "UINT2",
    "test_quantizelinear_int2": "INT2",
    "test_quantizelinear_float4e2m1": "FLOAT4E2M1",
}
# Casts are between all pairs of dtypes: those that name one of these are refused.
DTYPES = {"BFLOAT16", "UINT4", "INT4", "UINT2", "INT2", "STRING"}
DTYPES |= {name for name in onnx.TensorProto.DataType.keys() if name.startswith("FLOAT8")}  # noqa: SIM118
DTYPES |= {"FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2"}


def operator(name):
    """The operator a case is for; one that spells out a function is for the function's."""
    nodes = CASES[name.partition("_expanded")[0]].model.graph.node
    return nodes[0].op_type if len(nodes) == 1 else None


def dtypes(name):
    """The dtypes of the whole model's inputs and outputs."""
    graph = CASES[name].model.graph
    kinds = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    return {onnx.TensorProto.DataType.Name(kind) for kind in kinds}


SELECTED = {
    name: operator(name)
    for name in CASES
    if name.partition("_expanded")[0] in CASES and operator(name) in OPERATORS
}
CASTS = {
    name
    for name, of in SELECTED.items()
    if of in {"Cast", "CastLike"} and (dtypes(name) & DTYPES or "STRING" in name)
}
PASSING = [name for name in SELECTED if name not in CASTS and name not in REFUSED]


@pytest.mark.parametrize("name", PASSING)
def test_passes(name):
    result = unittest.TestResult()
    RUN["OnnxBackendNodeModelTest"](f"{name}_cpu").run(result)
    assert [text for _, text in result.errors + result.failures] == []
    assert result.testsRun == 1
    assert result.skipped == []


def run(name):
    case = CASES[name]
    prepared = Reference.prepare(case.model)
    for inputs, _ in case.data_sets:
        prepared.run(
            [
                onnx.numpy_helper.to_array(i) if isinstance(i, onnx.TensorProto) else i
                for i in inputs
            ]
        )


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name):
    with pytest.raises(BadInput, match=REFUSED[name]):
        run(name)


@pytest.mark.parametrize("name", sorted(CASTS))
def test_cast_is_refused(name):
    with pytest.raises(BadInput, match=r"dtype .* not supported"):
        run(name)


def test_the_selection_is_neither_empty_nor_stale():
    assert set(REFUSED) <= set(SELECTED)
    needed = {name: [n for n in PASSING if SELECTED[n] == name] for name in NEEDED}
    assert [name for name, cases in needed.items() if not cases] == []
    assert sum(map(len, needed.values())) >= 160
    assert len(PASSING) >= 400
    assert len(CASTS) >= 130
