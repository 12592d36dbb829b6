"""The options of `steerlift push` and `steerlift pull`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from steerlift.records.checks import check_number
from steerlift.records.errors import InputError, MissingInputError


def is_hub_id(name: str) -> bool:
    """Whether `name` is an owner/name that the hub can have, and no folder of this machine."""
    return _is_well_formed(name) and not Path(name).exists()


@dataclass(frozen=True)
class PushConfig:
    """Put steering vectors on the Hugging Face hub, with a model card that is filled from the files given."""

    repo_id: tyro.conf.Positional[str]
    """Repository on the hub, owner/name; it is made if it is not there."""
    vectors: Path
    """Steering vectors: .safetensors, .json or .gguf."""
    results: Path | None = None
    """Results of `steerlift evaluate` with these vectors, for the card's table."""
    figure: Path | None = None
    """Picture of the results, a .png of `steerlift plot`."""
    base_model: str = ""
    """Hub id of the model that the vectors steer, where the vectors themselves name a folder."""
    weight: float | None = None
    """Steering weight that the card recommends; default: the one that the results stand for, else 1."""
    license: str = ""
    """License by the hub's name (apache-2.0, mit ...); default: the card names none."""
    private: bool = False
    """Make a new repository private."""
    dry_run: Path | None = None
    """Write what would be uploaded to this new folder, and ask the hub nothing."""

    def __post_init__(self) -> None:
        _check_repository(self.repo_id)
        check_number("weight", self.weight)
        if self.base_model and not is_hub_id(self.base_model):
            raise InputError(f"--base_model {self.base_model}: expected a hub id (owner/name), not a folder of this machine")
        if self.figure is not None and self.figure.suffix != ".png":
            raise InputError(f"--figure {self.figure}: expected a .png, which the hub shows; `steerlift plot` writes one")
        for flag, path in (("results", self.results), ("figure", self.figure)):
            if path is not None and not path.is_file():
                raise MissingInputError(f"--{flag} {path}: no such file")
        if self.dry_run is not None and self.dry_run.exists():
            raise InputError(f"--dry_run {self.dry_run}: it is there already; name a new folder")


@dataclass(frozen=True)
class PullConfig:
    """Get steering vectors from the Hugging Face hub, check them and say what they are."""

    repo_id: tyro.conf.Positional[str]
    """Repository on the hub, owner/name."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest."""
    output_path: Path = Path("vectors.safetensors")
    """File that is written."""

    def __post_init__(self) -> None:
        _check_repository(self.repo_id)
        if self.output_path.suffix != ".safetensors":
            raise InputError(f"--output_path {self.output_path}: expected a name that ends in .safetensors")


def _check_repository(name: str) -> None:
    if not _is_well_formed(name):
        raise InputError(f"repository {name}: expected owner/name as on the hub, of letters, digits, '-', '_' and '.'")


def _is_well_formed(name: str) -> bool:
    # Imported here: `--help` should not pay for it.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not declared

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name
