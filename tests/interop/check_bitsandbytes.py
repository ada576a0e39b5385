"""Folders that graft wrote, loaded by Transformers + bitsandbytes on the CPU:
check_bitsandbytes.py GRAFT FOLDER...

Five fixed prompts, teacher-forced, both sides in float32. The top token must be equal wherever the
margin between the two best logits exceeds 1e-3. Judged are the weights as the peer dequantizes them
(its `dequantize()`), against graft's forward, and for 4-bit folders that were quantized from float32 also the
peer's own forward: for others it skips the rounding to the dtype that the file records. The peer's own
LLM.int8 forward is printed only: one activation that rounds the other way moves logits by more than
any margin.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import bitsandbytes
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "What is the capital of France?",
    "In the beginning God created the heaven and the earth.",
    "def fibonacci(n):\n    return",
    "Lawyer, n. One skilled in circumvention of the",
    "1, 1, 2, 3, 5, 8, 13, 21,",
]


def graft_logits(graft, folder, ids, out, *options):
    save_file({"input_ids": ids}, out / "ids.safetensors")
    subprocess.run([graft, "-q", "forward", folder, "--dtype", "float32", *options, "--input",
                    out / "ids.safetensors", "--output", out / "logits.safetensors"], check=True)
    return load_file(out / "logits.safetensors")["logits"]


def compare(name, peer, tokenizer, ours_of):
    worst, positions, unequal = 0.0, 0, 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            theirs = peer(ids).logits.float()
        ours = ours_of(ids)
        worst = max(worst, (ours - theirs).abs().max().item())
        top = theirs.topk(2).values
        sure = top[..., 0] - top[..., 1] > 1e-3
        unequal += ((ours.argmax(-1) != theirs.argmax(-1)) & sure).sum().item()
        positions += sure.sum().item()
    print(f"{name}: {positions} positions, top token differs at {unequal}, "
          f"largest difference of a logit {worst:.2e}", flush=True)
    return unequal == 0


def load(folder):
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    for module in peer.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = torch.float32
    for parameter in peer.parameters():  # from_pretrained ignores dtype for what is not quantized
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return peer


def check(graft, folder, out):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    eight = config["quantization_config"]["load_in_8bit"]
    own = ("--int8-forward", "dequant") if eight else ()
    # In training mode a packed kernel that multiplies in bfloat16 stays off.
    peer = load(folder).train(not eight)
    forward = compare(f"{folder}, own forward", peer, tokenizer,
                      lambda ids: graft_logits(graft, folder, ids, out))
    dense = load(folder).dequantize().float().eval()
    weights = compare(f"{folder}, dequantized by the peer", dense, tokenizer,
                      lambda ids: graft_logits(graft, folder, ids, out, *own))
    return weights and (forward or eight or config["dtype"] != "float32")


with tempfile.TemporaryDirectory() as temporary:
    results = [check(sys.argv[1], folder, pathlib.Path(temporary)) for folder in sys.argv[2:]]
sys.exit(0 if all(results) else "the programs disagree")
