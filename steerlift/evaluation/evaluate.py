"""`steerlift evaluate`: base, fine-tuned and steered arms on the same problems, the weight chosen on development problems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steerlift.evaluation.arms import Arm, Gradebook, run_arms
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.controls import ControlArm, control_arms, other_vectors
from steerlift.evaluation.evidence import groups, p_values, separation
from steerlift.evaluation.results import arm_result, best_weight
from steerlift.evaluation.reuse import reusable_answers
from steerlift.evaluation.samplers import LocalModels, Samplers
from steerlift.evaluation.served_models import ServedModels
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import few_shot_note, worked_example
from steerlift.problems.separation import check_unseen
from steerlift.records.progress import say
from steerlift.records.provenance import provenance
from steerlift.records.runs import check_writable, completions_path, write_json
from steerlift.records.seen import SEEN
from steerlift.records.types import Problem
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.apply import check_fit
from steerlift.steering.identity import digest, identity, vectors_identity
from steerlift.steering.models import check_same_architecture, choose_device, choose_dtype, load_config
from steerlift.steering.vectors import SteeringVectors

BASE, FINETUNED, STEERED, RANDOM = "base", "finetuned", "steered", "random"


@dataclass(frozen=True)
class _Answered:
    """The arms that were answered, all of them in the book, and the weight chosen on development problems, if one was."""

    steered: list[Arm]
    random: list[Arm]
    controls: list[ControlArm]
    chosen: float | None


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs what is not in the completions file yet and writes the results. Returns the content of the results file."""
    if config.finetuned_checkpoint is not None:
        check_same_architecture(config.base_model_name, config.finetuned_checkpoint)
    vectors = None if config.steering_vectors_path is None else SteeringVectors.load(config.steering_vectors_path)
    if vectors is not None:
        check_fit(load_config(config.base_model_name), vectors, config.base_model_name)
    metadata = {} if vectors is None else vectors.metadata
    others = other_vectors(config)
    test = load_problems(config.problems, config.split, config.eval_size, config.seed, config.data_dir)
    dev = load_problems(config.problems, "dev", config.dev_size, config.seed, config.data_dir) if config.dev_size else []
    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed, config.data_dir)
    check_unseen(metadata, test, str(config.steering_vectors_path))
    separated = separation(metadata, test, dev)
    settings = _settings(config, vectors, [*test, *dev], few_shot)
    reused = reusable_answers(settings, config.reuse, {config.split: test, "dev": dev})
    book = Gradebook.open(completions_path(config.output_path), settings, config.overwrite)
    check_writable(config.output_path)
    if reused:
        say(f"{book.take_over(reused)} answered problems are those of {', '.join(map(str, config.reuse))}")
    say(
        f"evaluating on {len(test)} {config.split} problems of {config.problems}{few_shot_note(few_shot)}; "
        f"completions go to {book.journal.path}"
    )
    models: Samplers = LocalModels(config) if config.engine == "local" else ServedModels(config)
    try:
        answered = _answer(config, book, models, vectors, others, test, dev, few_shot)
    finally:
        models.release()
    results = _results(config, book, answered, len(test), len(dev))
    results["separation"] = separated
    results["settings"] = {name: value for name, value in asdict(config).items() if name != "overwrite"} | {
        "output_path": str(config.output_path),
        "steering_vectors_path": None if vectors is None else str(config.steering_vectors_path),
        "other_vectors": [str(path) for path in config.other_vectors],
        "reuse": [str(path) for path in config.reuse],
    }
    # The problems that the vectors have seen stand under `separation`.
    results["vectors"] = {name: value for name, value in metadata.items() if name != SEEN}
    results["completions_file"] = book.journal.path.name
    results["provenance"] = provenance(model=config.base_model_name, seed=config.seed, device=str(choose_device(config.device)))
    write_json(config.output_path, results)
    return results


def _answer(
    config: EvaluateConfig,
    book: Gradebook,
    models: Samplers,
    vectors: SteeringVectors | None,
    others: Mapping[Path, SteeringVectors],
    test: Sequence[Problem],
    dev: Sequence[Problem],
    few_shot: Sequence[Problem],
) -> _Answered:
    """Has every arm answer what it has not answered yet."""
    options = SamplingOptions(config.temperature, config.max_completion_length)
    run = partial(run_arms, book, count=config.num_completions_eval, options=options, seed=config.seed, few_shot=few_shot)
    if vectors is None:
        answered = _Answered([], [], [], None)
        run(models.sampler(config.base_model_name), [Arm(BASE)], config.split, test)
    else:
        answered = _answer_steered(config, book, run, models, vectors, others, test, dev)
    if config.finetuned_checkpoint is not None:
        run(models.sampler(config.finetuned_checkpoint), [Arm(FINETUNED)], config.split, test)
    return answered


def _answer_steered(
    config: EvaluateConfig,
    book: Gradebook,
    run: Callable[..., None],
    models: Samplers,
    vectors: SteeringVectors,
    others: Mapping[Path, SteeringVectors],
    test: Sequence[Problem],
    dev: Sequence[Problem],
) -> _Answered:
    """The base with the vectors, beside it alone, and the controls; `run` is `run_arms` with the options of this evaluation."""
    steered = [Arm(f"{STEERED}:{weight}", weight) for weight in config.weights]
    base_with_vectors = models.sampler(config.base_model_name, vectors)
    chosen = None
    if dev:
        run(base_with_vectors, steered, "dev", dev)
        on_dev = {arm.weight: book.graded("dev", arm.name, len(dev)) for arm in steered}
        chosen = best_weight(on_dev, config.pass_at_k[0])
    run(base_with_vectors, [Arm(BASE), *steered], config.split, test)
    random = [
        Arm(f"{RANDOM}:{arm.weight}", arm.weight)
        for arm in steered
        if config.random_control and (chosen is None or arm.weight == chosen)
    ]
    run(models.sampler(config.base_model_name, vectors.random_like(config.seed)), random, config.split, test)
    controls = control_arms(config, vectors, others, config.weights[0] if chosen is None else chosen)
    for control in controls:
        temperature = config.temperature if control.temperature is None else control.temperature
        options = SamplingOptions(temperature, config.max_completion_length)
        sampler = models.sampler(config.base_model_name, control.vectors)
        run(sampler, [control.arm], config.split, control.problems(test), options=options)
    return _Answered(steered, random, controls, chosen)


def _results(config: EvaluateConfig, book: Gradebook, answered: _Answered, count: int, dev_count: int) -> dict[str, Any]:
    """All that is computed from the book."""
    ks, seed = config.pass_at_k, config.seed
    base = book.graded(config.split, BASE, count)
    finetuned = None if config.finetuned_checkpoint is None else book.graded(config.split, FINETUNED, count)

    def compared(arm: Arm) -> dict[str, Any]:
        return arm_result(book.graded(config.split, arm.name, count), ks, seed, base, finetuned)

    results: dict[str, Any] = {
        "base_model": arm_result(base, ks, seed),
        "finetuned_model": None if finetuned is None else arm_result(finetuned, ks, seed, base),
        "base_with_steering": {str(arm.weight): compared(arm) for arm in answered.steered},
    }
    tested = {str(arm.weight): book.graded(config.split, arm.name, count) for arm in answered.steered}
    for weight, values in p_values(tested, base, ks[0], seed).items():
        results["base_with_steering"][weight].update(values)
    if answered.random:
        results["random_control"] = {str(arm.weight): compared(arm) for arm in answered.random}
    if answered.controls:
        results["controls"] = {
            c.arm.name: {"about": c.about, "weight": c.arm.weight, **compared(c.arm)} for c in answered.controls
        }
    results["groups"] = _groups(config, book, answered, count)
    if answered.chosen is not None:
        results["chosen"] = {
            "weight": str(answered.chosen),
            "num_dev_problems": dev_count,
            "dev": _dev_scores(config, book, answered.steered, dev_count),
        }
    return results


def _groups(config: EvaluateConfig, book: Gradebook, answered: _Answered, count: int) -> dict[str, Any]:
    arms = {"base": BASE}
    if config.finetuned_checkpoint is not None:
        arms["finetuned"] = FINETUNED
    weight = answered.steered[0].weight if len(answered.steered) == 1 else answered.chosen
    if weight is not None:
        arms["steered"] = f"{STEERED}:{weight}"
    return groups({name: book.graded(config.split, arm, count) for name, arm in arms.items()}, config.pass_at_k[0])


def _dev_scores(config: EvaluateConfig, book: Gradebook, steered: list[Arm], count: int) -> dict[str, Any]:
    ks, seed = config.pass_at_k, config.seed
    scored = {str(arm.weight): arm_result(book.graded("dev", arm.name, count), ks, seed) for arm in steered}
    return {weight: {key: value for key, value in arm.items() if key != "examples"} for weight, arm in scored.items()}


def _settings(
    config: EvaluateConfig, vectors: SteeringVectors | None, problems: list[Problem], few_shot: list[Problem]
) -> dict[str, Any]:
    """What completions depend on: two runs with the same settings share a completions file, so weights can be added later."""
    device = choose_device(config.device)
    return {
        "base_model": identity(config.base_model_name),
        "finetuned_model": None if config.finetuned_checkpoint is None else identity(config.finetuned_checkpoint),
        "vectors": None if vectors is None else vectors_identity(vectors),
        "problems": digest(f"{problem.problem}\0{problem.answer}" for problem in problems),
        "few_shot": digest(f"{example.problem}\0{worked_example(example)}" for example in few_shot),
        "completions": config.num_completions_eval,
        "max_completion_length": config.max_completion_length,
        "temperature": config.temperature,
        "seed": config.seed,
        "split": config.split,
        "engine": config.engine,
        "dev_size": config.dev_size,
        "dtype": str(choose_dtype(config.dtype, device)).removeprefix("torch."),
    }
