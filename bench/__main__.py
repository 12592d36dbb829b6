"""`python -m bench [sampling grpo learning ...] [--quick]`: all, not quick, are written to docs/performance.md.

`python -m bench serving`, which needs vLLM, is asked for by itself and written to docs/performance-serving.md.
"""

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

NAMES = ("sampling", "grpo", "learning", "extraction", "sweep", "scaling")
SERVING = "serving"
DOCUMENT = ROOT / "docs" / "performance.md"
SERVING_DOCUMENT = ROOT / "docs" / "performance-serving.md"
VLLM = ROOT / ".venv" / "vllm" / "bin" / "python"
# Where a machine keeps these is of no use elsewhere.
_PLACES = {"--smollm2": "FOLDER", "--vllm": "PYTHON"}


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
    chosen = [name for name in (*NAMES, SERVING) if name in (options.benchmarks or NAMES)]
    sections, busy = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = untrained_model(Path(scratch) / "base") if options.quick else trained_model()
        setting = Setting(folder, options.seed, full=not options.quick, smollm2=options.smollm2)
        for name in chosen:
            say(f"== {name}")
            busy[name] = busy_cores()
            sections += _benchmark(name, options)(setting)
    command = shlex.join(["python", "-m", "bench", *_shown(given)])
    title = "Performance of the server" if chosen == [SERVING] else "Performance"
    content = document(sections, options.seed, command, busy, title)
    print(content)
    written = DOCUMENT if chosen == list(NAMES) else SERVING_DOCUMENT if chosen == [SERVING] else None
    target: Path | None = options.output or (None if options.quick else written)
    if target is not None:
        with replacing(target) as temporary:
            temporary.write_text(content, encoding="utf-8")
        say(f"written to {target}")


def _options(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description="Measures ours against named alternatives.")
    parser.add_argument(
        "benchmarks", nargs="*", metavar="benchmark", help=f"any of {', '.join(NAMES)} (default: all), or {SERVING}"
    )
    parser.add_argument("--quick", action="store_true", help="smallest sizes, an untrained model, no memory: to try the code")
    parser.add_argument("--seed", type=int, default=0, help="seed of problems, weights and lengths")
    parser.add_argument(
        "--smollm2", metavar="FOLDER", type=Path, help="SmolLM2-135M-Instruct of recipes/smollm2.py, for grpo and serving"
    )
    parser.add_argument("--vllm", metavar="PYTHON", type=Path, default=VLLM, help="interpreter that has vLLM, for serving")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--output", type=Path, help=f"file to write; default: {DOCUMENT.relative_to(ROOT)} for a whole run, else none"
    )
    options = parser.parse_args(given)
    unknown = [name for name in options.benchmarks if name not in (*NAMES, SERVING)]
    if unknown:
        parser.error(f"got benchmark {unknown[0]!r}, expected {', '.join((*NAMES, SERVING))}")
    if options.smollm2 is not None and not (options.smollm2 / "config.json").is_file():
        parser.error(f"--smollm2 {options.smollm2} holds no model; python recipes/smollm2.py {options.smollm2} writes it")
    if SERVING in options.benchmarks:
        from bench.serving_server import vllm_version

        if not vllm_version(options.vllm):
            parser.error(f"--vllm {options.vllm} is no Python that has vLLM; make .venv/installed-vllm sets one up")
    return options


def _shown(given: Sequence[str]) -> list[str]:
    """The arguments as the document shows them, without places of this machine."""
    shown = [_PLACES.get(previous, part) for previous, part in zip(["", *given], given, strict=False)]
    for option, place in _PLACES.items():
        shown = [f"{option}={place}" if part.startswith(f"{option}=") else part for part in shown]
    return shown


def _benchmark(name: str, options: argparse.Namespace) -> "Callable[[Setting], list[Section]]":
    from bench import extraction, grpo_step, learning, sampling, scaling, serving, sweep

    quick = options.quick
    if name == SERVING:
        return lambda setting: serving.run(setting, serving.QUICK if quick else serving.FULL, options.vllm)

    def run(setting: "Setting") -> "Section":
        if name == "sampling":
            return sampling.run(setting, sampling.QUICK if quick else sampling.FULL)
        if name == "grpo":
            return grpo_step.run(setting, grpo_step.QUICK if quick else grpo_step.FULL)
        if name == "learning":
            return learning.run(setting, learning.QUICK if quick else learning.FULL)
        if name == "extraction":
            return extraction.run(setting, extraction.QUICK if quick else extraction.FULL)
        if name == "scaling":
            return scaling.run(setting, scaling.QUICK if quick else scaling.FULL)
        return sweep.run(setting, sweep.QUICK if quick else sweep.FULL)

    return lambda setting: [run(setting)]


if __name__ == "__main__":
    main()
