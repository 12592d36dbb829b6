"""`steerlift report`: one HTML file that needs nothing else, made of all that a folder holds.

The same files give the same page, byte for byte. It holds no script, and its own policy forbids a browser to load anything:
what a model wrote is shown as text and can do nothing.
"""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from steerlift.records.errors import InputError
from steerlift.records.runs import check_writable, read_json, replacing
from steerlift.report.answers import side_by_side
from steerlift.report.config import PlotConfig
from steerlift.report.page_data import (
    SEARCH_PICTURES,
    Part,
    RunFolder,
    Table,
    facts,
    gather,
    group_tables,
    metrics_of,
    provenance_table,
    score_table,
    separation_text,
    shown_arm,
    trial_table,
    vector_tables,
)
from steerlift.report.plots import plot
from steerlift.report.report_config import ReportConfig
from steerlift.report.reproduce import commands, typed_commands
from steerlift.report.themes import THEMES


@dataclass(frozen=True)
class Headline:
    """One of the large numbers, percent; `kind` gives its colour."""

    kind: str
    name: str
    score: float
    interval: Sequence[float] | None


def write_page(config: ReportConfig, verbs: Mapping[str, type[Any]]) -> Path:
    """Writes the page to `config.page_path()` and returns that path. `verbs`: every verb's config, for the commands.

    Raises MissingInputError where the folder holds nothing to show, InputError for what cannot be used.
    """
    run = gather(config.run_dir)
    path = config.page_path()
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output_path {path}: expected a name that ends in .html; a page is HTML")
    check_writable(path)
    text = render(run, config, verbs)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(run: RunFolder, config: ReportConfig, verbs: Mapping[str, type[Any]]) -> str:
    """The page's HTML."""
    if config.arm is not None and not run.results:
        raise InputError(f"--arm {config.arm}: {run.folder} holds no results of `steerlift evaluate`; leave it out")
    environment = Environment(
        loader=PackageLoader("steerlift", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        results=[_results_view(part, run, config) for part in run.results],
        models=[_models_view(part, run) for part in run.models],
        trainings=[_training_view(part, run, config) for part in run.trainings],
        searches=[_search_view(part, run) for part in run.searches],
        vectors=[_vectors_view(part, run, "Vectors") for part in run.vectors],
        inspections=[_vectors_view(part, run, "Anatomy of the vectors") for part in run.inspections],
        title=config.title if config.title is not None else f"Steering vectors: {run.folder.resolve().name}",
        theme=asdict(THEMES[config.theme]),
        provenance=provenance_table(run),
        typed=typed_commands(run),
        commands=commands(run, verbs),
    )


def _results_view(part: Part, run: RunFolder, config: ReportConfig) -> dict[str, Any]:
    # First: drawing checks the scores.
    figure = _drawn(PlotConfig(results_path=part.path, theme=config.theme))
    content = part.content
    weight, choice = shown_arm(part, config.arm)
    base, steered = content["base_model"], content["base_with_steering"][weight]
    names = {"base": "base", "steered": f"base + {weight} × vectors"}
    shown = {"base": base, "steered": steered}
    if content["finetuned_model"] is not None:
        names["finetuned"], shown["finetuned"] = "fine-tuned", content["finetuned_model"]
    metric = metrics_of(base)[0]
    answers = {kind: arm.get("examples") or [] for kind, arm in shown.items()}
    return {
        "name": _name(part, run),
        "metric": f"pass@{metric.removeprefix('pass_at_')}",
        "headlines": [Headline(kind, names[kind], arm[metric], arm.get("ci95")) for kind, arm in shown.items()],
        "gap": steered.get("gap_recovered"),
        "gap_interval": steered.get("gap_recovered_ci95"),
        "finding": finding(steered),
        "choice": choice,
        "separation": separation_text(content["separation"]) if "separation" in content else "",
        "problems": base.get("num_eval_problems"),
        "completions": base.get("completions_per_problem"),
        "figure": figure,
        "models": "base and fine-tuned model" if "finetuned" in shown else "the base",
        "tables": _score_tables(content, names["steered"], weight),
        "controls": _control_table(content, {"base": base, names["steered"]: steered}),
        "groups": group_tables(content.get("groups", {})),
        "examples": side_by_side(answers, names, config.examples, content.get("settings", {}).get("seed", 0)),
    }


def _models_view(part: Part, run: RunFolder) -> dict[str, Any]:
    """An evaluation without vectors: what the fine-tuning brought, or the base alone."""
    content = part.content
    return {"name": _name(part, run), "tables": [*_score_tables(content), *group_tables(content.get("groups", {}))]}


def _score_tables(content: Mapping[str, Any], marked: str = "", weight: str = "") -> list[Table]:
    """All arms, and the development scores that the weight was chosen by where it was."""
    arms = {"base": content["base_model"]}
    if content["finetuned_model"] is not None:
        arms["fine-tuned"] = content["finetuned_model"]
    arms |= {f"base + {key} × vectors": arm for key, arm in content["base_with_steering"].items()}
    on_dev = (content.get("chosen") or {}).get("dev")
    tables = [score_table("All arms", "arm", arms, marked)]
    return [*tables, score_table("The weights on the dev problems", "weight", on_dev, weight)] if on_dev else tables


def _control_table(content: Mapping[str, Any], beside: Mapping[str, Any]) -> Table | None:
    controls = {f"random vectors × {weight}": arm for weight, arm in content.get("random_control", {}).items()}
    controls |= content.get("controls", {})
    return score_table("Controls", "control", {**beside, **controls}) if controls else None


def finding(steered: Mapping[str, Any]) -> str:
    """What the numbers of the steered arm say, and no more than they say."""
    if "difference_from_base" not in steered:
        return "The file gives no differences with intervals, so it cannot be said how much of this is chance."
    points = steered["difference_from_base"]
    interval = steered.get("difference_ci95")
    amount = f"{abs(points):.1f} points"
    if not interval:
        return f"With the vectors the base model scores {amount} {'more' if points > 0 else 'less'}, without an interval."
    low, high = interval
    if low <= 0 <= high:
        return (
            f"No effect has been shown: the vectors change the base model's score by {points:+.1f} points, "
            f"and the 95 % interval, {low:+.1f} to {high:+.1f}, holds 0."
        )
    if high < 0:
        return f"The vectors harm: the base model scores {amount} less with them (95 % interval {-high:.1f} to {-low:.1f})."
    gain = f"With the vectors the base model scores {amount} more (95 % interval {low:.1f} to {high:.1f})"
    share, bounds = steered.get("gap_recovered"), steered.get("gap_recovered_ci95")
    if share is None:
        return f"{gain}; fine-tuning itself gains nothing that a share could be given of."
    gain += f": {share:.0f} % of what fine-tuning gains"
    return f"{gain} ({bounds[0]:.0f} to {bounds[1]:.0f})." if bounds else f"{gain}, without an interval."


def _training_view(part: Part, run: RunFolder, config: ReportConfig) -> dict[str, Any]:
    summary = part.beside("eval_summary.json")
    evaluations = read_json(summary) if summary.is_file() else {}
    return {
        "name": _name(part, run),
        "figure": _drawn(PlotConfig(run_dir=part.path.parent, theme=config.theme)),
        "evaluations": score_table("Evaluations during training", "step", evaluations) if evaluations else None,
    }


def _search_view(part: Part, run: RunFolder) -> dict[str, Any]:
    content = part.content
    pictures = [(_embedded(part.beside(name)), about) for name, about in SEARCH_PICTURES.items() if part.beside(name).is_file()]
    trials = content["trials"]
    return {
        "name": _name(part, run),
        "count": len(trials),
        "pruned": sum(trial.get("state") == "pruned" for trial in trials),
        "best": content.get("best") or {},
        "baseline": (content.get("baseline") or {}).get("score"),
        "pictures": pictures,
        "trials": trial_table(trials),
    }


def _vectors_view(part: Part, run: RunFolder, heading: str) -> dict[str, Any]:
    picture = part.path.with_suffix(".png")
    return {
        "name": _name(part, run),
        "heading": heading,
        "about": facts(part.content.get("vectors", {})),
        "picture": _embedded(picture) if picture.is_file() else None,
        "tables": vector_tables(part.content),
    }


def _name(part: Part, run: RunFolder) -> str:
    return part.path.relative_to(run.folder).as_posix()


def _drawn(config: PlotConfig) -> str:
    """The picture of `steerlift plot`, as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        return _embedded(plot(replace(config, output_path=Path(folder) / "picture.svg")))


def _embedded(picture: Path) -> str:
    """A picture as a data URI."""
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[picture.suffix]
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
