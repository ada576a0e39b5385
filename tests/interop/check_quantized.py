"""Folders that graft quantized with calibration text, loaded by the peers: check_quantized.py GRAFT FOLDER.

FOLDER is a dense one of tests/golden whose in_features are multiples of 64: of others the kernel of
bitsandbytes for CPUs with AVX-512 dequantizes nonsense. GPTQ folders are loaded by Transformers with
optimum and GPTQModel, AWQ folders and those with bits for modules by GPTQModel, 4-bit folders of
bitsandbytes by Transformers; logits are compared with graft's float32 ones.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling the peer's kernel takes minutes

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTQConfig

TOLERANCE = 1e-3
TOLERANCE_HALF = 5e-3  # of the largest logit, where the peer multiplies in half precision
graft, dense = sys.argv[1], pathlib.Path(sys.argv[2])
vocabulary = json.loads((dense / "config.json").read_text())["vocab_size"]


def by_transformers_gptq(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu",
        quantization_config=GPTQConfig(bits=4, backend="torch"))


def by_gptqmodel(folder):
    from gptqmodel import BACKEND, GPTQModel

    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    backend = BACKEND.TORCH_AWQ if settings["quant_method"] == "awq" else BACKEND.TORCH
    return GPTQModel.load(str(folder), backend=backend, device="cpu", dtype=torch.float16).model


def by_transformers(folder):
    """With the weights as bitsandbytes dequantizes them: its own product on a CPU rounds to bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    return model.dequantize()


GPTQ = ["--method", "gptq", "--group-size", "32"]
CASES = {
    "gptq 4 bits": (GPTQ, by_transformers_gptq),
    "gptq v2": ([*GPTQ, "--format", "gptq_v2"], by_transformers_gptq),
    "gptq asym": ([*GPTQ, "--asym"], by_transformers_gptq),
    "gptq act-order": ([*GPTQ, "--desc-act"], by_transformers_gptq),
    "gptq 8 bits": ([*GPTQ, "--bits", "8"], by_transformers_gptq),
    "gptq, bits for modules": ([*GPTQ, "--bits", "auto", "--target-bpw", "4.4"], by_gptqmodel),
    "awq": (["--method", "awq", "--group-size", "32"], by_gptqmodel),
    "gptq, polished": ([*GPTQ, "--polish", "20"], by_transformers_gptq),
    "awq, polished": (["--method", "awq", "--group-size", "32", "--polish", "20"], by_gptqmodel),
    "nf4": (["--method", "bitsandbytes"], by_transformers),
    "fp4, double quantization": (["--method", "bitsandbytes", "--quant-type", "fp4",
                                  "--double-quant"], by_transformers),
}

failed = 0
with tempfile.TemporaryDirectory() as name:
    temporary = pathlib.Path(name)
    source = temporary / "dense"
    shutil.copytree(dense, source)
    for file in (dense.parents[1] / "tokenizer/smollm").glob("tokenizer*"):  # GPTQModel wants one
        shutil.copy(file, source)
    torch.manual_seed(1)
    ids = torch.randint(vocabulary, (64, 48))
    save_file({"input_ids": ids}, temporary / "text.safetensors")
    save_file({"input_ids": ids[:2, :12].clone()}, temporary / "ids.safetensors")
    for case, (arguments, load) in CASES.items():
        folder = temporary / "quantized"
        subprocess.run([graft, "-q", "quantize", source, folder, "--calibration",
                        temporary / "text.safetensors", *arguments], check=True)
        subprocess.run([graft, "-q", "forward", folder, "--dtype", "float32", "--input",
                        temporary / "ids.safetensors", "--output", temporary / "logits.safetensors"],
                       check=True)
        ours = load_file(temporary / "logits.safetensors")["logits"]
        with torch.no_grad():
            theirs = load(folder).eval()(ids[:2, :12]).logits.float()
        worst = (ours - theirs).abs().max().item()
        print(f"{case} ({load.__name__}): largest difference {worst:.2e} of {ours.abs().max():.2f}",
              flush=True)
        most = TOLERANCE_HALF * ours.abs().max() if load is by_gptqmodel else TOLERANCE
        failed += not worst <= most
        shutil.rmtree(folder)
sys.exit(f"{failed} comparisons failed" if failed else 0)
