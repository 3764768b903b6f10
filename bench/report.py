"""What every benchmark writes: a table in Markdown and the same as JSON, with versions and machine."""
import argparse
import importlib.metadata
import os
import platform
from pathlib import Path

from mlgov_nb.files import write_atomic, write_json

HERE = Path(__file__).parent


def machine():
    "Where a figure was measured"
    cpu = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").is_file() else platform.processor()
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return dict(cpu=cpu, cores=os.cpu_count(), memory_gib=round(ram) if ram else None, system=f"{platform.system()} {platform.machine()}", python=platform.python_version())


def versions(*names):
    "Versions of the project's libraries"
    return {n: importlib.metadata.version(n).split("+")[0] for n in names}


def table(rows, columns):
    "Markdown of a list of dicts"
    def line(cells): return "| " + " | ".join(str(c) for c in cells) + " |"
    return "\n".join([line(columns), line(["---"] * len(columns)), *(line([r.get(c, "") for c in columns]) for r in rows)])


def write(name, text, data, folder=HERE):
    "`name`.md and `name`.json, each whole or not at all"
    m = data["machine"]
    foot = f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Python {m['python']}; " + ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    write_atomic(Path(folder)/f"{name}.md", f"{text}\n\nMeasured on: {foot}. The same as JSON: `{name}.json`.\n")
    write_json(Path(folder)/f"{name}.json", data)


def started(run, about):
    "Call `run(small, folder)` as the command line says: `--small` is a smoke test that writes into .bench/"
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--small", action="store_true")
    small = p.parse_args().small
    folder = HERE.parent/".bench" if small else HERE
    folder.mkdir(exist_ok=True)
    run(small, folder)
