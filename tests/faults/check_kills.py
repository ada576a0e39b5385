"""graft quantize is ended by signals at random moments: check_kills.py GRAFT GOLDEN KILLS [resume].

With "resume" the jobs calibrate, and `graft resume` goes on with what is left of them.
"""
import hashlib
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy

graft, golden, kills = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
random.seed(10)
environment = {**os.environ, "HF_HOME": "/nowhere"}
environment.pop("GRAFT_PLUGIN_PATH", None)


def make_model(folder):
    """A llama of 30 MB with random weights, so that quantizing and saving take a while."""
    config = json.loads((golden / "vectors/tiny_llama_dense_fp16/config.json").read_text())
    hidden, inner, layers, vocabulary = 512, 1024, 6, 1024
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
               "head_dim": hidden // 4, "vocab_size": vocabulary, "attention_bias": False}
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,),
              "lm_head.weight": (vocabulary, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm.weight": (hidden,),
                   at + "post_attention_layernorm.weight": (hidden,),
                   at + "self_attn.q_proj.weight": (hidden, hidden),
                   at + "self_attn.k_proj.weight": (hidden // 2, hidden),
                   at + "self_attn.v_proj.weight": (hidden // 2, hidden),
                   at + "self_attn.o_proj.weight": (hidden, hidden),
                   at + "mlp.gate_proj.weight": (inner, hidden),
                   at + "mlp.up_proj.weight": (inner, hidden),
                   at + "mlp.down_proj.weight": (hidden, inner)}
    generator = numpy.random.default_rng(10)
    header, data = {}, b""
    for name, shape in shapes.items():
        values = generator.standard_normal(shape, numpy.float32).astype(numpy.float16).tobytes()
        header[name] = {"dtype": "F16", "shape": shape,
                        "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps(config))


def contents(folder):
    """Names and digests of the files of an output."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def write_ids(path, shape):
    ids = numpy.random.default_rng(11).integers(0, 1024, shape, numpy.int64)
    text = json.dumps({"input_ids": {"dtype": "I64", "shape": shape,
                                     "data_offsets": [0, ids.nbytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + ids.tobytes())


def check_resume(temporary):
    """Kills jobs that calibrate, some of them twice, and compares what resuming makes of them."""
    model, ids = temporary / "model", temporary / "ids.safetensors"
    make_model(model)
    write_ids(ids, [8, 64])
    output = temporary / "outputs" / "out"
    output.parent.mkdir()
    state = output.parent / f".{output.name}.graft-job"
    methods = (["gptq", "--group-size", "64"], ["gptq", "--group-size", "64", "--asym", "--desc-act"],
               ["awq", "--group-size", "64"], ["bitsandbytes", "--double-quant"])

    def start(*words):
        return subprocess.Popen([graft, "-q", *words, "--threads", str(random.choice([1, 2]))],
                                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def ends(process):
        errors = process.communicate()[1].decode()
        assert process.returncode == 0, errors

    whole = {}
    for number, method in enumerate(methods):
        words = ["--calibration", ids, "--shard-bytes", "3000000", "--method", *method]
        begin = time.monotonic()
        ends(start("quantize", model, temporary / f"whole{number}", *words))
        whole[number] = (words, contents(temporary / f"whole{number}"), time.monotonic() - begin)
        assert len(whole[number][1]) > 4, whole[number]
    counts, killed = {}, 0
    while killed < kills:
        words, good, last = whole[killed % len(methods)]
        subprocess.run(["rm", "-rf", output, state], check=True)
        process, twice = start("quantize", model, output, *words), random.random() < 0.5
        for again in ([False, True] if twice else [False]):
            if again:
                process = start("resume", output)
            try:
                process.wait(random.uniform(0, last))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stderr.close()
            if not state.exists():
                break
        if output.exists():
            assert contents(output) == good, (killed, words)
        if not process.returncode:
            continue
        killed += 1
        records = len(list(state.glob("group-*.safetensors")))
        # Between the output's name and the end of the state there is a moment.
        if not (state / "job.json").exists():
            what = "before there was a state" if not output.exists() else "when all was done"
            if not output.exists():
                ends(start("quantize", model, output, *words))
        else:
            what = "with a state" if records else "with a state without a group"
            ends(start("resume", output, *(["--overwrite"] if output.exists() else [])))
        counts[what, twice] = counts.get((what, twice), 0) + 1
        print(f"{words[-3:]} killed {'twice ' if twice else ''}{what}: {records} groups", flush=True)
        assert contents(output) == good, (killed, words)
        assert [path.name for path in output.parent.iterdir()] == [output.name]
    for key, count in counts.items():
        print(count, key)


def quantize(model, output, *more):
    return subprocess.Popen([graft, "-q", "quantize", model, output, "--method", "bitsandbytes",
                             "--shard-bytes", "3000000", *more],
                            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
    temporary = pathlib.Path(name)
    if sys.argv[4:] == ["resume"]:
        check_resume(temporary)
        sys.exit()
    model, output = temporary / "model", temporary / "outputs" / "out"
    make_model(model)
    output.parent.mkdir()
    assert quantize(model, temporary / "good").wait() == 0
    good = contents(temporary / "good")
    assert len(good) > 4, good
    partial = output.parent / f".{output.name}.graft-partial"
    lock = output.parent / f".{output.name}.graft-lock"
    former = {"config.json": hashlib.sha256(b"{}").hexdigest()}

    def whole_run(*more):
        """How long after the start the first file appears, and the end."""
        start = time.monotonic()
        process = quantize(model, output, *more)
        seen = None
        while process.poll() is None:
            time.sleep(0.0005)
            if seen is None and lock.exists():
                seen = time.monotonic() - start
        assert process.returncode == 0, process.stderr.read()
        assert contents(output) == good
        return seen, time.monotonic() - start

    # Until so many have been killed, and a quarter as many interrupted; some end before that.
    counts, ended_by, i = {}, {signal.SIGKILL: 0, signal.SIGINT: 0, signal.SIGTERM: 0}, -1
    while sum(ended_by.values()) < kills + kills // 4:
        i += 1
        what = (signal.SIGKILL if ended_by[signal.SIGKILL] < kills
                else random.choice([signal.SIGINT, signal.SIGTERM]))
        overwrites = i % 2 == 1
        if i % 25 == 0:
            # The machine may be busier or idler than before.
            first, last = whole_run("--overwrite")
        subprocess.run(["rm", "-rf", output], check=True)
        if overwrites:
            output.mkdir()
            (output / "config.json").write_bytes(b"{}")
        process = quantize(model, output, *(["--overwrite"] if overwrites else []))
        # A tenth of the moments before anything was created, the rest up to the end.
        moment = (random.uniform(0, first) if random.random() < 0.1
                  else random.uniform(first, last))
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(what)
            process.wait()
        errors = process.stderr.read().decode()
        process.stderr.close()
        found = contents(output) if output.exists() else None
        state = ("complete" if found == good else "absent" if found is None
                 else "former" if overwrites and found == former else "PARTIAL")
        assert state != "PARTIAL", (i, what, found)
        assert not (state == "former" and process.returncode == 0), (i, what)
        # Between the two renames of an overwriting save the folder is absent; the next run brings
        # the former one back before it does anything else.
        if overwrites and state == "absent":
            assert (output.parent / f".{output.name}.graft-former").exists(), (i, what)
        if what != signal.SIGKILL and process.returncode != 0:
            # A signal before the program takes signals over ends it as signals do.
            assert process.returncode in (130, -what), (process.returncode, errors)
            if process.returncode == 130:
                assert not partial.exists() and not lock.exists(), (i, what, errors)
        ended = "by itself" if process.returncode == 0 else what.name
        ended_by[what] += process.returncode != 0
        counts[ended, state] = counts.get((ended, state), 0) + 1
        counts["partial folders left hidden"] = (counts.get("partial folders left hidden", 0)
                                                 + partial.exists())
        # The next run is not disturbed by what was left.
        if i % 5 == 0:
            again = quantize(model, output, "--overwrite")
            assert again.wait() == 0, again.stderr.read()
            assert contents(output) == good
            assert [path.name for path in output.parent.iterdir()] == [output.name]
    for key, count in counts.items():
        print(count, key)
