"""The command line: one command with a verb per stage; each verb's options are one frozen config of its room.

The rooms that do the work are imported only once the options have been read, so `--help` imports no torch.
"""

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from steerlift.commands.cores import share_cores
from steerlift.commands.demo_config import DemoConfig
from steerlift.commands.launch import start_asked_processes
from steerlift.commands.memory import keep_freed_memory
from steerlift.commands.sole_use import sole_use
from steerlift.evaluation.choose_config import ChooseConfig
from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.search_config import SearchConfig
from steerlift.exports.config import ExportConfig
from steerlift.exports.hub_config import PullConfig, PushConfig
from steerlift.extraction.config import ExtractConfig
from steerlift.extraction.inspect_config import InspectConfig
from steerlift.play.config import PlayConfig
from steerlift.records.errors import CheckpointError, NotFiniteError, OutOfMemoryError, SteerliftError
from steerlift.records.progress import is_main_process, say
from steerlift.report.config import PlotConfig
from steerlift.report.report_config import ReportConfig
from steerlift.serving.config import ServeConfig
from steerlift.training.config import TrainConfig
from steerlift.training.learn_config import LearnConfig


def _demo(config: DemoConfig) -> None:
    from steerlift.commands.demo import demo

    demo(config)


def _choose(config: ChooseConfig) -> None:
    from steerlift.evaluation.choose import choose
    from steerlift.report.tables import print_chosen

    chosen = choose(config)
    print_chosen(chosen.histogram, chosen.chosen, chosen.counts, chosen.paths)


def _train(config: TrainConfig) -> None:
    from steerlift.report.tables import print_training
    from steerlift.training.train import train

    checkpoint = train(config)
    if is_main_process():
        print_training(config.output_dir, checkpoint)


def _learn(config: LearnConfig) -> None:
    from steerlift.report.tables import print_training
    from steerlift.training.learn import learn, learned_path

    learn(config)
    if is_main_process():
        print_training(config.output_dir, learned_path(config.output_dir))


def _extract(config: ExtractConfig) -> None:
    from steerlift.extraction.extract import extract
    from steerlift.report.tables import print_layers

    extraction = extract(config)
    print_layers(extraction.layers, [config.output_path, extraction.info_path])


def _inspect(config: InspectConfig) -> None:
    from steerlift.extraction.inspect import inspect
    from steerlift.report.anatomy_tables import print_inspection

    print_inspection(inspect(config), [config.json_path(), config.picture_path()])


def _evaluate(config: EvaluateConfig) -> None:
    from steerlift.evaluation.evaluate import evaluate
    from steerlift.records.runs import completions_path
    from steerlift.report.tables import print_results

    results = evaluate(config)
    print_results(results, [config.output_path, completions_path(config.output_path)])


def _search(config: SearchConfig) -> None:
    from steerlift.commands.search import run_search

    run_search(config)


def _plot(config: PlotConfig) -> None:
    from steerlift.report.plots import plot

    print(plot(config))


def _report(config: ReportConfig) -> None:
    from steerlift.report.page import write_page
    from steerlift.report.tables import print_paths

    print_paths([write_page(config, {verb: config_type for verb, (config_type, _) in _VERBS.items()})])


def _export(config: ExportConfig) -> None:
    from steerlift.exports.export import export
    from steerlift.report.tables import print_lines, print_paths

    exported = export(config)
    print_lines(exported.notes)
    print_paths([exported.path])


def _push(config: PushConfig) -> None:
    from steerlift.exports.hub import push
    from steerlift.report.tables import print_lines

    print_lines([push(config)])


def _pull(config: PullConfig) -> None:
    from steerlift.exports.hub import pull
    from steerlift.report.tables import print_lines, print_paths

    pulled = pull(config)
    print_lines(pulled.notes)
    print_paths([pulled.path])


def _play(config: PlayConfig) -> None:
    from steerlift.play.play import play

    play(config)


def _serve(config: ServeConfig) -> None:
    from steerlift.serving.server import serve

    serve(config)


_VERBS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "choose": (ChooseConfig, _choose),
    "train": (TrainConfig, _train),
    "extract": (ExtractConfig, _extract),
    "learn": (LearnConfig, _learn),
    "inspect": (InspectConfig, _inspect),
    "evaluate": (EvaluateConfig, _evaluate),
    "search": (SearchConfig, _search),
    "plot": (PlotConfig, _plot),
    "report": (ReportConfig, _report),
    "export": (ExportConfig, _export),
    "push": (PushConfig, _push),
    "pull": (PullConfig, _pull),
    "play": (PlayConfig, _play),
    "serve": (ServeConfig, _serve),
    "demo": (DemoConfig, _demo),
}


_COMPUTING = (_choose, _train, _learn, _extract, _inspect, _evaluate, _search, _export, _play, _demo)

# What may happen to one of several processes alone; the user's mistakes are found by all of them.
_OF_ONE_PROCESS = (CheckpointError, NotFiniteError, OutOfMemoryError)


def main() -> int:
    """`steerlift <verb> ...`: the console command. Returns the exit code."""
    return guarded(lambda: _dispatch(sys.argv[1:]))


def run_verb(verb: str) -> int:
    """One verb with its options from the command line, for the scripts named as in the original."""
    config_type, _ = _VERBS[verb]
    return guarded(lambda: _run(_parse(config_type, sys.argv[1:])))


def _dispatch(arguments: Sequence[str]) -> None:
    subcommands: Any = None
    for verb, (config_type, _) in _VERBS.items():
        annotated = Annotated[config_type, tyro.conf.subcommand(verb)]  # type: ignore[valid-type]
        subcommands = annotated if subcommands is None else subcommands | annotated
    _run(_parse(subcommands, arguments, prog="steerlift"))


def _parse(options: Any, arguments: Sequence[str], prog: str | None = None) -> Any:  # noqa: ANN401 - tyro's own types
    """The config of the command line. A config's own refusal of its values is raised as it is, in one line.

    tyro would draw a box around it, so what it says is held back until it is clear whose refusal it was.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as refusal:
        cause: BaseException | None = refusal
        while cause is not None:
            if isinstance(cause, SteerliftError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        sys.stderr.write(said.getvalue())
        raise


def _run(config: object) -> None:
    run = next(run for config_type, run in _VERBS.values() if type(config) is config_type)
    if run in (_train, _learn):
        start_asked_processes()
    if run in _COMPUTING:
        share_cores()
        keep_freed_memory()
    with sole_use(config):
        run(config)


def guarded(action: Callable[[], None]) -> int:
    """Runs the action; the user's own mistakes become one line and exit code 2, Ctrl-C exit code 130.

    A reader that leaves, as `| head` does, is no mistake: exit code 141, as a shell has it.
    """
    try:
        try:
            action()
        finally:
            print(end="", flush=True)  # unlike sys.stdout.flush(), nothing where there is no stdout
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 141
    except SteerliftError as error:
        say(f"error: {error}", of_one_process=isinstance(error, _OF_ONE_PROCESS))
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0


def _reader_left() -> bool:
    """Whether nobody reads our output any more; if so, what is left of it goes nowhere instead of failing again at exit."""
    output = select.poll()
    output.register(sys.stdout, 0)  # that the other end is closed is reported without being asked for
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
