"""A dense folder quantized by graft and by Transformers + bitsandbytes on the CPU: every tensor of what
both save is equal, byte for byte.

check_saved_bytes.py GRAFT FOLDER"""
import logging
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

logging.disable(logging.WARNING)
graft, folder = sys.argv[1], pathlib.Path(sys.argv[2])

settings = {
    "nf4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, ["--quant-type", "nf4"]),
    "nf4, double quantization": (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        ["--quant-type", "nf4", "--double-quant"]),
    "fp4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, ["--quant-type", "fp4"]),
    "int8": ({"load_in_8bit": True}, ["--quant-type", "int8"]),
}


def tensors(of):
    with safe_open(of / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and \
        a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8))


failed = False
for name, (config, options) in settings.items():
    with tempfile.TemporaryDirectory() as temporary:
        theirs, ours = pathlib.Path(temporary) / "theirs", pathlib.Path(temporary) / "ours"
        AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**config), device_map="cpu",
            dtype="auto").save_pretrained(theirs)
        subprocess.run([graft, "-q", "quantize", folder, ours, "--method", "bitsandbytes", *options],
                       check=True, stdout=subprocess.DEVNULL)
        expected, found = tensors(theirs), tensors(ours)
        wrong = sorted(set(expected) ^ set(found)) + [
            key for key in sorted(set(expected) & set(found)) if not same(expected[key], found[key])]
        print(f"{name}: {len(expected)} tensors, {len(wrong)} differ", *wrong[:5], flush=True)
        failed |= bool(wrong) or not expected
sys.exit(failed)
