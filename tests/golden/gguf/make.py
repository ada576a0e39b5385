"""Writes blocks.safetensors: random blocks of every GGUF format that graft reads, and their float32
values by the gguf package.

Made with gguf 0.19.0 and numpy 2.4.6:  pip install gguf==0.19.0 && python make.py
"""
import json
import pathlib
import struct

import gguf
import numpy as np

NAMES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K".split()
# Where the float16 numbers of a block lie; everything else may be any bits.
HALVES = {"F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
random = np.random.default_rng(20240613)
tensors = {}
for name in NAMES:
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = max(4, 256 // elements)
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        halves = (random.standard_normal(count) * 0.02).astype(np.float16)
        halves[0] = np.float16(3e-6)  # subnormal
        halves[1] = -halves[1]
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(count, 2)
    if name in ("F32", "BF16"):  # finite
        blocks[:, -1] &= 0xBF
    values = gguf.quants.dequantize(blocks.reshape(-1), kind).astype(np.float32)
    assert np.isfinite(values).all()
    tensors[name + ".blocks"] = ("U8", blocks)
    tensors[name + ".values"] = ("F32", values.reshape(-1))

header, body = {}, b""
for name in sorted(tensors, key=lambda n: (tensors[n][0] != "F32", n)):
    dtype, array = tensors[name]
    data = array.tobytes()
    header[name] = {"dtype": dtype, "shape": list(array.shape),
                    "data_offsets": [len(body), len(body) + len(data)]}
    body += data
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
pathlib.Path(__file__).with_name("blocks.safetensors").write_bytes(
    struct.pack("<Q", len(text)) + text + body)
