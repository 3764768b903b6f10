"""What every benchmark writes: a table in Markdown and the same as JSON, with versions and machine."""
import argparse
import importlib.metadata
import os
import platform
from pathlib import Path

from mlgov_nb.files import write_atomic, write_json

HERE = Path(__file__).parent


def cpu_name():
    "The processor, as the system names it"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"): return line.split(":")[1].strip()
    return platform.processor()


def machine():
    "Where a figure was measured"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return dict(
        cpu=cpu_name(),
        cores=os.cpu_count(),
        memory_gib=round(memory) if memory else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
    )


def versions(*names):
    "Versions of the project's libraries"
    return {name: importlib.metadata.version(name).split("+")[0] for name in names}


def summary(doc):
    "What a module's docstring says before its commands, in one line"
    return " ".join(doc.split("    python")[0].split())


def document(*parts):
    "Markdown of parts, with a blank line between two"
    return "\n\n".join(parts)


def table(rows, columns):
    "Markdown of a list of dicts"
    def line(cells): return "| " + " | ".join(str(cell) for cell in cells) + " |"
    body = [line([row.get(column, "") for column in columns]) for row in rows]
    return "\n".join([line(columns), line(["---"] * len(columns)), *body])


def write(name, text, data, folder=HERE):
    "`name`.md and `name`.json, each whole or not at all"
    place = data["machine"]
    used = ", ".join(f"{library} {version}" for library, version in data["versions"].items())
    measured = f"{place['cpu']}, {place['cores']} cores, {place['memory_gib']} GiB, Python {place['python']}; {used}"
    foot = f"Measured on: {measured}. The same as JSON: `{name}.json`.\n"
    write_atomic(Path(folder)/f"{name}.md", document(text, foot))
    write_json(Path(folder)/f"{name}.json", data)


def command_line(about):
    "A parser whose help is a module's docstring"
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def started(run, about):
    "Call `run(small, folder)` as the command line says: `--small` is a smoke test that writes into .bench/"
    parser = command_line(about)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    folder = HERE.parent/".bench" if small else HERE
    folder.mkdir(exist_ok=True)
    run(small, folder)
