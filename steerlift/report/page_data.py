"""What a report page shows: the files that a folder holds, and the tables made of them. Only reads.

Results are known by what stands in them, not by their name, so that `--output_path` may have been anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import read_json
from steerlift.records.seen import SEEN
from steerlift.report.fields import SCORE_KEY
from steerlift.report.tables import gap_text, interval_text

# JSON files that are large and hold nothing to show.
_PASSED_OVER = ("tokenizer.json", "run_log.json", "eval_summary.json")
# Why an interval or a share was not made the usual way.
_NOTES = ("note", "difference_note", "gap_note")
SEARCH_PICTURES = {
    "search_history.png": "Score of every trial in the order tried, with the best so far",
    "search_slices.png": "Score of every trial against each pair of parameters",
    "search_parallel.png": "Every trial as a line through its parameters, coloured by its score",
}


@dataclass(frozen=True)
class Part:
    """One JSON file and what stands in it."""

    path: Path
    content: dict[str, Any]

    def beside(self, name: str) -> Path:
        """A file in the same folder."""
        return self.path.with_name(name)


@dataclass(frozen=True)
class RunFolder:
    """All parts of a folder and its direct subfolders, by kind, in the order of their names; the folder's own first."""

    folder: Path
    results: list[Part] = field(default_factory=list)
    models: list[Part] = field(default_factory=list)
    searches: list[Part] = field(default_factory=list)
    vectors: list[Part] = field(default_factory=list)
    inspections: list[Part] = field(default_factory=list)
    trainings: list[Part] = field(default_factory=list)

    def parts(self) -> list[Part]:
        """All of them, in the order of the pipeline."""
        return [*self.trainings, *self.vectors, *self.inspections, *self.searches, *self.models, *self.results]


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, a sentence below the name, the cells, and whether it is the one to look at."""

    name: str
    cells: list[str]
    about: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Heads (the first is that of the names), rows, and what is to be said below them."""

    caption: str
    heads: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def gather(folder: Path) -> RunFolder:
    """Finds the parts. Raises MissingInputError where there are none, InputError, naming the file, for broken JSON."""
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; expected one with what `evaluate`, `train` or `extract` wrote")
    run = RunFolder(folder)
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for place in (folder, *subfolders):
        for path in sorted(place.glob("*.json")):
            if path.name.startswith(".") or path.name in _PASSED_OVER:
                continue
            content = read_json(path)
            kind = _kind(run, path, content) if isinstance(content, dict) else None
            if kind is not None:
                kind.append(Part(path, content))
    if not run.parts():
        raise MissingInputError(
            f"{folder}: nothing to report in it or its subfolders; expected results of `steerlift evaluate`, a run of `train`, "
            "the .info.json of `extract` or a search.json; name their folder"
        )
    return run


def _kind(run: RunFolder, path: Path, content: dict[str, Any]) -> list[Part] | None:
    if "base_with_steering" in content:
        return run.results if content["base_with_steering"] else run.models
    layers = content.get("layers")
    if isinstance(layers, list) and all(isinstance(row, dict) and "layer" in row for row in layers):
        return run.inspections if "cosines" in content else run.vectors
    if isinstance(content.get("trials"), list):
        return run.searches
    # A run whose first step is not done has an empty file of metrics: nothing to draw yet.
    metrics = path.with_name("metrics.jsonl")
    if path.name == "config.json" and metrics.is_file() and b"\n" in metrics.read_bytes():
        return run.trainings
    return None


def shown_arm(results: Part, asked: str | None) -> tuple[str, str]:
    """The steered arm to lead with, as named in the file, and a sentence on how it came to be that one."""
    arms: dict[str, dict[str, Any]] = results.content["base_with_steering"]
    chosen = results.content.get("chosen") or {}
    dev_weight = None if "weight" not in chosen else next(key for key in arms if float(key) == float(chosen["weight"]))
    problems = f"{chosen['num_dev_problems']} dev problems" if "num_dev_problems" in chosen else "dev problems"
    if asked is not None and asked not in arms:
        raise InputError(f"--arm {asked}: no such steering weight in {results.path}; expected one of {', '.join(arms)}")
    if dev_weight is not None and asked in (None, dev_weight):
        return dev_weight, f"The weight {dev_weight} was chosen on {problems}, which are not among those reported on here."
    if asked is not None:
        choice = f"the choice on {problems} was {dev_weight}" if dev_weight else "no weight was chosen on dev problems"
        return asked, f"The weight {asked} was asked for by hand; {choice}."
    metric = metrics_of(results.content["base_model"])[0]
    best = min(arms, key=lambda key: (-arms[key][metric], abs(float(key))))
    searched = (results.content.get("vectors") or {}).get("searched_on")
    if len(arms) == 1 and searched:
        return (
            best,
            f"What is steered, and how much, was chosen by a search on {searched}; weight {best} is that choice.",
        )
    if len(arms) == 1:
        return best, f"The weight {best} is the only one evaluated; it was not chosen on dev problems."
    return best, (
        f"The weight {best} was not chosen on dev problems: it is the best of {len(arms)} on the very problems reported here, "
        "so its score is flattered."
    )


def separation_text(separation: Mapping[str, Any]) -> str:
    """Whether the file's own lists of problems keep those reported on apart from those that anything was made or chosen on."""
    names = {"weight_chosen_on": "the weight was chosen on", "vectors_made_or_chosen_on": "the vectors were made or chosen on"}
    reported = set(separation.get("reported_on", "").split())
    used = {name: set(separation.get(key, "").split()) for key, name in names.items()}
    both = {mark for marks in used.values() for mark in marks & reported}
    if both:
        return f"{len(both)} of the problems reported on were also used to make or choose something: the score is flattered."
    listed = " or that ".join(name for name, marks in used.items() if marks)
    text = f"By the file's own lists no problem reported on, nor a near copy of it, is one that {listed}. " if listed else ""
    unknown = [] if used[names["vectors_made_or_chosen_on"]] else ["Which problems the vectors were made on is not recorded."]
    return "".join([text, *unknown]).strip()


def metrics_of(scores: Mapping[str, Any]) -> list[str]:
    """The keys of pass@k, the headline first."""
    return [key for key in scores if SCORE_KEY.fullmatch(key)]


def score_table(caption: str, first: str, arms: Mapping[str, Mapping[str, Any]], marked: str = "") -> Table:
    """Every arm's numbers; what no arm has is no column."""
    metric, *further = metrics_of(next(iter(arms.values())))
    columns = {
        metric: _head(metric),
        "ci95": "95 % interval",
        **{key: _head(key) for key in further},
        "difference_from_base": "against base",
        "difference_p_holm": "p (Holm)",
        "gap_recovered": "gap recovered %",
        f"lenient_{metric}": "lenient %",
        "format_rate": "format %",
        "mean_length": "tokens",
        "truncated_rate": "truncated %",
    }
    keys = [key for key in columns if any(arm.get(key) is not None for arm in arms.values())]
    rows = [Row(name, [_score(arm, key) for key in keys], arm.get("about", ""), name == marked) for name, arm in arms.items()]
    notes = [f"{name}: {arm[key]}" for name, arm in arms.items() for key in _NOTES if key in arm]
    return Table(caption, [first, *(columns[key] for key in keys)], rows, notes)


def _head(metric: str) -> str:
    return f"pass@{metric.removeprefix('pass_at_')} %"


def _score(arm: Mapping[str, Any], key: str) -> str:
    value = arm.get(key)
    if value is None:
        return ""
    if key == "ci95":
        return interval_text(value)
    if key == "gap_recovered":
        return gap_text({"gap_recovered_ci95": None, **arm})
    if key == "difference_p_holm":
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    if key == "difference_from_base":
        interval = arm.get("difference_ci95")
        return f"{value:+.1f}" + (f" ({interval[0]:+.1f} to {interval[1]:+.1f})" if interval else "")
    return f"{value:.1f}"


def group_tables(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Table]:
    """Accuracy by subject, by level, by whatever else the problems were grouped by."""
    return [
        records_table(f"By {by}", by, {name: dict(scores) for name, scores in members.items()}, decimals=1)
        for by, members in groups.items()
        if members
    ]


def records_table(caption: str, first: str, records: Mapping[str, Mapping[str, Any]], decimals: int = 3) -> Table:
    """A column for every key that any record has a value of; names are written with spaces."""
    keys = dict.fromkeys(key for record in records.values() for key, value in record.items() if value is not None)
    rows = [Row(name, [_plain(record.get(key), decimals) for key in keys]) for name, record in records.items()]
    return Table(caption, [first, *(key.replace("_", " ") for key in keys)], rows)


def _plain(value: Any, decimals: int) -> str:  # noqa: ANN401 - any JSON value
    """A number or a text as it is, of a list of tokens their texts; nothing for what has no place in a cell."""
    if isinstance(value, float):
        # A learning rate or a small KL would be 0.000.
        return f"{value:.{decimals}f}" if value == 0 or abs(value) >= 10**-decimals else f"{value:.2g}"
    if isinstance(value, list):
        return "  ".join(repr(token["text"]) for token in value)
    return "" if value is None else str(value)


def vector_tables(content: Mapping[str, Any]) -> list[Table]:
    """Of `extract` the numbers of every layer; of `inspect` also the tokens where the two models differ most."""
    layers = {str(row["layer"]): {key: value for key, value in row.items() if key != "layer"} for row in content["layers"]}
    tables = [records_table("Per layer", "layer", layers)]
    tokens = content.get("divergence", {}).get("largest", [])
    if tokens:
        # repr: a space or a line break is a difference too.
        ranked = {
            str(rank): {key: repr(value) if isinstance(value, str) else value for key, value in token.items()}
            for rank, token in enumerate(tokens, start=1)
        }
        tables.append(records_table("Where the two models differ most", "rank", ranked))
    return tables


def facts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What vectors say of themselves; of the problems they were made on only how many."""
    texts = {key.replace("_", " "): str(value) for key, value in metadata.items() if value != ""}
    seen = SEEN.replace("_", " ")
    return texts | ({seen: f"{len(texts[seen].split())}"} if seen in texts else {})


def trial_table(trials: Iterable[Mapping[str, Any]]) -> Table:
    """Every trial of a search: its parameters, how far it got, its score."""
    records = {
        str(trial.get("number", index)): {
            **trial.get("params", {}),
            "state": trial.get("state"),
            "problems": trial.get("problems"),
            "score %": trial.get("score"),
        }
        for index, trial in enumerate(trials)
    }
    return records_table("All trials", "trial", records, decimals=2)


def provenance_table(run: RunFolder) -> Table:
    """A column for every part: when, where and with what it was made."""
    origins = {part.path.relative_to(run.folder).as_posix(): part.content.get("provenance") or {} for part in run.parts()}
    flat = {name: {**origin, **origin.get("libraries", {})} for name, origin in origins.items() if origin}
    keys = dict.fromkeys(key for origin in flat.values() for key in origin if key not in ("libraries", "command"))
    rows = [Row(key, [_plain(origin.get(key), 3) for origin in flat.values()]) for key in keys]
    return Table("What made which file", ["", *flat], rows)
