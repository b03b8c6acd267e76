"""Replaying the shipped bytes without PyTorch: a faithful program differs nowhere, each planted fault shows, nothing hangs."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
from itertools import count, pairwise
from pathlib import Path

import pytest
from conftest import TINY_MAXIMUM
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.artifact import Variant, open_artifact
from harness.candidate import Candidate
from harness.tagging import entity_runs, tag
from suites.queries import replay
from suites.queries.fresh_replay import PROGRAM, FreshReplay, Group, ReplayError
from suites.queries.replay_program import ABSENT, ANSWERS, REQUEST
from suites.queries.watched import FoundSpan, Trace

# Only so that a broken guard fails instead of hanging.
PATIENCE_S = 50
HOPELESS_S = 2


@pytest.fixture(scope="module")
def texts(tiny_queries):
    return replay.texts_to_replay(tiny_queries, ["bus to goa, mumbai!", "n\u00e9 a\u0301c"])


@pytest.fixture
def replayed(texts):
    """What differs when a candidate is replayed; `path` is where the program finds its packages."""

    def run(folder, variant="fp32", *, known=(), path=None):
        model = Candidate(open_artifact(folder), Variant(variant))
        with FreshReplay(folder, variant, texts.groups, path=path) as process:
            way = replay.TransformersWay(folder, model)
            wanted = list(way.traces(texts.every, {tagged.text: tagged for tagged in known}))
            return replay.differences(texts.every, wanted, process.answers(PATIENCE_S))

    return run


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_every_class_of_text_is_asked(texts, tiny_queries):
    """Each labelled query, and every class of Unicode: right to left, marks, zero width, emoji, control, long, empty, blank."""
    assert set(tiny_queries) <= set(texts.labelled)
    assert {"", " "} <= set(texts.others)
    assert {len(text) for text in texts.others} >= {10_000}
    everything = "".join(texts.others)
    for reached in (
        "[\u05d0-\u05ea]", "[\u0627-\u064a]", "\u202e", "[\u0300-\u036f]", "\u094d", "[\u200b-\u200d]", "\ufeff",
        "\u200d\U0001f469", "[\U0001f1e6-\U0001f1ff]{2}", "\U0001f3fd", "[\x00-\x08]", "\x1b", "[\ud800-\udfff]",
    ):  # fmt: skip
        assert re.search(reached, everything), reached
    assert len(set(texts.every)) == len(texts.every)


def test_many_labelled_queries_are_taken_evenly():
    """Of more labelled queries than are asked, each stretch of the file gives its share, the first one included."""
    every = [str(number) for number in range(3 * replay.MOST_LABELLED // 2)]
    taken = replay.texts_to_replay(every, []).labelled
    assert len(taken) == replay.MOST_LABELLED
    places = [int(text) for text in taken]
    assert places[0] == 0
    assert {later - earlier for earlier, later in pairwise(places)} == {1, 2}
    assert places[-1] >= len(every) - 2
    assert replay.texts_to_replay(["a", "b", "a"], []).labelled == ("a", "b")


def test_what_is_asked_is_said():
    """The details tell how many labelled queries there were, and how many of them were asked."""
    described = replay.texts_to_replay([str(number) for number in range(replay.MOST_LABELLED + 7)], ["x"]).described()
    assert (described["labelled"], described["labelled_in_all"]) == (replay.MOST_LABELLED, replay.MOST_LABELLED + 7)


# -- a faithful program ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_a_good_export_differs_nowhere(replayed, tiny_quantized, variant):
    """Token ids, offsets, words, labels and spans are those of transformers' way, for every text and in either variant."""
    assert replayed(tiny_quantized, variant) == {}


def test_answers_of_the_session_may_stand_for_the_model(replayed, tiny_export, tiny_queries):
    """Labels that the session knows already are the same as those of another run of the model."""
    model = Candidate(open_artifact(tiny_export), Variant.FP32)
    assert replayed(tiny_export, known=tag(model, tiny_queries)) == {}


def test_there_is_something_to_compare(tiny_export, texts):
    """The traces hold tokens, several windows, words, labels and entities; empty ones would agree about nothing."""
    with FreshReplay(tiny_export, "fp32", texts.groups) as process:
        traces = dict(zip(texts.every, process.answers(PATIENCE_S), strict=True))
    (long_text,) = replay.UNICODE["10,000 characters"]
    assert len(traces[long_text].ids) > 10
    assert sum(len(trace.spans) for trace in traces.values()) > len(texts.labelled)
    assert traces[""] == Trace(traces[""].ids, traces[""].offsets, (), (), ())
    for text, trace in traces.items():
        assert [len(window) for window in trace.ids] == [len(window) for window in trace.offsets]
        assert len(trace.words) == len(trace.labels)
        assert all(span.text == text[span.start : span.end] for span in trace.spans)


def test_a_trace_survives_json():
    """What is written is what is read, also half a surrogate pair."""
    trace = Trace(((1, 2),), (((0, 0), (0, 1)),), ((0, 1),), ("B-X",), (FoundSpan(0, 1, "X", "\ud800"),))
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


# -- planted faults --------------------------------------------------------------------------------------------------


@pytest.fixture
def patched(tmp_path):
    """The path of a program whose harness has one line of one module changed."""

    def patch(module, old, new):
        copy = shutil.copytree(Path(harness.__file__).parent, tmp_path / "site" / "harness")
        text = (copy / module).read_text(encoding="utf-8")
        assert old in text, f"{module} has changed; plant the fault anew"
        (copy / module).write_text(text.replace(old, new), encoding="utf-8")
        return [str(tmp_path / "site"), *sys.path]

    return patch


FAULTS = {
    "the decoder takes I- for a beginning": (
        "tagging.py", "or prefix in _BEGINNING:", 'or prefix in "BSUI":', "entities",
    ),
    "the decoder joins neighbours": ("tagging.py", '_BEGINNING = frozenset("BSU")', '_BEGINNING = frozenset("SU")', "entities"),
    "the entity's text is folded": (
        "inference.py", '"text": tagged.text[start:end]', '"text": tagged.text[start:end].strip("o")', "entities",
    ),
    "words keep a mark too few": ("encoding.py", 'unicodedata.category(text[end]) == "Mn"', "False", "words"),
    "rows are mixed up": ("batches.py", "= answer[place, row", "= answer[-1 - place, row", "labels"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_runtime_shows(replayed, patched, tiny_export, fault):
    """A program whose decoder, cutting or batching is at fault differs, and in what it is at fault."""
    module, old, new, what = FAULTS[fault]
    found = replayed(tiny_export, path=patched(module, old, new))
    assert {why.partition(":")[0] for why in found.values()} == {what}


def test_other_windows_show(replayed, patched, tiny_export):
    """A program that cuts long texts into windows of another overlap differs in these, and in no short one."""
    path = patched("encoding.py", "return maximum // 4", "return maximum // 8")
    found = replayed(tiny_export, path=path)
    (long_text,) = replay.UNICODE["10,000 characters"]
    assert found[long_text].startswith("token ids: ")
    assert min(map(len, found)) > TINY_MAXIMUM // 2


def test_a_tokenizer_that_transformers_reads_otherwise_shows(replayed, export_copy, texts):
    """Where tokenizer_config.json says another case than tokenizer.json, transformers and the runtime cut otherwise."""
    path = export_copy / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "do_lower_case": not config["do_lower_case"]}), encoding="utf-8")
    found = replayed(export_copy)
    assert found
    assert all(why.startswith(("token ids: ", "offsets")) for why in found.values())


def test_differences_are_shown_in_escapes():
    """Of many differences ten are shown, the shortest first, and what cannot be seen is readable."""
    found = {"\u200b\ud800" + "x" * number: "labels: 0: why" for number in range(200)}
    shown = replay.described(found)
    assert len(shown) == 10
    assert shown[0]["query"] == "\\u200b\\ud800"
    assert all(entry["query"].isascii() for entry in shown)
    (long_one,) = replay.described({"\u202e" * 200: "words"})
    assert long_one["query"].endswith("… (200 characters)")
    json.dumps(shown).encode()


# -- the rule of grouping --------------------------------------------------------------------------------------------


PARTS = st.one_of(st.just("O"), st.sampled_from(["X", "Y", "B-", "X-1", "-"]).flatmap(
    lambda kind: st.sampled_from(["B-", "I-", "S-", "U-", "E-", "L-", "M-", "Z-", ""]).map(lambda prefix: prefix + kind)
))  # fmt: skip


@given(st.lists(PARTS, max_size=12))
def test_grouping_twice_comes_to_the_same(labels):
    """The rule written for replaying and the runtime's decoder agree about any labels in any order."""
    text = "ab " * len(labels)
    words = [(3 * place, 3 * place + 2) for place in range(len(labels))]
    expected = [
        FoundSpan(3 * run.first, 3 * run.last + 2, run.kind, text[3 * run.first : 3 * run.last + 2])
        for run in entity_runs(labels)
    ]
    assert list(replay.grouped(text, words, labels)) == expected


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ("B-X I-X O I-X", ["X 0 1", "X 3 3"]),
        ("B-X B-X I-X", ["X 0 0", "X 1 2"]),
        ("B-X I-Y I-Y", ["X 0 0", "Y 1 2"]),
        ("X X O Y", ["X 0 1", "Y 3 3"]),
        ("O O", []),
        ("", []),
    ],
)
def test_grouping(labels, spans):
    """B- begins an entity, and so does an I- without one of its type before it."""
    names = labels.split()
    words = [(place, place + 1) for place in range(len(names))]
    found = replay.grouped("x" * len(names), words, names)
    assert [f"{span.kind} {span.start} {span.end - 1}" for span in found] == spans


# -- processes that do not answer ------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path):
    """The command line of a program with this body, which finds the request's folder in `place`."""
    numbers = count()

    def write(body):
        path = tmp_path / f"program{next(numbers)}.py"
        prelude = "import os, signal, subprocess, sys\nfrom pathlib import Path\nplace = Path(sys.argv[1])\n"
        path.write_text(prelude + body, encoding="utf-8")
        return [sys.executable, "-I", str(path)]

    return write


def asked(tiny_export, command, limit_s=PATIENCE_S, **options):
    with FreshReplay(tiny_export, "fp32", [Group(("bus", "goa"), 1)], program=command, **options) as process:
        return process.answers(limit_s)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)\n", "was ended by signal 9 before it had answered: it said nothing"),
        ("os.kill(os.getpid(), signal.SIGSEGV)\n", "was ended by signal 11"),
        ("raise MemoryError('too much')\n", "ended with exit code 1 before it had answered: MemoryError: too much"),
        ("os._exit(3)\n", "ended with exit code 3"),
        ("", "answers that cannot be read (FileNotFoundError"),
        (f"(place / '{ANSWERS}').touch()\n", "answered 0 of 2 texts"),
        (f"(place / '{ANSWERS}').write_text('{{}}\\n')\n", "answers that cannot be read (ValueError"),
        (f"(place / '{ANSWERS}').write_text('[1\\n')\n", "answers that cannot be read (JSONDecodeError"),
        (f"(place / '{ANSWERS}').write_bytes(b'\\xff\\n')\n", "answers that cannot be read (UnicodeDecodeError"),
    ],
)
def test_a_program_that_does_not_answer(tiny_export, program, body, says):
    """A process that dies, says nothing or something else is an error with the reason, in one line; never agreement."""
    with pytest.raises(ReplayError, match=re.escape(says)) as caught:
        asked(tiny_export, program(body))
    assert "\n" not in str(caught.value)


def test_answers_cut_short(tiny_export, program):
    """Fewer answers than texts are no answers."""
    trace = json.dumps(Trace((), (), (), (), ()).to_json())
    with pytest.raises(ReplayError, match="answered 1 of 2 texts"):
        asked(tiny_export, program(f"(place / '{ANSWERS}').write_text({trace!r} + '\\n')\n"))


@pytest.fixture
def left_behind(tmp_path):
    """The body of a program that starts a child and hangs, and a function that tells whether the child has gone."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def has_gone():
        readable, _, _ = select.select([reader], [], [], PATIENCE_S)
        return bool(readable) and os.read(reader, 1) == b""

    yield f"subprocess.Popen(['sleep', '100'], stdout=os.open({str(fifo)!r}, os.O_WRONLY))\n", has_gone
    os.close(reader)


def test_a_program_that_hangs_is_killed_with_its_children(tiny_export, program, left_behind):
    """At the time limit the process goes, and so does what it started."""
    body, has_gone = left_behind
    with pytest.raises(ReplayError, match=r"did not answer within 2 s\.$"):
        asked(tiny_export, program(f"{body}signal.pause()\n"), HOPELESS_S)
    assert has_gone()


def test_nothing_is_left_where_the_asker_fails(tiny_export, program, tmp_path, left_behind):
    """An error while the program runs ends the program with its children and removes its folder."""
    note = tmp_path / "note"
    os.mkfifo(note)
    body, has_gone = left_behind
    command = program(f"{body}Path({str(note)!r}).write_text(str(place))\nsignal.pause()\n")
    process = FreshReplay(tiny_export, "fp32", [Group(("bus",), 1)], program=command)
    place = Path(note.read_text(encoding="utf-8"))
    assert (place / REQUEST).is_file()
    with pytest.raises(ZeroDivisionError), process:
        raise ZeroDivisionError
    assert process._process.returncode < 0
    assert has_gone()
    assert not place.exists()


def test_the_program_ends_with_its_asker(tmp_path):
    """Where nobody holds the other end of its standard input, the program does not stay: a killed judge leaves nothing."""
    os.mkfifo(tmp_path / REQUEST)  # it would wait for the request for ever
    ended = subprocess.run([*PROGRAM, str(tmp_path)], stdin=subprocess.DEVNULL, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1


# -- what the program may import -------------------------------------------------------------------------------------


def test_the_absent_packages_are_those_of_the_extra():
    """What cannot be imported while replaying is all that `release` adds to the runtime in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        re.split(r"[^\w-]", entry)[0].replace("-", "_") for entry in project["optional-dependencies"]["release"]
    } - {"tomli"}
    assert {"optimum" if name.startswith("optimum") else name for name in names} == set(ABSENT)


@pytest.mark.parametrize("name", ["torch", "transformers", "optimum.onnxruntime", "onnx"])
def test_a_runtime_that_needs_more_fails(tiny_export, patched, name):
    """A runtime that imports PyTorch, transformers, optimum or onnx, wherever, does not answer; the package is named."""
    path = patched("candidate.py", "import numpy as np\n", f"import numpy as np\nimport {name}\n")
    with pytest.raises(ReplayError, match=rf"ModuleNotFoundError: .*\b{name.partition('.')[0]}\b"):
        asked(tiny_export, PROGRAM, path=path)


def test_neither_variables_nor_the_working_folder_change_what_is_imported(tiny_export, tmp_path, monkeypatch):
    """A package of the same name in the working folder, or on a PYTHONPATH that the asker does not use, is not taken."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("raise OSError\n", encoding="utf-8")
    (tmp_path / "json.py").write_text("raise OSError\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = [entry for entry in sys.path if entry]
    assert len(asked(tiny_export, PROGRAM, path=path)) == 2
