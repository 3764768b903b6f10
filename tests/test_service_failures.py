"What a service must survive: kill -9 at any moment, a full disk, a folder that cannot be written"
import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Service, plain_env, sample_release, wait_ready

from mlgov_nb.log.segment import read_lines, segments


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    d = tmp_path_factory.mktemp("failures")
    return d, sample_release(d/"served"), plain_env(d)


def asking(s, body, acked, done):
    "Ask over and over, whatever breaks; collect the ids of what was acknowledged"
    while not done.is_set():
        try:
            c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=5)
            while not done.is_set():
                c.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
                r = c.getresponse()
                got = r.read()
                if r.status == 200: acked.extend(p["prediction_id"] for p in json.loads(got)["predictions"])
        except (OSError, http.client.HTTPException, ValueError): time.sleep(.02)


def test_kill_9_loses_nothing_that_was_acknowledged(base):
    "20 times: a worker, or the whole service, is killed at a random moment under load"
    d, example, env = base
    s, rng = Service(d, env, workers=2, log=d/"killed").start(), random.Random(7)
    acked, done = [], threading.Event()
    bodies = [json.dumps(example).encode(), json.dumps(dict(rows=[example] * 40)).encode()]
    pool = ThreadPoolExecutor(4)
    for i in range(4): pool.submit(asking, s, bodies[i % 2], acked, done)
    try:
        for turn in range(20):
            had = len(acked)
            while len(acked) < had + 50: time.sleep(.02)
            time.sleep(rng.uniform(0, .3))
            if turn % 5 == 4:
                os.killpg(s.process.pid, signal.SIGKILL)
                s.process.wait()
                s.start()
            else:
                end = time.monotonic() + 30
                while not (alive := s.workers()) and time.monotonic() < end: time.sleep(.05)     # both may be on their way back
                os.kill(rng.choice(alive), signal.SIGKILL)
    finally:
        done.set()
        pool.shutdown()
        s.stop()
    seen, torn = [], 0
    for seg in segments(d/"killed", "predictions"):
        lines, t = read_lines(seg.file)
        seen += [json.loads(x)["prediction_id"] for x in lines]
        torn += t
    assert len(acked) > 1000 and len(seen) == len(set(seen)), "no record twice"
    assert set(acked) <= set(seen), f"{len(set(acked) - set(seen))} acknowledged predictions are not in the log"
    assert torn <= 20


def test_workers_do_not_outlive_their_supervisor(base, tmp_path):
    d, example, env = base
    s = Service(tmp_path, env, workers=2, log=tmp_path/"log").start()
    workers = s.workers()
    assert len(workers) == 2
    os.kill(s.process.pid, signal.SIGKILL)
    s.process.wait()
    end = time.monotonic() + 15
    def alive(p): return os.path.exists(f"/proc/{p}") and "Z" not in open(f"/proc/{p}/stat").read().split()[2]
    while any(alive(p) for p in workers) and time.monotonic() < end: time.sleep(.1)
    assert not any(alive(p) for p in workers)
    s.stop()


@pytest.fixture
def small_disk(tmp_path):
    "A file system of half a megabyte"
    (tmp_path/"disk").mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path/"disk"], capture_output=True).returncode: pytest.skip("only root may mount the small file system that this needs")
    yield tmp_path/"disk"
    subprocess.run(["umount", "-l", tmp_path/"disk"])


def test_full_disk(base, small_disk, tmp_path):
    d, example, env = base
    s = Service(tmp_path, env, workers=1, log=small_disk/"log").start()
    try:
        acked, body = [], dict(rows=[example] * 100)
        for _ in range(100):
            code, got = s.ask("/v1/predict", body)
            if code != 200: break
            acked += [p["prediction_id"] for p in got["predictions"]]
        assert code == 503 and "no space is left" in got["error"] and str(tmp_path) not in got["error"]
        time.sleep(1.2)
        code, why = s.ask("/readyz")
        assert code == 503 and "no space is left" in why["reasons"][0]
        assert {r["prediction_id"] for r in s.records()} == set(acked), "what was refused left nothing behind, what was answered is there"
        subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
        code, got = s.ask("/v1/predict", body)
        assert code == 200, "there is room again"
        time.sleep(1.2)
        assert s.ask("/readyz")[0] == 200 and len(s.records()) == len(acked) + 100
    finally: s.stop()


def test_a_log_that_cannot_be_written_is_not_ready(base, small_disk, tmp_path):
    d, example, env = base
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    s = Service(tmp_path, env, workers=1, log=small_disk/"log")
    with pytest.MonkeyPatch.context() as m:
        m.setattr("conftest.wait_ready", lambda url, p, seconds=60: wait_ready(url.replace("/readyz", "/livez"), p, seconds))
        s.start()
    try:
        code, why = s.ask("/readyz")
        assert code == 503 and "read-only" in why["reasons"][0]
        assert s.ask("/v1/predict", example)[0] == 503
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        time.sleep(1.2)
        assert s.ask("/v1/predict", example)[0] == 200 and s.ask("/readyz")[0] == 200
    finally: s.stop()
