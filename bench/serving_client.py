"""HTTP load by raw sockets from one process: the lines of a file are the bodies, in turn; the result is one line of JSON.

    python serving_client.py URL BODIES --connections 16 --seconds 4    the next request when an answer has come
    python serving_client.py URL BODIES --rate 500 --seconds 60         one each 1/500 s, whatever the answers do; latency counts
                                                                        from when a request was due, so waiting is not left out
"""
import argparse
import json
import selectors
import socket
import time
from collections import deque
from itertools import cycle
from urllib.parse import urlsplit


def length(got):
    "Bytes of a whole answer, once its head is there"
    if (end := got.find(b"\r\n\r\n")) < 0: return None
    return end + 4 + next(int(x[15:]) for x in bytes(got[:end]).lower().split(b"\r\n") if x.startswith(b"content-length:"))


def say(took, seconds, bad):
    took = sorted(took)
    def at(q): return 1000 * took[min(len(took) - 1, int(q * len(took)))] if took else None
    print(json.dumps(dict(n=len(took), seconds=seconds, p50=at(0.5), p99=at(0.99), worst=at(1), bad=bad)), flush=True)


def load(url, file, connections, seconds, rate=None, every=None):
    "Run; what came is told each `every` seconds, and at the end"
    u, clock, wait = urlsplit(url), time.perf_counter, selectors.DefaultSelector()
    with open(file, "rb") as f: bodies = cycle([f"POST {u.path} HTTP/1.1\r\nHost: {u.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(b)}\r\n\r\n".encode() + b for b in f.read().splitlines()])
    def connect():
        s = socket.create_connection((u.hostname, u.port))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait.register(s, selectors.EVENT_READ)
        return s
    free, due, parts, took, sent, bad = deque(connect() for _ in range(connections)), {}, {}, [], 0, 0
    start = last = clock()
    while True:
        now = clock()
        more = sent < rate * seconds if rate else now - start < seconds
        if not more and not due: break
        while more and free and (not rate or (sent < rate * seconds and start + sent / rate <= now)):
            s = free.popleft()
            due[s], parts[s] = start + sent / rate if rate else clock(), bytearray()
            s.sendall(next(bodies))
            sent += 1
        for key, _ in wait.select(0 if rate and more else 1):
            s, got = key.fileobj, parts[key.fileobj]
            got += (new := s.recv(1 << 20))
            if not new: raise SystemExit("the server closed a connection")
            if len(got) < (length(got) or len(got) + 1): continue
            took.append(clock() - due.pop(s))
            bad += not got.startswith(b"HTTP/1.1 200")
            if b"\r\nconnection: close" in got[:1000].lower(): wait.unregister(s); s.close(); s = connect()
            free.append(s)
        if every and now - last >= every: say(took, now - last, bad); took, last = [], now
    say(took, clock() - last, bad)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("url"); p.add_argument("file"); p.add_argument("--connections", type=int, default=1); p.add_argument("--seconds", type=float, default=4); p.add_argument("--rate", type=float); p.add_argument("--every", type=float)
    load(**vars(p.parse_args()))
