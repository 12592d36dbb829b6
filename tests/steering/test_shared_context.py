"""What prompts begin with is computed once, and nothing else changes by it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_pipeline import TEXTS, tokenizer
from tiny_models import FAMILIES, HIDDEN, random_prompts, tiny_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from steerlift.problems.prompt import encode_prompt
from steerlift.records.types import Completion, Grade, GradedProblem, Problem
from steerlift.steering.shared_context import can_share_beginnings, common_prefix
from steerlift.steering.trainable import TrainableVectors
from steerlift.training.batch import MicroBatch, StepBatch, pack
from steerlift.training.distill import distill_loss
from steerlift.training.head import chunked_kl, head_of

CPU = torch.device("cpu")
BEGINNING = 40
WINDOWED = {"mistral", "gemma2", "gemma3"}

Pairs = tuple[list[tuple[int, ...]], list[tuple[int, ...]]]


def same_beginning(*rests: int) -> list[tuple[int, ...]]:
    (beginning,) = random_prompts(BEGINNING)
    return [(*beginning, *rest) for rest in random_prompts(*rests)]


def rows(case: str) -> tuple[Pairs, list[tuple[int, int]]]:
    """Prompts and completions, and the parts that should go through a model for them: rows, tokens."""
    if case == "every prompt its own":
        return (same_beginning(3, 9, 1), random_prompts(5, 1, 9)), [(1, BEGINNING), (3, 9 + 8)]
    if case == "prompts of one length":
        return (same_beginning(4, 4, 4), random_prompts(5, 1, 9)), [(1, BEGINNING), (3, 4 + 8)]
    if case == "some rows of one prompt":
        own = same_beginning(3, 9, 1)
        return ([own[0], own[1], own[0], own[2]], random_prompts(5, 1, 9, 4)), [(1, BEGINNING), (3, 9), (4, 8)]
    if case == "answers of one token":
        own = same_beginning(3, 9, 1)
        return ([own[0], own[1], own[0], own[2]], random_prompts(1, 1, 1, 1)), [(1, BEGINNING), (3, 9)]
    if case == "a prompt that is a beginning of the others":
        (short,) = same_beginning(2)
        prompts = [(*short, *rest) for rest in random_prompts(3, 1)]
        # The state at its last token is needed.
        return ([short, *prompts], random_prompts(5, 1, 9)), [(1, BEGINNING + 1), (3, 4 + 8)]
    if case == "one prompt":
        return (same_beginning(3), random_prompts(5)), [(1, BEGINNING + 3 + 4)]
    if case == "equal prompts":
        return (same_beginning(3) * 3, random_prompts(5, 1, 9)), [(1, BEGINNING + 3), (3, 8)]
    raise ValueError(case)


CASES = (
    "every prompt its own",
    "prompts of one length",
    "some rows of one prompt",
    "answers of one token",
    "a prompt that is a beginning of the others",
    "one prompt",
    "equal prompts",
)


def packed(prompts: list[tuple[int, ...]], completions: list[tuple[int, ...]]) -> MicroBatch:
    longest = max(map(len, completions))
    return pack(prompts, completions, torch.ones(len(prompts)), torch.rand(len(prompts), longest), CPU)


def hidden(model, prompts, completions) -> torch.Tensor:
    return packed(prompts, completions).hidden(model.get_decoder())


def alone(model, prompts, completions) -> torch.Tensor:
    """Each row by itself: without padding, without a cache."""
    pairs = zip(prompts, completions, strict=True)
    states = [(p, model.get_decoder()(torch.tensor([[*p, *c]])).last_hidden_state[0]) for p, c in pairs]
    return torch.cat([row[len(prompt) - 1 : -1] for prompt, row in states])


def states_and_gradient(model, way, pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states, and the gradient of an uneven sum of them with respect to all that is trained, as one vector."""
    model.zero_grad()
    states_NH = way(model, *pairs)
    (states_NH * torch.linspace(-1, 1, states_NH.numel()).view_as(states_NH)).sum().backward()
    return states_NH.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_as_alone(model, pairs, tolerance: float = 1e-6) -> None:
    (ours, slope), (theirs, expected) = (states_and_gradient(model, way, pairs) for way in (hidden, alone))
    assert float(theirs.norm()) > 0
    assert float(expected.norm()) > 0
    assert float((ours - theirs).norm() / theirs.norm()) < tolerance
    assert float((slope - expected).norm() / expected.norm()) < tolerance


def parts(model, pairs) -> list[tuple[int, int]]:
    """Rows and tokens of all that goes through the model."""
    seen: list[tuple[int, int]] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *call: seen.append(tuple(call[2].shape[:2])))
    with torch.no_grad():
        hidden(model, *pairs)
    handle.remove()
    return seen


def gpt2():
    """Places are learned, and nothing is computed in less than the model's own precision."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_states_and_gradients_are_those_of_each_row_alone(name, case):
    model = tiny_model(name).double()
    pairs, expected = rows(case)
    # Norms and rotations are computed in float32 whatever the model's format.
    assert_as_alone(model, pairs)
    if name in WINDOWED:
        assert (1, BEGINNING) not in parts(model, pairs)
    else:
        assert parts(model, pairs) == expected


@pytest.mark.parametrize("case", CASES)
def test_the_same_to_the_last_digits_where_a_model_rounds_nothing(case):
    pairs, expected = rows(case)
    assert_as_alone(gpt2(), pairs, 1e-12)
    assert parts(gpt2(), pairs) == expected


def test_windows_that_are_not_used_do_not_count():
    assert can_share_beginnings(tiny_model("mistral", sliding_window=None).get_decoder())
    assert can_share_beginnings(tiny_model("qwen2", sliding_window=8).get_decoder())  # use_sliding_window is false
    slides = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    half = tiny_model("qwen2", **slides).double()
    assert not can_share_beginnings(half.get_decoder())
    assert_as_alone(half, rows("some rows of one prompt")[0])


@pytest.mark.parametrize("kind", ["local attention", "distances in the cache"])
def test_models_that_count_places_in_the_cache_share_whole_prompts_only(kind):
    torch.manual_seed(0)
    ends = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 1}
    if kind == "local attention":
        layers = {"attention_types": [[["global", "local"], 1]], "window_size": 8}
        model = GPTNeoForCausalLM(GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, **ends, **layers))
    else:
        model = MptForCausalLM(MptConfig(d_model=32, n_layers=2, n_heads=4, max_seq_len=128, **ends))
    model.eval()
    assert parts(model, rows("every prompt its own")[0]) == [(3, BEGINNING + 9 + 8)]
    assert parts(model, rows("some rows of one prompt")[0]) == [(3, BEGINNING + 9), (4, 8)]


def test_layers_that_keep_no_keys_share_no_beginning():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["full_attention", "conv", "full_attention"]
    model = Lfm2ForCausalLM(Lfm2Config(vocab_size=97, num_hidden_layers=3, layer_types=kinds, **sizes)).eval()
    assert parts(model, rows("every prompt its own")[0]) == [(3, BEGINNING + 9 + 8)]


def test_gradient_checkpointing_keeps_rows_whole(qwen2):
    pairs, _ = rows("some rows of one prompt")
    qwen2.double().train()
    qwen2.gradient_checkpointing_enable()
    assert parts(qwen2, pairs) == [(4, BEGINNING + 9 + 8)]
    assert_as_alone(qwen2, pairs)


@pytest.mark.parametrize("case", ["every prompt its own", "some rows of one prompt"])
def test_learned_vectors_get_their_gradient_through_the_beginning_too(qwen2, case):
    pairs, expected = rows(case)
    vectors = TrainableVectors({layer: torch.randn(HIDDEN) for layer in (0, 1)}, {0: 0.5, 1: 2.0}, {})
    vectors.attach(qwen2)
    qwen2.double()
    assert parts(qwen2, pairs) == expected
    assert_as_alone(qwen2, pairs)
    _, whole = states_and_gradient(qwen2, hidden, pairs)
    assert len(whole) == 2 * HIDDEN
    # The first layer's is the sum of what reaches its output in every part, the beginning among them.
    seen: list[torch.Tensor] = []

    def keep(*call) -> None:
        call[2].retain_grad()
        seen.append(call[2])

    handle = qwen2.model.layers[0].register_forward_hook(keep)
    states_and_gradient(qwen2, hidden, pairs)
    handle.remove()
    assert seen[0].shape[:2] == (1, BEGINNING)
    assert all(bool((part.grad != 0).any()) for part in seen)
    slope_H = sum(part.grad.sum(dim=(0, 1)) for part in seen) * 0.5
    torch.testing.assert_close(whole[:HIDDEN], slope_H, rtol=1e-6, atol=1e-6)


def test_a_step_of_distillation_is_that_of_rows_alone():
    model, finetuned = tiny_model("llama").double(), tiny_model("llama", seed=1).double()
    pairs, _ = rows("some rows of one prompt")
    batch = packed(*pairs)
    results = []
    for ours in (True, False):
        model.zero_grad()
        if ours:
            loss = distill_loss(finetuned, 0.9, 0.5)(model, batch).loss
        else:
            with torch.no_grad():
                wanted_NH = alone(finetuned, *pairs)
            heads = [head_of(m) for m in (model, finetuned)]
            loss = chunked_kl(alone(model, *pairs), heads[0], 0.9, wanted_NH, heads[1], 0.5, batch.weights_N)
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert float((results[0][1] - results[1][1]).norm() / results[1][1].norm()) < 1e-6


def test_worked_examples_are_computed_once():
    shots = [Problem(text, "7", solution="It is 7.") for text in TEXTS[:2]]
    prompts = [tuple(encode_prompt(tokenizer(), text, few_shot=shots)) for text in TEXTS[2:5]]
    pairs = ([prompt for prompt in prompts for _ in range(2)], random_prompts(3, 1, 6, 2, 5, 4))
    model = tiny_model("llama", vocab_size=len(tokenizer()), max_position_embeddings=1024).double()
    once, rests, answers = parts(model, pairs)
    same = next(place for place, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    assert once == (1, same)
    assert once[1] > 2 * rests[1]
    assert rests == (3, max(map(len, prompts)) - once[1])
    assert answers == (6, 5)
    assert_as_alone(model, pairs)


beginnings = st.lists(st.integers(0, 1), max_size=60).map(tuple)


@given(beginnings, st.sets(st.lists(st.integers(0, 1), max_size=3).map(tuple), max_size=6))
def test_the_common_prefix_is_what_a_search_finds(beginning, rests):
    prompts = {(*beginning, *rest) for rest in rests if beginning or rest}
    lengths = range(min(map(len, prompts), default=0))  # one token of each is left over
    longest = max((n for n in lengths if len({prompt[:n] for prompt in prompts}) == 1), default=0)
    worth = longest >= 16 and longest * (len(prompts) - 1) >= 64
    assert common_prefix(prompts) == (longest if worth else 0)


def test_the_order_of_rows_counts_what_all_prompts_begin_with_once():
    def computed(same: int) -> int:
        (beginning,) = random_prompts(same)
        prompts = [(*beginning, *rest) for rest in random_prompts(80 - same, 80 - same)]
        right, wrong = Grade("7", True, True, True), Grade(None, False, False, False)
        answers = [tuple(Completion(c, (), "", truncated=False) for c in random_prompts(1, 12)) for _ in prompts]
        graded = [GradedProblem(Problem("p", "7"), "p", answer, (right, wrong)) for answer in answers]
        batch = StepBatch.build(prompts, graded, torch.tensor([[1.0, 0.0]] * 2), "dr_grpo", 12)
        batches = batch.micro_batches(2, CPU)
        prefixes = [m.prefix_1F.shape[1] for m in batches]
        return sum(
            p + m.prompts_DS.shape[0] * (80 - p) + m.completions_RT.numel() for p, m in zip(prefixes, batches, strict=True)
        )

    # A group's rows together, each prompt once; or the short answers together, and the beginning once for each length.
    assert computed(10) == 2 * 80 + 4 * 12
    assert computed(78) == 2 * (78 + 2 * 2) + 2 * 1 + 2 * 12
