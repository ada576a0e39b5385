"""Embeddings of all-MiniLM-L6-v2 by graft and by Transformers, mean-pooled and of length 1:
check_embeddings.py GRAFT MODEL TEXT CALIBRATION.

200 sentences of TEXT, float32. The dense model's must point where Transformers' do (cosine above 0.99999), those of
an NF4 folder that graft made with CALIBRATION above 0.98. Plain NF4, whose bytes are bitsandbytes' own, is
printed only.
"""
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModel, AutoTokenizer

graft, model, text, calibration = sys.argv[1:]


def sentences():
    parts = re.split(r"(?<=[.!?])\s+", pathlib.Path(text).read_text())
    found = [s for s in (re.sub(r"\s+", " ", part).strip() for part in parts) if 20 < len(s) < 400]
    random.Random(1).shuffle(found)
    return found[:200]


def by_transformers(lines):
    tokenizer, peer = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    rows = []
    with torch.no_grad():
        for line in lines:
            mean = peer(**tokenizer(line, return_tensors="pt")).last_hidden_state[0].mean(0)
            rows.append(mean / mean.norm())
    return torch.stack(rows)


def by_graft(folder, lines, temporary):
    (temporary / "lines.txt").write_text("\n".join(lines) + "\n")
    out = subprocess.run([graft, "-q", "embed", folder, "--dtype", "float32", "--text",
                          temporary / "lines.txt"], check=True, capture_output=True, text=True).stdout
    return torch.tensor([[float(x) for x in row.split()] for row in out.splitlines()])


def quantized(name, temporary, *options):
    subprocess.run([graft, "-q", "quantize", model, temporary / name, "--method", "bitsandbytes",
                    "--quant-type", "nf4", *options], check=True, stdout=subprocess.DEVNULL)
    return temporary / name


failed = False
with tempfile.TemporaryDirectory() as name:
    temporary, lines = pathlib.Path(name), sentences()
    expected = by_transformers(lines)
    calibrated = ("--calibration", calibration, "--seq-len", "32", "--samples", "512")
    for what, folder, least in (("dense", model, 0.99999),
                                ("NF4", quantized("nf4", temporary), None),
                                ("NF4, calibrated", quantized("fed", temporary, *calibrated), 0.98)):
        cosine = (by_graft(folder, lines, temporary) * expected).sum(1)
        print(f"{what}: worst {cosine.min():.7f}, mean {cosine.mean():.7f} of {len(lines)}", flush=True)
        failed |= least is not None and not cosine.min() > least
sys.exit(failed)
