"""What a step is told by its number alone: its problems and its learning rate. So a resumed run needs no other memory."""

import random
from collections.abc import Sequence
from functools import cache

from steerlift.records.types import Problem
from steerlift.sampling.draws import row_seed
from steerlift.training.config import TrainConfig


def learning_rate_factor(done: int, config: TrainConfig) -> float:
    """The share of the peak rate after `done` steps: a linear rise, then a linear fall to final_lr_percent."""
    warmup = round(config.warmup_percent * config.num_train_iters)
    if done < warmup:
        return (done + 1) / warmup
    fallen = (done - warmup) / max(1, config.num_train_iters - warmup)
    return 1 - (1 - config.final_lr_percent) * min(1.0, fallen)


def problems_of_step(problems: Sequence[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The problems of a step (from 1): without replacement through each epoch, each epoch in an order of its own."""
    places = (divmod(place, len(problems)) for place in range((step - 1) * count, step * count))
    return [problems[_epoch_order(len(problems), row_seed(seed, epoch))[index]] for epoch, index in places]


@cache
def _epoch_order(count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(count), count)
