"""Servers that fail, at the other end of a real connection: what is finished stays, the rest is asked again."""

import itertools
import time
from collections import Counter, deque
from contextlib import ExitStack

import pytest
from small_pipeline import tokenizer
from small_server import END, GREEDY, SmallServer, changed, cut_short, dropped, slow, status, tokens_of

from steerlift.records.errors import InputError, ServerError
from steerlift.sampling import remote as remote_module
from steerlift.sampling import server as server_module
from steerlift.sampling.remote import RemoteSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.sampling.server import Patience, Server

REQUESTS = [Request((7, 8, 9), (3, 4, 5)), Request((20,), (1,)), Request((30, 31), (2**63 + 6, 7))]
COUNT = 6
OPTIONS = SamplingOptions(0.7, 4)
SHORT_WAIT = 0.02

NONSENSE = {
    "500": status(500),
    "503 that is no JSON": status(503, b"<html>busy</html>"),
    "dropped": dropped,
    "cut short": cut_short,
    "no JSON": status(200, b"nonsense"),
    "no text": status(200, b"\xff\xfe\x00"),
    "a list": status(200, []),
    "no choices": status(200, {"choices": []}),
    "two choices": status(200, {"choices": [{}, {}]}),
    "no ids": changed(token_ids=None),
    "ids that are none": changed(token_ids=["x", 1]),
    "no logprobs": changed(logprobs=None),
    "a logprob missing": changed(logprobs={"token_logprobs": [None, -0.5]}),
    "fewer logprobs": changed(logprobs={"token_logprobs": [-0.5]}),
    "logprob NaN": changed(logprobs={"token_logprobs": [-0.5, float("nan")]}),
    "logprob infinite": changed(logprobs={"token_logprobs": [float("-inf"), -0.5]}),
    "empty": changed(token_ids=[], logprobs={"token_logprobs": []}, finish_reason="length"),
    "too long": changed(token_ids=[5, 6, 7, 8, END], logprobs={"token_logprobs": [-0.5] * 5}),
    "stopped without an end": changed(token_ids=[5, 6]),
    "cut off behind the end": changed(finish_reason="length"),
    "aborted": changed(token_ids=[5, 6], finish_reason="abort"),
    "slow": slow(0.4),
}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(server_module, "_FIRST_WAIT_SECONDS", SHORT_WAIT)


@pytest.fixture
def small():
    with SmallServer().running() as running:
        yield running


def sampler(*servers: SmallServer, answer: float = 0.2, patience: float = 5.0, **more) -> RemoteSampler:
    there = [Server(f"{server.url}/", "the key") for server in servers]
    return RemoteSampler(there, "m", tokenizer(), [END], patience=Patience(answer, patience), **more)


def assert_right(sampled) -> None:
    assert [len(completions) for completions in sampled] == [3, 1, 2]
    for request, completions in zip(REQUESTS, sampled, strict=True):
        for seed, completion in zip(request.seeds, completions, strict=True):
            expected = tokens_of(request.prompt_ids, seed % 2**63)
            assert completion.token_ids == expected
            assert completion.logprobs == GREEDY
            assert completion.text == tokenizer().decode(expected[:1])
            assert not completion.truncated


def test_completions_come_in_the_order_of_requests_and_seeds(small):
    counted = []
    assert_right(sampler(small).sample(REQUESTS, OPTIONS, counted.append))
    assert counted == [1] * COUNT
    assert small.keys == {"Bearer the key"}
    # Whatever a server has as its default must not change the policy.
    assert {name: small.bodies[0][name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert all("steering" not in body and body["max_tokens"] == 4 and body["model"] == "m" for body in small.bodies)


def test_nothing_asked_is_nothing_sent(small):
    assert sampler(small).sample([], OPTIONS) == []
    assert sampler(small).sample([Request((5,), ())], OPTIONS) == [[]]
    assert small.bodies == []


@pytest.mark.parametrize("fault", NONSENSE.values(), ids=NONSENSE)
def test_what_fails_is_asked_again_and_the_rest_is_not(small, fault, capsys):
    small.faults = deque([None, fault, None, fault])
    counted = []
    assert_right(sampler(small).sample(REQUESTS, OPTIONS, counted.append))
    assert set(small.answered.values()) == {1}
    assert len(small.answered) == COUNT
    assert counted == [1] * COUNT
    said = capsys.readouterr().err.splitlines()
    assert 1 <= len(said) <= 2
    assert all(line.startswith(f"{small.url}/v1/completions") and line.endswith(f"again in {SHORT_WAIT} s") for line in said)


def test_a_completion_that_the_limit_ends_is_truncated(small):
    small.faults = deque([changed(token_ids=[5, 6, 7, 8], logprobs={"token_logprobs": [-1.0] * 4}, finish_reason="length")])
    [[completion]] = sampler(small).sample([Request((9,), (1,))], OPTIONS)
    assert completion.truncated
    assert completion.token_ids == (5, 6, 7, 8)


def test_a_context_that_is_too_short_is_no_completion(small):
    small.faults = deque([changed(token_ids=[5, 6], finish_reason="length")])
    with pytest.raises(InputError) as raised:
        sampler(small).sample([Request((9, 9, 9), (1,))], OPTIONS)
    assert str(raised.value) == (
        f"{small.url} ended a completion after 2 of 4 tokens, behind a prompt of 3; start it with a --max-model-len that holds"
        " both"
    )


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_what_is_refused_is_not_asked_again(small, code, capsys):
    # Among failures too: asking again would not help.
    small.faults = deque([status(500), status(code), status(500)])
    with pytest.raises(InputError) as raised:
        sampler(small).sample(REQUESTS, OPTIONS)
    assert str(raised.value) == f"{small.url}/v1/completions answered {code}: out of sorts"
    assert small.paths.count("POST /v1/completions") <= COUNT
    assert capsys.readouterr().err == ""


def test_the_waits_grow_to_a_minute_and_never_beyond_the_patience(monkeypatch):
    monkeypatch.setattr(server_module, "_FIRST_WAIT_SECONDS", 1.0)
    assert list(itertools.islice(Patience(server=10_000).waits(), 9)) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    first, second = itertools.islice(Patience(server=1.5).waits(), 2)
    assert first == 1
    assert 1.4 < second <= 1.5


def test_patience_ends_in_one_line(small, capsys):
    small.faults = deque([status(500)] * 1000)
    start = time.monotonic()
    with pytest.raises(ServerError) as raised:
        sampler(small, patience=0.8).sample(REQUESTS, OPTIONS)
    assert 0.8 <= time.monotonic() - start < 10
    assert str(raised.value) == f"{small.url}/v1/completions answered 500: out of sorts; waited 0.8 s for it to come back"
    waits = [float(line.split()[-2]) for line in capsys.readouterr().err.splitlines()]
    assert waits[:3] == [SHORT_WAIT, 2 * SHORT_WAIT, 4 * SHORT_WAIT]
    assert sum(waits) <= 0.8


def test_a_server_that_gets_on_is_not_given_up(small):
    # One completion a round, so that all rounds together take longer than the patience lasts.
    small.faults = deque(fault for left in range(COUNT, 0, -1) for fault in [None, *[status(500)] * (left - 1)])
    start = time.monotonic()
    assert_right(sampler(small, patience=2.5 * SHORT_WAIT).sample(REQUESTS, OPTIONS))
    assert time.monotonic() - start > 2.5 * SHORT_WAIT
    assert set(small.answered.values()) == {1}


def test_every_server_is_prepared_before_it_is_asked(small):
    small.faults = deque([status(500)] * COUNT)
    prepared = []

    def prepare(server):
        prepared.append((server.url, len(small.paths)))

    assert_right(sampler(small, prepare=prepare).sample(REQUESTS, OPTIONS))
    rounds = len(prepared)
    assert rounds >= 2
    assert prepared[0] == (small.url, 0)
    assert prepared[-1][1] < len(small.paths)


def test_a_failing_preparation_is_waited_for(small):
    failures = [ServerError("not yet"), ServerError("not yet")]

    def prepare(_):
        if failures:
            raise failures.pop()

    assert_right(sampler(small, prepare=prepare).sample(REQUESTS, OPTIONS))
    assert failures == []


def test_servers_share_the_load_and_one_that_is_away_is_waited_for(small):
    other = SmallServer()
    with other.running():
        pass  # now its port is known, and nobody is there
    rounds = Counter()
    with ExitStack() as stack:

        def prepare(server):
            rounds[server.url] += 1
            if rounds[other.url] == 2 and server.url == other.url:
                stack.enter_context(other.running())

        assert_right(sampler(small, other, prepare=prepare).sample(REQUESTS, OPTIONS))
    assert sum(small.answered.values()) + sum(other.answered.values()) == COUNT
    assert not small.answered & other.answered
    assert min(len(small.answered), len(other.answered)) >= 1
    assert rounds == {small.url: 2, other.url: 2}


def test_two_servers_get_half_of_the_requests_each(small):
    with SmallServer().running() as other:
        assert_right(sampler(small, other).sample(REQUESTS, OPTIONS))
    assert len(small.answered) == len(other.answered) == COUNT // 2


def test_more_requests_than_connections(small, monkeypatch):
    monkeypatch.setattr(remote_module, "_CONCURRENT", 4)
    small.faults = deque([slow(0.01)] * 20)
    seeds = tuple(range(20))
    [completions] = sampler(small, answer=10).sample([Request((5,), seeds)], OPTIONS)
    assert [completion.token_ids for completion in completions] == [tokens_of((5,), seed) for seed in seeds]
    assert 2 <= small.most_at_once <= 4


def test_proxies_of_the_environment_are_passed_by(small, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert_right(sampler(small).sample(REQUESTS, OPTIONS))
    assert Server(small.url, "k").ask("GET", "/anything") == {}


def test_weights_need_vectors_and_are_sent_by_their_name(small):
    steered = [Request((5,), (1,), weight=0.5), Request((5,), (1,))]
    with pytest.raises(InputError, match="given no vectors"):
        sampler(small).sample(steered, OPTIONS)
    sampler(small, steering="v").sample(steered, OPTIONS)
    bodies = sorted(small.bodies, key=lambda body: "steering" in body)
    assert [body.get("steering") for body in bodies] == [None, {"vector": "v", "weight": 0.5}]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((200, b"nonsense"), ServerError, "its answer is no JSON object: nonsense"),
        ((200, [1]), ServerError, "its answer is no JSON object"),
        ((500, {"error": {"message": "engine\ndead"}}), ServerError, "answered 500: engine dead"),
        ((401, {"error": {"message": "key"}}), InputError, "answered 401: key"),
        ((404, b""), InputError, "answered 404: Not Found"),
    ],
)
def test_what_a_server_says_of_itself_may_be_nonsense_too(small, answer, error, message):
    small.answers["/steerlift/info"] = answer
    with pytest.raises(error, match=message) as raised:
        Server(small.url, "k").info()
    assert str(raised.value).startswith(f"{small.url}/steerlift/info")
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_is_one_line(small):
    with SmallServer().running() as gone:
        pass
    with pytest.raises(ServerError, match="ConnectError") as raised:
        Server(gone.url, "k").info()
    assert "\n" not in str(raised.value)
