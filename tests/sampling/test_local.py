import pytest
import torch
from tiny_models import END, HIDDEN, SpellingTokenizer, full_forward_logprobs, random_prompts, tiny_model
from transformers import AutoModelForCausalLM, Lfm2Config, MptConfig
from transformers.cache_utils import DynamicLayer

from steerlift.records.errors import InputError
from steerlift.sampling.cache import RoomyLayer
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.apply import steer
from steerlift.steering.models import decoder_body
from steerlift.steering.shared_context import allows_gaps
from steerlift.steering.vectors import SteeringVectors

LIMIT = 20


def hybrid_model():
    """Convolutions beside attention: a cache that cannot be split by rows."""
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=97, hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, layer_types=["conv", "full_attention", "conv"], pad_token_id=0, eos_token_id=END,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).float().eval()


def generated(model, prompt: tuple[int, ...], **options) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False, **options)
    return tuple(output[0, len(prompt) :].tolist())


def test_greedy_text_equals_generate(family):
    prompts = random_prompts(5, 12, 9, 3)
    sampler = LocalSampler(family, SpellingTokenizer())
    sampled = sampler.sample([Request(prompt, (1, 2)) for prompt in prompts], SamplingOptions(0.0, LIMIT))
    for prompt, completions in zip(prompts, sampled, strict=True):
        expected = generated(family, prompt)
        assert [c.token_ids for c in completions] == [expected, expected]
        assert all(c.truncated == (expected[-1] != END) for c in completions)


def test_logprobs_equal_a_full_forward_at_the_temperature(family):
    prompts = random_prompts(5, 12, 9, 3)
    sampler = LocalSampler(family, SpellingTokenizer())
    sampled = sampler.sample([Request(prompt, (1, 2, 3)) for prompt in prompts], SamplingOptions(0.7, LIMIT))
    for prompt, completions in zip(prompts, sampled, strict=True):
        for completion in completions:
            expected = full_forward_logprobs(family, prompt, completion, 0.7)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)


def test_a_completion_does_not_depend_on_what_else_is_in_the_batch(qwen2):
    prompts = random_prompts(5, 12, 9)
    options = SamplingOptions(0.9, LIMIT)
    sampler = LocalSampler(qwen2, SpellingTokenizer())
    together = sampler.sample([Request(prompt, (7, 8, 9)) for prompt in prompts], options)
    alone = [[sampler.sample([Request(p, (seed,))], options)[0][0] for seed in (7, 8, 9)] for p in prompts]
    small = LocalSampler(qwen2, SpellingTokenizer(), batch_rows=2)
    assert [[c.token_ids for c in group] for group in together] == [[c.token_ids for c in group] for group in alone]
    in_twos = small.sample([Request(prompt, (7, 8, 9)) for prompt in prompts], options)
    assert [[c.token_ids for c in group] for group in together] == [[c.token_ids for c in group] for group in in_twos]
    assert len({c.token_ids for c in together[0]}) == 3


def test_each_row_is_steered_by_its_own_weight(family):
    vectors = SteeringVectors({0: 0.5 * torch.randn(HIDDEN), 2: 0.5 * torch.randn(HIDDEN)})
    prompts = random_prompts(6, 11)
    weights = (0.0, 0.5, 1.5)
    sampler = LocalSampler(family, SpellingTokenizer(), vectors)
    requests = [Request(prompt, (1, 2), weight) for prompt in prompts for weight in weights]
    sampled = iter(sampler.sample(requests, SamplingOptions(0.0, LIMIT)))
    for prompt in prompts:
        for weight in weights:
            with steer(family, vectors, weight):
                expected = generated(family, prompt)
            assert [c.token_ids for c in next(sampled)] == [expected, expected]


def test_what_prompts_begin_with_is_computed_once_for_each_weight_and_changes_nothing(family):
    beginning = random_prompts(24)[0]
    prompts = [beginning + rest for rest in random_prompts(1, 9, 4)]
    vectors = SteeringVectors({0: 0.5 * torch.randn(HIDDEN), 2: 0.5 * torch.randn(HIDDEN)})
    requests = [Request(prompt, (1, 2), weight) for prompt in prompts for weight in (0.0, 1.5)]
    widths = []
    hook = family.get_input_embeddings().register_forward_hook(lambda _module, ids, _states: widths.append(ids[0].shape))
    sampled = LocalSampler(family, SpellingTokenizer(), vectors).sample(requests, SamplingOptions(0.7, LIMIT))
    hook.remove()
    shared = [(2, 24), (6, 9)] if allows_gaps(decoder_body(family)) else [(6, 33)]
    assert [tuple(shape) for shape in widths[: len(shared)]] == shared
    for request, completions in zip(requests, sampled, strict=True):
        for completion in completions:
            with steer(family, vectors, request.weight):
                expected = full_forward_logprobs(family, request.prompt_ids, completion, 0.7)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)


def test_models_that_look_back_through_a_window_are_told_apart():
    seen = {name: allows_gaps(decoder_body(tiny_model(name))) for name in ("qwen2", "llama", "mistral", "gemma2")}
    assert seen == {"qwen2": True, "llama": True, "mistral": False, "gemma2": False}


def test_a_model_that_counts_distances_in_its_cache_computes_every_prompt_whole():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MptConfig(vocab_size=97, d_model=HIDDEN, n_layers=2, n_heads=4, expansion_ratio=2, eos_token_id=END, pad_token_id=0)
    )
    model = model.float().eval()
    beginning = random_prompts(24)[0]
    prompts = [beginning + rest for rest in random_prompts(1, 9, 4)]
    sampled = LocalSampler(model, SpellingTokenizer()).sample(
        [Request(p, (1, 2)) for p in prompts], SamplingOptions(0.7, LIMIT)
    )
    for prompt, completions in zip(prompts, sampled, strict=True):
        for completion in completions:
            expected = full_forward_logprobs(model, prompt, completion, 0.7)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)


def test_a_cache_with_room_holds_what_transformers_cache_holds():
    torch.manual_seed(0)
    roomy, plain = RoomyLayer(), DynamicLayer()
    rows = 3
    for step in range(150):
        tokens = 40 if step == 0 else 1
        new = torch.randn(2, rows, 2, tokens, 4)
        for given, expected in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(given, expected)
        if step in (1, 70):
            chosen = torch.tensor([1, 1, 0, 2]) if step == 1 else torch.tensor([3, 0])
            roomy.batch_select_indices(chosen)
            plain.batch_select_indices(chosen)
            rows = len(chosen)
        assert roomy.get_seq_length() == plain.get_seq_length() == 40 + step


def test_any_of_several_end_tokens_ends_a_completion(qwen2):
    prompt = random_prompts(6)[0]
    free = generated(qwen2, prompt)
    stop = next(i for i in free[3:] if i != END)
    qwen2.generation_config.eos_token_id = [END, stop]
    completion = LocalSampler(qwen2, SpellingTokenizer()).sample([Request(prompt, (0,))], SamplingOptions(0.0, LIMIT))[0][0]
    assert completion.token_ids == free[: free.index(stop) + 1]
    assert not completion.truncated


def test_a_cache_that_cannot_be_split_falls_back_to_generate_and_says_so(capsys):
    model = hybrid_model()
    prompts = random_prompts(5, 9)
    sampler = LocalSampler(model, SpellingTokenizer(), SteeringVectors({1: torch.randn(HIDDEN)}))
    assert "falls back to transformers' generate" in capsys.readouterr().err
    greedy = sampler.sample([Request(prompt, (1, 2)) for prompt in prompts], SamplingOptions(0.0, LIMIT))
    assert [[c.token_ids for c in group] for group in greedy] == [[generated(model, prompt)] * 2 for prompt in prompts]
    options = SamplingOptions(0.8, LIMIT)
    together = sampler.sample([Request(prompt, (3, 4), weight) for prompt in prompts for weight in (0.0, 2.0)], options)
    alone = sampler.sample([Request(prompts[1], (4,), 2.0)], options)[0][0]
    assert together[3][1].token_ids == alone.token_ids
    for prompt, completion in zip(prompts, (together[0][0], together[2][0]), strict=True):
        expected = full_forward_logprobs(model, prompt, completion, 0.8)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)


def test_sampled_frequencies_are_the_softmax():
    model = tiny_model("llama")
    prompt = random_prompts(4)[0]
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / 2.0).softmax(-1)
    draws = 4000
    sampled = LocalSampler(model, SpellingTokenizer()).sample([Request(prompt, tuple(range(draws)))], SamplingOptions(2.0, 1))[
        0
    ]
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in sampled]), minlength=97)
    # Five standard errors of a binomial share, for every token.
    bound = 5 * (expected * (1 - expected) / draws).sqrt() + 1e-3
    assert bool(((counts / draws - expected).abs() < bound).all())


def test_progress_counts_every_completion_and_training_mode_is_kept(qwen2):
    qwen2.train()
    done: list[int] = []
    requests = [Request(prompt, (1, 2, 3)) for prompt in random_prompts(4, 6)]
    LocalSampler(qwen2, SpellingTokenizer()).sample(requests, SamplingOptions(1.0, 3), done.append)
    assert sum(done) == 6
    assert qwen2.training


def test_impossible_requests_are_refused(qwen2):
    with pytest.raises(InputError, match="no vectors"):
        LocalSampler(qwen2, SpellingTokenizer()).sample([Request((5,), (1,), 0.5)], SamplingOptions())
    with pytest.raises(InputError, match="temperature is -1"):
        SamplingOptions(temperature=-1)
    with pytest.raises(InputError, match="max_completion_length is 0"):
        SamplingOptions(max_completion_length=0)
