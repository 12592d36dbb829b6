"""The server's own paths, /steerlift/...: what is served, and steering vectors put, listed and deleted while it runs."""

from pathlib import Path
from typing import Any

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.progress import say
from steerlift.records.provenance import package_version
from steerlift.serving.plugin import STEERED_ARCHITECTURES
from steerlift.serving.private import read_settings
from steerlift.serving.steering_field import canonical
from steerlift.serving.tokenizer_digest import tokenizer_digest
from steerlift.serving.vector_store import VectorStore, parse_vectors
from steerlift.serving.vllm_private import Served, served, version_warning, vllm_version
from steerlift.steering.models import architecture

PREFIX = "/steerlift"
MOST_UPLOAD_BYTES = 256 * 2**20
_VECTORS = f"{PREFIX}/vectors"

Answer = tuple[int, dict[str, Any]]
"""HTTP status and JSON body."""


class Control:
    """Answers for one server. `app` is always vLLM's application, whose state holds the model once it is ready."""

    def __init__(self, folder: Path) -> None:
        self._store = VectorStore(folder)
        self._weight_transfer = read_settings(folder)["weight_transfer"]
        self._served: Served | None = None
        if warning := version_warning():
            say(warning)

    def canonical(self, app: Any, field: Any) -> str | None:  # noqa: ANN401 - vLLM's application, any JSON value
        """The canonical form of a request's `steering`. Raises InputError, also for a model that cannot be steered."""
        model = self._model(app)
        if model.architecture not in STEERED_ARCHITECTURES:
            raise InputError(
                f"steering: {model.architecture} cannot be steered here; expected one of {', '.join(STEERED_ARCHITECTURES)}"
            )
        return canonical(field, self._store.digest_of, int(model.config.num_hidden_layers))

    def answer(self, app: Any, method: str, path: str, body: bytes) -> Answer:  # noqa: ANN401 - vLLM's application
        """One request under /steerlift. Raises InputError for an upload that cannot be used."""
        if path == f"{PREFIX}/info" and method == "GET":
            return 200, self._info(self._model(app))
        if path == _VECTORS and method == "GET":
            return 200, {"vectors": self._store.names()}
        name = path.removeprefix(f"{_VECTORS}/")
        if name == path or not name:
            return 404, _no(f"{method} {path}: expected {PREFIX}/info, {_VECTORS} or {_VECTORS}/NAME")
        try:
            return self._vector(self._model(app), method, name, body)
        except MissingInputError as error:
            return 404, _no(str(error))

    def _vector(self, model: Served, method: str, name: str, body: bytes) -> Answer:
        if method == "PUT":
            digest = self._store.put(name, parse_vectors(body), model.config, model.names[0])
            return 200, {"name": name, "digest": digest}
        digest = self._store.digest_of(name)
        if method == "GET":
            return 200, {"name": name, "digest": digest}
        if method == "DELETE":
            self._store.forget(name)
            return 200, {"name": name, "deleted": True}
        return 405, _no(f"{method} {_VECTORS}/NAME: expected GET, PUT or DELETE")

    def _model(self, app: Any) -> Served:  # noqa: ANN401 - vLLM's application
        if self._served is None:
            self._served = served(app)
        return self._served

    def _info(self, model: Served) -> dict[str, Any]:
        return {
            "model": model.names[0],
            "architecture": architecture(model.config),
            "steerable": model.architecture in STEERED_ARCHITECTURES,
            "hidden_size": model.config.hidden_size,
            "layers": model.config.num_hidden_layers,
            "dtype": model.dtype,
            "max_model_len": model.max_model_len,
            "max_num_seqs": model.max_num_seqs,
            "tokenizer_digest": tokenizer_digest(model.tokenizer),
            "weight_transfer": self._weight_transfer,
            "vectors": self._store.names(),
            "versions": {"steerlift": package_version(), "vllm": vllm_version()},
        }


def _no(reason: str) -> dict[str, Any]:
    return {"error": {"message": reason, "type": "NotFoundError", "param": None, "code": 404}}
