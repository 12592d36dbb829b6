"""`steerlift push` and `steerlift pull`: a repository on the Hugging Face hub with vectors, their config and a model card."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steerlift.exports.baked import FAMILIES
from steerlift.exports.export import Export
from steerlift.exports.hub_config import PullConfig, PushConfig, is_hub_id
from steerlift.exports.model_card import Card, Evaluation, read_evaluation
from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.progress import say
from steerlift.records.provenance import package_version
from steerlift.records.runs import read_json, replacing, replacing_folder, write_json
from steerlift.steering.vectors import SteeringVectors

VECTORS, CONFIG, GGUF, FIGURE, README = "vectors.safetensors", "config.json", "vectors.gguf", "figure.png", "README.md"

_MODELS = ("base_model", "finetuned_model")
# The way to a file on this machine: nobody else's business, and no use to them.
_FOLDERS = re.compile(r"(?<!\S)(?:~|\.{0,2})/(?:\S*/)?")


def push(config: PushConfig) -> str:
    """Writes the repository's folder and uploads it in one commit; with `dry_run` only writes it. Returns what was done.

    Raises InputError, before anything is uploaded, for files that do not belong together, and for whatever the hub refuses.
    """
    if config.dry_run is None:
        _check_access(config.repo_id)
    vectors = SteeringVectors.load(config.vectors)
    evaluation = None
    if config.results is not None:
        evaluation = read_evaluation(config.results, vectors.metadata, config.weight)
    published = _published(config, vectors)
    if config.dry_run is not None:
        with replacing_folder(config.dry_run) as folder:
            _fill(folder, config, published, evaluation)
        return f"wrote {config.dry_run}, which a push uploads to {config.repo_id}"
    with tempfile.TemporaryDirectory() as name:
        _fill(Path(name), config, published, evaluation)
        return f"pushed {config.vectors} to {_upload(Path(name), config)}"


def pull(config: PullConfig) -> Export:
    """Downloads the vectors, checks them and writes them; the notes say what they are.

    Raises InputError where the hub does not give them, or gives something else.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with _one_line(f"pull {config.repo_id}"):
        found = Path(hf_hub_download(config.repo_id, VECTORS, revision=config.revision))
        try:
            about = Path(hf_hub_download(config.repo_id, CONFIG, revision=config.revision))
        except RemoteEntryNotFoundError:
            about = None
    vectors = SteeringVectors.load(found)
    with replacing(config.output_path) as temporary:
        shutil.copyfile(found, temporary)
    return Export(config.output_path, _described(vectors, read_json(about) if about else {}))


def _published(config: PushConfig, vectors: SteeringVectors) -> SteeringVectors:
    """The vectors with metadata that mean the same elsewhere: models by their hub ids, and no folders."""
    metadata = {key: _FOLDERS.sub("", value) for key, value in vectors.metadata.items() if key != "source"}
    for key in _MODELS:
        name = vectors.metadata.get(key, "")
        metadata[key] = name if is_hub_id(name) else Path(name).name
    base_model = config.base_model or vectors.metadata.get("base_model", "")
    if is_hub_id(base_model):
        metadata["base_model"] = base_model
    elif config.dry_run is None:
        found = f"name a folder of this machine ({base_model})" if base_model else "do not say what model they steer"
        raise InputError(f"--vectors {config.vectors}: they {found}, expected a hub id; give it with --base_model owner/name")
    return SteeringVectors(vectors.layers, {key: value for key, value in metadata.items() if value})


def _fill(folder: Path, config: PushConfig, vectors: SteeringVectors, evaluation: Evaluation | None) -> None:
    """Writes every file of the repository."""
    evaluated = None if evaluation is None else evaluation.weight
    weight = next(value for value in (config.weight, evaluated, 1.0) if value is not None)
    base_model = vectors.metadata.get("base_model", "")
    vectors.save(folder / VECTORS)
    write_json(folder / CONFIG, _config(vectors, weight, evaluation))
    if config.figure is not None:
        shutil.copyfile(config.figure, folder / FIGURE)
    card = Card(
        repo_id=config.repo_id,
        base_model=base_model if is_hub_id(base_model) else "",
        vectors=vectors,
        weight=weight,
        evaluation=evaluation,
        with_figure=config.figure is not None,
        with_gguf=_wrote_gguf(folder / GGUF, vectors),
        bakeable=vectors.metadata.get("architecture", "").partition(",")[0] in FAMILIES,
        license=config.license,
    )
    (folder / README).write_text(card.text(), encoding="utf-8")


def _wrote_gguf(path: Path, vectors: SteeringVectors) -> bool:
    try:
        vectors.save(path)
    except (InputError, MissingDependencyError) as error:
        say(f"{GGUF} is left out: {error}")
        return False
    return True


def _config(vectors: SteeringVectors, weight: float, evaluation: Evaluation | None) -> dict[str, Any]:
    known = {key: vectors.metadata[key] for key in ("base_model", "architecture", "method") if key in vectors.metadata}
    content: dict[str, Any] = {
        **known,
        "weight": weight,
        "layers": list(vectors.layers),
        "hidden_size": vectors.hidden_size,
        "steerlift": package_version(),
    }
    if evaluation is not None:
        content["evaluation"] = {"summary": evaluation.summary, "weight_chosen_on_dev": evaluation.on_dev, **evaluation.arms}
    return content


def _check_access(repo_id: str) -> None:
    from huggingface_hub import get_token, is_offline_mode

    instead = "or write the folder only, with --dry_run FOLDER"
    if is_offline_mode():
        raise InputError(f"push {repo_id}: HF_HUB_OFFLINE is set, expected a way to the hub; unset it, {instead}")
    if get_token() is None:
        raise InputError(f"push {repo_id}: no token for the hub, expected one that may write; `hf auth login`, {instead}")


def _upload(folder: Path, config: PushConfig) -> str:
    """Makes the repository where it is not there, and its content what is in the folder. Returns its address."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="steerlift", library_version=package_version())
    with _one_line(f"push {config.repo_id}"):
        address = api.create_repo(config.repo_id, private=config.private or None, exist_ok=True)
        # What an earlier push left and this one does not have would be of other vectors.
        api.upload_folder(
            repo_id=config.repo_id,
            folder_path=folder,
            commit_message="Steering vectors, by steerlift",
            delete_patterns=[GGUF, FIGURE],
        )
    return str(address)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns what the hub, or the way to it, refuses into one line."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, as the hub's client

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What is wrong and what to do about it."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    if isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        return _reason(error.__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and no copy is cached, expected a way to the hub; unset it"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision; leave --revision out for the newest"
    if isinstance(error, EntryNotFoundError):
        return f"the repository has no {VECTORS}; expected one that `steerlift push` has written"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 404):
        return f"the hub knows no such repository, or not this token ({status}); check the name, then `hf auth login`"
    if status == 403:
        return "the token may not do this (403); take a repository of your own and a token with write access: `hf auth login`"
    reason = " ".join(str(error).split()) or type(error).__name__
    if status is not None or isinstance(error, ValueError):
        return f"the hub refuses: {reason}; mend that and try again"
    return f"the hub cannot be reached: {reason}; check the connection"


def _described(vectors: SteeringVectors, about: Any) -> list[str]:  # noqa: ANN401 - any JSON value
    """Base model, method and shape, then weight and scores, which are their author's word."""
    content = about if isinstance(about, dict) else {}
    evaluation = content.get("evaluation")
    told: dict[str, Any] = {
        **vectors.metadata,
        "layers": ", ".join(map(str, vectors.layers)),
        "hidden_size": vectors.hidden_size,
        "weight": content.get("weight"),
        "evaluation": evaluation.get("summary") if isinstance(evaluation, dict) else "none comes with them",
    }
    keys = ("base_model", "method", "layers", "hidden_size", "weight", "evaluation")
    lines = [f"{key.replace('_', ' ')}: {told[key]}" for key in keys if told.get(key) is not None]
    # A stranger wrote them, and a terminal obeys control characters.
    return ["".join(filter(str.isprintable, line)) for line in lines]
