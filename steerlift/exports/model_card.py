"""The model card of steering vectors on the hub: what the vectors and a results file say, and nothing else.

A part without data is left out. Scores are percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from steerlift.records.errors import InputError
from steerlift.records.runs import read_json
from steerlift.records.seen import SEEN
from steerlift.steering.vectors import SteeringVectors

_COLUMNS = ("95 % interval", "against base", "gap recovered %", "format %")


@dataclass(frozen=True)
class Evaluation:
    """What a results file says of the vectors at one weight: the card's sentences and table, and numbers for config.json."""

    weight: float
    on_dev: bool
    choice: str
    setting: str
    summary: str
    arms: dict[str, Any]
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]


@dataclass(frozen=True)
class Card:
    """What a card is made of. `base_model` is a hub id, or empty where the vectors steer a model that is not there."""

    repo_id: str
    base_model: str
    vectors: SteeringVectors
    weight: float
    evaluation: Evaluation | None = None
    with_figure: bool = False
    with_gguf: bool = False
    bakeable: bool = False
    license: str = ""

    def text(self) -> str:
        """The content of README.md: front matter as the hub wants it, then Markdown."""
        environment = Environment(
            loader=PackageLoader("steerlift", "exports"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        body = environment.get_template("card.md.jinja").render(
            card=self,
            facts={key.replace("_", " "): value for key, value in self._facts().items()},
            name=self.repo_id.split("/")[1],
            model=self.base_model or "BASE_MODEL",
        )
        return f"---\n{self._front_matter()}\n---\n\n{body}"

    def _front_matter(self) -> str:
        from huggingface_hub import ModelCardData

        data = ModelCardData(
            library_name="steerlift",
            pipeline_tag="text-generation",
            tags=["steering-vector", "steerlift"],
            base_model=self.base_model or None,
            base_model_relation="adapter" if self.base_model else None,
            license=self.license or None,
        )
        return data.to_yaml()

    def _facts(self) -> dict[str, str]:
        told = {key: value for key, value in self.vectors.metadata.items() if value and key not in (SEEN, "base_model")}
        return {**told, "layers": ", ".join(map(str, self.vectors.layers)), "hidden_size": str(self.vectors.hidden_size)}


def read_evaluation(path: Path, metadata: Mapping[str, str], weight: float | None) -> Evaluation:
    """Reads the results of vectors with this metadata, at the weight chosen on dev problems or the one given.

    Raises InputError for other vectors' results, a weight that is not there, none where several are, and other files.
    """
    content = read_json(path)
    try:
        if _identity(content.get("vectors", metadata)) != _identity(metadata):
            raise InputError(f"--results {path}: it is of other vectors, by their metadata; expected those of --vectors")
        return _evaluation(path, content, metadata, weight)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise InputError(f"--results {path}: not a results file of `steerlift evaluate` ({error!r}); give one") from error


def _identity(metadata: Mapping[str, str]) -> dict[str, str]:
    """What an evaluation keeps of the vectors' metadata, less the name of the file they were in."""
    return {key: value for key, value in metadata.items() if key not in (SEEN, "source")}


def _evaluation(path: Path, content: Any, metadata: Mapping[str, str], asked: float | None) -> Evaluation:  # noqa: ANN401
    base, steered = content["base_model"], {float(key): arm for key, arm in content["base_with_steering"].items()}
    chosen = content.get("chosen") or {}
    on_dev = float(chosen["weight"]) if chosen else None
    weight = next((value for value in (asked, on_dev) if value is not None), None)
    if weight is None and len(steered) == 1:
        (weight,) = steered
    if weight is None or weight not in steered:
        found = "no weight was chosen on dev problems" if weight is None else f"weight {weight} is not in it"
        raise InputError(f"--results {path}: {found}; name one with --weight: {', '.join(map(str, steered))}")
    metric = next(key for key in base if key.startswith("pass_at_") and not key.endswith("ci95"))
    head = f"pass@{metric.removeprefix('pass_at_')} %"
    main = {"base": base, "steered": steered[weight]}
    arms = {"base": base, f"base + {weight} x vectors": steered[weight]}
    if content["finetuned_model"] is not None:
        main["finetuned"] = arms["fine-tuned"] = content["finetuned_model"]
    arms |= _controls(content, weight)
    rows = [[name, f"{arm[metric]:.1f}", *_cells(arm)] for name, arm in arms.items()]
    setting = _setting(base, content.get("settings") or {})
    told = [0, 1, *(column for column in range(2, len(rows[0])) if any(row[column] for row in rows))]
    heads = ["arm", head, *_COLUMNS]
    return Evaluation(
        weight=weight,
        on_dev=weight == on_dev,
        choice=_choice(weight, chosen if weight == on_dev else {}, len(steered), metadata.get("searched_on", "")),
        setting=setting,
        summary=f"{head}: {', '.join(f'{name} {arm[metric]:.1f}' for name, arm in main.items())}; {setting}",
        arms={name: {key: arm[key] for key in (metric, "ci95") if key in arm} for name, arm in main.items()},
        heads=[heads[column] for column in told],
        rows=[[row[column] for column in told] for row in rows],
        notes=_notes(arms),
    )


def _controls(content: Mapping[str, Any], weight: float) -> dict[str, Any]:
    """The control arms at this weight, turned or unsteered."""
    random = {f"random vectors x {key}": arm for key, arm in content.get("random_control", {}).items() if float(key) == weight}
    others = content.get("controls", {}).items()
    return random | {name: arm for name, arm in others if abs(arm["weight"]) in (0, abs(weight))}


def _cells(arm: Mapping[str, Any]) -> list[str]:
    """The texts of _COLUMNS, empty for what the arm does not have."""
    points, share, form = (arm.get(key) for key in ("difference_from_base", "gap_recovered", "format_rate"))
    interval = arm.get("ci95")
    return [
        "" if interval is None else "{:.1f} to {:.1f}".format(*interval),
        "" if points is None else f"{points:+.1f}{_bounds(arm.get('difference_ci95'), '+.1f')}",
        "" if share is None else f"{share:.0f}{_bounds(arm.get('gap_recovered_ci95'), '.0f')}",
        "" if form is None else f"{form:.1f}",
    ]


def _bounds(interval: list[float] | None, form: str) -> str:
    return "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"


def _choice(weight: float, chosen: Mapping[str, Any], tried: int, searched_on: str) -> str:
    """How the weight came to be this one."""
    if chosen:
        problems = f"{chosen['num_dev_problems']} development problems" if "num_dev_problems" in chosen else "other problems"
        return f"The weight {weight} was chosen on {problems}, which are not among those reported on."
    if searched_on and tried == 1:
        return f"What is steered, and how much, was chosen by a search on {searched_on}."
    if tried == 1:
        return f"The weight {weight} is the only one evaluated; it was not chosen on development problems."
    return (
        f"The weight {weight}, one of {tried} evaluated on these very problems, was not chosen on development problems: "
        "if it is the best of them, its score is flattered."
    )


def _setting(base: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """`400 problems of math (test), 4 completions each, temperature 1.0, ...`, as far as the file says."""
    parts = [f"{base['num_eval_problems']} problems" if "num_eval_problems" in base else "Problems"]
    parts[0] += f" of {Path(settings['problems']).name} ({settings['split']})" if "problems" in settings else ""
    parts += [f"{base['completions_per_problem']} completions each"] if "completions_per_problem" in base else []
    parts += [f"temperature {settings['temperature']}"] if "temperature" in settings else []
    parts += [f"at most {settings['max_completion_length']} tokens"] if "max_completion_length" in settings else []
    parts += [f"{settings['few_shot']} worked examples in the prompt"] if settings.get("few_shot") else []
    parts += [f"seed {settings['seed']}"] if "seed" in settings else []
    return ", ".join(parts)


def _notes(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why intervals or shares were not made the usual way."""
    keys = ("note", "difference_note", "gap_note")
    return list(dict.fromkeys(f"{name}: {arm[key]}" for name, arm in arms.items() for key in keys if key in arm))
