"""RemoteSampler and the real vLLM: the same tokens and logprobs as here, whatever else is in the batch."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from lent_server import LentServer, local_model
from safetensors.torch import save
from small_pipeline import TEXTS, tokenizer

from steerlift.problems.prompt import encode_prompt
from steerlift.records.errors import InputError
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.remote import RemoteSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.sampling.server import Patience
from steerlift.steering.apply import steer
from steerlift.steering.models import end_token_ids
from steerlift.steering.vectors import SteeringVectors

NO_VLLM = "vLLM is not installed: make test-serving"
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)]

WEIGHTS = (0.0, 0.5, -1.0, 2.0)


@pytest.fixture(params=["base", "random"])
def model(request, served):
    """One that ends its answers, and one whose next token can be anything."""
    if request.param == "random":
        served.give("random")
    return local_model(str(served.models / request.param))


def sampler(served: LentServer, model, end_ids=None) -> RemoteSampler:
    server = served.client
    content = save({f"layer.{i}": vector for i, vector in vectors(served).layers.items()})
    server.request("PUT", "/steerlift/vectors/test", content=content)
    ends = end_token_ids(model, tokenizer()) if end_ids is None else end_ids
    return RemoteSampler([server], server.info()["model"], tokenizer(), ends, "test", Patience(120, 1))


def vectors(served: LentServer) -> SteeringVectors:
    return SteeringVectors.load(served.models / "v.safetensors")


def requests(seeds: int) -> list[Request]:
    """Prompts of the problems and long ones that begin alike, each under its own weight."""
    generator = torch.Generator().manual_seed(2)
    long = torch.randint(5, 300, (290,), generator=generator).tolist()
    prompts = [*(encode_prompt(tokenizer(), text) for text in TEXTS[:6]), long[:127], long[:129], long[:200], long]
    return [Request(tuple(prompt), tuple(range(seeds)), WEIGHTS[i % 4]) for i, prompt in enumerate(prompts)]


def scored(model, served: LentServer, request: Request, ids: tuple[int, ...], temperature: float) -> list[float]:
    with torch.no_grad(), steer(model, vectors(served), request.weight):
        logits = model(torch.tensor([[*request.prompt_ids, *ids]])).logits[0, len(request.prompt_ids) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1).tolist()


def test_greedy_completions_are_the_local_samplers(served, model):
    options = SamplingOptions(0.0, 24)
    there = sampler(served, model).sample(requests(1), options)
    here = LocalSampler(model, tokenizer(), vectors(served)).sample(requests(1), options)
    for remote, local in zip(there, here, strict=True):
        assert [replace(c, logprobs=()) for c in remote] == [replace(c, logprobs=()) for c in local]
        assert remote[0].logprobs == pytest.approx(local[0].logprobs, abs=1e-4)
    assert len({completion.token_ids for [completion] in there}) > 3


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_sampled_distribution(served, model, temperature):
    options = SamplingOptions(temperature, 12)
    counted = []
    asked = requests(3)
    sampled = sampler(served, model).sample(asked, options, counted.append)
    assert sum(counted) == 30
    assert len({completion.token_ids for completions in sampled for completion in completions}) > len(asked)
    for request, completions in zip(asked, sampled, strict=True):
        for completion in completions:
            expected = scored(model, served, request, completion.token_ids, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_completion_depends_on_its_prompt_seed_and_weight_alone(served):
    served.give("random")
    model = local_model(str(served.models / "random"))
    options = SamplingOptions(1.0, 12)
    first = sampler(served, model).sample(requests(4), options)
    backwards = [replace(request, seeds=request.seeds[::-1]) for request in requests(4)[::-1]]
    again = sampler(served, model).sample(backwards, options)
    assert [completions[::-1] for completions in again[::-1]] == first
    [[alone]] = sampler(served, model).sample([replace(requests(4)[3], seeds=(2,))], options)
    assert alone.token_ids == first[3][2].token_ids


def test_one_seed_under_two_weights_uses_the_same_random_numbers(served):
    served.give("random")
    model = local_model(str(served.models / "random"))
    seeds = tuple(range(10))
    prompt = requests(1)[0].prompt_ids
    asked = [Request(prompt, seeds, weight) for weight in (0.0, 1e-6, 2.0)]
    none, hardly, steered = sampler(served, model).sample([*asked], SamplingOptions(1.0, 12))
    assert [c.token_ids for c in hardly] == [c.token_ids for c in none]
    assert len({c.token_ids for c in none}) == len(seeds)
    assert [c.token_ids for c in steered] != [c.token_ids for c in none]


def test_what_ends_a_completion_and_what_only_cuts_it_off(served):
    model = local_model(str(served.models / "base"))
    request = replace(requests(1)[0], seeds=tuple(range(8)))
    [whole] = sampler(served, model).sample([request], SamplingOptions(1.0, 24))
    end = tokenizer().eos_token_id
    assert all(not c.truncated and c.token_ids[-1] == end and end not in c.token_ids[:-1] for c in whole)
    assert all(c.text == tokenizer().decode(c.token_ids[:-1]) for c in whole)
    longest = max(whole, key=lambda completion: len(completion.token_ids))
    length = len(longest.token_ids)
    # The end just fits, and just does not.
    for limit, truncated in ((length, False), (length - 1, True)):
        [cut] = sampler(served, model).sample([request], SamplingOptions(1.0, limit))
        completion = cut[whole.index(longest)]
        assert completion.token_ids == longest.token_ids[:limit]
        assert completion.truncated == truncated
    # A model may have several ends; any id may be one.
    other = longest.token_ids[1]
    [ended] = sampler(served, model, end_ids=[other, end]).sample([request], SamplingOptions(1.0, 24))
    completion = ended[whole.index(longest)]
    assert completion.token_ids == longest.token_ids[: longest.token_ids.index(other) + 1]
    assert not completion.truncated


def test_a_context_that_cannot_hold_prompt_and_completion_is_refused(served):
    served.give("random")
    model = local_model(str(served.models / "random"))
    remote = sampler(served, model)
    with pytest.raises(InputError, match="--max-model-len") as raised:
        remote.sample([Request((5,) * 505, (1,))], SamplingOptions(1.0, 16))
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"answered 400: .*context length is 512"):
        remote.sample([Request((5,) * 600, (1,))], SamplingOptions(1.0, 16))
    with pytest.raises(InputError, match=r"answered 400: .*no vector is named"):
        RemoteSampler(remote.servers, remote.model, tokenizer(), [1], "absent").sample(requests(1)[1:2], SamplingOptions())
