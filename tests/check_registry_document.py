"""Every example of docs/registry.md is a registry file without mistakes:
check_registry_document.py GRAFT DOCUMENT PLUGINS."""
import pathlib
import re
import subprocess
import sys
import tempfile

graft, document, plugins = sys.argv[1:]
blocks = re.findall(r"```yaml\n(.*?)```", pathlib.Path(document).read_text(), re.DOTALL)
keys = {key for block in blocks for key in re.findall(r"\b(\w+):", block)}
assert {"class", "methods", "replacement", "keep", "match", "plugin", "priority", "device",
        "options", "aliases", "skip", "replace"} <= keys
with tempfile.TemporaryDirectory() as folder:
    rules = pathlib.Path(folder) / "rules.yaml"
    for block in blocks:
        rules.write_text(block)
        done = subprocess.run([graft, "registry", "check", "--registry", rules, "--plugin-path", plugins],
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
print(len(blocks), "examples are without mistakes")
