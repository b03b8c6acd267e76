"""The page of a run: the decision first, everything in it, and no text in it more than text."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from html.parser import HTMLParser

import pytest
from chromium import Chromium, Page, find_chromium
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from made_reports import (
    DIGEST,
    HOSTILE,
    RUN,
    benchmark_of,
    benchmark_of_rounds,
    document,
    finding,
    findings_of,
    hostile_document,
    made_run,
    open_finding,
    open_problem,
)
from made_runs import F1, OTHER_MACHINE, RATIO, f1, line_of, name_of, run, write_runs

from harness import cli, pipeline, reporting
from harness.account import Account, read_account
from harness.evidence import Measure, MeasureKey, Unit
from harness.history import Recorded
from harness.progress import Silence
from harness.reporting import trends, write_reports
from harness.verdict import Decision, Finding, Limit, Standing
from harness.webreport import HistoryLine, HistoryPoint, render, write_webreport
from harness.webreport.page import _resource

ELEMENTS = {
    "html", "head", "meta", "title", "link", "style", "body", "a", "header", "h1", "h2", "h3", "h4", "span", "p", "ol",
    "ul", "li", "main", "b", "wbr", "div", "table", "thead", "tbody", "tr", "th", "td", "i", "figure", "figcaption",
    "svg", "section", "bdi", "q", "label", "input", "select", "option", "dl", "dt",
    "dd", "footer", "script",
}  # fmt: skip
PLOTS = (
    "Logit differences, fp32", "Logit differences, int8", "Where the logits part", "Margin against flip, int8",
    "F1 per entity type, int8", "Latency: one query a call", "Size, latency and F1", "History: ",
)  # fmt: skip


class Reader(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.drawn, self.attributes, self.words, self.scripts = [], [], [], [], []
        self._inside, self._draws = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        (self.drawn if self._draws else self.elements).append(tag)
        self._draws = self._draws or tag == "svg"
        self.attributes += attrs
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""
        self._draws = self._draws and tag != "svg"

    def handle_data(self, data):
        (self.scripts if self._inside == "script" else self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def history(changes=(12,), machines=("a", "b")):
    """Thirty runs of a measure."""
    points = tuple(
        HistoryPoint(
            RUN, f"2026-11-{place + 1:02d}", 3 + (place > 12), machines[place % len(machines)], place in changes
        )
        for place in range(30)
    )
    return HistoryLine("latency.int8.p50_ms", Unit.MILLISECOND, Limit(maximum=5), points)


def page_of(folder, verdict, **options) -> str:
    """The page of a made-up run."""
    return render(read_account(made_run(folder, verdict, benchmark=options.pop("benchmark", None))), **options)


@pytest.fixture
def whole_page(tmp_path):
    """A page with everything that a run can have."""
    findings = findings_of(flipped=3.0)
    return page_of(tmp_path, document(findings), benchmark=benchmark_of("fp32", "int8"), history=[history()])


@pytest.mark.parametrize(
    ("verdict", "decision"),
    [
        (document(findings_of()), "ACCEPTED"),
        (document(findings_of(flipped=3.0), ["odd"]), "REJECTED"),
        (document([], ["the session was killed after 900 s"]), "INCOMPLETE"),
        (document([*findings_of(), open_finding()], ["odd"], "INCOMPLETE"), "INCOMPLETE"),
    ],
)
def test_the_decision_and_its_reasons_come_first(verdict, decision, tmp_path):
    """The first words of the page are the decision, then why and what to do."""
    text = Reader(page_of(tmp_path, verdict)).text
    body = text.partition("To the measures")[2]
    assert body.split()[1] == decision
    assert body.index(decision) < body.index("What to do") < body.index("All measures")
    assert all(problem in body for problem in verdict["problems"])


def test_a_broken_limit_stands_before_the_tables(whole_page):
    """A broken limit is listed with its value, limit and how far it is over."""
    text = Reader(whole_page).text
    place = text.index("Broken limits")
    assert place < text.index("At a glance")
    assert "3 logit , limit ≤ 2 · 1.5 times the limit" in text[place : place + 300]


def test_what_cannot_be_told_stands_before_the_tables(tmp_path):
    """An undecided run says that nothing is broken, and shows value, interval and limit, and its problem only so."""
    page = page_of(tmp_path, document([*findings_of(), open_finding()], [open_problem()]))
    text = Reader(page).text
    assert text.index("Neither accepted nor refused") < text.index("What to do") < text.index("Could not be told")
    place = text.index("Could not be told")
    assert place < text.index("At a glance")
    # the sign is meant
    assert "1.08 × (1.03 to 1.17), limit ≤ 1.1 · +3 % to +17 %, +10 % allowed" in text[place : place + 500]  # noqa: RUF001
    assert "Problems" not in text
    assert text.count("it cannot be told which side") == 0


@pytest.mark.parametrize(("standing", "symbol"), [("undecided", "?"), ("warning", "!")])
def test_an_open_limit_is_marked(standing, symbol, tmp_path):
    """The table marks it with a sign and a word, and its bar has the interval around the limit."""
    problems = [open_problem()] if standing == "undecided" else []
    page = page_of(tmp_path, document([*findings_of(), open_finding(standing)], problems))
    assert f'data-standing="{standing}"' in page
    assert f'{symbol}<span class="word"> {standing}</span>' in page
    assert f'<option value="{standing}">' in page
    bars = re.findall(r'class="bar spread open".*?width:([\d.]+)%.*?width:([\d.]+)%.*?left:([\d.]+)%', page)
    assert bars
    for left, width, limit in bars:
        assert 0 < float(left) < float(limit) < float(left) + float(width) < 100


def test_a_kept_interval_ends_before_the_limit(tmp_path):
    """A kept measure's interval is shown too, with the limit at the end of the bar."""
    kept = finding("latency.int8.ratio_to_last_release", 0.8, "ratio", (None, 1), interval=[0.7, 0.9])
    page = page_of(tmp_path, document([kept]))
    assert 'width:70.0%"></i><i class="maybe" style="width:20.0%"></i><b style="left:100.0%"' in page
    assert "0.7 to 0.9" in Reader(page).text


def test_candidate_reference_and_last_release_side_by_side(tmp_path):
    """One plot has the calls of all of them; what took turns is named, and batches have a plot of their own."""
    page = page_of(tmp_path, document(findings_of()), benchmark=benchmark_of_rounds("fp32", "int8"))
    figures = dict(re.findall(r"<h3>(Latency: [^<]*)</h3>(.*?)</figure>", page, re.DOTALL))
    assert list(figures) == [
        "Latency: one query a call",
        "Latency: batches against the reference",
        "Latency: single queries against fp32",
    ]
    titles = re.findall(r'class="">([^<]*)</text>', figures["Latency: one query a call"])
    assert titles == [
        "PyTorch", "fp32, in turns with PyTorch", "int8, in turns with PyTorch",
        "last release, fp32", "fp32, in turns with last release",
        "last release, int8", "int8, in turns with last release",
    ]  # fmt: skip
    assert "40 calls of each model, in turns, in 5 rounds." in figures["Latency: one query a call"]
    assert "Work that never changes took 0.93 to 1.07 times its median" in figures["Latency: one query a call"]
    assert re.findall(r'class="">([^<]*)</text>', figures["Latency: single queries against fp32"]) == [
        "model.onnx", "fp32", "int8",
    ]  # fmt: skip


def test_runs_before_there_were_rounds_have_their_plot(tmp_path):
    """Benchmark data without rounds, control and names are drawn as far as they go."""
    page = page_of(tmp_path, document(findings_of()), benchmark=benchmark_of("int8"))
    figure = page.partition("Latency: one query a call")[2].partition("</figure>")[0]
    assert re.findall(r'class="">([^<]*)</text>', figure) == ["PyTorch", "int8"]
    assert "40 calls of each model, in turns. Left is better" in figure
    assert "never changes" not in figure


def test_a_control_is_only_told_where_it_was_measured(tmp_path):
    """Rounds of other benchmarks, and data of another form, are a note or left out, never an error."""
    benchmark = benchmark_of_rounds("int8")
    for one in benchmark["benchmarks"]:
        one["extra_info"]["control_ns"] = None
    page = page_of(tmp_path, document(findings_of()), benchmark=benchmark)
    assert "Latency: one query a call" in page
    assert "never changes" not in page
    benchmark["benchmarks"][0]["extra_info"]["pairs_per_round"] = "many"
    assert "benchmark.json is left out" in page_of(tmp_path, document(findings_of()), benchmark=benchmark)


def test_ratios_show_how_sure_they_are(tmp_path):
    """Each ratio with an interval has a row with its rounds, its interval and its limit; without one there is no plot."""
    page = page_of(tmp_path, document([*findings_of(), open_finding()], [open_problem()]))
    figure = page.partition("Ratios and how sure they are")[2].partition("</figure>")[0]
    assert "int8: ratio to last release" in figure
    assert figure.count('class="interval int8"') == 1
    assert figure.count('class="mark int8"') == 6  # five rounds and the value
    assert figure.count('class="limit"') == 1
    assert "Ratios and how sure" not in page_of(tmp_path, document(findings_of()))


def test_everything_is_in_it(whole_page):
    """Every measure, every plot, the smallest queries, digests and versions are there."""
    text = Reader(whole_page).text.replace("_ ", "_")
    for one in findings_of():
        assert one["name"] in text
    for title in PLOTS:
        assert title in text
    for fact in ("to Goa", "from Pune to Goa", DIGEST, "AMD EPYC", "onnxruntime", "1.32.0", "data/test.jsonl"):
        assert fact in text
    assert len(whole_page.encode()) < 200_000


def test_without_data_a_plot_is_left_out(tmp_path):
    """A run with one measure has no plot, and no empty headings."""
    text = Reader(page_of(tmp_path, document([finding("a.release.missing_files", 0.0)]))).text
    assert "missing_ files" in text
    for title in (*PLOTS, "Plots", "At a glance", "Broken limits", "Problems"):
        assert title not in text


@pytest.mark.parametrize("machines", [("a",), ("a", "b")])
def test_a_history_shows_its_changes(machines, tmp_path):
    """The history has a mark for each run and says where it changed; a single run is no history."""
    page = page_of(tmp_path, document(findings_of()), history=[history(machines=machines)])
    assert page.count(f"{RUN}: ") == 30
    assert page.count(", a change</title>") == 1
    assert "where the series changed: ▲ (1)" in page
    alone = HistoryLine("m", Unit.COUNT, Limit(), history().points[:1])
    assert "History" not in page_of(tmp_path, document(findings_of()), history=[alone])


@pytest.mark.parametrize("verdict", [hostile_document(), document(findings_of())], ids=["hostile", "plain"])
def test_no_text_is_more_than_text(verdict, tmp_path):
    """Attacks in queries, labels, paths and problems make no element, attribute, address or hidden character."""
    page = page_of(tmp_path, verdict, benchmark=benchmark_of("fp32", "int8"), history=[history()])
    reader = Reader(page)
    assert set(reader.elements) <= ELEMENTS
    assert set(reader.drawn) <= {"g", "line", "path", "rect", "text", "title"}
    assert reader.elements.count("script") == 1
    assert not {name for name, _ in reader.attributes if name.startswith("on")}
    assert {value for name, value in reader.attributes if name in {"href", "src"}} == {"#measures", "data:,"}
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe]", page
    )
    assert page.encode()
    assert len(page.encode()) < 500_000


def test_an_attack_can_still_be_read(tmp_path):
    """What is made harmless is shown, not dropped."""
    text = Reader(page_of(tmp_path, hostile_document())).text
    for shown in (
        HOSTILE[0],
        "⟨U+202E⟩evil⟨U+202C⟩",
        "lone ⟨U+D800⟩ surrogate",
        "{{ 7 * 7 }}",
        "<img src=x onerror=window.pwned=1>⟨U+202E⟩⟨U+0000⟩",
    ):
        assert shown in text
    assert "(100,008 characters)" in text


def test_the_policy_of_the_page(whole_page):
    """The page may load nothing and run nothing but its one script, whose digest is in its policy."""
    reader = Reader(whole_page)
    policy = next(value for _, value in reader.attributes if value and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256("".join(reader.scripts).encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    assert whole_page.index("Content-Security-Policy") < whole_page.index("<style>")


def test_thousands_of_measures(tmp_path):
    """A run of thousands of measures has them all."""
    many = [finding(f"s{place % 40}.int8.m{place}", 1.0, "logit", (None, 2)) for place in range(4000)]
    page = page_of(tmp_path, document(many))
    assert page.count("data-name=") == 4000
    assert len(page.encode()) < 3_000_000


scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(), max_size=6)
inner_names = st.sampled_from((
    "query", "word", "margin", "reference", "candidate", "variant", "error", "module", "f1", "reference_f1", "loss_bound",
    "flips", "source", "follow_up", "relation", "why", "first", "layers", "tolerance",
))  # fmt: skip
entries = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(inner_names, inner, max_size=4),
    max_leaves=6,
)
names = st.sampled_from(("worst", "ledger", "changed", "queries", "smallest", "types", "first_divergence", "flips"))
details = st.dictionaries(names, entries | st.lists(entries, max_size=3), max_size=4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("label_agreement", "entity_agreement", "max_logit_difference", "f1_micro", "other")),
            st.sampled_from(("parity", "quality", "queries", "their own")),
            st.floats(allow_nan=False, allow_infinity=False),
            st.sampled_from(Unit),
            st.sampled_from(Standing),
            details,
        ),
        max_size=4,
    )
)
# the traceback says what was wrong, and shrinking whole pages takes minutes
@settings(max_examples=80, phases=(Phase.explicit, Phase.generate))
def test_details_of_any_form(drawn):
    """Whatever a suite writes into its details, the page is written, and what has another form is left out."""
    findings = [
        Finding(Measure(MeasureKey(suite, "int8", name), value, unit, written), limit_for(standing), standing)
        for name, suite, value, unit, standing, written in drawn
    ]
    folderless = read_made(findings)
    page = render(folderless)
    assert set(Reader(page).elements) <= ELEMENTS
    assert page.encode()


def limit_for(standing):
    """A limit that can stand with it."""
    if standing is Standing.NO_LIMIT:
        return None
    return Limit() if standing is Standing.REPORTED else Limit(maximum=1)


def read_made(findings) -> Account:
    """An account of these findings, without files."""
    from harness.account import Subject

    subject = Subject("c", DIGEST, "r", DIGEST, {}, {}, (), "", {})
    return Account(RUN, Decision.REJECTED, tuple(findings), (), subject, {}, None, (), {}, ())


def test_colours_have_contrast():
    """Text keeps 4.5 to 1 with what is behind it, marks 3 to 1, light and dark (WCAG 2.2, 1.4.3 and 1.4.11)."""
    for block in _palettes(_resource("report.css")):
        for ink in ("ink", "soft", "good", "bad", "open"):
            for ground in ("page", "card"):
                assert _contrast(block[ink], block[ground]) >= 4.5, (ink, ground)
        for tone, ground in (("good", "good-back"), ("bad", "bad-back"), ("open", "open-back")):
            assert _contrast(block[tone], block[ground]) >= 4.5, tone
            assert _contrast(block["soft"], block[ground]) >= 4.5, ground
        for mark in ("blue", "orange", "purple", "grey"):
            assert _contrast(block[mark], block["card"]) >= 3, mark


def _palettes(style):
    """The colours of the light and the dark page."""
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks[:2]]


def _contrast(one, other):
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_one_report_that_fails_leaves_the_others(tmp_path, monkeypatch):
    """A report that cannot be written is named, one of an older run does not stay, and the others are written."""
    from harness import webreport

    folder = made_run(tmp_path, document(findings_of()))
    assert write_reports(folder) == []
    (folder / "report.html").write_text("old", encoding="utf-8")

    def fails(*_):
        message = "odd data"
        raise ZeroDivisionError(message)

    monkeypatch.setattr(webreport.page, "plots_of", fails)
    (note,) = write_reports(folder)
    assert "report.html is not there: ZeroDivisionError: odd data" in note
    assert not (folder / "report.html").exists()
    assert (folder / "summary.md").is_file()
    assert (folder / "junit.xml").is_file()


def test_the_folder_is_read_once(tmp_path, monkeypatch):
    """All three files are written from one reading of the run's folder."""
    read = []
    real = reporting.read_account
    monkeypatch.setattr(reporting, "read_account", lambda folder: read.append(folder) or real(folder))
    folder = made_run(tmp_path, document(findings_of()))
    assert write_reports(folder) == []
    assert read == [folder]


def test_a_verdict_that_cannot_be_read_leaves_no_report(tmp_path):
    """Reports of an older verdict do not stay beside a damaged one, and one note says why."""
    folder = made_run(tmp_path, document(findings_of()))
    write_reports(folder)
    (folder / "verdict.json").write_text("{", encoding="utf-8")
    (note,) = write_reports(folder)
    assert "verdict.json is not valid JSON" in note
    assert not [path.name for path in folder.iterdir() if path.name in {"report.html", "summary.md", "junit.xml"}]


def with_history(results, lines):
    """A run with reports, the last but one of a history of these lines."""
    write_runs(results, lines)
    folder = made_run(results / RUN, document(findings_of()) | {"run": name_of(len(lines) - 2)})
    return folder, write_reports(folder, results)


def test_the_report_shows_the_runs_before(tmp_path):
    """The page has the headline measures over the runs of its line and machine up to this one, with their changes."""
    lines = [line_of(number, {F1: f1(0.95 if number < 8 else 0.93)}) for number in range(17)]
    folder, notes = with_history(tmp_path / "results", lines)
    assert notes == []
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "History: quality.int8.f1_micro" in page
    assert "16 runs on one machine, the last is this one; where the series changed: ▲ (1)." in page
    assert f"{name_of(8)}: 0.93 on" in page
    assert name_of(16) not in page


def test_runs_of_other_lines_and_machines_are_others():
    """Plots over time are of one line and one machine, the run's own."""
    entries = [run(0), run(1, machine=OTHER_MACHINE), run(2, line="atis"), run(3), run(4)]
    (line,) = trends(entries, name_of(3))
    assert [point.run for point in line.points] == [name_of(0), name_of(3)]
    assert line.limit == Limit(minimum=0.8)
    assert trends(entries, name_of(9)) == []


def test_the_headline_measures_are_chosen():
    """At most eight plots: F1 of each variant first, of the served one before the other; only what this run measured."""
    scopes = ("fp16", "fp32", "int8", "release")
    names = (
        F1,
        RATIO,
        MeasureKey("parity", "", "mean_logit_difference"),
        MeasureKey("latency", "", "cold_start_ratio"),
    )
    every = [MeasureKey(key.suite, scope, key.name) for key in names for scope in scopes]
    measures = {key: Recorded(0.5, Unit.RATIO, Limit()) for key in every}
    shown = [line.measure for line in trends([run(0), run(1, measures)], name_of(1))]
    assert len(shown) == 8
    assert shown[:4] == [f"quality.{scope}.f1_micro" for scope in ("int8", "fp32", "fp16")] + [str(RATIO)]
    assert not any(".release." in measure for measure in shown)
    last = {key: one for key, one in measures.items() if key.name == "cold_start_ratio"}
    assert len(trends([run(0), run(1, last)], name_of(1))) == 3


def test_a_run_that_was_not_accepted_is_told_apart():
    """Its value is a hollow mark, which says the decision."""
    entries = [run(0), run(1, decision=Decision.REJECTED), run(2)]
    (line,) = trends(entries, name_of(2))
    assert [point.decision for point in line.points] == [Decision.ACCEPTED, Decision.REJECTED, Decision.ACCEPTED]
    page = render(read_made(()), [line])
    assert page.count('<g class="hollow">') == 1
    assert f"{name_of(1)}: 0.95, REJECTED on" in page


def test_a_long_history_is_cut():
    """However many runs there are, the latest hundred are drawn."""
    entries = [run(number) for number in range(130)]
    (line,) = trends(entries, name_of(129))
    assert [point.run for point in line.points] == [name_of(number) for number in range(30, 130)]


def test_a_damaged_history_is_a_note(tmp_path):
    """Reports are written without plots over time, and both the caller and the page say why."""
    folder, notes = with_history(tmp_path / "results", [line_of(0), line_of(1)[:100], line_of(2)])
    (note,) = notes
    assert "the report has no plots over time" in note
    assert "line 2 is cut off" in note
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "History:" not in page
    assert "the report has no plots over time" in page
    assert (folder / "summary.md").is_file()


def test_every_judged_run_has_its_reports(tiny_checkpoint, tiny_data, tiny_export, fake_judge, tmp_path):
    """A run leaves the page, the summary and the test report beside its verdict, whatever the decision."""
    for problems in ((), ("the session was killed",)):
        fake_judge.problems = problems
        results = tmp_path / f"results{len(problems)}"
        judgement = pipeline.judge_candidate(tiny_checkpoint, tiny_export, data=[tiny_data], results=results)
        for name in ("report.html", "summary.md", "junit.xml"):
            assert judgement.verdict.decision.value in (judgement.run.folder / name).read_text(encoding="utf-8")


def test_the_command_says_where_the_report_is(tiny_checkpoint, tiny_data, tiny_export, fake_judge, tmp_path, capsys):
    """`harness judge` names the page that it wrote."""
    paths = [
        "--reference",
        tiny_checkpoint,
        "--candidate",
        tiny_export,
        "--data",
        tiny_data,
        "--results",
        tmp_path / "r",
    ]
    assert cli.main(["judge", *map(str, paths)]) == 0
    (page,) = (tmp_path / "r").glob("*/report.html")
    assert f"report: {page}\n" in capsys.readouterr().out


def test_a_judged_run_has_its_history(tiny_checkpoint, tiny_data, tiny_export, fake_judge, tmp_path):
    """The second run of a line shows the first beside itself."""
    fake_judge.values = {"quality.fp32.f1_micro": 0.9}
    results = tmp_path / "results"
    for _ in range(2):
        judgement = pipeline.judge_candidate(tiny_checkpoint, tiny_export, data=[tiny_data], results=results)
    page = (judgement.run.folder / "report.html").read_text(encoding="utf-8")
    assert "History: quality.fp32.f1_micro" in page
    assert "2 runs on one machine" in page


def test_a_report_that_fails_changes_no_verdict(
    tiny_checkpoint, tiny_data, tiny_export, fake_judge, tmp_path, monkeypatch
):
    """Without a report the verdict is the same, and a person is told."""
    from harness import summary

    said = []

    class Listener(Silence):
        def line(self, text):
            said.append(text)

    monkeypatch.setattr(summary, "render", lambda _: 1 / 0)
    results = tmp_path / "results"
    judgement = pipeline.judge_candidate(
        tiny_checkpoint, tiny_export, data=[tiny_data], results=results, progress=Listener()
    )
    assert judgement.verdict.decision is Decision.ACCEPTED
    assert any("summary.md is not there: ZeroDivisionError" in line for line in said)
    assert (judgement.run.folder / "report.html").is_file()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One headless Chromium for all of these tests."""
    program = find_chromium()
    if program is None:
        message = "no Chromium is installed (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    chromium = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """A page for each decision, and a hostile one."""
    place = tmp_path_factory.mktemp("pages")
    verdicts = {
        "accepted": document(findings_of()),
        "rejected": document(findings_of(flipped=3.0)),
        "incomplete": document([], ["the session was killed"]),
        "undecided": document([*findings_of(), open_finding()], [open_problem()]),
        "hostile": hostile_document(),
    }
    benchmark = benchmark_of_rounds("fp32", "int8")
    return {
        name: write_page(made_run(place / name, verdict, benchmark=benchmark)) for name, verdict in verdicts.items()
    }


def write_page(folder):
    """A page with plots over time."""
    return write_webreport(folder, read_account(folder), [history()])


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
@pytest.mark.parametrize("name", ["accepted", "rejected", "incomplete", "undecided", "hostile"])
def test_a_browser_shows_it(name, width, dark, browser, pages):
    """Chromium asks for the file alone, complains of nothing, runs no attack, and nothing is wider than the window."""
    page = Page(browser, pages[name], width=width, dark=dark)
    try:
        assert page.requests == [pages[name].as_uri()]
        assert page.complaints == []
        assert page.evaluate("window.pwned === undefined")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 22, 26)" if dark else "rgb(251, 251, 249)")
    finally:
        page.close()


@pytest.mark.browser
def test_a_page_that_does_more_is_noticed(browser, tmp_path):
    """The checks of this file see a request, a complaint and a script that ran, where there is one."""
    path = tmp_path / "bad.html"
    path.write_text("<script>window.pwned=1;console.error('x')</script><img src='https://example.org/x.png'>", "utf-8")
    page = Page(browser, path)
    try:
        assert "https://example.org/x.png" in page.requests
        assert page.complaints
        assert page.evaluate("window.pwned === 1")
    finally:
        page.close()


@pytest.mark.browser
def test_the_table_can_be_narrowed(browser, pages):
    """Typing a part of a name, or choosing an outcome, leaves the rows that fit; without a script every row is there."""
    page = Page(browser, pages["rejected"])
    try:
        rows = "[...document.querySelectorAll('#measures tr[data-name]')].filter(row => row.offsetParent).length"
        assert page.evaluate(rows) == 23
        page.evaluate("words.value = 'F1_MICRO_LOSS'; words.dispatchEvent(new Event('input'))")
        assert page.evaluate(rows) == 2
        page.evaluate("words.value = ''; which.value = 'broken'; which.dispatchEvent(new Event('change'))")
        assert page.evaluate(rows) == 1
        assert page.evaluate("shown.textContent") == "1 shown"
    finally:
        page.close()


@pytest.mark.browser
def test_it_can_be_printed(browser, pages):
    """Chromium prints it, and every measure is on paper also where the reader had narrowed the table."""
    page = Page(browser, pages["rejected"])
    try:
        page.evaluate("which.value = 'broken'; which.dispatchEvent(new Event('change'))")
        assert page.printed().startswith(b"%PDF")
        page.emulate_print()
        rows = "[...document.querySelectorAll('#measures tr[data-name]')].filter(row => row.offsetParent).length"
        assert page.evaluate(rows) == 23
    finally:
        page.close()
