"""Two runs held against each other: what is worse is said, what cannot be compared fairly decides nothing."""

from __future__ import annotations

import json
import math
import re
import subprocess

import pytest
from made_runs import F1, MACHINE, OTHER_MACHINE, P50, RATIO, f1, key, line_of, name_of, ratio_run, run, write_runs

from harness import cli
from harness.comparison import Change, Kind, Method, Rules, Tolerances, compare_runs, kind_of, tolerances_from
from harness.documents import write_json
from harness.errors import HistoryError, UsageError
from harness.evidence import Unit
from harness.history import Recorded, Revision, Samples
from harness.selection import NothingEarlierError, choose_pair
from harness.verdict import Decision, Limit

# Log ratios of 50 blocks around a ratio, as quiet timings have them: a spread of 3 %.
BLOCKS = tuple(0.03 * math.sin(number * 12.9898) for number in range(50))
MIB = key("artifact.int8.file_size")
LOGIT = key("parity.int8.max_logit_difference")
WRONG = key("parity.int8.confident_flips")
COMPARED = key("parity.int8.compared_words")
OPSET = key("artifact.int8.opset_version")
SHARE = key("quality.int8.token_accuracy")


def blocks(ratio):
    return [math.log(ratio) + one for one in BLOCKS]


def only(comparison):
    (measure,) = comparison.measures
    return measure


def compare_values(measure, earlier, later, unit, limit=None, rules=None):
    limit = limit or Limit()
    runs = [run(number, {measure: Recorded(value, unit, limit)}) for number, value in enumerate((earlier, later))]
    return only(compare_runs(runs[1], runs[0], rules))


# --- times


@pytest.mark.parametrize(
    ("later", "change"),
    [
        (0.250, "same"),
        (0.255, "same"),
        (0.2875, "worse"),
        (0.2, "better"),
        (0.2745, "cannot tell"),
        (0.2755, "cannot tell"),
    ],
)
def test_a_paired_ratio_is_compared_by_its_samples(later, change):
    """15 % more time is worse, 20 % less is better, 2 % is the same; where the bound reaches across, nothing is said."""
    found = only(compare_runs(ratio_run(1, later, blocks(later)), ratio_run(0, 0.25, blocks(0.25))))
    assert found.change.value == change
    assert found.ratio == pytest.approx(later / 0.25)
    assert found.bound.low < found.ratio < found.bound.high
    assert found.bound.method is Method.SHIFT
    assert found.regression is (change == "worse")


def test_noise_is_not_called_a_regression():
    """Two noisy measurements of which one looks 12 % slower: the bound begins within the tolerance, so nothing is said."""
    noisy = [12 * one for one in BLOCKS[:11]]
    found = only(
        compare_runs(ratio_run(1, 0.28, [math.log(0.28) + one for one in noisy]), ratio_run(0, 0.25, blocks(0.25)[:11]))
    )
    assert found.change is Change.CANNOT_TELL


def test_a_time_without_samples_is_not_told_from_noise():
    """One number each way, 20 % apart: nothing says that it is more than noise. Within the tolerance it is the same."""
    assert only(compare_runs(ratio_run(1, 0.30), ratio_run(0, 0.25))).reason == "no samples to tell it from noise"
    assert only(compare_runs(ratio_run(1, 0.26), ratio_run(0, 0.25))).change is Change.SAME


def p50_run(number, value, low, high):
    measures = {P50: Recorded(value, Unit.MILLISECOND, Limit())}
    return run(number, measures, {P50: Samples(interval=(low, high))})


def test_absolute_times_are_shown_and_not_counted():
    """Milliseconds of two runs say what else the machine did: worse, but no regression unless the user wants it."""
    runs = p50_run(1, 4.0, 3.9, 4.1), p50_run(0, 3.0, 2.9, 3.1)
    found = only(compare_runs(*runs))
    assert (found.change, found.regression) == (Change.WORSE, False)
    assert found.bound.low == pytest.approx(3.9 / 3.1)
    assert only(compare_runs(*runs, Rules(absolute_times=True))).regression


def test_more_queries_a_second_are_better():
    """Of throughput more is better, without any limit saying so."""
    throughput = key("latency.int8.throughput")
    samples = {throughput: Samples(interval=(99.0, 101.0))}, {throughput: Samples(interval=(149.0, 151.0))}
    runs = [
        run(number, {throughput: Recorded(value, Unit.QUERIES_PER_SECOND, Limit())}, one)
        for number, (value, one) in enumerate(zip((100.0, 150.0), samples, strict=True))
    ]
    assert only(compare_runs(runs[1], runs[0])).change is Change.BETTER
    assert only(compare_runs(runs[0], runs[1])).change is Change.WORSE


# --- what is counted and computed


@pytest.mark.parametrize(
    ("measure", "unit", "limit", "earlier", "later", "change"),
    [
        (F1, Unit.F1, Limit(minimum=0.8), 0.95, 0.946, "same"),
        (F1, Unit.F1, Limit(minimum=0.8), 0.95, 0.945, "same"),  # the tolerance itself is allowed
        (F1, Unit.F1, Limit(minimum=0.8), 0.95, 0.944, "worse"),
        (F1, Unit.F1, Limit(minimum=0.8), 0.95, 0.956, "better"),
        (F1, Unit.F1, Limit(maximum=0.01), 0.001, 0.0065, "worse"),  # a loss: less is better
        (SHARE, Unit.SHARE, None, 0.98, 0.90, "differs"),  # nothing says which way is good
        (WRONG, Unit.COUNT, Limit(maximum=0), 0, 0, "same"),
        (WRONG, Unit.COUNT, Limit(maximum=9), 2, 3, "worse"),  # one more of what must not be
        (COMPARED, Unit.COUNT, Limit(minimum=100), 18000, 17000, "same"),
        (COMPARED, Unit.COUNT, Limit(minimum=100), 18000, 9000, "worse"),
        (OPSET, Unit.COUNT, Limit(14, 21), 18, 17, "differs"),
        (LOGIT, Unit.LOGIT, Limit(maximum=4), 1.0, 1.3, "same"),  # within a tenth of the limit
        (LOGIT, Unit.LOGIT, Limit(maximum=4), 1.0, 1.5, "worse"),
        (LOGIT, Unit.LOGIT, None, 1e-6, 3e-6, "differs"),
        (MIB, Unit.MEBIBYTE, None, 22.0, 23.0, "same"),
        (MIB, Unit.MEBIBYTE, None, 22.0, 86.0, "worse"),
        (MIB, Unit.MEBIBYTE, None, 22.0, 11.0, "better"),
        (MIB, Unit.MEBIBYTE, None, 0.0, 11.0, "cannot tell"),
    ],
)
def test_what_counts_as_worse(measure, unit, limit, earlier, later, change):
    """Each kind of measure has its tolerance, and the limit or the unit says which way is good."""
    assert compare_values(measure, earlier, later, unit, limit).change.value == change


def test_a_limit_that_is_broken_now_is_worse_by_however_little():
    """Below the tolerance, but across the limit that the earlier run kept: worse, with that reason."""
    found = compare_values(F1, 0.801, 0.799, Unit.F1, Limit(minimum=0.8))
    assert found.regression
    assert "breaks the limit ≥ 0.8" in found.reason


@pytest.mark.parametrize(("interval", "worse"), [((0.88, 0.96), False), ((0.91, 0.96), True), (None, True)])
def test_a_time_breaks_its_limit_only_with_its_whole_interval(interval, worse):
    """What the verdict could not tell from the limit is not called worse for it either."""
    limit = Limit(maximum=0.9)
    runs = [
        run(number, {RATIO: Recorded(value, Unit.RATIO, limit)}, {RATIO: Samples(tuple(blocks(value)), ends)})
        for number, (value, ends) in enumerate(((0.89, None), (0.92, interval)))
    ]
    found = only(compare_runs(runs[1], runs[0]))
    assert (found.change.value == "worse") is worse


def test_a_limit_that_was_broken_before_is_no_reason():
    """The earlier run broke the same limit: what counts is the difference alone."""
    assert compare_values(F1, 0.799, 0.798, Unit.F1, Limit(minimum=0.8)).change is Change.SAME


def test_tolerances_are_the_users():
    """A wider tolerance lets more pass, none at all lets nothing pass."""
    assert (
        compare_values(F1, 0.95, 0.93, Unit.F1, Limit(minimum=0.8), Rules(Tolerances(score=0.03))).change is Change.SAME
    )
    assert (
        compare_values(F1, 0.95, 0.9499, Unit.F1, Limit(minimum=0.8), Rules(Tolerances(score=0))).change is Change.WORSE
    )


@pytest.mark.parametrize("text", ["time", "time=", "time=x", "speed=0.1", "time=-1", "time=nan", "time=inf", ""])
def test_a_tolerance_that_is_none_is_refused(text):
    """Kinds and numbers are checked, with an example of what is right."""
    with pytest.raises(UsageError, match=r"=0\.1"):
        tolerances_from([text])
    assert tolerances_from(["time=0.2", "score=0"]) == Tolerances(time=0.2, score=0.0)


@pytest.mark.parametrize("unit", Unit)
def test_every_unit_has_a_kind(unit):
    """No measure falls through."""
    assert isinstance(kind_of(F1, unit), Kind)


# --- what cannot be compared


def test_times_of_two_machines_are_not_compared():
    """A slower machine is no regression; asked to, the times are compared all the same. F1 is compared anyway."""
    later = run(1, {RATIO: Recorded(0.5, Unit.RATIO, Limit(maximum=0.9)), F1: f1(0.90)}, machine=OTHER_MACHINE)
    earlier = run(0, {RATIO: Recorded(0.25, Unit.RATIO, Limit(maximum=0.9)), F1: f1(0.95)})
    ratio, score = compare_runs(later, earlier).measures
    assert (ratio.change, ratio.reason) == (Change.NOT_COMPARABLE, "machines differ")
    assert score.change is Change.WORSE
    assert compare_runs(later, earlier, Rules(across_machines=True)).measures[0].change is Change.CANNOT_TELL


def test_measures_of_other_data_are_not_compared():
    """With other data only the files themselves can be compared."""
    size = {MIB: Recorded(22.0, Unit.MEBIBYTE, Limit())}
    comparison = compare_runs(run(1, {F1: f1(0.5), **size}, data="new"), run(0, {F1: f1(0.9), **size}))
    assert [(str(one.key), one.change.value, one.reason) for one in comparison.measures] == [
        ("artifact.int8.file_size", "same", ""),
        ("quality.int8.f1_micro", "not comparable", "data differ"),
    ]


def test_a_measure_of_one_run_only_is_marked():
    """A measure that came or went is named, and decides nothing."""
    comparison = compare_runs(run(1, {F1: f1(0.9)}), run(0, {LOGIT: Recorded(1.0, Unit.LOGIT, Limit())}))
    assert [one.reason for one in comparison.measures] == ["only in the baseline", "only in the subject"]
    assert not comparison.decided


def test_a_measure_that_changed_its_unit_is_marked():
    """Milliseconds do not become better by being written as something else."""
    later, earlier = (
        run(1, {P50: Recorded(1, Unit.RATIO, Limit())}),
        run(0, {P50: Recorded(9, Unit.MILLISECOND, Limit())}),
    )
    assert only(compare_runs(later, earlier)).reason == "units differ (ms → ratio)"


def test_what_differs_around_the_measures_is_named():
    """Machine, data, reference, policy and every version: what else may be the reason."""
    later = run(
        1, machine=OTHER_MACHINE, data="e", reference="q", policy="sha256:x", versions={"onnxruntime": "2", "x": "1"}
    )
    found = compare_runs(later, run(0)).differences
    assert [line.partition(":")[0] for line in found] == [
        "machine", "data", "reference", "policy", "version of onnxruntime", "version of x",
    ]  # fmt: skip
    assert found[-2:] == ("version of onnxruntime: 1.32.0 → 2", "version of x: not noted → 1")
    assert compare_runs(run(1), run(0)).differences == ()


# --- which runs


def pair_of(entries, subject="last", baseline=None, folder=None, **choice):
    found = choose_pair(entries, subject, baseline, folder, **{"line": None, "machine": None, **choice})
    numbers = [entry.run for entry in entries]
    return numbers.index(found.subject.run), numbers.index(found.baseline.run)


REJECTED = Decision.REJECTED


def test_last_is_held_against_the_last_accepted(tmp_path):
    """By default against the last accepted run before it; `previous` is the one before, whatever its decision."""
    entries = [run(0), run(1), run(2, decision=REJECTED), run(3, decision=REJECTED)]
    assert pair_of(entries, folder=tmp_path) == (3, 1)
    assert pair_of(entries, "last", "previous", tmp_path) == (3, 2)
    assert pair_of(entries, "previous", "accepted", tmp_path) == (2, 1)
    assert pair_of(entries, "accepted", "previous", tmp_path) == (1, 0)


def test_runs_of_another_line_are_no_baseline(tmp_path):
    """Another model's accepted run says nothing about this one."""
    entries = [run(0), run(1, line="atis"), run(2)]
    assert pair_of(entries, folder=tmp_path) == (2, 0)
    with pytest.raises(NothingEarlierError, match=r"no accepted run of line atis before .*--allow-first"):
        pair_of(entries, "last", folder=tmp_path, line="atis")


def test_a_run_of_fewer_suites_is_no_baseline(tmp_path):
    """An accepted run of one suite cannot stand for a whole one: all other measures would be out of comparison."""
    entries = [run(0), run(1, suites=("artifact",)), run(2)]
    assert pair_of(entries, folder=tmp_path) == (2, 0)
    assert pair_of(entries, "last", "previous", tmp_path) == (2, 0)
    assert pair_of([*entries, run(3, suites=("artifact",))], folder=tmp_path) == (3, 1)


def test_a_run_of_the_same_machine_is_preferred(tmp_path):
    """An older run of this machine rather than a newer one of another; failing that, the other's."""
    entries = [run(0), run(1, machine=OTHER_MACHINE), run(2)]
    assert pair_of(entries, folder=tmp_path) == (2, 0)
    assert pair_of(entries[1:], folder=tmp_path) == (1, 0)
    with pytest.raises(NothingEarlierError):
        pair_of(entries[1:], folder=tmp_path, machine=MACHINE.id[:4])


def test_runs_by_name(tmp_path):
    """A whole name, or as much of it as only one run has."""
    entries = [run(number) for number in range(3)]
    assert pair_of(entries, name_of(1), name_of(0)[:12], tmp_path) == (1, 0)
    with pytest.raises(HistoryError, match="3 runs begin with '20261101T0'"):
        pair_of(entries, "20261101T0", "last", tmp_path)
    with pytest.raises(HistoryError, match="'nonsense' is no run of the history"):
        pair_of(entries, "nonsense", None, tmp_path)


def test_a_release_folder_leads_to_its_run(tmp_path):
    """The verdict's digest in the manifest is the run's; a release of other runs is an error."""
    entries = [run(0), run(1, verdict="sha256:abc"), run(2)]
    folder = tmp_path / "release"
    folder.mkdir()
    manifest = {"schema": "harness-release-manifest", "version": 1, "verdict_digest": "sha256:abc"}
    write_json(folder / "manifest.json", manifest)
    assert pair_of(entries, "last", str(folder), tmp_path) == (2, 1)
    write_json(folder / "manifest.json", {**manifest, "verdict_digest": "sha256:other"})
    with pytest.raises(HistoryError, match="is not in this history"):
        pair_of(entries, "last", str(folder), tmp_path)
    write_json(folder / "manifest.json", {**manifest, "verdict_digest": None})
    with pytest.raises(HistoryError, match="never accepted"):
        pair_of(entries, "last", str(folder), tmp_path)


def test_a_git_revision_leads_to_its_last_run(tmp_path):
    """A branch, a tag or a commit, as git resolves it; outside a repository the digits of a commit do."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], cwd=tmp_path, check=True)
    subprocess.run([*git, "tag", "v1"], cwd=tmp_path, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True)
    commit = head.stdout.strip()
    revision = Revision(commit, dirty=False)
    entries = [run(0, revision=revision), run(1, revision=revision), run(2)]
    for word in ("v1", "main", "HEAD", commit, commit[:9]):
        assert pair_of(entries, "last", word, tmp_path) == (2, 1)
    elsewhere = tmp_path / "not" / "there"
    assert pair_of(entries, "last", commit[:9], elsewhere) == (2, 1)


# --- the command


def results_with(tmp_path, *lines):
    write_runs(tmp_path / "results", lines)
    return ["compare", "--results", str(tmp_path / "results")]


def test_a_regression_fails_a_job(tmp_path, capsys):
    """With --fail-on-regression the exit code is 1 and the measure is named; without it, 0."""
    command = results_with(tmp_path, line_of(0), line_of(1, {F1: f1(0.90)}))
    assert cli.main([*command, "last"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "last", "--fail-on-regression"]) == 1
    said = capsys.readouterr().out
    assert "worse: quality.int8.f1_micro: 0.95 F1 → 0.9 F1 (−0.05)" in said  # noqa: RUF001
    assert said.endswith("regressions: 1\n")
    assert cli.main([*command, "last", "--fail-on-regression", "--tolerance", "score=0.1"]) == 0


def test_without_words_the_last_run_is_held_against_the_one_before(tmp_path, capsys):
    """`harness compare` alone: the one before, accepted or not."""
    command = results_with(tmp_path, line_of(0), line_of(1, decision=REJECTED), line_of(2))
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert f"subject:  {name_of(2)} ACCEPTED" in said
    assert f"baseline: {name_of(1)} REJECTED" in said


def test_times_of_other_machines_fail_no_job(tmp_path, capsys):
    """They are not counted, and that is said together with what would count them."""
    slow = {RATIO: Recorded(0.5, Unit.RATIO, Limit()), F1: f1(0.95)}
    samples = {RATIO: Samples(tuple(blocks(0.5)))}
    fast = {RATIO: Recorded(0.25, Unit.RATIO, Limit()), F1: f1(0.95)}
    fast_samples = {RATIO: Samples(tuple(blocks(0.25)))}
    lines = line_of(0, fast, fast_samples), line_of(1, slow, samples, machine=OTHER_MACHINE)
    command = [*results_with(tmp_path, *lines), "last", "--fail-on-regression"]
    assert cli.main(command) == 0
    assert "not compared, and not counted: 1 because machines differ; --across-machines" in capsys.readouterr().out
    assert cli.main([*command, "--across-machines"]) == 1


def test_nothing_to_compare_is_no_pass(tmp_path, capsys):
    """Where not one measure can be compared, a job that asks for regressions learns that nothing was judged."""
    command = results_with(tmp_path, line_of(0, data="a"), line_of(1, data="b"))
    assert cli.main([*command, "last", "--fail-on-regression"]) == 3
    assert "not one measure" in capsys.readouterr().err


def test_a_first_run_is_an_error_unless_allowed(tmp_path, capsys):
    """A job that lost its history must not pass unseen; the first time it may be allowed."""
    command = [*results_with(tmp_path, line_of(0)), "last", "--fail-on-regression"]
    assert cli.main(command) == 2
    assert re.search(r"no accepted run of line bus before .*\(--allow-first\)", capsys.readouterr().err)
    assert cli.main([*command, "--allow-first"]) == 0


def test_an_unknown_run_is_an_error(tmp_path, capsys):
    """One line that says what can be named; --allow-first does not cover it."""
    command = [*results_with(tmp_path, line_of(0), line_of(1)), "last", "20991231", "--allow-first"]
    assert cli.main(command) == 2
    assert "'20991231' is no run of the history, no release folder and no git revision" in capsys.readouterr().err


def test_the_document_holds_every_measure(tmp_path, capsys):
    """--json prints the comparison alone: both runs, what differs, each measure with ratio, bound and verdict."""
    measures = {RATIO: Recorded(0.25, Unit.RATIO, Limit()), F1: f1(0.95)}
    lines = [line_of(number, measures, {RATIO: Samples(tuple(blocks(0.25)))}) for number in range(2)]
    assert cli.main([*results_with(tmp_path, *lines), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["version"], document["regressions"]) == ("harness-comparison", 1, [])
    ratio, score = document["measures"]
    assert ratio["bound"]["low"] < ratio["ratio"] == 1.0 < ratio["bound"]["high"]
    assert (score["change"], score["bound"], score["baseline"]) == ("same", None, 0.95)


def test_the_table_has_every_measure(tmp_path, capsys):
    """Each measure is a row, also one whose name or line looks like markup."""
    odd = {key("other.release.[bold]x"): Recorded(1, Unit.COUNT, Limit()), F1: f1(0.95)}
    lines = [line_of(number, odd, line="[red]bus") for number in range(2)]
    assert cli.main(results_with(tmp_path, *lines)) == 0
    said = capsys.readouterr().out
    assert "other.release.[bold]x" in said
    assert "line [red]bus" in said
