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


def gguf_string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value):
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_string, value))
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def as_gguf(folder):
    """The Llama of `folder` as llama.cpp's converter writes it: own names, rows of q and k paired."""
    c = json.loads((folder / "config.json").read_text())
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "model.layers": "blk", "lm_head": "output",
             "model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    metadata = {
        "general.architecture": "llama", "llama.block_count": c["num_hidden_layers"],
        "llama.embedding_length": c["hidden_size"], "llama.context_length": 128,
        "llama.feed_forward_length": c["intermediate_size"],
        "llama.attention.head_count": c["num_attention_heads"],
        "llama.attention.head_count_kv": c["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "llama.rope.freq_base": c["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(c["vocab_size"])],
        "tokenizer.ggml.merges": []}
    infos, body = b"", b""
    tensors = read(folder / "model.safetensors")
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "attn_q" in name or "attn_k" in name:
            heads = c["num_attention_heads" if "attn_q" in name else "num_key_value_heads"]
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2)
            tensor = tensor.reshape(-1, tensor.shape[-1])
        infos += gguf_string(name) + struct.pack("<I", tensor.ndim)
        infos += struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape))
        infos += struct.pack("<IQ", 0, len(body))
        body += tensor.astype("<f4").tobytes()
        body += bytes(-len(body) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(gguf_string(k) + gguf_value(v) for k, v in metadata.items()) + infos
    return head + bytes(-len(head) % 32) + body


def import_gives_back_the_folder(folder):
    file = out / "model.gguf"
    file.write_bytes(as_gguf(folder))
    run("import", file, out / "imported", "--dtype", "float32")
    found, expected = read(out / "imported/model.safetensors"), read(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape and found[name].tobytes() == tensor.tobytes(), name
    run("forward", out / "imported", "--input", folder / "expected.safetensors", "--output",
        out / "imported.safetensors")
    difference = np.abs(read(out / "imported.safetensors")["logits"]
                        - read(folder / "expected.safetensors")["logits"]).max()
    print("imported", folder.name, "largest difference", difference)
    assert difference <= 2e-5
    # An existing folder stays as it is; a damaged file leaves nothing.
    again = subprocess.run([graft, "import", file, out / "imported"], capture_output=True, text=True)
    assert again.returncode == 1, again.stderr
    file.write_bytes(file.read_bytes()[:-4096])
    cut = subprocess.run([graft, "import", file, out / "cut"], capture_output=True, text=True)
    assert cut.returncode == 2 and "lies outside of the file" in cut.stderr, cut.stderr
    assert not (out / "cut").exists()


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
    elif case == "gguf":
        import_gives_back_the_folder(arch / "llama")
    else:
        sys.exit(f"unknown case {case}")
