"""Runs the program on golden folders and compares tensors: check_program.py GRAFT GOLDEN CASE."""
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64,
         "I32": np.int32, "I16": np.int16, "U8": np.uint8, "I8": np.int8,
         "BF16": np.uint16}  # as bits: numpy has no bfloat16


def read(path):
    data = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {
        name: np.frombuffer(body[slice(*t["data_offsets"])], TYPES[t["dtype"]]).reshape(t["shape"])
        for name, t in header.items()
    }


def run(*arguments):
    subprocess.run([graft, "-q", *map(str, arguments)], check=True)


def forward_matches_transformers(folder, expected_name, tensor, tolerance):
    expected = read(folder / expected_name)
    run("forward", folder, "--input", folder / expected_name, "--output", out / "o.safetensors",
        "--dtype", "float32")
    found = read(out / "o.safetensors")[tensor]
    difference = np.abs(found - expected[tensor if tensor in expected else "logits_f32"]).max()
    print(folder.name, "largest difference", difference)
    assert difference <= tolerance
    if tensor == "logits" and tensor in expected:
        assert (found.argmax(-1) == expected[tensor].argmax(-1)).all()


def quantize_is_bit_identical(golden_name, *options):
    run("quantize", golden / "vectors/tiny_llama_dense_fp16", out / golden_name, "--method",
        "bitsandbytes", *options)
    for folder in (out / golden_name,):
        found = read(folder / "model.safetensors")
        expected = read(golden / "vectors" / golden_name / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
            assert found[name].tobytes() == tensor.tobytes(), name
    ours = json.loads((out / golden_name / "config.json").read_text())["quantization_config"]
    theirs = json.loads((golden / "vectors" / golden_name / "config.json").read_text())
    for key, value in theirs["quantization_config"].items():
        if key not in ("bnb_4bit_quant_type",) or ours["load_in_4bit"]:
            assert ours[key] == value, key


graft, golden, case = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
with tempfile.TemporaryDirectory() as temporary:
    out = pathlib.Path(temporary)
    arch = golden / "arch"
    if case == "dense":
        forward_matches_transformers(arch / "llama", "expected.safetensors", "logits", 2e-5)
        forward_matches_transformers(arch / "llama31", "expected.safetensors", "logits", 2e-5)
        forward_matches_transformers(arch / "bert", "expected.safetensors", "last_hidden_state", 2e-5)
    elif case == "bitsandbytes":
        quantize_is_bit_identical("tiny_llama_bnb_nf4_dq", "--quant-type", "nf4", "--double-quant",
                                  "--compute-dtype", "float16")
        quantize_is_bit_identical("tiny_llama_bnb_fp4", "--quant-type", "fp4")
        quantize_is_bit_identical("tiny_llama_bnb_int8", "--quant-type", "int8")
    else:
        sys.exit(f"unknown case {case}")
