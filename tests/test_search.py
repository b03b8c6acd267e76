"""`harness.search`: what is measured in which order, what is taken of it, and that a search can be killed and go on."""

from __future__ import annotations

import datetime as dt
import io
import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.errors import ArtifactError, DocumentError
from harness.instruction_sets import WeightRange
from harness.paired.estimate import MeasurementError
from harness.progress import Silence
from harness.recipes.recipe import FUSED_DYNAMIC, QDQ, STATIC, USUAL, Calibration, Form, Fusion, Recipe
from harness.recipes.workshop import Products
from harness.search.front import SPEED_MARGIN, Entry, choose, front
from harness.search.measurements import NOTEBOOK_FILE, Fidelity, Latency, Notebook
from harness.search.report import FIGURE_FILE, SEARCH_FILE, print_search, write_search
from harness.search.search import Outcome, Search

SECOND = 1_000_000_000
HEAD = "head"
# Error that each product adds when it is rounded; the two worst are no neighbours, and "q" cannot be scaled by row.
SHARES = {"a": 0.010, "q": 0.080, "b": 0.002, "c": 0.050, "d": 0.004, HEAD: 0.001}
WORST = ["q", "c", "a", "d", "b"]
PRODUCTS = Products(tuple(SHARES), frozenset(SHARES) - {"q"}, (HEAD,))
NOTHING = Products((), frozenset(), ())


class FakeClock:
    """A clock that stands still until somebody spends time."""

    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def utc(self):
        return dt.datetime(2026, 11, 1, tzinfo=dt.timezone.utc)

    def pause(self, seconds):
        self.ns += round(seconds * SECOND)


class KilledError(Exception):
    """What ends a search here as a signal would."""


class Formula:
    """Measures by arithmetic: each rounded product adds its share, each finer treatment takes its time."""

    def __init__(self, clock, *, broken=lambda recipe: False, untimed=lambda recipe: False, dies_at=None):
        self.clock, self.broken, self.untimed, self.dies_at = clock, broken, untimed, dies_at
        self.asked = []

    def _begin(self, kind, recipe):
        if len(self.asked) == self.dies_at:
            raise KilledError
        self.asked.append((kind, recipe))
        self.clock.pause(1)

    def fidelity(self, recipe):
        self._begin("fidelity", recipe)
        if self.broken(recipe):
            message = f"{recipe.name} cannot be built"
            raise ArtifactError(message)
        rounded = set(SHARES) - set(recipe.float_sites)
        error = sum(SHARES[name] * (0.1 if name in recipe.row_sites else 1) for name in sorted(rounded))
        error *= 1 - recipe.migration / 2
        error *= 0.9 if recipe.calibration is Calibration.ERROR else 1
        error *= 0.95 if recipe.compensated else 1
        error += {Form.QDQ: 0.05, Form.DYNAMIC: 0.09}.get(recipe.form, 0)
        return Fidelity(
            error, 4 * error, error / 10, error / 20, 0, 0.5, error / 100, 1000 + 10 * len(recipe.row_sites)
        )

    def latency(self, recipe):
        self._begin("latency", recipe)
        if self.untimed(recipe):
            message = "the clock stood still"
            raise MeasurementError(message)
        ratio = {Form.QDQ: 0.9, Form.DYNAMIC: 0.6}.get(recipe.form, 0.7)
        ratio += 0.01 * len(recipe.row_sites) + 0.03 * len(recipe.float_sites)
        ratio -= 0.02 if Fusion.FAST_GELU in recipe.fusions else 0
        return Latency(ratio, 0.98 * ratio, 1.02 * ratio, 12)

    def recipes(self, kind):
        return [recipe for asked, recipe in self.asked if asked == kind]


def search(folder, *, products=PRODUCTS, budget_s=1000.0, key="key", fitted=None, **faults):
    """Run a search; give what it found, and what it asked for."""
    clock = FakeClock()
    bench = Formula(clock, **faults)
    found = Search(
        bench, products, Notebook(folder, key), clock, Silence(), budget_s=budget_s, **(fitted or {})
    ).run()  # fmt: skip
    return found, bench


def an_entry(name="one", *, ratio=0.7, error=0.02, changed=0.0, size=100, form=Form.OPERATORS, **fidelity):
    """An entry of which only what matters is named; no ratio: never timed."""
    values = {"confident_flips": 0, "largest_flipped_margin": 0.0, "f1_loss": 0.0, "changed_words": 0.0, **fidelity}
    found = Fidelity(
        mean_logit_difference=error, largest_logit_difference=error, changed_queries=changed, size_bytes=size, **values
    )
    return Entry(Recipe(name, form), found, None if ratio is None else Latency(ratio, ratio, ratio, 12))


# Few different values, so that ties are the rule.
_entries = st.lists(
    st.builds(
        lambda reason, **measured: an_entry(**measured, **reason),
        ratio=st.sampled_from([0.5, 0.54, 0.56, 0.7, None]),
        error=st.sampled_from([0.01, 0.02]),
        changed=st.sampled_from([0.0, 0.01]),
        size=st.sampled_from([90, 100]),
        reason=st.sampled_from(
            [
                {},
                {},
                {},
                {},
                {"form": Form.DYNAMIC},
                {"confident_flips": 1},
                {"changed_words": 0.02},
                {"f1_loss": 0.006},
            ]
        ),
    ),
    max_size=8,
).map(lambda found: [replace(one, recipe=one.recipe.called(f"r{place}")) for place, one in enumerate(found)])


def goods(entry):
    """What makes an entry good, each the less the better."""
    found = entry.fidelity
    return entry.latency.ratio, found.size_bytes, found.changed_queries, found.mean_logit_difference


def faithfulness(entry):
    """What is taken among equally fast ones: the least logit difference, then the fewest queries with other labels."""
    return entry.fidelity.mean_logit_difference, entry.fidelity.changed_queries


def beats(one, other):
    """Whether an entry is as good in everything, and better in something."""
    ours, theirs = goods(one), goods(other)
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def eligible(entries):
    """Those that may be taken."""
    return [entry for entry in entries if entry.latency is not None and not entry.refusal]


# -- the choice --------------------------------------------------------------------------------------------------------


@given(_entries)
def test_what_is_taken(entries):
    """Taken is what has no refusal, is about as fast as the fastest, and is beaten by nothing that could be taken."""
    choice, fit = choose(entries), eligible(entries)
    assert (choice is None) == (not fit)
    if choice is not None:
        assert choice.entry in fit
        assert choice.entry.latency.ratio <= (1 + SPEED_MARGIN) * min(entry.latency.ratio for entry in fit)
        assert not any(beats(other, choice.entry) for other in fit)
        assert choice.entry in front(entries)
        near = [one for one in fit if one.latency.ratio <= 1.1 * min(entry.latency.ratio for entry in fit)]
        assert faithfulness(choice.entry) == min(map(faithfulness, near))


@given(_entries, st.randoms(use_true_random=False))
def test_order_of_measuring(entries, draw):
    """The order in which recipes were measured changes neither what is taken nor what is on the front."""
    mixed = draw.sample(entries, len(entries))
    one, other = choose(entries), choose(mixed)
    assert (one and one.entry) == (other and other.entry)
    assert (one and one.reason) == (other and other.reason)
    assert {entry.recipe.name for entry in front(entries)} == {entry.recipe.name for entry in front(mixed)}


def test_equally_faithful():
    """Of those alike in fidelity the faster is taken, then the smaller, whatever their names say."""
    slow, large, taken = an_entry("a", ratio=0.52), an_entry("b", ratio=0.5, size=101), an_entry("c", ratio=0.5)
    assert choose([slow, large, taken]).entry is taken
    assert choose([slow, large]).entry is large


def test_equal_recipes_by_another_name():
    """Entries alike in every measure are told apart by their names, wherever they stand."""
    one, other = an_entry("b"), an_entry("a")
    assert choose([one, other]).entry is choose([other, one]).entry is other


def test_what_is_not_surely_slower():
    """On a busy machine, where intervals are wide, fidelity decides; what is surely slower stays out all the same."""
    fast, faithful = an_entry("fast", ratio=0.5), an_entry("faithful", ratio=0.7, error=0.01)
    assert choose([fast, faithful]).entry is fast
    unsure = replace(faithful, latency=Latency(0.7, 0.54, 0.9, 12))
    assert choose([fast, unsure]).entry is unsure


@given(_entries)
def test_a_worse_entry(entries):
    """One that is worse than what is taken in everything changes nothing."""
    choice = choose(entries)
    if choice is not None:
        ratio, size, changed, error = goods(choice.entry)
        worse = an_entry("worse", ratio=ratio + 0.01, size=size + 1, changed=changed, error=error + 0.01)
        assert choose([*entries, worse]).entry == choice.entry
        assert choose([worse, *entries]).entry == choice.entry


@given(_entries)
def test_front(entries):
    """What could be taken is on the front unless such another beats it; what is refused never hides it."""
    found = front(entries)
    fit, timed = eligible(entries), [entry for entry in entries if entry.latency is not None]
    assert all(entry in timed for entry in found)
    for entry in timed:
        if entry in fit:
            assert (entry in found) == (not any(beats(other, entry) for other in fit))
        elif entry in found:
            assert not any(beats(other, entry) for other in timed)
        else:
            assert any(beats(other, entry) or goods(other) == goods(entry) for other in found)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"form": Form.DYNAMIC}, "batch mates"),
        ({"confident_flips": 1}, "1 confident flips"),
        ({"changed_words": 0.0101}, "1.0% of the words"),
        ({"f1_loss": 0.0051}, "0.005 F1"),
        ({"changed_words": 0.01, "f1_loss": 0.005, "changed": 1.0}, ""),
    ],
)
def test_refusals(made, said):
    """Each thing that a recipe must keep is one reason of its own, and at its limit is none."""
    refusal = an_entry(**made).refusal
    assert said in refusal
    assert bool(said) == bool(refusal)


def test_the_reason():
    """It says how faithful and how fast, what was faster, and how many could not be taken."""
    fast, good, bad = an_entry("fast", ratio=0.5), an_entry("good", ratio=0.54, error=0.01), an_entry(f1_loss=0.5)
    reason = choose([fast, good, bad]).reason
    for said in ("2 within 10%", "0.54", "the fastest takes 0.50", "0.010", "1 others were refused"):
        assert said in reason
    assert "the fastest, 0.50" in choose([fast, bad]).reason


# -- the search --------------------------------------------------------------------------------------------------------


def test_a_search(tmp_path):
    """It takes a static recipe with its worst products treated finely, measures each thing once, and is not out of time."""
    found, bench = search(tmp_path)
    assert not found.out_of_time
    assert found.failed == ()
    taken = found.choice.entry
    assert taken.recipe.form is Form.OPERATORS
    assert taken.recipe.migration == 0.8
    assert taken.recipe.calibration is Calibration.ERROR
    assert taken.recipe.compensated
    assert taken in found.front
    assert len({(kind, recipe.digest()) for kind, recipe in bench.asked}) == len(bench.asked)
    names = [entry.recipe.name for entry in found.entries]
    assert len(set(names)) == len(names)


def test_it_is_repeatable(tmp_path):
    """The same measurements make the same search."""
    assert search(tmp_path / "one")[0] == search(tmp_path / "other")[0]


def test_sensitivity(tmp_path):
    """Each product that is not left in FP32 anyway is quantized alone, once; they are listed from the worst."""
    found, bench = search(tmp_path)
    assert [name for name, _ in found.sensitivity] == WORST
    alone = [recipe for recipe in bench.recipes("fidelity") if len(recipe.float_sites) == len(SHARES) - 1]
    assert sorted(name for recipe in alone for name in set(SHARES) - set(recipe.float_sites)) == sorted(WORST)
    assert not any(recipe.compensated for recipe in alone)


def test_the_worst_products_first(tmp_path):
    """So many of the worst products are scaled row by row, or left in FP32, and never one without those before it."""
    _, bench = search(tmp_path)
    by_row = [recipe.row_sites for recipe in bench.recipes("fidelity") if recipe.row_sites]
    worst = [name for name in WORST if name != "q"]  # which cannot be scaled so
    assert by_row == [tuple(sorted(worst[:count])) for count in range(1, len(worst) + 1)]
    left = [set(recipe.float_sites) - {HEAD} for recipe in bench.recipes("fidelity")]
    assert [names for names in left if 0 < len(names) < 3] == [{"q"}, {"q", "c"}]


def test_the_target_is_kept(tmp_path):
    """Everything but what is only compared with has the weights and activations of the target, graphs of optimum's too."""
    fitted = {"weight_range": WeightRange.REDUCED, "activations": "QInt8"}
    found, _ = search(tmp_path, fitted=fitted)
    recipes = [entry.recipe for entry in found.entries if entry.recipe.is_one_function]
    assert {recipe.form for recipe in recipes} == {Form.QDQ, Form.OPERATORS}
    assert {(recipe.weight_range, recipe.activations) for recipe in recipes} == {(WeightRange.REDUCED, "QInt8")}


def test_what_is_timed(tmp_path):
    """Timed are the most faithful and a spread of the rest, and the fused dynamic recipe to compare with; U is 1."""
    found, bench = search(tmp_path)
    timed = bench.recipes("latency")
    fit = [entry for entry in found.entries if not entry.refusal]
    best = min(fit, key=faithfulness)
    assert timed[0] == best.recipe
    assert timed[-1] == FUSED_DYNAMIC
    assert USUAL not in timed
    assert {entry.recipe.name: entry.latency for entry in found.entries}[USUAL.name] == Latency(1.0, 1.0, 1.0, 0)
    assert len(timed) == 10


@pytest.mark.parametrize("half_a_line", [False, True])
def test_killed_anywhere(tmp_path, half_a_line):
    """Killed after any number of measurements, a search goes on to the same end, and measures nothing twice."""
    whole, bench = search(tmp_path / "whole")
    for number in range(len(bench.asked)):
        folder = tmp_path / str(number)
        with pytest.raises(KilledError):
            search(folder, dies_at=number)
        if half_a_line and number:
            with (folder / NOTEBOOK_FILE).open("a", encoding="utf-8") as stream:
                stream.write('{"key": "key", "kind": "fidel')
        resumed, again = search(folder)
        assert resumed == whole
        assert again.asked == bench.asked[number:]
        assert search(folder, budget_s=0)[0] == whole  # all of it is on disk


def test_a_finished_search_takes_no_time(tmp_path):
    """All is in the notebook: the same choice without a measurement, though there is no time for one."""
    whole, _ = search(tmp_path)
    again, bench = search(tmp_path, budget_s=0)
    assert again == whole
    assert bench.asked == []


def test_no_time_at_all(tmp_path):
    """Nothing is measured, nothing is taken, and the search says why."""
    found, bench = search(tmp_path, budget_s=0)
    assert found == Outcome(None, (), (), (), (), out_of_time=True)
    assert bench.asked == []


def test_out_of_time_at_every_point(tmp_path):
    """Whenever its time ends it chooses from what it has; a fifth of the time it needs is enough to choose at all."""
    whole, bench = search(tmp_path / "whole")
    needed = len(bench.asked)
    for budget in range(2 * needed):
        found, asked = search(tmp_path / str(budget), budget_s=budget)
        assert len(asked.asked) <= max(budget, 1)
        assert found.choice == choose(found.entries)
        assert found.out_of_time == (found != whole)
        assert found.choice is not None or budget < needed / 5
    assert not found.out_of_time


def test_a_product_that_cannot_be_measured(tmp_path):
    """A recipe that cannot be built is listed with the reason; the search goes on without it."""
    found, _ = search(tmp_path, broken=lambda recipe: recipe.calibration is Calibration.ENTROPY)
    (failed,) = found.failed
    assert "entropy" in failed[0]
    assert failed[1].endswith("cannot be built")
    assert found.choice.entry.recipe.calibration is Calibration.ERROR


def test_a_model_without_a_fused_form(tmp_path):
    """Where no final graph can be made, nothing is refined, and optimum's form is taken."""
    found, _ = search(tmp_path, products=NOTHING, broken=lambda recipe: recipe.form is Form.OPERATORS)
    assert found.choice.entry.recipe.name == QDQ.name
    assert found.sensitivity == ()
    assert len(found.failed) == 4


def test_a_model_without_products(tmp_path):
    """Where the fused graph has no product to decide about, the families alone are compared."""
    found, _ = search(tmp_path, products=NOTHING)
    assert found.choice is not None
    assert not any(entry.recipe.row_sites or entry.recipe.float_sites for entry in found.entries)


def test_nothing_can_be_built(tmp_path):
    """No choice, and every failure named."""
    found, _ = search(tmp_path, broken=lambda recipe: True)
    assert found.choice is None
    assert found.entries == ()
    assert {name for name, _ in found.failed} >= {USUAL.name, QDQ.name, STATIC.name}


def test_a_recipe_that_cannot_be_timed(tmp_path):
    """It is listed and not taken; another one is. Where none can be timed, none is taken."""
    best = search(tmp_path / "all")[0].choice.entry.recipe
    found, _ = search(tmp_path / "some", untimed=lambda recipe: recipe == best)
    assert found.failed == ((best.name, "the clock stood still"),)
    assert found.choice.entry.recipe != best
    none, _ = search(tmp_path / "none", untimed=lambda recipe: True)
    assert none.choice is None
    assert not none.out_of_time


# -- the notebook ------------------------------------------------------------------------------------------------------

FIDELITY = Fidelity(0.1 + 0.2, 1e-17, 0.5, 1 / 3, 2, 3.5, -0.25, 22_000_000)
LATENCY = Latency(0.7, 0.69, 0.72, 24)


def test_a_notebook_keeps_every_digit(tmp_path):
    """What is written down is read back as it was."""
    book = Notebook(tmp_path / "deep" / "er", "key")
    book.note("one", FIDELITY)
    book.note("one", LATENCY)
    for known in (book, Notebook(tmp_path / "deep" / "er", "key")):
        assert known.fidelity("one") == FIDELITY
        assert known.latency("one") == LATENCY
        assert known.fidelity("other") is known.latency("other") is None


def test_another_key(tmp_path):
    """Measurements of another machine, export or version are not found, whatever they look like, and stay."""
    Notebook(tmp_path, "old").note("one", FIDELITY)
    with (tmp_path / NOTEBOOK_FILE).open("a", encoding="utf-8") as stream:
        stream.write('{"key": "newer", "kind": "energy", "recipe": "one", "values": {"joule": 1}}\n')
    book = Notebook(tmp_path, "key")
    assert book.fidelity("one") is None
    book.note("one", replace(FIDELITY, size_bytes=1))
    assert Notebook(tmp_path, "old").fidelity("one") == FIDELITY
    assert Notebook(tmp_path, "key").fidelity("one").size_bytes == 1


def test_a_resumed_search_with_another_key(tmp_path):
    """A search on another export measures everything itself."""
    _, first = search(tmp_path)
    _, second = search(tmp_path, key="other")
    assert second.asked == first.asked


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "\xff",
        "5",
        '{"kind": "fidelity"}',
        '{"key": "key", "kind": "energy", "recipe": "one", "values": {}}',
        '{"key": "key", "kind": "latency", "recipe": "one", "values": {"ratio": 1}}',
        '{"key": "key", "kind": "latency", "recipe": "one", "values": {"ratio": "1", "low": 1, "high": 1, "rounds": 1}}',
        json.dumps({"key": "key", "kind": "latency", "recipe": "one",
                    "values": {"ratio": 1, "low": 1, "high": 1, "rounds": 1, "more": 1}}),
    ],
)  # fmt: skip
def test_a_damaged_notebook(tmp_path, line):
    """A whole line that is no measurement is refused by its number, with what to do."""
    path = tmp_path / NOTEBOOK_FILE
    Notebook(tmp_path, "key").note("one", FIDELITY)
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(DocumentError, match=r"line 2 is no measurement\. Delete"):
        Notebook(tmp_path, "key")


# -- what is shown -----------------------------------------------------------------------------------------------------


def table(outcome):
    """What a person reads."""
    stream = io.StringIO()
    print_search(outcome, Console(file=stream, width=200))
    return stream.getvalue()


def rows_of(text):
    """The cells of each row, by the recipe's name."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {row[0].removesuffix(" *"): row for row in rows}


def test_table(tmp_path):
    """Every timed recipe is a row, the fastest first; the front has stars, and what is taken says so."""
    found, _ = search(tmp_path)
    text = table(found)
    rows = rows_of(text)
    timed = [entry for entry in found.entries if entry.latency]
    assert set(rows) == {entry.recipe.name for entry in timed}
    starred = {name for name, row in rows.items() if row[0].endswith(" *")}
    assert starred == {entry.recipe.name for entry in found.front}
    assert 0 < len(starred) < len(rows)
    assert [name for name, row in rows.items() if row[-1] == "taken"] == [found.choice.entry.recipe.name]
    assert [float(row[1]) for row in rows.values()] == sorted(float(row[1]) for row in rows.values())
    assert rows["usual"][-1] == "answers depend on batch mates"
    assert found.choice.reason in text


def test_document(tmp_path):
    """The document names everything that was measured, and each recipe in it can be read again."""
    found, _ = search(tmp_path / "notebook")
    write_search(found, tmp_path)
    document = json.loads((tmp_path / SEARCH_FILE).read_text(encoding="utf-8"))
    assert document["chosen"] == found.choice.entry.recipe.name
    assert document["reason"] == found.choice.reason
    read = [Recipe.from_json(row["recipe"], "document") for row in document["recipes"]]
    assert read == [entry.recipe for entry in found.entries]
    on_front = [row["recipe"]["name"] for row in document["recipes"] if row["on_front"]]
    assert set(on_front) == {entry.recipe.name for entry in found.front}
    assert [row["product"] for row in document["sensitivity"]] == WORST


def texts_in(path):
    """The texts of a figure, as a browser reads them."""
    return [text for element in ET.parse(path).iter() if (text := "".join(element.itertext()).strip())]


def test_figure(tmp_path):
    """The figure opens as SVG, names every timed recipe, joins the points of the front, and is the same each time."""
    found, _ = search(tmp_path / "notebook")
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        write_search(found, folder)
    path = tmp_path / "one" / FIGURE_FILE
    assert path.read_bytes() == (tmp_path / "other" / FIGURE_FILE).read_bytes()
    shown = texts_in(path)
    for entry in found.entries:
        assert (entry.recipe.name in shown) == (entry.latency is not None)
    dashed = [element for element in ET.parse(path).iter() if "dasharray" in element.get("style", "")]
    points = [element.get("d").count("L") + 1 for element in dashed]
    assert points == [len(found.front)]


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/x]", "<script>alert(1)</script>&", "$x$ ]]> \u202e"])
def test_hostile_names(tmp_path, name):
    """A recipe's name is text: no markup of the terminal's, the figure's or mathematics."""
    one = replace(an_entry(), recipe=Recipe(name, Form.OPERATORS))
    outcome = Outcome(choose([one]), (one,), (one,), (), (), out_of_time=False)
    assert name.split()[0] in table(outcome)
    write_search(outcome, tmp_path)
    assert name in texts_in(tmp_path / FIGURE_FILE)


def test_nothing_to_show(tmp_path):
    """A search that found nothing is shown, too."""
    nothing = Outcome(None, (), (), (), (("usual", "it cannot be built"),), out_of_time=True)
    assert "taken" not in table(nothing)
    write_search(nothing, tmp_path)
    document = json.loads((tmp_path / SEARCH_FILE).read_text(encoding="utf-8"))
    assert document["chosen"] is document["reason"] is None
    assert document["failed"] == [{"recipe": "usual", "reason": "it cannot be built"}]
    assert ET.parse(tmp_path / FIGURE_FILE).getroot().tag.endswith("svg")
