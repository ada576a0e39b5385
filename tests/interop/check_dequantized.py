"""A folder that graft quantized and dequantized again: Transformers reads it as any dense one,
nothing missing or unexpected, and computes the same logits.

check_dequantized.py GRAFT GOLDEN"""
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

graft, golden = sys.argv[1], pathlib.Path(sys.argv[2])
ids = torch.arange(8)[None]


def run(*arguments):
    subprocess.run([graft, "--quiet", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


for source in sorted(path.parent for path in golden.glob("arch/*/config.json")):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run("quantize", source, folder / "q", "--method", "bitsandbytes")
        run("dequantize", folder / "q", folder / "d", "--dtype", "float32")
        kind = AutoModel if source.name == "bert" else AutoModelForCausalLM
        model, loaded = kind.from_pretrained(folder / "d", dtype=torch.float32,
                                             attn_implementation="eager", output_loading_info=True)
        assert not loaded["missing_keys"] and not loaded["unexpected_keys"], loaded
        with torch.no_grad():
            theirs = model.eval()(ids)[0]
        save_file({"input_ids": ids}, folder / "ids.safetensors")
        run("forward", folder / "d", "--input", folder / "ids.safetensors",
            "--output", folder / "out.safetensors")
        (ours,) = load_file(folder / "out.safetensors").values()
        difference = float((theirs - ours).abs().max() / theirs.abs().max())
        print(f"{source.name}: largest difference {difference:.2e} of the largest")
        assert difference < 1e-5
