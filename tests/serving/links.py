"""A connection to a server that can be cut, in the middle of requests too, and mended: a port of its own that passes all on."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from server_processes import free_port

from steerlift.serving.private import private_folder

_COMPLETION = b"POST /v1/completions"


class Link:
    """Stands at `port` for the server of this machine at another port, also for who looks for its private folder."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.target = target
        self.cut_at: int | None = None
        """Cuts the link itself when so many completions have been asked for."""
        self.asked = 0
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._lock = threading.RLock()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            ends, self._open = self._open, []
        for end in (listener, *ends):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            with self._lock:
                self._open += [here, there]
                if self._listener is not listener:
                    here.close()
                    there.close()
                    return
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                with self._lock:
                    self.asked += part.count(_COMPLETION)
                    due = self.cut_at is not None and self.asked >= self.cut_at
                if due:
                    self.cut_at = None
                    self.cut()
                    return
                sink.sendall(part)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def link_to(port: int) -> Iterator[Link]:
    """A link that works until it is cut."""
    link = Link(port)
    folder = private_folder(link.port)
    folder.symlink_to(private_folder(port))
    link.mend()
    try:
        yield link
    finally:
        link.cut()
        folder.unlink()
