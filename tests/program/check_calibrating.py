"""Quantizing with calibration text, from the command line: check_calibrating.py GRAFT GOLDEN."""
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import tempfile

from calling_graft import as_json, checks, dense, environment, golden, graft, run, write_tensors

with tempfile.TemporaryDirectory() as name:
    temporary = pathlib.Path(name)

    # Calibration text, which some methods need and others do not take.
    text = temporary / "text"
    text.mkdir()
    (text / "short.txt").write_text("a")
    (text / "lines.jsonl").write_text('{"text": "one"}\n{"texts": "two"}\n')
    spoken = temporary / "spoken"
    shutil.copytree(dense, spoken)
    shutil.copy(golden / "tokenizer/smollm/tokenizer.json", spoken)
    gptq = ["--method", "gptq", "--group-size", "32"]
    ids = dense / "reference.safetensors"
    here = temporary / "o"
    run("quantize", dense, here, *gptq, code=2, says="tokenizer.json")
    run("quantize", spoken, here, *gptq, "--calibration", text / "none.txt", code=1,
        says="the file cannot be read")
    run("quantize", spoken, here, *gptq, "--calibration", text / "short.txt", code=1,
        says="the calibration text is too short: expected at least 8 tokens, better 16384, found 1")
    run("quantize", spoken, here, *gptq, "--calibration", text / "lines.jsonl", code=2,
        says=("line 2", "text"))
    run("quantize", dense, here, *gptq, "--calibration", dense / "model.safetensors", code=1,
        says="there is no tensor 'input_ids'")
    run("quantize", dense, here, "--method", "bitsandbytes", "--quant-type", "int8",
        "--calibration", ids, code=1, says="makes no use of calibration text")
    run("quantize", dense, here, *gptq, "--calibration", ids, "--damp", "2", code=1,
        says="'damp_percent'")
    assert not (temporary / ".o.graft-job").exists()  # it would fail again
    (text / "empty.txt").write_text("")
    (text / "three.txt").write_text("one two three")
    (text / "same.txt").write_text(" the" * 40)
    (text / "large.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 9)
    (text / "binary.txt").write_bytes(bytes(range(256)) * 16)
    (text / "latin.txt").write_bytes("Straßen über Flüsse\n".encode("latin-1") * 40)
    for shown, file in ((0, "empty"), (3, "three")):
        run("quantize", spoken, here, *gptq, "--calibration", text / f"{file}.txt", code=1,
            says=(f"{file}.txt'", "the calibration text is too short: expected at least 8 tokens",
                  f"found {shown}"))
    run("quantize", spoken, here, *gptq, "--calibration", text / "same.txt", code=1,
        says=("same.txt'", "the calibration text is one token over and over: expected different "
              "tokens, found 38 times token", "give text such as the model will read"))
    run("quantize", spoken, here, *gptq, "--calibration", text / "large.txt", code=1,
        says="a token id is not in the model's vocabulary: expected 0 to 63, found ")
    run("quantize", spoken, here, *gptq, "--calibration", text / "binary.txt", code=1,
        says=("binary.txt'", "this is not text: expected UTF-8, found ", "16 zero bytes in 4096",
              "give plain text, JSON lines (.jsonl) or token ids (.safetensors)"))
    run("quantize", spoken, here, *gptq, "--calibration", text / "latin.txt", code=1,
        says="this is not text: expected UTF-8, found 120 places that are not and 0 zero bytes")
    for wrong, says in (([5] * 12, "found 10 times token 5"), ([1, 2, 3], "found 3"),
                        ([1, 2] * 5 + [64], "expected 0 to 63, found 64"),
                        ([1, 2] * 5 + [-1], "expected 0 to 63, found -1")):
        write_tensors(text / "ids.safetensors", {"input_ids": (
            "I64", [1, len(wrong)], struct.pack(f"<{len(wrong)}q", *wrong))})
        run("quantize", dense, here, *gptq, "--calibration", text / "ids.safetensors", code=1,
            says=says)
    run("quantize", dense, here, *gptq, "--calibration", ids, "--bits", "auto", code=1,
        says="--bits auto needs --target-bpw")
    run("quantize", dense, here, *gptq, "--calibration", ids, "--bits", "3", "--target-bpw", "5",
        code=1, says="--bits and --target-bpw contradict each other: expected --bits auto, or none, "
        "found 3")
    run("quantize", dense, here, *gptq, "--calibration", ids, "--target-bpw", "1", code=1,
        says="no choice of bits is as small as that")
    run("quantize", dense, here, "--method", "awq", "--calibration", ids, "--target-bpw", "4",
        "--group-size", "32", code=1, says="the method's modules all have the same bits")
    run("plan", dense, *gptq, "--bits", "auto", code=1, says="--bits: wrong value: expected one of 2, 3, 4, 8, found 'auto'")
    made = as_json("quantize", dense, here, *gptq, "--calibration", ids, "--bits", "auto",
                   "--target-bpw", "5")
    assert 4 < made["bits_per_weight"] <= 5, made["bits_per_weight"]
    assert json.loads((here / "config.json").read_text())["quantization_config"]["dynamic"]
    assert json.loads((here / "graft-report.json").read_text())["call"]["target_bpw"] == 5
    shutil.rmtree(here)
    for weight in ("0", "-1", "much", ""):
        run("quantize", dense, here, *gptq, "--calibration", f"{ids}={weight}", code=1,
            says=("the weight of a calibration file cannot be used: expected a number above 0 "
                  f"behind the last '=', found '{weight}'"))
    for size in ("--samples", "--seq-len"):
        run("quantize", dense, here, "--method", "bitsandbytes", size, "3", code=1,
            says="the size of the calibration text is of no use: there is none")
    assert not here.exists()
    made = as_json("quantize", dense, here, *gptq, "--calibration", f"{ids}=2", "--calibration",
                   ids, "--samples", "3")
    report = json.loads((here / "graft-report.json").read_text())["calibration"]
    assert report["file"].startswith("reference.safetensors ("), report
    shutil.copy(ids, here / "ids.safetensors")
    run("quantize", dense, here, *gptq, "--calibration", here / "ids.safetensors", "--overwrite",
        code=1, says="output and input lie in each other")
    assert (here / "ids.safetensors").exists()
    shutil.rmtree(here)
    made = as_json("quantize", dense, here, *gptq, "--calibration", ids, "--samples", "1")
    groups = made["calibration"]["groups"]
    assert sum(len(g["modules"]) for g in groups) == made["quantized"] == 14
    assert all(g["relative_error"] > 0 and g["fallback"] is None for g in groups)
    run("verify", here)

    # A job with calibration text that is interrupted goes on, to the same files.
    vocabulary = json.loads((dense / "config.json").read_text())["vocab_size"]
    many = b"".join(struct.pack("<q", 7 * i * i % vocabulary) for i in range(32 * 512))
    write_tensors(text / "long.safetensors", {"input_ids": ("I64", [32, 512], many)})
    whole, stopped = temporary / "whole", temporary / "stopped"
    state, job = temporary / ".stopped.graft-job", temporary / ".stopped.graft-job/job.json"
    model = temporary / os.fsdecode(b"100%\xff")  # a name that JSON does not take
    shutil.copytree(dense, model)
    command = ["quantize", model, stopped, *gptq,
               "--calibration", text / "long.safetensors"]
    run("quantize", model, whole, *command[3:])
    assert not state.exists() and not (temporary / ".whole.graft-job").exists()

    def stop(*in_between):
        """Ends the command by a signal when it has done a group, and gives its last line."""
        process = subprocess.Popen([graft, *map(str, command)], env=environment,
                                   stderr=subprocess.PIPE, text=True)
        while not (state / "group-000000.safetensors").exists():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGSTOP)
        for other in in_between:
            run(*other, code=4, says=("another process is writing this output: found process "
                                      f"'{process.pid}'", "wait for it"))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        said = process.communicate()[1]
        assert process.returncode == 130, said
        assert {path.name for path in temporary.iterdir() if "stopped" in path.name} == {state.name}
        return said.splitlines()[-1]

    def same():
        assert {path.name: path.read_bytes() for path in stopped.iterdir()} == {
            path.name: path.read_bytes() for path in whole.iterdir()}
        assert not [path for path in temporary.iterdir() if ".stopped" in path.name]

    run("resume", "--help", out=("OUT", "graft resume models/quantized"))
    run("resume", stopped, code=1,
        says=("stopped': there is nothing to resume: expected the state of an interrupted job in "
              f"{state}, found none", "give the OUT of a `graft quantize` with calibration text"))
    last = stop(["resume", stopped], command, [*command, "--overwrite"])
    assert last == f"graft: calibrate: interrupted; `graft resume {stopped}` goes on", last
    for other in (command, ["quantize", dense, stopped, "--method", "bitsandbytes"]):
        run(*other, code=1,
            says=("the job that was to make this output was interrupted: found its state in "
                  f"{state}", f"`graft resume {stopped}` goes on with it, --overwrite discards it"))
    run("resume", stopped, "--act", "a8", code=1,
        says="leave out the options but for --threads, --json, --log, -q and -v")
    written = job.read_text()
    job.write_text(written[:100])
    run("resume", stopped, code=2, says=("job.json: the job file is damaged", "start again"))
    job.write_text(written.replace('"samples": 32', '"samples": 31'))
    run("resume", stopped, code=2, says="the job file is damaged: expected a file whose checksum")
    job.write_text(written)
    config_file = model / "config.json"
    config_text = config_file.read_text()
    config_file.write_text(config_text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    run("resume", stopped, code=2,
        says=("'config.json': 'rms_norm_eps': this has changed since the job was interrupted: "
              "expected 1e-06, found 1e-05", "bring back what was there"))
    config_file.write_text(config_text)
    write_tensors(text / "long.safetensors", {"input_ids": ("I64", [32, 512], many[8:] + many[:8])})
    run("resume", stopped, code=2, says="'calibration': 'ids': this has changed")
    (text / "long.safetensors").unlink()
    run("resume", stopped, code=2, says="long.safetensors")
    write_tensors(text / "long.safetensors", {"input_ids": ("I64", [32, 512], many)})
    resumed = as_json("resume", stopped, "--threads", "1")
    assert set(resumed) == set(made) and resumed["output"] == str(stopped), resumed
    assert [g["modules"] for g in resumed["calibration"]["groups"]] == [g["modules"] for g in groups]
    same()

    # Over a former output, which stays until the new one is whole.
    former = (stopped / "model.safetensors").read_bytes()
    shutil.copytree(stopped, temporary / "former")
    command.append("--overwrite")
    process = subprocess.Popen([graft, *map(str, command)], env=environment,
                               stderr=subprocess.PIPE, text=True)
    while not (state / "group-000001.safetensors").exists():
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    assert (stopped / "model.safetensors").read_bytes() == former
    record = state / "group-000000.safetensors"
    record.write_bytes(record.read_bytes()[:-1])
    run("resume", stopped, says=("warning: resume: the record group-000000.safetensors cannot be "
                                 "used (", "is done again"))
    same()
    # What a save is denied: its largest file. The state is smaller.
    shutil.rmtree(stopped)
    largest = (whole / "model.safetensors").stat().st_size
    full = subprocess.run([graft, *map(str, command)], env=environment, capture_output=True,
                          text=True, restore_signals=False,
                          preexec_fn=lambda: resource.setrlimit(
                              resource.RLIMIT_FSIZE, (largest - 1, resource.RLIM_INFINITY)))
    assert full.returncode == 4 and "File too large" in full.stderr, full
    assert full.stderr.endswith(f"; `graft resume {stopped}` goes on\n"), full.stderr
    assert not stopped.exists() and len(list(state.glob("group-*"))) == len(groups)
    run(*command)  # --overwrite begins again
    same()

print(len(checks), "checks")
