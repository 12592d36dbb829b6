"""One answer on the page: its verdict, and its tokens shaded by how unlikely each was. All of it goes in as text."""

from nicegui import ui

from steerlift.play.engine import Answer
from steerlift.play.session import verdict


class AnswerView:
    """`kind` (base or steered) is the colour."""

    def __init__(self, name: str, kind: str) -> None:
        with ui.element("section").classes(f"answer {kind}").props(f'aria-label="{name} answer"'):
            with ui.element("div").classes("head"):
                self._title = ui.label(name).classes("name")
                self._verdict = ui.label().classes("verdict").props('role="status"')
            self._text = ui.element("div").classes("text").props('tabindex="0"')
            self._note = ui.label().classes("quiet small")
        self._name = name
        self.clear(name)

    def clear(self, title: str) -> None:
        """Begins a new answer."""
        self._title.set_text(title)
        self._text.clear()
        self._note.set_text("")
        self._shown = 0
        self._mark("", "unknown")

    def show(self, answer: Answer) -> None:
        """Adds the tokens that have come since; the verdict when it is there."""
        new = answer.tokens[self._shown :]
        self._shown += len(new)
        with self._text:
            for token in new:
                label = ui.label(token.text).classes("token").style(f"--surprise: {1 - token.probability:.3f}")
                label.props(f'title="{100 * token.probability:.1f} %"')
        if answer.graded is not None:
            (completion,), (grade,) = answer.graded.completions, answer.graded.grades
            if not self._shown:  # a sampler that says no tokens as it goes
                self._shown = 1
                with self._text:
                    ui.label(completion.text).classes("token")
            self._mark(*verdict(grade, completion, answer.graded.problem.answer))
            ending = ", cut off there" if completion.truncated else ""
            self._note.set_text(f"{len(completion.token_ids)} tokens{ending}")

    def _mark(self, text: str, kind: str) -> None:
        self._verdict.set_text(text)
        self._verdict.classes(replace=f"verdict {kind}")
