"""Lets only this machine's own page in: a page of another site in the user's browser can reach 127.0.0.1 as well."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from steerlift.serving.access import LOCAL_HOSTS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Guard:
    """Refuses a Host that is no name of this machine (one that an attacker has pointed at it) and another site's Origin."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI has it."""
        if scope["type"] not in ("http", "websocket") or is_from_here(scope["headers"]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this page is for the machine that it runs on"})


def is_from_here(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request names this machine as its Host, once, and no other site as its Origin."""
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    here = len(hosts) == 1 and urlsplit(f"//{hosts[0]}").hostname in LOCAL_HOSTS
    return here and all(origin == f"http://{hosts[0]}" for origin in origins)
