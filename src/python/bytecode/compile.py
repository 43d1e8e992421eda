# Compiles Python modules for imgbuild. Reads from standard input, for each module, two lengths as four bytes each (little
# endian), the path that the module will have and its source; answers with a length, then a .pyc with an unchecked hash (PEP 552),
# or with the length 0xffffffff where the source does not compile.
import sys
import _imp
from _frozen_importlib_external import MAGIC_NUMBER, _code_to_hash_pyc

magic = int.from_bytes(MAGIC_NUMBER, "little")
sys.setrecursionlimit(10000)
source, answers = sys.stdin.buffer, sys.stdout.buffer
while True:
    head = source.read(8)
    if len(head) < 8:
        break
    path = source.read(int.from_bytes(head[:4], "little")).decode()
    text = source.read(int.from_bytes(head[4:], "little"))
    try:
        code = compile(text, path, "exec", dont_inherit=True, optimize=0)
        pyc = _code_to_hash_pyc(code, _imp.source_hash(magic, text), False)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        # What pip and compileall leave out as well: templates, code for other versions, what is nested too deeply for marshal.
        answers.write(b"\xff\xff\xff\xff")
    else:
        answers.write(len(pyc).to_bytes(4, "little"))
        answers.write(pyc)
    answers.flush()
