"""vLLM's server as a child process: started, waited for, and ended together with everything that it has started."""

import contextlib
import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from steerlift.records.errors import InputError
from steerlift.records.progress import PLAIN_INTERVAL_SECONDS, say

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 20.0
_OTHERS_SECONDS = 5.0
_WATCH_SECONDS = 2.0


class ServerProcess:
    """Runs in a session of its own, so that a signal reaches all of its processes at once, and Ctrl-C only us."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(command, env=dict(environment), start_new_session=True)

    def wait_until_ready(self, host: str, port: int) -> float:
        """Returns the seconds that it took until the server answered; says every 10 s that it has not yet.

        Raises InputError when the server ends instead.
        """
        start = said = time.monotonic()
        while not _healthy(host, port):
            code = self._process.poll()
            if code is not None:
                raise InputError(
                    f"the vLLM server ended with exit code {code} before it was ready; its own output above says why"
                )
            if time.monotonic() - said >= PLAIN_INTERVAL_SECONDS:
                said = time.monotonic()
                say(f"vLLM is starting: {said - start:.0f} s")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - start

    def wait(self) -> int:
        """Waits until the server ends; its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Ends all of the server's processes: asks them, and kills what is there after 20 s or a second Ctrl-C."""
        try:
            # vLLM's first process ends the others, and the last of them gives shared memory back.
            self._process.terminate()
            self._process.wait(_GRACE_SECONDS)
            self._wait_for_others()
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            say("vLLM does not end by itself; its processes are killed")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + _OTHERS_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, 0)
                time.sleep(0.1)


def end_with_parent() -> None:
    """Called in each of vLLM's processes: ends it when the one that started it is gone without a word (kill -9)."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        # Asked once while it starts, vLLM may go on all the same.
        time.sleep(_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="steerlift-parent", daemon=True).start()


def _healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
