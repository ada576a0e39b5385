"""Writes a Llama of the shape of Llama-3.2-3B (3.2 B parameters, 6.4 GB in bfloat16) with random weights, and
token ids to calibrate it with: what a large model costs, without one.

    python bench/synthetic_llama.py FOLDER [--layers 28] [--samples 32] [--seq-len 512]
"""

import argparse
import json
import os
import struct

import torch

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--layers", type=int, default=28)
parser.add_argument("--samples", type=int, default=32)
parser.add_argument("--seq-len", type=int, default=512)
given = parser.parse_args()

HIDDEN, MIDDLE, HEADS, KV_HEADS, HEAD, VOCABULARY = 3072, 8192, 24, 8, 128, 128256
DTYPES = {torch.bfloat16: "BF16", torch.int64: "I64"}


def write(path, tensors):
    """A safetensors file of (name, shape, dtype, make) that holds one tensor at a time in memory."""
    header, end = {}, 0
    for name, shape, dtype, _ in tensors:
        size = torch.empty(0, dtype=dtype).element_size()
        for length in shape:
            size *= length
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape, dtype, make in tensors:
            file.write(make(shape).to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    return end


def weight(shape):
    return torch.randn(shape) * 0.02


torch.manual_seed(0)
os.makedirs(given.folder, exist_ok=True)
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": MIDDLE,
    "num_hidden_layers": given.layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD, "vocab_size": VOCABULARY, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 131072, "hidden_act": "silu", "dtype": "bfloat16",
}
with open(os.path.join(given.folder, "config.json"), "w") as file:
    json.dump(config, file, indent=2)
bf16 = torch.bfloat16
layers = [[("model.embed_tokens.weight", [VOCABULARY, HIDDEN], bf16, weight),
           ("model.norm.weight", [HIDDEN], bf16, torch.ones)]]
for i in range(given.layers):
    name = f"model.layers.{i}."
    shapes = {"self_attn.q_proj": [HEADS * HEAD, HIDDEN], "self_attn.k_proj": [KV_HEADS * HEAD, HIDDEN],
              "self_attn.v_proj": [KV_HEADS * HEAD, HIDDEN], "self_attn.o_proj": [HIDDEN, HEADS * HEAD],
              "mlp.gate_proj": [MIDDLE, HIDDEN], "mlp.up_proj": [MIDDLE, HIDDEN], "mlp.down_proj": [HIDDEN, MIDDLE]}
    layers.append([(f"{name}{part}.weight", shape, bf16, weight) for part, shape in shapes.items()] +
                  [(f"{name}{norm}_layernorm.weight", [HIDDEN], bf16, torch.ones)
                   for norm in ("input", "post_attention")])
index, total = {}, 0
for i, tensors in enumerate(layers):
    file = f"model-{i + 1:05}-of-{len(layers):05}.safetensors"
    total += write(os.path.join(given.folder, file), tensors)
    index.update({name: file for name, *_ in tensors})
with open(os.path.join(given.folder, "model.safetensors.index.json"), "w") as file:
    json.dump({"metadata": {"total_size": total}, "weight_map": index}, file)
write(os.path.join(given.folder, "ids.safetensors"),
      [("input_ids", [given.samples, given.seq_len], torch.int64, lambda shape: torch.randint(VOCABULARY, shape))])
print(f"{total / 1e9:.2f} GB in {given.folder}")
