"""Against a small server that streams; a real vLLM server has been tried by hand, as docs/play.md says."""

import json
import threading

import pytest
from sampling.small_server import END, Handler, SmallServer, status
from tiny_models import SpellingTokenizer

from steerlift.play.engine import Engine
from steerlift.play.streamed import NoPatience, StreamedSampler
from steerlift.records.errors import InputError, ServerError
from steerlift.records.types import Problem
from steerlift.sampling.sampler import Request, SamplingOptions
from steerlift.sampling.server import Server

OPTIONS = SamplingOptions(1.0, 4)
REQUEST = Request((5, 6), (7,), 0.5)


class Spelling(SpellingTokenizer):
    chat_template = None
    bos_token = None

    def decode(self, ids, skip_special_tokens):
        return self.batch_decode([list(ids)], skip_special_tokens)[0]

    def encode(self, text, add_special_tokens):
        return [5, 6]


@pytest.fixture
def small():
    with SmallServer().running() as server:
        yield server


def sampler_at(small):
    return StreamedSampler([Server(small.url, "key")], "model", Spelling(), [END], "vector", NoPatience())


def chunk(ids, reason=None):
    choice = {"index": 0, "text": "", "token_ids": ids, "finish_reason": reason}
    return {"choices": [{**choice, "logprobs": {"token_logprobs": [-0.5] * len(ids)} if ids else None}]}


def streams(*events, before_each=lambda index: None):
    """A server that writes the events one by one."""

    def answer(handler: Handler, body):
        handler.small.bodies.append(body)
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        for index, event in enumerate(events):
            before_each(index)
            text = event if isinstance(event, str) else json.dumps(event)
            handler.wfile.write(f"data: {text}\n\n".encode())
            handler.wfile.flush()
        handler.close_connection = True

    return answer


WHOLE = (chunk([9]), chunk([8, 7]), chunk([END], "stop"), {"choices": [], "usage": {}}, "[DONE]")


def test_tokens_are_heard_as_they_come_and_the_completion_is_whole(small):
    heard, second_may_come = [], threading.Event()

    def on_token(request, token_id, logprob):
        heard.append((request, token_id, logprob))
        second_may_come.set()

    def wait(index):
        assert index == 0 or second_may_come.wait(10)  # the first must have been heard by then

    small.faults.append(streams(*WHOLE, before_each=wait))
    done = []
    ((completion,),) = sampler_at(small).sample([REQUEST], OPTIONS, done.append, on_token)
    assert heard == [(REQUEST, token, -0.5) for token in (9, 8, 7, END)]
    assert completion.token_ids == (9, 8, 7, END)
    assert (completion.text, completion.truncated, sum(done)) == ("9 8 7", False, 1)
    (body,) = small.bodies
    assert (body["stream"], body["steering"]) == (True, {"vector": "vector", "weight": 0.5})


def test_a_completion_of_the_longest_length_is_truncated(small):
    small.faults.append(streams(chunk([9, 8, 7]), chunk([6]), chunk([], "length"), "[DONE]"))
    ((completion,),) = sampler_at(small).sample([REQUEST], OPTIONS)
    assert completion.truncated


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (streams(chunk([9]), {"error": {"message": "out of memory"}}), ServerError, "out of memory"),
        (streams(chunk([9]), chunk([8], "length"), "[DONE]"), ServerError, "no completion .2 of 4 tokens, it ended by length"),
        (streams(chunk([9]), "[DONE]"), ServerError, "no completion .1 of 4 tokens, it ended by None"),
        (streams("{", "[DONE]"), ServerError, "no completion .JSONDecodeError"),
        (status(400), InputError, "answered 400: out of sorts"),
        (status(500), ServerError, "answered 500: out of sorts"),
    ],
)
def test_what_is_no_completion_is_said_at_once(small, fault, error, said):
    small.faults.append(fault)
    with pytest.raises(error, match=said):
        sampler_at(small).sample([REQUEST], OPTIONS)


def test_a_stopped_job_leaves_the_server_in_the_middle(small):
    engine = Engine(sampler_at(small), Spelling(), OPTIONS)
    go_on = threading.Event()

    def wait(index):
        assert index == 0 or go_on.wait(10)

    small.faults.extend(streams(*WHOLE, before_each=wait) for _ in range(2))
    job = engine.answer(Problem("What?", "9"), 0.5, seed=1)
    while not (job.base.tokens and job.steered.tokens):
        assert not job.over
    job.stop()
    go_on.set()
    job.future.result(timeout=30)
    assert job.state == "stopped"
    assert job.base.graded is None
    engine.close()
