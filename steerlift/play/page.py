"""The page: what one tab shows and what its controls do. Built with NiceGUI; all the work is the engine's."""

from collections.abc import Sequence
from pathlib import Path

from nicegui import ui
from nicegui.events import KeyEventArguments

from steerlift.play.answer_view import AnswerView
from steerlift.play.chart import line_chart
from steerlift.play.config import PlayConfig
from steerlift.play.engine import AnswerJob, Engine, Job, SweepJob
from steerlift.play.session import Session, Tried, sweep_weights
from steerlift.records.types import Grade, Problem

STYLE = Path(__file__).with_name("page.css")

_POLL_SECONDS = 0.1
_WEIGHT_STEP = 0.05
_LONGEST_CHOICE = 90
_ENTER = "(event) => { if (!event.shiftKey && !event.isComposing) { event.preventDefault(); emit(); } }"
_THIS, _TRIED = "this problem", "the problems tried"


class Page:
    """One tab: its problem, its job, what it has tried."""

    def __init__(self, engine: Engine, config: PlayConfig, problems: Sequence[Problem]) -> None:
        self.engine = engine
        self.config = config
        self.problems = problems
        self.session = Session(config.seed)
        self.job: Job | None = None
        ui.add_css(STYLE)
        with ui.element("div").classes("page"):
            self._build_head()
            self._build_form()
            with ui.element("div").classes("pair"):
                self.base = AnswerView("Base", "base")
                self.steered = AnswerView("Steered", "steered")
            self._build_legend()
            with ui.element("div").classes("pair"):
                self._build_accuracy()
                self._build_sweep()
        self.pick(0)
        self._set_idle()
        ui.keyboard(self._on_escape, ignore=[])
        ui.keyboard(self._on_enter)
        ui.timer(_POLL_SECONDS, self._poll)
        ui.context.client.on_delete(self.stop)

    # --- what the controls do ---

    def pick(self, index: int) -> None:
        """Puts a problem of the list into the fields."""
        self.text.set_value(self.problems[index].problem)
        self.answer.set_value(self.problems[index].answer)

    def run(self) -> None:
        """Answers the problem at the slider's weight, unless something is under way."""
        problem = self._problem()
        if self.job is not None or problem is None:
            return
        weight = float(self.weight.value)
        self.base.clear("Base")
        self.steered.clear(f"Steered, weight {weight:.2f}")
        self._begin(self.engine.answer(problem, weight, self.session.next_seed(problem)))

    def sweep(self) -> None:
        """Answers the problem, or all that were tried, at every weight."""
        problem = self._problem()
        known = [problem] if problem is not None and problem.answer else []
        problems = self.session.problems() if self.scope.value == _TRIED else known
        if self.job is not None:
            return
        if not problems:
            self.status.set_text("A sweep needs a known answer: type one, or try some problems first.")
            return
        weights = sweep_weights(self.config.largest_weight)
        self._begin(self.engine.sweep(problems, weights, self.config.sweep_completions, self.config.seed))

    def stop(self) -> None:
        """Ends what is under way."""
        if self.job is not None:
            self.job.stop()

    # --- what the page shows ---

    def _build_head(self) -> None:
        with ui.element("header"):
            ui.label("steerlift play").props('role="heading" aria-level="1"').classes("title")
            ui.label(f"{self.config.base_model_name} + {self.config.steering_vectors_path}").classes("quiet where")

    def _build_form(self) -> None:
        choices = {i: _shortened(problem.problem) for i, problem in enumerate(self.problems)}
        with ui.element("section").classes("form"):
            picker = ui.select(choices, label="Pick a problem", value=0).props("outlined")
            picker.on_value_change(lambda event: self.pick(event.value))
            with ui.element("div").classes("fields"):
                self.text = ui.textarea("Problem").props("outlined autogrow").classes("problem")
                self.answer = ui.input("Known answer").props("outlined")
            for field in (self.text, self.answer):
                field.on("keydown.enter", self.run, js_handler=_ENTER)
            with ui.element("div").classes("controls"):
                with ui.element("div").classes("weight"):
                    weight_label = ui.label().classes("weight-label")
                    self.weight = ui.slider(
                        min=0, max=self.config.largest_weight, step=_WEIGHT_STEP, value=self.config.weight
                    ).props('aria-label="Steering weight"')
                    weight_label.bind_text_from(self.weight, "value", lambda weight: f"Steering weight {weight:.2f}")
                self.run_button = ui.button("Run", on_click=self.run, color=None).props("unelevated no-caps").classes("run")
                self.stop_button = ui.button("Stop", on_click=self.stop).props("outline no-caps")
            self.status = ui.label().classes("quiet small status").props('role="status"')

    def _build_legend(self) -> None:
        with ui.element("p").classes("legend quiet small"):
            ui.label("Shading: how likely the model found the token it wrote.")
            for share in (1.0, 0.75, 0.5, 0.25, 0.0):
                ui.label(f"{share:.0%}").classes("token").style(f"--surprise: {1 - share}")

    def _build_accuracy(self) -> None:
        with ui.element("section").classes("panel").props('aria-label="Accuracy"'):
            ui.label("Right so far").classes("name").props('role="heading" aria-level="2"')
            with ui.element("div").classes("scores"):
                self.base_score = ui.label().classes("score base")
                self.steered_score = ui.label().classes("score steered")
            self.accuracy_chart = ui.html("").classes("chart")
            with ui.element("div").classes("row-tried quiet"):
                for head in ("problem", "weight", "base", "steered"):
                    ui.label(head)
            self.tried = ui.element("div").classes("tried").props('tabindex="0" aria-label="Problems tried"')
        self._show_accuracy()

    def _build_sweep(self) -> None:
        with ui.element("section").classes("panel").props('aria-label="Sweep"'):
            ui.label("Sweep over the weight").classes("name").props('role="heading" aria-level="2"')
            with ui.element("div").classes("sweep-controls"):
                self.scope = ui.radio([_THIS, _TRIED], value=_THIS).props("inline dense")
                self.sweep_button = ui.button("Sweep", on_click=self.sweep).props("outline no-caps")
            self.sweep_chart = ui.html("").classes("chart")
            count = self.config.sweep_completions
            note = f"{count} answers per problem and weight; solid: right, dashed: right without the format."
            ui.label(note).classes("quiet small")
        self._show_sweep([])

    def _show_accuracy(self) -> None:
        count = len(self.session.tried)
        series = {}
        for kind, shares in self.session.accuracy().items():
            score = self.base_score if kind == "base" else self.steered_score
            share = f"{shares[-1]:.0%}" if shares else "–"
            score.set_text(f"{kind.capitalize()} {share}")
            series[kind] = list(enumerate(shares, start=1))
        ticks = sorted({1, (count + 1) // 2, count} - {0})
        self.accuracy_chart.set_content(line_chart("Share right after each problem tried, in percent", series, ticks, "tried"))

    def _show_sweep(self, points: Sequence[tuple[float, float, float]]) -> None:
        series = {
            "steered lenient": [(weight, lenient) for weight, _, lenient in points],
            "steered": [(weight, strict) for weight, strict, _ in points],
        }
        ticks = [self.config.largest_weight * quarter / 4 for quarter in range(5)]
        self.sweep_chart.set_content(line_chart("Share right at each weight, in percent", series, ticks, "weight"))

    def _show_tried(self, tried: Tried) -> None:
        with self.tried:
            row = ui.element("div").classes("row-tried")
            row.move(target_index=0)
        with row:
            ui.label(tried.problem.problem).classes("what")
            ui.label(f"{tried.weight:.2f}").classes("quiet")
            for kind, grade in (("base", tried.base), ("steered", tried.steered)):
                mark, meaning = _mark(grade)
                ui.label(mark).classes(kind).props(f'title="{kind}: {meaning}" role="img" aria-label="{kind}: {meaning}"')

    # --- a job's way ---

    def _begin(self, job: Job) -> None:
        self.job = job
        self.run_button.disable()
        self.sweep_button.disable()
        self.stop_button.enable()
        self._poll()

    def _set_idle(self, status: str = "Enter runs, Escape stops. Shift+Enter begins a new line.") -> None:
        self.job = None
        self.run_button.enable()
        self.sweep_button.enable()
        self.stop_button.disable()
        self.status.set_text(status)

    def _poll(self) -> None:
        """Shows what has come of the job since the last time."""
        job = self.job
        if job is None:
            return
        over = job.over  # read first: what comes after it is seen next time
        if job.state == "waiting":
            self.status.set_text("Waiting: the model is busy with another tab.")
        elif isinstance(job, AnswerJob):
            self.status.set_text("Answering ...")
            self.base.show(job.base)
            self.steered.show(job.steered)
        elif isinstance(job, SweepJob):
            self.status.set_text(f"Sweeping: {job.finished} of {job.total} answers")
            self._show_sweep(list(job.points))
        if over:
            self._end(job)

    def _end(self, job: Job) -> None:
        if isinstance(job, AnswerJob) and job.base.graded is not None and job.steered.graded is not None:
            before = len(self.session.tried)
            self.session.record(job.steered.weight, job.base.graded, job.steered.graded)
            for tried in self.session.tried[before:]:
                self._show_tried(tried)
            self._show_accuracy()
        self._set_idle({"stopped": "Stopped.", "failed": job.error}.get(job.state, "Done. Enter runs again."))
        if job.future is not None and not job.future.cancelled():
            job.future.result()  # a bug's traceback goes to the terminal

    def _problem(self) -> Problem | None:
        """What stands in the fields; a problem of the list as it is there."""
        text, answer = self.text.value or "", (self.answer.value or "").strip()
        listed = next((each for each in self.problems if (each.problem, each.answer) == (text, answer)), None)
        return listed or (Problem(text.strip(), answer) if text.strip() else None)

    def _on_escape(self, event: KeyEventArguments) -> None:
        if event.action.keydown and event.key == "Escape":
            self.stop()

    def _on_enter(self, event: KeyEventArguments) -> None:
        if event.action.keydown and event.key == "Enter":
            self.run()


def _mark(grade: Grade) -> tuple[str, str]:
    if grade.correct:
        return "✓", "right"
    return ("≈", "right, but not in the format") if grade.lenient_correct else ("✗", "wrong")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_CHOICE else f"{line[:_LONGEST_CHOICE]} ..."
