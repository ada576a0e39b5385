"""What a user sees of a quantized model's quality: check_report.py GRAFT GOLDEN."""
import json
import math
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

from calling_graft import as_json, checks, dense, environment, golden, graft, run, write_tensors

REPORT = ["graft-report.html", "graft-report.json"]
moe = golden / "vectors/tiny_qwen3moe_dense_fp16"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def numbers(text):
    return set(re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", text))


def words(page):
    """What the page says, without its style and the labels of axes."""
    page = page[page.index("</style>"):].replace("<wbr>", "")
    return re.sub(r'<text class="axis"[^>]*>[^<]*</text>|<h2>[^<]*</h2>|<[^>]*>', " ",
                  page).replace("&#39;", "'")


def report_of(folder):
    """graft-report.json, with which page and card have to agree."""
    text = (folder / "graft-report.json").read_text()
    for shown in (words((folder / "graft-report.html").read_text()),
                  (folder / "README.md").read_text()):
        assert numbers(shown) <= numbers(text), numbers(shown) - numbers(text)
    page = (folder / "graft-report.html").read_text()
    assert "<script" not in page and "http:" not in page and "https:" not in page
    return json.loads(text)


with tempfile.TemporaryDirectory() as name:
    temporary = pathlib.Path(name)
    model = temporary / "a<i>model&"
    shutil.copytree(dense, model)
    shutil.copy(golden / "tokenizer/smollm/tokenizer.json", model)
    # Digits are tokens below 64, as many as the model knows.
    text, other = temporary / "text.txt", temporary / "eval.txt"
    text.write_text("".join(str(i * i) for i in range(1, 400)))
    other.write_text("".join(str(i * i * i) for i in range(1, 250)))
    gptq = ["--method", "gptq", "--group-size", "32", "--calibration", text, "--samples", "4",
            "--seq-len", "64"]
    whole = temporary / "whole"

    # A report, whose figures are those of compare.
    made = as_json("quantize", model, whole, *gptq, "--eval", other)
    assert set(contents(whole)) >= {*REPORT, "README.md", "model.safetensors", "config.json"}
    report = report_of(whole)
    compared = as_json("compare", model, whole, "--text", other)
    assert compared.pop("seconds") > 0 and compared == made["comparison"]
    figures = ["kl_mean", "kl_p99", "kl_max", "top1_agreement", "perplexity_reference",
               "perplexity"]
    for key in figures:
        assert math.isclose(report["comparison"][key], compared[key], rel_tol=1e-3), key
    assert list(compared) == [*figures, "tokens", "windows", "context", "not_finite", "layers"]
    assert len(compared["layers"]) == 2 and 0 < compared["layers"][0] < 1
    assert 0 < compared["kl_mean"] <= compared["kl_p99"] <= compared["kl_max"]
    for key, folder in (("perplexity_reference", model), ("perplexity", whole)):
        alone = as_json("eval", folder, "--text", other)
        assert math.isclose(alone["perplexity"], compared[key], rel_tol=1e-4)
        assert (alone["tokens"], alone["windows"]) == (compared["tokens"], compared["windows"])
    assert report["calibration"]["samples"] == 4 and report["calibration"]["tokens"] == 256
    assert report["calibration"]["file"] == "text.txt" and report["calibration"]["left_out"] == 0
    assert report["comparison"]["file"] == "eval.txt" and report["method"] == "gptq"
    assert report["sizes"]["bytes_after"] == made["bytes_after"]
    assert report["fallback_modules"] == made["fallback_modules"] == 0
    assert sum(len(group["modules"]) for group in report["groups"]) == made["quantized"]
    assert str(temporary) not in (whole / "graft-report.json").read_text()
    page = (whole / "graft-report.html").read_text()
    assert "a&lt;i&gt;model&amp;" in page and "<i>model" not in page
    card = (whole / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- graft\n- \"gptq\"\n---\n")
    run("verify", whole)
    run("inspect", whole)
    run("quantize", model, temporary / "said", *gptq, "--eval", other,
        out=("KL divergence ", " nats a token", "perplexity "))

    # The same bytes for any number of threads, and when the job was interrupted.
    folder = temporary / "elsewhere"
    folder.mkdir()
    shutil.copy(text, folder)
    run("quantize", model, folder / "o", *gptq[:5], folder / "text.txt", *gptq[6:], "--eval", other,
        "--threads", "1")
    assert contents(folder / "o") == contents(whole)
    stopped, state = temporary / "stopped", temporary / ".stopped.graft-job"
    while True:
        process = subprocess.Popen([graft, "-q", "quantize", model, stopped, *map(str, gptq), "--eval",
                                    other, "--overwrite"], env=environment)
        while process.poll() is None and not (state / "group-000003.safetensors").exists():
            pass
        process.kill()
        process.wait()
        if (state / "job.json").exists():
            break
    run("resume", stopped, *(["--overwrite"] if stopped.exists() else []))
    assert contents(stopped) == contents(whole) and not state.exists()

    # Gates.
    none = temporary / "none"
    failed = run("quantize", model, none, *gptq, "--eval", other, "--max-kl", "1e-9", code=5,
                 says=("--max-kl: the quantized model is too far from the dense one: expected a KL "
                       "divergence of at most 1e-09 nats a token, found KL divergence ",
                       "perplexity ", "tokens of 'eval.txt'; nothing was written; more bits"))
    assert not none.exists() and not (temporary / ".none.graft-job").exists()
    run("quantize", model, none, *gptq, "--max-kl", "1e-9", code=5, says="tokens of 'text.txt'")
    run("quantize", model, none, *gptq, "--max-kl", "5")
    held_out = report_of(none)["comparison"]
    assert (held_out["file"], held_out["windows"], held_out["context"]) == ("text.txt", 4, 64)
    shutil.rmtree(none)
    run("quantize", model, none, *gptq[:6], "--seq-len", "100000", "--max-kl", "5", code=1,
        says=("there is no text to measure --max-kl on: expected text that calibration does not use, "
              "found calibration text of which nothing is left; give --eval FILE"))
    bnb = ["--method", "bitsandbytes"]
    run("quantize", model, none, *bnb, "--max-kl", "5", code=1,
        says=("found no calibration text", "give --eval FILE"))
    run("quantize", model, none, *bnb, "--max-kl", "x", code=1, says="--max-kl")
    run("quantize", model, none, *bnb, "--eval", temporary / "missing", code=1,
        says="the file cannot be read")
    bert = temporary / "bert"
    shutil.copytree(golden / "arch/bert", bert)
    shutil.copy(golden / "tokenizer/bert/tokenizer.json", bert)
    run("quantize", bert, none, *bnb, "--eval", other, code=1,
        says=("a BertModel has no logits that could be compared", "leave out --eval"))
    (temporary / "words.txt").write_text("The quick brown fox jumps over the lazy dog")
    run("quantize", model, none, *gptq, "--eval", temporary / "words.txt", code=1,
        says="a token id is not in the model's vocabulary: expected 0 to 63, found ")
    assert not none.exists()
    ids = temporary / "ids.safetensors"
    write_tensors(ids, {"input_ids": ("I64", [2, 8], struct.pack("<16q", *[0] * 8, *[2, 3] * 4))})
    experts = ["quantize", moe, none, "--method", "gptq", "--group-size", "32", "--calibration", ids]
    run(*experts, "--max-fallback", "1", code=5,
        says=("--max-fallback: too many modules were quantized without usable statistics: expected "
              "at most 1, found ", "no token of the calibration text reached it", "nothing was written"))
    assert not none.exists() and not (temporary / ".none.graft-job").exists()
    run(*experts, says="no token of the calibration text reached it")
    report = report_of(none)
    assert report["fallback_modules"] == 3 * sum(row["without_tokens"] for row in report["experts"]) > 0
    # The first sample is padding.
    assert report["calibration"]["left_out"] == 1 and report["calibration"]["samples"] == 1
    assert report["notes"][0] == ("1 calibration sample was one token over and over, as padding is, "
                                  "and not used")
    shutil.rmtree(none)
    shown = temporary / "shown"
    run("quantize", moe, shown, *experts[3:], "--all-experts", "--max-fallback", "0")
    report = report_of(shown)
    assert report["call"]["all_experts"] and report["experts"]
    assert all(row["fewest_tokens"] == row["most_tokens"] for row in report["experts"])

    write_tensors(ids, {"input_ids": ("I64", [1, 3], struct.pack("<3q", 1, 2, 3))})
    run("quantize", model, none, *gptq[:4], "--calibration", ids, code=1,
        says="the calibration text is too short: expected at least 8 tokens, better 16384, found 3")

    # A plan with a trial tells what the job costs.
    trials = temporary / "trials"
    trials.mkdir()
    environment["TMPDIR"] = str(trials)
    trial = as_json("plan", model, *gptq, "--trial")["trial"]
    assert trial["groups_done"] == trial["groups"] == 8  # there are no more layers than are tried
    assert 0 < trial["seconds"] <= trial["seconds_spent"] and trial["peak_bytes"] > 1 << 20
    run("plan", model, *gptq, "--trial", out=("trial  8 of 8 groups in ", "peak memory about "))
    assert not list(trials.iterdir())
    assert "trial" not in as_json("plan", model, *gptq[:4])
    run("plan", model, *gptq, code=1, says="--calibration requires --trial")
    run("plan", model, *bnb, "--trial", code=1,
        says="--trial: there is nothing to try: no text is calibrated with")
    environment["TMPDIR"] = str(temporary / "nowhere")
    run("plan", model, *gptq, "--trial", code=4, says="name a folder with room in TMPDIR")
    environment["TMPDIR"] = str(trials)

    # Without calibration text: sizes, and what --eval measures.
    run("quantize", model, none, *bnb, "--eval", other)
    report = report_of(none)
    assert report["calibration"] is None and report["groups"] == []
    assert report["comparison"]["perplexity"] > 1
    shutil.rmtree(none)

    # A README.md of the source stays, with the card beside it.
    (model / "README.md").write_text("what the model is\n")
    run("quantize", model, none, *bnb)
    assert (none / "README.md").read_text() == "what the model is\n"
    assert "library_name: transformers" in (none / "graft-card.md").read_text()
    assert json.loads((none / "graft-report.json").read_text())["comparison"] is None
    (model / "README.md").unlink()
    (model / "config.json").write_text(json.dumps(
        json.loads((model / "config.json").read_text()) | {"_name_or_path": "org/base"}))
    run("quantize", model, none, *bnb, "--overwrite")
    assert '---\nbase_model: "org/base"\nbase_model_relation: quantized\n' in (
        none / "README.md").read_text()

    # compare: the gate comes after the figures; what cannot be compared is refused.
    page = temporary / "page.html"
    failed = as_json("compare", model, whole, "--text", other, "--max-kl", "0", "--html", page,
                     code=5, says="the quantized model is too far from the dense one")
    assert failed["kl_mean"] == compared["kl_mean"]
    assert "compared with a&lt;i&gt;model&amp;" in page.read_text()
    run("compare", model, whole, "--text", other, "--max-kl", "5",
        out=("KL divergence ", "layer 1  relative squared error of hidden states "))
    run("compare", model, whole, code=1, says="--text is required")
    run("compare", model, "nowhere", "--text", other, code=1, says="no such model folder")
    shutil.copy(golden / "tokenizer/gpt2/tokenizer.json", none)
    run("compare", model, none, "--text", other, code=1,
        says="the models have different tokenizers: expected the token ids that ")
    small = temporary / "small"
    shutil.copytree(golden / "arch/gpt2", small)
    shutil.copy(golden / "tokenizer/smollm/tokenizer.json", small)
    run("compare", model, small, "--text", other, code=1,
        says="the models have different vocabularies: expected 64 tokens, as the reference, found ")
    run("compare", model, whole, "--text", other, "--html", other, code=1,
        says="would replace an input")
    run("eval", model, "--text", temporary, code=1, says="this is a folder")
    run("compare", model, whole, "--text", other, "--html", temporary / "no/page.html", code=4,
        says="the folder of the output does not exist")

print(len(checks), "checks")
