"""The C++ that crosses between plugins and hosts is laid out as border.txt says:
check_border.py COMPILER TORCH [--write].

A size or a virtual function that changes breaks every plugin that is out there, unless the interface
gets a new number (kQuantizerInterface) and border.txt is written again."""
import pathlib
import re
import subprocess
import sys
import tempfile

compiler, torch = sys.argv[1], pathlib.Path(sys.argv[2])
here = pathlib.Path(__file__).parent
headers = here.parents[1] / "framework/include"
record = here / "border.txt"
revisions = [re.search(r'k\w+Interface = "([^"]+)"', (headers / "graft" / header).read_text()).group(1)
             for header in ("quantizer.h", "restructuring.h")]

with tempfile.TemporaryDirectory() as folder:
    dump = pathlib.Path(folder) / "classes"
    subprocess.run([compiler, "-std=c++20", "-fsyntax-only", f"-fdump-lang-class={dump}",
                    "-I", headers, "-isystem", torch / "include",
                    "-isystem", torch / "include/torch/csrc/api/include", here / "border.cpp"],
                   check=True)
    text = dump.read_text()

lines = list(revisions)
for name, size in re.findall(r"^Class (graft::[\w:]+)\n\s+size=(\d+)", text, re.MULTILINE):
    lines.append(f"{name}: {size} bytes")
for header in ("quantizer.h", "quant_config.h", "nn/block.h", "nn/unary.h", "nn/experts.h", "nn/row_product.h",
               "nn/row_linear.h"):
    text = re.sub(r"//.*", "", (headers / "graft" / header).read_text())
    for function in re.findall(r"^  virtual ([^;{]+)", text, re.MULTILINE):
        lines.append(f"{header}: " + " ".join(function.replace("= 0", "").split()))
found = "\n".join(lines) + "\n"

if sys.argv[3:] == ["--write"]:
    record.write_text(found)
elif found != record.read_text():
    import difflib
    print(*difflib.unified_diff(record.read_text().splitlines(), found.splitlines(), "border.txt",
                                "the headers", lineterm="", n=0), sep="\n")
    same = record.read_text().splitlines()[:len(revisions)] == revisions
    sys.exit("the border has changed, but its number has not: give kQuantizerInterface or "
             f"kRestructuringInterface the one after {' or '.join(revisions)} and write border.txt "
             "again with --write" if same else
             "the border has a new number: write border.txt again with --write")
print(len(lines), "lines of the border are as written down")
