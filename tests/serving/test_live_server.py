"""The real server, over HTTP: `python vllm_server.py`, with a tiny model on the CPU."""

import importlib.util
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from served import NEW_TOKENS, expected, mixed_requests, saved_model, served_model, two_vectors
from small_pipeline import tokenizer
from tiny_models import HIDDEN

from steerlift.serving.private import WEIGHTS, read_key, read_server
from steerlift.serving.tokenizer_digest import tokenizer_digest
from steerlift.steering.models import architecture

NO_VLLM = "vLLM is not installed: make test-serving"
httpx = pytest.importorskip("httpx", reason=NO_VLLM)
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)]

SYNCS = 7
CONTROL_PATHS = [
    "/collective_rpc",
    "/pause",
    "/resume",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/init_weight_transfer_engine",
    "/reset_prefix_cache",
    "/sleep",
    "/wake_up",
    "/abort_requests",
    "/load_lora_adapter",
    "/invocations",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/inference/v1/generate",
    "/scale_elastic_ep",
    "/server_info",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/steerlift/info",
    "/steerlift/vectors",
    "/unknown",
]


def body(server, request, **more):
    return {
        "model": server.model,
        "prompt": request["prompt"],
        "steering": request["steering"],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }


def completed(client, server, requests):
    """The token ids of all requests, sent at once."""

    def one(request):
        answer = client.post("/v1/completions", json=body(server, request))
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["token_ids"]

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


def sync(client, server, weights):
    """The sequence that a trainer goes through."""
    file = server.folder / WEIGHTS / "new.safetensors"
    shutil.copy(weights, file)
    for path, content in [
        ("/pause?mode=keep&clear_cache=false", None),
        ("/start_weight_update", {}),
        ("/update_weights", {"update_info": {"file": file.name}}),
        ("/finish_weight_update", {}),
        ("/reset_prefix_cache", None),
        ("/resume", None),
    ]:
        answer = client.post(path, json=content)
        assert answer.status_code == 200, answer.text
    file.unlink()


def test_64_mixed_requests_at_once_equal_transformers_and_leave_the_base_alone(server):
    requests = mixed_requests(64)
    with server.client() as client:
        answers = completed(client, server, requests)
        again = completed(client, server, requests)

    assert answers == expected(served_model("qwen2"), requests)
    assert again == answers
    steered = [i for i, request in enumerate(requests) if request["steering"]]
    base = expected(served_model("qwen2"), [{**requests[i], "steering": None} for i in steered])
    assert sum(answers[i] != own for i, own in zip(steered, base, strict=True)) > len(steered) // 2


def test_seven_weight_updates_each_give_transformers_answers(server, tmp_path):
    requests = mixed_requests(8)
    with server.client() as client:
        assert client.post("/init_weight_transfer_engine", json={"init_info": {}}).status_code == 200
        try:
            for seed in range(1, SYNCS + 1):
                model = served_model("qwen2", seed)
                sync(client, server, saved_model(tmp_path / str(seed), model) / "model.safetensors")
                assert completed(client, server, requests) == expected(model, requests)
        finally:
            sync(client, server, Path(server.model) / "model.safetensors")


def test_an_update_that_cannot_be_loaded_leaves_the_model_as_it_was(server, tmp_path):
    weights = server.folder / WEIGHTS
    whole = dict(served_model("qwen2", seed=1).named_parameters())
    (tmp_path / "outside").write_bytes(save(whole))
    (weights / "link").symlink_to(tmp_path / "outside")
    (weights / "garbage").write_bytes(b"garbage")
    part = {name: tensor for name, tensor in whole.items() if "k_proj" not in name}
    (weights / "part").write_bytes(save(part))
    requests = mixed_requests(4)
    with server.client() as client:
        for name, reason in [
            ("link", "expected a plain file"),
            ("garbage", "not a safetensors file"),
            ("part", "is missing"),
            ("../key", "expected the plain name"),
            (str(tmp_path / "outside"), "expected the plain name"),
            ("nothing", "no such file"),
        ]:
            assert client.post("/start_weight_update").status_code == 200
            answer = client.post("/update_weights", json={"update_info": {"file": name}})
            assert answer.status_code == 500
            assert reason in answer.json()["error"]["message"]
        assert completed(client, server, requests) == expected(served_model("qwen2"), requests)
    for name in ("link", "garbage", "part"):
        (weights / name).unlink()


def test_logprobs_are_those_of_the_distribution_sampled_from(server):
    prompt = mixed_requests(1)[0]["prompt"]
    with server.client() as client:
        request = body(server, {"prompt": [prompt], "steering": None}, temperature=0.7, seed=3, logprobs=0, n=2)
        choices = client.post("/v1/completions", json=request).json()["choices"]
    model = served_model("qwen2")
    for choice in choices:
        ids = [*prompt, *choice["token_ids"]]
        with torch.no_grad():
            logprobs = (model(torch.tensor([ids])).logits[0] / 0.7).log_softmax(-1)
        wanted = [float(logprobs[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-4)


def test_vectors_uploaded_replaced_and_deleted_while_requests_with_them_run(server):
    upload = save({f"layer.{index}": vector for index, vector in two_vectors()["first"].layers.items()})
    other = save({"layer.0": torch.ones(HIDDEN)})
    request = mixed_requests(2)[1]
    named = {"prompt": request["prompt"], "steering": {**request["steering"], "vector": "live"}}
    started = []
    with server.client() as client:
        assert client.put("/steerlift/vectors/live", content=upload).status_code == 200
        with client.stream("POST", "/v1/completions", json=body(server, named, stream=True, max_tokens=100)) as stream:
            events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {"))
            started += next(events)["choices"][0]["token_ids"]
            assert client.put("/steerlift/vectors/live", content=other).status_code == 200
            [replaced] = completed(client, server, [named])
            assert client.delete("/steerlift/vectors/live").status_code == 200
            refused = client.post("/v1/completions", json=body(server, named))
            for event in events:
                started += event["choices"][0]["token_ids"]
        assert client.put("/steerlift/vectors/live", content=upload).status_code == 200
        whole = client.post("/v1/completions", json=body(server, named, max_tokens=100)).json()["choices"][0]["token_ids"]

    assert refused.status_code == 400
    assert "no vector is named 'live'" in refused.json()["error"]["message"]
    assert started == whole
    assert started[:NEW_TOKENS] == expected(served_model("qwen2"), [request])[0] != replaced


def test_openai_s_own_client_steers_chats_and_completions(server):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    steering = {"vector": "first", "weight": 0.5}
    messages = [{"role": "user", "content": "Compute 1+2."}]
    options = {"model": server.model, "max_tokens": NEW_TOKENS, "temperature": 0}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=httpx.Client(trust_env=False)) as client:
        extra = {"steering": steering, "ignore_eos": True, "return_token_ids": True}
        chat = client.chat.completions.create(messages=messages, extra_body=extra, **options)
        plain = client.chat.completions.create(messages=messages, extra_body={**extra, "steering": None}, **options)
        streamed = client.chat.completions.create(messages=messages, extra_body=extra, stream=True, **options)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        with pytest.raises(openai.BadRequestError, match="no vector is named 'nobody'"):
            client.completions.create(prompt="x", extra_body={"steering": {"vector": "nobody", "weight": 1}}, **options)

    prompt = tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    requests = [{"prompt": prompt, "steering": given} for given in (steering, None)]
    assert [answer.choices[0].token_ids for answer in (chat, plain)] == expected(served_model("qwen2"), requests)
    assert text == chat.choices[0].message.content


def test_curl_steers(server):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    request = mixed_requests(2)[1]
    command = ["curl", "-s", "--noproxy", "*", f"{server.url}/v1/completions", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, "-d", json.dumps(body(server, request))], capture_output=True, check=True)

    assert json.loads(done.stdout)["choices"][0]["token_ids"] == expected(served_model("qwen2"), [request])[0]


@pytest.mark.parametrize("path", CONTROL_PATHS)
def test_no_control_path_answers_without_the_key(server, path):
    with server.client(key=False) as client:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert client.request(method, path, json={}).status_code == 401
        for headers in ({"Authorization": "Bearer wrong-key"}, {"Authorization": ""}):
            assert client.post(path, headers=headers).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}],
)
def test_pages_of_other_sites_reach_nothing_even_with_the_key(server, headers):
    with server.client() as client:
        for method, path in (("GET", "/health"), ("POST", "/v1/completions"), ("OPTIONS", "/pause"), ("POST", "/pause")):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert client.get("/is_paused").json() == {"is_paused": False}


def test_no_other_way_in_takes_steering_that_the_guard_has_not_made(server):
    forged = {"vllm_xargs": {"steerlift": '0:[["' + "0" * 64 + '",1.0]]'}}
    with server.client() as client:
        for path, request in [
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
            ("/v1/responses", {"input": "x"}),
        ]:
            answer = client.post(path, json={"model": server.model, **request, **forged})
            assert answer.status_code == 400
            assert "server's own" in answer.json()["error"]["message"]
        assert completed(client, server, mixed_requests(1))


def test_garbage_and_oversized_uploads_are_refused(server):
    def endless():
        for _ in range(300):
            yield b"x" * 2**20

    with server.client() as client:
        assert client.put("/steerlift/vectors/x", content=b"garbage").status_code == 400
        wrong = client.put("/steerlift/vectors/x", content=save({"layer.7": torch.ones(HIDDEN)}))
        assert wrong.status_code == 400
        assert "for layer 7" in wrong.json()["error"]["message"]
        assert client.put("/steerlift/vectors/x", content=endless()).status_code == 413
        assert client.put("/steerlift/vectors/..%2F..%2Fkey", content=b"garbage").status_code == 400
        assert "x" not in client.get("/steerlift/vectors").json()["vectors"]


def test_a_trainer_can_compare_what_is_served(server):
    with server.client() as client:
        info = client.get("/steerlift/info").json()

    assert info["architecture"] == architecture(served_model("qwen2").config)
    assert info["tokenizer_digest"] == tokenizer_digest(tokenizer())
    assert info["dtype"] == "float32"
    assert set(info["vectors"]) >= {"first", "second"}
    told = read_server(server.folder)
    assert told is not None
    assert told["url"] == server.url
    assert told["pid"] == server.pid


def test_its_files_are_the_user_s_alone(server):
    for path in [server.folder, *server.folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0


def test_a_second_server_on_the_port_is_refused_in_one_line(server):
    command = [sys.executable, "vllm_server.py", "--model", server.model, "--port", str(server.port)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == done.stderr.splitlines()[-1:]
    assert f"--port {server.port}" in done.stderr
    assert read_key(server.folder)
