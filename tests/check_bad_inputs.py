"""Tests that a document's table of bad inputs names: check_bad_inputs.py CTEST BUILD DOCUMENT."""
import json
import pathlib
import re
import subprocess
import sys

ctest, build, document = sys.argv[1:]
listed = json.loads(subprocess.run([ctest, "--test-dir", build, "--show-only=json-v1"], check=True,
                                   capture_output=True, text=True).stdout)
known = {test["name"] for test in listed["tests"]}

rows = [[cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in pathlib.Path(document).read_text().splitlines() if re.match(r"\| *\d+ *\|", line)]
mistakes = []
numbers = [int(row[0]) for row in rows]
if numbers != list(range(1, 111)):
    mistakes.append(f"the lines are not 1 to 110 in order: {numbers}")
named = 0
for row in rows:
    if len(row) != 4:
        mistakes.append(f"line {row[0]} has {len(row)} cells, expected number, input, answer, tests")
        continue
    tests = re.findall(r"`([^`]+)`", row[3])
    named += len(tests)
    mistakes += [f"line {row[0]} names a test that does not exist: {name!r}"
                 for name in tests if name not in known]
    # What cannot be tested or is not there has words in place of a name.
    if not tests and len(row[3]) < 10:
        mistakes.append(f"line {row[0]} names no test and says no reason")
print(*mistakes, sep="\n")
print(f"{len(rows)} lines, {named} names of tests, {len(mistakes)} mistakes")
sys.exit(bool(mistakes))
