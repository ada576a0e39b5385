"""Runs the program on golden folders and compares tensors: check_program.py GRAFT GOLDEN CASE [DEVICE].

With DEVICE models are run there; the exit code is 77 where there is none."""
import json
import pathlib
import shutil
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
        "--dtype", "float32", "--device", device)
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


def prints(*arguments):
    done = subprocess.run([graft, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def generates_what_transformers_does(folder):
    ids = read(folder / "expected.safetensors")["generated_ids"][0].tolist()
    code, text, said = prints("generate", folder, "--ids", ",".join(map(str, ids[:8])),
                              "--max-new-tokens", len(ids) - 8, "--ignore-eos", "--json",
                              "--dtype", "float32", "--device", device)
    assert code == 0, said
    assert json.loads(text)["ids"] == ids[8:], (folder.name, text)


def relabelled(folder, field, value):
    """A copy of the folder whose quantization_config says something else."""
    copy = out / f"{folder.name}-{value}"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    settings = config["quantization_config"]
    for name in (field, "format"):
        if name in settings:
            settings[name] = value
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "quantize_config.json").unlink(missing_ok=True)
    return copy


def formats_change(folder, there, back, expected_name, tensor):
    """inspect, verify, convert and dequantize on one folder."""
    code, text, _ = prints("inspect", folder)
    assert code == 0 and "detected" in text and "missing    none" in text, text
    code, text, _ = prints("verify", folder)
    assert code == 0 and "all well" in text, text
    run("convert", folder, out / "there", "--to", there)
    run("convert", out / "there", out / "back", "--to", back)
    first, last = read(folder / "model.safetensors"), read(out / "back/model.safetensors")
    assert first.keys() == last.keys()
    assert all(first[name].tobytes() == last[name].tobytes() for name in first)
    run("dequantize", folder, out / "dense", "--dtype", "float32")
    expected = folder / expected_name
    for name in ("there", "dense"):
        shutil.copy(expected, out / name)
        forward_matches_transformers(out / name, expected_name, tensor, 2e-4)
    weights = read(out / "dense/model.safetensors")
    for name, weight in read(expected).items():
        if name.startswith("weight:"):
            assert (weights[name[7:] + ".weight"] == weight).all(), name
    code, _, text = prints("convert", folder, out / "there", "--to", there)
    assert code == 1 and "not empty" in text, text
    code, _, text = prints("convert", folder, out / "nowhere", "--to", "no_such_format")
    assert code == 1 and there in text and not (out / "nowhere").exists(), text


def contradiction_is_refused(folder, field, value, words):
    wrong = relabelled(folder, field, value)
    for verb in ("verify", "inspect"):
        code, printed, text = prints(verb, wrong)
        assert (code == 2 or verb == "inspect") and words in printed + text, (printed, text)
    code, _, text = prints("forward", wrong, "--input", folder / "expected.safetensors", "--output",
                           out / "never.safetensors")
    assert code == 2 and words in text and not (out / "never.safetensors").exists(), text
    run("forward", wrong, "--input", folder / "expected.safetensors", "--output",
        out / "trusted.safetensors", "--dtype", "float32", "--trust", "data")
    found = read(out / "trusted.safetensors")["logits"]
    assert np.abs(found - read(folder / "expected.safetensors")["logits"]).max() <= 2e-4


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
device = sys.argv[4] if len(sys.argv) > 4 else "cpu"
if device != "cpu" and "compute capability" not in prints("doctor")[1]:
    print("skipped: no CUDA device")
    sys.exit(77)
memory = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None  # saving syncs every file
with tempfile.TemporaryDirectory(dir=memory) as temporary:
    out = pathlib.Path(temporary)
    arch = golden / "arch"
    if case == "dense":
        forward_matches_transformers(arch / "llama", "expected.safetensors", "logits", 2e-5)
        forward_matches_transformers(arch / "llama31", "expected.safetensors", "logits", 2e-5)
        forward_matches_transformers(arch / "bert", "expected.safetensors", "last_hidden_state", 2e-5)
        for name in ("llama", "mistral", "gemma2", "gpt2", "opt", "mixtral"):
            generates_what_transformers_does(arch / name)
    elif case == "bitsandbytes":
        quantize_is_bit_identical("tiny_llama_bnb_nf4_dq", "--quant-type", "nf4", "--double-quant",
                                  "--compute-dtype", "float16")
        quantize_is_bit_identical("tiny_llama_bnb_fp4", "--quant-type", "fp4")
        quantize_is_bit_identical("tiny_llama_bnb_int8", "--quant-type", "int8")
    elif case == "gptq":
        folder = golden / "quant/gptq-w4-g32"
        forward_matches_transformers(folder, "expected.safetensors", "logits", 2e-4)
        formats_change(folder, "gptq_v2", "gptq", "expected.safetensors", "logits")
        contradiction_is_refused(folder, "checkpoint_format", "gptq_v2",
                                 "contradict checkpoint_format")
    elif case == "awq":
        folder = golden / "quant/awq-w4-g32"
        forward_matches_transformers(folder, "expected.safetensors", "logits", 2e-4)
        formats_change(folder, "gemv_fast", "gemm", "expected.safetensors", "logits")
    elif case == "gguf":
        import_gives_back_the_folder(arch / "llama")
    else:
        sys.exit(f"unknown case {case}")
