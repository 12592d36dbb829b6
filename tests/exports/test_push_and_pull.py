"""push and pull: the folder that is uploaded, and the way there and back against a small hub on localhost.

The client is the hub's own, in processes of its own, since it reads its settings once. Large files go by git LFS: the hub's
newer way (Xet) ends in a storage of its own that cannot stand in a test.
"""

import base64
import hashlib
import http.server
import json
import subprocess
import sys
import threading

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from launched import environment
from test_model_card import METADATA, results

from steerlift.commands.main import main
from steerlift.exports.hub import push
from steerlift.exports.hub_config import PushConfig
from steerlift.records.errors import InputError
from steerlift.records.seen import SEEN
from steerlift.steering.vectors import SteeringVectors

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.fixture
def files(tmp_path):
    """Vectors, results and figure, as a pipeline leaves them."""
    layers = {layer: torch.randn(64) for layer in (0, 2)}
    (tmp_path / "results.json").write_text(json.dumps(results()))
    (tmp_path / "figure.png").write_bytes(PNG)
    SteeringVectors(layers, METADATA).save(tmp_path / "v.safetensors")
    return tmp_path


def test_the_folder_that_would_be_uploaded(files):
    options = {"vectors": files / "v.safetensors", "results": files / "results.json", "figure": files / "figure.png"}
    said = push(PushConfig("me/tiny-vectors", **options, dry_run=files / "folder"))

    assert said == f"wrote {files / 'folder'}, which a push uploads to me/tiny-vectors"
    written = sorted(path.name for path in (files / "folder").iterdir())
    assert written == ["README.md", "config.json", "figure.png", "vectors.gguf", "vectors.safetensors"]
    was = SteeringVectors.load(files / "v.safetensors")
    now = SteeringVectors.load(files / "folder/vectors.safetensors")
    assert now.metadata == was.metadata
    assert all(torch.equal(now.layers[layer], was.layers[layer]) for layer in (0, 2))
    assert list(SteeringVectors.load(files / "folder/vectors.gguf").layers) == [2]
    assert (files / "folder/figure.png").read_bytes() == PNG
    config = json.loads((files / "folder/config.json").read_text())
    scores = {name: config["evaluation"][name]["pass_at_1"] for name in ("base", "steered", "finetuned")}
    assert scores == {"base": 20.0, "steered": 65.0, "finetuned": 80.0}
    assert config["evaluation"]["weight_chosen_on_dev"]
    assert (config["base_model"], config["method"], config["weight"]) == ("tiny/base", "increments", 1.0)
    assert (config["layers"], config["hidden_size"]) == ([0, 2], 64)
    assert ModelCard.load(files / "folder/README.md").data.base_model == "tiny/base"


def test_no_folder_of_this_machine_is_published(files, monkeypatch):
    (files / "home/base").mkdir(parents=True)
    monkeypatch.chdir(files)
    places = {"base_model": "home/base", "finetuned_model": str(files / "tuned"), "problems": f"9 of {files}/p.jsonl, train"}
    SteeringVectors({1: torch.ones(4)}, {**places, SEEN: "0a" * 300, "source": "x"}).save(files / "own.safetensors")

    push(PushConfig("me/own", files / "own.safetensors", dry_run=files / "folder"))

    metadata = SteeringVectors.load(files / "folder/vectors.safetensors").metadata
    assert metadata == {
        "base_model": "base", "finetuned_model": "tuned", "problems": "9 of p.jsonl, train", SEEN: "0a" * 300,
    }  # fmt: skip
    assert ModelCard.load(files / "folder/README.md").data.base_model is None
    for path in (files / "folder").iterdir():
        assert str(files).encode() not in path.read_bytes()
        assert b"home/base" not in path.read_bytes()

    push(PushConfig("me/own", files / "own.safetensors", base_model="org/base", dry_run=files / "named"))
    assert ModelCard.load(files / "named/README.md").data.base_model == "org/base"
    assert SteeringVectors.load(files / "named/vectors.safetensors").metadata["base_model"] == "org/base"


def test_what_llama_cpp_cannot_hold_is_left_out_and_said(files, capsys):
    SteeringVectors({0: torch.ones(4)}, METADATA).save(files / "low.safetensors")
    push(PushConfig("me/low", files / "low.safetensors", dry_run=files / "folder"))
    assert not (files / "folder/vectors.gguf").exists()
    assert "vectors.gguf is left out: " in capsys.readouterr().err
    assert "llama" not in (files / "folder/README.md").read_text()


def test_slips_are_one_line(files, monkeypatch, capsys):
    (files / "there").mkdir()
    monkeypatch.chdir(files)
    slips = [
        (["push", "vectors"], "repository vectors: expected owner/name"),
        (["push", "me/a--b"], "repository me/a--b: expected owner/name"),
        (["push", "me/v", "--dry_run", "there"], "--dry_run there: it is there already"),
        (["push", "me/v", "--results", "absent.json"], "--results absent.json: no such file"),
        (["push", "me/v", "--figure", "results.json"], "--figure results.json: expected a .png"),
        (["push", "me/v", "--base_model", "./there"], "--base_model ./there: expected a hub id"),
        (["push", "me/v", "--weight", "nan"], "--weight nan"),
        (["push", "me/v"], "push me/v: HF_HUB_OFFLINE is set"),
        (["pull", "me/v"], "pull me/v: HF_HUB_OFFLINE is set and no copy is cached"),
        (["pull", "me/v", "--output_path", "v.bin"], "--output_path v.bin: expected a name that ends in .safetensors"),
    ]
    for (verb, *arguments), reason in slips:
        vectors = ["--vectors", "v.safetensors"] if verb == "push" else []
        monkeypatch.setattr("sys.argv", ["steerlift", verb, *arguments, *vectors])
        assert main() == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"error: {reason}")


def test_no_token_and_no_hub_id_are_one_line(files, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(files / "absent"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"push me/v: no token for the hub.*hf auth login"):
        push(PushConfig("me/v", files / "v.safetensors"))
    monkeypatch.setenv("HF_TOKEN", "writer")
    for base_model, reason in ((str(files), "name a folder of this machine"), ("", "do not say what model")):
        SteeringVectors({1: torch.ones(4)}, {"base_model": base_model}).save(files / "own.safetensors")
        with pytest.raises(InputError, match=f"{reason}.*--base_model owner/name"):
            push(PushConfig("me/v", files / "own.safetensors"))


class SmallHub:
    """Repositories and large files, and who may do what: the token `writer` all in me/, `reader` nothing but read."""

    def __init__(self):
        self.files = {}
        self.large = {}
        self.commits = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.handle_with(hub.get)

            do_HEAD = do_GET

            def do_POST(self):
                self.handle_with(hub.post)

            def do_PUT(self):
                self.handle_with(hub.put)

            def handle_with(self, answer):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                status, content, headers = answer(self.path.partition("?")[0], body, token)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def commit(self):
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def get(self, path, _, token):
        if token not in ("", "reader", "writer"):
            return 401, {}, {"X-Error-Message": "Invalid credentials in Authorization header"}
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        files = self.files.get(f"{owner}/{name}")
        if files is None:
            return 404, {}, {"X-Error-Code": "RepoNotFound"}
        if not rest:
            return 200, {"id": f"{owner}/{name}", "sha": self.commit}, {}
        action, revision, *place = rest
        if revision not in ("main", self.commit):
            return 404, {}, {"X-Error-Code": "RevisionNotFound"}
        if action == "tree":
            listed = [{"type": "file", "path": path, "size": len(content), "oid": "0" * 40} for path, content in files.items()]
            return 200, listed, {}
        content = files.get("/".join(place))
        headers = {"X-Repo-Commit": self.commit}
        if content is None:
            return 404, {}, {**headers, "X-Error-Code": "EntryNotFound"}
        return 200, content, {**headers, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}

    def put(self, path, body, _):
        assert path == f"/large/{hashlib.sha256(body).hexdigest()}"
        self.large[path.rpartition("/")[2]] = body
        return 200, {}, {}

    def post(self, path, body, token):
        if token not in ("reader", "writer"):
            return 401, {}, {"X-Error-Message": "Invalid credentials in Authorization header"}
        content = [json.loads(line) for line in body.splitlines()]
        if path == "/api/validate-yaml":
            known = ModelCard(content[0]["content"]).data.license in (None, "mit")
            errors = [] if known else [{"message": '"license" must be one of [mit, ...]'}]
            return 200 if known else 400, {"warnings": [], "errors": errors}, {}
        if path == "/api/repos/create":
            owner, name = content[0]["organization"], content[0]["name"]
            if token == "reader" or owner != "me":
                return 403, {"error": "no"}, {"X-Error-Message": "You don't have the rights to create a model"}
            there = f"{owner}/{name}" in self.files
            self.files.setdefault(f"{owner}/{name}", {".gitattributes": b""})
            return 409 if there else 200, {"url": f"{self.url}/{owner}/{name}"}, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.url}/large/{wanted['oid']}"}}}
                for wanted in content[0]["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}, {}
        if "/preupload/" in path:
            modes = [
                {"path": file["path"], "uploadMode": "regular" if file["path"].endswith((".md", ".json")) else "lfs"}
                for file in content[0]["files"]
            ]
            return 200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]}, {}
        assert path.endswith("/commit/main")
        return self.take_commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), content)

    def take_commit(self, name, operations):
        for operation in operations:
            key, value = operation["key"], operation["value"]
            if key == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                self.files[name][value["path"]] = self.large[value["oid"]]
            elif key == "deletedFile":
                del self.files[name][value["path"]]
        self.commits.append(operations[0]["value"]["summary"])
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{self.commit}", "commitOid": self.commit}, {}


@pytest.fixture
def hub():
    small = SmallHub()
    threading.Thread(target=small.server.serve_forever, args=(0.05,), daemon=True).start()
    yield small
    small.server.shutdown()
    small.server.server_close()


def python(hub, folder, *command, said="", **settings):
    """Runs `python command...` with this hub as the only one, a cache of its own in `folder` and `said` on stdin."""
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "writer", "HF_HUB_DISABLE_XET": "1", **settings}
    kept = {name: value for name, value in environment().items() if name not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, cwd=folder, timeout=240, check=False, env=kept | told, input=said,
    )  # fmt: skip


@pytest.mark.e2e
def test_pushed_and_pulled_by_the_command_line(hub, files):
    given = ["me/tiny-vectors", "--vectors", "v.safetensors", "--results", "results.json"]

    first = python(hub, files, "-m", "steerlift", "push", *given, "--figure", "figure.png")

    assert first.returncode == 0, first.stderr
    assert first.stdout == f"pushed v.safetensors to {hub.url}/me/tiny-vectors\n"
    pushed = dict(hub.files["me/tiny-vectors"])
    assert sorted(pushed) == [
        ".gitattributes", "README.md", "config.json", "figure.png", "vectors.gguf", "vectors.safetensors",
    ]  # fmt: skip
    assert pushed["figure.png"] == PNG
    assert len(hub.commits) == 1

    pull = ["-m", "steerlift", "pull", given[0], "--output_path", "pulled.safetensors"]
    pulled = python(hub, files, *pull, HF_TOKEN="reader")

    assert pulled.returncode == 0, pulled.stderr
    assert (files / "pulled.safetensors").read_bytes() == pushed["vectors.safetensors"]
    was, now = (SteeringVectors.load(files / name) for name in ("v.safetensors", "pulled.safetensors"))
    assert all(torch.equal(now.layers[layer], was.layers[layer]) for layer in (0, 2))
    assert pulled.stdout.splitlines() == [
        "base model: tiny/base", "method: increments", "layers: 0, 2", "hidden size: 64", "weight: 1.0",
        "evaluation: pass@1 %: base 20.0, steered 65.0, finetuned 80.0; 20 problems of math (test), 2 completions each, "
        "temperature 0.9, at most 48 tokens, seed 5",
        "wrote pulled.safetensors",
    ]  # fmt: skip

    (files / "pulled.safetensors").unlink()
    cached = python(hub, files, *pull, HF_HUB_OFFLINE="1")
    assert (cached.returncode, cached.stdout) == (0, pulled.stdout), cached.stderr
    assert (files / "pulled.safetensors").read_bytes() == pushed["vectors.safetensors"]

    again = python(hub, files, "-m", "steerlift", "push", *given)

    assert again.returncode == 0, again.stderr
    assert len(hub.commits) == 2
    assert "figure.png" not in hub.files["me/tiny-vectors"]
    assert "figure.png" not in hub.files["me/tiny-vectors"]["README.md"].decode()


EACH = """
import os, sys
from steerlift.commands.main import main
for line in sys.stdin.read().splitlines():
    os.environ["HF_TOKEN"], *sys.argv = line.split()
    print(main())
"""


@pytest.mark.e2e
def test_what_the_hub_refuses_is_one_line(hub, files):
    hub.files["me/other"] = {"model.bin": b"pickle"}
    hub.files["me/odd"] = {"vectors.safetensors": b"no tensors"}
    cases = {
        "reader steerlift push me/new --vectors v.safetensors": "push me/new: the token may not do this (403)",
        "writer steerlift push you/new --vectors v.safetensors": "push you/new: the token may not do this (403)",
        "stale steerlift push me/new --vectors v.safetensors": "push me/new: the hub knows no such repository, or not this",
        "writer steerlift push me/new --vectors v.safetensors --license none": "push me/new: the hub refuses: Invalid metadata",
        "reader steerlift pull me/absent": "pull me/absent: the hub knows no such repository",
        "reader steerlift pull me/other": "pull me/other: the repository has no vectors.safetensors",
        "reader steerlift pull me/odd --revision v2": "pull me/odd: the repository has no such revision",
        "reader steerlift pull me/odd": "vectors.safetensors is not a safetensors file",
    }

    done = python(hub, files, "-c", EACH, said="\n".join(cases))

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2"] * len(cases)
    lines = [line for line in done.stderr.splitlines() if "vectors.gguf: layer 0" not in line]
    for line, expected in zip(lines, cases.values(), strict=True):
        assert line.startswith("error: ")
        assert expected in line
    assert not (files / "vectors.safetensors").exists()
    assert not hub.commits


@pytest.mark.e2e
def test_what_a_stranger_pushed_is_shown_as_text(hub, files):
    SteeringVectors({1: torch.ones(4)}, {"method": "\x1b[2Jcleared"}).save(files / "odd.safetensors")
    vectors = {"vectors.safetensors": (files / "odd.safetensors").read_bytes()}
    hub.files["me/list"] = {**vectors, "config.json": b'["no object"]'}
    hub.files["me/text"] = {**vectors, "config.json": b'{"evaluation": "all right", "weight": "\\u001b[1m2"}'}
    hub.files["me/bare"] = vectors
    said = "\n".join(f"reader steerlift pull {name} --output_path got.safetensors" for name in hub.files)

    done = python(hub, files, "-c", EACH, said=said)

    about = ["method: [2Jcleared", "layers: 1", "hidden size: 4"]
    end = ["evaluation: none comes with them", "wrote got.safetensors", "0"]
    assert done.stdout.splitlines() == [*about, *end, *about, "weight: [1m2", *end, *about, *end], done.stderr


def test_a_hub_that_is_not_there_is_one_line(files, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "writer")
    with pytest.raises(InputError, match=r"push me/v: the hub cannot be reached: .*refused; check the connection"):
        push(PushConfig("me/v", files / "v.safetensors"))
