"The prediction log under what happens to logs: killed writers, full and read-only disks, readers and erasures beside writers"
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import contextmanager

import msgspec
import pytest
from conftest import ROOT

from mlgov_nb.data.card import card_path, load_card
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
def record(who="p", **row):
    us = clock.now()
    return dict(prediction_id=ids.one(us), ts=iso(us), model="m", version="v", arm="champion", age=41.0, prestg10=30.0, childs=2.0, occ10=20.0, occrecode="Sales", wrkstat="Full-Time", educcat="Bachelor",
                maritalcat="Married", gender="Male", **row, score=0.5, decision=1, latency_ms=0.2, subject=subject_key(b"a key of the tests", who))
"""


def script(body, *args, **kw):
    "A process of its own that runs Python code"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", RECORD + textwrap.dedent(body), *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def done(p, seconds=120):
    out, err = p.communicate(timeout=seconds)
    assert p.returncode == 0, f"{out[-2000:]}\n{err[-4000:]}"
    return out


def logged(folder):
    "Names in the log, as often as they are there; and torn lines"
    names, torn = [], 0
    for s in segments(folder, "predictions"):
        if s.file.suffix == ".parquet":
            import pyarrow.parquet as pq
            names += pq.read_table(s.file)["prediction_id"].to_pylist()
            continue
        lines, n = read_lines(s.file)
        names, torn = names + [msgspec.json.decode(x)["prediction_id"] for x in lines], torn + n
    return names, torn


@contextmanager
def small_disk(at, size="256k"):
    "A disk of its own; skips where none may be mounted"
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True).returncode: pytest.skip("no disk can be mounted here")
    try: yield at
    finally: subprocess.run(["umount", "-l", str(at)], check=True)


KILLED = """
    import asyncio, os, random, signal, sys, time
    import pyarrow as pa
    folder, acks = sys.argv[1:3]
    def write(log, ack):     # says a name only when the log has it
        for i in range(10**9):
            r = record()
            if i % 97 == 96: log.append_table(pa.Table.from_pylist([r]))
            else: log.append(record_bytes(r))
            os.write(ack, r["prediction_id"].encode() + b"\\n")
            if i % 50 == 0: log.turn()
    async def write_durably(log, ack):
        async def one():
            while True:
                r = record()
                log.append(record_bytes(r))
                await log.durable()
                os.write(ack, r["prediction_id"].encode() + b"\\n")
        async def turn():
            while True: await asyncio.sleep(0.01); await asyncio.to_thread(log.turn)
        await asyncio.gather(turn(), *(one() for _ in range(8)))
    def child(n, how):
        ack = os.open(f"{acks}/{n}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        log = Segment(folder, "predictions", fsync=how, rotate_bytes=30_000)
        if how == "always": asyncio.run(write_durably(log, ack))
        write(log, ack)
    rng = random.Random(7)
    for round in range(20):
        pids = []
        for w in range(8):
            pid = os.fork()
            if pid == 0:
                try: child(f"{round}-{w}", ("never", "interval", "always")[round % 3])
                finally: os._exit(1)
            pids.append(pid)
        time.sleep(rng.uniform(0.02, 0.3))
        for pid in rng.sample(pids, 8): os.kill(pid, signal.SIGKILL); time.sleep(rng.uniform(0, 0.005))
        for pid in pids: assert os.waitpid(pid, 0)[1] == signal.SIGKILL     # none ended by itself
        if round % 2: adopt(folder)
"""


def test_every_acknowledged_record_is_there_once_whenever_writers_are_killed(tmp_path):
    (tmp_path/"acks").mkdir()
    done(script(KILLED, tmp_path/"log", tmp_path/"acks"))
    acked = [x for f in (tmp_path/"acks").iterdir() for x in f.read_text().split("\n")[:-1]]
    adopt(tmp_path/"log")
    assert {s.state for s in segments(tmp_path/"log")} == {"sealed"}
    names, torn = logged(tmp_path/"log")
    assert len(acked) > 2000 and len(set(acked)) == len(acked)
    assert len(names) == len(set(names)), "a record is there twice"
    assert not set(acked) - set(names), "an acknowledged record is gone"
    assert len(names) - len(acked) <= 20 * 8 * 8       # what was written and not yet said: one at a time, eight with 'always'
    assert torn == 0                                   # one write a record leaves no torn line
    assert stat(tmp_path/"log")["records"] == len(names)


FULL = """
    import sys, time
    from pathlib import Path
    folder, other = sys.argv[1:3]
    log, acked, refused, n = Segment(folder, "predictions", rotate_bytes=20_000), [], 0, 0
    print("begun", flush=True)
    while n < 5:                # five more when there is room again
        r = record()
        try:
            log.append(record_bytes(r))
            acked.append(r["prediction_id"])
            n += bool(refused) and not Path(other).exists()
        except LogError as e:
            assert e.errno == 28 and "no space" in str(e) and folder not in str(e), e
            if not refused: print("full", flush=True)
            refused += 1
            time.sleep(0.01)
        try: log.turn()
        except LogError: pass
    log.seal()
    print("\\n".join(acked))
"""


def test_a_full_disk_refuses_and_recovers_by_itself(tmp_path):
    with small_disk(tmp_path) as disk:
        other = disk/"other"
        other.write_bytes(bytes(100_000))
        ps = [script(FULL, disk/"log", other) for _ in range(3)]
        for p in ps: assert [p.stdout.readline() for _ in range(2)] == ["begun\n", "full\n"]
        probe = Segment(disk/"log", "predictions")
        with pytest.raises(LogError) as e: probe.probe()
        assert e.value.errno == errno.ENOSPC
        other.unlink()
        acked = [x for p in ps for x in done(p).split()]
        probe.probe()
        names, torn = logged(disk/"log")
        assert sorted(names) == sorted(acked) and torn == 0
        assert {s.state for s in segments(disk/"log")} == {"sealed"} and not [f for f in (disk/"log").iterdir() if f.name.startswith(".p")]


def test_a_read_only_disk_refuses_and_recovers(tmp_path):
    with small_disk(tmp_path) as disk:
        log = Segment(disk/"log", "predictions")
        log.append(b'{"prediction_id":"a"}\n'); log.seal()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for f in (lambda: log.append(b'{"prediction_id":"b"}\n'), log.probe, lambda: log.append_table(__import__("pyarrow").table({"prediction_id": ["c"]}))):
            with pytest.raises(LogError, match="read-only") as e: f()
            assert e.value.errno == errno.EROFS and str(disk) not in str(e.value)
        assert stat(disk/"log")["segments"] == dict(live=0, orphan=0, sealed=1)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        log.append(b'{"prediction_id":"d"}\n'); log.probe(); log.seal()
        assert logged(disk/"log") == (["a", "d"], 0)


def test_a_file_may_grow_only_so_far(tmp_path):
    "The same for the limit of a process, which needs no rights"
    out = done(script("""
        import resource, sys
        log, n = Segment(sys.argv[1], "predictions"), 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_100, resource.RLIM_INFINITY))
        try:
            while True: log.append(record_bytes(record())); n += 1
        except LogError as e: print(e)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        log.append(record_bytes(record())); log.seal()
        print(n + 1)
    """, tmp_path))
    names, torn = logged(tmp_path)
    assert "larger than allowed" in out and (len(names), torn) == (int(out.split()[-1]), 0)


WRITER = """
    import os, sys, threading, time
    log, stop = Segment(sys.argv[1], "predictions", rotate_bytes=int(sys.argv[3])), threading.Event()
    def tick():
        while not stop.wait(0.05): log.sync(); log.turn()
    t = threading.Thread(target=tick); t.start()
    print("begun", flush=True)
    for i in range(int(sys.argv[2])):
        log.append(record_bytes(record(f"person {i % 10}")))
        if i % 100 == 0: time.sleep(0.01)
    if len(sys.argv) > 4: print("written", flush=True); sys.stdin.readline()
    stop.set(); t.join(); log.seal()
"""


def test_two_services_on_one_folder_beside_readers_and_adopters(tmp_path):
    "Files are sealed all the time while others list, adopt and read: nothing is lost, counted twice, or in anybody's way"
    log = tmp_path/"log"
    ps = [script(WRITER, log, 6000, 40_000) for _ in range(4)]
    for p in ps: assert p.stdout.readline() == "begun\n"
    seen = []
    while any(p.poll() is None for p in ps):
        for _ in range(20): assert adopt(log) == [] or any(p.poll() is not None for p in ps)
        if segments(log): seen.append(connect(log, CARD).sql("select count(*), count(distinct prediction_id) from predictions").fetchall()[0])
    for p in ps: done(p)
    assert seen == sorted(seen) and all(a == b for a, b in seen) and len(seen) > 1
    names, torn = logged(log)
    assert (len(names), len(set(names)), torn) == (24_000, 24_000, 0) and len(segments(log)) > 20


def test_forget_beside_a_live_writer(tmp_path):
    log = tmp_path/"log"
    p = script(WRITER, log, 2000, 10**9, "wait", stdin=subprocess.PIPE)
    assert [p.stdout.readline() for _ in range(2)] == ["begun\n", "written\n"]
    assert "live" in {s.state for s in segments(log)}
    told = forget(log, SECRET, "person 3")
    assert (told["predictions"], told["complete"]) == (200, True)
    key = subject_key(SECRET, "person 3").encode()
    assert not any(key in s.file.read_bytes() for s in segments(log))
    assert key.decode() not in (log/"ERASURES.jsonl").read_text()
    p.stdin.write("\n"); p.stdin.flush()
    done(p)
    assert stat(log)["records"] == 1800


def test_forget_says_what_a_stopped_writer_holds(tmp_path):
    log = tmp_path/"log"
    p = script(WRITER, log, 2000, 10**9, "wait", stdin=subprocess.PIPE)
    assert [p.stdout.readline() for _ in range(2)] == ["begun\n", "written\n"]
    os.kill(p.pid, signal.SIGSTOP)
    try:
        (log/"ROTATE").touch()
        had = stat(log)
        if had["segments"]["live"]:      # it may have sealed in the moment before
            with pytest.raises(MlgovError, match="still being written"): forget(log, SECRET, "person 3", wait=0.5)
            assert json.loads((log/"ERASURES.jsonl").read_text().splitlines()[-1])["complete"] is False
    finally: os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert forget(log, SECRET, "person 3")["complete"]         # the dead writer's file is adopted
    assert stat(log)["records"] == 1800


def test_closing_waits_for_nobody_and_says_what_is_open(tmp_path):
    "A window that is closed while its writers write, and once more when they have ended, has the same rows"
    log = tmp_path/"log"
    ps = [script(WRITER, log, 1000, 10**9, "wait", stdin=subprocess.PIPE) for _ in range(2)]
    for p in ps: assert [p.stdout.readline() for _ in range(2)] == ["begun\n", "written\n"]
    end = time.time() + 0.5
    first = close_window(log, CARD, "w", iso(0), iso(int(end * 1e6)), out=tmp_path/"live", partial=True)
    assert (first["rows"], first["unsealed"]) == (2000, [])           # they were asked to seal, and did
    before = {f.name: f.read_bytes() for f in (tmp_path/"live").rglob("*") if f.is_file() and f.name != "WINDOW.json"}
    for p in ps: p.stdin.write("\n"); p.stdin.flush(); done(p)
    time.sleep(max(end - time.time(), 0))
    again = close_window(log, CARD, "w", iso(0), iso(int(end * 1e6)), out=tmp_path/"live")
    assert again == {**first, "partial": False}
    assert before == {f.name: f.read_bytes() for f in (tmp_path/"live").rglob("*") if f.is_file() and f.name != "WINDOW.json"}


def test_a_closed_window_is_audited_like_any_other(clone):
    "From the rows of a window, over the log, to a drift verdict, all by the command line"
    import pandas as pd
    log, made = clone.root/"log", pd.read_parquet(clone.root/"data/split/windows/2014-18.parquet").head(1500)
    rows = made.drop(columns=["id", "year", "age_band", "high_income"]).astype(object).where(lambda d: d.notna(), None).to_dict("records")
    start = 1_793_397_600_000_000
    recs = [dict(prediction_id=f"01a18ed3-af00-7000-8000-{i:012x}", ts=iso(start + i * 10**7), model="m", version="v", arm="champion", score=0.5, decision=1, latency_ms=0.2, **r, subject=subject_key(SECRET, f"p{i % 100}")) for i, r in enumerate(rows)]
    p, y = Segment(log, "predictions"), Segment(log, "labels")
    p.append(record_bytes(*recs)); p.seal()
    for r, v in zip(recs, made.high_income):
        if v == v: y.append(record_bytes(dict(prediction_id=r["prediction_id"], label=v, observed_at=r["ts"], ts=r["ts"])))
    y.seal()
    try:
        assert "1,500 predictions" in clone.run("mlgov log stat").stdout
        assert "1,500 rows" in clone.run("mlgov log close --window live --start 2026-10-30 --end 2026-11-01").stdout
        now, old = pd.read_parquet(clone.root/"data/live/live/rows.parquet"), made.reset_index(drop=True)
        pd.testing.assert_frame_equal(now.drop(columns=["id", "year"]), old.drop(columns=["id", "year"]))
        assert (now.year.dtype, now.year.unique().tolist()) == (old.year.dtype, [2026])
        for audit in ("drift", "performance"): assert f"{audit}: " in clone.run(f"mlgov audit {audit} --current data/live/live/rows.parquet --out reports/_live || test $? = 1").stdout
        key = f"MLGOV_SUBJECT_KEY='{SECRET.decode()}'"
        assert "15 predictions" in clone.run(f"echo p7 | {key} mlgov log forget -").stdout
        assert len(pd.read_parquet(clone.root/"data/live/live/rows.parquet")) == 1485
        clone.refuses("mlgov log forget p7", "key of subjects is not set")
        clone.refuses("mlgov log close --window 2099", "in the future")
        clone.refuses("mlgov log export 'select nope from predictions'", "nope")
        assert "1485" in clone.run("mlgov log export 'select count(*) as n from predictions'").stdout
        assert "1,485 predictions" in clone.run("mlgov log expire --days 0.001").stdout
    finally:
        for d in (log, clone.root/"data/live", clone.root/"reports/_live"): shutil.rmtree(d, ignore_errors=True)


def test_the_folder_of_a_user_without_rights():
    "As another user, in a folder that is not theirs"
    if os.getuid(): pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o555)
        out = done(script("""
            import os, sys
            log = Segment(sys.argv[1], "predictions")
            os.setgid(65534); os.setuid(65534)
            for f in (lambda: log.append(b"{}\\n"), log.probe):
                try: f(); print("written")
                except LogError as e: print(e.errno, e)
        """, d))
    assert out.count("no permission to write") == 2 and str(errno.EACCES) in out and d not in out
