"""One line that two processes compare to know that they mean the same text by the same token ids."""

import hashlib
import json
from typing import Any


def tokenizer_digest(tokenizer: Any) -> str:  # noqa: ANN401 - transformers is untyped
    """SHA-256 over every token and its id."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
