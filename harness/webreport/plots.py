"""The plots of a report, each from what suites wrote into their details; one without its data is left out.

Draws and decides nothing. Details may have been written by any suite: what has another form than expected is not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from markupsafe import Markup

from harness.account import Account, Timings
from harness.evidence import Unit
from harness.highlights import (
    interval_text,
    limit_text,
    listing,
    mapping,
    number,
    unit_suffix,
    value_text,
    variants,
    words_of,
)
from harness.verdict import Decision, Finding, Limit, Standing

from .svg import WIDTH, Scale, axis, colour, drawing, line, mark, path, rectangle, scale_over, short, text, upright_axis

_LEFT, _RIGHT = 8.0, WIDTH - 12.0
_ROW = 34.0
_MOST_ROWS = 24
_BINS = 24
_RIDGE_BINS = 60
_RIDGE = 58.0
_FEW = 8
_NS_PER_MS = 1e6
_REFERENCE, _LAST_RELEASE = "against_the_reference", "against_the_last_release"
_MOST_DOTS = 200
_LARGEST_LOG = 50.0
_SIGNS = {Standing.BROKEN: " ✖", Standing.WAIVED: " ◐", Standing.UNDECIDED: " ?", Standing.WARNED: " !"}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its title and what one can see in it."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One run's value of a measure, and its decision; `is_change` where the series has changed with this run."""

    run: str
    time: str
    value: float
    machine: str
    is_change: bool
    decision: Decision = Decision.ACCEPTED


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """A measure over the runs of a release line, oldest first, and its limit of today."""

    measure: str
    unit: Unit
    limit: Limit
    points: tuple[HistoryPoint, ...]


def plots_of(account: Account, history: Sequence[HistoryLine]) -> list[Plot]:
    """Draw everything that there is data for."""
    drawn = [
        *(_logit_differences(account, scope) for scope in variants(account)),
        _layers(account),
        *(_flips(account, scope) for scope in variants(account)),
        *(_types(account, scope) for scope in variants(account)),
        *_latency_plots(account.timings),
        _ratios(account),
        _trade_off(account),
        *(_history(one) for one in history),
    ]
    return [plot for plot in drawn if plot is not None]


def _logit_differences(account: Account, scope: str) -> Plot | None:
    """Draw every difference of logits on one logarithmic axis, with its limit."""
    found = [
        finding
        for finding in account.findings
        if finding.measure.key.scope == scope and finding.measure.unit is Unit.LOGIT and finding.limit is not None
    ][:_MOST_ROWS]
    positive = [one for finding in found for one in (finding.measure.value, _maximum(finding)) if one and one > 0]
    if not positive:
        return None
    largest_shown = 1e12  # logits that are no numbers are recorded as the largest double
    scale = scale_over([min(one, largest_shown) for one in positive], _LEFT, _RIGHT, logarithmic=True)
    bottom = 6 + _ROW * len(found)
    parts = [axis(scale, bottom + 4, "logits, logarithmic", top=4)]
    for row, finding in enumerate(found):
        parts += _measure_row(finding, scope, scale, 6 + _ROW * row)
    limits = sum(finding.rejects for finding in found)
    caption = f"{len(found)} measures of how far logits are apart; {limits or 'none'} beyond its limit. Left is better."
    return Plot(f"Logit differences, {scope}", caption, drawing(bottom + 40, caption, parts))


def _maximum(finding: Finding) -> float | None:
    return finding.limit.maximum if finding.limit else None


def _measure_row(finding: Finding, scope: str, scale: Scale, top: float) -> Iterator[Markup]:
    y = top + 22
    maximum = _maximum(finding)
    key = finding.measure.key
    over = ", beyond the limit" if finding.rejects else ""
    says = f"{key} = {value_text(finding)}, limit {limit_text(finding)}{over}"
    yield text(_LEFT, top + 11, words_of(key.name if key.suite == "parity" else f"{key.suite}: {key.name}"))
    yield text(_RIGHT, top + 11, value_text(finding) + (" ✖" if finding.rejects else ""), kind="value", anchor="end")
    yield line(_LEFT, y, _RIGHT, y, "track")
    if maximum is not None and maximum > 0:
        yield line(scale.at(maximum), y - 7, scale.at(maximum), y + 7, "limit")
    yield mark(scale.at(finding.measure.value), y, scope, says, size=4)


def _layers(account: Account) -> Plot | None:
    """Draw the error of each layer of each variant, relative to PyTorch's, with what counts as agreeing."""
    series = {scope: found for scope in variants(account) if (found := _layer_errors(account, scope))}
    if not series:
        return None
    names = max(([name for name, _ in errors] for errors, _ in series.values()), key=len)
    values = [value for errors, tolerance in series.values() for value in (*(error for _, error in errors), tolerance)]
    across = Scale(0, max(len(names) - 1, 1), 52, _RIGHT - 8)
    up = scale_over([min(value, 1e6) for value in values], 190, 24, logarithmic=True)
    parts = [upright_axis(up, 46, "error, relative", right=_RIGHT)]
    shown = range(0, len(names), max(1, math.ceil(len(names) / 8)))
    parts += [text(across.at(place), 208, _layer_name(names[place]), kind="tick", anchor="middle") for place in shown]
    for scope, (errors, tolerance) in series.items():
        places = [(across.at(place), up.at(error)) for place, (_, error) in enumerate(errors)]
        parts += [line(46, up.at(tolerance), _RIGHT, up.at(tolerance), f"limit of-{colour(scope)}")]
        parts += [path(places, f"stroke {colour(scope)}")]
        parts += [
            mark(x, y, scope, f"{scope}, {name}: {error:.3g} (agrees up to {tolerance:g})", size=3.5)
            for (x, y), (name, error) in zip(places, errors, strict=True)
        ]
    caption = (
        "Error of each layer on the worst short query; dashed: up to where it counts as agreeing. Lower is better."
    )
    return Plot("Where the logits part", caption, drawing(216, caption, parts))


def _layer_errors(account: Account, scope: str) -> tuple[list[tuple[str, float]], float] | None:
    finding = account.finding("parity", scope, "max_logit_difference")
    divergence = mapping(finding.measure.details.get("first_divergence")) if finding else {}
    tolerance = number(divergence.get("tolerance"))
    layers = [mapping(layer) for layer in listing(divergence.get("layers"))]
    errors = [
        (str(layer.get("module")), error) for layer in layers if (error := number(layer.get("error"))) is not None
    ]
    return (errors, tolerance) if errors and tolerance and tolerance > 0 else None


def _layer_name(module: str) -> str:
    """Keep the number of a layer, or what the last module is called."""
    return module.rpartition(".")[2][:10]


def _flips(account: Account, scope: str) -> Plot | None:
    """Draw how sure PyTorch was of the labels that flip."""
    finding = account.finding("parity", scope, "label_agreement")
    details = finding.measure.details if finding else {}
    entries = listing(details.get("ledger")) or listing(details.get("worst"))
    margins = [found for entry in entries if (found := number(mapping(entry).get("margin"))) is not None]
    if not margins:
        return None
    limited = account.finding("parity", scope, "largest_flipped_margin")
    limit = _maximum(limited) if limited else None
    scale = Scale(0, max(*margins, limit or 0.0, 1e-9) * 1.08, 34, _RIGHT)
    counts = _histogram(margins, scale.high)
    up = Scale(0, max(counts), 150, 24)
    parts = [
        _whole_axis(up),
        axis(scale, 150, "PyTorch's margin where a label flips, logits"),
        *_bars(counts, scale, up, scope),
    ]
    if limit is not None:
        parts += [line(scale.at(limit), 16, scale.at(limit), 150, "limit"), _limit_label(scale.at(limit), 12)]
    total = number(details.get("flips")) or len(margins)
    caption = f"{total:,.0f} words change their label, the surest at {max(margins):.3g} logits. Left is better: PyTorch wavered there."
    return Plot(f"Margin against flip, {scope}", caption, drawing(186, caption, parts))


def _whole_axis(up: Scale) -> Markup:
    parts = [text(2, 12, "words", kind="tick")]
    for value in up.ticks():
        if value == int(value):
            parts += [line(34, up.at(value), _RIGHT, up.at(value), "grid")]
            parts += [text(28, up.at(value) + 4, short(value), kind="tick", anchor="end")]
    return Markup().join(parts)


def _limit_label(x: float, y: float) -> Markup:
    anchor = "end" if x > WIDTH * 0.8 else "start"
    return text(x + (-4 if anchor == "end" else 4), y, "limit", kind="limit-text", anchor=anchor)


def _histogram(values: Sequence[float], high: float) -> list[int]:
    counts = [0] * _BINS
    for value in values:
        counts[min(int(value / high * _BINS), _BINS - 1)] += 1
    return counts


def _bars(counts: Sequence[int], scale: Scale, up: Scale, scope: str) -> Iterator[Markup]:
    width = (scale.end - scale.start) / _BINS
    step = scale.high / _BINS
    for place, count in enumerate(counts):
        if count:
            says = f"{count} from {place * step:.2g} to {(place + 1) * step:.2g} logits"
            left, top = scale.start + place * width, up.at(count)
            yield rectangle(left + 1, top, width - 2, 150 - top, f"area {colour(scope)}", says)


@dataclass(frozen=True, slots=True)
class _Type:
    """An entity type's F1, the reference's, and the lowest that its loss bound leaves; None where it has none."""

    name: str
    support: int
    f1: float
    reference: float
    low: float | None


def _types(account: Account, scope: str) -> Plot | None:
    """Draw F1 of each entity type with the bound of what it may have lost, beside PyTorch's."""
    finding = account.finding("quality", scope, "f1_micro")
    types = sorted(_read_types(finding), key=lambda one: one.f1)[:_MOST_ROWS] if finding else []
    if not types:
        return None
    lows = [one for found in types for one in (found.f1, found.reference, found.low) if one is not None]
    scale = Scale(max(min([*lows, 0.9]) - 0.02, 0), 1.0, _LEFT, _RIGHT)
    bottom = 6 + _ROW * len(types)
    parts = [axis(scale, bottom + 4, "strict entity F1", top=4)]
    for row, one in enumerate(types):
        parts += _type_row(one, scope, scale, 6 + _ROW * row)
    caption = (
        f"Ring: PyTorch; filled: {scope}; line: down to what it may have lost, with 95 % confidence. Right is better."
    )
    return Plot(f"F1 per entity type, {scope}", caption, drawing(bottom + 40, caption, parts))


def _read_types(finding: Finding) -> Iterator[_Type]:
    for name, entry in mapping(finding.measure.details.get("types")).items():
        values = mapping(entry)
        f1, reference = number(values.get("f1")), number(values.get("reference_f1"))
        bound, support = number(values.get("loss_bound")), number(values.get("support"))
        if f1 is not None and reference is not None:
            yield _Type(str(name), int(support or 0), f1, reference, None if bound is None else reference - bound)


def _type_row(one: _Type, scope: str, scale: Scale, top: float) -> Iterator[Markup]:
    y = top + 22
    says = f"{one.name}: {scope} {one.f1:.4f}, PyTorch {one.reference:.4f}, {one.support} entities"
    yield text(_LEFT, top + 11, f"{one.name[:40]} ({one.support:,})")
    yield text(_RIGHT, top + 11, f"{one.f1:.3f}", kind="value", anchor="end")
    yield line(_LEFT, y, _RIGHT, y, "track")
    if one.low is not None:
        yield line(scale.at(min(one.low, one.f1)), y, scale.at(one.f1), y, f"whisker {colour(scope)}")
    yield mark(scale.at(one.reference), y, "reference", says, size=5.5)
    yield mark(scale.at(one.f1), y, scope, says, size=3.5)


@dataclass(frozen=True, slots=True)
class _Side:
    """Calls of one model: what people call it, how it is coloured, and how long each call took, ns."""

    title: str
    scope: str
    durations_ns: tuple[float, ...]


def _latency_plots(timings: Sequence[Timings]) -> Iterator[Plot]:
    """Draw each benchmark in which two models took turns; what was timed alone has nothing beside it."""
    groups: dict[str, list[Timings]] = {}
    for timing in timings:
        if timing.baseline_ns and timing.subject_ns:
            # one query a call is one question, whatever it took turns with
            single = timing.name in {f"single_queries_{_REFERENCE}", f"single_queries_{_LAST_RELEASE}"}
            groups.setdefault("one query a call" if single else words_of(timing.name), []).append(timing)
    for title, group in groups.items():
        yield _latency(title, group)


def _latency(title: str, timings: Sequence[Timings]) -> Plot:
    """Draw how long calls took: a hill for each side, those that took turns below one another."""
    sides = _sides(timings)
    every = [one / _NS_PER_MS for side in sides for one in side.durations_ns]
    scale = scale_over(every, _LEFT, _RIGHT, logarithmic=True, padding=0.03)
    bottom = 4 + _RIDGE * len(sides)
    parts = [axis(scale, bottom, "ms a call, logarithmic", top=4)]
    for row, side in enumerate(sides):
        durations = [one / _NS_PER_MS for one in side.durations_ns]
        parts += _ridge(side.title, side.scope, durations, scale, 4 + _RIDGE * (row + 1))
    caption = " ".join(
        filter(None, [_how_timed(timings), "Left is better; the tick is the median.", _control(timings)])
    )
    return Plot(f"Latency: {title}", caption, drawing(bottom + 36, caption, parts))


def _sides(timings: Sequence[Timings]) -> list[_Side]:
    """Order the sides: what several variants took turns with once, and before them; then pair by pair."""
    pairs: dict[tuple[str, str], list[Timings]] = {}
    for timing in timings:
        # the last release has a model of its own for each variant, PyTorch and model.onnx are the same for all
        of = timing.variant if timing.name.endswith(_LAST_RELEASE) else ""
        pairs.setdefault((_baseline_of(timing), of), []).append(timing)
    sides = []
    for (baseline, of), group in pairs.items():
        title = f"{baseline}, {of}" if of else baseline
        scope = "other" if of else "reference"
        sides.append(_Side(title, scope, tuple(one for timing in group for one in timing.baseline_ns)))
        beside = f", in turns with {baseline}" if len(pairs) > 1 else ""
        sides += [_Side((one.variant or "candidate") + beside, one.variant, one.subject_ns) for one in group]
    return sides


def _baseline_of(timing: Timings) -> str:
    """Name what a variant took turns with; runs from before it was noted have it in the benchmark's name alone."""
    if timing.baseline_name:
        return timing.baseline_name
    if timing.name.endswith(_REFERENCE):
        return "PyTorch"
    return f"{words_of(timing.name.partition('_against_')[2] or 'baseline')}, the other side"


def _how_timed(timings: Sequence[Timings]) -> str:
    calls = sorted({len(timing.subject_ns) for timing in timings})
    rounds = sorted({len(timing.subject_ns) // timing.pairs_per_round for timing in timings if timing.pairs_per_round})
    said = f"{_from_to(calls)} calls of each model, in turns"
    return f"{said}, in {_from_to(rounds)} rounds." if rounds else f"{said}."


def _from_to(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _control(timings: Sequence[Timings]) -> str:
    """Say how much work that never changes varied meanwhile: so much came from the machine alone."""
    spread = [one for timing in timings if len(timing.control_ns) > _FEW for one in _around_median(timing.control_ns)]
    if not spread:
        return ""
    return f"Work that never changes took {min(spread):.2f} to {max(spread):.2f} times its median meanwhile."


def _around_median(durations: Sequence[float]) -> tuple[float, float]:
    """Tell where the middle nine tenths of durations lie, as multiples of their median."""
    cuts = quantiles(durations, n=20)
    return cuts[0] / median(durations), cuts[-1] / median(durations)


def _ratios(account: Account) -> Plot | None:
    """Draw each ratio of time that has an interval, with the ratios of its rounds and its limit."""
    found = [
        finding
        for finding in account.findings
        if finding.measure.unit is Unit.RATIO and finding.measure.interval is not None and finding.limit is not None
    ]
    found = sorted(found, key=lambda one: (one.limit is None or one.limit.reported_only, str(one.measure.key)))
    ends = [end for one in found for end in (*(one.measure.interval or ()), _maximum(one)) if end and end > 0]
    if not ends:
        return None
    found = found[:_MOST_ROWS]
    scale = scale_over(ends, _LEFT, _RIGHT, logarithmic=True)
    bottom = 6 + _ROW * len(found)
    parts = [axis(scale, bottom + 4, "times, logarithmic; 1 is as fast", top=4)]
    for row, finding in enumerate(found):
        parts += _ratio_row(finding, scale, 6 + _ROW * row)
    caption = (
        "Broad band: where the ratio lies when it is measured again; dots: single rounds. A limit is kept, or broken, "
        "only if the whole band is on one side of it. Left is better."
    )
    return Plot("Ratios and how sure they are", caption, drawing(bottom + 40, caption, parts))


def _ratio_row(finding: Finding, scale: Scale, top: float) -> Iterator[Markup]:
    y, key = top + 22, finding.measure.key
    low, high = finding.measure.interval or (finding.measure.value,) * 2
    says = f"{key} = {value_text(finding)} ({interval_text(finding)}), limit {limit_text(finding)}"
    maximum = _maximum(finding)
    name = key.name if key.suite == "latency" else f"{key.suite}: {key.name}"
    yield text(_LEFT, top + 11, f"{key.scope}: {words_of(name)}")
    sign = _SIGNS.get(finding.standing, "")
    yield text(_RIGHT, top + 11, value_text(finding) + sign, kind="value", anchor="end")
    yield line(_LEFT, y, _RIGHT, y, "track")
    rounds = [found for one in listing(finding.measure.details.get("log_ratios")) if (found := number(one)) is not None]
    for one in rounds[:_MOST_DOTS]:
        yield mark(scale.at(math.exp(min(one, _LARGEST_LOG))), y, key.scope, "", size=1.4)
    yield line(scale.at(low), y, max(scale.at(high), scale.at(low) + 1), y, f"interval {colour(key.scope)}")
    if maximum is not None and maximum > 0:
        yield line(scale.at(maximum), y - 8, scale.at(maximum), y + 8, "limit")
    yield mark(scale.at(finding.measure.value), y, key.scope, says, size=3)


def _ridge(title: str, scope: str, values: Sequence[float], scale: Scale, base: float) -> Iterator[Markup]:
    middle = median(values)
    says = f"{title}: median {middle:.3g} ms of {len(values)} calls"
    if len(values) > _FEW:
        low, high = math.log(scale.low), math.log(scale.high)
        counts = [0] * _RIDGE_BINS
        for value in values:
            counts[min(int((math.log(value) - low) / (high - low) * _RIDGE_BINS), _RIDGE_BINS - 1)] += 1
        smooth = [sum(counts[max(place - 1, 0) : place + 2]) for place in range(_RIDGE_BINS)]
        width = (scale.end - scale.start) / _RIDGE_BINS
        top = [
            (scale.start + (place + 0.5) * width, base - count / max(smooth) * 32) for place, count in enumerate(smooth)
        ]
        yield path([(scale.start, base), *top, (scale.end, base)], f"area hill {colour(scope)}", closed=True)
    else:
        yield from (mark(scale.at(value), base - 8, scope, f"{title}: {value:.3g} ms", size=3.5) for value in values)
    yield line(scale.at(middle), base - 34, scale.at(middle), base, f"stroke {colour(scope)}")
    yield text(_LEFT, base - 40, title)
    ninety_fifth = f", p95 {quantiles(values, n=20)[-1]:.3g}" if len(values) > 20 else ""
    yield Markup("<g><title>{}</title>{}</g>").format(
        says, text(_RIGHT, base - 40, f"median {middle:.3g} ms{ninety_fifth}", kind="value", anchor="end")
    )


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one way to serve costs and gives: ms a query, F1, MiB of the file."""

    name: str
    scope: str
    milliseconds: float
    f1: float
    mebibytes: float


def _trade_off(account: Account) -> Plot | None:
    """Draw F1 against latency, with the size of the file as the size of the mark."""
    offers = [offer for scope in variants(account) if (offer := _offer(account, scope))]
    if not offers:
        return None
    reference = _reference_offer(account, offers[0].scope)
    shown = [*offers, *([reference] if reference else [])]
    across = Scale(0, max(offer.milliseconds for offer in shown) * 1.25, 52, _RIGHT - 10)
    spread = max(offer.f1 for offer in shown) - min(offer.f1 for offer in shown)
    air = max(spread * 0.6, 0.006)
    up = Scale(min(offer.f1 for offer in shown) - air, max(offer.f1 for offer in shown) + air, 190, 24)
    parts = [upright_axis(up, 46, "entity F1", right=_RIGHT), axis(across, 196, "ms a query (median)")]
    largest = max(offer.mebibytes for offer in shown)
    for offer in sorted(shown, key=lambda one: -one.mebibytes):
        parts += _offer_mark(offer, across, up, largest)
    caption = "; ".join(
        f"{one.name}: {one.milliseconds:.3g} ms, F1 {one.f1:.3f}, {one.mebibytes:.0f} MiB" for one in shown
    )
    caption += ". Up and left is better; the area is the file's size."
    return Plot("Size, latency and F1", caption, drawing(232, caption, parts))


def _offer_mark(offer: _Offer, across: Scale, up: Scale, largest: float) -> Iterator[Markup]:
    x, y = across.at(offer.milliseconds), up.at(offer.f1)
    size = 5 + 11 * math.sqrt(offer.mebibytes / largest)
    yield mark(x, y, offer.scope, f"{offer.name}: {offer.milliseconds:.3g} ms, F1 {offer.f1:.4f}", size=size)
    yield text(x, y - size * 1.25 - 6, offer.name, kind="value", anchor="middle")


def _offer(account: Account, scope: str) -> _Offer | None:
    found = [
        account.finding(*key)
        for key in (("latency", scope, "p50_ms"), ("quality", scope, "f1_micro"), ("artifact", scope, "file_size"))
    ]
    values = [finding.measure.value for finding in found if finding is not None]
    if len(values) != len(found) or values[0] <= 0 or values[2] <= 0:
        return None
    return _Offer(scope, scope, *values)


def _reference_offer(account: Account, scope: str) -> _Offer | None:
    """Tell what PyTorch costs, from what a variant's measures say about both."""
    timing = next(
        (one for one in account.timings if one.name == "single_queries_against_the_reference" and one.baseline_ns), None
    )
    names = (
        ("quality", "f1_micro"),
        ("quality", "f1_micro_loss"),
        ("artifact", "file_size"),
        ("artifact", "size_ratio_to_reference"),
    )
    found = [account.finding(suite, scope, name) for suite, name in names]
    if timing is None or None in found:
        return None
    f1, loss, size, ratio = (finding.measure.value for finding in found if finding is not None)
    if ratio <= 0:
        return None
    return _Offer("PyTorch", "reference", median(timing.baseline_ns) / _NS_PER_MS, f1 + loss, size / ratio)


def _history(one: HistoryLine) -> Plot | None:
    """Draw a measure over the runs, a line for each machine, and mark where it changed."""
    points = [point for point in one.points if math.isfinite(point.value)]
    if len(points) < 2:
        return None
    bounds = [bound for bound in (one.limit.minimum, one.limit.maximum) if bound is not None]
    values = [point.value for point in points]
    # a limit that is far off would flatten the line that one wants to see
    near = [bound for bound in bounds if min(values) / 4 <= bound <= max(values) * 4]
    up = scale_over([*values, *near], 170, 24, padding=0.1)
    across = Scale(0, len(points) - 1, 56, _RIGHT - 8)
    parts = [upright_axis(up, 50, one.unit.value, right=_RIGHT)]
    for bound in near:
        parts += [
            line(50, up.at(bound), _RIGHT, up.at(bound), "limit"),
            text(54, up.at(bound) - 4, "limit", kind="limit-text"),
        ]
    parts += _history_lines(points, across, up, unit_suffix(one.unit))
    first, last = _moments(points)
    parts += [text(56, 190, first, kind="tick"), text(_RIGHT, 190, last, kind="tick", anchor="end")]
    changes = sum(point.is_change for point in points)
    machines = len({point.machine for point in points})
    where = f"{machines} machines" if machines > 1 else "one machine"
    changed = f"where the series changed: ▲ ({changes})" if changes else "no change found in the series"
    hollow = ", hollow where not accepted" if any(point.decision is not Decision.ACCEPTED for point in points) else ""
    caption = f"{len(points)} runs on {where}, the last is this one{hollow}; {changed}."
    caption += " The limit is dashed." if near else ""
    return Plot(f"History: {one.measure}", caption, drawing(198, caption, parts))


def _moments(points: Sequence[HistoryPoint]) -> tuple[str, str]:
    """Write when the first and the last run began: the days, or on one day the minutes."""
    ends = points[0].time, points[-1].time
    length = 10 if ends[0][:10] != ends[1][:10] else 16
    first, last = (end[:length].replace("T", " ") for end in ends)
    return first, last


def _history_lines(points: Sequence[HistoryPoint], across: Scale, up: Scale, suffix: str) -> Iterator[Markup]:
    shapes = ("other", "reference", "fp32", "int8")
    machines: Mapping[str, str] = {
        name: shapes[place % len(shapes)] for place, name in enumerate(dict.fromkeys(point.machine for point in points))
    }
    for machine, shape in machines.items():
        own = [(across.at(place), up.at(point.value)) for place, point in enumerate(points) if point.machine == machine]
        yield path(own, f"stroke {colour(shape)}")
        if len(machines) > 1:
            yield text(own[-1][0], own[-1][1] - 8, machine[:24], kind="tick", anchor="end")
    for place, point in enumerate(points):
        x = across.at(place)
        if point.is_change:
            yield line(x, 24, x, 170, "change")
            yield text(x, 181, "▲", kind="change-text", anchor="middle")
        decision = "" if point.decision is Decision.ACCEPTED else f", {point.decision.value}"
        change = ", a change" if point.is_change else ""
        says = f"{point.run}: {point.value:.4g}{suffix}{decision} on {point.machine}{change}"
        drawn = mark(x, up.at(point.value), machines[point.machine], says, size=3)
        yield drawn if point.decision is Decision.ACCEPTED else Markup('<g class="hollow">{}</g>').format(drawn)
