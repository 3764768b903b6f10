"""HTTP load by raw sockets from one process: the lines of a file are the bodies, in turn; the result is one line of
JSON.

    python serving_client.py URL BODIES --connections 16 --seconds 4    the next request when an answer has come
    python serving_client.py URL BODIES --rate 500 --seconds 60         one each 1/500 s, whatever the answers do

At a constant rate latency counts from when a request was due, so waiting is not left out.
"""
import argparse
import json
import selectors
import socket
import time
from collections import deque
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

clock = time.perf_counter


def length(answer):
    "Bytes of a whole answer, once its head is there"
    end = answer.find(b"\r\n\r\n")
    if end < 0: return None
    head = bytes(answer[:end]).lower().split(b"\r\n")
    body = next(int(line[15:]) for line in head if line.startswith(b"content-length:"))
    return end + 4 + body


def is_whole(answer):
    "Has all of the answer come?"
    expected = length(answer)
    return bool(expected) and len(answer) >= expected


def is_last(answer):
    "Does the server close the connection after this answer?"
    return b"\r\nconnection: close" in answer[:1000].lower()


def report(latencies, seconds, bad):
    "Print what was measured, as a line of JSON"
    ordered = sorted(latencies)
    count = len(ordered)
    def quantile(share): return 1000 * ordered[min(count - 1, int(share * count))] if ordered else None
    figures = dict(n=count, seconds=seconds, p50=quantile(0.5), p99=quantile(0.99), worst=quantile(1), bad=bad)
    print(json.dumps(figures), flush=True)


def requests(address, file):
    "The bytes of each request, in turn, without end"
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    def whole(body): return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    return cycle([whole(body) for body in Path(file).read_bytes().splitlines()])


class Load:
    "Requests on several connections; what came is reported every `every` seconds, and at the end"
    def __init__(self, url, file, connections, seconds, rate=None, every=None):
        self.address, self.seconds, self.rate, self.every = urlsplit(url), seconds, rate, every
        self.requests = requests(self.address, file)
        self.selector = selectors.DefaultSelector()
        self.free = deque(self.connect() for _ in range(connections))
        self.due = {}            # socket: when its request was due
        self.parts = {}          # socket: what has come of its answer
        self.latencies = []
        self.sent = self.bad = 0
        self.start = self.last_report = clock()

    def connect(self):
        "A new connection"
        connection = socket.create_connection((self.address.hostname, self.address.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(connection, selectors.EVENT_READ)
        return connection

    def goes_on(self, now):
        "Are there requests to send, now or later?"
        if self.rate: return self.sent < self.rate * self.seconds
        return now - self.start < self.seconds

    def is_due(self, now):
        "Is there a free connection, and a request to send on it at this moment?"
        if not self.free: return False
        if not self.rate: return True
        return self.sent < self.rate * self.seconds and self.start + self.sent / self.rate <= now

    def send(self):
        "Send the next request on a free connection"
        connection = self.free.popleft()
        self.due[connection] = self.start + self.sent / self.rate if self.rate else clock()
        self.parts[connection] = bytearray()
        connection.sendall(next(self.requests))
        self.sent += 1

    def receive(self, connection):
        "Read what has come; a connection whose answer is whole is free again"
        answer = self.parts[connection]
        new = connection.recv(1 << 20)
        answer += new
        if not new: raise SystemExit("the server closed a connection")
        if not is_whole(answer): return
        self.latencies.append(clock() - self.due.pop(connection))
        self.bad += not answer.startswith(b"HTTP/1.1 200")
        if is_last(answer):
            self.selector.unregister(connection)
            connection.close()
            connection = self.connect()
        self.free.append(connection)

    def report(self, now):
        "Report the time since the last report"
        report(self.latencies, now - self.last_report, self.bad)
        self.latencies, self.last_report = [], now

    def run(self):
        "Send and receive until the time is over and every answer has come"
        while True:
            now = clock()
            more = self.goes_on(now)
            if not more and not self.due: break
            while more and self.is_due(now): self.send()
            for key, _ in self.selector.select(0 if self.rate and more else 1): self.receive(key.fileobj)
            if self.every and now - self.last_report >= self.every: self.report(now)
        self.report(clock())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("file")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--every", type=float)
    Load(**vars(parser.parse_args())).run()
