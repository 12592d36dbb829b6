"""`steerlift play`: loads the model, then serves the page on 127.0.0.1 until Ctrl-C."""

import socket

from steerlift.play.config import PlayConfig
from steerlift.play.engine import Engine
from steerlift.play.guard import Guard
from steerlift.play.samplers import make_sampler
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.records.errors import InputError, MissingDependencyError
from steerlift.records.progress import say
from steerlift.sampling.sampler import SamplingOptions
from steerlift.steering.apply import check_fit
from steerlift.steering.models import load_config
from steerlift.steering.vectors import SteeringVectors

HOST = "127.0.0.1"
LISTED_PROBLEMS = 50


def play(config: PlayConfig) -> None:
    """Serves the page. Raises MissingDependencyError without NiceGUI and InputError for a port that is in use."""
    try:
        from nicegui import app, ui
    except ImportError as error:
        raise MissingDependencyError("steerlift play needs NiceGUI: pip install 'steerlift[play]'") from error
    from steerlift.play.page import Page

    _check_port(config.port)
    vectors = SteeringVectors.load(config.steering_vectors_path)
    check_fit(load_config(config.base_model_name), vectors, config.base_model_name)
    problems = load_problems(config.problems, config.split, LISTED_PROBLEMS, config.seed, config.data_dir)
    few_shot = load_worked_examples(config.problems, config.few_shot, config.seed, config.data_dir)
    sampler, tokenizer = make_sampler(config, vectors)
    options = SamplingOptions(config.temperature, config.max_completion_length)
    engine = Engine(sampler, tokenizer, options, few_shot)

    def show_page() -> None:
        Page(engine, config, problems)

    app.add_middleware(Guard)
    app.on_startup(lambda: say(f"playing at http://{HOST}:{config.port} (Ctrl-C ends it)"))
    app.on_shutdown(engine.close)
    ui.run(
        show_page,
        host=HOST,
        port=config.port,
        title="steerlift play",
        dark=None,  # as the browser has it
        language="en-US",
        show=config.open_browser,
        reload=False,
        tailwind=False,
        show_welcome_message=False,
    )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"--port {port}: it cannot be used ({error.strerror}); name another") from error
