"""graft quantize writes where it is full or read-only: check_file_systems.py GRAFT GOLDEN.

They are made for the test, in memory and in a mount namespace of its own. Exits with 77 where that
is not allowed.
"""
import collections
import contextlib
import itertools
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

graft, golden = sys.argv[1], pathlib.Path(sys.argv[2])
if "inside" not in sys.argv[3:]:
    # A user who is not root becomes it in a namespace of his own, where the system lets him.
    namespace = ["unshare", "--mount"]
    namespace += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", "/mnt"],
                      stderr=subprocess.DEVNULL).returncode:
        print("skipped: mounting is not allowed")
        sys.exit(77)
    os.execvp("unshare", [*namespace, sys.executable, *sys.argv, "inside"])

environment = {**os.environ, "HF_HOME": "/nowhere"}
environment.pop("GRAFT_PLUGIN_PATH", None)
model = golden / "vectors/tiny_llama_dense_fp16"
methods = {"nf4": ["--method", "bitsandbytes"],
           "gptq": ["--method", "gptq", "--group-size", "32"]}
# The least of a limit of a file system, and the steps until it is enough.
limits = {"size": (4 << 10, 4 << 10), "nr_inodes": (3, 1)}
enough = "size=16m,nr_inodes=1000"
FORMER = {"config.json": b"{}"}


def write_ids(path, shape):
    ids = [index * 37 % 64 for index in range(shape[0] * shape[1])]
    data = struct.pack(f"<{len(ids)}q", *ids)
    text = json.dumps({"input_ids": {"dtype": "I64", "shape": shape,
                                     "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def run(*words):
    return subprocess.run([graft, "-q", *words], env=environment, capture_output=True, text=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def mounted(folder, options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def failed(ended, *reasons):
    """Which of the reasons was told."""
    told = [reason for reason in reasons if reason in ended.stderr]
    assert ended.returncode == 4 and told, (ended.returncode, ended.stderr)
    return told[0]


def quantized(folder, words, good, overwrites):
    """Why it ended, if it did for want of space; then it left what was there."""
    output, state = folder / "out", folder / ".out.graft-job"
    more = ["--overwrite"] if overwrites else []
    if overwrites:
        output.mkdir()
        (output / "config.json").write_bytes(FORMER["config.json"])
    ended = run("quantize", model, output, *words, *more)
    why = None
    if ended.returncode:
        why = failed(ended, "too little space", "No space left on device")
        assert (contents(output) == FORMER) if overwrites else not output.exists(), ended.stderr
        # Of a job that calibrates its state stays, to go on with.
        known = (["out"] if overwrites else []) + ([state.name] if state.exists() else [])
        left = sorted(path.name for path in folder.iterdir())
        assert left == sorted(known), (left, ended.stderr)
        remount(folder, enough)
        again = (run("resume", output, *more) if (state / "job.json").exists()
                 else run("quantize", model, output, *words, *more))
        assert again.returncode == 0, again.stderr
    assert contents(output) == good
    assert [path.name for path in folder.iterdir()] == ["out"]
    return why


def check_read_only(folder, words):
    (folder / "out").mkdir()
    (folder / "out" / "config.json").write_bytes(FORMER["config.json"])
    remount(folder, "ro")
    failed(run("quantize", model, folder / "out", *words, "--overwrite"), "Read-only file system")
    failed(run("quantize", model, folder / "new", *words), "Read-only file system")
    assert contents(folder / "out") == FORMER
    assert [path.name for path in folder.iterdir()] == ["out"]


with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
    temporary = pathlib.Path(name)
    folder = temporary / "mounted"
    folder.mkdir()
    ids = temporary / "ids.safetensors"
    write_ids(ids, [2, 40])
    methods["gptq"] += ["--calibration", ids]
    for method, words in methods.items():
        words = [*words, "--shard-bytes", "50000"]
        whole = run("quantize", model, temporary / method, *words)
        assert whole.returncode == 0, whole.stderr
        good = contents(temporary / method)
        for overwrites, (limit, (least, step)) in itertools.product((False, True), limits.items()):
            counts = collections.Counter()
            for value in itertools.count(least, step):
                with mounted(folder, f"{limit}={value}"):
                    why = quantized(folder, words, good, overwrites)
                if not why:
                    break
                counts[why] += 1
            assert counts["No space left on device"], (limit, counts)
            print(f"{method}{' over a former output' if overwrites else ''}, {limit}:"
                  f" enough with {value}, before it {dict(counts)}", flush=True)
        with mounted(folder, enough):
            check_read_only(folder, words)
