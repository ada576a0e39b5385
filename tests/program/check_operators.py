"""Operators of the plugins in Python: check_operators.py EXAMPLES VECTORS LIBGRAFT_GPTQ LIBGRAFT_AWQ LIBGRAFT_BNB."""
import json
import pathlib
import sys

import torch

sys.path.insert(0, sys.argv[1])
from load_operators import load_operators

vectors = pathlib.Path(sys.argv[2])
for file in sys.argv[3:]:
    load_operators(file)
gptq, awq, bnb = torch.ops.graft_gptq, torch.ops.graft_awq, torch.ops.graft_bnb
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}


def read(name):
    data = bytearray((vectors / f"{name}.safetensors").read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return {name: torch.frombuffer(data[8 + size :][slice(*t["data_offsets"])], dtype=torch.uint8)
            .clone().view(TYPES[t["dtype"]]).reshape(t["shape"])
            for name, t in header.items() if name != "__metadata__"}


def refused(words, call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as error:
        assert words in str(error), error
        return
    sys.exit(f"not refused: {words}")


torch.manual_seed(0)
t = read("gptq_4bit_64x32_g32")
stored = (t["qweight"], t["qzeros_v1_asym"], t["scales"], None, 4, 32, False)
assert torch.equal(gptq.dequantize(*stored).float(), t["weight_asym"].half().float())
x = torch.randn(2, 3, 64)
expected = torch.nn.functional.linear(x, gptq.dequantize(*stored).float())
torch.testing.assert_close(gptq.linear(x, *stored), expected, rtol=1e-4, atol=1e-4)
compiled = torch.compile(lambda x: gptq.linear(x, *stored) + 1, backend="eager", fullgraph=True)
assert torch.equal(compiled(x), gptq.linear(x, *stored) + 1)
refused("'qweight': ", gptq.dequantize, t["qweight"].long(), *stored[1:])
refused("group_size", gptq.dequantize, *stored[:5], 1, False)

t = read("awq_4bit_128x32_g64")
for version in ("gemm", "gemv", "gemv_fast"):
    stored = tuple(t[f"{version}.{name}"] for name in ("qweight", "qzeros", "scales"))
    weight = awq.dequantize(*stored, 64, version)
    assert torch.equal(weight.float(), t["weight"].half().float()), version
    x = torch.randn(5, 128)
    torch.testing.assert_close(awq.linear(x, *stored, 64, None, version), x @ weight.float().T,
                               rtol=1e-4, atol=1e-4)
refused("version", awq.dequantize, *stored, 64, "exllama_v9")

t = read("bnb_4bit_64x128")
packed, absmax = bnb.quantize_4bit(t["input"], "nf4", 64)
assert torch.equal(packed, t["nf4.weight"]) and torch.equal(absmax, t["nf4.weight.absmax"])
again = bnb.dequantize_4bit(packed, absmax, "nf4", 64, [64, 128], torch.float16)
assert torch.equal(again, t["nf4.dequant"])
refused("'shape'", bnb.dequantize_4bit, packed, absmax, "nf4", 64, [2**62, 4], torch.float16)
t = read("bnb_int8_32x64")
codes, rows = bnb.int8_vectorwise_quant(t["weight_fp16"])
assert torch.equal(codes, t["weight"]) and torch.equal(rows, t["SCB"])
assert bnb.int8_vectorwise_dequant(codes.to("meta"), rows.to("meta")).shape == (32, 64)
print("all as their libraries give it")
