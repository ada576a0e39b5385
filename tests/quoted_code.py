"""Every piece of code in a document that names its file in the first line is in that file:
quoted_code.py ROOT DOCUMENT..."""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
pieces = 0
for document in sys.argv[2:]:
    text = (root / document).read_text()
    for name, code in re.findall(r"```\w+\n(?://|#|/\*) ([\w/.-]+\.\w+)(?: \*/)?\n(.*?)\n```", text,
                                 re.DOTALL):
        if code not in (root / name).read_text():
            sys.exit(f"{document}: what it quotes of {name} is not there any more:\n{code}")
        pieces += 1
assert pieces, "no code was quoted"
print(pieces, "pieces of code are where the documents say")
