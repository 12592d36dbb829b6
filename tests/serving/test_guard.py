"""The guard as the ASGI application it is, before an application that only repeats what it was sent."""

import asyncio
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save
from small_pipeline import tokenizer
from tiny_models import HIDDEN, tiny_model

from steerlift.serving import guard as guard_module
from steerlift.serving import private
from steerlift.serving.guard import Guard
from steerlift.serving.steering_field import XARG, unseal
from steerlift.serving.tokenizer_digest import tokenizer_digest

KEY = "a-key-of-the-test"
VECTORS = save({"layer.1": torch.ones(HIDDEN)})


class Client:
    """Sends requests through the guard; what reaches the application behind comes back as the answer 200."""

    def __init__(self, architecture="Qwen2ForCausalLM"):
        self.passed = []
        model = SimpleNamespace(
            served_model_name="tiny",
            architecture=architecture,
            hf_text_config=tiny_model("qwen2").config,
            dtype=torch.float32,
            max_model_len=128,
        )
        config = SimpleNamespace(model_config=model, scheduler_config=SimpleNamespace(max_num_seqs=8))
        engine = SimpleNamespace(get_tokenizer=tokenizer)
        self.app = SimpleNamespace(state=SimpleNamespace(engine_client=engine, vllm_config=config))
        self.guard = Guard(self._behind)

    async def _behind(self, scope, receive, send):
        if scope["type"] == "lifespan":
            self.passed.append(scope)
            return
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body")
        body = b"".join(parts)
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        assert lengths in ([], [str(len(body)).encode()])
        self.passed.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def send(self, method, path, body=b"", key=KEY, parts=1, **headers):
        headers = {"host": "localhost", "content-length": str(len(body)), **headers}
        if key:
            headers["authorization"] = f"Bearer {key}"
        size = max(1, -(-len(body) // parts))
        chunks = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
        messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        messages[-1]["more_body"] = False
        sent = []

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def keep(message):
            sent.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs, "app": self.app}
        asyncio.run(self.guard(scope, receive, keep))
        return sent[0]["status"], json.loads(sent[1]["body"])

    def complete(self, **request):
        """The status, the answer, and the request that reached the application."""
        status, answer = self.send("POST", "/v1/completions", json.dumps(request).encode(), key="", parts=3)
        return status, answer, json.loads(self.passed[-1]) if status == 200 else None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in (private.VECTORS, private.WEIGHTS):
        (tmp_path / name).mkdir()
    private.write_private(tmp_path / "key", KEY.encode())
    private.write_settings(tmp_path, {"host": "127.0.0.1", "all_paths_closed": False, "weight_transfer": "file"})
    monkeypatch.setenv(private.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def client(folder):
    client = Client()
    assert client.send("PUT", "/steerlift/vectors/v", VECTORS)[0] == 200
    return client


def test_a_request_without_steering_passes_byte_for_byte(client):
    for body in (b'{"prompt":  "x"}', b"{bad json", b'["steering"]', b'{"steering"', b"", "é".encode("utf-16")):
        assert client.send("POST", "/v1/completions", body, key="", parts=2)[0] == 200
        assert client.passed[-1] == body


def test_steering_becomes_sealed_arguments_and_a_cache_salt(client):
    steering = {"vector": "v", "weight": 0.5}
    _, _, request = client.complete(prompt="x", steering=steering, vllm_xargs={"other": 1})

    assert "steering" not in request
    assert request["vllm_xargs"]["other"] == 1
    digest = client.send("GET", "/steerlift/vectors/v")[1]["digest"]
    assert json.loads(unseal(request["vllm_xargs"][XARG], KEY)) == [[digest, 0.5]]
    salts = {request["cache_salt"]}
    for change in ({"cache_salt": "mine"}, {"steering": {**steering, "weight": 0.6}}):
        salts.add(client.complete(**{"prompt": "x", "steering": steering, **change})[2]["cache_salt"])
    assert len(salts) == 3
    assert client.complete(prompt="x", steering=steering)[2]["cache_salt"] in salts


@pytest.mark.parametrize("steering", [None, [], {"vector": "v", "weight": 0}])
def test_the_base_has_no_salt_of_ours(client, steering):
    assert client.complete(prompt="x", steering=steering)[2] == {"prompt": "x"}
    assert client.complete(prompt="x", steering=steering, cache_salt="mine")[2] == {"prompt": "x", "cache_salt": "mine"}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"steering": {"vector": "unknown", "weight": 1}}, "no vector is named 'unknown'; this server has: v"),
        ({"steering": {"vector": "v", "weight": float("nan")}}, "got nan"),
        ({"steering": {"vector": "v", "weight": [1]}}, "got 1 numbers"),
        ({"steering": {"vector": "v", "weight": 1}, "use_beam_search": True}, "cannot be combined with use_beam_search"),
        ({"steering": {"vector": "v", "weight": 1}, "vllm_xargs": "x"}, "vllm_xargs: got str"),
        ({"steering": {"vector": "v", "weight": 1}, "cache_salt": 5}, "cache_salt: expected"),
        ({"vllm_xargs": {XARG: "0:[]"}}, "server's own"),
    ],
)
def test_what_cannot_be_steered_is_answered_with_400_and_the_reason(client, request_, reason):
    status, answer, _ = client.complete(prompt="x", **request_)

    assert status == answer["error"]["code"] == 400
    assert reason in answer["error"]["message"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_no_spelling_of_a_key_slips_through(client, encoding):
    escaped = rb'{"vllm_xargs": {"\u0073teerlift": "0:[]"}}'
    for body in (escaped, '{"vllm_xargs": {"steerlift": "0:[]"}}'.encode(encoding)):
        assert client.send("POST", "/v1/chat/completions", body, key="")[0] == 400


def test_a_family_that_cannot_be_steered_serves_its_base(folder):
    client = Client("Phi3ForCausalLM")
    assert client.complete(prompt="x")[0] == 200
    status, answer, _ = client.complete(prompt="x", steering={"vector": "v", "weight": 1})
    assert status == 400
    assert "Phi3ForCausalLM cannot be steered here; expected one of Qwen2ForCausalLM" in answer["error"]["message"]


def test_a_body_too_long_is_not_even_read_to_its_end(client, monkeypatch):
    monkeypatch.setattr(guard_module, "MOST_REQUEST_BYTES", 100)
    monkeypatch.setattr(guard_module, "MOST_UPLOAD_BYTES", 100)
    passed = len(client.passed)
    # What it says of its own length counts for nothing.
    honest = client.send("POST", "/v1/completions", b"x" * 101)
    lying = client.send("PUT", "/steerlift/vectors/v", b"x" * 1000, parts=50, **{"content-length": "5"})

    assert honest[0] == lying[0] == 413
    assert len(client.passed) == passed


def test_vectors_are_put_listed_and_deleted(client):
    digest = client.send("GET", "/steerlift/vectors/v")[1]["digest"]
    assert client.send("PUT", "/steerlift/vectors/w", VECTORS) == (200, {"name": "w", "digest": digest})
    assert client.send("GET", "/steerlift/vectors") == (200, {"vectors": {"v": digest, "w": digest}})
    assert client.send("DELETE", "/steerlift/vectors/w")[0] == 200
    for method in ("DELETE", "GET"):
        assert client.send(method, "/steerlift/vectors/w")[0] == 404
    assert client.send("POST", "/steerlift/vectors/v")[0] == 405
    assert client.send("GET", "/steerlift/vectors/")[0] == client.send("GET", "/steerlift")[0] == 404
    for method, path in (("PUT", "v"), ("GET", "v"), ("DELETE", "v"), ("GET", "")):
        assert client.send(method, f"/steerlift/vectors/{path}", key="")[0] == 401


@pytest.mark.parametrize("name", ["../key", "../../etc/passwd", ".", "names.json/", "a\0"])
def test_a_vector_s_name_is_no_path(client, folder, name):
    before = sorted(folder.rglob("*"))
    assert client.send("PUT", f"/steerlift/vectors/{name}", VECTORS)[0] == 400
    assert client.send("GET", f"/steerlift/vectors/{name}")[0] == 404
    assert sorted(folder.rglob("*")) == before


def test_the_information_lets_a_trainer_compare(client):
    _, info = client.send("GET", "/steerlift/info")

    assert info["architecture"] == "qwen2, 3 layers, hidden size 64, vocabulary 97"
    assert info["tokenizer_digest"] == tokenizer_digest(tokenizer())
    assert (info["dtype"], info["layers"], info["hidden_size"], info["steerable"]) == ("float32", 3, 64, True)


def test_a_refused_websocket_is_closed_and_what_is_no_request_passes(client):
    sent = []

    async def keep(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [(b"host", b"localhost")]}
    asyncio.run(client.guard(scope, None, keep))
    asyncio.run(client.guard({"type": "lifespan"}, None, None))

    assert [message["type"] for message in sent] == ["websocket.close"]
    assert client.passed[-1] == {"type": "lifespan"}
