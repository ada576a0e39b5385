"""How fast `graft verify` reads a checkpoint, beside `cat FILE > /dev/null`: verify.py GRAFT [GIGABYTES].

A dense model of random bfloat16 is written to a temporary folder. Both read it from the page cache, in turn,
and the best of nine rounds counts. graft's rate is that of its scan ("read_s": every byte is read and
looked at for NaN and infinity); the time of the whole process is shown beside that of one that does nothing, since
loading LibTorch takes longer than reading a gigabyte.
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 32000


def write_model(folder, gigabytes):
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN),
              "model.norm.weight": (HIDDEN,)}
    layer = {**{f"self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"},
             "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN), "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
             "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE), "input_layernorm.weight": (HIDDEN,),
             "post_attention_layernorm.weight": (HIDDEN,)}
    size = lambda shape: 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    of = lambda named: sum(map(size, named.values()))
    layers = max(1, round((gigabytes * 1e9 - of(shapes)) / of(layer)))
    shapes |= {f"model.layers.{i}.{n}": s for i in range(layers) for n, s in layer.items()}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
              "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": 16,
              "num_key_value_heads": 16, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 2048, "dtype": "bfloat16", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size(shape)]}
        offset += size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Exponents stay small: no byte pattern of these is NaN or infinity.
    noise = bytes(b & 0xBF if i % 2 else b for i, b in enumerate(os.urandom(1 << 20)))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for begin in range(0, offset, len(noise)):
            file.write(noise[: min(len(noise), offset - begin)])
    return offset


def timed(*command):
    start = time.perf_counter()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return time.perf_counter() - start, out


graft, gigabytes = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    total = write_model(folder, gigabytes)
    best = {"cat": 1e9, "scan": 1e9, "verify": 1e9, "start": 1e9}
    for _ in range(9):
        cat = ("sh", "-c", f"cat {folder / 'model.safetensors'} > /dev/null")
        best["cat"] = min(best["cat"], timed(*cat)[0])
        took, out = timed(graft, "-q", "--threads", "2", "--json", "verify", folder)
        best["verify"] = min(best["verify"], took)
        best["scan"] = min(best["scan"], json.loads(out)["read_s"])
        best["start"] = min(best["start"], timed(graft, "--version")[0])
    print(f"{total / 1e9:.2f} GB; cat {best['cat']:.3f} s, {total / best['cat'] / 1e9:.1f} GB/s; "
          f"graft's scan {best['scan']:.3f} s, {total / best['scan'] / 1e9:.1f} GB/s, "
          f"{best['cat'] / best['scan']:.2f} of cat; whole process {best['verify']:.3f} s, "
          f"of which {best['start']:.3f} s to start and end")
