"""What an answer scores, 0 or 1. lm-evaluation-harness calls these; `task.yaml` names which.

Answers are a chat model's: sentences around a letter or number, a code block, thinking before.
"""

import os
import re
from functools import cache
from importlib import import_module
from typing import Any

Item = dict[str, Any]
Score = dict[str, int]

THOUGHT = "</think>"
# MMLU-Pro's.
MOST_CHOICES = 10
# "The answer is", "**Answer:**", "the correct option is"; or a box with nothing said before it.
CALLED = (
    r"(?:(?i:\banswer\b|\b(?:option|choice)(?=[\s*_]*:|[\s*_]+(?:is|was|would be)\b))"
    r"(?i:[\s*_]*:|[\s*_]+(?:is|was|would be)\b[\s*_]*:?)?|(?=\\boxed))"
)
# Between that and the letter: markup, quotes, brackets, TeX, the word "option".
WRAPPED = (
    r"(?:[\s*_`\"'“‘$(\[{]|\\(?:boxed|text|textbf|mathbf|mathrm)|(?i:option|choice|letter)\s)*"
)
# A small letter is one only before a bracket or the end of its line: "a" is an article, too.
SMALL_ENDS = r"(?=[)\]}]|[ .*_`\"'”’$]*(?:\n|\Z))"
PRONOUN = r"(?!I(?:['’]|\s+(?:am|believe|can|cannot|choose|do|don|guess|have|say|think|would)\b))"
# A letter that opens the answer and is no article or pronoun.
OPENS = r"^\W*([{letters}])(?:\W*$|[.):*\n])"
# Not the minus between two numbers.
NUMBER = re.compile(r"(?:(?<![\w)])-)?\d[\d,]*(?:\.\d+)?")
BLOCK = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:```|\Z)", re.DOTALL)
# Set by who starts the harness, after a person has said so.
RUN_CODE = "PREHEAT_QUALITY_RUN_CODE"


def after_thinking(answer: str) -> str:
    """What follows the model's thinking, if it thought aloud."""
    return answer.rpartition(THOUGHT)[2].strip()


def letter_of(answer: str, choices: int = MOST_CHOICES) -> str:
    """The letter that is answered, of so many: the last one called the answer, else one that opens
    it; empty where there is none.
    """
    words = after_thinking(answer)
    said, opens = _letters(choices)
    if found := [match[1] or match[2] for match in said.finditer(words)]:
        return str(found[-1]).upper()
    opened = opens.match(words)
    return opened[1] if opened else ""


@cache
def _letters(choices: int) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What calls a letter the answer, and what opens with one."""
    capitals = "A-" + chr(ord("A") + choices - 1)
    small = capitals.lower()
    letter = rf"{PRONOUN}(?:([{capitals}])(?![\w'’])|([{small}])(?!\w){SMALL_ENDS})"
    return re.compile(CALLED + WRAPPED + letter), re.compile(OPENS.format(letters=capitals))


def number_of(answer: str) -> str:
    """The last number, without separators of thousands or a fraction of nothing."""
    found = NUMBER.findall(after_thinking(answer))
    return _plain(found[-1]) if found else ""


def code_of(answer: str) -> str:
    """The last block of code, or all of it where there is none."""
    words = after_thinking(answer)
    blocks = BLOCK.findall(words)
    return str(blocks[-1]) if blocks else words


def letter(doc: Item, results: list[str]) -> Score:
    """Multiple choice: the letter. ``unread``: whether none of the item's is answered."""
    found = letter_of(results[0], len(_options(doc)))
    return {"score": int(found == doc["answer"]), "unread": int(not found)}


def number(doc: Item, results: list[str]) -> Score:
    """Grade-school mathematics: the last number. ``unread``: whether there is none."""
    found = number_of(results[0])
    return {"score": int(found == _plain(doc["answer"])), "unread": int(not found)}


def instructions(doc: Item, results: list[str]) -> Score:
    """IFEval: every instruction followed, by the harness's own checkers, strictly."""
    checkers = import_module("lm_eval.tasks.ifeval.utils")
    told = checkers.process_results(doc, [after_thinking(results[0])])
    return {"score": int(told["prompt_level_strict_acc"])}


def code(doc: Item, results: list[str]) -> Score:
    """HumanEval: the tests pass.

    :raises PermissionError: nobody allowed the model's code to be run.
    """
    from scripts.quality.run_code import passes

    if os.environ.get(RUN_CODE) != "1":
        raise PermissionError("humaneval runs the model's code: say --run-code")
    program = f"{doc['prompt']}\n    pass\n\n{code_of(results[0])}\n\n{doc['test']}"
    return {"score": int(passes(f"{program}\ncheck({doc['entry_point']})\n"))}


def choices(doc: Item) -> str:
    """The prompt of a question with its choices under letters."""
    lines = [f"{chr(ord('A') + place)}. {one}" for place, one in enumerate(_options(doc))]
    asked = 'End with "The answer is X", X being the letter of the right choice.'
    return "\n".join([doc["question"].strip(), *lines, asked])


def _options(doc: Item) -> list[str]:
    """As our sets have them, or MMLU-Pro."""
    return list(doc.get("choices") or doc["options"])


def _plain(digits: str) -> str:
    value = digits.replace(",", "")
    return value.rstrip("0").rstrip(".") if "." in value else value
