"""Several processes make the file that one makes: check_ranks.py GRAFT GOLDEN."""
import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import time

from calling_graft import checks, dense, environment, golden, graft, run, write_tensors

moe = golden / "vectors/tiny_qwen3moe_dense_fp16"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_rank(rank, size, port, arguments):
    variables = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port)}
    return subprocess.Popen([graft, "--threads", "1", *map(str, arguments)],
                            env=environment | variables, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def start(size, commands):
    """The processes of one job; `commands` are the arguments of each, or of all."""
    port = free_port()
    return [start_rank(rank, size, port,
                       commands[rank] if isinstance(commands[0], list) else commands)
            for rank in range(size)]


def end(processes):
    """(exit code, stdout, stderr) of each."""
    out = []
    for process in processes:
        said, errors = process.communicate(timeout=200)
        out.append((process.returncode, said, errors))
    checks.append(processes)
    return out


def together(size, commands):
    ended = end(start(size, commands))
    assert all(code == 0 for code, _, _ in ended), ended
    for _, said, errors in ended[1:]:
        assert said == "" and errors == "", ended
    assert "quantized " in ended[0][1]


with tempfile.TemporaryDirectory() as name:
    temporary = pathlib.Path(name)
    trials = temporary / "tmp"
    trials.mkdir()
    environment["TMPDIR"] = str(trials)
    ids = temporary / "ids.safetensors"
    numbers = [i * i % 61 for i in range(2, 2 + 6 * 700)]
    write_tensors(ids, {"input_ids": ("I64", [6, 700], struct.pack(f"<{len(numbers)}q", *numbers))})

    # Three batches of two samples: two ranks have one and two, three have one each, four some none.
    for model, method in ((dense, ["gptq"]), (dense, ["gptq", "--bits", "3", "--desc-act"]),
                          (dense, ["gptq", "--bits", "auto", "--target-bpw", "5"]),
                          (dense, ["gptq", "--bits", "3", "--polish", "5"]),
                          (moe, ["gptq", "--polish", "3"]),
                          (dense, ["awq"]), (dense, ["awq", "--search-by-block"]),
                          (dense, ["bitsandbytes", "--quant-type", "nf4"]),
                          (moe, ["gptq"]), (moe, ["awq"])):
        command = ["--method", *method, "--calibration", ids]
        if method[0] != "bitsandbytes":
            command += ["--group-size", "32"]
        alone = temporary / "alone"
        run("quantize", model, alone, *command)
        for size in (2, 3, 4) if (model, method) == (moe, ["gptq"]) else (2,):
            out = temporary / "together"
            together(size, ["quantize", model, out, *command])
            assert contents(out) == contents(alone), (model, method, size)
            shutil.rmtree(out)
        shutil.rmtree(alone)

    # Killed with two processes, and gone on with by three, and by one.
    command = ["--method", "gptq", "--group-size", "32", "--calibration", ids]
    whole = temporary / "whole"
    run("quantize", moe, whole, *command)
    for size in (3, 1):
        out, state = temporary / "out", temporary / ".out.graft-job"
        while True:
            processes = start(2, ["quantize", moe, out, *command, "--overwrite"])
            while processes[0].poll() is None and not (state / "group-000003.safetensors").exists():
                pass
            for process in processes:
                process.kill()
            end(processes)
            if (state / "job.json").exists():
                break
        if size == 1:
            run("resume", out)
        else:
            ended = end(start(size, ["-v", "resume", out]))
            assert all(code == 0 for code, _, _ in ended), ended
            assert " groups were done before" in ended[0][2], ended
        assert contents(out) == contents(whole) and not state.exists()
        shutil.rmtree(out)
    for left in trials.iterdir():  # of the killed ones
        shutil.rmtree(left)

    # When one fails so do all, and it is said once.
    out = temporary / "out"
    def refused(commands, code, words, size=2):
        began = time.monotonic()
        ended = end(start(size, commands))
        assert time.monotonic() - began < 60
        said = [errors for _, _, errors in ended if errors]
        assert len(said) == 1 and words in said[0], ended
        assert said[0].count("\n") == 1, ended
        assert ended[[bool(errors) for _, _, errors in ended].index(True)][0] == code, ended
        assert all(code != 0 for code, _, _ in ended), ended
        assert not out.exists() and not list(trials.iterdir())
        assert not (temporary / ".out.graft-job").exists()

    quantize = ["quantize", dense, out, *command]
    other = temporary / "other.safetensors"
    write_tensors(other, {"input_ids": ("I64", [6, 700], struct.pack("<4200q", *[1, 2] * 2100))})
    swapped = [other if argument is ids else argument for argument in quantize]
    refused([quantize, swapped], 1, "rank 1: the processes do not do the same job: expected the "
            "model, settings, plugins and text of rank 0")
    missing = [temporary / "no" if argument is ids else argument for argument in quantize]
    refused([quantize, missing], 1, "no")
    refused([missing, quantize, quantize], 1, "no", size=3)
    refused(missing, 1, "no")
    refused(["quantize", temporary, out, *command], 2, "config.json")
    environment["TMPDIR"] = str(temporary / "nowhere")
    began = end(start(2, quantize))
    assert [code for code, _, _ in began] == [4, 4], began
    assert "a temporary folder could not be made" in began[1][2] and not began[0][2].count("graft:"), began
    environment["TMPDIR"] = str(trials)
    shutil.rmtree(temporary / ".out.graft-job")

    # One that waits for the others ends at the first signal: it has nothing to finish.
    port = free_port()
    waiting = start_rank(0, 2, port, quantize)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert waiting.poll() is None, waiting.communicate()
    waiting.terminate()
    assert waiting.wait(timeout=60) == 130
    environment["RANK"] = "1"
    run(*quantize, code=1, says="WORLD_SIZE")

print(len(checks), "checks")
