"""What checks of the program share; the arguments are GRAFT GOLDEN [TEST_PLUGINS]."""
import json
import os
import pathlib
import struct
import subprocess
import sys

graft, golden = sys.argv[1], pathlib.Path(sys.argv[2])
plugins = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
dense, nf4 = golden / "vectors/tiny_llama_dense_fp16", golden / "vectors/tiny_llama_bnb_nf4_dq"
environment = {**os.environ, "HF_HOME": "/nowhere"}
environment.pop("GRAFT_PLUGIN_PATH", None)
checks = []  # one for each that was kept


def run(*arguments, code=0, says=(), out=(), folder=None):
    """Runs graft, compares its exit code, and looks for texts on stderr and stdout."""
    done = subprocess.run([graft, *map(str, arguments)], capture_output=True,
                          encoding="utf-8", errors="surrogateescape",
                          env=environment, timeout=300, cwd=folder)
    print(ascii(" ".join(["graft", *map(str, arguments)])), flush=True)
    what = ascii(f"graft {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}")
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}: {what}"
    for text in (says,) if isinstance(says, str) else says:
        assert text in done.stderr, f"stderr lacks {text!r}: {what}"
    for text in (out,) if isinstance(out, str) else out:
        assert text in done.stdout, f"stdout lacks {text!r}: {what}"
    if code:
        assert "terminate called" not in done.stderr and "Traceback" not in done.stderr, what
    checks.append(arguments)
    return done


def as_json(*arguments, **expectations):
    """One JSON document on stdout and nothing else there."""
    asked = arguments if "--json" in arguments else (*arguments, "--json")
    return json.loads(run(*asked, **expectations).stdout.encode())  # strict: that is UTF-8


def write_tensors(path, tensors, padding=b""):
    """A safetensors file of {name: (dtype, shape, bytes)}, with this padding of its header."""
    header, data = {}, b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode() + padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_tensors(path):
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"],
                   content[start + entry["data_offsets"][0]:start + entry["data_offsets"][1]])
            for name, entry in header.items()}
