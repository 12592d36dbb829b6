"""The middleware that stands before all of vLLM's paths: it refuses what `access` does not allow, answers /steerlift/...,
and turns the `steering` field of a request into what vLLM passes on to its workers.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from steerlift.records.errors import SteerliftError
from steerlift.serving.access import STEERED_PATHS, Access
from steerlift.serving.control import MOST_UPLOAD_BYTES, PREFIX, Control
from steerlift.serving.private import folder_of_this_server, read_key, read_settings
from steerlift.serving.steering_field import FIELD, XARG, cache_salt, seal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MOST_REQUEST_BYTES = 64 * 2**20
# A body that cannot hold one of our two keys need not be parsed twice: neither letters, nor escapes, nor UTF-16.
_MAY_STEER = re.compile(rb"steer|\\u|\0")


class RequestRefused(SteerliftError):
    """A request that is answered with an error of the given HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """Named to vLLM as `--middleware steerlift.serving.guard.Guard`; outermost of all its middleware."""

    def __init__(self, app: App) -> None:
        folder = folder_of_this_server()
        self._app = app
        settings = read_settings(folder)
        self._access = Access(read_key(folder), settings["host"], settings["all_paths_closed"])
        self._control = Control(folder)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._access.refusal(scope)
        if refusal is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.reason})
        elif refusal is not None:
            await _answer(send, refusal.status, _error(refusal.status, refusal.reason))
        else:
            await self._admitted(scope, receive, send)

    async def _admitted(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path, is_http = scope["path"], scope["type"] == "http"
        try:
            if is_http and (path == PREFIX or path.startswith(f"{PREFIX}/")):
                body = await _body(receive, MOST_UPLOAD_BYTES) if scope["method"] == "PUT" else b""
                status, content = self._control.answer(scope["app"], scope["method"], path, body)
                await _answer(send, status, content)
                return
            if is_http and path in STEERED_PATHS and scope["method"] == "POST":
                body = self._steered(scope, await _body(receive, MOST_REQUEST_BYTES))
                scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
                receive = _replay(body, receive)
        except RequestRefused as error:
            await _answer(send, error.status, _error(error.status, str(error)))
            return
        except SteerliftError as error:
            await _answer(send, 400, _error(400, str(error)))
            return
        await self._app(scope, receive, send)

    def _steered(self, scope: MutableMapping[str, Any], body: bytes) -> bytes:
        """The body as vLLM shall see it. Raises InputError for a `steering` field that cannot be used."""
        if not _MAY_STEER.search(body):
            return body
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return body  # vLLM has its own words for it
        if not isinstance(request, dict):
            return body
        extra = request.get("vllm_xargs")
        if isinstance(extra, dict) and XARG in extra:
            raise RequestRefused(400, f"vllm_xargs.{XARG} is the server's own; ask for steering with the field {FIELD!r}")
        if FIELD not in request:
            return body
        field = request.pop(FIELD)
        form = self._control.canonical(scope["app"], field) if field is not None else None
        if form is not None:
            _check_combination(request)
            request["vllm_xargs"] = {**(extra or {}), XARG: seal(form, self._access.key)}
            request["cache_salt"] = cache_salt(form, request.get("cache_salt"))
        return json.dumps(request).encode()


def _check_combination(request: dict[str, Any]) -> None:
    if request.get("use_beam_search"):
        # vLLM makes the parameters of each beam anew and would drop the steering without a word.
        raise RequestRefused(400, "steering cannot be combined with use_beam_search; leave one of them out")
    if not isinstance(request.get("vllm_xargs"), dict | None):
        raise RequestRefused(400, f"vllm_xargs: got {type(request['vllm_xargs']).__name__}, expected an object")
    salt = request.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise RequestRefused(400, "cache_salt: expected a non-empty string")


async def _body(receive: Receive, most: int) -> bytes:
    """The request's body. Raises RequestRefused once it is longer than `most`, however long it says it is."""
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestRefused(400, "the request ended before its body did")
        part = message.get("body", b"")
        length += len(part)
        if length > most:
            raise RequestRefused(413, f"the body is longer than {most} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands the body on as one message; what follows (a disconnect) comes from the client as before."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]


def _error(status: int, reason: str) -> dict[str, Any]:
    kinds = {401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError"}
    return {"error": {"message": reason, "type": kinds.get(status, "BadRequestError"), "param": None, "code": status}}


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
