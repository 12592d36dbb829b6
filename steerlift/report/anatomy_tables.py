"""The tables that `steerlift inspect` ends with: every layer's vector, and where the two models differ most."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from steerlift.report.anatomy import vectors_name
from steerlift.report.tables import make_table, print_lines, print_paths, show


def print_inspection(inspection: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Per layer norm, share, cosines and tokens; then the tokens of the largest KL; the paths."""
    show(_layers_table(inspection))
    notes = [f"cosine with {vectors_name(other['path'])}: {_origin(other)}" for other in inspection["others"]]
    if "divergence" in inspection:
        divergence = inspection["divergence"]
        show(_divergence_table(divergence))
        highest = max(divergence["positions"], key=lambda row: row["kl"])
        notes.append(
            f"KL(fine-tuned || base): mean {divergence['mean']:.3f} nats over {divergence['tokens']} tokens of "
            f"{divergence['completions']} completions, highest at position {highest['position']} ({highest['kl']:.3f}, "
            f"{highest['completions']} completions)"
        )
    if notes:
        print_lines(notes)
    print_paths(paths)


def visible(text: str) -> str:
    """A token with its whitespace and control characters to be seen: `␣the`, `\\n`."""
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _layers_table(inspection: Mapping[str, Any]) -> Table:
    layers, others, cosines = inspection["layers"], inspection["others"], inspection["cosines"]
    measured = "ratio" in layers[0]
    numbers = ["norm", *(["residual norm", "share %"] if measured else []), "cosine to layer below"]
    numbers += [f"cosine with {vectors_name(other['path'])}" for other in others]
    table = make_table("layer", *numbers, texts=["promoted", "suppressed"] if measured else [])
    for place, row in enumerate(layers):
        cells = [str(row["layer"]), f"{row['norm']:.3f}"]
        if measured:
            cells += [f"{row['residual_norm']:.3f}", f"{100 * row['ratio']:.1f}"]
        cells.append(f"{cosines[place][place - 1]:.2f}" if place else "")
        for other in others:
            cosine = other["cosines"][place]
            cells.append("" if cosine is None else f"{cosine:.2f}")
        if measured:
            cells += [_tokens(row["promoted"]), _tokens(row["suppressed"])]
        table.add_row(*cells)
    return table


def _divergence_table(divergence: Mapping[str, Any]) -> Table:
    table = make_table("position", "KL", texts=["after", "token", "base would say"])
    table.columns[0].justify = "right"
    for name in ("p fine-tuned", "p base"):
        table.add_column(name, justify="right")
    for row in divergence["largest"]:
        texts = [escape(visible(row[key])) for key in ("before", "token", "base_token")]
        probabilities = [f"{row[key]:.3f}" for key in ("finetuned_probability", "base_probability")]
        table.add_row(str(row["position"]), f"{row['kl']:.3f}", *texts, *probabilities)
    return table


def _origin(other: Mapping[str, Any]) -> str:
    known = [f"{key} {other[key]}" for key in ("method", "tokens", "seed") if key in other]
    return ", ".join([other["path"], *known])


def _tokens(scores: Sequence[Mapping[str, Any]]) -> str:
    return escape(" ".join(visible(score["text"]) for score in scores))
