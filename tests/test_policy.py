"""Reading policies: what is refused, with file, line and key, and what a user's file changes."""

from __future__ import annotations

import datetime
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.artifact import Variant
from harness.errors import PolicyError
from harness.evidence import MeasureKey
from harness.policy import load_policy, tomllib
from harness.suite import discover
from harness.verdict import Limit, Waiver

TODAY = datetime.date(2026, 11, 23)
AGREEMENT = MeasureKey("parity", "int8", "label_agreement")
OPSET = MeasureKey("artifact", "fp32", "opset_version")
MISSING_FILES = MeasureKey("artifact", "release", "missing_files")
PROMISED = (AGREEMENT, OPSET, MISSING_FILES)
WAIVER = """\
[[waivers]]
measure = "parity.int8.label_agreement"
reason = "the disk is being replaced"
expires = 2026-12-31
"""


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "policy.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def refusal(written):
    """The words with which a policy file is refused, without the path in front."""

    def refuse(content, promised=PROMISED):
        path = written(content)
        with pytest.raises(PolicyError) as caught:
            load_policy(path, promised, TODAY)
        message = str(caught.value)
        assert message.isprintable()
        assert message.endswith((".", "?"))
        assert str(path) in message
        return message.replace(str(path), "FILE")

    return refuse


def built_in():
    return [found for found in discover().values() if found.package.startswith("suites.")]


def promised_by(suites):
    variants = [variant.value for variant in Variant]
    return {key for found in suites for key in found.suite.promised(variants, variants)}


def default_keys():
    content = tomllib.loads(files("harness").joinpath("policy.toml").read_text(encoding="utf-8"))
    assert list(content) == ["limits"]
    return [
        MeasureKey(suite, scope, name)
        for suite, scopes in content["limits"].items()
        for scope, entries in scopes.items()
        for name in entries
    ]


# -- the defaults ----------------------------------------------------------------------------------------------------


def test_the_defaults_cover_what_the_built_in_suites_promise():
    """The default policy has a limit for each promised measure of each variant, and none for anything else."""
    assert sorted(map(str, default_keys())) == sorted(map(str, promised_by(built_in())))


def test_the_defaults_load():
    """The default policy passes its own checks, waives nothing, and holds exactly what is promised."""
    promised = promised_by(built_in())
    policy = load_policy(None, promised, TODAY)
    assert set(policy.limits) == promised
    assert policy.waivers == ()


def test_the_defaults_of_suites_that_were_not_chosen_are_left_out():
    """A run with one suite takes only that suite's limits."""
    assert load_policy(None, [AGREEMENT], TODAY).limits == {AGREEMENT: Limit(minimum=0.99)}


# -- a user's file over the defaults ---------------------------------------------------------------------------------


def test_an_empty_file_changes_nothing(written):
    """A file without an entry leaves the defaults."""
    assert load_policy(written(""), PROMISED, TODAY) == load_policy(None, PROMISED, TODAY)


def test_entries_change_one_by_one(written):
    """A user's entry replaces the default of that measure as a whole and of no other."""
    path = written("[limits.artifact.fp32]\nopset_version = { max = 18 }\n")
    limits = load_policy(path, PROMISED, TODAY).limits
    assert limits == {**load_policy(None, PROMISED, TODAY).limits, OPSET: Limit(maximum=18)}


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ('"reported"', Limit()),
        ("{ min = 0.5 }", Limit(minimum=0.5)),
        ("{ max = 1_000 }", Limit(maximum=1000)),
        ("{ min = -1, max = 1e3 }", Limit(-1, 1000)),
        ("{ min = 1, max = 1 }", Limit(1, 1)),
    ],
)
def test_what_a_limit_may_be(written, text, limit):
    """A limit has a minimum, a maximum or both, or is only reported."""
    path = written(f"[limits.parity.int8]\nlabel_agreement = {text}\n")
    assert load_policy(path, PROMISED, TODAY).limits[AGREEMENT] == limit


@pytest.mark.parametrize(
    "text",
    [
        "limits.parity.int8.label_agreement.min = 0.5",
        "[limits]\nparity.int8 = { label_agreement = { min = 0.5 } }",
        "[limits.parity.int8.label_agreement]\nmin = 0.5",
        "\ufeff[limits.parity.int8]\r\nlabel_agreement = { min = 0.5 }\r\n",
    ],
)
def test_every_way_of_writing_toml(written, text):
    """Dotted keys, inline tables, tables of their own, a byte order mark and Windows line ends all say the same."""
    assert load_policy(written(text), PROMISED, TODAY).limits[AGREEMENT] == Limit(minimum=0.5)


@given(bounds=st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)))
def test_limits_are_read_as_written(tmp_path_factory, bounds):
    """Whatever finite numbers a limit is written with are the ones that judge."""
    low, high = sorted(bounds)
    path = tmp_path_factory.getbasetemp() / "numbers.toml"
    path.write_text(f"[limits.parity.int8]\nlabel_agreement = {{ min = {low!r}, max = {high!r} }}\n", encoding="utf-8")
    assert load_policy(path, PROMISED, TODAY).limits[AGREEMENT] == Limit(low, high)


def test_a_third_party_measure_needs_a_limit(refusal):
    """A suite whose measures no policy names cannot be judged by; the message says what to write."""
    promised = (*PROMISED, MeasureKey("acme", "int8", "worst"), MeasureKey("acme", "fp32", "worst"))
    assert refusal("", promised) == (
        "FILE sets no limit for 2 promised measures, acme.fp32.worst first. "
        'Add under [limits.acme.fp32]: worst = { max = … }, or "reported".'
    )
    with pytest.raises(PolicyError, match=r"^the default policy sets no limit for 2 promised measures, acme"):
        load_policy(None, promised, TODAY)


def test_a_third_party_measure_with_a_limit(written):
    """A user's file can hold limits for suites that the default policy does not know."""
    key = MeasureKey("acme", "release", "worst")
    path = written("[limits.acme.release]\nworst = { max = 1 }\n")
    assert load_policy(path, (*PROMISED, key), TODAY).limits[key] == Limit(maximum=1)


# -- files that cannot be read ---------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    """A policy that is not there is an error, not the default policy."""
    path = tmp_path / "strict.toml"
    with pytest.raises(PolicyError) as caught:
        load_policy(path, PROMISED, TODAY)
    assert str(caught.value) == (
        f"the policy {path} cannot be read (No such file or directory). Name a TOML file (--policy FILE)."
    )


def test_a_folder(tmp_path):
    """A folder is no policy."""
    with pytest.raises(PolicyError, match="Is a directory"):
        load_policy(tmp_path, PROMISED, TODAY)


def test_a_file_that_is_not_utf8(refusal):
    """The first byte that is no UTF-8 is named."""
    assert refusal(b"# caf\xe9\n") == "the policy FILE is not UTF-8 text (byte 5). Save it as UTF-8."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits.parity.int8\n", "line 1"),
        ("[limits.parity.int8]\nlabel_agreement = { min = }\n", "line 2"),
        ("[limits.parity.int8]\nlabel_agreement = { min = 0.5 }\nlabel_agreement = { min = 0.9 }\n", "line 3"),
        ("[limits.parity.int8]\n[limits.parity.int8]\n", "line 2"),
        (WAIVER.replace("2026-12-31", "2026-02-31"), "line 4"),
        ("x = " + "[" * 5000, ""),
        ("x = 1" + "0" * 5000, ""),
    ],
)
def test_text_that_is_no_toml(refusal, text, words):
    """Broken TOML, a key given twice, an impossible date and absurd values are one error with what is wrong."""
    message = refusal(text)
    assert message.startswith("FILE is not valid TOML: ")
    assert words in message


# -- keys that are unknown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# stricter\n\n[limit.parity.int8]\nlabel_agreement = { min = 1 }\n",
            "FILE line 3, limit: unknown key; known are limits and waivers.",
        ),
        (
            "strict = true\n",
            "FILE line 1, strict: unknown key; known are limits and waivers.",
        ),
        (
            "# the limits of party are strict\n[limits.party.int8]\nlabel_agreement = { min = 1 }\n",
            (
                "FILE line 3, limits.party.int8.label_agreement: no chosen suite has such a measure; "
                "did you mean parity.int8.label_agreement?"
            ),
        ),
        (
            "[limits.parity.int8]\n\nlabel_agrement = { min = 1 }\n",
            (
                "FILE line 3, limits.parity.int8.label_agrement: no chosen suite has such a measure; "
                "did you mean parity.int8.label_agreement?"
            ),
        ),
        (
            "[limits.parity.fp16]\nlabel_agreement = { min = 1 }\n",
            (
                "FILE line 2, limits.parity.fp16.label_agreement: no chosen suite has such a measure; "
                "did you mean parity.int8.label_agreement?"
            ),
        ),
        (
            "[limits.x.y]\nz = { min = 1 }\n",
            (
                "FILE line 2, limits.x.y.z: no chosen suite has such a measure; "
                "see `harness release --help` for the suites."
            ),
        ),
        (
            "[limits.artifact.fp32]\nopset_version = { max = 1 }\n[limits.party.int8]\n",
            "FILE line 3, limits.party.int8: no chosen suite has measures here; delete it or correct its name.",
        ),
        (
            "[limits.parity.int8]\nlabel_agreement = { min = 1 }\n[limits.party]\n",
            "FILE line 3, limits.party: no chosen suite has measures here; delete it or correct its name.",
        ),
        (
            "[limits.parity.int8]\nlabel_agreement = { minimum = 1 }\n",
            "FILE line 2, limits.parity.int8.label_agreement: unknown key 'minimum'; a limit has min, max or both.",
        ),
        (
            "[limits.parity.int8.label_agreement]\nmin = 1\nMax = 2\n",
            "FILE line 1, limits.parity.int8.label_agreement: unknown key 'Max'; a limit has min, max or both.",
        ),
    ],
    ids=lambda value: value.partition(": ")[0] if value.startswith("FILE") else "",
)
def test_unknown_keys(refusal, text, message):
    """A misspelt section, suite, scope, measure or bound is an error at its line, never a limit that protects nobody."""
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("choice", "warns"), [("", False), (', undecided = "incomplete"', False), (', undecided = "warn"', True)]
)
def test_what_is_undecided(written, choice, warns):
    """A measure that cannot be told from its limit is an open question, unless the policy calls it a warning."""
    path = written(f"[limits.parity.int8]\nlabel_agreement = {{ min = 0.5{choice} }}\n")
    assert load_policy(path, PROMISED, TODAY).limits[AGREEMENT] == Limit(0.5, None, warns)


# -- limits that mean nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ('{ min = "0.9" }', "min must be a finite number, not '0.9'"),
        ("{ max = true }", "max must be a finite number, not 'True'"),
        ("{ max = nan }", "max must be a finite number, not 'nan'"),
        ("{ max = inf }", "max must be a finite number, not 'inf'"),
        ("{ min = -inf }", "min must be a finite number, not '-inf'"),
        ("{ min = [0.9] }", "min must be a finite number, not '[0.9]'"),
        ("{ min = 2026-01-01 }", "min must be a finite number, not '2026-01-01'"),
        ("{ min = 0.9, max = 0.5 }", "min 0.9 is above max 0.5"),
        ('{ max = 1, undecided = "ignore" }', 'undecided is "incomplete" or "warn", not \'ignore\''),
        ("{ max = 1, undecided = [1] }", 'undecided is "incomplete" or "warn", not \'[1]\''),
        ("{}", """a limit is { min = … }, { max = … } or "reported", not '{}'"""),
        ("0.9", """a limit is { min = … }, { max = … } or "reported", not '0.9'"""),
        ("true", """a limit is { min = … }, { max = … } or "reported", not 'True'"""),
        ('"Reported"', """a limit is { min = … }, { max = … } or "reported", not 'Reported'"""),
        ('""', """a limit is { min = … }, { max = … } or "reported", not ''"""),
        ("[{ min = 0.9 }]", """a limit is { min = … }, { max = … } or "reported", not "[{'min': 0.9}]\""""),
    ],
)
def test_limits_that_are_none(refusal, entry, why):
    """What is no limit is refused with file, line, key, and the value as it was written."""
    text = f"# INT8\n[limits.parity.int8]\n\nlabel_agreement = {entry}\n"
    assert refusal(text) == f"FILE line 4, limits.parity.int8.label_agreement: {why}."


def test_a_number_too_large_for_any_measure(refusal):
    """An integer that no float can hold is refused like any other nonsense, not a crash."""
    message = refusal(f"[limits.parity.int8]\nlabel_agreement = {{ max = 1{'0' * 400} }}\n")
    assert message.startswith("FILE line 2, limits.parity.int8.label_agreement: max must be a finite number, not '1000")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("limits = 5\n", "line 1, limits"),
        ("\n[limits]\nparity = 0.9\n", "line 3, limits.parity"),
        ("[limits.parity]\nint8 = 0.9\n", "line 2, limits.parity.int8"),
        ("[[limits]]\n", "line 1, limits"),
        ("[[limits.parity.int8]]\nlabel_agreement = { min = 1 }\n", "line 1, limits.parity.int8"),
    ],
)
def test_limits_at_the_wrong_depth(refusal, text, where):
    """A value where a table belongs is an error at its line."""
    assert refusal(text) == f"FILE {where}: must be a table; limits are written under [limits.SUITE.SCOPE]."


def test_the_line_is_not_one_that_only_mentions_the_key(refusal):
    """The line named is that of the wrong entry, not of a comment or of another table's entry with the same name."""
    text = (
        "# opset_version and label_agreement\n[limits.artifact.fp32]\nopset_version = { max = 18 }  # label_agreement\n"
        "[limits]\nparity = { int8 = { label_agreement = { min = true } } }\n"
    )
    assert refusal(text).startswith("FILE line 5, limits.parity.int8.label_agreement: ")


# -- waivers ---------------------------------------------------------------------------------------------------------


def test_a_waiver(written):
    """A waiver is read with its measure, reason and last day."""
    policy = load_policy(written(WAIVER), PROMISED, TODAY)
    assert policy.waivers == (Waiver(AGREEMENT, "the disk is being replaced", datetime.date(2026, 12, 31)),)
    assert policy.limits == load_policy(None, PROMISED, TODAY).limits


def test_a_waiver_holds_through_its_last_day(written, refusal):
    """A waiver that expires today still holds; yesterday's does not."""
    assert load_policy(written(WAIVER.replace("2026-12-31", "2026-11-23")), PROMISED, TODAY).waivers
    assert refusal(WAIVER.replace("2026-12-31", "2026-11-22")) == (
        "FILE line 2, waivers.measure: the waiver for parity.int8.label_agreement expired on 2026-11-22; "
        "keep the limit or renew the waiver."
    )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            '"parity.int8.label_agreement"',
            '"parity.int8.label_agrement"',
            "'parity.int8.label_agrement' matches no measure; write suite.scope.name",
        ),
        (
            '"parity.int8.label_agreement"',
            '"parity.label_agreement"',
            "'parity.label_agreement' matches no measure; write suite.scope.name",
        ),
        ('"parity.int8.label_agreement"', "5", "'5' matches no measure; write suite.scope.name"),
        ('"the disk is being replaced"', '" "', "the waiver for parity.int8.label_agreement gives no reason"),
        ('"the disk is being replaced"', "true", "the waiver for parity.int8.label_agreement gives no reason"),
        (
            "2026-12-31",
            "2026-12-31T00:00:00",
            "the waiver for parity.int8.label_agreement needs a date, as in expires = 2026-12-31",
        ),
        (
            "2026-12-31",
            '"2026-12-31"',
            "the waiver for parity.int8.label_agreement needs a date, as in expires = 2026-12-31",
        ),
        (
            "2026-12-31",
            "20261231",
            "the waiver for parity.int8.label_agreement needs a date, as in expires = 2026-12-31",
        ),
    ],
)
def test_waivers_that_waive_nothing(refusal, old, new, why):
    """A waiver without a measure, a reason or a date is an error at the line of its measure."""
    assert refusal(WAIVER.replace(old, new)) == f"FILE line 2, waivers.measure: {why}."


@pytest.mark.parametrize("key", ["measure", "reason", "expires"])
def test_waivers_that_lack_a_key(refusal, key):
    """Each of a waiver's three keys has to be there."""
    left = sorted({"measure", "reason", "expires"} - {key})
    text = "".join(line for line in WAIVER.splitlines(keepends=True) if not line.startswith(key))
    assert refusal(text) == (
        f"FILE line 1, waivers: a waiver has exactly the keys measure, reason, expires, not {left}."
    )


def test_waivers_with_a_key_too_many(refusal):
    """What a waiver cannot have, such as a limit of its own, is an error."""
    assert refusal(f"\n{WAIVER}max = 2\n") == (
        "FILE line 2, waivers: a waiver has exactly the keys measure, reason, expires, "
        "not ['expires', 'max', 'measure', 'reason']."
    )


@pytest.mark.parametrize("text", ["waivers = 5\n", 'waivers = ["parity.int8.label_agreement"]\n', "[waivers]\n"])
def test_waivers_that_are_no_tables(refusal, text):
    """Waivers are a list of tables."""
    assert refusal(text) == "FILE line 1, waivers: waivers are written as [[waivers]] tables."


@pytest.mark.parametrize(
    ("second", "where"),
    [
        (WAIVER.replace("2026", "2025"), "line 8, waivers.measure"),
        (WAIVER.replace('reason = "the disk is being replaced"\n', ""), "line 7, waivers"),
    ],
)
def test_the_line_is_that_of_the_wrong_waiver(refusal, second, where):
    """Where the second waiver is wrong, the message does not send the reader to the first one."""
    first = WAIVER.replace("parity.int8.label_agreement", "artifact.fp32.opset_version")
    assert refusal(f"# waivers\n{first}\n{second}").startswith(f"FILE {where}: ")
