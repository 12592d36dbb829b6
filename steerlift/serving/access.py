"""Who may ask a server for what: the rules that the guard applies to every request, before vLLM sees it.

vLLM's own key covers some paths only, and in its development mode, which weight updates need, others can call anything in
the worker. So a path is closed unless it is named here. A web page in the user's browser can reach 127.0.0.1 as well: hence
the checks of Host (a name that an attacker has pointed at this machine) and Origin (a page of another site).
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_EVERY_HOST = frozenset({"0.0.0.0", "::"})

STEERED_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
_OPEN_READS = frozenset({"/health", "/v1/models"})
_OPEN_POSTS = STEERED_PATHS | {"/tokenize", "/detokenize"}


@dataclass(frozen=True)
class Refusal:
    """An HTTP status and the reason."""

    status: int
    reason: str


@dataclass(frozen=True)
class Access:
    """The rules of one server: its key, the address it listens on, and whether every request needs the key."""

    key: str
    host: str
    all_paths_closed: bool

    def refusal(self, scope: Mapping[str, Any]) -> Refusal | None:
        """Why a request (an ASGI scope of type http or websocket) is refused; None when it may pass."""
        headers = _headers(scope)
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._known_host(hosts[0]):
            return Refusal(403, "the Host header is not a name of this server")
        origins = headers.get("origin", [])
        if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
            return Refusal(403, "requests from other sites' pages are refused")
        if self._is_open(scope) or self._has_key(headers.get("authorization", [])):
            return None
        return Refusal(401, "this path needs the server's key: Authorization: Bearer KEY")

    def _known_host(self, host: str) -> bool:
        if self.host in _EVERY_HOST:
            # Such a server has any number of names; every request to it needs the key.
            return True
        return _without_port(host).lower() in LOCAL_HOSTS | {self.host.lower()}

    def _is_open(self, scope: Mapping[str, Any]) -> bool:
        if scope["type"] != "http":
            return False
        path, method = scope["path"], scope["method"]
        if path == "/health" and method == "GET":
            return True
        if self.all_paths_closed:
            return False
        if method == "GET":
            return path in _OPEN_READS or path.startswith("/v1/models/")
        return method == "POST" and path in _OPEN_POSTS

    def _has_key(self, authorizations: list[str]) -> bool:
        if len(authorizations) != 1:
            return False
        scheme, _, token = authorizations[0].partition(" ")
        # Equal lengths and a comparison in constant time: the time of a refusal tells nothing about the key.
        given, expected = (hashlib.sha256(text.encode()).digest() for text in (token.strip(), self.key))
        return scheme.lower() == "bearer" and hmac.compare_digest(given, expected)


def _headers(scope: Mapping[str, Any]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
