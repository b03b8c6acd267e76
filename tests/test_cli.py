"""The command line: exit codes, one line for each mistake, results on standard output and nothing else there."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_TYPES, files_of, names_in

from harness import cli
from harness.artifact import open_artifact
from harness.manifest import changed_files

README = Path(__file__).parents[1] / "README.md"
COMMANDS = tuple(cli.build_parser()._subparsers._group_actions[0].choices)


@pytest.fixture(autouse=True)
def own_signals():
    """`main` changes what SIGTERM does; the test session keeps its own way."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder, so that no default path leads anywhere, and nobody trains a model for want of one."""
    monkeypatch.setattr("harness.pipeline._train_default", None)
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def releasing(tiny_checkpoint, tiny_data, place, fake_judge, fast_export):
    """The arguments of a release that would be accepted."""
    return ["release", "--model", str(tiny_checkpoint), "--output", "models/onnx", "--data", str(tiny_data)]


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Call `main` as the `harness` script does."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit_of_argparse:
        code = exit_of_argparse.code
    captured = capsys.readouterr()
    return int(code), captured.out, captured.err


def harness(*arguments, **options) -> subprocess.CompletedProcess:
    """Run `python -m harness` in a process of its own."""
    command = [sys.executable, "-m", "harness", *arguments]
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL  # a command that reads it by mistake is not to wait for ever
    return subprocess.run(command, check=False, capture_output=True, **{"encoding": "utf-8", **options})


def write(path: Path, text: str) -> Path:
    """Write a file and name it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    """Each command describes itself and its options, and is described in the list of commands."""
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: harness {command}")
    lines = run(capsys, "--help")[1].splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.split()[:1] == [command]]
    # argparse puts the help of a long command on a line of its own, further in
    told = lines[place].split()[1:] or lines[place + 1].split() * lines[place + 1].startswith(" " * 6)
    assert len(told) > 2
    actions = cli.build_parser()._subparsers._group_actions[0].choices[command]._actions
    unexplained = [action.dest for action in actions if action.option_strings and not action.help]
    assert unexplained == []


def test_help_names_the_exit_codes(capsys):
    """What 0, 1, 2 and 3 mean is in the help, and the commands of the design that there are, too."""
    code, out, _ = run(capsys, "--help")
    assert code == 0
    words = " ".join(out.split())
    for meaning in ("0 accepted or fine", "1 rejected", "2 wrong use or bad input", "3 could not judge"):
        assert meaning in words
    assert set(COMMANDS) >= {"release", "train", "export", "judge", "verify", "extract"}


@pytest.mark.skipif(not README.is_file() or not README.read_text(encoding="utf-8").strip(), reason="no README yet")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_names_every_command(command):
    """A command that the README does not name does not exist for its readers."""
    assert f"harness {command}" in README.read_text(encoding="utf-8")


def test_version(capsys):
    """--version prints the package's version."""
    from harness import __version__

    assert run(capsys, "--version")[:2] == (0, f"harness {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["release", "--quantise-please"],
        ["release", "--time-limit", "0"],
        ["release", "--time-limit", "nan"],
        ["release", "--time-limit", "soon"],
        ["release", "--quantize", "--target", "sse9"],
        ["judge"],
        ["judge", "--reference", "a"],
        ["verify"],
        ["extract"],
        ["extract", "x", "--variant", "fp16"],
        ["train"],
    ],
)
def test_wrong_use(capsys, place, arguments):
    """A command line that makes no sense ends with 2, a usage line, and nothing done."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: harness")
    assert "Traceback" not in err
    assert names_in(place) == []


def test_accepted(capsys, place, releasing):
    """An accepted release: 0, the verdict on standard output, progress on standard error."""
    code, out, err = run(capsys, *releasing)
    assert code == 0
    assert "ACCEPTED" in out
    assert out.strip().splitlines()[-1].startswith("evidence: results")
    assert "parity" in out
    assert "judge" in err
    assert "ACCEPTED" not in err
    assert changed_files(open_artifact(place / "models" / "onnx")) == []


def test_rejected(capsys, place, releasing, fake_judge):
    """A rejected candidate: 1, the broken limit with its value, and what is still served."""
    assert run(capsys, *releasing)[0] == 0
    fake_judge.values["parity.fp32.label_agreement"] = 0.5
    before = files_of(place / "models")
    code, out, err = run(capsys, *releasing)
    assert code == 1
    assert "REJECTED" in out
    assert "broken: parity.fp32.label_agreement = 0.5, limit ≥ 0.9999" in out
    assert "keeps the release that it had" in err
    assert files_of(place / "models") == before


def test_could_not_judge(capsys, place, releasing, fake_judge):
    """A session that died: 3, and what went wrong."""
    fake_judge.problems = ("the judging session died of signal SIGSEGV",)
    code, out, _ = run(capsys, *releasing)
    assert code == 3
    assert "INCOMPLETE" in out
    assert "problem: the judging session died of signal SIGSEGV" in out
    assert not (place / "models").exists()


@pytest.mark.parametrize("options", [[], ["--verify"]])
def test_json(capsys, place, releasing, options):
    """--json prints the verdict document and nothing else on standard output."""
    code, out, _ = run(capsys, *releasing, "--json", *options)
    assert code == 0
    document = json.loads(out)
    (written,) = (place / "results").glob("*/verdict.json")
    assert document == json.loads(written.read_text(encoding="utf-8"))
    assert document["decision"] == "ACCEPTED"


def test_release_with_verify(capsys, releasing):
    """--verify shows what the accepted release finds in sample queries."""
    code, out, _ = run(capsys, *releasing, "--verify")
    assert code == 0
    assert "AC sleeper bus from Bangalore to Mumbai tomorrow" in out
    assert out.strip().endswith("models/onnx: ACCEPTED, all files as the manifest lists them")


def test_judge_exit_codes(capsys, place, tiny_checkpoint, tiny_export, tiny_data, fake_judge):
    """`judge` ends with the codes of `release`, and leaves the export alone."""
    arguments = ["judge", "--reference", tiny_checkpoint, "--candidate", tiny_export, "--data", tiny_data]
    before = files_of(tiny_export)
    assert run(capsys, *arguments)[0] == 0
    fake_judge.values["quality.fp32.f1_micro"] = 0.1
    assert run(capsys, *arguments)[0] == 1
    code, out, _ = run(capsys, *arguments, "--suite", "parity")
    assert code == 0
    assert "by the suites parity only" in out
    fake_judge.missing = {"artifact.fp32.opset_version"}
    fake_judge.values.clear()
    assert run(capsys, *arguments)[0] == 3
    assert files_of(tiny_export) == before
    assert names_in(place) == ["results"]


UNKNOWN = "[limits.parity.fp32]\nlabel_agrement = { min = 1 }\n"
BAD_RELEASES = {
    "no model": lambda at, model: ["--model", at / "nowhere"],
    "a file as model": lambda at, model: ["--model", write(at / "model.pt", "")],
    "output is model": lambda at, model: ["--output", model],
    "output in model": lambda at, model: ["--output", model / "onnx"],
    "output is a file": lambda at, model: ["--output", write(at / "file", "")],
    "output below a file": lambda at, model: ["--output", write(at / "file", "") / "onnx"],
    "output is somebody's": lambda at, model: ["--output", write(at / "mine" / "thesis.tex", "").parent],
    "results below a file": lambda at, model: ["--results", write(at / "file", "") / "results"],
    "no data": lambda at, model: ["--data", at / "nowhere.jsonl"],
    "data is a folder": lambda at, model: ["--data", at],
    "empty data": lambda at, model: ["--data", write(at / "empty.jsonl", "")],
    "bad data": lambda at, model: ["--data", write(at / "bad.jsonl", '{"text": "goa"\n')],
    "spans outside the text": lambda at, model: ["--data", write(at / "b.jsonl", '{"text": "a", "spans": [[0, 9, "SRC"]]}\n')],
    "no policy": lambda at, model: ["--policy", at / "nowhere.toml"],
    "bad policy": lambda at, model: ["--policy", write(at / "policy.toml", "[limits\n")],
    "unknown measure": lambda at, model: ["--policy", write(at / "policy.toml", UNKNOWN)],
    "a name with a line break": lambda at, model: ["--data", at / "two\nlines.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RELEASES)
def test_bad_input(capsys, place, releasing, tiny_checkpoint, case):
    """Every bad input ends with 2 and one line that starts with the program's name; nothing is written or changed."""
    extra = BAD_RELEASES[case](place, tiny_checkpoint)
    before, checkpoint = sorted(place.rglob("*")), files_of(tiny_checkpoint)
    code, out, err = run(capsys, *releasing, *extra)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("harness: ")
    assert sorted(place.rglob("*")) == before
    assert files_of(tiny_checkpoint) == checkpoint


@pytest.mark.parametrize("command", ["export", "release", "judge"])
def test_missing_models(capsys, place, command):
    """Any command that needs a checkpoint says which folder is not there."""
    where = {"judge": ["--reference", "nowhere", "--candidate", "neither"]}.get(command, ["--model", "nowhere"])
    code, _, err = run(capsys, command, *where)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "does not exist" in err
    assert names_in(place) == []


def test_default_data_of_another_domain(capsys, place, releasing):
    """Bus queries do not judge another domain's model: --data is asked for."""
    code, _, err = run(capsys, *releasing[:-2])
    assert code == 2
    assert "--data FILE" in err
    assert names_in(place) == []


def test_export(capsys, place, tiny_checkpoint, fast_export):
    """`export` writes an export that says it is unjudged, and says so itself."""
    code, out, err = run(capsys, "export", "--model", tiny_checkpoint, "--output", "out/onnx", "--verify")
    assert code == 0
    assert "unjudged" in err
    assert "UNJUDGED" in out
    assert open_artifact(place / "out" / "onnx").manifest["decision"] == "UNJUDGED"


def test_export_does_not_replace_a_release(capsys, place, releasing, tiny_checkpoint):
    """`export` onto an accepted release is refused; the release is served as before."""
    assert run(capsys, *releasing)[0] == 0
    before = files_of(place / "models")
    code, _, err = run(capsys, "export", "--model", tiny_checkpoint, "--output", "models/onnx")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert files_of(place / "models") == before


@pytest.mark.parametrize("calibration", ["nowhere.txt", "empty.txt"])
def test_export_with_bad_calibration(capsys, place, tiny_checkpoint, fast_export, calibration):
    """Queries for calibration that cannot be read are found before the export."""
    write(place / "empty.txt", "\n")
    code, out, err = run(
        capsys, "export", "--model", tiny_checkpoint, "--output", "onnx", "--quantize", "--calibration", calibration
    )
    assert (code, out) == (2, "")
    assert calibration in err
    assert len(err.splitlines()) == 1
    assert names_in(place) == ["empty.txt"]


def test_verify(capsys, tiny_export):
    """`verify` of a good folder: 0, sample answers, the decision."""
    code, out, err = run(capsys, "verify", tiny_export)
    assert (code, err) == (0, "")
    assert out.strip().endswith("UNJUDGED, all files as the manifest lists them")
    document = json.loads(run(capsys, "verify", tiny_export, "--json")[1])
    assert document["decision"] == "UNJUDGED"
    assert document["problems"] == []
    assert len(document["answers"]) == 2


@pytest.mark.parametrize(
    ("name", "content"), [("vocab.txt", b"x"), ("model.onnx", b"x"), ("extra", b""), ("tokenizer.json", b"{}")]
)
def test_verify_a_changed_folder(capsys, export_copy, name, content):
    """`verify` of a folder with a file that was changed or added: 1, and the file's name, also if nothing runs any more."""
    (export_copy / name).write_bytes(content)
    code, out, err = run(capsys, "verify", export_copy)
    assert (code, err) == (1, "")
    assert f"problem: {name} was" in out
    assert json.loads(run(capsys, "verify", export_copy, "--json")[1])["problems"]


def test_verify_what_is_no_release(capsys, place, export_copy):
    """`verify` of something else: 2 and one line."""
    (export_copy / "manifest.json").unlink()
    for folder in (export_copy, place, place / "nowhere"):
        code, out, err = run(capsys, "verify", folder)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1


def test_extract_from_arguments(capsys, tiny_export):
    """`extract` prints a JSON line a query, every type in it."""
    code, out, err = run(capsys, "extract", tiny_export, "bus from goa", "", "caf\u00e9 \u4e2d")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [list(answer) for answer in answers] == [list(TINY_TYPES)] * 3
    assert answers[1] == dict.fromkeys(TINY_TYPES)


def test_extract_from_standard_input(capsys, tiny_export, tiny_queries, monkeypatch):
    """Without arguments, each line of standard input is a query; the answers are those of the arguments."""
    expected = run(capsys, "extract", tiny_export, *tiny_queries[:40])[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(tiny_queries[:40]) + "\n"))
    assert run(capsys, "extract", tiny_export)[:2] == (0, expected)


def test_extract_from_empty_input(capsys, tiny_export, monkeypatch):
    """No lines, no answers."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run(capsys, "extract", tiny_export) == (0, "", "")


def test_extract_in_detail(capsys, tiny_export):
    """--detailed gives places and scores; `text == query[start:end]`."""
    query = "bus from goa to mumbai"
    answer = json.loads(run(capsys, "extract", tiny_export, query, "--detailed")[1])
    assert answer["query"] == query
    assert answer["raw_entities"]
    for found in answer["raw_entities"]:
        assert query[found["start"] : found["end"]] == found["text"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--detailed", "{}", "bus to goa", "mumbai"],
        ["{}", "--detailed", "bus to goa", "mumbai"],
        ["{}", "bus to goa", "--detailed", "mumbai"],
        ["{}", "bus to goa", "mumbai", "--detailed"],
        ["{}", "--variant", "fp32", "bus to goa", "--detailed", "mumbai"],
    ],
)
def test_options_may_stand_anywhere(capsys, tiny_export, arguments):
    """Queries may stand before, behind and between the options."""
    code, out, _ = run(capsys, "extract", *(argument.format(tiny_export) for argument in arguments))
    assert code == 0
    assert [json.loads(line)["query"] for line in out.splitlines()] == ["bus to goa", "mumbai"]


def test_an_unknown_option_is_no_query(capsys, tiny_export):
    """A misspelt option is a mistake, not a query."""
    code, out, err = run(capsys, "extract", tiny_export, "--detail-please", "bus")
    assert (code, out) == (2, "")
    assert "--detail-please" in err


def test_extract_by_variant(capsys, tiny_quantized, tiny_export):
    """--variant chooses the model; one that is not there is a mistake."""
    assert run(capsys, "extract", tiny_quantized, "bus", "--variant", "fp32")[0] == 0
    code, out, err = run(capsys, "extract", tiny_export, "bus", "--variant", "int8")
    assert (code, out) == (2, "")
    assert "it has: fp32" in err


def test_a_bug_is_not_a_rejection(capsys, tiny_export, monkeypatch):
    """An exception that nobody expected ends with 3 and a traceback; Python's own 1 would mean "rejected"."""

    def broken(*args, **kwargs):
        message = "our own mistake"
        raise ZeroDivisionError(message)

    monkeypatch.setattr("harness.inference.NERInference", broken)
    code, out, err = run(capsys, "extract", tiny_export, "bus")
    assert (code, out) == (3, "")
    assert "ZeroDivisionError: our own mistake" in err
    assert "bug in the harness" in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["harness.inference", "suites.parity"])
def test_a_module_of_our_own_that_is_missing_is_a_bug(capsys, tiny_export, monkeypatch, name):
    """A broken installation of the harness itself is no user's mistake, and no rejection either."""

    def broken(*args, **kwargs):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("harness.inference.NERInference", broken)
    assert run(capsys, "extract", tiny_export, "bus")[0] == 3


@pytest.mark.parametrize("package", ["torch", "transformers", "optimum"])
def test_a_missing_package(capsys, place, tiny_checkpoint, monkeypatch, package):
    """Where the release extra is not installed: 2, the package's name, and the pip line."""
    for name in [name for name in sys.modules if name in {"harness.reference", "optimum.onnxruntime"}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run(capsys, "export", "--model", tiny_checkpoint, "--output", "onnx")
    assert (code, out) == (2, "")
    said = err.splitlines()[-1]
    assert said.startswith(f"harness: this command needs the package '{package}")
    assert said.endswith("pip install 'ner-release-harness[release]'.")
    assert names_in(place) == []


def test_interrupted(capsys, place, releasing, monkeypatch):
    """Ctrl-C ends with 3, one line, nothing accepted."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.pipeline.judge", interrupt)
    code, _, err = run(capsys, *releasing)
    assert code == 3
    assert err.splitlines()[-1].startswith("harness: interrupted")
    assert not (place / "models").exists()


def test_a_full_disk(capsys, place, releasing, monkeypatch):
    """What the system refuses ends with 3 and one line that names the place."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("harness.pipeline.write_export", full)
    code, _, err = run(capsys, *releasing)
    assert code == 3
    assert err.splitlines()[-1] == "harness: somewhere: No space left on device. Nothing was accepted."
    assert not (place / "models").exists()


def test_as_a_process(tiny_export, tmp_path):
    """`python -m harness` ends with the codes of `main`, in UTF-8, one line for a mistake."""
    done = harness("extract", tiny_export, "bus from caf\u00e9", "--detailed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["query"] == "bus from caf\u00e9"
    assert done.stderr == ""
    done = harness("extract", tmp_path / "nowhere", "bus", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert names_in(tmp_path) == []


def test_the_harness_script(tmp_path):
    """The installed `harness` script is the same program."""
    script = shutil.which("harness", path=str(Path(sys.executable).parent))
    assert script, "the package is not installed in this environment"
    done = subprocess.run([script, "verify", "nowhere"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "harness: nowhere does not exist. Name the folder of an ONNX export.\n"


def test_lines_that_are_no_text(tiny_export):
    """Bytes on standard input that are no UTF-8 end with 2, in one line, or are answered; never with a traceback."""
    done = harness("extract", tiny_export, input=b"bus to goa\nbus to \xff\n", encoding=None)
    assert done.returncode in {0, 2}
    assert b"Traceback" not in done.stderr
    if done.returncode == 2:
        assert b"UTF-8" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_an_argument_that_is_no_text(tiny_export):
    """An argument that is no UTF-8 is answered, and the answer is JSON."""
    done = harness("extract", tiny_export, "--detailed", b"bus to \xff goa")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["query"] == "bus to \udcff goa"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_other_encodings(tiny_export, encoding):
    """A terminal that has not every character gets JSON all the same, in escapes where it must be."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = harness(
        "extract", tiny_export, "--detailed", "\u4e2d caf\u00e9 \U0001f600", env=environment, encoding=encoding
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["query"] == "\u4e2d caf\u00e9 \U0001f600"


def test_a_reader_that_has_gone(tiny_export):
    """A closed pipe, as after `| head`, is not a traceback, and not one of the codes for fine or rejected."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "extract", str(tiny_export)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    _, err = process.communicate(b"bus to goa\n" * 40)
    assert process.returncode == 3
    assert err == b""


def test_extract_and_verify_need_the_runtime_only(tiny_export):
    """`extract` and `verify` run where nothing but the runtime is installed."""
    missing = ("torch", "transformers", "optimum", "onnx", "pytest", "rich", "hypothesis", "seqeval", "safetensors")
    program = (
        f"import sys\nfor name in {missing!r}: sys.modules[name] = None\n"
        "from harness.cli import main\n"
        "assert main(['extract', sys.argv[1], 'bus']) == 0\n"
        "assert main(['verify', sys.argv[1]]) == 0\n"
        "raise SystemExit(main(['export', '--model', sys.argv[2], '--output', sys.argv[3]]))"
    )
    model = Path(tiny_export).parent / "nowhere"
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_export, model, model], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "does not exist" in done.stderr


def test_a_release_that_cannot_be_put_in_place(capsys, place, releasing, monkeypatch):
    """A file system that refuses an accepted candidate is no bad input: exit code 3, one line."""
    from harness.errors import AcceptanceError

    def refuse(*args, **kwargs):
        message = "models/onnx could not be replaced (No space left on device)."
        raise AcceptanceError(message)

    monkeypatch.setattr("harness.pipeline.release", refuse)
    code, _, err = run(capsys, *releasing)
    assert code == 3
    assert err.splitlines()[-1].startswith("harness: models/onnx could not be replaced")


@pytest.mark.parametrize("command", ["release", "export"])
def test_a_target_without_int8(capsys, place, tiny_checkpoint, tiny_data, command):
    """A target for a variant that nobody asked for is refused, not ignored."""
    data = ["--data", str(tiny_data)] if command == "release" else []
    arguments = [command, "--model", str(tiny_checkpoint), "--output", "models/onnx", "--target", "avx2", *data]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Add --quantize" in err
