"""Measures what a cap of thoughts does: tokens of thought and of answer, chat by chat.

Every held-out chat is asked greedily, one at a time, in several ways: without thoughts, with no cap
(a budget of -1, named in the request), as the variant is served (none named: the gateway adds its
own), and with each cap of ``--caps``. Tokens are counted by the ids that the engine returns: up to
the one that ends a thought, and after it; a reply that has none and yet an answer skipped its
thought, one with neither never closed it. Differences are between a way and no cap, over the same
chats, with 95 % intervals. ``exact``: the answer is, word for word, the one that was held out, of a
chat that a person or a template wrote; the model may be right in other words.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bake.progress import say
from experiments.record import Record, add, check_writable, folder_of, now, this_machine, typed
from scripts.lines import BadLine
from scripts.mtp.asking import served_name
from scripts.mtp.levers import Chosen, choose
from scripts.options import add_axes, numbers
from scripts.quality.kept import Kept, name_of
from scripts.served import Failed, NotServed, Served, served
from scripts.thoughts.chats import CLOSE, Chat, read_chats
from scripts.thoughts.counting import OFF, UNCAPPED, counted, summary
from serve.cli import positive
from serve.errors import ServeError
from serve.settings import REPOSITORY

HELD_OUT = REPOSITORY / "weights" / "tiny" / "heldout.jsonl"
PLUGIN = REPOSITORY / "serve" / "plugin"
COUNTING = REPOSITORY / "scripts" / "thoughts" / "counting.py"
# Of `/variant`: all that an answer comes of.
TOLD = ("digest", "dropped", "model", "target", "versions")
SERVED = "as served"
# Columns of replies without a whole thought, and where the summary tells them.
REPLIES = {"skipped": "skipped", "unclosed": "never_closed", "cut": "cut"}
EXAMPLES = """examples:
  python -m scripts.measure_thoughts seq8-shortcot --model tiny
  python -m scripts.measure_thoughts seq8-shortcot --model tiny --caps 4,8,16 --limit 40
  python -m scripts.measure_thoughts seq8-shortcot --model tiny --take-up

CHATS holds one JSON object a line; its "prompt" is a chat in ChatML that ends where the assistant
begins, its "text" the same with the answer.
"""

# A chat, what a request names beside it, and whether thoughts are off: the sample.
Ask = Callable[[Chat, Mapping[str, Any], bool], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was measured, 1 when it could not be, 2 usage."""
    parsed = parser().parse_args(arguments)
    folder = folder_of(parsed.variant)
    try:
        chats = read_chats(parsed.chats, parsed.limit)
        digest = hashlib.sha256(parsed.chats.read_bytes()).hexdigest()
    except BadLine as error:
        print(f"--chats: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"--chats: {parsed.chats}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        chosen = choose(parsed.variant, parsed.model, parsed.target)
        if not chosen.variant.reasoning_parser:
            print(f"variant {parsed.variant} has no REASONING_PARSER: no thoughts", file=sys.stderr)
            return 2
        if parsed.record:
            check_writable(folder)
        command = typed("scripts.measure_thoughts", arguments)
        record, kept = measured(parsed, chosen, chats, digest, command)
        if parsed.record:
            say(f"wrote {add(record, folder)}")
            # Hours that were only shown can still be taken up into a record.
            kept.forget()
    except (ServeError, NotServed, Failed, OSError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, ServeError) else 1
    if parsed.json:
        print(json.dumps(record.summary, indent=1))
    else:
        Console().print(table(parsed.variant, record.summary))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_thoughts",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="a variant that thinks")
    add_axes(top)
    top.add_argument("--chats", type=Path, default=HELD_OUT, help="JSON lines (tiny's held-out)")
    top.add_argument("--limit", type=positive, default=0, help="chats taken, evenly spread (all)")
    top.add_argument(
        "--caps", type=numbers(0), default=[8], help="caps beside the variant's own (8)"
    )
    top.add_argument("--max-tokens", type=positive, default=1024, help="tokens of a reply (1024)")
    top.add_argument("--take-up", action="store_true", help="go on with what was interrupted")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


def ways(more: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What each way names in a request."""
    told: dict[str, dict[str, Any]] = {
        OFF: {"chat_template_kwargs": {"enable_thinking": False}},
        UNCAPPED: {"thinking_token_budget": -1},
        SERVED: {},
    }
    return told | {f"cap {cap}": {"thinking_token_budget": cap} for cap in more}


def measured(
    parsed: argparse.Namespace,
    chosen: Chosen,
    chats: Sequence[Chat],
    digest: str,
    command: list[str],
) -> tuple[Record, Kept]:
    """Every chat in every way, and the record of it; ``command`` asked for it, ``digest`` is of the
    file of chats as it was read. Answers are kept as they come, until the record is.

    :raises NotServed: it does not start.
    :raises Failed: a request is answered with an error.
    """
    made, machine = now(), this_machine()
    settings = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    asked = ways(parsed.caps)
    with (
        tempfile.TemporaryDirectory(prefix="preheat-") as folder,
        served(settings, Path(folder)) as running,
    ):
        variant = json.loads(running.get("/variant"))
        kept = Kept(depends_on(chosen, variant, parsed.max_tokens), fresh=not parsed.take_up)
        samples = list(every(watched(chats), asked, asker(running, parsed.max_tokens), kept))
    record = Record(
        kind="thoughts",
        made=made,
        command=command,
        machine=machine,
        variant=variant,
        parameters={
            "chats": len(chats),
            "of": parsed.chats.name,
            "sha256": digest,
            "max_tokens": parsed.max_tokens,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "concurrency": 1,
            "interval": "95 %, bootstrap over chats, 10,000 draws",
            "ways": asked,
        },
        summary=summary(samples),
        samples=samples,
    )
    return record, kept


def depends_on(chosen: Chosen, variant: Mapping[str, Any], max_tokens: int) -> str:
    """The name of all that an answer comes of, but the chat and the way it is asked: the model's
    folder, what we change in the engine, how a reply is counted.
    """
    told = {name: variant.get(name) for name in TOLD}
    words = (json.dumps(told, sort_keys=True), max_tokens)
    model = sorted(path for path in chosen.model.path.iterdir() if path.is_file())
    return name_of(words, [*model, *sorted(PLUGIN.rglob("*.py")), COUNTING])


def every(
    chats: Iterable[Chat],
    asked: Mapping[str, Mapping[str, Any]],
    ask: Ask,
    kept: Kept,
) -> Iterator[dict[str, Any]]:
    """A sample of each chat in each way; those that are kept are not asked for again."""
    for at, chat in enumerate(chats):
        for way, more in asked.items():
            name = json.dumps([at, chat.messages, chat.answer, way, more], sort_keys=True)
            found = kept.get(name) or kept.put(name, ask(chat, more, way == OFF))
            yield {"chat": at, "source": chat.source, "way": way, **found}


def watched(chats: Sequence[Chat]) -> Iterator[Chat]:
    """Each of them: with a bar on a terminal, elsewhere with a line for each tenth."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(chats, "chats", console=console)
        return
    step = max(1, len(chats) // 10)
    for at, chat in enumerate(chats):
        if at % step == 0:
            say(f"  chats: {at} of {len(chats)}")
        yield chat


def asker(running: Served, max_tokens: int) -> Ask:
    """Asks one chat of ``running``.

    :raises Failed: the model has no token that ends a thought.
    """
    model = served_name(running)
    close = token(running, model, CLOSE)

    def ask(chat: Chat, more: Mapping[str, Any], off: bool) -> dict[str, Any]:
        body = {
            "model": model,
            "messages": chat.messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
        }
        choice = running.post("/v1/chat/completions", body | dict(more))["choices"][0]
        return sample(choice, close, chat.answer, off=off)

    return ask


def sample(choice: Mapping[str, Any], close: int, answer: str, *, off: bool) -> dict[str, Any]:
    """What is kept of a reply: its tokens, how it ended, whether it is ``answer``, and its digest.
    A tool that is called is an answer, whether it stands in the text or beside it.
    """
    message = choice["message"]
    said = (message.get("content") or "").strip()
    answered = bool(said or message.get("tool_calls"))
    return counted(choice["token_ids"], close, off=off, answered=answered) | {
        "ended": choice["finish_reason"],
        "exact": int(said == answer),
        "answer_sha256": hashlib.sha256(said.encode()).hexdigest()[:16],
    }


def token(running: Served, model: str, word: str) -> int:
    """The one token of ``word``.

    :raises Failed: it is several.
    """
    body = {"model": model, "prompt": word, "add_special_tokens": False}
    found = running.post("/tokenize", body)["tokens"]
    if len(found) != 1:
        raise Failed(f"{word} is {len(found)} tokens of {model}: its thoughts have no one end")
    return int(found[0])


def table(variant: str, told: Mapping[str, Any]) -> Table:
    """For a person."""
    made = Table(title=f"{variant}: tokens a chat, 95 %")
    for column in ("way", "thought", "most", *REPLIES, "answer", "exact", "same answers"):
        made.add_column(column, justify="left" if column == "way" else "right")
    for way, one in told.items():
        thought, answer = one["thought_tokens"], one["answer_tokens"]
        made.add_row(
            way,
            f"{thought['point']:.1f} [{thought['low']:.1f}, {thought['high']:.1f}]",
            str(one["thought_most"]),
            *(str(one[key]) for key in REPLIES.values()),
            f"{answer['point']:.1f}",
            f"{one['exact']['point']:.0%}",
            str(one["less_uncapped"]["same_answers"]) if "less_uncapped" in one else "",
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
