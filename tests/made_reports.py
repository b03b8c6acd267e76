"""Folders of runs for the tests of what tells people about them: made up, as the built-in suites write them."""

from __future__ import annotations

import json
from pathlib import Path

RUN = "20261123T120000.000Z-0a1b2c"
DIGEST = f"sha256:{'a' * 64}"
# Markup, script, Markdown, a mention, addresses, control characters, an override of direction, a lone surrogate.
HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><img src=x onerror=window.pwned=1>",
    "\"><svg onload=window.pwned=1>'",
    "javascript:window.pwned=1 https://example.org/x www.example.org",
    "[a](https://example.org) **b** `c` | d | <!-- e",
    "@everyone #1 !1 user@example.org",
    "a\x00b\x1b[31mc\x07\r\n\td\u2028e",
    "\u202eevil\u202c \u2066x\u2069 \ufeff\ufffe",
    "lone \ud800 surrogate",
    "{{ 7 * 7 }} {% raw %} ${x} &amp; &lt;",
    "</code></summary></details></style></title>]]>",
    "to Spiti " * 11_112,
    "עברית من دلهي e\u0301\u0301\u0301\u0301\u0301\u0301\u0301",
)
LABELS = ("<img src=x onerror=window.pwned=1>\u202e\x00", '" onmouseover="window.pwned=1')


def finding(key, value, unit="count", limit=(None, 0), standing="kept", interval=None, **details):
    """A finding of the verdict document; a warning has a limit that says so."""
    suite, scope, name = key.split(".", 2)
    bounds = None if limit is None else {"min": limit[0], "max": limit[1]}
    if standing == "warning":
        bounds["undecided"] = "warn"
    return {
        "suite": suite, "scope": scope, "name": name, "value": value, "unit": unit, "details": details,
        "interval": interval, "limit": bounds, "standing": standing,
    }  # fmt: skip


def open_finding(standing="undecided", **details):
    """A ratio of time that cannot be told from its limit."""
    ratios = {"log_ratios": [0.01, 0.05, 0.08, 0.12, 0.2], **details}
    return finding("latency.int8.ratio_to_last_release", 1.08, "ratio", (None, 1.1), standing, [1.03, 1.17], **ratios)


def open_problem():
    """What the verdict says about it."""
    said = "latency.int8.ratio_to_last_release = 1.08 ratio (1.03 to 1.17), limit ≤ 1.1"
    return f"{said}: it cannot be told which side of the limit it is on; judge again on a quieter machine"


def document(findings=(), problems=(), decision=None, *, names=None, **subject):
    """The verdict document of a run; what it says fits together."""
    broken = [f"{one['suite']}.{one['scope']}.{one['name']}" for one in findings if one["standing"] in BREAKING]
    decision = decision or ("REJECTED" if broken else "INCOMPLETE" if problems else "ACCEPTED")
    return {
        "schema": "harness-verdict",
        "version": 2,
        "run": RUN,
        "decision": decision,
        "broken": broken,
        "problems": list(problems),
        "subject": {
            "candidate": f"results/{RUN}/candidate",
            "candidate_digest": DIGEST,
            "reference": "models/bus",
            "reference_digest": DIGEST,
            "data": {"data/test.jsonl": DIGEST},
            "policy": "default",
            "suites": sorted({one["suite"] for one in findings}),
            "baseline": None,
            "baseline_digest": None,
            "line": "bus",
            "stages_s": {"judge": 61.5},
            **subject,
        },
        "evidence_digest": DIGEST,
        "findings": list(findings),
        "environment": names or {"processor": "AMD EPYC", "usable_cpus": "2", "onnxruntime": "1.32.0"},
    }


BREAKING = frozenset({"broken", "no limit"})


def evidence(verdict):
    """The evidence behind it; each suite has one test of a second."""
    suites = verdict["subject"]["suites"]
    outcomes = [
        {"suite": suite, "test": "test_it", "result": "passed", "duration_s": 1.0, "reason": "", "limit_broken": False}
        for suite in suites
    ]
    return {
        "schema": "harness-evidence", "version": 2, "run_id": "made", "candidate_digest": DIGEST, "variants": ["int8"],
        "suites": suites, "collected": len(outcomes), "deselected": 0, "outcomes": outcomes, "measures": [],
        "problems": [], "environment": {},
    }  # fmt: skip


def made_run(folder: Path, verdict, *, benchmark=None) -> Path:
    """Write a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"verdict.json": verdict, "evidence.json": evidence(verdict), "benchmark.json": benchmark}
    for name, content in contents.items():
        if content is not None:
            # in ASCII: a lone surrogate can stand in JSON as an escape only
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def benchmark_of(*variants, name="test_single_queries_against_the_reference"):
    """Benchmark data with 40 pairs for each variant, and single calls, as they were before there were rounds."""
    return {"benchmarks": [_paired(name, variant) for variant in variants] + [_alone(variant) for variant in variants]}


def benchmark_of_rounds(*variants):
    """Likewise, in rounds, with work that never changes between the calls, and the last release."""
    names = {
        "test_single_queries_against_the_reference": "PyTorch",
        "test_batches_against_the_reference": "PyTorch",
        "test_single_queries_against_fp32": "model.onnx",
        "test_single_queries_against_the_last_release": "last release",
    }
    control = [1_000_000 + 2_000 * (place * 3 % 80) for place in range(80)]
    benchmarks = [
        _paired(name, variant, control_ns=control, pairs_per_round=8, baseline_name=baseline)
        for name, baseline in names.items()
        for variant in variants
    ]
    return {"benchmarks": benchmarks + [_alone(variant) for variant in variants]}


def _paired(name, variant, **more):
    times = {
        "subject_ns": [3_000_000 + 10_000 * (place * 7 % 40) for place in range(40)],
        "baseline_ns": [12_000_000 + 90_000 * (place * 11 % 40) for place in range(40)],
        **more,
    }
    return {"name": f"{name}[{variant}]", "params": {"variant": variant}, "extra_info": times, "stats": {}}


def _alone(variant):
    name = f"test_single_queries_alone[{variant}]"
    return {"name": name, "params": {"variant": variant}, "extra_info": {}, "stats": {"data": [0.003] * 40}}


def divergence(first=None):
    """Where logits part, as the parity suite writes it."""
    layers = [{"module": f"bert.encoder.layer.{place}", "error": 0.02 * (place + 1)} for place in range(6)]
    return {"query": "to Goa", "tolerance": 0.25, "first": first, "last_agreeing": None, "layers": layers}


def types_of(labels, f1=0.9):
    """F1 per entity type, as the quality suite writes it."""
    return {
        label: {"support": 100 + place, "f1": f1 - place / 100, "reference_f1": f1, "loss_bound": 0.03}
        for place, label in enumerate(labels)
    }


def findings_of(texts=("to Goa", "from Pune to Goa"), labels=("SRC", "DEST"), *, flipped=0.8):
    """What the suites find for an INT8 variant and its FP32 twin that flip a few labels on these queries."""
    flips = [
        {
            "query": text,
            "word": text[:9],
            "reference": f"B-{labels[0]}",
            "variant": f"B-{labels[-1]}",
            "margin": flipped,
        }
        for text in texts
    ]
    changed = [
        {"query": text, "reference": [[labels[0], text]], "variant": [[labels[-1], text]], "margin": flipped}
        for text in texts
    ]
    described = [
        {
            "query": text,
            "reference": [f"{labels[0]} 0-2 {text}"],
            "candidate": [f"{labels[-1]} 0-2 {text}"],
            "why": text,
        }
        for text in texts
    ]
    within = "kept" if flipped <= 2 else "broken"
    found = []
    for scope, difference in (("fp32", 1e-5), ("int8", 1.2)):
        found += [
            finding(f"artifact.{scope}.file_size", 22.5, "MiB", (None, None), "reported"),
            finding(f"artifact.{scope}.size_ratio_to_reference", 0.26, "ratio", (None, 0.35)),
            finding(f"artifact.{scope}.opset_version", 18.0, "count", (14, 21)),
            finding(
                f"parity.{scope}.max_logit_difference", difference, "logit", (None, 4), first_divergence=divergence()
            ),
            finding(f"parity.{scope}.p99_logit_difference", difference / 10, "logit", (None, 0.3)),
            finding(f"quality.{scope}.f1_micro", 0.9, "F1", (0.8, None), types=types_of(labels)),
            finding(f"quality.{scope}.f1_micro_loss", 0.001, "F1", (None, 0.005)),
            finding(f"latency.{scope}.p50_ms", 3.0, "ms", (None, None), "reported"),
            finding(f"latency.{scope}.single_query_ratio_to_reference", 0.27, "ratio", (None, 0.5)),
        ]
    margin = finding("parity.int8.largest_flipped_margin", flipped, "logit", (None, 2), within)
    ledger = {"worst": flips, "ledger": flips, "flips": len(flips), "left_out": 0}
    return [
        *found,
        finding("parity.int8.label_agreement", 0.998, "share", (0.99, None), **ledger),
        finding("parity.int8.entity_agreement", 0.981, "share", (0.95, None), changed=changed, queries=len(changed)),
        margin,
        finding("queries.int8.offset_violations", 0.0, of=200, queries=described[:0], smallest=described[0]),
        finding("queries.int8.grammar_entity_agreement", 0.93, "share", (0.85, None), queries=described),
    ]


def hostile_document():
    """A rejected run in which every text that is not the harness's own is an attack."""
    findings = findings_of(HOSTILE, LABELS, flipped=3.0)
    findings.append(finding("parity.int8.tokenization_differences", 13.0, standing="broken", queries=list(HOSTILE)))
    return document(
        findings,
        HOSTILE,
        candidate=HOSTILE[0],
        reference=HOSTILE[1],
        data={text[:500]: DIGEST for text in HOSTILE},
        policy={HOSTILE[2]: DIGEST},
        line=HOSTILE[4],
        names={text[:500]: text for text in HOSTILE},
    )
