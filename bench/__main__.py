"""`python -m bench [sampling grpo extraction sweep scaling] [--quick]`: all, not quick, are written to docs/performance.md."""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import ROOT
from steerlift.records.progress import say
from steerlift.records.runs import replacing

if TYPE_CHECKING:
    from bench.setting import Setting
    from bench.table import Section

NAMES = ("sampling", "grpo", "extraction", "sweep", "scaling")
DOCUMENT = ROOT / "docs" / "performance.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen benchmarks, prints the document and writes it where asked."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _options(given)
    # What is measured is the code on this machine, never a download.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Imported here: they import torch and transformers, which --help should not pay for.
    import torch

    from bench.measure import busy_cores
    from bench.setting import Setting, trained_model, untrained_model
    from bench.table import document

    torch.set_num_threads(options.threads)
    chosen = [name for name in NAMES if name in (options.benchmarks or NAMES)]
    sections, busy = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = untrained_model(Path(scratch) / "base") if options.quick else trained_model()
        setting = Setting(folder, options.seed, full=not options.quick, smollm2=options.smollm2)
        for name in chosen:
            say(f"== {name}")
            busy[name] = busy_cores()
            sections.append(_benchmark(name, options.quick)(setting))
    content = document(sections, options.seed, shlex.join(["python", "-m", "bench", *_shown(given)]), busy)
    print(content)
    whole = chosen == list(NAMES) and not options.quick
    target: Path | None = options.output or (DOCUMENT if whole else None)
    if target is not None:
        with replacing(target) as temporary:
            temporary.write_text(content, encoding="utf-8")
        say(f"written to {target}")


def _options(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description="Measures ours against named alternatives.")
    parser.add_argument("benchmarks", nargs="*", metavar="benchmark", help=f"any of {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, an untrained model, no memory: to try the code")
    parser.add_argument("--seed", type=int, default=0, help="seed of problems, weights and lengths")
    parser.add_argument(
        "--smollm2", metavar="FOLDER", type=Path, help="SmolLM2-135M-Instruct as recipes/smollm2.py saves it, for grpo"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--output", type=Path, help=f"file to write; default: {DOCUMENT.relative_to(ROOT)} for a whole run, else none"
    )
    options = parser.parse_args(given)
    unknown = [name for name in options.benchmarks if name not in NAMES]
    if unknown:
        parser.error(f"got benchmark {unknown[0]!r}, expected {', '.join(NAMES)}")
    if options.smollm2 is not None and not (options.smollm2 / "config.json").is_file():
        parser.error(f"--smollm2 {options.smollm2} holds no model; python recipes/smollm2.py {options.smollm2} writes it")
    return options


def _shown(given: Sequence[str]) -> list[str]:
    """The arguments as the document shows them: where this machine keeps a model is of no use elsewhere."""
    before = ["", *given]
    parts = ["FOLDER" if previous == "--smollm2" else part for previous, part in zip(before, given, strict=False)]
    return ["--smollm2=FOLDER" if part.startswith("--smollm2=") else part for part in parts]


def _benchmark(name: str, quick: bool) -> "Callable[[Setting], Section]":
    from bench import extraction, grpo_step, sampling, scaling, sweep

    def run(setting: "Setting") -> "Section":
        if name == "sampling":
            return sampling.run(setting, sampling.QUICK if quick else sampling.FULL)
        if name == "grpo":
            return grpo_step.run(setting, grpo_step.QUICK if quick else grpo_step.FULL)
        if name == "extraction":
            return extraction.run(setting, extraction.QUICK if quick else extraction.FULL)
        if name == "scaling":
            return scaling.run(setting, scaling.QUICK if quick else scaling.FULL)
        return sweep.run(setting, sweep.QUICK if quick else sweep.FULL)

    return run


if __name__ == "__main__":
    main()
