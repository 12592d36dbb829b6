"""Against a small hub of our own on localhost, in processes of their own: `datasets` reads its settings once."""

import gzip
import hashlib
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from steerlift.problems.load import load_problems

pytestmark = pytest.mark.e2e

DATA = Path(__file__).parent.parent / "data"
COMMIT = "a" * 40
CARD_WITH_CONFIGURATION = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
---
"""


def parquet(rows):
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def math_rows(split):
    lines = gzip.decompress((DATA / f"math/{split}.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["unique_id"].startswith("train/number_theory/711"):
            row["answer"] = ""
    return rows


def gsm8k_rows(split):
    return [
        {"question": f"{split} question {number}?", "answer": f"{number}+1080 = <<1>>1,08{number}\n#### 1,08{number}"}
        for number in range(5)
    ]


def entry(file, content, folder):
    """How a listing of `folder` shows `file`: itself, or the folder in between."""
    below, slash, _ = file.removeprefix(folder).lstrip("/").partition("/")
    if slash:
        return {"type": "directory", "path": f"{folder}/{below}".lstrip("/"), "oid": "0" * 40}
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@pytest.fixture(scope="module")
def repositories():
    def files(rows, folder):
        return {f"{folder}/{split}-00000-of-00001.parquet": parquet(rows(split)) for split in ("train", "test")}

    card = {"README.md": CARD_WITH_CONFIGURATION.encode()}
    return {
        "nlile/hendrycks-MATH-benchmark": files(math_rows, "data") | {"README.md": b"---\nlicense: mit\n---\n"},
        "openai/gsm8k": files(gsm8k_rows, "main") | card,
    }


@pytest.fixture(scope="module")
def hub(repositories):
    """The address of a hub that has the two data sets: metadata, file lists and files, as the real one answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.respond(*self.answer())

        do_HEAD = do_GET

        def respond(self, code, body, headers):
            self.send_response(code)
            for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer(self):
            path = self.path.partition("?")[0].removeprefix("/api").removeprefix("/datasets/")
            name = "/".join(path.split("/")[:2])
            files = repositories.get(name)
            action, _, place = path.removeprefix(name).removeprefix("/").partition("/")
            inside = place.partition("/")[2]
            if files is None:
                return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
            if action == "resolve" and inside in files:
                return 200, files[inside], {"ETag": f'"{hashlib.sha1(files[inside]).hexdigest()}"'}
            if action == "tree" and any(file.startswith(inside) for file in files):
                entries = [entry(file, content, inside) for file, content in files.items() if file.startswith(inside)]
                return 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}
            if action in ("", "revision"):
                info = {"id": name, "sha": COMMIT, "tags": [], "siblings": [{"rfilename": file} for file in files]}
                return 200, json.dumps(info).encode(), {"Content-Type": "application/json"}
            return 404, b"", {"X-Error-Code": "EntryNotFound"}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(code, home, **environment):
    """What `code` prints in a fresh process whose hub cache is `home`, as the JSON of its last line."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "STEERLIFT_DATA")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import json\n{code}"],
        capture_output=True, text=True, check=True, timeout=120,
        env=kept | {"HF_HOME": str(home), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"} | environment,
    )  # fmt: skip
    return json.loads(result.stdout.splitlines()[-1])


LOAD = """
from dataclasses import asdict
from steerlift.problems.load import load_problems
splits = {f"{source} {split}": [asdict(problem) for problem in load_problems(source, split)]
          for source in ("math", "gsm8k") for split in ("train", "dev", "test")}
from steerlift.problems import hub
hub.HUB_NAMES["gsm8k"] = ("openai/gone", None)
try:
    load_problems("gsm8k", "test")
except FileNotFoundError as error:
    splits["gone"] = str(error)
print(json.dumps(splits))
"""

FAIL = """
import sys, time
from steerlift.records.errors import MissingInputError
from steerlift.problems import hub
hub.PROBE_SECONDS = 0.3
import datasets
start = time.monotonic()
try:
    hub.load_from_hub("gsm8k", "test")
except MissingInputError as error:
    print(json.dumps([str(error), time.monotonic() - start, "torch" in sys.modules]))
"""

ADVICE = "; set STEERLIFT_DATA or --data-dir to a folder with gsm8k/train.jsonl.gz and gsm8k/test.jsonl.gz"


def failure(home, **environment):
    message, seconds, torch_is_there = run(FAIL, home, **environment)
    assert seconds < 10
    assert not torch_is_there
    start, middle, end = (
        "cannot get the data set openai/gsm8k (test) from the Hugging Face hub (",
        ") and no copy of it is cached",
        ADVICE,
    )
    assert message.startswith(start)
    assert message.endswith(middle + end)
    return message.removeprefix(start).removesuffix(middle + end)


def test_hub_gives_the_same_splits_as_local_files_and_its_cache_serves_when_it_is_gone(hub, tmp_path):
    splits = run(LOAD, tmp_path, HF_ENDPOINT=hub)
    message = splits.pop("gone")
    assert message.startswith("cannot get the data set openai/gone (test) from the Hugging Face hub (404 Client Error")
    assert message.endswith(ADVICE)
    local = {
        f"math {split}": [asdict(problem) for problem in load_problems("math", split, data_dir=DATA)]
        for split in ("train", "dev", "test")
    }
    assert {name: len(problems) for name, problems in splits.items()} == {
        "math train": 106, "math dev": 11, "math test": 40, "gsm8k train": 4, "gsm8k dev": 1, "gsm8k test": 5,
    }  # fmt: skip
    assert {name: problems for name, problems in splits.items() if name in local} == local
    by_id = {problem["unique_id"]: problem for name in splits for problem in splits[name]}
    assert by_id["train/number_theory/7115.json"]["answer"] == "0"
    assert by_id["gsm8k/test/3"] == {
        "problem": "test question 3?", "answer": "1083", "solution": "3+1080 = <<1>>1,083\n#### 1,083",
        "subject": "gsm8k", "level": None, "unique_id": "gsm8k/test/3",
    }  # fmt: skip
    cached = run(LOAD, tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert "refused) and no copy of it is cached" in cached.pop("gone")
    assert cached == splits


def test_offline_mode(tmp_path):
    assert "offline mode is enabled" in failure(tmp_path, HF_HUB_OFFLINE="1")


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reason = failure(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "timed out" in reason
