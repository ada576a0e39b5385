#!/usr/bin/env python3
"""graft's CPU kernels beside those of its peers: the same shapes, in alternating rounds.

    python bench/peers/cpu_kernels.py build/release/bin/graft [--rows 1 8 32] [--rounds 7] [--threads 1]

Needs torch in the environment it runs in, and bitsandbytes and gptqmodel, or other --peers. Weights rotate through more memory than
four times the last-level cache. With one thread the time is that of the core, with more it is what
passes. Each round takes the best of a few calls of everything; the table shows the median over the
rounds of time(peer) / time(graft), for the graft kernel that a user would get in the peer's place.
"""

import argparse
import copy
import json
import statistics
import subprocess
import time

import torch

SHAPES = [(14336, 4096)]
PLACES = {"torch bf16": "nf4", "bitsandbytes nf4": "nf4", "bitsandbytes int8": "int8",
          "aten int4 g128": "int4-a15",
          "gptqmodel int4 g128": "int4-a15", "aten int8": "int8-a15"}


def cache_bytes():
    try:
        text = open("/sys/devices/system/cpu/cpu0/cache/index3/size").read().strip()
        return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
    except OSError:
        return 32 << 20


def copies_for(size):
    return max(2, int(4.5 * cache_bytes() / size) + 1)


def torch_bf16(n, k):
    layers = [torch.randn(n, k).bfloat16() for _ in range(copies_for(2 * n * k))]
    return [lambda x, w=w: torch.nn.functional.linear(x, w) for w in layers]


def bitsandbytes_nf4(n, k):
    import bitsandbytes as bnb

    first = bnb.nn.Linear4bit(k, n, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    first.weight = bnb.nn.Params4bit(torch.randn(n, k).bfloat16() * 0.02, requires_grad=False,
                                     quant_type="nf4")
    first = first.to("cpu").eval()
    with torch.inference_mode():
        first(torch.randn(1, k).bfloat16())  # packs itself for the CPU
    return [first] + [copy.deepcopy(first) for _ in range(copies_for(n * k // 2) - 1)]


def bitsandbytes_int8(n, k):
    import bitsandbytes as bnb

    first = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False)
    first.weight = bnb.nn.Int8Params(torch.randn(n, k).half() * 0.02, has_fp16_weights=False,
                                     requires_grad=False)
    first = first.to("cpu").eval()
    with torch.inference_mode():
        first(torch.randn(1, k).bfloat16())
    return [first] + [copy.deepcopy(first) for _ in range(copies_for(n * k) - 1)]


def aten_int4(n, k):
    codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(k // 128, n, 2).bfloat16()
    weights = [packed.clone() for _ in range(copies_for(n * k // 2))]
    return [lambda x, w=w: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w, 128, scales)
            for w in weights]


def gptqmodel_int4(n, k):
    from gptqmodel.nn_modules.qlinear.torch_cpu_avx512 import TorchCpuAvx512Linear as Layer

    available, error = Layer.validate_once()
    if not available:
        raise error
    codes = torch.randint(-2**31, 2**31, (k // 8, n), dtype=torch.int64).int()
    zeros = torch.full((k // 128, n // 8), 0x77777777, dtype=torch.int32)
    packed, zeros = Layer.pack_gptq_int4_kernel(codes, zeros, torch.empty(0, dtype=torch.int32),
                                                n, k)
    scales = torch.rand(k // 128, n)
    multiply = Layer.gemm_int4_qzero_group_scaled_cpu_kernel
    weights = [packed.clone() for _ in range(copies_for(n * k // 2))]
    return [lambda x, w=w: multiply(x, w, zeros, scales, 128, None) for w in weights]


def aten_int8(n, k):
    scales = torch.rand(n).bfloat16()
    weights = [torch.randint(-127, 127, (n, k), dtype=torch.int8)
               for _ in range(copies_for(n * k))]
    return [lambda x, w=w: torch.ops.aten._weight_int8pack_mm(x, w, scales) for w in weights]


PEERS = {"torch bf16": torch_bf16, "bitsandbytes nf4": bitsandbytes_nf4,
         "bitsandbytes int8": bitsandbytes_int8,
         "aten int4 g128": aten_int4, "gptqmodel int4 g128": gptqmodel_int4,
         "aten int8": aten_int8}


def best_call(layers, x, clock, calls):
    best = float("inf")
    with torch.inference_mode():
        for _ in range(calls):
            layer = layers.pop(0)
            layers.append(layer)
            begin = clock()
            layer(x)
            best = min(best, clock() - begin)
    return best


def graft_times(program, rows, threads, shape):
    out = subprocess.run([program, "--threads", str(threads), "--json", "bench", "kernels",
                          "--quick", "--rounds", "5", "--rows", *map(str, rows), "--kernel",
                          *sorted(set(PLACES.values()))],
                         check=True, capture_output=True, text=True)
    times = {}
    for row in json.loads(out.stdout)["rows"]:
        if row["threads"] == threads and (row["n"], row["k"]) == shape:
            times[row["kernel"], row["m"]] = row["seconds"]
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    for shape in SHAPES:
        ratios, ours, theirs = {}, {}, {}
        for _ in range(given.rounds):
            graft = graft_times(given.program, given.rows, given.threads, shape)
            for peer in given.peers:
                layers = PEERS[peer](*shape)
                for m in given.rows:
                    x = torch.randn(m, shape[1]).bfloat16()
                    took = best_call(layers, x, clock, 5 if m > 8 else 9)
                    mine = graft[PLACES[peer], m]
                    ratios.setdefault((peer, m), []).append(took / mine)
                    theirs.setdefault((peer, m), []).append(took)
                    ours.setdefault((peer, m), []).append(mine)
                del layers
        print(f"n {shape[0]}, k {shape[1]}, threads {given.threads}, "
              f"median of {given.rounds} rounds")
        for (peer, m), values in ratios.items():
            print(f"  m {m:<4} {peer:<18} {statistics.median(theirs[peer, m]) * 1e3:9.3f} ms   "
                  f"graft {PLACES[peer]:<9} {statistics.median(ours[peer, m]) * 1e3:9.3f} ms   "
                  f"graft is {statistics.median(values):5.2f} x as fast")


if __name__ == "__main__":
    main()
