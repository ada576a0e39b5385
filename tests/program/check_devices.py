"""Parts of a model on several devices: check_devices.py GRAFT GOLDEN. What needs no device to be seen."""
import json
import pathlib
import tempfile

from calling_graft import as_json, checks, dense, golden, nf4, run

gptq = golden / "quant/gptq-w4-g32"
mixed = json.dumps({"": "cuda:0", "model.layers.1": "cpu"})


def devices(plan):
    return {module["path"]: module["device"] for module in plan["modules"]}


def kernels(plan):
    return {module["path"]: module.get("kernel", module["reason"]) for module in plan["modules"]}


# What the command line may say.
run("plan", dense, "--device", "cpu", "--device-map", "auto", code=1, says="--device")
run("plan", dense, "--max-memory", "{}", code=1, says="--max-memory requires --device-map")
run("plan", dense, "--device-map", "{", code=1, says="--device-map")
run("plan", dense, "--device-map", '{"": "disk"}', code=1, says="cannot stay on the disk")
run("plan", dense, "--device-map", '{"model": 0}', code=1,
    says="lm_head: the device map has no device for a part of the model")
run("plan", dense, "--device-map", "auto", "--max-memory", '{"0": "1KB", "cpu": "1KB"}', code=1,
    says="does not fit into the memory it may use")
with tempfile.TemporaryDirectory() as name:
    file = pathlib.Path(name) / "map.json"
    file.write_text(mixed)
    assert devices(as_json("plan", dense, "--device-map", file)) == devices(
        as_json("plan", dense, "--device-map", mixed))
    file.write_text("{]")
    run("plan", dense, "--device-map", file, code=2, says="map.json")

# The plan says what goes where, for people too.
found = devices(as_json("plan", dense, "--device-map", mixed))
assert found["model.layers.0.mlp.up_proj"] == found["lm_head"] == "cuda:0", found
assert found["model.layers.1.mlp.up_proj"] == "cpu", found
run("plan", dense, "--device-map", mixed,
    out=["cuda:0 ", "model.embed_tokens to lm_head\n", "cpu ", "model.layers.1."])
size = as_json("plan", dense)["bytes_after"]
spread = as_json("plan", dense, "--device-map", "auto", "--max-memory",
                 json.dumps({"0": size // 2, "cpu": "1GB"}))
assert set(devices(spread).values()) == {"cuda:0", "cpu"}, devices(spread)

# A map of the CPU alone changes nothing; without room on a GPU neither does auto.
ids = ["--ids", "1,2,3", "--max-new-tokens", "4"]
plain = run("generate", nf4, *ids).stdout
assert run("generate", nf4, "--device-map", '{"": "cpu"}', *ids).stdout == plain
assert run("generate", nf4, "--device-map", "auto", "--max-memory", '{"cpu": "1GB"}',
           *ids).stdout == plain
run("generate", dense, "--device-map", "auto", "--max-memory", '{"99": "1GB"}', *ids, code=1,
    says="CUDA device")
assert run("generate", nf4, "--deterministic", *ids).stdout == plain
assert run("generate", nf4, "--fp32-cpu-offload", *ids).stdout == plain

# Each part has the kernels of its device, in a build that has them for GPUs.
claims = as_json("registry", "list")["claims"]
if "cuda" not in {claim["device"] for claim in claims}:
    run("plan", gptq, "--device-map", mixed, code=1,
        says="no plugin serves the method 'gptq' on the device 'cuda'")
else:
    found = kernels(as_json("plan", gptq, "--device-map", mixed))
    assert found["model.layers.0.mlp.up_proj"] == "cuda int4", found
    assert found["model.layers.1.mlp.up_proj"].startswith("cpu "), found
    # bitsandbytes as in Transformers: the settings have to allow it.
    run("plan", nf4, "--device-map", mixed, code=1,
        says=["llm_int8_enable_fp32_cpu_offload", "--fp32-cpu-offload"])
    how = ["--method", "bitsandbytes", "--device-map", mixed]
    run("plan", dense, *how, code=1, says="llm_int8_enable_fp32_cpu_offload")
    found = kernels(as_json("plan", dense, *how, "--fp32-cpu-offload"))
    assert found["model.layers.0.mlp.up_proj"] == "cuda 4-bit", found
    assert found["model.layers.1.mlp.up_proj"].startswith("it stays on the CPU"), found
    run("plan", nf4, "--device-map", '{"": "cpu"}')
    run("plan", nf4, "--device-map", '{"": 0, "lm_head": 1}')

print(f"{len(checks)} checks")
