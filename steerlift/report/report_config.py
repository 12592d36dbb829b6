"""The options of `steerlift report`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from steerlift.records.checks import check_number


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page that shows all that a folder holds: results, answers, training, search, vectors, provenance."""

    run_dir: tyro.conf.Positional[Path]
    """A folder with what `evaluate`, `train`, `extract`, `search` or `demo` wrote; it and its direct subfolders are read."""
    output_path: Path | None = None
    """Where the page goes. Default: report.html in the folder."""
    title: str | None = None
    """Title of the page; by default one that names the folder."""
    theme: Literal["christmas", "plain"] = "christmas"
    """Colours of the page and of its pictures."""
    examples: int = 12
    """Problems whose answers stand side by side, drawn by the seed of the evaluation; 0 shows none."""
    arm: str | None = None
    """The steering weight to lead with; default: the one chosen on dev problems, else the best."""

    def __post_init__(self) -> None:
        check_number("examples", self.examples, least=0)

    def page_path(self) -> Path:
        """`output_path`, or the default."""
        return self.output_path if self.output_path is not None else self.run_dir / "report.html"
