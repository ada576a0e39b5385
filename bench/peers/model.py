#!/usr/bin/env python3
"""graft and its peers on one model: load time, prompt and decode rates, peak memory, in one table.

    python bench/peers/model.py \\
        --graft build/release/bin/graft models/SmolLM2-135M-Instruct-nf4 models/gptq \\
        --llama.cpp ENV/bin/python models/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --transformers ENV/bin/python models/SmolLM2-135M-Instruct \\
        --bitsandbytes ENV/bin/python models/SmolLM2-135M-Instruct-nf4 \\
        --gptqmodel ENV/bin/python models/gptq

Each peer is named with the Python of its own environment (llama-cpp-python; transformers,
accelerate and bitsandbytes; gptqmodel) and the models it runs. Every round starts one process after
another, so that all meet the same load; the best round counts. All measure the same: a prompt of 512
tokens after a short one, then 48 tokens decoded one by one after 64. Folders whose config says
"awq" run in GPTQModel's AWQ kernel, others in its AVX-512 GPTQ kernel.
"""

import argparse
import json
import os
import subprocess
import sys
import time

PROMPT, CONTEXT, DECODED = 512, 64, 48
PEERS = ["llama.cpp", "transformers", "bitsandbytes", "gptqmodel"]


def some_tokens(vocabulary, count):
    ids, last = [], 1
    for _ in range(count):
        last = (last * 7919 + 17) % vocabulary
        ids.append(last)
    return ids


def peak_rss():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def run_llamacpp(path, threads):
    from llama_cpp import Llama

    start = time.time()
    model = Llama(path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_batch=PROMPT,
                  verbose=False)
    load = time.time() - start

    def evaluate(ids):
        start = time.time()
        model.eval(ids)
        return time.time() - start

    vocabulary = model.n_vocab()
    evaluate(some_tokens(vocabulary, 8))
    best = [0, 0]
    for _ in range(2):
        model.reset()
        best[0] = max(best[0], PROMPT / evaluate(some_tokens(vocabulary, PROMPT)))
        model.reset()
        evaluate(some_tokens(vocabulary, CONTEXT))
        start = time.time()
        for token in some_tokens(vocabulary, DECODED):
            model.eval([token])
        best[1] = max(best[1], DECODED / (time.time() - start))
    return load, *best


def run_torch(kind, path, threads):
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    start = time.time()
    if kind == "gptqmodel":
        from gptqmodel import BACKEND, GPTQModel

        with open(os.path.join(path, "config.json")) as file:
            awq = json.load(file)["quantization_config"]["quant_method"] == "awq"
        backend = BACKEND.AWQ_TORCH_CPU_AVX512 if awq else BACKEND.GPTQ_TORCH_CPU_AVX512
        start = time.time()
        model = GPTQModel.load(path, device="cpu", backend=backend).model
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, device_map="cpu", dtype=torch.bfloat16)
    model.eval()
    load = time.time() - start
    vocabulary = model.config.vocab_size
    tensor = lambda count: torch.tensor([some_tokens(vocabulary, count)])
    best = [0, 0]
    with torch.inference_mode():
        model(input_ids=tensor(8))
        for _ in range(2):
            start = time.time()
            model(input_ids=tensor(PROMPT), logits_to_keep=1)
            best[0] = max(best[0], PROMPT / (time.time() - start))
            out = model(input_ids=tensor(CONTEXT), use_cache=True)
            start = time.time()
            for _ in range(DECODED):
                out = model(input_ids=out.logits[:, -1:].argmax(-1), use_cache=True,
                            past_key_values=out.past_key_values)
            best[1] = max(best[1], DECODED / (time.time() - start))
    return load, *best


def run_peer(kind, path, threads):
    rates = run_llamacpp(path, threads) if kind == "llama.cpp" else run_torch(kind, path, threads)
    keys = ["load_s", "prompt_tokens_per_s", "decode_tokens_per_s"]
    print("\n" + json.dumps(dict(zip(keys, rates), peak_rss_bytes=peak_rss())))


def measure(contender, threads):
    kind, program, path = contender
    if kind == "graft":
        command = [program, "--threads", str(threads), "--json", "bench", "model", path,
                   "--rounds", "1"]
    else:
        command = [program, __file__, "--peer", kind, path, "--threads", str(threads)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), CUDA_VISIBLE_DEVICES="",
                       GPTQMODEL_CPU_WORKERS=str(threads))
    out = subprocess.run(command, capture_output=True, text=True, env=environment)
    if out.returncode:
        sys.exit(f"{kind} {path}: {out.stderr[-2000:]}")
    text = out.stdout
    return json.loads(text if kind == "graft" else text.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--graft", nargs="+", metavar=("PROGRAM", "MODEL"))
    for peer in PEERS:
        parser.add_argument("--" + peer, nargs="+", metavar=("PYTHON", "MODEL"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args())
    if given["peer"]:
        return run_peer(*given["peer"], given["threads"])
    contenders = [(kind, given[kind][0], path) for kind in ["graft"] + PEERS if given[kind]
                  for path in given[kind][1:]]
    best = {}
    for _ in range(given["rounds"]):
        for contender in contenders:
            found = measure(contender, given["threads"])
            before = best.setdefault(contender, found)
            for key, value in found.items():
                lower = key == "load_s" or key.endswith("_bytes")
                before[key] = min(before[key], value) if lower else max(before[key], value)
    print(f"best of {given['rounds']} rounds, {given['threads']} threads")
    print(f"{'':<14} {'':<34} {'load s':>7} {'prompt':>8} {'decode':>8} {'peak MB':>8}")
    for (kind, _, path), rates in best.items():
        print(f"{kind:<14} {os.path.basename(path.rstrip('/')):<34} {rates['load_s']:7.2f} "
              f"{rates['prompt_tokens_per_s']:8.0f} {rates['decode_tokens_per_s']:8.1f} "
              f"{rates['peak_rss_bytes'] / 1e6:8.0f}")


if __name__ == "__main__":
    main()
