"""The nginx and Caddy texts of common/serve/README.md, run as they stand but for ports and the
certificate, where the two are installed.
"""

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_bundle as tiny
from conftest import ROOT
from page_site import serve

PHOTO = tiny.picture(tiny.color_of(2))


def text_of(language: str) -> str:
    """The README's only block of a language."""
    readme = (ROOT / "common" / "serve" / "README.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"```{language}\n(.*?)```", readme, re.S)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def ask(port, path, body=None, tls=True):
    """Status, headers and body of one request."""
    trusting = ssl._create_unverified_context()
    where = ("127.0.0.1", port)
    line = (
        http.client.HTTPSConnection(*where, context=trusting, timeout=20)
        if tls
        else http.client.HTTPConnection(*where, timeout=20)
    )
    with contextlib.closing(line):
        line.request("POST" if body else "GET", path, body)
        answer = line.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


@pytest.fixture(scope="module")
def nginx(exports, tmp_path_factory):
    """The port of the README's nginx before a server, which also answers below /leaves/."""
    if not (program := shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")):
        pytest.skip("no nginx is installed")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
        + ["-keyout", folder / "leaves.key", "-out", folder / "leaves.pem"],
        check=True,
        capture_output=True,
    )
    with serve(exports, max_upload_mb=20) as site:
        text = text_of("nginx").replace("/etc/ssl", str(folder)).replace("443", f"127.0.0.1:{port}")
        text = text.replace("127.0.0.1:8000", site.url.removeprefix("http://"))
        below = "location /leaves/ { proxy_pass http://foliar/; }"
        assert below in (ROOT / "common" / "serve" / "README.md").read_text(encoding="utf-8")
        text = text.replace("location / {", f"{below}\n location / {{")
        places = "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off;\n{places}{text}}}\n"
        )
        command = [program, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        running = subprocess.Popen(command)
        try:
            end = time.monotonic() + 10
            while time.monotonic() < end:
                with contextlib.suppress(ConnectionRefusedError):
                    ask(port, "/healthz")
                    break
            yield port, site
        finally:
            running.terminate()
            running.wait(10)
        assert "emerg" not in (folder / "error.log").read_text()


def test_nginx_passes_photos_and_nothing_is_redirected(nginx):
    port, _ = nginx
    for prefix in ("", "/leaves"):
        for path in ("/predict", "/predict/"):
            status, _, body = ask(port, prefix + path, PHOTO)
            assert (status, json.loads(body)["disease"]) == (200, "scab")
        for path in ("/", "/docs/", "/model/", "/v2/", "/app.js"):
            status, headers, _ = ask(port, prefix + path)
            assert status == 200
            assert "Location" not in headers
        for path in ("/metrics", "/metrics/", "/%6detrics"):
            assert ask(port, prefix + path)[0] == 404


def test_nginx_limits_bodies_and_how_often_one_address_asks(nginx):
    port, site = nginx
    assert ask(port, "/predict", bytes(21_000_000))[0] == 413
    status, headers, body = ask(port, "/predict", bytes(20_500_000))  # the server's own limit
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")
    before = len(site.asked)
    with ThreadPoolExecutor(40) as pool:
        found = [*pool.map(lambda _: ask(port, "/v2/models/foliar/infer", b"{}")[0], range(40))]
    assert found.count(429) >= 10
    assert found.count(400) >= 15  # no request of that protocol, but it reached the server
    assert len(site.asked) - before == found.count(400)
    assert [ask(port, "/style.css")[0] for _ in range(30)] == [200] * 30


def test_caddy_passes_photos_and_keeps_the_metrics(exports, tmp_path):
    if not (program := shutil.which("caddy")):
        pytest.skip("no caddy is installed")
    port, config = free_port(), tmp_path / "Caddyfile"
    with serve(exports) as site:
        text = text_of("caddyfile").replace("leaves.example.org", f"http://127.0.0.1:{port}")
        text = text.replace("127.0.0.1:8000", site.url.removeprefix("http://"))
        config.write_text("{\n admin off\n}\n" + text)
        running = subprocess.Popen(
            [program, "run", "--adapter", "caddyfile", "--config", config],
            stderr=subprocess.DEVNULL,
            env={"HOME": str(tmp_path)},
        )
        try:
            end = time.monotonic() + 10
            while time.monotonic() < end:
                with contextlib.suppress(ConnectionRefusedError):
                    ask(port, "/healthz", tls=False)
                    break
            for path in ("/predict", "/predict/"):
                assert ask(port, path, PHOTO, tls=False)[0] == 200
            for path in ("/metrics", "/metrics/"):
                assert ask(port, path, tls=False)[0] == 404
            assert ask(port, "/predict", bytes(21_000_000), tls=False)[0] in (413, 502)
        finally:
            running.terminate()
            running.wait(10)
