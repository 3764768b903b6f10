"""How the library notebooks read: a table of the sizes of cells, lines and names.

`python tools/readability.py [FOLDER ...]`: every notebook below nbs/, or those of the folders named.
`--worst` also lists the largest exported cells, the longest lines, and cells that end in a value without its output.
"""
import ast
import json
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_LINE = 120
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Sizes:
    "What is counted in a set of notebooks"
    exported: list = field(default_factory=list)       # (place, characters, lines, definitions)
    functions: list = field(default_factory=list)      # lines of each function
    long_lines: list = field(default_factory=list)     # (place, characters)
    silent: list = field(default_factory=list)         # places of cells that end in a value and keep no output
    statements: list = field(default_factory=list)     # places of lines with more than one statement
    nested: list = field(default_factory=list)         # places of a conditional inside a conditional
    prose: int = 0                                      # characters of Markdown
    pictures: int = 0


def notebooks(folders):
    "Notebooks below nbs/, without the checkpoints of Jupyter"
    places = [ROOT/"nbs"/name for name in folders] or [ROOT/"nbs"]
    found = {nb for place in places for nb in place.rglob("*.ipynb")}
    return sorted(nb for nb in found if ".ipynb_checkpoints" not in nb.parts)


def parsed(source):
    "The syntax tree of a cell; None where it holds magics"
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def ends_in_value(tree, quiet):
    "Does a cell end in an expression that Jupyter shows? `quiet` are the notebook's own functions that give nothing"
    if tree is None or not tree.body or not isinstance(tree.body[-1], ast.Expr): return False
    last = tree.body[-1].value
    return not (isinstance(last, ast.Call) and called_name(last) in SHOWS_NOTHING | quiet)


def gives_nothing(function):
    "Has a function no return with a value?"
    nodes = list(ast.walk(function))
    if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in nodes): return False
    return not any(isinstance(node, ast.Return) and node.value is not None for node in nodes)


def quiet_functions(cells):
    "Names of the functions of a notebook that give nothing"
    trees = [parsed("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    functions = [node for tree in trees if tree for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions if gives_nothing(function)}


SHOWS_NOTHING = {"print", "test_eq", "test_close", "test_fail", "test_ne", "test_is", "test", "close", "sleep",
                 "unlink", "mkdir", "write_text", "write_bytes", "append", "update", "add", "shutdown", "cleanup",
                 "join", "rmtree", "use_style", "test_warns", "test_eq_type", "simplefilter", "filterwarnings", "seed",
                 "stop", "start", "expect_fail", "savefig",
                 "write_table", "to_parquet", "to_csv", "sync", "seal", "put", "copy", "copytree"}


def called_name(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def crowded_lines(tree):
    "Lines on which a statement follows another of the same block"
    crowded = set()
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            lines = [statement.lineno for statement in block] if isinstance(block, list) else []
            crowded |= {line for line in lines if lines.count(line) > 1}
    return crowded


def has_nested_conditional(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            inner = [x for part in (node.body, node.orelse, node.test) for x in ast.walk(part)]
            if any(isinstance(x, ast.IfExp) for x in inner): return True
    return False


def count_exported(sizes, place, source):
    code = re.sub(r"(?m)^#\|.*\n?", "", source)
    tree = parsed(code)
    body = tree.body if tree else []
    if body and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body): return
    defined = sum(isinstance(node, DEFINITIONS) for node in body)
    lines = [line for line in code.splitlines() if line.strip()]
    sizes.exported.append((place, len(code), len(lines), defined))
    functions = [n for n in ast.walk(tree) if isinstance(n, DEFINITIONS[:2])] if tree else []
    sizes.functions += [node.end_lineno - node.lineno + 1 for node in functions]


def count_cell(sizes, place, cell, quiet):
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        sizes.prose += len(source)
        return
    sizes.long_lines += [(place, len(line)) for line in source.splitlines() if len(line) > LONGEST_LINE]
    outputs = cell.get("outputs", [])
    sizes.pictures += sum("image/png" in output.get("data", {}) for output in outputs)
    tree = parsed(source)
    if tree is not None:
        if crowded_lines(tree): sizes.statements.append(place)
        if has_nested_conditional(tree): sizes.nested.append(place)
    exported = source.startswith("#| export")
    if exported: count_exported(sizes, place, source)
    hidden = source.startswith(("#| export", "#| hide"))
    run_by_papermill = "nbs/audits/" in place       # their executed copies, with outputs, are below reports/
    if not (hidden or run_by_papermill or outputs) and ends_in_value(tree, quiet): sizes.silent.append(place)


def measure_notebooks(files):
    sizes = Sizes()
    for nb in files:
        cells = json.loads(nb.read_text())["cells"]
        quiet = quiet_functions(cells)
        for number, cell in enumerate(cells):
            count_cell(sizes, f"{nb.relative_to(ROOT)} cell {number}", cell, quiet)
    return sizes


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def spread(values):
    "Median, ninth decile and largest"
    middle = statistics.median(values) if values else 0
    return f"{middle:,.0f} / {quantile(values, 0.9):,} / {max(values, default=0):,}"


# Measured in the same way in fastcore's nbs/ (20 notebooks) and nbdev's nbs/api (19)
PEERS = {"exported cells: lines, median / p90 / max": ("6 / 18 / 55", "10 / 25 / 69"),
         "exported cells: characters, median / p90 / max": ("242 / 890 / 4,059", "408 / 1,261 / 2,911"),
         "a function: lines, median / p90 / max": ("4 / 11 / 45", "5 / 17 / 51"),
         "exported cells with several definitions": ("9%", "17%"),
         "prose per exported character": ("0.54", "0.28"),
         "pictures": ("5", "0")}


def table(sizes):
    characters = [size for _, size, _, _ in sizes.exported]
    several = sum(defined > 1 for _, _, _, defined in sizes.exported)
    ours = {"exported cells: lines, median / p90 / max": spread([lines for _, _, lines, _ in sizes.exported]),
            "exported cells: characters, median / p90 / max": spread(characters),
            "a function: lines, median / p90 / max": spread(sizes.functions),
            "exported cells with several definitions": f"{several / max(len(characters), 1):.0%}",
            "prose per exported character": f"{sizes.prose / max(sum(characters), 1):.2f}",
            "pictures": str(sizes.pictures),
            f"lines over {LONGEST_LINE} characters": str(len(sizes.long_lines)),
            "cells with two statements on a line": str(len(sizes.statements)),
            "cells with a conditional in a conditional": str(len(sizes.nested)),
            "cells that end in a value and keep no output": str(len(sizes.silent))}
    rows = ["| | here | fastcore | nbdev |", "|---|---|---|---|"]
    for name, value in ours.items():
        fastcore, nbdev = PEERS.get(name, ("", ""))
        rows.append(f"| {name} | {value} | {fastcore} | {nbdev} |")
    return "\n".join(rows)


def worst(sizes):
    largest = sorted(sizes.exported, key=lambda row: -row[1])[:12]
    out = ["", "largest exported cells:", *(f"  {size:,} characters: {place}" for place, size, _, _ in largest)]
    longest = sorted(sizes.long_lines, key=lambda row: -row[1])[:12]
    out += ["longest lines:", *(f"  {size}: {place}" for place, size in longest)]
    out += ["no output kept:", *(f"  {place}" for place in sizes.silent[:30])]
    out += ["two statements on a line:", *(f"  {place}" for place in sizes.statements[:20])]
    return "\n".join([*out, "nested conditionals:", *(f"  {place}" for place in sizes.nested[:20])])


if __name__ == "__main__":
    asked = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    found = measure_notebooks(notebooks(asked))
    print(table(found))
    if "--worst" in sys.argv: print(worst(found))
