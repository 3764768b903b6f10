"""Time and memory of a drift audit's columns, from Parquet files, against the peers on the same files in the same run.

Each contestant is a process of its own that reads the two files, compares all columns and ends: seconds are of the whole
process, imports included, and memory is its peak. Of the long files ours runs three times (the median counts), all else once.

    python bench/speed.py            1 and 5 million rows of 23 columns; some twenty minutes
    python bench/speed.py --wide     300,000 rows of 1,000 columns
    python bench/speed.py --small    a smoke test, into .bench/; also with --wide
"""
import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from peers import python_of, version_of
from report import HERE, machine, table, versions, write

from data import CATEGORICAL, NUMERIC, make, make_wide

ROOT = HERE.parent
OURS = """
import sys
from mlgov_nb.drift.columns import decide, drift_table
from mlgov_nb.profile.build import profile
old = profile(sys.argv[1])
t = decide({"current": drift_table(old, profile(sys.argv[2], old))})["current"]
print(int((t.drifted == True).sum()), "of", len(t), "columns drifted")
"""
EVIDENTLY = """
import sys
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset
old, new = (pd.read_parquet(f) for f in sys.argv[1:3])
got = Report([DataDriftPreset()]).run(current_data=new, reference_data=old).dict()
print(got["metrics"][0]["value"])
"""
NANNYML = """
import sys
import pandas as pd
import nannyml
old, new = (pd.read_parquet(f) for f in sys.argv[1:3])
calc = nannyml.UnivariateDriftCalculator(column_names=list(old), chunk_number=1).fit(old)
print(len(calc.calculate(new).to_df()), "chunk")
"""
WHYLOGS = """
import sys
import pandas as pd
import whylogs as why
from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores
old, new = (why.log(pd.read_parquet(f)).view() for f in sys.argv[1:3])
print(len(calculate_drift_scores(new, old)), "columns")
"""


def timed(python, code, files, limit):
    "Seconds, peak MiB, last line or reason of one process"
    r, w = os.pipe()
    t, pid = time.perf_counter(), os.fork()
    if pid == 0:
        os.dup2(w, 1); os.dup2(os.open(os.devnull, os.O_WRONLY) if not os.environ.get("BENCH_DEBUG") else 2, 2)
        os.execve(str(python), [str(python), "-W", "ignore", "-c", code, *map(str, files)], {**os.environ, "PYTHONPATH": str(ROOT) if str(python) == sys.executable else ""})
    os.close(w)
    while True:
        done, status, use = os.wait4(pid, os.WNOHANG)
        if done or time.perf_counter() - t > limit: break
        time.sleep(0.02)
    if not done: os.kill(pid, 9); os.wait4(pid, 0); return None, None, f"not done after {limit} s"
    seconds, said = time.perf_counter() - t, os.read(r, 65_536).decode().strip().splitlines()
    os.close(r)
    if status: return None, None, f"ended with exit code {os.waitstatus_to_exitcode(status)}"
    return seconds, use.ru_maxrss / 1024, said[-1] if said else ""


def median(runs):
    "The median of several runs, or the first failure"
    bad = next((x for x in runs if x[0] is None), None)
    return bad or (statistics.median(x[0] for x in runs), max(x[1] for x in runs), runs[0][2])


def apart(f, *args):
    "Run in a process of its own: a child's peak memory counts from its parent's, so this one must stay small"
    with ProcessPoolExecutor(1) as pool: return pool.submit(f, *args).result()


def long_pairs(folder, small):
    "Reference and current file of each size"
    for n in [50_000] if small else [1_000_000, 5_000_000]:
        yield f"{n // 1000:,}k + {n // 1000:,}k rows × {len([*CATEGORICAL, *NUMERIC])} columns", (apart(make, folder/f"old_{n}.parquet", n, 0), apart(make, folder/f"new_{n}.parquet", n, 1, True))


def wide_pair(folder, small):
    n, k = (20_000, 50) if small else (300_000, 1_000)
    yield f"{n // 1000:,}k + {n // 1000:,}k rows × {k:,} columns", (apart(make_wide, folder/f"wide_old_{n}.parquet", n, k, 2), apart(make_wide, folder/f"wide_new_{n}.parquet", n, k, 3, k // 100))


def main(small, wide, limit, only):
    folder = ROOT/".bench/data"
    folder.mkdir(parents=True, exist_ok=True)
    v = versions("mlgov-nb", "evidently", "numpy", "pandas", "pyarrow", "numba")
    contestants = {"mlgov-nb": (sys.executable, OURS, v["mlgov-nb"], 1 if wide else 3), "Evidently": (sys.executable, EVIDENTLY, v["evidently"], 1)}
    for name, label, code in (("nannyml", "NannyML", NANNYML), ("whylogs", "whylogs", WHYLOGS)):
        if py := python_of(name): contestants[label] = (py, code, version_of(name), 1)
    rows = []
    for data, files in (wide_pair if wide else long_pairs)(folder, small):
        base = None
        for who, (py, code, version, repeat) in contestants.items():
            if only and who not in only: continue
            s, mb, said = median([timed(py, code, files, limit) for _ in range(repeat)])
            base = base or (s, mb)
            print(f"{data}: {who} {s and round(s, 2)} s, {mb and round(mb)} MiB, {said}", file=sys.stderr, flush=True)
            rows.append(dict(data=data, who=who, version=version, seconds=s, peak_mib=mb, times_ours=s and s / base[0], memory_times_ours=mb and mb / base[1], said=said))
    report(rows, v, wide, ROOT/".bench" if small else HERE)


def report(rows, v, wide, folder):
    shown = [dict(data=r["data"], contestant=f"{r['who']} {r['version']}", seconds=f"{r['seconds']:.1f}" if r["seconds"] else r["said"], **{"peak MiB": f"{r['peak_mib']:,.0f}" if r["peak_mib"] else "", "time, ours = 1": f"{r['times_ours']:.1f}" if r["seconds"] else "", "memory, ours = 1": f"{r['memory_times_ours']:.1f}" if r["peak_mib"] else ""}) for r in rows]
    what = "Normal numbers, a hundredth of the columns shifted by a tenth of a deviation" if wide else "Rows are drawn from the American Community Survey's"
    name, flag = ("wide", " --wide") if wide else ("speed", "")
    text = f"# Speed and memory{', many columns' if wide else ''}\n\n`python bench/speed.py{flag}`: {' '.join(__doc__.split('    python')[0].split())} {what} (`bench/data.py`); every contestant compares all columns by its defaults.\n\n"
    text += table(shown, list(shown[0])) + ("" if wide else "\n\nThe bar: at least 20 times Evidently at 5 million rows, under 1 GiB, and the memory of 1 million rows at 5 million.")
    write(name, text, dict(machine=machine(), versions=v, rows=rows), folder)
    print(Path(folder)/f"{name}.md")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--small", action="store_true"); p.add_argument("--wide", action="store_true"); p.add_argument("--limit", type=int, default=900, help="seconds allowed to one contestant"); p.add_argument("--only", nargs="*", help="contestants")
    a = p.parse_args()
    main(a.small, a.wide, a.limit, a.only)
