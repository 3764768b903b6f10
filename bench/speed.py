"""Time and memory of a drift audit's columns, from Parquet files, against the peers on the same files in the same run.

Each contestant is a process of its own that reads the two files, compares all columns and ends: seconds are of the
whole process, imports included, and memory is its peak. Of the long files ours runs three times (the median counts),
all else once.

    python bench/speed.py            1 and 5 million rows of 23 columns; some twenty minutes
    python bench/speed.py --wide     300,000 rows of 1,000 columns
    python bench/speed.py --small    a smoke test, into .bench/; also with --wide
"""
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from peers import python_of, version_of
from report import HERE, command_line, document, machine, summary, table, versions, write

from data import CATEGORICAL, NUMERIC, make, make_wide

ROOT = HERE.parent
OURS = """
import sys
from mlgov_nb.drift.columns import decide, drift_table
from mlgov_nb.profile.build import profile
old = profile(sys.argv[1])
columns = decide({"current": drift_table(old, profile(sys.argv[2], old))})["current"]
print(int((columns.drifted == True).sum()), "of", len(columns), "columns drifted")
"""
EVIDENTLY = """
import sys
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset
old, new = (pd.read_parquet(file) for file in sys.argv[1:3])
result = Report([DataDriftPreset()]).run(current_data=new, reference_data=old).dict()
print(result["metrics"][0]["value"])
"""
NANNYML = """
import sys
import pandas as pd
import nannyml
old, new = (pd.read_parquet(file) for file in sys.argv[1:3])
calculator = nannyml.UnivariateDriftCalculator(column_names=list(old), chunk_number=1).fit(old)
print(len(calculator.calculate(new).to_df()), "chunk")
"""
WHYLOGS = """
import sys
import pandas as pd
import whylogs as why
from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores
old, new = (why.log(pd.read_parquet(file)).view() for file in sys.argv[1:3])
print(len(calculate_drift_scores(new, old)), "columns")
"""


class Contestant(NamedTuple):
    "Who compares the columns, and how"
    name: str
    version: str
    python: Path | str
    code: str
    repeats: int = 1


class Result(NamedTuple):
    "What a process took; no numbers where it failed"
    seconds: float | None
    peak_mib: float | None
    message: str             # its last line, or why it failed


def replace_process(python, code, files, output):
    "In the child of a fork: become the contestant, whose output goes to a pipe"
    os.dup2(output, 1)
    if not os.environ.get("BENCH_DEBUG"): os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    path = str(ROOT) if str(python) == sys.executable else ""
    arguments = [str(python), "-W", "ignore", "-c", code, *map(str, files)]
    os.execve(str(python), arguments, {**os.environ, "PYTHONPATH": path})


def wait_for(pid, until):
    "Exit status and resources of a child; None when it has not ended in time and was killed"
    while True:
        ended, status, resources = os.wait4(pid, os.WNOHANG)
        if ended: return status, resources
        if time.perf_counter() > until: break
        time.sleep(0.02)
    os.kill(pid, 9)
    os.wait4(pid, 0)
    return None


def timed(python, code, files, limit):
    "`Result` of one process"
    reading, writing = os.pipe()
    start, pid = time.perf_counter(), os.fork()
    if pid == 0: replace_process(python, code, files, writing)
    os.close(writing)
    ended = wait_for(pid, start + limit)
    seconds = time.perf_counter() - start
    if ended is None:
        os.close(reading)
        return Result(None, None, f"not done after {limit} s")
    status, resources = ended
    lines = os.read(reading, 65_536).decode().strip().splitlines()
    os.close(reading)
    if status: return Result(None, None, f"ended with exit code {os.waitstatus_to_exitcode(status)}")
    return Result(seconds, resources.ru_maxrss / 1024, lines[-1] if lines else "")


def median(results):
    "The median of several runs, or the first failure"
    for result in results:
        if result.seconds is None: return result
    seconds = statistics.median(result.seconds for result in results)
    return Result(seconds, max(result.peak_mib for result in results), results[0].message)


def apart(function, *args):
    "Run in a process of its own: a child's peak memory counts from its parent's, so this one must stay small"
    with ProcessPoolExecutor(1) as pool: return pool.submit(function, *args).result()


def size_in_words(row_count, column_count):
    "Of a pair of files"
    thousands = f"{row_count // 1000:,}k"
    return f"{thousands} + {thousands} rows × {column_count:,} columns"


def long_pairs(folder, small):
    "Reference and current file of each size"
    for row_count in [50_000] if small else [1_000_000, 5_000_000]:
        old = apart(make, folder/f"old_{row_count}.parquet", row_count, 0)
        new = apart(make, folder/f"new_{row_count}.parquet", row_count, 1, True)
        yield size_in_words(row_count, len(CATEGORICAL) + len(NUMERIC)), (old, new)


def wide_pair(folder, small):
    "Reference and current file of many columns"
    row_count, column_count = (20_000, 50) if small else (300_000, 1_000)
    old = apart(make_wide, folder/f"wide_old_{row_count}.parquet", row_count, column_count, 2)
    moved = column_count // 100
    new = apart(make_wide, folder/f"wide_new_{row_count}.parquet", row_count, column_count, 3, moved)
    yield size_in_words(row_count, column_count), (old, new)


def contestants(library_versions, wide):
    "Ours, and the peers that install"
    yield Contestant("mlgov-nb", library_versions["mlgov-nb"], sys.executable, OURS, 1 if wide else 3)
    yield Contestant("Evidently", library_versions["evidently"], sys.executable, EVIDENTLY)
    for name, label, code in (("nannyml", "NannyML", NANNYML), ("whylogs", "whylogs", WHYLOGS)):
        python = python_of(name)
        if python: yield Contestant(label, version_of(name), python, code)


def row_of(data, contestant, result, first):
    "Figures for the JSON file; `first` is the result of the first contestant, which is ours"
    seconds, peak = result.seconds, result.peak_mib
    return dict(
        data=data,
        who=contestant.name,
        version=contestant.version,
        seconds=seconds,
        peak_mib=peak,
        times_ours=seconds and seconds / first.seconds,
        memory_times_ours=peak and peak / first.peak_mib,
        message=result.message,
    )


def main(small, wide, limit, only):
    folder = ROOT/".bench/data"
    folder.mkdir(parents=True, exist_ok=True)
    library_versions = versions("mlgov-nb", "evidently", "numpy", "pandas", "pyarrow", "numba")
    chosen = [one for one in contestants(library_versions, wide) if not only or one.name in only]
    rows = []
    for data, files in (wide_pair if wide else long_pairs)(folder, small):
        first = None
        for contestant in chosen:
            runs = [timed(contestant.python, contestant.code, files, limit) for _ in range(contestant.repeats)]
            result = median(runs)
            first = first or result
            seconds, peak = result.seconds and round(result.seconds, 2), result.peak_mib and round(result.peak_mib)
            print(f"{data}: {contestant.name} {seconds} s, {peak} MiB, {result.message}", file=sys.stderr, flush=True)
            rows.append(row_of(data, contestant, result, first))
    report(rows, library_versions, wide, ROOT/".bench" if small else HERE)


def shown(row):
    "A row of the table"
    return {
        "data": row["data"],
        "contestant": f"{row['who']} {row['version']}",
        "seconds": f"{row['seconds']:.1f}" if row["seconds"] else row["message"],
        "peak MiB": f"{row['peak_mib']:,.0f}" if row["peak_mib"] else "",
        "time, ours = 1": f"{row['times_ours']:.1f}" if row["seconds"] else "",
        "memory, ours = 1": f"{row['memory_times_ours']:.1f}" if row["peak_mib"] else "",
    }


def report(rows, library_versions, wide, folder):
    if wide:
        name, flag, title = "wide", " --wide", "Speed and memory, many columns"
        what = "Normal numbers, a hundredth of the columns shifted by a tenth of a deviation"
    else:
        name, flag, title = "speed", "", "Speed and memory"
        what = "Rows are drawn from the American Community Survey's"
    shown_rows = [shown(row) for row in rows]
    parts = [
        f"# {title}",
        f"`python bench/speed.py{flag}`: {summary(__doc__)} {what} (`bench/data.py`); "
        "every contestant compares all columns by its defaults.",
        table(shown_rows, list(shown_rows[0])),
    ]
    if not wide:
        parts.append("The bar: at least 20 times Evidently at 5 million rows, under 1 GiB, "
                     "and the memory of 1 million rows at 5 million.")
    write(name, document(*parts), dict(machine=machine(), versions=library_versions, rows=rows), folder)
    print(Path(folder)/f"{name}.md")


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--limit", type=int, default=900, help="seconds allowed to one contestant")
    parser.add_argument("--only", nargs="*", help="contestants")
    arguments = parser.parse_args()
    main(arguments.small, arguments.wide, arguments.limit, arguments.only)
