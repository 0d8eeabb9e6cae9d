"""The table of learned concepts, of lines that are measured."""
import json
import sys

import pytest
import torch
from palimpsest.bench import concepts

METHOD = "Textual Inversion"


def strict(text):
    """What JSON says, which has no Infinity and no NaN."""
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("path", sorted(concepts.RESULTS.parent.rglob("*.json*")), ids=lambda p: p.name)
def test_results_are_strict_json(path):
    text = path.read_text(encoding="utf-8")
    for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
        strict(part)


@pytest.mark.parametrize("drifts, said", [([30.0], "30.0 dB"), ([30.0, 32.0], "31.0 ± 1.0 dB"),
                                          ([float("inf"), float("inf")], "inf dB"), ([30.0, float("inf")], "inf dB")],
                         ids=["one subject", "two", "nothing drifts", "one drifts"])
def test_the_table_says_intervals_where_there_are_some(tmp_path, monkeypatch, capsys, drifts, said):
    monkeypatch.setattr(concepts, "LINES", tmp_path / "lines.jsonl")
    monkeypatch.setattr(concepts, "RESULTS", tmp_path / "results.json")
    key = {"method": METHOD, "prior": False, "seed": 0, "steps": 200}
    numbers = {name: 2.0 for name in concepts.NUMBERS} | {"ceiling": 5.5}
    concepts.LINES.write_text("".join(json.dumps({"subject": n, **key, **numbers, "drift": drift}) + "\n"
                                      for n, drift in enumerate(drifts)))
    monkeypatch.setattr(sys, "argv", ["concepts", "--table", "--only", METHOD, "--subjects", str(len(drifts)),
                                      "--steps", "200"])
    concepts.main()
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert (row[0], row[1], row[2], row[6]) == (f"| {METHOD}", str(len(drifts)), "2.0 dB (3.5)", said)
    assert (row[4], row[8]) == ("200%", "2.00 (2.00)")
    measured = strict(concepts.RESULTS.read_text())["measured"]
    assert concepts.table(measured).splitlines()[-1].split(" | ") == row
    concepts.LINES.write_text("")
    concepts.main()
    assert json.loads(concepts.RESULTS.read_text())["measured"] == measured
    for name in "prompt", "pres", "div":  # as in older lines
        del measured[METHOD][name]
    assert concepts.table(measured).splitlines()[-1].split(" | ") == [*row[:4], "", *row[5:8], "", "", row[10]]


def test_the_prior_costs_what_runs_with_and_without_it_differ_by():
    """Two seeds of one subject count as one."""
    runs = [{"subject": n, "seed": s, "prior": prior, "seen": 20.0 - prior * cost, "unseen": 15.0 - 2 * prior * cost}
            for (n, s), cost in {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.5}.items() for prior in (False, True)]
    cost = concepts.prior_costs([*runs, runs[0] | {"subject": 2}])
    assert cost["pairs"] == 3 and cost["seen"][0] == pytest.approx(2.5) and cost["unseen"][0] == pytest.approx(5.0)
    assert concepts.prior_costs(runs[::2]) == {}


def test_methods_of_one_picture_have_one_and_its_parts_are_both_subjects():
    lab = concepts.Lab()
    one, parts, usual = (concepts.given(lab, 0, name).examples for name in (concepts.TWO_WORDS, concepts.PARTS, METHOD))
    assert len(one) == 1 and len(usual) == concepts.PICTURES and torch.equal(one[0].latent, usual[0].latent)
    names = [f"embedding:{name}" for name in (concepts.WORD, concepts.OTHER)]
    assert [list(e.masks) for e in parts] == [names[:1], names[1:], names, names]
    first, second = parts[2].masks.values()
    assert first[:, 8:].sum() == second[:, :8].sum() == 0 and first.sum() > 9 < second.sum()
    assert not torch.equal(parts[0].latent, one[0].latent) and concepts.ceiling(lab, 0) > 18


def test_a_class_that_became_the_subject_is_told_from_one_that_did_not():
    own = concepts.exact(0)
    became, stayed = concepts.preserved(own[:1].expand(4, -1, -1, -1), own), concepts.preserved(concepts.exact(1), own)
    assert became[1] == pytest.approx(0, abs=1e-5) and stayed[1] > .1
    assert became[0] > stayed[0] + .1
