"""Folders that graft wrote, loaded by GPTQModel: check_gptq.py GRAFT GOLDEN.

Each golden folder goes through `graft convert` into the other zero-point format (and one stays in its
own). Then Transformers + optimum + GPTQModel load those with one width everywhere, GPTQModel alone
those with 3 bits and per-module rules, and their float32 logits are compared with graft's.

The folders are labelled float16 for it: in a bfloat16 model graft rounds scales to bfloat16, as GPTQModel
does when it runs one in its own dtype, but not when it is asked for float32 as here.
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

TOLERANCE = 1e-3
TRANSFORMERS = ["quant/gptq-w4-g32", "quant/gptq-w4-g32-v2", "quant/gptq-w4-g32-act",
                "quant/gptq-w8-gall-act", "vectors/tiny_llama_gptq8_v1"]
GPTQMODEL = ["quant/gptq-w4-dynamic", "quant/gptq-w3-g32"]


def graft_logits(graft, folder, ids, out):
    save_file({"input_ids": ids}, out / "ids.safetensors")
    subprocess.run([graft, "-q", "forward", folder, "--dtype", "float32", "--input",
                    out / "ids.safetensors", "--output", out / "logits.safetensors"], check=True)
    return load_file(out / "logits.safetensors")["logits"]


def by_transformers(folder):
    from transformers import AutoModelForCausalLM, GPTQConfig

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu",
        quantization_config=GPTQConfig(bits=4, backend="torch"))


def by_gptqmodel(folder):
    from gptqmodel import BACKEND, GPTQModel

    for file in (golden / "tokenizer/smollm").glob("tokenizer*"):  # it wants one
        shutil.copy(file, folder)
    # It loads in half precision only. The model then computes in float32, with weights in the dtype of
    # their scales as in the file.
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu",
                           dtype=torch.float16).model.float()
    for module in model.modules():
        if hasattr(module, "qweight"):
            module.scales = module.scales.half()
    return model


def check(graft, folder, load, out):
    ids = torch.arange(24).reshape(2, 12) * 5 % 60
    model = load(folder).eval()
    with torch.no_grad():
        theirs = model(ids).logits.float()
    worst = (graft_logits(graft, folder, ids, out) - theirs).abs().max().item()
    print(f"{folder.name} ({load.__name__}): largest difference {worst:.2e}", flush=True)
    return worst <= TOLERANCE


graft, golden = sys.argv[1], pathlib.Path(sys.argv[2])
results = []
with tempfile.TemporaryDirectory() as temporary:
    out = pathlib.Path(temporary)
    for load, names in ((by_transformers, TRANSFORMERS), (by_gptqmodel, GPTQMODEL)):
        for name in names:
            for form in ("gptq", "gptq_v2"):
                folder = out / f"{pathlib.Path(name).name}-as-{form}"
                subprocess.run([graft, "-q", "convert", golden / name, folder, "--to", form],
                               check=True, stdout=subprocess.DEVNULL)
                config = json.loads((folder / "config.json").read_text())
                config["dtype"] = "float16"
                (folder / "config.json").write_text(json.dumps(config))
                results.append(check(graft, folder, load, out))
sys.exit(0 if all(results) else "the programs disagree")
