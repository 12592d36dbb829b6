"""`steerlift search`: candidates, the search on development problems, one test evaluation of the winner, pictures."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from steerlift.evaluation.evaluate import evaluate
from steerlift.evaluation.search import check_start, final_evaluation, search
from steerlift.evaluation.search_config import SearchConfig
from steerlift.extraction.config import ExtractConfig, Method, TokenChoice
from steerlift.extraction.extract import extract
from steerlift.records.errors import InputError
from steerlift.records.progress import say
from steerlift.records.runs import completions_path, read_json
from steerlift.report.search_plots import plot_search
from steerlift.report.search_tables import print_search
from steerlift.report.tables import print_paths, print_results


def run_search(config: SearchConfig) -> dict[str, Any]:
    """Runs every stage that is not done yet. Returns the winner's test results."""
    _check_known("tokens", config.tokens, get_args(TokenChoice))
    _check_known("methods", config.methods, get_args(Method))
    check_start(config)
    found = search(config, config.vectors or [_candidate(config, c) for c in _extractions(config)])
    pictures = plot_search(config.search_path)
    say(f"evaluating trial {found['best']['number']}, the best on development problems")
    results = evaluate(final_evaluation(config))
    print_search(found)
    print_results(results, [])
    journals = [completions_path(path) for path in (config.trials_path, config.results_path)]
    print_paths([config.search_path, config.best_path, config.results_path, *journals, *pictures])
    return results


def _extractions(config: SearchConfig) -> list[ExtractConfig]:
    return [
        ExtractConfig(
            base_model_name=config.base_model_name,
            finetuned_checkpoint=config.finetuned_checkpoint,
            output_path=config.output_dir / "candidates" / f"{tokens}_{method}.safetensors",
            train_size=config.train_size,
            seed=config.seed,
            tokens=tokens,  # type: ignore[arg-type]  # run_search has checked both
            method=method,  # type: ignore[arg-type]
            max_completion_length=config.max_completion_length,
            problems=config.problems,
            few_shot=config.few_shot,
            data_dir=config.data_dir,
            device=config.device,
            dtype=config.dtype,
            batch_rows=config.batch_rows,
        )
        for tokens in config.tokens
        for method in config.methods
    ]


def _candidate(config: SearchConfig, extraction: ExtractConfig) -> Path:
    """The path of a candidate, extracted unless a search that is resumed has done so."""
    info = extraction.output_path.with_name(f"{extraction.output_path.stem}.info.json")  # extract writes it last
    wanted = {**asdict(extraction), "output_path": str(extraction.output_path)}
    done = config.resume and info.is_file() and read_json(info)["settings"] == json.loads(json.dumps(wanted))
    if not done:
        say(f"extracting {extraction.output_path.stem}")
        extract(extraction)
    return extraction.output_path


def _check_known(flag: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise InputError(f"--{flag} {value} is unknown; expected {', '.join(known)}")
    if len(set(values)) < len(values):
        raise InputError(f"--{flag} {' '.join(values)}: expected each once")
