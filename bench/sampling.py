"""Sampling: LocalSampler against transformers' generate on the embedded model, tokens per second."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.measure import OURS, SAME_SHARE, Times, Way, interleaved, require_same_tokens
from bench.setting import Setting
from bench.table import Row, Section, rate_row
from steerlift.problems.embedded import embedded_problems
from steerlift.problems.prompt import encode_prompt
from steerlift.sampling.attention import attention_by_groups
from steerlift.sampling.beginning import Beginning
from steerlift.sampling.draws import row_seed
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.steering.models import Model, Tokenizer, end_token_ids, load_model, load_tokenizer

TEMPERATURE = 1.0
_SDPA = "transformers sdpa"


@dataclass(frozen=True)
class Sizes:
    """`prompts` x `completions` rows in one batch, at most `length` new tokens each."""

    prompts: int = 64
    completions: int = 8
    length: int = 48
    repetitions: int = 7


FULL = Sizes()
QUICK = Sizes(prompts=8, completions=4, length=8, repetitions=1)


def run(setting: Setting, sizes: Sizes) -> Section:
    """Times ours and both ways to ask generate for several completions; the table shows the faster of the two."""
    torch.manual_seed(setting.seed)
    model = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(str(setting.folder))
    problems = embedded_problems("test", sizes.prompts, setting.seed)
    prompts = [tuple(encode_prompt(tokenizer, problem.problem)) for problem in problems]
    generate = Generate(model, tokenizer, prompts, sizes.length)
    same = check_greedy(model, tokenizer, prompts, generate)
    ways: dict[str, Way] = {
        OURS: _ours(model, tokenizer, prompts, setting.seed, sizes),
        "transformers generate, num_return_sequences": lambda: generate.sample(sizes.completions, repeated_rows=False),
        "transformers generate, repeated rows": lambda: generate.sample(sizes.completions, repeated_rows=True),
    }
    times = interleaved(ways, sizes.repetitions)
    ours = times.pop(OURS)
    best, other = sorted(times, key=lambda name: median(times[name].per_second()), reverse=True)
    measured = f"sampling, {sizes.prompts} x {sizes.completions} completions"
    rows = [rate_row(measured, "tokens/s", ours, best, times[best], setting.aim(1.8)), *_attention_rows(setting, sizes)]
    agreement = (
        f"at temperature 0 both give the same tokens for {same} prompts (checked in this run; less than {SAME_SHARE:.0%} would "
        "stop it)."
    )
    return Section("Sampling", _text(sizes, ours, best, times[best], other, times[other]), agreement, rows)


def _attention_rows(setting: Setting, sizes: Sizes) -> list[Row]:
    """One new token of each row asks the keys and values of a layer of Qwen2.5-0.5B: 14 heads of 64 in 2 groups, 650 tokens.

    They are the rows' own, or the first 430 of them, two worked examples, are the same in all rows and ours keeps them once.
    """
    rows, heads, groups, size, tokens, shared = sizes.prompts, 14, 2, 64, 650, 430
    query = torch.randn(rows, 1, heads, size).transpose(1, 2)
    key, value = torch.randn(2, rows, groups, tokens, size)
    key[:, :, :shared], value[:, :, :shared] = key[:1, :, :shared], value[:1, :, :shared]
    own_key, own_value = key[:, :, shared:].contiguous(), value[:, :, shared:].contiguous()
    beginning = Beginning({0: (key[:1, :, :shared], value[:1, :, :shared])}, torch.zeros(rows, dtype=torch.long))
    mask = torch.ones(rows, 1, 1, tokens, dtype=torch.bool)
    module = torch.nn.Module()
    module.num_key_value_groups = heads // groups  # type: ignore[assignment]  # a number, where torch expects modules

    def way(attention: Callable[..., tuple[Tensor, None]]) -> Way:
        def attend() -> float:
            attention(module, query, key, value, mask)
            return rows

        return attend

    def apart() -> float:
        beginning.attend(0, query, own_key, own_value, mask[..., shared:], None)
        return rows

    times = interleaved({OURS: way(attention_by_groups), _SDPA: way(sdpa_attention_forward)}, sizes.repetitions)
    of_apart = interleaved({OURS: apart, _SDPA: way(sdpa_attention_forward)}, sizes.repetitions)
    measured = f"a layer's attention of one new token, {rows} rows of {tokens}"
    return [
        rate_row(measured, "tokens/s", times[OURS], _SDPA, times[_SDPA], setting.aim(5)),
        rate_row(f"{measured}, {shared} of them the same", "tokens/s", of_apart[OURS], _SDPA, of_apart[_SDPA], setting.aim(5)),
    ]


def _text(sizes: Sizes, ours: Times, best: str, best_times: Times, other: str, other_times: Times) -> list[str]:
    rows = sizes.prompts * sizes.completions
    per_row = [median(times.work) / rows for times in (ours, best_times)]
    best_rate, other_rate = (median(times.per_second()) for times in (best_times, other_times))
    return [
        f"The embedded model answers {sizes.prompts} test problems {sizes.completions} times each, {rows} rows in one batch, "
        f"at temperature {TEMPERATURE:g} over the whole vocabulary, at most {sizes.length} new tokens. Sampled tokens count, "
        f"the end token included, padding does not ({per_row[0]:.1f} tokens a completion for ours, {per_row[1]:.1f} for "
        "generate). Both put out texts; ours also puts out logprobs and draws each row's random numbers from a seed of its "
        f"own. generate got top_k=0 and top_p=1 and was asked in two ways: {best}: {best_rate:,.0f} tokens/s (in the table); "
        f"{other}: {other_rate:,.0f} tokens/s."
    ]


def _ours(model: Model, tokenizer: Tokenizer, prompts: list[tuple[int, ...]], seed: int, sizes: Sizes) -> Way:
    sampler = LocalSampler(model, tokenizer, batch_rows=sizes.prompts * sizes.completions)
    options = SamplingOptions(TEMPERATURE, sizes.length)
    requests = [
        Request(prompt, tuple(row_seed(seed, index, sample) for sample in range(sizes.completions)))
        for index, prompt in enumerate(prompts)
    ]

    def sample() -> float:
        return sum(len(c.token_ids) for completions in sampler.sample(requests, options) for c in completions)

    return sample


class Generate:
    """transformers' generate on a batch of left-padded prompts, with settings that cost it least."""

    def __init__(self, model: Model, tokenizer: Tokenizer, prompts: list[tuple[int, ...]], length: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.length = length
        padded = tokenizer.pad({"input_ids": [list(prompt) for prompt in prompts]}, return_tensors="pt")
        self.ids_PT: Tensor = padded["input_ids"]
        self.mask_PT: Tensor = padded["attention_mask"]

    def sample(self, completions: int, repeated_rows: bool) -> float:
        """Samples and decodes; returns the number of tokens."""
        rows, copies = (completions, 1) if repeated_rows else (1, completions)
        tokens = generated(
            self.model,
            self.tokenizer,
            self.ids_PT.repeat_interleave(rows, 0),
            self.mask_PT.repeat_interleave(rows, 0),
            self.length,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            num_return_sequences=copies,
        )
        self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return sum(map(len, tokens))

    def greedy(self) -> list[list[int]]:
        """The likeliest tokens of each prompt."""
        return generated(self.model, self.tokenizer, self.ids_PT, self.mask_PT, self.length, do_sample=False)


def generated(
    model: Model, tokenizer: Tokenizer, ids_RT: Tensor, mask_RT: Tensor, length: int, **options: object
) -> list[list[int]]:
    """What `generate` adds to left-padded prompts, each row up to its first end token, that one included."""
    end_ids = set(end_token_ids(model, tokenizer))
    sequences_RT = model.generate(
        input_ids=ids_RT,
        attention_mask=mask_RT,
        max_new_tokens=length,
        eos_token_id=sorted(end_ids),
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    rows: list[list[int]] = sequences_RT[:, ids_RT.shape[1] :].tolist()
    return [next((row[: i + 1] for i, token in enumerate(row) if token in end_ids), row) for row in rows]


def check_greedy(model: Model, tokenizer: Tokenizer, prompts: list[tuple[int, ...]], generate: Generate) -> str:
    """In how many prompts the likeliest tokens of ours and generate's are the same. Raises DifferentResultsError."""
    options = SamplingOptions(temperature=0, max_completion_length=generate.length)
    sampled = LocalSampler(model, tokenizer).sample([Request(prompt, (0,)) for prompt in prompts], options)
    ours = [completions[0].token_ids for completions in sampled]
    return require_same_tokens("greedy tokens", ours, generate.greedy(), SAME_SHARE)
