"""The vLLM server: steered requests against unsteered ones, a sweep against ways without it, and seconds per weight sync."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.grpo_case import Sizes as Model
from bench.grpo_case import described, smollm2
from bench.serving_models import PROMPT_TOKENS, RANDOM, Served, build
from bench.serving_requests import REQUESTS, SAME_SHARE, Load
from bench.serving_server import MODES, running, vllm_version
from bench.serving_sweep import COMPLETIONS, WEIGHTS, Sweep
from bench.serving_sync import HEADINGS, sync
from bench.setting import Setting
from bench.table import Row, Section
from steerlift.records.progress import say


@dataclass(frozen=True)
class Sizes:
    """What one model is measured with: `new_tokens` of each request at once, and the shape of the sweep.

    The requests are measured in every one of `modes`, sweep and syncs in the first. 0 problems: syncs only.
    """

    model: Model = RANDOM
    modes: tuple[str, ...] = tuple(MODES)
    new_tokens: int = 64
    turns: int = 7
    problems: int = 40
    length: int = 48
    sweeps: int = 2
    syncs: int = 5
    greedy: int = 16


EMBEDDED = Sizes(model=Model(), modes=("compiled",), problems=0)
# Some thirty times slower: less of everything, in one mode.
LARGE = Sizes(modes=("compiled",), new_tokens=16, turns=5, problems=4, length=16, greedy=8)
FULL = (EMBEDDED, Sizes())
QUICK = (Sizes(modes=("eager",), new_tokens=2, turns=1, problems=2, length=2, sweeps=1, syncs=1, greedy=2),)


@dataclass
class Measured:
    """What has come together so far: rows of requests and sweeps, lines of syncs, what agreed and which models there were."""

    requests: list[Row] = field(default_factory=list)
    sweeps: list[Row] = field(default_factory=list)
    syncs: list[list[str]] = field(default_factory=list)
    same: dict[str, list[str]] = field(default_factory=lambda: {"requests": [], "sweeps": [], "syncs": []})
    models: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)


def run(setting: Setting, cases: Sequence[Sizes], vllm: Path) -> list[Section]:
    """Starts one server after the other, by the interpreter `vllm`, and measures on each what its case asks for."""
    if setting.smollm2 is not None:
        model = smollm2(setting.smollm2)
        cases = [*cases, replace(LARGE, model=model) if setting.full else replace(cases[0], model=model)]
    measured = Measured()
    with TemporaryDirectory() as scratch:
        for case in cases:
            served = build(case.model, setting, Path(scratch) / case.model.name)
            measured.models.append(f"{served.name}: {described(served.model)}")
            for mode in case.modes:
                _measure(case, served, mode, setting, vllm, measured)
    return _sections(measured, cases, vllm_version(vllm))


def _measure(case: Sizes, served: Served, mode: str, setting: Setting, vllm: Path, measured: Measured) -> None:
    name = f"{served.name}, {mode}"
    say(f"= {name}: starting the server")
    with running(vllm, served, mode) as server:
        measured.starts.append(f"{name} {server.seconds:.0f} s")
        if case.problems:
            say(f"= {name}: {REQUESTS} requests at once")
            load = Load(served, server, case.new_tokens, setting.seed)
            measured.same["requests"].append(f"{load.check(case.greedy)} requests ({name})")
            measured.requests += load.rows(name, case.turns, setting.aim(0.95))
        if mode != case.modes[0]:
            return
        if case.problems:
            say(f"= {name}: sweep")
            sweep = Sweep(served, server, case.problems, case.length, setting.seed)
            measured.same["sweeps"].append(f"{sweep.check()} pairs ({name})")
            measured.sweeps += sweep.rows(name, case.sweeps)
        say(f"= {name}: syncs")
        cells, same = sync(served, server, name, case.syncs, setting.seed)
        measured.syncs.append(cells)
        measured.same["syncs"].append(f"{same} prompts ({name})")


def _sections(measured: Measured, cases: Sequence[Sizes], version: str) -> list[Section]:
    least, most = PROMPT_TOKENS
    stop = f"checked in this run; less than {SAME_SHARE:.0%} would stop it"
    same = {name: ", ".join(found) for name, found in measured.same.items()}
    asked = [case for case in cases if case.problems]
    new_tokens = ", ".join(f"{case.new_tokens} ({case.model.name})" for case in asked)
    lengths = ", ".join(f"{case.length} ({case.model.name})" for case in asked)
    requests = Section(
        "Steered requests against unsteered ones",
        [
            f"`steerlift serve --dtype float32` with vLLM {version} and no other options but, where it says eager, "
            "--enforce-eager; compiled is its default. Server and client run on this machine, the server with as many threads "
            "as torch has here; CPU seconds would be those of the client alone and are left out. Models: "
            f"{'; '.join(measured.models)}. Started in: {', '.join(measured.starts)}.",
            f"{REQUESTS} requests at once on one server in turns: unsteered, each with a weight of its own ({REQUESTS} "
            "configurations), all with one weight. `ours` is steered. The vectors are random, at every layer. Prompts of "
            f"{least} to {most} random tokens and random numbers are new in every turn and the same for all three; new tokens "
            f"of each request, with ignore_eos, at temperature 1: {new_tokens}.",
        ],
        f"at temperature 0 the server under {REQUESTS} weights gives the same tokens as LocalSampler for {same['requests']}; "
        f"{stop}.",
        measured.requests,
    )
    sweeps = Section(
        "Sweep through the server",
        [
            f"Random prompts of {least} to {most} tokens, {COMPLETIONS} completions each, under the weights "
            f"{', '.join(map(str, WEIGHTS))}, at temperature 1; no completion ends, so all ways make the same number of "
            f"tokens: {lengths}. Ours asks everything as one stream of requests (RemoteSampler); LocalSampler takes at most "
            "1,024 rows at once; transformers' generate runs one batch after the other, one per weight, with hooks, repeated "
            "rows, top_k=0 and top_p=1. RemoteSampler and LocalSampler also put out logprobs and draw by a seed per "
            "completion. The models are loaded before.",
        ],
        f"at temperature 0 the server gives the same tokens as LocalSampler and as generate for {same['sweeps']} of prompt "
        f"and weight; {stop}.",
        measured.sweeps,
    )
    syncs = Section(
        "Weight sync",
        [
            "save_weights writes the model's float32 weights, tied embeddings once, as a file in memory; give_weights has the "
            "server load them, its prefix cache reset, while no request is under way. Medians and, in brackets, the least and "
            "the largest, after one sync to warm up.",
        ],
        "the server was given other weights than it had started with; at temperature 0 it then gave the tokens that "
        f"LocalSampler gives with them for {same['syncs']}; {stop}.",
        table=[HEADINGS, *measured.syncs],
    )
    return [requests, sweeps, syncs]
