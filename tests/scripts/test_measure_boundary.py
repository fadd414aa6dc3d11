"""The boundary's cost is measured of bodies that the boundary does what it says with."""

import json

import pytest

from scripts import measure_boundary as measuring
from serve.boundary import Boundary
from serve.translate import Answers, Vocabulary


def test_the_figures_name_every_case(capsys, monkeypatch):
    monkeypatch.setattr(measuring, "ORIGINAL", 4000)
    monkeypatch.setattr(measuring, "KEPT", 2500)
    assert measuring.main(["--quick", "--json", "--no-record"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {"event", "event with an id", "no boundary"} < set(summary["cases"])
    assert all(row["boundary"] > 0 for row in summary["cases"].values())
    assert summary["map_bytes"] > 4 * (4000 + 2500)


def test_requests_and_answers_are_changed_where_they_hold_ids(monkeypatch):
    monkeypatch.setattr(measuring, "KEPT", 500)
    kept = list(range(0, 1000, 2))
    vocabulary = Vocabulary.of(kept, 1000)
    for name, route, body in measuring.requests(kept):
        assert (Boundary(vocabulary).request(route, body) != body) == ("ids" in name)
    for name, body in measuring.answers():
        changed = Answers(vocabulary).translated(measuring.COMPLETIONS, body) != body
        assert changed == (name != "answer of 1,000 tokens")


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        measuring.main(["--help"])
    assert "examples:" in capsys.readouterr().out
