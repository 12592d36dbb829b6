"""`steerlift search`: trials that Optuna chooses, judged on the same development problems with the same random numbers.

Every trial gets a sampler of its own, seeded by its number, that is told the trials before it. So a search remembers nothing
but its trials and their completions, and one that was killed goes on to the same trials.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlift.evaluation.arms import Gradebook
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.results import percent, scores
from steerlift.evaluation.samplers import LocalModels
from steerlift.evaluation.search_config import SearchConfig, check_rungs, rung_sizes
from steerlift.evaluation.search_space import Params, SearchSpace, make_space
from steerlift.evaluation.search_study import ask, check_optuna, new_study, tell
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import few_shot_note, worked_example
from steerlift.problems.separation import check_unseen, fingerprints
from steerlift.records.errors import InputError
from steerlift.records.progress import progress, say
from steerlift.records.provenance import package_version, provenance
from steerlift.records.runs import check_writable, completions_path, read_json, write_json
from steerlift.records.seen import SEEN, together
from steerlift.records.types import Problem
from steerlift.sampling.rollouts import Task, rollouts
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.apply import check_fit
from steerlift.steering.identity import digest, identity, vectors_identity
from steerlift.steering.models import architecture, check_same_architecture, choose_device, choose_dtype, load_config
from steerlift.steering.vectors import SteeringVectors

if TYPE_CHECKING:
    import optuna

BASE = "base"


def check_start(config: SearchConfig) -> None:
    """Raises, before any work, what would stop the search: no Optuna, models that do not fit, a folder with another search.

    What `--overwrite` replaces is deleted here.
    """
    check_optuna()
    check_same_architecture(config.base_model_name, config.finetuned_checkpoint)
    check_writable(config.search_path)
    made = (config.search_path, completions_path(config.trials_path), config.best_path, config.results_path)
    if config.overwrite:
        if config.best_path.resolve() in {path.resolve() for path in config.vectors}:
            raise InputError(f"--overwrite would delete --vectors {config.best_path}; name another --output_dir")
        for path in made:
            path.unlink(missing_ok=True)
    elif not config.resume and any(path.exists() for path in made):
        raise InputError(
            f"{config.output_dir} holds another search; name another --output_dir, pass --resume to go on with it,"
            " or --overwrite to start over"
        )


def search(config: SearchConfig, paths: Sequence[Path]) -> dict[str, Any]:
    """Runs the trials, among the vectors at `paths`, that the output folder does not have yet.

    Writes search.json, whole after every trial, and in the end the winner's vectors. Returns the content of search.json.
    """
    space = _space(config, paths)
    dev = load_problems(config.problems, "dev", config.dev_size, config.seed, config.data_dir)
    check_rungs(config.rungs, len(dev))
    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed, config.data_dir)
    _check_test(config, space, dev)
    settings = _settings(config, space, dev, few_shot)
    judge = _Judge(config, Gradebook.open(completions_path(config.trials_path), settings, config.overwrite), dev, few_shot)
    before = _trials_before(config)
    say(
        f"searching {', '.join(space.candidates)} on {len(dev)} development problems of {config.problems}"
        f"{few_shot_note(few_shot)}; completions go to {judge.book.journal.path}"
    )
    study = new_study()
    trials: list[dict[str, Any]] = []
    with progress("trials", max(config.trials, len(before))) as bar:
        baseline = {"score": judge.score(BASE, len(dev)), "problems": len(dev)}
        for number in range(max(config.trials, len(before))):
            known = before[number]["params"] if number < len(before) else None
            trials.append(_run_trial(config, ask(study, config.sampler, config.seed, known), space, judge))
            content: dict[str, Any] = {
                "trials": trials,
                "best": best_trial(trials),
                "baseline": baseline,
                "settings": _recorded(config, space, paths),
                "provenance": _provenance(config),
            }
            if known is None:
                write_json(config.search_path, content)
            bar.advance(note=f"best {content['best']['score']:.1f} %, base {baseline['score']:.1f} %")
    judge.models.release()
    _winner(config, space, content["best"]["params"], dev).save(config.best_path)
    return content


def best_trial(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The trial of the highest score among those judged on all problems; of equal ones the first."""
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: (-trial["score"], trial["number"]))
    return {name: best[name] for name in ("number", "params", "score", "problems")}


def final_evaluation(config: SearchConfig) -> EvaluateConfig:
    """The one evaluation of the winner, whose vectors have their weights in them, on test problems."""
    return EvaluateConfig(
        base_model_name=config.base_model_name,
        finetuned_checkpoint=config.finetuned_checkpoint,
        steering_vectors_path=config.best_path,
        output_path=config.results_path,
        weights=(1.0,),
        eval_size=config.eval_size,
        num_completions_eval=config.num_completions_eval,
        pass_at_k=(config.pass_at_k,),
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        seed=config.seed,
        problems=config.problems,
        few_shot=config.few_shot,
        data_dir=config.data_dir,
        device=config.device,
        dtype=config.dtype,
        batch_rows=config.batch_rows,
        overwrite=config.overwrite,
    )


class _Judge:
    """Scores vectors on the first development problems, sampling only what is not in the book; the model stays loaded."""

    def __init__(self, config: SearchConfig, book: Gradebook, dev: Sequence[Problem], few_shot: Sequence[Problem]) -> None:
        self.config = config
        self.book = book
        self.dev = dev
        self.few_shot = few_shot
        self.options = SamplingOptions(config.temperature, config.max_completion_length)
        self.models = LocalModels(final_evaluation(config))

    def score(self, arm: str, count: int, vectors: SteeringVectors | None = None) -> float:
        """pass@k in percent on the first `count` problems, of the base with the vectors at weight 1 or without any."""
        todo = [index for index in range(count) if ("dev", arm, index) not in self.book.done]
        if todo:
            sampler, tokenizer = self.models.sampler(self.config.base_model_name, vectors)()
            weight = 0.0 if vectors is None else 1.0
            tasks = [Task(self.dev[index], self.config.num_completions_eval, self.config.seed, weight) for index in todo]
            graded = rollouts(sampler, tokenizer, tasks, self.options, few_shot=self.few_shot)
            self.book.record("dev", [(arm, index, g) for index, g in zip(todo, graded, strict=True)])
        values = scores(self.book.graded("dev", arm, count), self.config.pass_at_k)
        return percent(sum(values) / len(values))


def _run_trial(config: SearchConfig, trial: optuna.Trial, space: SearchSpace, judge: _Judge) -> dict[str, Any]:
    """Climbs the rungs until the trial is stopped or through; tells the study and returns the trial as search.json has it."""
    params = space.choose(trial)
    # With its parameters: completions are never taken for those of another choice that got the same number.
    arm = f"trial {trial.number}: " + ", ".join(f"{name} = {value}" for name, value in params.items())
    vectors = space.vectors(params)
    sizes = rung_sizes(config.rungs, len(judge.dev))
    size, score, stopped = 0, 0.0, False
    for rung, size in enumerate(sizes):
        score = judge.score(arm, size, vectors)
        trial.report(score, 2**rung)
        stopped = size < sizes[-1] and trial.should_prune()
        if stopped:
            break
    tell(trial, config.sampler, score, stopped)
    state = "pruned" if stopped else "complete"
    return {"number": trial.number, "params": params, "state": state, "problems": size, "score": score}


def _space(config: SearchConfig, paths: Sequence[Path]) -> SearchSpace:
    stems = Counter(path.stem for path in paths)
    candidates = {path.stem if stems[path.stem] == 1 else str(path): SteeringVectors.load(path) for path in paths}
    model = load_config(config.base_model_name)
    for vectors in candidates.values():
        check_fit(model, vectors, config.base_model_name)
    return make_space(config, candidates, model.num_hidden_layers)


def _check_test(config: SearchConfig, space: SearchSpace, dev: Sequence[Problem]) -> None:
    """The winner could not be reported on problems that it has seen: better said now than after the search."""
    test = load_problems(config.problems, "test", config.eval_size, config.seed, config.data_dir)
    check_unseen({SEEN: fingerprints(dev)}, test, f"the development problems of {config.problems}")
    for name, vectors in space.candidates.items():
        check_unseen(vectors.metadata, test, f"vectors {name}")


def _trials_before(config: SearchConfig) -> list[dict[str, Any]]:
    """The trials in search.json. Raises InputError where more would be chosen after the winner was seen on test problems."""
    if not config.search_path.exists():
        return []
    content = read_json(config.search_path)
    trials = content.get("trials") if isinstance(content, dict) else None
    if not isinstance(trials, list) or not all(isinstance(trial, dict) and "params" in trial for trial in trials):
        raise InputError(f"{config.search_path} is no file of a search; repair it, or --overwrite to start over")
    tested = completions_path(config.results_path)
    if len(trials) < config.trials and tested.exists():
        raise InputError(
            f"--trials {config.trials}: the winner of {len(trials)} trials was evaluated on test problems already "
            f"({tested}); name another --output_dir to search on"
        )
    return trials


def _winner(config: SearchConfig, space: SearchSpace, params: Params, dev: Sequence[Problem]) -> SteeringVectors:
    vectors, name = space.vectors(params), space.candidate(params)
    seen = [candidate.metadata.get(SEEN, "") for candidate in space.candidates.values()]
    metadata = {
        **vectors.metadata,
        "base_model": config.base_model_name,
        "finetuned_model": config.finetuned_checkpoint,
        "architecture": architecture(load_config(config.base_model_name)),
        "method": f"search over {vectors.metadata.get('method', name)}",
        "weights": ", ".join(f"{layer}: {weight:.6g}" for layer, weight in space.weights(params).items()),
        "searched_on": f"{len(dev)} of {config.problems}, dev",
        "search_seed": str(config.seed),
        "steerlift": package_version(),
        SEEN: together(fingerprints(dev), *seen),
    }
    return SteeringVectors(vectors.layers, metadata)


def _settings(config: SearchConfig, space: SearchSpace, dev: Sequence[Problem], few_shot: Sequence[Problem]) -> dict[str, Any]:
    """What trials depend on: only a search with the same can be resumed, with as many trials as wanted."""
    device = choose_device(config.device)
    same = ("max_completion_length", "temperature", "seed", "sampler", "rungs", "pass_at_k", "choose_layers")
    return {
        "base_model": identity(config.base_model_name),
        "finetuned_model": identity(config.finetuned_checkpoint),
        "vectors": {name: vectors_identity(vectors) for name, vectors in space.candidates.items()},
        "dev_problems": digest(f"{problem.problem}\0{problem.answer}" for problem in dev),
        "few_shot": digest(f"{example.problem}\0{worked_example(example)}" for example in few_shot),
        "completions": config.num_completions_eval,
        "groups": [list(group) for group in space.groups],
        "weight_range": list(config.weight_range),
        "dtype": str(choose_dtype(config.dtype, device)).removeprefix("torch."),
        **{name: getattr(config, name) for name in same},
    }


def _recorded(config: SearchConfig, space: SearchSpace, paths: Sequence[Path]) -> dict[str, Any]:
    """The options as search.json has them, with the vectors and layer groups that they came to."""
    options = {name: value for name, value in asdict(config).items() if name not in ("resume", "overwrite")}
    options |= {"output_dir": str(config.output_dir), "vectors": [str(path) for path in paths]}
    return options | {"searched_groups": [list(group) for group in space.groups]}


def _provenance(config: SearchConfig) -> dict[str, Any]:
    return provenance(model=config.base_model_name, seed=config.seed, device=str(choose_device(config.device)))
