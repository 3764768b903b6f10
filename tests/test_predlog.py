"""The prediction log under what happens to logs: killed writers, full and read-only disks, readers and erasures beside
writers"""
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.labels import join_labels, read_labels
from mlgov_nb.data.read import read_rows
from mlgov_nb.log.erasure import forget
from mlgov_nb.log.query import connect, stat
from mlgov_nb.log.record import iso, record_bytes
from mlgov_nb.log.segment import LogError, Segment, adopt, read_lines, segments
from mlgov_nb.log.subject import subject_key
from mlgov_nb.log.window import close_window
from mlgov_nb.settings import MlgovError

SECRET = b"a key of the tests"
CARD = load_card(card_path(ROOT, "gss_wages"))
RECORD = """
from mlgov_nb.log.record import Clock, Ids, iso, record_bytes
from mlgov_nb.log.segment import *
from mlgov_nb.log.subject import subject_key
clock, ids = Clock(), Ids()
features = dict(
    age=41.0, prestg10=30.0, childs=2.0, occ10=20.0, occrecode="Sales", wrkstat="Full-Time", educcat="Bachelor",
    maritalcat="Married", gender="Male",
)
def record(who="p", **row):
    us = clock.now()
    about = dict(prediction_id=ids.one(us), ts=iso(us), model="m", version="v", arm="champion")
    answer = dict(score=0.5, decision=1, latency_ms=0.2, subject=subject_key(b"a key of the tests", who))
    return dict(**about, **features, **row, **answer)
"""


def script(body, *args, **options):
    "A process of its own that runs Python code"
    command = [sys.executable, "-W", "ignore", "-c", RECORD + textwrap.dedent(body), *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def done(process, seconds=120):
    "What a process printed, when it has ended well"
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"{out[-2000:]}\n{err[-4000:]}"
    return out


def next_lines(process, count): return [process.stdout.readline() for _ in range(count)]


def finish(process):
    "Let a waiting writer end"
    process.stdin.write("\n")
    process.stdin.flush()
    return done(process)


def states(log): return {segment.state for segment in segments(log)}


def logged(folder):
    "Names in the log, as often as they are there; and torn lines"
    names, torn = [], 0
    for segment in segments(folder, "predictions"):
        if segment.file.suffix == ".parquet":
            names += pq.read_table(segment.file)["prediction_id"].to_pylist()
            continue
        lines, torn_here = read_lines(segment.file)
        names += [msgspec.json.decode(line)["prediction_id"] for line in lines]
        torn += torn_here
    return names, torn


@contextmanager
def small_disk(at, size="256k"):
    "A disk of its own; skips where none may be mounted"
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def remount(disk, how): subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


KILLED = """
    import asyncio, os, random, signal, sys, time
    import pyarrow as pa
    folder, acks = sys.argv[1:3]
    def acknowledge(ack, row): os.write(ack, row["prediction_id"].encode() + b"\\n")
    def write(log, ack):     # says a name only when the log has it
        for i in range(10**9):
            row = record()
            if i % 97 == 96:
                log.append_table(pa.Table.from_pylist([row]))
            else:
                log.append(record_bytes(row))
            acknowledge(ack, row)
            if i % 50 == 0:
                log.turn()
    async def write_durably(log, ack):
        async def one():
            while True:
                row = record()
                log.append(record_bytes(row))
                await log.durable()
                acknowledge(ack, row)
        async def turn():
            while True:
                await asyncio.sleep(0.01)
                await asyncio.to_thread(log.turn)
        await asyncio.gather(turn(), *(one() for _ in range(8)))
    def child(name, how):
        ack = os.open(f"{acks}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        log = Segment(folder, "predictions", fsync=how, rotate_bytes=30_000)
        if how == "always":
            asyncio.run(write_durably(log, ack))
        write(log, ack)
    rng = random.Random(7)
    for turn in range(20):
        pids = []
        for writer in range(8):
            pid = os.fork()
            if pid == 0:
                try:
                    child(f"{turn}-{writer}", ("never", "interval", "always")[turn % 3])
                finally:
                    os._exit(1)
            pids.append(pid)
        time.sleep(rng.uniform(0.02, 0.3))
        for pid in rng.sample(pids, 8):
            os.kill(pid, signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.005))
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL     # none ended by itself
        if turn % 2:
            adopt(folder)
"""


@pytest.mark.slow("kills writers, many times")
def test_every_acknowledged_record_is_there_once_whenever_writers_are_killed(tmp_path):
    log, acks = tmp_path/"log", tmp_path/"acks"
    acks.mkdir()
    done(script(KILLED, log, acks))
    acknowledged = [name for file in acks.iterdir() for name in file.read_text().split("\n")[:-1]]
    adopt(log)
    assert states(log) == {"sealed"}
    names, torn = logged(log)
    assert len(acknowledged) > 2000
    assert len(set(acknowledged)) == len(acknowledged)
    assert len(names) == len(set(names)), "a record is there twice"
    assert not set(acknowledged) - set(names), "an acknowledged record is gone"
    # what was written and not yet acknowledged: one record at a time, eight with 'always'
    assert len(names) - len(acknowledged) <= 20 * 8 * 8
    assert torn == 0                                   # one write a record leaves no torn line
    assert stat(log)["records"] == len(names)


FULL = """
    import sys, time
    from pathlib import Path
    folder, other = sys.argv[1:3]
    log = Segment(folder, "predictions", rotate_bytes=20_000)
    acknowledged, refused, more = [], 0, 0
    print("begun", flush=True)
    while more < 5:             # five more when there is room again
        row = record()
        try:
            log.append(record_bytes(row))
            acknowledged.append(row["prediction_id"])
            more += bool(refused) and not Path(other).exists()
        except LogError as error:
            assert error.errno == 28 and "no space" in str(error) and folder not in str(error), error
            if not refused:
                print("full", flush=True)
            refused += 1
            time.sleep(0.01)
        try:
            log.turn()
        except LogError:
            pass
    log.seal()
    print("\\n".join(acknowledged))
"""


def test_a_full_disk_refuses_and_recovers_by_itself(tmp_path):
    with small_disk(tmp_path) as disk:
        log, other = disk/"log", disk/"other"
        other.write_bytes(bytes(100_000))
        writers = [script(FULL, log, other) for _ in range(3)]
        for writer in writers:
            assert next_lines(writer, 2) == ["begun\n", "full\n"]
        segment = Segment(log, "predictions")
        with pytest.raises(LogError) as refusal:
            segment.probe()
        assert refusal.value.errno == errno.ENOSPC
        other.unlink()
        acknowledged = [name for writer in writers for name in done(writer).split()]
        segment.probe()
        names, torn = logged(log)
        assert sorted(names) == sorted(acknowledged)
        assert torn == 0
        assert states(log) == {"sealed"}
        assert not [file for file in log.iterdir() if file.name.startswith(".p")]


def test_a_read_only_disk_refuses_and_recovers(tmp_path):
    with small_disk(tmp_path) as disk:
        log = Segment(disk/"log", "predictions")
        log.append(b'{"prediction_id":"a"}\n')
        log.seal()
        remount(disk, "ro")
        writes = (
            lambda: log.append(b'{"prediction_id":"b"}\n'),
            log.probe,
            lambda: log.append_table(pa.table({"prediction_id": ["c"]})),
        )
        for write in writes:
            with pytest.raises(LogError, match="read-only") as refusal:
                write()
            assert refusal.value.errno == errno.EROFS
            assert str(disk) not in str(refusal.value)
        assert stat(disk/"log")["segments"] == dict(live=0, orphan=0, sealed=1)
        remount(disk, "rw")
        log.append(b'{"prediction_id":"d"}\n')
        log.probe()
        log.seal()
        assert logged(disk/"log") == (["a", "d"], 0)


def test_a_file_may_grow_only_so_far(tmp_path):
    "The same for the limit of a process, which needs no rights"
    out = done(script("""
        import resource, sys
        log, count = Segment(sys.argv[1], "predictions"), 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_100, resource.RLIM_INFINITY))
        try:
            while True:
                log.append(record_bytes(record()))
                count += 1
        except LogError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        log.append(record_bytes(record()))
        log.seal()
        print(count + 1)
    """, tmp_path))
    names, torn = logged(tmp_path)
    assert "larger than allowed" in out
    assert (len(names), torn) == (int(out.split()[-1]), 0)


WRITER = """
    import os, sys, threading, time
    folder, count, rotate_bytes, *wait = sys.argv[1:]
    log, stop = Segment(folder, "predictions", rotate_bytes=int(rotate_bytes)), threading.Event()
    def tick():
        while not stop.wait(0.05):
            log.sync()
            log.turn()
    ticker = threading.Thread(target=tick)
    ticker.start()
    print("begun", flush=True)
    for i in range(int(count)):
        log.append(record_bytes(record(f"person {i % 10}")))
        if i % 100 == 0:
            time.sleep(0.01)
    if wait:
        print("written", flush=True)
        sys.stdin.readline()
    stop.set()
    ticker.join()
    log.seal()
"""


def waiting_writer(log, count):
    "A writer of so many records into one file, that then waits for a line before it ends"
    return script(WRITER, log, count, 10**9, "wait", stdin=subprocess.PIPE)


@pytest.mark.slow("kills writers, many times")
def test_two_services_on_one_folder_beside_readers_and_adopters(tmp_path):
    "Files are sealed all the time while others list, adopt and read: nothing is lost, doubled, or in anybody's way"
    log = tmp_path/"log"
    writers = [script(WRITER, log, 6000, 40_000) for _ in range(4)]
    for writer in writers:
        assert writer.stdout.readline() == "begun\n"
    seen = []
    counts = "select count(*), count(distinct prediction_id) from predictions"
    while any(writer.poll() is None for writer in writers):
        for _ in range(20):
            assert adopt(log) == [] or any(writer.poll() is not None for writer in writers)
        if segments(log):
            seen.append(connect(log, CARD).sql(counts).fetchall()[0])
    for writer in writers:
        done(writer)
    assert seen == sorted(seen)
    assert all(rows == distinct for rows, distinct in seen)
    assert len(seen) > 1
    names, torn = logged(log)
    assert (len(names), len(set(names)), torn) == (24_000, 24_000, 0)
    assert len(segments(log)) > 20


def test_forget_beside_a_live_writer(tmp_path):
    log = tmp_path/"log"
    writer = waiting_writer(log, 2000)
    assert next_lines(writer, 2) == ["begun\n", "written\n"]
    assert "live" in states(log)
    erased = forget(log, SECRET, "person 3")
    assert (erased["predictions"], erased["complete"]) == (200, True)
    key = subject_key(SECRET, "person 3").encode()
    assert not any(key in segment.file.read_bytes() for segment in segments(log))
    assert key.decode() not in (log/"ERASURES.jsonl").read_text()
    finish(writer)
    assert stat(log)["records"] == 1800


def test_forget_says_what_a_stopped_writer_holds(tmp_path):
    log = tmp_path/"log"
    writer = waiting_writer(log, 2000)
    assert next_lines(writer, 2) == ["begun\n", "written\n"]
    os.kill(writer.pid, signal.SIGSTOP)
    try:
        (log/"ROTATE").touch()
        if stat(log)["segments"]["live"]:      # it may have sealed in the moment before
            with pytest.raises(MlgovError, match="still being written"):
                forget(log, SECRET, "person 3", wait=0.5)
            last = (log/"ERASURES.jsonl").read_text().splitlines()[-1]
            assert json.loads(last)["complete"] is False
    finally:
        os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert forget(log, SECRET, "person 3")["complete"]         # the dead writer's file is adopted
    assert stat(log)["records"] == 1800


def contents(folder):
    "The bytes of every file of a window, but for the description of it"
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "WINDOW.json"]
    return {file.name: file.read_bytes() for file in files}


def test_closing_waits_for_nobody_and_says_what_is_open(tmp_path):
    "A window that is closed while its writers write, and once more when they have ended, has the same rows"
    log, window = tmp_path/"log", tmp_path/"live"
    writers = [waiting_writer(log, 1000) for _ in range(2)]
    for writer in writers:
        assert next_lines(writer, 2) == ["begun\n", "written\n"]
    end = time.time() + 0.5
    limits = iso(0), iso(int(end * 1e6))
    first = close_window(log, CARD, "w", *limits, out=window, partial=True)
    assert (first["rows"], first["unsealed"]) == (2000, [])           # they were asked to seal, and did
    before = contents(window)
    for writer in writers:
        finish(writer)
    time.sleep(max(end - time.time(), 0))
    again = close_window(log, CARD, "w", *limits, out=window)
    assert again == {**first, "partial": False}
    assert before == contents(window)


def example_records(rows, start):
    "A record for each row, ten seconds apart, of a hundred people"
    records = []
    for index, row in enumerate(rows):
        about = dict(prediction_id=f"01a18ed3-af00-7000-8000-{index:012x}", ts=iso(start + index * 10**7))
        model = dict(model="m", version="v", arm="champion", score=0.5, decision=1, latency_ms=0.2)
        records.append(dict(**about, **model, **row, subject=subject_key(SECRET, f"p{index % 100}")))
    return records


@pytest.mark.parametrize("seed", range(3))
def test_the_label_that_counts_is_the_same_in_the_log_and_in_a_file(tmp_path, seed):
    "One rule: the label observed last. Where the log has no time of observation, that of receipt stands in"
    rng, start = random.Random(seed), 1_793_000_000_000_000
    records = example_records([{"age": 41.0}] * 200, start)
    labels = []
    for moment in rng.sample(range(10**6), 600):          # no two at once: a file could not say which is the last
        observed = iso(start + moment * 10**6)
        received = iso(start + (10**6 + rng.randrange(10**6)) * 10**6)
        times = dict(observed_at=observed, ts=received) if rng.random() < 0.7 else dict(ts=observed)
        labels.append(dict(prediction_id=rng.choice(records)["prediction_id"], label=rng.randrange(2), **times))
    log = tmp_path/"log"
    log.mkdir()
    (log/"predictions-a.jsonl").write_bytes(record_bytes(*records))
    (log/"labels-a.jsonl").write_bytes(record_bytes(*labels))
    close_window(log, CARD, "w", iso(start), iso(start + 10**10), out=tmp_path/"live", partial=True)
    in_log = read_rows(tmp_path/"live/w/rows.parquet")

    file = pd.DataFrame(labels).rename(columns={"prediction_id": CARD.id, "label": CARD.target.name})
    file["observed_at"] = file.observed_at.fillna(file.pop("ts"))
    file.to_csv(tmp_path/"labels.csv", index=False)
    unlabelled = in_log.drop(columns=CARD.target.name)
    joined, report = join_labels(unlabelled, read_labels(tmp_path/"labels.csv", CARD), CARD)
    assert report.corrected > 50
    assert 100 < joined[CARD.target.name].notna().sum() < 200
    pd.testing.assert_series_equal(joined[CARD.target.name], in_log[CARD.target.name])


def test_a_closed_window_is_audited_like_any_other(clone):
    "From the rows of a window, over the log, to a drift verdict, all by the command line"
    log, live = clone.root/"log", clone.root/"data/live/live/rows.parquet"
    made = pd.read_parquet(clone.root/"data/split/windows/2014-18.parquet").head(1500)
    features = made.drop(columns=["id", "year", "age_band", "high_income"]).astype(object)
    rows = features.where(features.notna(), None).to_dict("records")
    records = example_records(rows, start=1_793_397_600_000_000)

    predictions, labels = Segment(log, "predictions"), Segment(log, "labels")
    predictions.append(record_bytes(*records))
    predictions.seal()
    for record, label in zip(records, made.high_income, strict=True):
        if pd.notna(label):
            ts = record["ts"]
            labels.append(record_bytes(dict(prediction_id=record["prediction_id"], label=label, observed_at=ts, ts=ts)))
    labels.seal()

    close = "mlgov log close --window live --start 2026-10-30 --end 2026-11-01"
    try:
        assert "1,500 predictions" in clone.run("mlgov log stat").stdout
        assert "1,500 rows" in clone.run(close).stdout
        now, old = pd.read_parquet(live), made.reset_index(drop=True)
        pd.testing.assert_frame_equal(now.drop(columns=["id", "year"]), old.drop(columns=["id", "year"]))
        assert (now.year.dtype, now.year.unique().tolist()) == (old.year.dtype, [2026])
        for audit in ("drift", "performance"):
            command = f"mlgov audit {audit} --current data/live/live/rows.parquet --out reports/_live || test $? -ne 2"
            assert f"{audit}: " in clone.run(command).stdout
        key = f"MLGOV_SUBJECT_KEY='{SECRET.decode()}'"
        assert "15 predictions" in clone.run(f"echo p7 | {key} mlgov log forget -").stdout
        assert len(pd.read_parquet(live)) == 1485
        clone.refuses("mlgov log forget p7", "key of subjects is not set")
        clone.refuses("mlgov log close --window 2099", "in the future")
        clone.refuses("mlgov log export 'select nope from predictions'", "nope")
        assert "1485" in clone.run("mlgov log export 'select count(*) as n from predictions'").stdout
        assert "1,485 predictions" in clone.run("mlgov log expire --days 0.001").stdout
    finally:
        for folder in (log, clone.root/"data/live", clone.root/"reports/_live"):
            shutil.rmtree(folder, ignore_errors=True)


def test_the_folder_of_a_user_without_rights():
    "As another user, in a folder that is not theirs"
    if os.getuid():
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        out = done(script("""
            import os, sys
            log = Segment(sys.argv[1], "predictions")
            os.setgid(65534)
            os.setuid(65534)
            for write in (lambda: log.append(b"{}\\n"), log.probe):
                try:
                    write()
                    print("written")
                except LogError as error:
                    print(error.errno, error)
        """, folder))
    assert out.count("no permission to write") == 2
    assert str(errno.EACCES) in out
    assert folder not in out
