"""Folders that graft quantized, loaded by the peers: check_quantized.py GRAFT FOLDER.

FOLDER is a dense one of tests/golden whose in_features are multiples of 64: of others the kernel of
bitsandbytes for CPUs with AVX-512 dequantizes nonsense. Logits are compared with graft's float32
ones. GPTQ folders are loaded by Transformers with optimum and by GPTQModel, but for those with bits
of their own for modules, which Transformers does not know; AWQ folders by both, 4-bit folders of
bitsandbytes by Transformers.
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
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

TOLERANCE = 1e-3
TOLERANCE_HALF = 5e-3  # of the largest logit, where the peer multiplies in half precision
graft, dense = sys.argv[1], pathlib.Path(sys.argv[2])
vocabulary = json.loads((dense / "config.json").read_text())["vocab_size"]


def by_transformers_gptq(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu",
        quantization_config=GPTQConfig(bits=4, backend="torch"))


def by_transformers_awq(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, device_map="cpu",
        quantization_config=AwqConfig(backend="torch_awq"))


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
AWQ = ["--method", "awq", "--group-size", "32"]
BNB = ["--method", "bitsandbytes"]
POLISH = ["--polish", "50", "--samples", "128"]
GPTQ_READERS = [by_transformers_gptq, by_gptqmodel]
AWQ_READERS = [by_transformers_awq, by_gptqmodel]
KEEP = '{class: Linear, methods: "*", match: "*.0.self_attn.v_proj", keep: "by a rule"}'
EIGHT = ('{class: Linear, methods: [gptq], match: "*.down_proj", '
         'options: {bits: 8, group_size: 64}}')
DOUBLE = ('{class: Linear, methods: [bitsandbytes], match: "*.down_proj", '
          'options: {bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: true}}')
MOE = "qwen3_moe"  # Transformers has experts in one piece, which neither method quantizes there
CASES = {  # arguments, readers, a rule of the registry, a model beside FOLDER
    "gptq 4 bits": (GPTQ, GPTQ_READERS),
    "gptq v2": ([*GPTQ, "--format", "gptq_v2"], GPTQ_READERS),
    "gptq asym": ([*GPTQ, "--asym"], GPTQ_READERS),
    "gptq asym, v1": ([*GPTQ, "--asym", "--format", "gptq"], [by_transformers_gptq]),
    "gptq act-order": ([*GPTQ, "--desc-act"], GPTQ_READERS),
    "gptq 8 bits": ([*GPTQ, "--bits", "8"], GPTQ_READERS),
    "gptq, bits for modules": ([*GPTQ, "--bits", "auto", "--target-bpw", "4.4"], [by_gptqmodel]),
    "gptq, polished": ([*GPTQ, *POLISH], GPTQ_READERS),
    "gptq, modules skipped": ([*GPTQ, "--skip", "o_proj"], GPTQ_READERS),
    "gptq, a layer skipped": ([*GPTQ, "--skip", "model.layers.1"], GPTQ_READERS),
    "gptq, a module kept": (GPTQ, GPTQ_READERS, KEEP),
    "gptq, options for modules": (GPTQ, [by_gptqmodel], EIGHT),
    "gptq of experts": (GPTQ, [by_gptqmodel], "", MOE),
    "gptq of experts, a layer skipped": ([*GPTQ, "--skip", "model.layers.1"], [by_gptqmodel], "", MOE),
    "awq of experts, a layer skipped": ([*AWQ, "--skip", "model.layers.1"], [by_gptqmodel], "", MOE),
    "awq": (AWQ, AWQ_READERS),
    "awq, polished": ([*AWQ, *POLISH], AWQ_READERS),
    "awq, modules skipped": ([*AWQ, "--skip", "up_proj"], AWQ_READERS),
    "awq, a layer skipped": ([*AWQ, "--skip", "model.layers.1"], AWQ_READERS),
    "awq, a module kept": (AWQ, AWQ_READERS, KEEP),
    "nf4": (BNB, [by_transformers]),
    "nf4, modules skipped": ([*BNB, "--skip", "o_proj"], [by_transformers]),
    "nf4, a layer skipped": ([*BNB, "--skip", "model.layers.1"], [by_transformers]),
    "nf4, a module kept": (BNB, [by_transformers], KEEP),
    "nf4, options for modules": (BNB, [by_transformers], DOUBLE),
    "fp4, double quantization": ([*BNB, "--quant-type", "fp4", "--double-quant"],
                                 [by_transformers]),
    "int8, modules skipped": ([*BNB, "--quant-type", "int8", "--skip", "o_proj"],
                              [by_transformers]),
}

failed = 0
with tempfile.TemporaryDirectory() as name:
    temporary = pathlib.Path(name)
    for model in (dense.name, MOE):
        shutil.copytree(dense.parent / model, temporary / model)
        for file in (dense.parents[1] / "tokenizer/smollm").glob("tokenizer*"):
            shutil.copy(file, temporary / model)  # GPTQModel wants one
    torch.manual_seed(1)
    ids = torch.randint(vocabulary, (128, 128))
    save_file({"input_ids": ids}, temporary / "text.safetensors")
    save_file({"input_ids": ids[:2, :12].clone()}, temporary / "ids.safetensors")
    for case, (arguments, readers, *more) in CASES.items():
        rule, model = (*more, *("", dense.name)[len(more):])
        folder = temporary / "quantized"
        registry = temporary / "rules.yaml"
        registry.write_text(f"graft: 1\npatches: [{rule}]\n")
        given = [f"--registry={registry}"] if rule else []
        int8 = "int8" in arguments
        calibration = [] if int8 else ["--calibration", temporary / "text.safetensors"]
        subprocess.run([graft, "-q", *given, "quantize", temporary / model, folder,
                        *calibration, *arguments], check=True)
        subprocess.run([graft, "-q", "forward", folder, "--dtype", "float32", "--input",
                        temporary / "ids.safetensors", "--output", temporary / "logits.safetensors",
                        *(["--int8-forward", "dequant"] if int8 else [])], check=True)
        ours = load_file(temporary / "logits.safetensors")["logits"]
        if "--polish" in arguments:
            report = json.loads((folder / "graft-report.json").read_text())
            assert any(layer["changed"] > 0 for layer in report["polished"]), report["polished"]
        for load in readers:
            try:
                with torch.no_grad():
                    theirs = load(folder).eval()(ids[:2, :12]).logits.float()
            except Exception as error:  # the others go on
                print(f"{case} ({load.__name__}): FAILED: {type(error).__name__}: {error}", flush=True)
                failed += 1
                continue
            worst = (ours - theirs).abs().max().item()
            half = load in (by_gptqmodel, by_transformers_awq)
            most = TOLERANCE_HALF * ours.abs().max() if half else TOLERANCE
            failed += not worst <= most
            print(f"{case} ({load.__name__}): largest difference {worst:.2e} of "
                  f"{ours.abs().max():.2f}{'' if worst <= most else ' FAILED'}", flush=True)
        shutil.rmtree(folder)
sys.exit(f"{failed} comparisons failed" if failed else 0)
