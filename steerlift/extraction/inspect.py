"""`steerlift inspect`: what steering vectors are made of, and where the two models they come from differ most.

The vectors alone give norms and cosines; the base model adds residual norms and tokens, the fine-tuned one the KL.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from steerlift.extraction.activations import TokenSequence, mean_activations
from steerlift.extraction.anatomy import cosines_with, layer_cosines, token_text, tokens_of_layers
from steerlift.extraction.divergence import CompletionDivergence, divergences, largest, mean_by_position
from steerlift.extraction.inspect_config import InspectConfig
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import few_shot_note
from steerlift.records.errors import SteerliftError
from steerlift.records.progress import progress, say
from steerlift.records.provenance import provenance
from steerlift.records.runs import check_writable, write_json
from steerlift.records.types import Problem
from steerlift.report.anatomy import save_anatomy
from steerlift.sampling.local import LocalSampler
from steerlift.sampling.rollouts import Task, prompt_ids, sample_tasks
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.apply import check_fit
from steerlift.steering.models import (
    Model,
    Tokenizer,
    check_same_architecture,
    choose_device,
    choose_dtype,
    load_config,
    load_model,
    load_tokenizer,
)
from steerlift.steering.vectors import SteeringVectors

# Tokens shown before the one that is talked about.
CONTEXT_TOKENS = 12


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Writes the numbers and the picture; returns the numbers, as they stand in the file."""
    vectors = SteeringVectors.load(config.vectors)
    inspection: dict[str, Any] = {
        "vectors": {"path": str(config.vectors), "hidden_size": vectors.hidden_size, **vectors.metadata},
        "layers": [{"layer": index, "norm": norm} for index, norm in vectors.norms().items()],
        "cosines": layer_cosines(vectors).tolist(),
        "others": [_compared(vectors, str(path), SteeringVectors.load(path)) for path in config.others],
    }
    check_writable(config.json_path())
    base, finetuned, inspection["left_out"] = _models(config, vectors)
    for line in inspection["left_out"]:
        say(line)
    if base is not None:
        inspection |= _with_models(config, vectors, inspection["layers"], base, finetuned)
    inspection["settings"] = _settings(config, base, finetuned)
    inspection["provenance"] = provenance(model=base, seed=config.seed, device=str(choose_device(config.device)))
    write_json(config.json_path(), inspection)
    save_anatomy(inspection, config.picture_path())
    return inspection


def _compared(vectors: SteeringVectors, path: str, other: SteeringVectors) -> dict[str, Any]:
    origin = {key: other.metadata[key] for key in ("method", "tokens", "seed") if key in other.metadata}
    cosines = cosines_with(vectors, other, path)
    return {"path": path, **origin, "cosines": [cosines.get(index) for index in vectors.layers]}


def _models(config: InspectConfig, vectors: SteeringVectors) -> tuple[str | None, str | None, list[str]]:
    """The base and the fine-tuned model as far as they are there, and a line for each that is not.

    Raises InputError for models that the vectors do not fit, and what load_config raises of a model that was asked for.
    """
    base, lack = _find(config.base_model_name, vectors.metadata.get("base_model"))
    if base is None:
        return None, None, [f"no base model ({lack}): residual norms, tokens and KL are left out; give --base_model_name"]
    check_fit(load_config(base), vectors, base)
    finetuned, lack = _find(config.finetuned_checkpoint, vectors.metadata.get("finetuned_model"))
    if finetuned is None:
        return base, None, [f"no fine-tuned model ({lack}): KL is left out; give --finetuned_checkpoint"]
    check_same_architecture(base, finetuned)
    return base, finetuned, []


def _find(asked: str | None, recorded: str | None) -> tuple[str | None, str]:
    """The model that was asked for, else the one that the vectors name if it is there, else what is wrong with it."""
    if asked is not None or not recorded:
        return asked, "the vectors name none"
    try:
        load_config(recorded)
    except SteerliftError as error:
        return None, str(error)
    return recorded, ""


def _with_models(
    config: InspectConfig, vectors: SteeringVectors, layers: list[dict[str, Any]], base_name: str, finetuned_name: str | None
) -> dict[str, Any]:
    """`layers` with what the base model adds, and the KL where there is a fine-tuned model."""
    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed, config.data_dir)
    problems = load_problems(config.problems, config.split, config.num_problems, config.seed, config.data_dir, few_shot)
    say(f"asking {len(problems)} {config.split} problems of {config.problems}{few_shot_note(few_shot)}")
    tokenizer, base = load_tokenizer(base_name), _load(config, base_name)
    tokens = tokens_of_layers(base, tokenizer, vectors, config.tokens)
    sequences = _completions(config, base, tokenizer, problems, few_shot, "base")
    with progress("activations, base", len(sequences)) as bar:
        residual = mean_activations(base, sequences, "completion", on_done=bar.advance)
    measured: dict[str, Any] = {"residual_tokens": residual.count, "layers": []}
    for row in layers:
        norm = float(residual.norm_L[row["layer"]])
        shown = asdict(tokens[row["layer"]])
        measured["layers"].append({**row, "residual_norm": norm, "ratio": row["norm"] / norm, **shown})
    if finetuned_name is not None:
        tokenizer, finetuned = load_tokenizer(finetuned_name), _load(config, finetuned_name)
        sequences = _completions(config, finetuned, tokenizer, problems, few_shot, "fine-tuned")
        with progress("KL, fine-tuned to base", len(sequences)) as bar:
            found = divergences(finetuned, base, sequences, bar.advance)
        measured["divergence"] = _summary(found, sequences, tokenizer, config.tokens)
    return measured


def _load(config: InspectConfig, name: str) -> Model:
    device = choose_device(config.device)
    return load_model(name, device, choose_dtype(config.dtype, device))


def _completions(
    config: InspectConfig,
    model: Model,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    few_shot: Sequence[Problem],
    name: str,
) -> list[TokenSequence]:
    """One completion of each problem, behind its prompt."""
    sampler = LocalSampler(model, tokenizer, batch_rows=config.batch_rows)
    options = SamplingOptions(config.temperature, config.max_completion_length)
    tasks = [Task(problem, 1, config.seed) for problem in problems]
    with progress(f"sampling, {name}", len(tasks)) as bar:
        sampled = sample_tasks(sampler, tokenizer, tasks, options, bar.advance, few_shot)
    prompts = [prompt_ids(tokenizer, one.prompt) for one in sampled]
    return [
        TokenSequence((*prompt, *one.completions[0].token_ids), len(prompt))
        for prompt, one in zip(prompts, sampled, strict=True)
    ]


def _summary(
    found: Sequence[CompletionDivergence], sequences: Sequence[TokenSequence], tokenizer: Tokenizer, count: int
) -> dict[str, Any]:
    means_P, counts_P = mean_by_position(found)
    tokens = []
    for place in largest(found, count):
        one, sequence, position = found[place.sequence], sequences[place.sequence], place.position
        at = sequence.start + position
        tokens.append(
            {
                "position": position,
                "kl": float(one.kl_C[position]),
                "before": tokenizer.decode(sequence.ids[max(0, at - CONTEXT_TOKENS) : at]),
                "token": token_text(tokenizer, sequence.ids[at]),
                "finetuned_probability": float(one.finetuned_C[position].exp()),
                "base_probability": float(one.base_C[position].exp()),
                "base_token": token_text(tokenizer, int(one.base_choice_C[position])),
            }
        )
    return {
        "completions": len(found),
        "tokens": int(counts_P.sum()),
        "mean": float((means_P * counts_P).sum() / counts_P.sum()),
        "positions": [
            {"position": position, "kl": mean, "completions": reached}
            for position, (mean, reached) in enumerate(zip(means_P.tolist(), counts_P.tolist(), strict=True))
        ],
        "largest": tokens,
    }


def _settings(config: InspectConfig, base: str | None, finetuned: str | None) -> dict[str, Any]:
    """The options with what they turned out to mean."""
    resolved = {"base_model_name": base, "finetuned_checkpoint": finetuned, "output_path": str(config.json_path())}
    return {**asdict(config), **resolved, "vectors": str(config.vectors), "others": [str(path) for path in config.others]}
