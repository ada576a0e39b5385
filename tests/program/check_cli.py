"""The program's border to people and scripts: check_cli.py GRAFT GOLDEN TEST_PLUGINS."""
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import struct
import subprocess
import tempfile

from calling_graft import (as_json, checks, dense, environment, golden, graft, nf4, plugins,
                           read_tensors, run, write_tensors)


def on_terminal(*arguments, **settings):
    """What graft writes to a terminal on stderr, with line ends as the program wrote them."""
    master, slave = pty.openpty()
    plain = {name: value for name, value in environment.items() if name not in ("NO_COLOR", "CI")}
    process = subprocess.Popen([graft, *map(str, arguments)], env={**plain, **settings},
                               stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    written = b""
    try:
        while piece := os.read(master, 4096):
            written += piece
    except OSError:  # so a terminal ends
        pass
    os.close(master)
    assert process.wait() == 0, written
    checks.append(None)
    return written.decode().replace("\r\n", "\n")


with tempfile.TemporaryDirectory() as name:
    temporary = pathlib.Path(name)
    rows = ["--plugin-path", plugins / "good"]

    # 1: usage
    run(code=1, says="graft: a verb is missing; `graft --help`")
    run("quantise", dense, code=1, says="unknown verb 'quantise'; did you mean 'quantize'")
    run("nonsense", code=1, says="unknown verb 'nonsense'; `graft --help` lists them all")
    run("plan", code=1, says="graft: MODEL is required; `graft plan --help`")
    run("--threads", "0", "doctor", code=1, says="expected an integer from 1 on, found '0'")
    run("--version", out="graft 0.1.0")
    with open("/dev/full", "w") as full:
        lost = subprocess.run([graft, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert lost.returncode == 4 and "standard output could not be written whole" in lost.stderr, lost
    run("plan", "--help", out="--method")
    latin = temporary / "latin.txt"
    latin.write_bytes(b"caf\xe9 " * 20)
    reads = temporary / "reads"
    shutil.copytree(golden / "arch/llama", reads)
    for file in (golden / "tokenizer/smollm").glob("tokenizer*"):
        shutil.copy(file, reads)
    run("eval", reads, "--text", latin, code=1,
        says=["latin.txt", "this is not text: expected UTF-8, found 20 places"])
    run("generate", dense, "--ids", "1,2", "--seed", "3", code=1, says="--seed requires --temperature")
    for family in ("gpt2", "opt"):  # 128 learned positions: what was written until then stays
        ended = as_json("generate", golden / "arch" / family, "--ids", "1,2,3", "--ignore-eos",
                        "--max-new-tokens", "200")
        assert ended["full"] and not ended["stopped"] and len(ended["ids"]) == 126, ended
    cache = temporary / "cache/models--a--b"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("c0ffee")
    (cache / "snapshots").mkdir()
    shutil.copytree(dense, cache / "snapshots/c0ffee")
    run("plan", "a/b", code=1, says="no such model folder")
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        found = subprocess.run([graft, "plan", "a/b"], capture_output=True, text=True,
                               env={**os.environ, variable: str(temporary / "cache")})
        assert found.returncode == 0, found
    run("plan", dense, "--nonsense", code=1, says="unknown option '--nonsense'; `graft plan --help`")
    run("generate", dense, "--promt", "a", code=1,
        says="unknown option '--promt'; did you mean '--prompt'")
    run("plan", dense, "--methd=x", code=1,
        says="unknown option '--methd'; did you mean '--method'?")
    run("generate", dense, "--prompt", "a", "--system", "b", code=1, says="--chat")
    run("generate", dense, "--prompt", "a", "--max-tokens", "5", code=1,
        says="unknown option '--max-tokens'; did you mean '--max-new-tokens'?")
    run("plan", dense / "model.safetensors", code=1,
        says="a model is a folder, and this is a file; give the folder that it lies in")
    run("plan", "nowhere", code=1, says="no such model folder; give a folder with config.json")
    run("plan", "org/name", code=1, says="run `hf download org/name` first")
    run("plan", dense, "--dtype", "int9", code=1,
        says="--dtype: unknown dtype: expected float32, bfloat16 or float16, found 'int9'")
    run("plan", dense, "--device", "toaster", code=1, says="unknown --device")
    run("inspect", dense, "--device", "toaster", code=1, says="unknown --device")
    run("doctor", "--device", "toaster", code=1, says="unknown --device")
    run("--threads", "9999", "doctor", code=1, says="expected at most 1024, found 9999")
    # settings that do not fit, before the text that this folder has no tokenizer for
    run("quantize", dense, temporary / "none", "--method", "gptq", "--group-size", "48", code=1,
        says="expected a group_size that 64 inputs are a multiple of")
    run("plan", dense, "--method", "rows8", code=1,
        says="unknown --method: expected one of ")
    run("plan", dense, "--most-columns", "4", *rows, code=1, says="--most-columns needs --method")
    run("plan", dense, "--method", "rows8", "--most-columns", "x", *rows, code=1,
        says="--most-columns: wrong value: expected an integer, found 'x'")
    run("quantize", dense, temporary / "o", code=1, says="--method is missing")
    run("quantize", nf4, temporary / "o", "--method", "bitsandbytes", code=1,
        says="the model is quantized already")
    run("quantize", dense, dense / "sub", "--method", "rows8", *rows, code=1,
        says="output and input lie in each other")
    assert not (temporary / "o").exists() and not (dense / "sub").exists()

    # Options of a method that several plugins serve.
    special = ["--plugin-path", plugins / "special"]
    run("plan", dense, "--method", "gptq", "--group-size", "32", "--bits", "8", *special)
    run("plan", dense, "--method", "gptq", "--bits", "9", *special, code=1, says="--bits")

    for name, ids, says in (("ids", {"input_ids": [1, 100000]}, "not in the model's vocabulary"),
                            ("types", {"input_ids": [1, 2], "token_type_ids": [0, 0]},
                             "graft forward does not take 'token_type_ids'"),
                            ("mask", {"input_ids": [1, 2], "attention_mask": [1]},
                             "'attention_mask' cannot be used")):
        write_tensors(temporary / name, {key: ("I64", [1, len(row)], struct.pack(f"<{len(row)}q", *row))
                                         for key, row in ids.items()})
        run("forward", dense, "--input", temporary / name, "--output", temporary / "x", code=1,
            says=says)
    assert not (temporary / "x").exists()
    shutil.copytree(dense, temporary / "whole")
    shutil.copy(dense / "reference.safetensors", temporary / "rows")
    for output, says in ((temporary / "whole/model.safetensors", "lies in the folder of a model"),
                         (temporary / "rows", "would replace an input"),
                         ("/dev/null", "is there already and no file")):
        run("forward", temporary / "whole", "--input", temporary / "rows", "--output", output, code=1,
            says=says)
    (temporary / "escape.yaml").write_text(
        'graft: 1\npatches:\n  - {class: Linear, methods: [gptq], match: "*.up_proj", keep: "\\e[2Jevil"}\n')
    kept = run("plan", dense, "--method", "gptq", "--group-size", "32", "--registry",
               temporary / "escape.yaml", out="evil")
    told = run("registry", "explain", dense, "model.layers.0.mlp.up_proj", "--method", "gptq",
               "--registry", temporary / "escape.yaml", out="evil")
    assert "\x1b" not in kept.stdout + told.stdout
    # 2: a model is invalid
    for name, pooling, modules, says in (
            ("cls", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [],
             "pooling_mode_cls_token true"),
            ("max", {"pooling_mode": "max"}, [], "pooling_mode 'max'"),
            ("dense", {}, [{"type": "sentence_transformers.models.Dense"}], "models.Dense'")):
        encoder = temporary / name
        shutil.copytree(golden / "arch/bert", encoder)
        (encoder / "1_Pooling").mkdir()
        (encoder / "1_Pooling/config.json").write_text(json.dumps(pooling))
        (encoder / "modules.json").write_text(json.dumps(modules))
        run("embed", encoder, "--text", dense / "config.json", code=2, says=says)
    broken = temporary / "broken"
    shutil.copytree(dense, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-1])
    run("plan", broken, code=2, says=["model.safetensors: the file is cut short",
                                      "download it again"])
    (broken / "model.safetensors").write_bytes(b"<!DOCTYPE html>" + weights)
    run("forward", broken, "--input", dense / "reference.safetensors", "--output", temporary / "x",
        code=2, says="this looks like HTML")
    assert not (temporary / "x").exists()
    (broken / "model.safetensors").write_bytes(weights)
    (broken / "config.json").write_text('{"model_type": "unheard"}')
    run("plan", broken, code=2, says="no model of this build has the model_type 'unheard'")
    (broken / "config.json").write_text("{\n,}")
    run("plan", broken, code=2, says="config.json: line 2")

    # A header that is padded with zeros, and its repair.
    padded = temporary / "padded"
    shutil.copytree(dense, padded)
    tensors = read_tensors(dense / "model.safetensors")
    write_tensors(padded / "model.safetensors", tensors, b"\0" * 13)
    run("plan", padded, code=2, says="the header is padded with 0x00: expected spaces; repair the "
                                     "file with `graft convert --repair`")
    run("convert", padded, temporary / "repaired", "--repair", out="repaired 1 file(s)")
    assert read_tensors(temporary / "repaired/model.safetensors") == tensors
    run("verify", temporary / "repaired")
    assert as_json("convert", padded, temporary / "repaired", "--repair",
                   "--overwrite")["repaired"] == 1
    run("convert", dense, temporary / "x", "--repair", code=1,
        says="there is nothing to repair: expected a header that is padded with zeros")
    run("convert", padded, temporary / "x", code=1, says="--to or --repair is required")
    run("convert", padded, temporary / "x", "--repair", "--to", "y", code=1)
    write_tensors(padded / "model.safetensors", {"a": ("F32", [2], b"1234")}, b"\0")
    run("convert", padded, temporary / "worse", "--repair", code=2,
        says=("model.safetensors", "tensor 'a': the data range does not fit the shape"))
    run("convert", padded, temporary / "worse", "--repair", "--shard-bytes", "9", code=1)
    assert not (temporary / "worse").exists()

    # A weight that is not finite stops the job, and no output is there.
    poisoned = temporary / "poisoned"
    shutil.copytree(dense, poisoned)
    up = "model.layers.1.mlp.up_proj"
    dtype, shape, values = tensors[up + ".weight"]
    values = values[:20] + struct.pack("<e", float("nan")) + values[22:]
    write_tensors(poisoned / "model.safetensors",
                  tensors | {up + ".weight": (dtype, shape, values)})
    run("quantize", poisoned, temporary / "none", "--method", "bitsandbytes", code=2,
        says=(up, "NaN or infinity"))
    assert not (temporary / "none").exists()

    # Names that a shell or a printer could trip over.
    for odd in ("a b'\"", "-rf", os.fsdecode(b"caf\xe9")):
        shutil.copytree(dense, temporary / odd)
        run("plan", "--", odd, folder=temporary)
        made = as_json("quantize", "--method", "bitsandbytes", "--json", "--", odd, odd + ".out",
                       folder=temporary)
        assert made["output"] == odd + ".out", made
        run("verify", "--", odd + ".out", folder=temporary)

    # 3: plugins and the registry
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbits"}
    (broken / "config.json").write_text(json.dumps(config))
    run("plan", broken, code=3, says=["no plugin claims the quantization method 'bitsandbits'",
                                      "did you mean 'bitsandbytes'?"])
    rules = temporary / "rules.yaml"
    rules.write_text("graft: 1\npatches:\n  - {class: A, methods: [], keep: x}\n")
    run("plan", dense, "--registry", rules, code=3, says="rules.yaml:3:5: a patch needs methods")
    run("registry", "check", out="no mistakes")
    rules.write_text("graft: 1\npatches:\n  - {class: A, methods: '*', replacement: B}\n")
    run("registry", "check", "--registry", rules, code=3,
        out="rules.yaml:3: nobody here builds the replacement 'B' for the class 'A'")
    rules.write_text("graft: 1\npatchs: []\n")
    run("registry", "check", "--registry", rules, code=3,
        out="rules.yaml:2:1: unknown key 'patchs'; did you mean 'patches'?")
    run("registry", "list", "--registry", rules, "--strict", code=3, says="unknown key 'patchs'")
    run("plan", dense, "--registry", temporary / "absent", code=3, says="no such registry file")
    rules.write_text("graft: 1\npatches: []\n")
    for words in (["--registry", rules], [f"--registry={rules}"]):  # the verb is no second value
        run(*words, "plan", dense, out="up_proj")

    # the verdicts on plugins
    listed = as_json("plugins", "list", "--plugin-path", plugins / "null_entry", *rows)
    verdicts = {pathlib.Path(row["file"]).name: row for row in listed}
    assert verdicts["libgraft_test_good.so"]["loaded"]
    assert verdicts["libgraft_bnb.so"]["loaded"]
    refused = verdicts["libgraft_test_null_entry.so"]
    assert not refused["loaded"] and "its entry returned nothing" in refused["reason"]
    assert refused["id"] == "org.graft.test.null_entry"
    run("plugins", "--plugin-path", plugins / "no_stamp",
        out=["refused", "no graft stamp, so not a graft plugin"])
    good = plugins / "good/libgraft_test_good.so"
    inspected = as_json("plugins", "inspect", good)
    assert inspected["loaded"] and inspected["claims"][0]["method"] == "rows8"
    run("plugins", "inspect", good, out=["org.graft.test.good 1.0.0  ABI 1.0  torch 2.",
                                         "claims Linear of rows8 on cpu, priority 0"])
    bad = plugins / "throwing_init/libgraft_test_throwing_init.so"
    run("plugins", "inspect", bad, code=3, out="org.graft.test.throwing_init 1.2.3",
        says="its init failed (a defect): 'no operators today'")
    kept = as_json("plugins", "test", good, "--rule", "unknown interfaces")
    assert kept == [{"rule": "unknown interfaces and methods get nothing", "kept": True}], kept
    environment["GRAFT_TEST_FAULT"] = "constructor print"
    kept = as_json("plugins", "test", plugins / "rulebreaker/libgraft_rulebreaker.so", "--rule",
                   "it is loaded", says="good morning")
    assert [row["kept"] for row in kept] == [True], kept
    environment.pop("GRAFT_TEST_FAULT")
    run("plugins", "test", good, "--rule", "nonsense", code=1, says="no rule starts with 'nonsense'")
    run("plugins", "test", plugins / "no_stamp/libgraft_test_no_stamp.so", code=3,
        says="no graft stamp")
    run("plugins", "inspect", plugins / "no_stamp/libgraft_test_no_stamp.so", code=3,
        says="no graft stamp")
    run("plugins", "inspect", temporary / "absent.so", code=4, says="No such file or directory")
    run("plan", dense, "--plugin", bad, says="error: plugins: ")
    run("plan", dense, "--plugin", bad, "--strict", code=3, says="its init failed")
    run("doctor", "--plugin", bad, out=["torch     ok", "!", "its init failed"])

    # who wins, and the losers with file and line
    rules.write_text("graft: 1\npatches:\n"
                     "  - {class: Linear, methods: '*', match: '*.up_proj', keep: mine}\n"
                     "  - {class: Linear, methods: [rows8], keep: all}\n")
    path = "model.layers.0.mlp.up_proj"
    run("registry", "explain", dense, path, "--method", "rows8", "--registry", rules, *rows,
        out=[f"{path}, a Linear, under rows8: kept dense", "because mine (", "rules.yaml:3)",
             "rules.yaml:4: less specific than ", "org.graft.test.good: ",
             "keeps the module dense"])
    explained = as_json("registry", "explain", dense, "lm_head", "--method", "rows8", *rows)
    assert re.search(r"output head \(.*defaults\.yaml:4\)", explained["reason"]), explained
    won = as_json("registry", "explain", nf4, path)
    assert won["decision"] == "built by org.graft.bnb", won
    moe = golden / "arch/mixtral"
    run("registry", "explain", moe, "model.layers.0.mlp.experts", "--method", "gptq",
        out=["a MixtralExperts, under gptq: replaced by SequentialMixtralExperts",
             "because ", "experts.yaml:"])
    run("registry", "explain", moe, "model.layers.0.mlp.experts.1.gate_proj", "--method", "gptq",
        out=["a Linear, under gptq: built by org.graft.gptq"])
    run("registry", "explain", dense, "model.layers.0.mlp.up", "--method", "rows8", *rows, code=1,
        says="'model.layers.0.mlp.up_proj'?")
    run("registry", "explain", dense, path, code=1, says="add --method")
    run("registry", "explain", dense, path, "--method", "gtpq", code=3, says="did you mean 'gptq'?")
    tied = temporary / "tied"
    shutil.copytree(golden / "arch/llama", tied)
    shared = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(shared))
    run("registry", "explain", tied, "lm_head", "--method", "gptq",
        out=["under gptq: kept dense", "because "])
    rules.write_text("graft: 1\nskip: [up_proj]\n")
    run("registry", "explain", dense, path, "--method", "gptq", "--registry", rules,
        out=["under gptq: kept dense", "because skip list: 'up_proj'",
             "org.graft.gptq: the module is left out"])

    # 4: resources
    run("plan", dense, "--log", "/nowhere/x.log", code=4, says="the log file cannot be written")
    run("quantize", dense, temporary / ("n" * 300), "--method", "rows8", *rows, code=4,
        says="File name too long")

    # 6: coverage under --strict
    run("plan", dense, "--method", "rows8", "--most-columns", "64", *rows)
    run("plan", dense, "--method", "rows8", "--most-columns", "64", "--strict", *rows, code=6,
        says="2 module(s) stay dense: 'model.layers.0.mlp.down_proj'")

    # --json is alone on stdout, -q leaves errors only, messages go to stderr and the log
    plan = as_json("plan", dense, "--method", "rows8", *rows)
    assert sum(m["action"] == "quantize" for m in plan["modules"]) == 14
    assert plan["bytes_in_checkpoint"] > 0 and plan["bytes_unused"] == 0
    shutil.copytree(dense, temporary / "fewer")
    config.pop("quantization_config")
    config["num_hidden_layers"] = 1
    (temporary / "fewer/config.json").write_text(json.dumps(config))
    target = ["quantize", temporary / "fewer", temporary / "out", "--method", "rows8",
              "--overwrite", *rows]
    log = temporary / "log"
    loud = run(*target, "--log", log, says="warning: plan: ")
    assert "warning plan: " in log.read_text()
    assert run(*target, "-q").stderr == ""
    quantized = as_json(*target)
    assert quantized["quantized"] == 7 and quantized["output"] == str(temporary / "out")
    for line in run(*target).stderr.splitlines():
        assert "\x1b" not in line and "\r" not in line, line
    # Only a terminal that can gets a bar, and no variable that asks for plain lines is set.
    nf4_again = ["quantize", dense, temporary / "out", "--method", "bitsandbytes", "--overwrite"]
    assert "\x1b[K" in on_terminal(*nf4_again, TERM="xterm")
    for plain in ({"TERM": "dumb"}, {"NO_COLOR": "1"}, {"CI": "1"}):
        lines = on_terminal(*nf4_again, **{"TERM": "xterm", **plain})
        assert "saving" in lines and "\x1b" not in lines and "\r" not in lines, ascii(lines)

    # The same bytes whatever the number of threads.
    for method in (["--quant-type", "nf4", "--double-quant"], ["--quant-type", "int8"]):
        written = []
        for threads in (1, 3):
            run(*nf4_again, *method, "--threads", threads)
            written.append((temporary / "out/model.safetensors").read_bytes())
        assert written[0] == written[1]

    # Whoever reads the output goes away: `graft plan | head`.
    for arguments, stream in ((["plan", dense, "--method", "bitsandbytes"], "stdout"),
                              (["-v", *nf4_again], "stderr")):
        ends = os.pipe()
        os.close(ends[0])
        other = "stderr" if stream == "stdout" else "stdout"
        process = subprocess.Popen([graft, *map(str, arguments)], env=environment,
                                   **{stream: ends[1], other: subprocess.PIPE})
        os.close(ends[1])
        said = b"".join(text for text in process.communicate() if text)
        assert process.returncode == -signal.SIGPIPE and not said, (process.returncode, said)
        checks.append(None)
    assert (temporary / "out/model.safetensors").read_bytes() == written[1]
    run(*nf4_again)

    # A plugin that does not return: the first interrupt waits for it, the second ends the program.
    marker = temporary / "reached"
    process = subprocess.Popen(
        [graft, "quantize", dense, temporary / "never", "--plugin-path", plugins / "faulty",
         "--method", "faulty8", "--fault", "hang", "--where", f"quantize {path}"],
        env={**environment, "GRAFT_TEST_MARKER": str(marker)}, stderr=subprocess.PIPE)
    while not marker.exists():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(0.5)
        raise AssertionError(f"ended with {process.returncode}: {process.stderr.read()}")
    except subprocess.TimeoutExpired:
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stderr.close()
    assert not (temporary / "never").exists()
    run("quantize", dense, temporary / "never", "--method", "bitsandbytes")
    assert [path.name for path in temporary.iterdir() if "never" in path.name] == ["never"]
    checks.append(None)

    # text of a file cannot act on the terminal, wherever it turns up
    hostile = temporary / "hostile"
    shutil.copytree(golden / "vectors/tiny_llama_gptq4_v1", hostile)
    settings = json.loads((hostile / "config.json").read_text())["quantization_config"]
    config = json.loads((hostile / "config.json").read_text())
    config["quantization_config"] |= {"\x1b[2Jmore": "\x9b1m", "\x1b[3Jfewer": 1}
    (hostile / "config.json").write_text(json.dumps(config))
    (hostile / "quantize_config.json").write_text(json.dumps(settings | {"\x1b[2Jmore": "\x7f"}))
    told = run("inspect", hostile, out="disagree")
    loud = run("plan", hostile, "--log", log)
    for text in (told.stdout, told.stderr, loud.stdout, loud.stderr, log.read_text()):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), ascii(text)

    as_json("inspect", temporary / "out", *rows)
    as_json("verify", temporary / "out", *rows)
    as_json("doctor")
    as_json("registry", "list")
    rates = as_json("bench", "model", temporary / "out", "--rounds", "1", *rows)
    assert set(rates) == {"load_s", "prompt_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes",
                          "model_rss_bytes", "file_bytes"}, rates
    assert all(value > 0 for value in rates.values()), rates
    run("bench", "model", "nowhere", code=1, says="no such model folder")

    # a copy of the program without the rules that come with it
    home = pathlib.Path(graft).resolve().parent.parent
    for part in ("bin/graft", "lib"):
        (temporary / "copy" / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if part == "lib" else shutil.copy2)(home / part, temporary / "copy" / part)
    shutil.rmtree(temporary / "copy/lib/graft/registry")
    copied = subprocess.run([temporary / "copy/bin/graft", "plan", dense, "--method", "bitsandbytes"],
                            capture_output=True, text=True, env=environment)
    assert copied.returncode == 3, copied
    assert "copy/lib/graft/registry: the rules that come with graft are missing" in copied.stderr, copied
    checks.append(None)

    # a plan reads headers only
    if shutil.which("strace"):
        large = temporary / "large"
        shutil.copytree(dense, large)
        trace = temporary / "trace"
        probe = subprocess.run(["strace", "-f", "-o", trace, "-e", "trace=read,pread64,mmap", "-y",
                                graft, "plan", large, "--method", "bitsandbytes"],
                               capture_output=True, text=True, env=environment)
        if probe.returncode == 0:
            touched = [line for line in trace.read_text().splitlines()
                       if "model.safetensors" in line]
            read = sum(int(line.rsplit("= ", 1)[1].split()[0]) for line in touched)
            header = int.from_bytes(weights[:8], "little") + 8
            assert touched and not any("mmap" in line for line in touched), touched
            assert read <= header + 64 + 8, f"{read} bytes read, the header has {header}"
            print(f"plan read {read} bytes of {len(weights)}, of which the header is {header}")
            checks.append(None)

print(len(checks), "checks")
