"""The report page: what it shows of which files, that nothing in them can act on it, and how it looks in a real Chromium."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st
from launched import launch
from matplotlib.figure import Figure
from small_pipeline import graded_problem

from steerlift.evaluation.config import EvaluateConfig
from steerlift.evaluation.results import arm_result
from steerlift.extraction.config import ExtractConfig
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.provenance import provenance
from steerlift.records.seen import SEEN
from steerlift.report.answers import differences, side_by_side
from steerlift.report.page import finding, write_page
from steerlift.report.page_data import Part, gather, separation_text, shown_arm
from steerlift.report.report_config import ReportConfig
from steerlift.report.reproduce import command_line
from steerlift.training.config import TrainConfig

HEADLINE = Path(__file__).parent / "original_headline.json"
VERBS = {"train": TrainConfig, "extract": ExtractConfig, "evaluate": EvaluateConfig}
HOSTILE = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=alert(1)> 5 < 7 & so on"
PROBLEMS, DRAWS = 24, 3


def graded(right):
    """Problems of which the first `right` of every three completions are right, the last one hostile."""
    problems = [graded_problem(right, DRAWS, text=f"Compute {index}+1-1.") for index in range(PROBLEMS)]
    first = problems[0]
    texts = [replace(completion, text=HOSTILE) for completion in first.completions]
    return [replace(first, completions=tuple(texts)), *problems[1:]]


def results(**more):
    """What `evaluate` writes, of the same function."""
    base, finetuned = graded(1), graded(3)
    settings = json.loads(json.dumps(asdict(EvaluateConfig(seed=3, weights=(0.5, 1.0))), default=str))
    settings.pop("overwrite")
    return {
        "base_model": arm_result(base, (1,), 0),
        "finetuned_model": arm_result(finetuned, (1,), 0, base),
        "base_with_steering": {
            "0.5": arm_result(base, (1,), 0, base, finetuned),
            "1.0": arm_result(graded(2), (1,), 0, base, finetuned),
        },
        "settings": settings,
        "provenance": provenance(model="some/model", seed=3, device="cpu"),
        **more,
    }


def arm(**more):
    return {"pass_at_1": 12.5, "ci95": [10.0, 15.0], "num_eval_problems": PROBLEMS, **more}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_training(folder):
    config = TrainConfig(model_name="some/model", output_dir=folder, num_train_iters=3, seed=3)
    settings = {name: value for name, value in asdict(config).items() if name not in ("resume", "overwrite")}
    write(folder / "config.json", json.loads(json.dumps(settings, default=str)) | {"provenance": provenance(seed=3)})
    rows = [{"step": step, "reward": 0.1 * step, "accuracy": 0.2 * step} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "eval_summary.json", {"0": arm(format_rate=90.0), "3": arm(pass_at_1=50.0, ci95=[40.0, 60.0])})


def write_everything(folder):
    """All kinds of parts, some in the folder and some in its subfolders."""
    chosen = {"weight": "1.0", "num_dev_problems": 9, "dev": {"0.5": arm(), "1.0": arm(pass_at_1=33.25)}}
    controls = {"negated": arm(about="The vectors with their sign turned.", difference_p_holm=0.0004)}
    groups = {"subject": {"Algebra": {"problems": 7, "base": 20.0, "finetuned": 80.0, "steered": 61.5}}, "level": {}}
    write(folder / "results.json", results(chosen=chosen, controls=controls, groups=groups))
    layers = [{"layer": index, "norm": 1.5 + index, "residual_norm": 20.0, "ratio": 0.0004} for index in range(2)]
    told = {"method": "mean_difference", SEEN: "aa bb cc"}
    write(folder / "vectors.info.json", {"vectors": told, "layers": layers, "provenance": provenance()})
    largest = [{"position": 3, "kl": 2.25, "token": " 7"}]
    promoted = [{"id": 4, "text": " seven", "score": 0.5}]
    inspected = [{"layer": 0, "norm": 1.0, "promoted": promoted}]
    inspection = {"vectors": told, "layers": inspected, "cosines": [[1.0]], "divergence": {"largest": largest}}
    write(folder / "vectors.inspect.json", inspection)
    Figure(figsize=(1, 1)).savefig(folder / "vectors.inspect.png")
    write_training(folder / "train")
    trials = [
        {"number": 0, "params": {"weight": 0.75}, "state": "complete", "problems": 9, "score": 44.5},
        {"number": 1, "params": {"weight": 1.75}, "state": "pruned", "problems": 3, "score": 11.0},
    ]
    write(folder / "search" / "search.json", {"trials": trials, "best": trials[0], "baseline": {"score": 30.0}})
    Figure(figsize=(1, 1)).savefig(folder / "search" / "search_history.png")
    return folder


def page_of(folder, **options):
    return write_page(ReportConfig(folder, **options), VERBS).read_text()


class Reader(HTMLParser):
    """The text of a page, its tags, and what its attributes name."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.tags, self.named, self.inside = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.named += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        if self.inside != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


# --- what is shown ---


def test_everything_that_a_folder_holds_is_on_the_page(tmp_path):
    reader = Reader(page_of(write_everything(tmp_path), examples=5, title="Three & more"))
    text = reader.text
    assert text.count("Three & more") == 2
    for shown in (
        "base 33.3 %", "base + 1.0 × vectors 66.7 %", "fine-tuned 100.0 %", "of the gap recovered 50 %",
        "The weight 1.0 was chosen on 9 dev problems, which are not among those reported on here.",
        "The weights on the dev problems", "33.2", "negated The vectors with their sign turned.", "< 0.001",
        "By subject", "Algebra 7 20.0 80.0 61.5", "5 of 24 problems and, of 3 completions each, one; drawn by seed 3",
        "Evaluations during training", "2 trials on dev problems, 1 of them stopped early. Best: trial 0 with 44.5 %; "
        "the base without vectors has 30.0 %.", "1 1.75 pruned 3 11.00", "seen problems 3", "0.0004", "Anatomy of the vectors",
        "' seven'", "1 3 2.250 ' 7'", "steerlift train \\ --model_name some/model",
        "steerlift evaluate \\ --seed 3 \\ --weights 0.5 1.0",
    ):  # fmt: skip
        assert shown in text, shown
    # Results' figure, training curves, one picture of the search, one of the anatomy.
    assert reader.tags.count("img") == 4
    assert reader.tags.count("article") == 5
    assert "By level" not in text


def test_what_is_not_there_is_left_out(tmp_path):
    write_training(tmp_path)
    text = Reader(page_of(tmp_path)).text
    assert "Training config.json" in text
    for absent in ("Result", "Search", "Vectors", "Controls", "three answers", "gap"):
        assert absent not in text.replace("Steering vectors", ""), absent


def test_the_originals_bare_results_are_enough(tmp_path):
    shutil.copy(HEADLINE, tmp_path / "results.json")
    text = Reader(page_of(tmp_path, theme="plain")).text
    assert "base + 0.35 × vectors 52.8 %" in text
    assert "so it cannot be said how much of this is chance" in text
    assert "the best of 6 on the very problems reported here, so its score is flattered" in text
    assert "three answers" not in text


def test_without_a_fine_tuned_model_two_arms_are_compared(tmp_path):
    base, steered = graded(1), graded(2)
    settings = results()["settings"] | {"finetuned_checkpoint": None}
    arms = {"base_model": arm_result(base, (1,), 0), "base_with_steering": {"1.0": arm_result(steered, (1,), 0, base)}}
    write(tmp_path / "results.json", results(finetuned_model=None, settings=settings, **arms))
    text = Reader(page_of(tmp_path)).text
    assert "The same problems, two answers" in text
    assert "--finetuned_checkpoint None" in text
    assert "gap recovered" not in text
    assert "fine-tuned" not in text


def test_several_results_stand_one_below_the_other(tmp_path):
    write(tmp_path / "b" / "results.json", results())
    write(tmp_path / "a" / "mine.json", results())
    page = page_of(tmp_path)
    text = Reader(page).text
    assert text.index("Result a/mine.json") < text.index("Result b/results.json")
    ids = re.findall(r'\bid="(\w+)"', page)
    assert len(ids) == len(set(ids))


def test_an_evaluation_without_vectors_is_shown_as_one_of_models(tmp_path):
    write(tmp_path / "results.json", results())
    alone = results(base_with_steering={}, groups={"level": {"2": {"problems": 7, "base": 20.0, "finetuned": 80.0}}})
    write(tmp_path / "models.json", alone)
    text = Reader(page_of(tmp_path)).text
    assert "Models without vectors models.json" in text
    assert "By level" in text
    assert text.count("base + 1.0 × vectors") == Reader(
        page_of(write(tmp_path / "r" / "results.json", results()).parent)
    ).text.count("base + 1.0 × vectors")


def test_the_same_folder_gives_the_same_page(tmp_path):
    write(tmp_path / "results.json", results())
    assert page_of(tmp_path) == page_of(tmp_path)


# --- what a model wrote is text ---


def test_what_a_model_wrote_is_text_and_the_page_loads_nothing(tmp_path):
    page = page_of(write_everything(tmp_path), examples=PROBLEMS, title=HOSTILE)
    reader = Reader(page)
    assert HOSTILE in reader.text
    assert "script" not in reader.tags
    assert "default-src 'none'" in page
    assert reader.named
    assert all(named.startswith(("#", "data:image/")) for named in reader.named)
    assert "url(" not in page
    assert "@import" not in page


def test_pictures_are_whole(tmp_path):
    pictures = [named for named in Reader(page_of(write_everything(tmp_path))).named if named.startswith("data:")]
    svg, png = (
        [base64.b64decode(one.split(",")[1]) for one in pictures if one.startswith(f"data:{kind};base64,")]
        for kind in ("image/svg+xml", "image/png")
    )
    assert all(picture.rstrip().endswith(b"</svg>") for picture in svg)
    assert (tmp_path / "vectors.inspect.png").read_bytes() in png


# --- answers side by side ---


def test_what_differs_from_the_base_is_marked():
    assert differences("11+3=14; so 3", "11+3=14; 14-11=3 so 3") == [
        ("11+3=14;", False),
        (" 14-11=3", True),
        (" so 3", False),
    ]
    assert differences("", "new") == [("new", True)]
    assert differences("the same ", "the same ") == [("the same ", False)]


@given(st.text(alphabet="ab1+ \n<é", max_size=30), st.text(alphabet="ab1+ \n<é", max_size=30))
def test_the_pieces_are_the_text(base, text):
    pieces = differences(base, text)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(not differs for _, differs in differences(base, base))


def test_examples_are_drawn_by_the_seed_among_all_and_counted():
    names = {"base": "base", "steered": "steered", "finetuned": "fine-tuned"}
    answers = {kind: arm_result(graded(right), (1,), 0)["examples"] for kind, right in zip(names, (1, 2, 3), strict=True)}
    view = side_by_side(answers, names, 6, seed=5)
    assert view == side_by_side(answers, names, 6, seed=5)
    assert view["shown"] != side_by_side(answers, names, 6, seed=6)["shown"]
    counted = {(row.name, *row.cells[:2]): row.cells[2:] for row in view["outcomes"].rows}
    assert set(counted) == {("right", "right", "right"), ("wrong", "right", "right"), ("wrong", "wrong", "right")}
    assert all(cells[:2] == ["24", "33.3"] for cells in counted.values())
    assert sum(int(cells[2]) for cells in counted.values()) == len(view["shown"]) == 6
    assert len({example.question for example in view["shown"]}) == 6
    for example in view["shown"]:
        assert tuple("right" if answer.right else "wrong" for answer in example.answers) in counted
    assert len(side_by_side(answers, names, 100, seed=5)["shown"]) == PROBLEMS
    assert side_by_side(answers, names, 0, seed=5) is None
    assert side_by_side({**answers, "steered": []}, names, 6, seed=5) is None


# --- what is said ---


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {
                "difference_from_base": 39.9,
                "difference_ci95": [37.1, 42.8],
                "gap_recovered": 77.1,
                "gap_recovered_ci95": [73, 81],
            },
            "With the vectors the base model scores 39.9 points more (95 % interval 37.1 to 42.8): 77 % of what fine-tuning "
            "gains (73 to 81).",
        ),
        (
            {"difference_from_base": 2.0, "difference_ci95": [-1.0, 5.0], "gap_recovered": 40.0},
            "No effect has been shown: the vectors change the base model's score by +2.0 points, and the 95 % interval, "
            "-1.0 to +5.0, holds 0.",
        ),
        (
            {"difference_from_base": -10.8, "difference_ci95": [-12.6, -9.2]},
            "The vectors harm: the base model scores 10.8 points less with them (95 % interval 9.2 to 12.6).",
        ),
        (
            {"difference_from_base": 3.0, "difference_ci95": [1.0, 5.0], "gap_recovered": None},
            "With the vectors the base model scores 3.0 points more (95 % interval 1.0 to 5.0); fine-tuning itself gains "
            "nothing that a share could be given of.",
        ),
        ({}, "The file gives no differences with intervals, so it cannot be said how much of this is chance."),
    ],
)
def test_the_sentence_says_what_the_numbers_say(fields, sentence):
    assert finding(fields) == sentence


def test_which_arm_leads_and_why(tmp_path):
    arms = {"0.5": arm(pass_at_1=40.0), "1.0": arm(pass_at_1=40.0), "-1.0": arm()}
    plain = {"base_model": arm(), "base_with_steering": arms}
    undecided = Part(tmp_path / "r.json", plain)
    decided = Part(tmp_path / "r.json", {**plain, "chosen": {"weight": 1, "num_dev_problems": 9}})
    assert shown_arm(undecided, None)[0] == "0.5"
    assert "not chosen on dev problems: it is the best of 3" in shown_arm(undecided, None)[1]
    assert shown_arm(decided, None) == shown_arm(decided, "1.0")
    assert shown_arm(decided, None)[0] == "1.0"
    weight, sentence = shown_arm(decided, "-1.0")
    assert (weight, sentence) == ("-1.0", "The weight -1.0 was asked for by hand; the choice on 9 dev problems was 1.0.")
    assert shown_arm(undecided, "1.0")[1].endswith("no weight was chosen on dev problems.")
    with pytest.raises(InputError) as caught:
        shown_arm(undecided, "2")
    assert str(caught.value) == (f"--arm 2: no such steering weight in {tmp_path / 'r.json'}; expected one of 0.5, 1.0, -1.0")


def test_a_searchs_winner_was_chosen_by_the_search(tmp_path):
    content = {"base_model": arm(), "base_with_steering": {"1.0": arm()}}
    assert shown_arm(Part(tmp_path / "r.json", content), None)[1].endswith("it was not chosen on dev problems.")
    searched = Part(tmp_path / "r.json", {**content, "vectors": {"searched_on": "100 of math, dev"}})
    assert "chosen by a search on 100 of math, dev" in shown_arm(searched, None)[1]


@pytest.mark.parametrize(
    ("dev", "made", "sentence"),
    [
        (
            "cc dd",
            "ee",
            "By the file's own lists no problem reported on, nor a near copy of it, is one that the weight was chosen on or "
            "that the vectors were made or chosen on.",
        ),
        (
            "cc",
            "",
            "By the file's own lists no problem reported on, nor a near copy of it, is one that the weight was chosen on. "
            "Which problems the vectors were made on is not recorded.",
        ),
        ("", "", "Which problems the vectors were made on is not recorded."),
        ("cc", "bb ee", "1 of the problems reported on were also used to make or choose something: the score is flattered."),
    ],
)
def test_whether_dev_and_test_are_apart_is_said_as_the_file_has_it(dev, made, sentence):
    lists = {"reported_on": "aa bb", "weight_chosen_on": dev, "vectors_made_or_chosen_on": made}
    assert separation_text(lists) == sentence


# --- the commands ---


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("train", TrainConfig(model_name="a model/it's", learning_rate=3e-4, rewards=("a:b", "c:d"), scale_rewards=True)),
        ("train", TrainConfig(epsilon_high=0.3, eval_temperature=0.0, pass_at_k=(1, 4))),
        ("extract", ExtractConfig(tokens="prompt", max_examples=5, include_first_position=True)),
        ("evaluate", EvaluateConfig(weights=(-0.5, 1e-05, 2.0), dev_size=10, random_control=True, data_dir="a b")),
        ("evaluate", EvaluateConfig()),
    ],
)
def test_the_command_of_settings_gives_the_same_settings(verb, config):
    settings = json.loads(json.dumps(asdict(config), default=str))
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {command_line(settings, VERBS)}"], capture_output=True, check=True)
    program, named, *flags = said.stdout.decode().split("\0")[:-1]
    assert (program, named) == ("steerlift", verb)
    assert tyro.cli(VERBS[verb], args=flags, config=(tyro.conf.OmitArgPrefixes,)) == config


def test_a_positional_and_a_switch_turned_off_are_written_as_the_command_line_takes_them():
    @dataclass(frozen=True)
    class Look:
        vectors: tyro.conf.Positional[Path]
        keep_it: bool = True
        title: str | None = "a title"

    line = command_line({"vectors": "a b.json", "keep_it": False, "title": None}, {**VERBS, "look": Look})
    assert line == "steerlift look \\\n  'a b.json' \\\n  --no-keep-it \\\n  --title None"
    parsed = tyro.cli(Look, args=["a b.json", "--no-keep-it", "--title", "None"], config=(tyro.conf.OmitArgPrefixes,))
    assert parsed == Look(Path("a b.json"), keep_it=False, title=None)


def test_settings_that_no_verb_has_give_no_command():
    assert command_line({"seed": 1, "from_another_version": 2}, VERBS) is None
    assert command_line({}, VERBS) is None


# --- mistakes ---


def test_a_folder_without_anything_is_refused_in_one_line(tmp_path):
    write(tmp_path / "one" / "two" / "results.json", results())
    write(tmp_path / ".hidden" / "results.json", results())
    write(tmp_path / "notes.json", [1, 2])
    write(tmp_path / "base" / "config.json", {"model_type": "qwen2"})
    (tmp_path / "base" / "tokenizer.json").write_text("not read")
    (tmp_path / "begun").mkdir()
    write(tmp_path / "begun" / "config.json", {})
    (tmp_path / "begun" / "metrics.jsonl").touch()
    with pytest.raises(MissingInputError) as caught:
        gather(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: nothing to report in it or its subfolders; expected results of `steerlift evaluate`, a run of `train`, "
        "the .info.json of `extract` or a search.json; name their folder"
    )
    with pytest.raises(MissingInputError, match="no such folder"):
        gather(tmp_path / "absent")


def test_what_cannot_be_used_is_refused(tmp_path):
    write_training(tmp_path)
    with pytest.raises(InputError, match=r"--arm 1\.0: .* holds no results of `steerlift evaluate`; leave it out"):
        page_of(tmp_path, arm="1.0")
    with pytest.raises(InputError, match=r"page\.pdf: expected a name that ends in \.html"):
        page_of(tmp_path, output_path=tmp_path / "page.pdf")
    with pytest.raises(InputError, match="--examples -1: expected at least 0"):
        ReportConfig(tmp_path, examples=-1)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json is not JSON"):
        page_of(tmp_path)
    assert not (tmp_path / "report.html").exists()


# --- in a real browser ---


class Browser:
    """Chromium, driven by chromedriver over its own HTTP protocol."""

    def __init__(self, driver, width, height):
        port = next(int(found[1]) for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        options = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "mobileEmulation": {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1, "mobile": True}},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        self.session = ""
        self.session = f"/session/{self.post('/session', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def post(self, path, **content):
        answer = self.client.post(self.session + path, json=content).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def ask(self, expression):
        return self.post("/execute/sync", script=f"return {expression}", args=[])

    def requests(self):
        """What the page has asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.post("/se/log", type="performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def close(self):
        self.client.delete(self.session)
        self.client.close()


@pytest.fixture
def phone():
    """Chromium as wide as a small phone."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    browser = None
    try:
        browser = Browser(driver, width=375, height=812)
        yield browser
    finally:
        if browser is not None:
            browser.close()
        driver.terminate()
        driver.wait()
        driver.stdout.close()


@pytest.mark.e2e
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no Chromium here: apt-get install chromium chromium-driver",
)
def test_the_command_writes_a_page_that_a_phone_shows_without_network(tmp_path, phone):
    write_everything(tmp_path)
    run = launch("-m", "steerlift", "report", str(tmp_path), "--examples", str(PROBLEMS), cwd=tmp_path)
    assert (run.returncode, run.stdout) == (0, f"wrote {tmp_path / 'report.html'}\n"), run.stderr
    phone.post("/url", url=(tmp_path / "report.html").as_uri())
    text = phone.ask("document.body.innerText")
    assert HOSTILE in text
    assert "With the vectors the base model scores 33.3 points more" in text
    assert "owned" not in phone.ask("document.title")
    assert phone.ask("document.scripts.length") == 0
    assert phone.ask("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert phone.ask("innerWidth") == 375
    assert phone.ask("document.documentElement.scrollWidth") <= 375
    # Wide things are there and scroll in their own boxes, which the keyboard reaches.
    assert phone.ask("[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)")
    assert phone.ask("[...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0)")
    asked = phone.requests()
    assert (tmp_path / "report.html").as_uri() in asked
    assert all(url.startswith(("file:", "data:")) for url in asked), asked


@pytest.mark.e2e
def test_a_mistake_on_the_command_line_is_one_line(tmp_path):
    run = launch("-m", "steerlift", "report", str(tmp_path), cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {tmp_path}: nothing to report in it")
    assert len(run.stderr.splitlines()) == 1
