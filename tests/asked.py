"""Which problems a model is asked: what is kept must not be sampled again."""

from steerlift.sampling import kept


def asked_from_here_on(monkeypatch) -> list[str]:
    """The problems' texts, added as they are asked."""
    asked: list[str] = []
    sample_tasks = kept.sample_tasks

    def counting(sampler, tokenizer, tasks, *rest):
        asked.extend(task.problem.problem for task in tasks)
        return sample_tasks(sampler, tokenizer, tasks, *rest)

    monkeypatch.setattr(kept, "sample_tasks", counting)
    return asked
