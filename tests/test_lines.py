"""Release lines: what one model's queries once broke is replayed for that model, and for no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import files_of, names_in

from harness import cli, pipeline
from harness.errors import UsageError
from harness.progress import Silence

NO_NAMES = ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a b", "a\n", "\u0430", "x" * 101, "a:b", "~", "a\x00"]


class Told(Silence):
    """Keeps what progress says."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def commands(tiny_checkpoint, tiny_export, tiny_data, place, fake_judge, fast_export):
    """The arguments of both commands that judge, for any checkpoint."""

    def arguments(command, checkpoint=tiny_checkpoint):
        own = {
            "release": ["--model", str(checkpoint), "--output", "models/onnx"],
            "judge": ["--reference", str(checkpoint), "--candidate", str(tiny_export)],
        }
        return [command, *own[command], "--data", str(tiny_data)]

    return arguments


@pytest.mark.parametrize("command", ["release", "judge"])
def test_the_line_of_a_checkpoint_is_its_folders_name(commands, fake_judge, tiny_checkpoint, command):
    """Without --line, a model's state lies under the name of its folder, and the verdict names the line."""
    assert cli.main(commands(command)) == 0
    assert fake_judge.questions[0].state.parts == ("results", "state", tiny_checkpoint.name)


@pytest.mark.parametrize("command", ["release", "judge"])
def test_a_line_of_ones_own(commands, fake_judge, command):
    """--line names the line, so that checkpoints of several trainings share one, and two of one name do not."""
    assert cli.main([*commands(command), "--line", "bus-v2.1_x"]) == 0
    assert fake_judge.questions[0].state.parts == ("results", "state", "bus-v2.1_x")


def test_two_models_share_no_state(commands, fake_judge, tiny_checkpoint, place):
    """Two checkpoints in one results folder are two lines."""
    other = shutil.copytree(tiny_checkpoint, place / "another_model")
    assert cli.main(commands("judge")) == cli.main(commands("judge", other)) == 0
    first, second = (question.state for question in fake_judge.questions)
    assert first.parent == second.parent
    assert first != second


def test_the_verdict_names_the_line(tiny_checkpoint, tiny_export, tiny_data, place, fake_judge):
    """Who reads a verdict sees whose saved queries were replayed."""
    judgement = pipeline.judge_candidate(tiny_checkpoint, tiny_export, data=[tiny_data], line="v2")
    assert judgement.document["subject"]["line"] == "v2"


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_are_no_folders(tmp_path, name):
    """A name that would lead elsewhere, hide, or mean another folder on another system is refused in one line."""
    with pytest.raises(UsageError, match="cannot name a release line") as caught:
        pipeline.state_of_line(tmp_path, name, tmp_path, Silence())
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["a", "A-1", "_", "-", "0.9", "x" * 100, "bus_ner_transformer", "a..b"])
def test_names_of_lines(tmp_path, name):
    """Letters, digits, dots, dashes and underscores are a name; the folder lies where it should."""
    assert pipeline.state_of_line(tmp_path, name, tmp_path, Silence()) == tmp_path / "state" / name


@pytest.mark.parametrize("command", ["release", "judge"])
def test_a_bad_line_ends_with_2(capsys, commands, place, command):
    """A line that is none ends with exit code 2 and one line, before anything is written."""
    assert cli.main([*commands(command), "--line", "../elsewhere"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("harness: --line '../elsewhere' cannot name a release line")
    assert names_in(place) == []


def test_a_checkpoint_whose_name_is_no_line(capsys, commands, tiny_checkpoint, place):
    """Where the checkpoint's folder has a name that no line can have, --line is asked for, and helps."""
    odd = shutil.copytree(tiny_checkpoint, place / "my model")
    assert cli.main(commands("judge", odd)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("Name it with --line NAME.")
    assert cli.main([*commands("judge", odd), "--line", "mine"]) == 0


def test_a_checkpoint_by_a_relative_path(tiny_checkpoint, tmp_path, monkeypatch):
    """`.` is the line of the folder that it is."""
    monkeypatch.chdir(tiny_checkpoint)
    assert pipeline.state_of_line(tmp_path, None, Path(), Silence()).name == tiny_checkpoint.name


def test_queries_saved_before_there_were_lines(tmp_path):
    """The one file of earlier versions is left alone, not replayed for anybody, and told of."""
    old = tmp_path / "state" / "queries.jsonl"
    old.parent.mkdir()
    old.write_text("{}\n", encoding="utf-8")
    before = files_of(tmp_path)
    told = Told()
    pipeline.state_of_line(tmp_path, "bus", tmp_path, told)
    assert told.lines == [f"note: {old} is of no release line and is not replayed; move it to {old.parent}/bus/"]
    assert files_of(tmp_path) == before
