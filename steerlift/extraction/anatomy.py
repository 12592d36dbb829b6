"""What a steering vector looks like from outside: its direction beside other vectors, and the tokens that it speaks for.

Shapes: L layers, H hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerlift.records.errors import InputError
from steerlift.steering.models import Model, Tokenizer, decoder_body
from steerlift.steering.vectors import SteeringVectors


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token and how far a direction moves its logit."""

    id: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class TokensOfLayer:
    """The tokens that a layer's vector promotes most and suppresses most, the strongest first."""

    promoted: list[TokenScore]
    suppressed: list[TokenScore]


def layer_cosines(vectors: SteeringVectors) -> Tensor:
    """The cosine of every layer's vector with every other's, shape (L, L); 0 for a vector of zeros."""
    stacked_LH = torch.stack(list(vectors.layers.values())).double()
    return torch.cosine_similarity(stacked_LH[:, None], stacked_LH[None], dim=-1)


def cosines_with(vectors: SteeringVectors, other: SteeringVectors, name: str) -> dict[int, float]:
    """Layer index -> cosine, for the layers that both have; `name` is what an error calls the other.

    Raises InputError for another hidden size, or when no layer is in both.
    """
    if other.hidden_size != vectors.hidden_size:
        raise InputError(
            f"--others {name}: got vectors of hidden size {other.hidden_size}, expected {vectors.hidden_size}; "
            "give vectors of the same base model"
        )
    both = [index for index in vectors.layers if index in other.layers]
    if not both:
        raise InputError(
            f"--others {name}: got layers {', '.join(map(str, other.layers))}, expected some of "
            f"{', '.join(map(str, vectors.layers))}; give vectors of the same layers"
        )
    pairs = {index: (vectors.layers[index].double(), other.layers[index].double()) for index in both}
    return {index: float(torch.cosine_similarity(*pair, dim=0)) for index, pair in pairs.items()}


@torch.no_grad()
def token_scores(model: Model, vector_H: Tensor) -> Tensor:
    """How far the vector's direction moves each logit, shape (V,), float32: the logit lens of nostalgebraist (2020).

    The vector, scaled to a root mean square of 1, is multiplied by the gain of the model's final norm and by the
    unembedding. What the layers above would make of it is left out: the lower the layer, the rougher the answer.
    """
    weight_VH: Tensor = model.get_output_embeddings().weight
    direction_H = (vector_H * vector_H.numel() ** 0.5 / vector_H.norm()).to(weight_VH)
    norm = final_norm(model)
    # Through the norm itself, as some families keep its gain less 1; the difference is without a bias.
    gained_H: Tensor = norm(direction_H) - norm(torch.zeros_like(direction_H))
    return (weight_VH @ gained_H).float()


def final_norm(model: Model) -> nn.Module:
    """The norm between the last decoder layer and the head; the identity where it has no gain."""
    weights = {child: getattr(child, "weight", None) for child in decoder_body(model).children()}
    # An embedding's weight has two dimensions.
    gained = [child for child, weight in weights.items() if isinstance(weight, Tensor) and weight.dim() == 1]
    return gained[-1] if gained else nn.Identity()


def tokens_of_layers(model: Model, tokenizer: Tokenizer, vectors: SteeringVectors, count: int) -> dict[int, TokensOfLayer]:
    """Layer index -> its `count` most promoted and suppressed tokens; none for a vector of zeros."""
    # Rows of the head beyond the tokenizer's tokens are padding.
    known = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    found: dict[int, TokensOfLayer] = {}
    for index, vector_H in vectors.layers.items():
        if not bool(vector_H.any()):
            found[index] = TokensOfLayer([], [])
            continue
        scores_V = token_scores(model, vector_H)[:known]
        promoted, suppressed = (scores_V.topk(min(count, known), largest=largest) for largest in (True, False))
        found[index] = TokensOfLayer(_named(tokenizer, *promoted), _named(tokenizer, *suppressed))
    return found


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; one that is no whole character by the tokenizer's own name of it."""
    text: str = tokenizer.decode([token_id])
    return str(tokenizer.convert_ids_to_tokens(token_id)) if "\ufffd" in text or not text else text


def _named(tokenizer: Tokenizer, scores: Tensor, ids: Tensor) -> list[TokenScore]:
    return [TokenScore(i, token_text(tokenizer, i), score) for i, score in zip(ids.tolist(), scores.tolist(), strict=True)]
