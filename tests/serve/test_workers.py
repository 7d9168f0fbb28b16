"""Several workers: those that die are replaced, what they counted stays, and none outlives the
supervisor.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_bundle as tiny
from conftest import ROOT
from test_serve import ask, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PHOTO = tiny.picture(tiny.color_of(3))
QUICK = """
import importlib, sys
from common.serve.http import workers
workers.PAUSE = 0.01
serve = importlib.import_module("04_serve")
sys.exit(serve.main(sys.argv[1:]))
"""


# each worker runs this again, since `spawn` imports the script that is run
SLOW = """
import importlib, os, sys, time
sys.path.insert(0, os.getcwd())
from common.serve.http import service, sockets, workers
sockets.DRAIN_SECONDS, start_photo = 1.5, service.start_photo
service.start_photo = lambda *rest, **more: [time.sleep(0.3), start_photo(*rest, **more)][1]
if __name__ == "__main__":
    sys.exit(importlib.import_module("04_serve").main(sys.argv[1:]))
"""


SUMS = "foliar_.*_(total|count|sum|bucket)"  # one that falls looks like a reset


def samples(port):
    lines = ask(port, "/metrics")[1].decode().splitlines()
    explained = {
        line.split()[2] for line in lines if line.startswith("# HELP") and line.split()[3:]
    }
    assert explained == {line.split()[2] for line in lines if line.startswith("# TYPE")}
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def pids(port):
    return {
        int(pid)
        for name in samples(port)
        for pid in re.findall(r'^foliar_process_info.*pid="(\d+)"', name)
    }


def until(test, seconds=20.0):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.05)


def lives(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_with_no_worker_left_a_long_pause_is_cut_short(exports, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    patient = QUICK.replace("PAUSE = 0.01", "PAUSE, workers.ALONE_PAUSE = 600, 0.1")
    with serving(exports, "--workers", "2", program=("-c", patient)) as (_, port):
        until(lambda: len(pids(port)) == 2)
        first, second = pids(port)
        os.kill(first, signal.SIGKILL)
        until(lambda: pids(port) == {second})
        assert ask(port, body=PHOTO)[0] == 200
        os.kill(second, signal.SIGKILL)
        until(lambda: not lives(second))
        assert ask(port, body=PHOTO)[0] == 200  # by one that began after 0.1 s


def test_counts_are_the_clients_own_whatever_dies(exports, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    flags = ("--workers", "2", "--threads", "1", "--queue", "4")
    with serving(exports, *flags, program=("-c", QUICK)) as (server, port):
        answered, was = 0, samples(port)
        descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
        for _ in range(3):  # three ends within 30 s ended all
            until(lambda: len(pids(port)) == 2)
            for _ in range(4):
                assert ask(port, body=PHOTO)[0] == 200
                answered += 1
            killed = min(pids(port))
            os.kill(killed, signal.SIGKILL)
            for _ in range(2):
                with contextlib.suppress(OSError):  # the kernel may have given it to the dead one
                    answered += ask(port, body=PHOTO)[0] == 200
                assert samples(port)["foliar_photos_total"] == answered
            until(lambda killed=killed: killed not in pids(port))
            found = samples(port)
            assert all(found[name] >= was[name] for name in was if re.match(SUMS, name))
            was = found
        until(lambda: len(pids(port)) == 2)
        found = samples(port)
        assert found["foliar_photos_total"] == found["foliar_request_seconds_count"] == answered
        assert found['foliar_requests_total{outcome="answered",reason="none"}'] == answered
        assert found["foliar_places"] == 2 * 5
        assert found["foliar_in_flight"] == found["foliar_body_bytes"] == 0
        told = {pid for name in found for pid in re.findall(r'process_cpu.*pid="(\d+)"', name)}
        assert told == {str(one) for one in (server.pid, *pids(port))}
        (folder,) = tmp_path.glob("foliar-metrics-*")
        assert len(list(folder.iterdir())) <= 2 * 4  # not those of five processes
        assert len(os.listdir(f"/proc/{server.pid}/fd")) <= descriptors + 2
        assert server.pid not in pids(port)
        left = pids(port)
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=30)
        assert server.returncode == 0, err
        assert "Traceback" not in err, err
        assert not any(map(lives, left))
        assert err.count("ended with signal SIGKILL") == 3, err
        assert not folder.exists()


@pytest.mark.parametrize("wait", [0.4, None], ids=["starting", "serving"])
def test_no_worker_outlives_a_supervisor_that_is_killed(exports, wait):
    command = [sys.executable, "04_serve.py", "--exports", exports, "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        until(lambda: len(children(server.pid)) >= 3)  # two workers, and what tracks semaphores
        if wait:
            time.sleep(wait)
        else:
            assert any("page" in line for line in server.stdout)
        left = children(server.pid)
        server.kill()
        until(lambda: not any(map(lives, left)), 10)


def test_a_start_that_cannot_be_ends_after_three(exports):
    crashing = QUICK.replace("sys.exit(", "serve.work = importlib.reload\nsys.exit(")
    command = [sys.executable, "-c", crashing, "--exports", exports, "--port", "0", "--workers"]
    done = subprocess.run([*command, "2"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("ended with exit code 1") == 3
    assert "no worker could start" in done.stderr


@contextlib.contextmanager
def slow(exports, folder, workers, *flags):
    """A server of 0.3 s per photo, that stops within 1.5 s."""
    (folder / "slow.py").write_text(SLOW)
    flags = ("--workers", str(workers), "--threads", "1", *flags)
    with serving(exports, *flags, program=(str(folder / "slow.py"),)) as (server, port):
        yield server, port


def under_way(port, count):
    """Connections whose requests have been admitted, one in five of them without its last byte."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PHOTO)
    found = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(count)]
    for i, connection in enumerate(found):
        connection.sendall(head + (PHOTO[:-1] if i % 5 == 4 else PHOTO))
    until(lambda: samples(port)["foliar_in_flight"] == count)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_answers_all_and_ends_in_time(exports, tmp_path, workers):
    with slow(exports, tmp_path, workers, "--queue", "60") as (server, port):
        connections = under_way(port, 30)
        begin, processes = time.monotonic(), [server.pid, *children(server.pid)]
        for process in processes[::-1]:  # as systemd does
            os.kill(process, signal.SIGTERM)
        statuses = []
        for connection in connections:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            statuses.append(answer.status)
            assert answer.status == 200 or answer.headers["retry-after"] == "1"
            assert json.load(answer)
            connection.close()
        out, err = server.communicate(timeout=20)
        assert time.monotonic() - begin < 8
    assert server.returncode == 0, err
    assert not err, err
    assert set(statuses) == {200, 503}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_ends_at_once(exports, tmp_path, workers):
    with slow(exports, tmp_path, workers) as (server, port):
        connections = under_way(port, 6)
        left = children(server.pid)
        server.send_signal(signal.SIGINT)
        time.sleep(0.3)
        begin = time.monotonic()
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=20)
        assert time.monotonic() - begin < 0.8
        until(lambda: not any(map(lives, left)), 1)
        for connection in connections:
            connection.close()
