"""A plugin's operators in Python: operators.py LIBGRAFT_RTN8. Needs the torch that graft was built with."""
import sys

import torch

from load_operators import load_operators

load_operators(sys.argv[1])
linear = torch.ops.graft_rtn8.linear
torch.manual_seed(0)
x, codes = torch.randn(3, 5, 64), torch.randint(-127, 128, (32, 64), dtype=torch.int8)
scales, bias = torch.rand(32) / 100, torch.randn(32)
expected = torch.nn.functional.linear(x, codes.float() * scales[:, None], bias)
torch.testing.assert_close(linear(x, codes, scales, bias), expected)
print("on the CPU:", tuple(linear(x, codes, scales, bias).shape), "as torch computes it")
meta = linear(x.to("meta"), codes.to("meta"), scales.to("meta"), None)
print("on meta:", tuple(meta.shape))
print("compiled:", torch.equal(torch.compile(lambda t: linear(t, codes, scales, bias) + 1,
                                             backend="eager", fullgraph=True)(x),
                               linear(x, codes, scales, bias) + 1))
try:
    linear(x[..., 1:], codes, scales, bias)
except RuntimeError as refused:
    print("refused:", str(refused).splitlines()[0])
