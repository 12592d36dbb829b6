import pytest

from steerlift.serving.access import Access

KEY = "the-right-key"
LOCAL = Access(KEY, "127.0.0.1", all_paths_closed=False)
CLOSED = Access(KEY, "127.0.0.1", all_paths_closed=True)
OPEN = [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/name"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
]
CONTROL = [
    ("POST", "/collective_rpc"),
    ("POST", "/update_weights"),
    ("POST", "/pause"),
    ("POST", "/reset_prefix_cache"),
    ("GET", "/steerlift/info"),
    ("PUT", "/steerlift/vectors/a"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("POST", "/invocations"),
    ("POST", "/v1/responses"),
    ("OPTIONS", "/v1/completions"),
    ("DELETE", "/v1/models/name"),
    ("POST", "/v1/completions/"),
    ("POST", "//v1/completions"),
    ("POST", "/V1/completions"),
    ("GET", "/health/../collective_rpc"),
    ("GET", "/v1/models/../../collective_rpc"),
    ("GET", "/anything"),
]


def scope(method="GET", path="/health", kind="http", **headers):
    given = {"host": "127.0.0.1:8000", **headers}
    pairs = [(name.encode(), value.encode()) for name, value in given.items() if value is not None]
    return {"type": kind, "method": method, "path": path, "headers": pairs}


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_what_a_client_needs_is_open_unless_the_user_chose_a_key(method, path):
    assert LOCAL.refusal(scope(method, path)) is None
    if path != "/health":
        assert CLOSED.refusal(scope(method, path)).status == 401
    assert CLOSED.refusal(scope(method, path, authorization=f"Bearer {KEY}")) is None


@pytest.mark.parametrize(("method", "path"), CONTROL)
def test_every_other_path_needs_the_key(method, path):
    refusal = LOCAL.refusal(scope(method, path))
    # Dots stay in the path that a router compares with its routes, so none of them leads anywhere else.
    assert refusal is None if path.startswith("/v1/models/") and method == "GET" else refusal.status == 401
    assert LOCAL.refusal(scope(method, path, authorization=f"Bearer {KEY}")) is None


@pytest.mark.parametrize(
    "value", [KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", f"Bearer x{KEY}", "Bearer ", f"Bearer {KEY} x"]
)
def test_a_wrong_key_is_no_key(value):
    assert LOCAL.refusal(scope("POST", "/pause", authorization=value)).status == 401


def test_two_keys_are_no_key():
    twice = scope("POST", "/pause")
    twice["headers"] += [(b"authorization", f"Bearer {KEY}".encode()), (b"authorization", b"Bearer other")]
    assert LOCAL.refusal(twice).status == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:8000", "127.0.0.1:8000"])
def test_names_of_this_machine_are_known(host):
    assert LOCAL.refusal(scope(host=host)) is None


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "127.0.0.2", "[::2]:1"]
)
def test_another_host_is_refused_even_with_the_key(host):
    assert LOCAL.refusal(scope(host=host, authorization=f"Bearer {KEY}")).status == 403


def test_a_server_for_others_knows_its_address():
    assert Access(KEY, "10.1.2.3", all_paths_closed=True).refusal(scope(host="10.1.2.3:8000")) is None
    assert Access(KEY, "10.1.2.3", all_paths_closed=True).refusal(scope(host="10.1.2.4:8000")).status == 403
    assert Access(KEY, "0.0.0.0", all_paths_closed=True).refusal(scope(host="any.name:8000")) is None
    assert Access(KEY, "0.0.0.0", all_paths_closed=True).refusal(scope("POST", "/v1/completions", host="any")).status == 401


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:8001", "file://"])
def test_pages_of_other_sites_are_refused_even_with_the_key(origin):
    request = scope("POST", "/v1/completions", origin=origin, authorization=f"Bearer {KEY}")
    assert LOCAL.refusal(request).status == 403


def test_a_page_of_the_server_itself_may_ask():
    assert LOCAL.refusal(scope(origin="http://127.0.0.1:8000")) is None


def test_a_websocket_needs_the_key_on_every_path():
    assert LOCAL.refusal(scope(path="/v1/models", kind="websocket")).status == 401
    assert LOCAL.refusal(scope(path="/v1/realtime", kind="websocket", authorization=f"Bearer {KEY}")) is None
