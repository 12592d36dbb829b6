"""The child process with real children: small Python programs in vLLM's place."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from steerlift.records.errors import InputError
from steerlift.serving import process as process_module
from steerlift.serving.process import ServerProcess

HEALTHY = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *text): pass
time.sleep(0.3)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
open(sys.argv[1], "w").write(str(server.server_port))
server.serve_forever()
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""
WATCHED = """
import subprocess, sys, time
from steerlift.serving import process
process._WATCH_SECONDS = 0.1
process.end_with_parent()
open(sys.argv[1], "w").write("watching")
time.sleep(60)
"""


def run(program, path):
    return ServerProcess([sys.executable, "-c", program, str(path)], os.environ)


def written(path):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (path.exists() and path.read_text()):
        time.sleep(0.02)
    return path.read_text()


def test_it_is_ready_when_it_answers(tmp_path):
    child = run(HEALTHY, tmp_path / "port")
    try:
        assert child.wait_until_ready("127.0.0.1", int(written(tmp_path / "port"))) < 20
    finally:
        child.stop()


def test_one_that_ends_before_is_told_from_one_that_is_slow():
    child = run("raise SystemExit(3)", "")
    with pytest.raises(InputError, match="ended with exit code 3 before it was ready"):
        child.wait_until_ready("127.0.0.1", 1)


def test_what_does_not_end_by_itself_is_killed_with_its_children(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process_module, "_GRACE_SECONDS", 0.2)
    child = run(STUBBORN, tmp_path / "pid")
    grandchild = psutil.Process(int(written(tmp_path / "pid")))

    child.stop()

    assert child.wait() == -9
    psutil.wait_procs([grandchild], timeout=5)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert "its processes are killed" in capsys.readouterr().err


def test_a_process_ends_when_its_parent_is_killed(tmp_path):
    starter = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", starter, WATCHED, str(tmp_path / "ready")])
    written(tmp_path / "ready")
    [watched] = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()

    psutil.wait_procs([watched], timeout=20)

    assert not watched.is_running() or watched.status() == psutil.STATUS_ZOMBIE
