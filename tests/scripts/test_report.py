"""The page is whole by itself, valid, readable without seeing it, honest about what it lacks."""

import html
import html.parser
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from experiments.record import Record, add
from scripts.report import main
from serve.settings import REPOSITORY
from tests.scripts import sampled

FIGURES = (
    *("frontier", "latency", "k-sweep", "acceptance", "quantize", "rounding", "vocab"),
    "coldstart",
)
SECTIONS = (*FIGURES, "quality", "parity", "ledger", "others")
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Parsed(html.parser.HTMLParser):
    """Elements that close in order, their attributes, and the text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.section = ""
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.attributes.append((tag, found))
        self.ids += [found["id"]] if found.get("id") else []
        if tag == "section":
            self.section = found["id"] or ""
            self.inside[self.section] = []
        if self.section:
            self.inside[self.section].append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    sampled.everything(folder)
    return folder


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    out = root / "out" / "report.html"
    assert main(["--root", str(root), "--out", str(out)]) == 0
    return out.read_text()


def made(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["--root", str(root), "--out", str(root / "r.html"), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_nothing_is_asked_from_outside(text: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<img|<iframe|src=", text)
    links = [a["href"] for tag, a in Parsed(text).attributes if "href" in a]
    assert links
    assert all(link and link.startswith("#") for link in links)


def test_it_is_well_formed_and_every_id_is_given_once(text: str) -> None:
    page = Parsed(text)
    assert text.startswith("<!DOCTYPE html>")
    assert len(page.ids) == len(set(page.ids))
    for _, attributes in page.attributes:
        for key in ("aria-labelledby", "aria-describedby"):
            assert {*(attributes.get(key) or "").split()} <= {*page.ids}
        assert (attributes.get("href") or "#main")[1:] in page.ids


def test_every_picture_is_xml_and_says_what_it_shows(text: str) -> None:
    pictures = re.findall(r"<figure tabindex=\"0\">.*?(<svg.*?</svg>)", text, re.DOTALL)
    assert len(pictures) >= len(FIGURES)
    for picture in pictures:
        parsed = ET.fromstring(picture)
        assert parsed.get("role") == "img"
        assert parsed.findtext("title")
        assert parsed.findtext("desc")
        assert "nan" not in picture


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_is_there(text: str, name: str) -> None:
    assert name in Parsed(text).inside


@pytest.mark.parametrize("name", FIGURES)
def test_a_section_with_a_record_has_a_picture_and_its_numbers(text: str, name: str) -> None:
    inside = Parsed(text).inside[name]
    assert "figure" in inside
    assert "table" in inside
    assert "details" in inside


def test_the_frontier_shows_who_is_where(text: str) -> None:
    frontier = text.split('<section id="frontier"')[1].split("</section>", maxsplit=1)[0]
    for variant in sampled.VARIANTS:
        assert frontier.count(f">{variant}</text>") == 2
    assert "allowed: up to 0.02 nats" in frontier
    assert "2.30 (2.14 to 2.48)" in frontier
    assert "not at parity" in frontier


def test_recipes_that_none_beats_in_both_are_named(text: str) -> None:
    shown = text.split('<section id="quantize"')[1].split("</section>", maxsplit=1)[0]
    assert "awq mlp g32</text>" in shown
    assert "rtn mlp g32</text>" not in shown
    assert "rtn mlp g32</th>" in shown


def test_a_soak_that_failed_says_how(text: str) -> None:
    assert "failed: it died" in text


def test_what_records_say_is_escaped(text: str) -> None:
    assert "AMD &lt;EPYC&gt;" in text
    assert "<EPYC>" not in text
    assert "<img" not in text
    assert f"<figcaption>Speed-up over concurrency, {html.escape(sampled.MODEL)}" in text


def frontier(root: Path) -> str:
    out = root / "r.html"
    assert main(["--root", str(root), "--out", str(out)]) == 0
    text = out.read_text().split('<section id="frontier"')[1]
    return text.split("</section>", maxsplit=1)[0]


def put(root: Path, *made: Record) -> None:
    for one in made:
        add(one, root / "experiments/awq/measurements")


def test_a_smaller_run_does_not_displace_a_whole_one(tmp_path: Path) -> None:
    put(tmp_path, sampled.latency("awq", 1.5), sampled.quality("awq", 0.004))
    put(tmp_path, sampled.latency("awq", 9.0, 1, requests=8, rounds=1))
    put(tmp_path, sampled.quality("awq", 0.9, 1, mode="smoke"))
    shown = frontier(tmp_path)
    assert "1.50 (" in shown
    assert "9.00 (" not in shown
    assert "0.9 (" not in shown
    assert "awq*" not in shown


def test_what_is_not_whole_says_so(tmp_path: Path) -> None:
    put(tmp_path, sampled.latency("awq", 1.5), sampled.quality("awq", 0.004, mode="fast"))
    shown = frontier(tmp_path)
    assert ">awq*</text>" in shown
    assert "<td>mode fast</td>" in shown


def test_speed_on_one_target_is_not_drawn_over_quality_on_another(tmp_path: Path) -> None:
    put(tmp_path, sampled.latency("awq", 1.5), sampled.quality("awq", 0.004, 1, "a10g"))
    shown = frontier(tmp_path)
    assert "<svg" not in shown
    put(tmp_path, sampled.latency("awq", 2.5, 2, "a10g"))
    shown = frontier(tmp_path)
    assert shown.count("<figcaption>") == 2
    assert shown.count(", a10g</figcaption>") == 2


def test_speeds_at_different_loads_say_so(tmp_path: Path) -> None:
    put(tmp_path, sampled.latency("awq", 1.5), sampled.quality("awq", 0.004))
    assert "end to end, 8 at once" in frontier(tmp_path)
    few = sampled.latency("seq8", 1.5, 1)
    del few.summary["cells"]["c8"]
    put(tmp_path, few, sampled.quality("seq8", 0.004, 1))
    shown = frontier(tmp_path)
    assert "end to end, each at the load beside it" in shown
    assert ">seq8, 4 at once</text>" in shown
    assert ">awq, 8 at once</text>" in shown


def test_only_what_was_measured_against_the_baseline_is_on_the_frontier(tmp_path: Path) -> None:
    put(tmp_path, sampled.latency("awq", 1.5), sampled.quality("awq", 0.004))
    put(tmp_path, sampled.latency("awq", 7.0, 1, reference="seq8"))
    shown = frontier(tmp_path)
    assert "1.50 (" in shown
    assert "7.00 (" not in shown
    page = (tmp_path / "r.html").read_text()
    assert page.count("cpu, against seq8</caption>") == 1


def test_light_and_dark_are_both_there_and_the_keyboard_gets_everywhere(text: str) -> None:
    assert "prefers-color-scheme:dark" in text
    scrolled = [a for _, a in Parsed(text).attributes if a.get("class") == "scroll"]
    assert scrolled
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolled)


def test_without_records_it_says_what_would_make_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    told = made(tmp_path, capsys)
    assert told["sections"] == dict.fromkeys(told["sections"], False)  # type: ignore[call-overload]
    page = (tmp_path / "r.html").read_text()
    assert "No record of kind latency yet: make eval-latency" in page
    assert Parsed(page).inside["frontier"]


def test_a_shape_that_is_not_known_is_named_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "experiments/awq/measurements"
    add(sampled.record("latency", "awq", {"other": 1}), folder)
    add(sampled.record("quality", "awq", {"verdict": "parity", "texts": {"kl": 1}}), folder)
    add(sampled.record("k-sweep", "awq", {"picked": 1, "rule": "", "by_k": [{"k": "x"}]}), folder)
    add(sampled.record("coldstart", "awq", {"x": 1}), folder)
    add(sampled.record("rounding", "awq", {}), folder)
    add(
        sampled.record("acceptance", "bare", {"all": {"prompts": 3}}),
        tmp_path / "experiments/bare/measurements",
    )
    (folder / "latency_x.json").write_text("{}")
    add(sampled.acceptance(), folder)
    told = made(tmp_path, capsys)
    notes = told["notes"]
    assert isinstance(notes, list)
    for words in (
        "reference: Field required",
        "by_k.0.k",
        "no kind of start",
        "not read: ",
        "nothing in it",
        "'all'",
    ):
        assert any(words in note for note in notes), words
    assert told["sections"]["acceptance"]  # type: ignore[index]


def test_a_sweep_side_by_side_is_shown_with_intervals_and_a_k_for_each_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "experiments/seq8-best/measurements"
    # What came before it, one engine after the other, has less to say however new it is.
    for one in (sampled.sweep(), sampled.sweep_beside()):
        add(one, folder)
    assert made(tmp_path, capsys)["notes"] == []
    said = (tmp_path / "r.html").read_text()
    assert "K = 2 is picked at 1; K = 0 is picked at 4 and 8: the least." in said
    assert "1.09 (1.04 to 1.14)" in said
    assert "the best" not in said


def test_what_a_recipe_costs_has_an_interval_and_stands_beside_its_rival(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(sampled.quantize(), tmp_path / "experiments/measurements")
    made(tmp_path, capsys)
    said = (tmp_path / "r.html").read_text()
    assert "+0.30% (+0.20% to +0.40%)" in said
    assert "-0.20% (-0.30% to -0.10%) to rtn mlp g32" in said


def test_parity_is_told_in_the_records_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = sampled.parity().summary | {
        "words": "drafts change nothing but ties",
        "left_out": {"float32": "no kernel"},
        "prefix_caching": {"on": False, "by": "target cpu", "reason": "it dies"},
    }
    add(sampled.record("parity", "seq8-best", summary), tmp_path / "experiments/a/measurements")
    assert made(tmp_path, capsys)["notes"] == []
    said = (tmp_path / "r.html").read_text()
    assert "drafts change nothing but ties" in said
    assert "drafts change what is said" not in said
    assert "left out: no kernel" in said
    assert "left out: it dies" in said


def test_variants_near_the_limit_are_shown_again_without_those_far_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kl in (("awq", 0.004), ("seq8-v64k", 0.6)):
        folder = tmp_path / f"experiments/{name}/measurements"
        add(sampled.latency(name, 1.1), folder)
        add(sampled.quality(name, kl), folder)
    made(tmp_path, capsys)
    said = (tmp_path / "r.html").read_text()
    assert said.count("those near the limit") >= 2


def test_the_newest_record_of_a_variant_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "experiments/seq8-best/measurements"
    for later, length in enumerate((2.0, 3.0)):
        group = {"prompts": 1, "mean_acceptance_length": length, "acceptance_rate_at": [0.5]}
        add(sampled.record("acceptance", "seq8-best", {"all": group}, later), folder)
    made(tmp_path, capsys)
    page = (tmp_path / "r.html").read_text()
    assert ">3.00<" in page
    assert ">2.00<" not in page


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "experiments").mkdir()
    assert main(["--root", str(tmp_path), "--out", str(tmp_path / "file" / "r.html")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("report: ")
    assert error.count("\n") == 1


def test_what_is_no_checkout_leaves_the_page_that_stood_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    out.write_text("before")
    assert main(["--root", str(tmp_path / "nosuch"), "--out", str(out)]) == 2
    assert "nosuch: expected a checkout" in capsys.readouterr().err
    assert out.read_text() == "before"


def test_the_records_here_are_all_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(REPOSITORY / "experiments", tmp_path / "experiments")
    told = made(tmp_path, capsys)
    assert told["notes"] == []
    sections = told["sections"]
    assert isinstance(sections, dict)
    assert {"acceptance", "rounding", "coldstart", "ledger"} <= {
        n for n, full in sections.items() if full
    }
    Parsed((tmp_path / "r.html").read_text())
