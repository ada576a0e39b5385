"""Runs one example and compares what it prints: check_example.py NAME FOLDER GOLDEN [key=path...].

FOLDER holds the built examples; the keys are libgraft, rtn8 and special (a folder)."""
import pathlib
import re
import subprocess
import sys
import tempfile

name, folder, golden = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
paths = dict(argument.split("=", 1) for argument in sys.argv[4:])
sources = pathlib.Path(__file__).parents[2] / "examples"
vectors = golden / "vectors"
output = tempfile.TemporaryDirectory()

projections = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"

# What each is called with, and the whole of what it prints, as a regular expression a line.
examples = {
    "embed_minimal": ([vectors / "tiny_llama_dense_fp16"], [
        r"14 modules in 4 bits",
        r"logits \[1, 8, 64\], the next token is \d+"]),
    "basic_conversion": ([golden / "arch/llama4_text"], [
        r"Before conversion:",
        *[rf"  model\.layers\.{layer}\.feed_forward\.experts: Llama4TextExperts" for layer in (1, 3)],
        r"",
        r"After conversion:",
        *[line for layer in (1, 3) for line in [
            rf"  model\.layers\.{layer}\.feed_forward\.experts: SequentialLlama4TextExperts",
            *[line for expert in range(4) for line in [
                rf"  model\.layers\.{layer}\.feed_forward\.experts\.{expert}: Llama4TextMLP",
                *[rf"  model\.layers\.{layer}\.feed_forward\.experts\.{expert}\.{leaf}: QuantLinear"
                  for leaf in ("gate_proj", "up_proj", "down_proj")]]]]]]),
    "moe_experts": ([vectors / "tiny_llama4_text_dense_fp16"], [
        r"model\.layers\.0\.feed_forward\.experts",
        r"Original type: Llama4TextExperts",
        r"Original experts: 2",
        r"Converted type: SequentialLlama4TextExperts",
        r"Converted experts: 2",
        r"Output shape before and after: \[4, 64\] \[4, 64\]",
        r"Same numbers: yes"]),
    "custom_registry": ([sources / "custom_registry.yaml"], [
        line for how in ("code", "YAML") for line in [
            rf"Registered in {how}",
            r"bitsandbytes: CustomExpertModule -> SequentialCustomExperts",
            r"gptq: CustomExpertModule -> SequentialCustomExperts",
            r"awq: CustomExpertModule -> CustomExpertModule"]]),
    "conditional_conversion": ([paths.get("special")], [
        r"gptq: SpecialLinear -> QuantizedSpecialLinear",
        r"  because .*libgraft_special\.yaml:8",
        r"awq: SpecialLinear -> QuantizedSpecialLinear",
        r"  because .*libgraft_special\.yaml:8",
        r"bitsandbytes: SpecialLinear remains unchanged",
        r"  because no plugin claims the class SpecialLinear for bitsandbytes on cpu"]),
    "meta_conversion": ([golden / "configs/llama-2-7b"], [
        *224 * [rf"Converted model\.layers\.\d+\.(self_attn|mlp)\.({projections}): "
                r"Linear -> QuantizedModule, device meta"],
        r"6738 million parameters, no memory taken for them"]),
    "prequantized_or_on_the_fly": (
        [vectors / "tiny_llama_gptq4_v1", vectors / "tiny_llama_dense_fp16"], [
            r"gptq pre_quantized: true",
            r"  skeleton: 15 Linear",
            r"  after preprocess_model: 1 Linear",
            r"  after load_weights: 1 Linear",
            r"  after postprocess_model: 1 Linear",
            r"bitsandbytes pre_quantized: false",
            r"  skeleton: 15 Linear",
            r"  after preprocess_model: 15 Linear",
            r"  after load_weights: 15 Linear",
            r"  after postprocess_model: 1 Linear"]),
    "complete_pipeline": ([vectors / "tiny_llama_gptq4_v1"], [
        r"Model initialized on meta device",
        r"Environment validated",
        r"",
        r"Before conversion:",
        r"  Linear modules: 15",
        r"",
        r"After conversion:",
        r"  Linear modules: 1",
        r"  QuantLinear modules: 14",
        r"",
        r"Forward: logits \[1, 8, 64\], all finite"]),
    "own_model": ([pathlib.Path(output.name) / "own"], [
        r"2 linear layers of LibTorch adopted",
        r"in: Linear -> Linear8bitLt",
        r"body\.0: Linear -> Linear8bitLt",
        r"body\.2: Linear -> Linear8bitLt",
        r"norm: kept, no graft::nn::Block, left alone",
        r"relative distance below 0\.05: yes",
        r"saved: 13 tensors",
        r"refused: inner: the child 'inner' of a Stubborn cannot be replaced: its forward keeps a "
        r"pointer of its own; derive the class from graft::nn::Block and declare the child as "
        r'graft::nn::Slot<graft::nn::Unary> inner\{\*this, "inner", \.\.\.\};']),
    "cancel_and_progress": ([vectors / "tiny_llama_dense_fp16"], [
        r"plan: nobody uses the field 'colour' of the quantization_config",
        r"plan: nobody uses the field 'colour' of the quantization_config",
        r"complete: yes",
        r"quantized by one host: 14, by the other: 12",
        r"cancelled: yes",
        r"error: .*nowhere.*",
        r"without its host: logits \[1, 8, 64\]"]),
    "embed": ([vectors / "tiny_llama_dense_fp16", pathlib.Path(output.name) / "quantized"], [
        r"plan: bitsandbytes",
        r"logits: 1 x 4 x 64",
        r"progress was reported: yes",
        r"a buffer too small: code 1, the output is too small: expected 256 elements, found 3",
        r"a wrong folder: code 2, .*nowhere.*"]),
    "embed.py": ([paths.get("libgraft"), vectors / "tiny_llama_dense_fp16"], [
        r"graft \d+\.\d+\.\d+",
        r"logits: 4 x 64"]),
    "operators.py": ([paths.get("rtn8")], [
        r"on the CPU: \(3, 5, 32\) as torch computes it",
        r"on meta: \(3, 5, 32\)",
        r"compiled: True",
        r"refused: x must be a float tensor \[\.\.\., 64\], found \[3, 5, 63\]"]),
}

arguments, expected = examples[name]
program = [sys.executable, sources / name] if name.endswith(".py") else [folder / name]
done = subprocess.run([str(word) for word in [*program, *arguments]], capture_output=True, text=True,
                      timeout=300)
print(done.stdout, done.stderr, sep="")
assert done.returncode == 0, f"{name} ended with {done.returncode}"
lines = done.stdout.splitlines()
for number, (line, pattern) in enumerate(zip(lines, expected), 1):
    assert re.fullmatch(pattern, line), f"line {number} is {line!r}, expected {pattern!r}"
assert len(lines) == len(expected), f"{len(lines)} lines, expected {len(expected)}"
