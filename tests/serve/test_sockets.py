"""The server on real sockets: slow, silent, vanishing and deaf clients, a full queue, and a stop
that answers what it took.
"""

import contextlib
import http.client
import json
import logging
import re
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import tiny_bundle as tiny
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from common.serve.http import service, sockets, work_queue
from common.serve.http.app import make_app
from common.serve.http.service import Settings

PHOTO = tiny.picture(tiny.color_of(0), kind="JPEG")


@contextlib.contextmanager
def running(predictor, forwarded_allow_ips="", **settings):
    app = make_app(predictor, Settings(**settings))
    listener = socket.create_server(("127.0.0.1", 0))
    config = sockets.config(app, forwarded_allow_ips)
    server = sockets.Server(config, app.state.queue, worker=False)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield SimpleNamespace(
            port=listener.getsockname()[1],
            server=server,
            thread=thread,
            queue=app.state.queue,
            app=app,
        )
    finally:
        server.drain()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def gate(monkeypatch):
    """A runner that has begun waits until `free` is set; `begun` counts."""
    found = SimpleNamespace(free=threading.Event(), begun=threading.Semaphore(0), count=0)
    original = service.start_photo

    def slow(*args, **options):
        found.count += 1
        found.begun.release()
        assert found.free.wait(20)
        return original(*args, **options)

    monkeypatch.setattr(service, "start_photo", slow)
    yield found
    found.free.set()


def connect(port, client="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", port), 10, (client, 0))


def request(body=PHOTO, extra="", length=None, path="/predict"):
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: "
        f"{len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


def read(connection):
    """The next response of a connection: status and JSON; (0, None) where it was closed without
    one.
    """
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in data:
            if not (more := connection.recv(65536)):
                return 0, None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return int(head.split()[1]), json.loads(body)
    return 0, None


def ask(port, body=PHOTO, client="127.0.0.1", **more):
    with connect(port, client) as connection:
        connection.sendall(request(body, **more))
        return read(connection)


def closed_after(connection, seconds=10.0):
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


def until(test, seconds=10.0):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_slow_and_silent_connections_are_ended_while_others_are_answered(predictor, monkeypatch):
    monkeypatch.setattr(sockets, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(sockets, "DISCARD_SECONDS", 1.0)
    with running(predictor, upload_seconds=1.0) as live:
        silent, dripping, half, second = (connect(live.port) for _ in range(4))
        half.sendall(request(length=len(PHOTO) + 100))
        second.sendall(request())
        assert read(second)[0] == 200
        second.sendall(b"POST /pre")  # the header of its second request never ends
        begin = time.monotonic()
        stop = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                for byte in request()[:400]:
                    dripping.sendall(bytes([byte]))
                    if stop.wait(0.05):
                        return

        dripper = threading.Thread(target=drip)
        dripper.start()
        assert ask(live.port)[0] == 200
        status, told = read(dripping)
        assert (status, told["error"]["code"]) == (408, "too_slow")
        status, told = read(half)
        assert (status, told["error"]["code"]) == (408, "too_slow")
        assert read(second)[0] == 408
        closed_after(silent)
        assert time.monotonic() - begin < 8
        stop.set()
        dripper.join()
        assert ask(live.port)[0] == 200
        assert live.queue.taken == 0
        until(lambda: len(live.server.server_state.connections) == 0)


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_in_json(predictor, noise):
    with running(predictor) as live:
        with connect(live.port) as connection:
            connection.sendall(noise)
            status, told = read(connection)
            assert status in (0, 400, 431)
            assert status == 0 or told["error"]["code"] in (
                "bad_http",
                "too_large",
            )  # 0: reset while sending
        assert ask(live.port)[0] == 200


def test_a_full_queue_answers_before_the_body_comes_and_drops_the_rest(
    predictor, gate, monkeypatch
):
    monkeypatch.setattr(sockets, "DISCARD_SECONDS", 0.3)
    with running(predictor, runners=1, waiting=1) as live:
        waiting = [connect(live.port) for _ in range(2)]
        for connection in waiting:
            connection.sendall(request())
        until(lambda: live.queue.taken == 2)
        with connect(live.port) as late:
            late.sendall(request(b"", length=10_000_000))  # a header alone
            status, told = read(late)
            assert (status, told["error"]["code"]) == (503, "busy")
            closed_after(late)
        gate.free.set()
        assert [read(connection)[0] for connection in waiting] == [200, 200]


def test_an_early_error_reaches_clients_that_send_their_whole_body_first_and_close(predictor, gate):
    body = bytes(8_000_000)
    with running(predictor, runners=1, waiting=1) as live:
        waiting = [connect(live.port) for _ in range(2)]
        for connection in waiting:
            connection.sendall(request())
        until(lambda: live.queue.taken == 2)
        for _ in range(
            10
        ):  # closed over what was not read yet, the connection would be reset and the answer lost
            status, told = ask(live.port, body, extra="Connection: close\r\n")
            assert (status, told["error"]["code"]) == (503, "busy")
        gate.free.set()
        assert [read(connection)[0] for connection in waiting] == [200, 200]
        until(lambda: len(live.server.server_state.connections) <= 2)


def test_bodies_together_are_bounded_in_bytes(predictor, gate):
    with running(predictor, runners=1, waiting=50, memory_mb=3) as live:
        with connect(live.port) as first, connect(live.port) as second:
            first.sendall(request(b"x", length=2_500_000))
            until(lambda: live.queue.taken == 1)
            assert ask(live.port, b"", length=1_000_000)[0] == 503
            second.sendall(request())
            until(lambda: live.queue.taken == 2)
            gate.free.set()
            assert read(second)[0] == 200
    assert live.queue.held == 0


def test_the_work_of_clients_that_left_is_dropped(predictor, gate):
    with running(predictor, runners=1, waiting=20) as live:
        with connect(live.port) as served:
            served.sendall(request())
            assert gate.begun.acquire(timeout=10)
            gone = [connect(live.port) for _ in range(5)]
            for connection in gone:
                connection.sendall(request())
            until(lambda: live.queue.taken == 6)
            for connection in gone:
                connection.close()
            until(lambda: live.queue.taken == 1)
            gate.free.set()
            assert read(served)[0] == 200
        assert ask(live.port)[0] == 200
        with connect(live.port) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while b"process_resident" not in data:
                data += connection.recv(65536)
    assert b'foliar_requests_total{outcome="vanished",reason="none"} 5' in data
    assert b'foliar_requests_total{outcome="answered",reason="none"} 2' in data
    assert b'foliar_http_responses_total{status="499"} 5' in data
    assert b'foliar_http_responses_total{status="400"}' not in data
    assert gate.count == 2  # none of the five was decoded


def test_libraries_log_lines_like_ours_and_nothing_about_clients(predictor, capfd):
    form = b"--b\r\nContent-Disposition: form-data\r\n\r\n\xff\r\n--b--\r\nmore\r\n--b"
    with running(predictor) as live:
        assert (
            ask(live.port, form, extra="Content-Type: multipart/form-data; boundary=b\r\n")[0]
            == 400
        )
        assert ask(live.port, PHOTO[:200])[0] == 422
        with connect(live.port) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert read(connection)[0] == 400
        assert capfd.readouterr().err == ""
        logging.getLogger("asyncio").error("no more files")
        line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR asyncio: no more files\n"
        assert re.fullmatch(line, capfd.readouterr().err)

        async def half(_):
            async def parts():
                yield b"half"
                raise RuntimeError("the disk fell over")

            return StreamingResponse(parts())

        live.app.router.routes.append(Route("/half", half))
        with connect(live.port) as connection:
            connection.sendall(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
            closed_after(connection)
        told = capfd.readouterr().err
        assert told.count("RuntimeError: the disk fell over\n") == 1
        assert re.match(r"[0-9-]+ [0-9:]+ ERROR uvicorn.error: Exception in ASGI", told)


def test_a_client_that_does_not_read_is_cut_off(predictor, monkeypatch):
    monkeypatch.setattr(sockets, "READ_SECONDS", 0.3)
    with running(predictor) as live:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(0.2)
        deaf.connect(("127.0.0.1", live.port))
        until(lambda: len(live.server.server_state.connections) == 1)
        with contextlib.suppress(OSError):
            for _ in range(3000):
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: len(live.server.server_state.connections) == 0)
        deaf.close()
        assert ask(live.port)[0] == 200


def test_a_client_that_reads_slowly_gets_it_all(predictor, monkeypatch):
    monkeypatch.setattr(sockets, "READ_SECONDS", 0.6)
    with running(predictor) as live:
        live.app.router.routes.append(Route("/large", lambda _: Response(bytes(3_000_000))))
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            slow.settimeout(5)
            slow.connect(("127.0.0.1", live.port))
            slow.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            begin, size = time.monotonic(), 0
            while more := slow.recv(65536):
                size += len(more)
                time.sleep(0.02)
            assert size > 3_000_000
            assert time.monotonic() - begin > 0.6


def test_a_stop_answers_what_was_accepted_and_rejects_the_rest(predictor, gate):
    with running(predictor, runners=2, waiting=20) as live:
        accepted = [connect(live.port) for _ in range(8)]
        for connection in accepted:
            connection.sendall(request())
        until(lambda: live.queue.taken == 8)
        live.server.drain()
        with connect(live.port) as probe:
            probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read(probe) == (503, {"status": "draining"})
            probe.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            stopping = {"ready": False, "error": "The server is stopping."}
            assert read(probe) == (503, stopping)
            probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read(probe)[0] == 200
        status, told = ask(live.port)
        assert (status, told["error"]["code"]) == (503, "draining")
        assert live.thread.is_alive()
        gate.free.set()
        assert [read(connection)[0] for connection in accepted] == [200] * 8
        live.thread.join(10)
        assert not live.thread.is_alive()
        with pytest.raises(OSError):
            connect(live.port)


def test_what_is_not_answered_by_the_deadline_gets_503_with_retry_after(
    predictor, gate, monkeypatch
):
    monkeypatch.setattr(sockets, "DRAIN_SECONDS", 0.5)
    with running(predictor, runners=2, waiting=20) as live:
        held = waiting_for(live, 8) + waiting_for(live, 2, length=len(PHOTO) + 9)
        live.server.drain()
        begin = time.monotonic()
        for connection in held:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert json.load(answer)["error"]["code"] == "draining"
            connection.close()
        live.thread.join(10)
        assert 0.4 < time.monotonic() - begin < 5
        assert not live.thread.is_alive()


def test_a_worker_leaves_ctrl_c_to_its_supervisor(predictor):
    worker = sockets.Server(
        uvicorn.Config("app"), make_app(predictor, Settings()).state.queue, worker=True
    )
    worker.handle_exit(2, None)  # Ctrl-C reaches it too
    assert not worker.queue.draining


OTHER = "127.0.0.2"
several_addresses = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere 127.0.0.1 is the only address of the loopback"
)


def health(port, client="127.0.0.1"):
    with connect(port, client) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return read(connection)[0]


def waiting_for(live, count, client="127.0.0.1", **more):
    """Connections whose requests hold places of the queue."""
    found, before = [], live.queue.taken
    for i in range(count):
        found.append(connect(live.port, client))
        found[-1].sendall(request(**more))
        until(lambda i=i: live.queue.taken == before + i + 1)  # in this order
    return found


def test_the_longest_silent_connection_gives_way_and_health_checks_are_answered(
    predictor, gate, monkeypatch
):
    monkeypatch.setattr(sockets, "CONNECTIONS", 3)
    with running(predictor, runners=1, waiting=1) as live:
        working = waiting_for(live, 2)
        silent = [connect(live.port) for _ in range(3)]
        until(lambda: len(live.server.server_state.connections) == 5)
        assert health(live.port) == 200
        closed_after(silent[0])
        silent[1].sendall(b"GET /he")  # no longer silent
        silent.append(connect(live.port))
        assert health(live.port) == 200
        closed_after(silent[2])
        silent[1].sendall(b"althz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read(silent[1])[0] == 200
        gate.free.set()
        assert [read(connection)[0] for connection in working] == [200, 200]


@several_addresses
def test_connections_of_the_address_that_has_most_give_way_first(predictor, monkeypatch):
    monkeypatch.setattr(sockets, "CONNECTIONS", 3)
    with running(predictor) as live:
        oldest = connect(live.port, OTHER)
        until(lambda: len(live.server.server_state.connections) == 1)
        many = [connect(live.port) for _ in range(20)]
        assert health(live.port) == 200
        oldest.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read(oldest)[0] == 200
        for connection in many[:17]:
            closed_after(connection)


def test_where_no_connection_gives_way_the_new_one_is_told(predictor, monkeypatch):
    monkeypatch.setattr(sockets, "CONNECTIONS", 0)
    with running(predictor) as live, connect(live.port) as more:
        assert read(more)[0] == 503


def test_uploads_that_do_not_come_give_way(predictor, monkeypatch):
    monkeypatch.setattr(work_queue, "SILENCE", 0.5)
    with running(predictor, runners=1, waiting=2) as live:
        silent = waiting_for(live, 3, body=b"", length=5000)
        assert ask(live.port)[0] == 503
        time.sleep(0.3)
        silent[0].sendall(bytes(4000))  # worth 0.4 s, of which 0.3 are left to earn
        time.sleep(0.25)
        assert ask(live.port)[0] == 200
        status, told = read(silent[1])
        assert (status, told["error"]["code"]) == (408, "too_slow")
        assert live.queue.taken == 2
        silent[0].sendall(bytes(1000))
        assert read(silent[0])[0] == 415
        silent[2].close()


@several_addresses
def test_open_uploads_of_one_client_do_not_keep_others_out(predictor):
    with running(predictor, runners=1, waiting=9) as live:
        held = waiting_for(live, 10, body=b"", length=5000)
        for _ in range(3):
            assert ask(live.port, client=OTHER)[0] == 200
        assert live.queue.taken == 9
        status, told = read(held[-1])
        assert (status, told["error"]["code"]) == (429, "too_many")
        large = waiting_for(live, 1, body=b"", length=5000)  # alone again, it may have them all
        assert live.queue.taken == 10
        for connection in held + large:
            connection.close()
        until(lambda: live.queue.taken == 0)
        assert not live.queue.counts
        assert live.queue.held == 0


@several_addresses
def test_one_client_has_half_of_the_places_while_there_are_others(predictor, gate):
    with running(predictor, runners=1, waiting=3) as live:
        many = waiting_for(live, 4)
        other = [connect(live.port, OTHER) for _ in range(2)]
        for i, connection in enumerate(other):
            connection.sendall(request())
            assert read(many[3 - i])[0] == 429  # the latest first
        assert live.queue.taken == 4
        assert ask(live.port)[0] == 429
        assert ask(live.port, client=OTHER)[0] == 429
        assert ask(live.port, client="127.0.0.3")[0] == 503, "nobody has more than half"
        gate.free.set()
        assert [read(connection)[0] for connection in many[:2] + other] == [200] * 4


@several_addresses
def test_one_client_has_half_of_the_memory_while_there_are_others(predictor):
    with running(predictor, runners=1, waiting=50, memory_mb=4) as live:
        held = [*waiting_for(live, 4, body=b"", length=1_000_000), connect(live.port, OTHER)]
        held[-1].sendall(request(b"", length=1_500_000))
        until(lambda: live.queue.counts[OTHER] == 1)
        assert live.queue.sizes == {"127.0.0.1": 2_000_000, OTHER: 1_500_000}
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    ("named", "shares"), [("127.0.0.1", True), ("127.0.0.0/8", True), ("", False)]
)
def test_behind_a_proxy_that_was_named_each_client_counts_for_itself(
    predictor, gate, named, shares
):
    with running(predictor, runners=1, waiting=3, forwarded_allow_ips=named) as live:
        said = "X-Forwarded-For: 198.51.100.7, {}\r\n"  # the first is what the client claims
        many = waiting_for(live, 4, extra=said.format("203.0.113.5"))
        with connect(live.port) as other:
            other.sendall(request(extra=said.format("203.0.113.6")))
            if shares:
                assert read(many[3])[0] == 429
                assert live.queue.counts == {"203.0.113.5": 3, "203.0.113.6": 1}
            else:
                assert read(other)[0] == 503
                assert live.queue.counts == {"127.0.0.1": 4}
        gate.free.set()


def test_who_asks_is_a_network_of_ipv6():
    def who(host):
        return service.client_of(Request({"type": "http", "client": (host, 1)}))

    assert who("2001:db8:0:1::5") == who("2001:db8::1:9:9:9:9") == "2001:db8:0:1::/64"
    assert who("fe80::1%eth0") == "fe80::/64"
    assert who("192.0.2.1") == who("::ffff:192.0.2.1") == "192.0.2.1"
    assert who("unknown") == "unknown"


def test_a_client_that_is_gone_when_a_connection_would_linger_is_let_go():
    told = []

    class Transport:
        def is_closing(self):
            return False

        def write_eof(self):
            raise OSError("Transport endpoint is not connected")

        def abort(self):
            told.append("abort")

    patient = sockets.LingeringTransport(Transport(), unread=lambda: True, loop=None)
    patient.close()
    patient.close()
    assert told == ["abort"]
    assert patient.is_closing()
