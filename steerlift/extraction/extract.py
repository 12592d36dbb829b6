"""`steerlift extract`: the same token ids through both models, one in memory at a time, and the difference of their means."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steerlift.extraction.activations import MeanActivations, TokenSequence, mean_activations
from steerlift.extraction.config import ExtractConfig
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import encode_prompt, few_shot_note
from steerlift.problems.separation import fingerprints
from steerlift.records.progress import progress, say
from steerlift.records.provenance import package_version, provenance
from steerlift.records.runs import check_writable, completions_path, write_json
from steerlift.records.seen import SEEN
from steerlift.records.types import Problem
from steerlift.sampling.kept import KeptCompletions, earlier_completions, sampling_settings
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, prompt_ids
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.identity import digest
from steerlift.steering.models import (
    Model,
    architecture,
    check_same_architecture,
    choose_device,
    choose_dtype,
    load_model,
    load_tokenizer,
    text_config,
)
from steerlift.steering.vectors import SteeringVectors


@dataclass(frozen=True)
class Extraction:
    """Vectors, and per layer: its norm, the base's mean residual norm there, and their ratio (the info file's `layers`)."""

    vectors: SteeringVectors
    layers: list[dict[str, float]]
    info_path: Path


def extract(config: ExtractConfig) -> Extraction:
    """Writes the vectors, their norms and the completions that were averaged. Returns them."""
    check_same_architecture(config.base_model_name, config.finetuned_checkpoint)
    check_writable(config.output_path)
    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed, config.data_dir)
    drawn = load_problems(config.problems, "train", config.train_size, config.seed, config.data_dir, few_shot)
    problems = drawn[: config.max_examples]
    say(
        f"extracting from {len(problems)} training problems of {config.problems}{few_shot_note(few_shot)}, "
        f"{config.tokens} tokens"
    )
    kept = _kept_completions(config, problems, few_shot)
    # The fine-tuned model first: it writes the completions that both then read.
    sequences, finetuned = _finetuned_means(config, problems, few_shot, kept)
    base_model = _load(config, config.base_model_name)
    base = _means(config, base_model, sequences, "base")
    vectors = mean_difference(base, finetuned, _metadata(config, problems, base.count, architecture(text_config(base_model))))
    vectors = vectors.increments() if config.method == "increments" else vectors
    layers = [
        {"layer": index, "norm": norm, "residual_norm": float(base.norm_L[index]), "ratio": norm / float(base.norm_L[index])}
        for index, norm in vectors.norms().items()
    ]
    vectors.save(config.output_path)
    info_path = config.output_path.with_name(f"{config.output_path.stem}.info.json")
    write_json(info_path, _info(config, vectors, layers))
    return Extraction(vectors, layers, info_path)


def mean_difference(base: MeanActivations, finetuned: MeanActivations, metadata: dict[str, str]) -> SteeringVectors:
    """mean(fine-tuned) - mean(base) per layer, subtracted in float64 and kept as float32."""
    difference_LH = finetuned.state_LH - base.state_LH
    return SteeringVectors({index: vector.float() for index, vector in enumerate(difference_LH)}, metadata)


def _finetuned_means(
    config: ExtractConfig, problems: Sequence[Problem], few_shot: Sequence[Problem], kept: KeptCompletions | None
) -> tuple[list[TokenSequence], MeanActivations]:
    tokenizer = load_tokenizer(config.finetuned_checkpoint)
    model = _load(config, config.finetuned_checkpoint)
    if kept is not None:
        sampler = LocalSampler(model, tokenizer, batch_rows=config.batch_rows)
        options = SamplingOptions(config.temperature, config.max_completion_length)
        tasks = [Task(problem, 1, config.seed) for problem in problems]
        with progress("sampling completions", len(tasks)) as bar:
            sampled = kept.sample(sampler, tokenizer, tasks, options, bar.advance, few_shot)
        sequences = [_sequence(prompt_ids(tokenizer, s.prompt), s.completions[0].token_ids) for s in sampled]
    else:
        sequences = [_sequence(encode_prompt(tokenizer, problem.problem, few_shot=few_shot)) for problem in problems]
    return sequences, _means(config, model, sequences, "fine-tuned")


def _kept_completions(
    config: ExtractConfig, problems: Sequence[Problem], few_shot: Sequence[Problem]
) -> KeptCompletions | None:
    """What an extraction that was stopped, or the one named by `reuse`, has sampled already; None where none are wanted."""
    path = completions_path(config.output_path)
    if config.tokens != "completion":
        path.unlink(missing_ok=True)  # those of an earlier extraction to this place
        return None
    options = SamplingOptions(config.temperature, config.max_completion_length)
    dtype = str(choose_dtype(config.dtype, choose_device(config.device))).removeprefix("torch.")
    settings = {
        **sampling_settings(config.finetuned_checkpoint, options, 1, few_shot, config.seed, dtype),
        "problems": digest(problem.problem for problem in problems),
    }
    option = f"--reuse {config.reuse}"
    earlier = earlier_completions(completions_path(config.reuse), settings, option) if config.reuse is not None else {}
    kept = KeptCompletions.open(path, settings)
    if earlier:
        say(f"{kept.take_over(earlier, problems)} completions are those of {config.reuse}")
    return kept


def _sequence(prompt: Sequence[int], completion: Sequence[int] = ()) -> TokenSequence:
    return TokenSequence((*prompt, *completion), len(prompt))


def _load(config: ExtractConfig, name: str) -> Model:
    # Whatever model came before is garbage by now; its memory is wanted.
    gc.collect()
    device = choose_device(config.device)
    return load_model(name, device, choose_dtype(config.dtype, device))


def _means(config: ExtractConfig, model: Model, sequences: list[TokenSequence], name: str) -> MeanActivations:
    with progress(f"activations, {name}", len(sequences)) as bar:
        return mean_activations(model, sequences, config.tokens, config.include_first_position, bar.advance)


def _metadata(config: ExtractConfig, problems: Sequence[Problem], tokens: int, architecture_line: str) -> dict[str, str]:
    return {
        "base_model": config.base_model_name,
        "finetuned_model": config.finetuned_checkpoint,
        "architecture": architecture_line,
        "method": config.method,
        "tokens": config.tokens,
        "tokens_averaged": str(tokens),
        "problems": f"{len(problems)} of {config.problems}, train",
        "few_shot": str(config.few_shot),
        "seed": str(config.seed),
        "steerlift": package_version(),
        SEEN: fingerprints(problems),
    }


def _info(config: ExtractConfig, vectors: SteeringVectors, layers: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "vectors": dict(vectors.metadata),
        "layers": layers,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "provenance": provenance(model=config.base_model_name, seed=config.seed, device=str(choose_device(config.device))),
    }
