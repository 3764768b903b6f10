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
from pathlib import Path

import pytest
from conftest import Service, plain_env, sample_release, wait_ready

from mlgov_nb.log.segment import read_lines, segments

pytestmark = pytest.mark.slow("starts, kills and restarts services")

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A folder with a release of the sample model, its example row, and the environment of its services"
    folder = tmp_path_factory.mktemp("failures")
    return folder, sample_release(folder/"served"), plain_env(folder)


def prediction_ids(answer): return [p["prediction_id"] for p in answer["predictions"]]


def keep_asking(service, body, acknowledged, done):
    "Ask over and over, whatever breaks; collect the ids of what was acknowledged"
    while not done.is_set():
        try:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
            while not done.is_set():
                connection.request("POST", "/v1/predict", body, JSON)
                response = connection.getresponse()
                content = response.read()
                if response.status == 200: acknowledged.extend(prediction_ids(json.loads(content)))
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(.02)


def living_workers(service):
    "The workers that live; waited for, as all may be on their way back"
    end = time.monotonic() + 120
    while not (found := service.workers()) and time.monotonic() < end: time.sleep(.05)
    assert found, "no worker came back within two minutes"
    return found


def wait_for_more(acknowledged, count):
    "Wait until so many more predictions are acknowledged"
    wanted, end = len(acknowledged) + count, time.monotonic() + 120
    while len(acknowledged) < wanted and time.monotonic() < end: time.sleep(.02)
    assert len(acknowledged) >= wanted, "the service did not answer for two minutes"


def kill_all(service):
    "The whole service, with its workers"
    os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait()


def logged_ids(folder):
    "The ids of all predictions in a log, and how many of its lines are torn"
    ids, torn = [], 0
    for segment in segments(folder, "predictions"):
        lines, torn_here = read_lines(segment.file)
        ids += [json.loads(line)["prediction_id"] for line in lines]
        torn += torn_here
    return ids, torn


def test_kill_9_loses_nothing_that_was_acknowledged(base):
    "20 times: a worker, or the whole service, is killed at a random moment under load"
    folder, example, env = base
    log, rng = folder/"killed", random.Random(7)
    service = Service(folder, env, workers=2, log=log).start()
    acknowledged, done = [], threading.Event()
    bodies = [json.dumps(example).encode(), json.dumps(dict(rows=[example] * 40)).encode()]
    pool = ThreadPoolExecutor(4)
    for i in range(4): pool.submit(keep_asking, service, bodies[i % 2], acknowledged, done)
    try:
        for turn in range(20):
            wait_for_more(acknowledged, 50)
            time.sleep(rng.uniform(0, .3))
            if turn % 5 == 4:
                kill_all(service)
                service.start()
            else:
                os.kill(rng.choice(living_workers(service)), signal.SIGKILL)
    finally:
        done.set()
        pool.shutdown()
        service.stop()

    logged, torn = logged_ids(log)
    assert len(acknowledged) > 1000
    assert len(logged) == len(set(logged)), "no record twice"
    lost = set(acknowledged) - set(logged)
    assert not lost, f"{len(lost)} acknowledged predictions are not in the log"
    assert torn <= 20


def is_alive(pid):
    "Whether a process runs: it exists and is no zombie"
    proc = Path(f"/proc/{pid}")
    return proc.exists() and "Z" not in (proc/"stat").read_text().split()[2]


def test_workers_do_not_outlive_their_supervisor(base, tmp_path):
    _, _, env = base
    service = Service(tmp_path, env, workers=2, log=tmp_path/"log").start()
    workers = service.workers()
    assert len(workers) == 2
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()
    end = time.monotonic() + 15
    while any(map(is_alive, workers)) and time.monotonic() < end: time.sleep(.1)
    assert not any(map(is_alive, workers))
    service.stop()


def mount_small(folder):
    "Mount a file system of half a megabyte; whether it could be"
    if os.geteuid(): return False
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    return subprocess.run(command, capture_output=True).returncode == 0


def remount(folder, option): subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    "A file system of half a megabyte"
    disk = tmp_path/"disk"
    disk.mkdir()
    if not mount_small(disk): pytest.skip("only root may mount the small file system that this needs")
    yield disk
    subprocess.run(["umount", "-l", disk])


def test_full_disk(base, small_disk, tmp_path):
    _, example, env = base
    service = Service(tmp_path, env, workers=1, log=small_disk/"log").start()
    try:
        acknowledged, body = [], dict(rows=[example] * 100)
        for _ in range(100):
            code, answer = service.ask("/v1/predict", body)
            if code != 200: break
            acknowledged += prediction_ids(answer)
        assert code == 503 and "no space is left" in answer["error"]
        assert str(tmp_path) not in answer["error"]
        time.sleep(1.2)
        code, readiness = service.ask("/readyz")
        assert code == 503 and "no space is left" in readiness["reasons"][0]
        logged = {record["prediction_id"] for record in service.records()}
        assert logged == set(acknowledged), "what was refused left nothing behind, what was answered is there"

        remount(small_disk, "size=4m")
        assert service.ask("/v1/predict", body)[0] == 200, "there is room again"
        time.sleep(1.2)
        assert service.ask("/readyz")[0] == 200
        assert len(service.records()) == len(acknowledged) + 100
    finally: service.stop()


def start_unready(service):
    "Start a service that lives but is not ready"
    def wait_alive(url, process, seconds=60): wait_ready(url.replace("/readyz", "/livez"), process, seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conftest.wait_ready", wait_alive)
        service.start()


def test_a_log_that_cannot_be_written_is_not_ready(base, small_disk, tmp_path):
    _, example, env = base
    remount(small_disk, "ro")
    service = Service(tmp_path, env, workers=1, log=small_disk/"log")
    start_unready(service)
    try:
        code, readiness = service.ask("/readyz")
        assert code == 503 and "read-only" in readiness["reasons"][0]
        assert service.ask("/v1/predict", example)[0] == 503

        remount(small_disk, "rw")
        time.sleep(1.2)
        assert service.ask("/v1/predict", example)[0] == 200
        assert service.ask("/readyz")[0] == 200
    finally: service.stop()
