#!/usr/bin/env python3
"""bitsandbytes quantizing to 4 bits on one CPU thread: what bench/four_bit.cpp is compared with."""

import time

import bitsandbytes.functional as functional
import torch

torch.set_num_threads(1)
for dtype in (torch.float32, torch.bfloat16):
    weight = (torch.randn(4096, 4096) * 0.02).to(dtype)
    for kind in ("nf4", "fp4"):
        best = float("inf")
        for _ in range(3):
            begin = time.thread_time()
            functional.quantize_4bit(weight, quant_type=kind)
            best = min(best, time.thread_time() - begin)
        print(f"bitsandbytes {kind} from {dtype} {weight.numel() / best / 1e6:6.1f} M weights/s")
