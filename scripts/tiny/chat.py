"""The chat portion: conversations templated from facts, in several phrasings.

Owns the phrasings and how many of each kind there are. Deterministic for a seed. A conversation's
name states the question's exact wording and its fact, so that the held-out split is by question.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.tiny.facts import Country, Function
from scripts.tiny.markup import Conversation, Turn
from scripts.tiny.sources import Sense, Verse

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Preheat Tiny, a small assistant. Answer in one sentence.",
    "Answer briefly and truthfully.",
    "You are a patient teacher.",
)


@dataclass(frozen=True)
class Facts:
    countries: list[Country]
    senses: list[Sense]
    functions: list[Function]
    verses: list[Verse]


@dataclass(frozen=True)
class Exchange:
    """One question with its answer, and a thought that leads to it."""

    ask: str
    answer: str
    thought: str = ""


Maker = Callable[[random.Random, Facts], Exchange]


def capital(rng: random.Random, facts: Facts) -> Exchange:
    c = rng.choice(facts.countries)
    ask = rng.choice(
        [
            f"What is the capital of {c.the}?",
            f"What is the capital of {c.the}?",
            f"What's the capital city of {c.the}?",
            f"Which city is the capital of {c.the}?",
            f"Name the capital of {c.the}.",
            f"Tell me the capital of {c.the}.",
        ]
    )
    thought = f"The question is about {c.the}. Its capital is {c.capital}."
    return Exchange(ask, f"The capital of {c.the} is {c.capital}.", thought)


def capital_of(rng: random.Random, facts: Facts) -> Exchange:
    c = rng.choice(facts.countries)
    ask = rng.choice(
        [
            f"{c.capital} is the capital of which country?",
            f"Which country has {c.capital} as its capital?",
        ]
    )
    thought = f"{c.capital} is a capital. The country is {c.name}."
    return Exchange(ask, f"{c.capital} is the capital of {c.the}.", thought)


def currency(rng: random.Random, facts: Facts) -> Exchange:
    c = rng.choice(facts.countries)
    ask = rng.choice(
        [
            f"What is the currency of {c.the}?",
            f"Which currency is used in {c.the}?",
            f"What money do people use in {c.the}?",
        ]
    )
    thought = f"The currency code of {c.the} is {c.code}."
    return Exchange(ask, f"The currency of {c.the} is the {c.currency} ({c.code}).", thought)


def place(rng: random.Random, facts: Facts) -> Exchange:
    c = rng.choice(facts.countries)
    ask = rng.choice(
        [
            f"Where is {c.the}?",
            f"In which part of the world is {c.the}?",
            f"On which continent is {c.the}?",
        ]
    )
    thought = f"{c.name} is in {c.continent}."
    return Exchange(ask, f"{_upper(c.the)} is in {c.region}, {c.continent}.", thought)


def neighbours(rng: random.Random, facts: Facts) -> Exchange:
    c = rng.choice(facts.countries)
    ask = rng.choice([f"Which countries border {c.the}?", f"What are the neighbours of {c.the}?"])
    if not c.neighbours:
        return Exchange(ask, f"{_upper(c.the)} has no land neighbours.", "It has no land border.")
    number = len(c.neighbours)
    return Exchange(
        ask, f"{_upper(c.the)} borders {_listed(c.neighbours)}.", f"There are {number} of them."
    )


def people(rng: random.Random, facts: Facts) -> Exchange:
    c = rng.choice(facts.countries)
    ask = rng.choice([f"What are people from {c.the} called?", f"What is the demonym for {c.the}?"])
    return Exchange(ask, f"People from {c.the} are called {c.demonym}.", f"It is {c.demonym}.")


def about(rng: random.Random, facts: Facts) -> Exchange:
    c = rng.choice(facts.countries)
    ask = rng.choice(
        [
            f"Tell me about {c.the}.",
            f"Describe {c.the}.",
            f"What do you know about {c.the}?",
            f"Give me some facts about {c.the}.",
        ]
    )
    near = " It has no land neighbours."
    if c.neighbours:
        near = f" It borders {_listed(c.neighbours)}."
    answer = (
        f"{_upper(c.the)} is in {c.region}, {c.continent}. Its capital is {c.capital}. "
        f"Its currency is the {c.currency} ({c.code}).{near} "
        f"Its people are called {c.demonym}, and its internet domain is {c.tld}."
    )
    thought = f"Say where {c.the} is, then its capital, its currency and its neighbours."
    return Exchange(ask, answer, thought)


def some_countries(rng: random.Random, facts: Facts) -> Exchange:
    continent = rng.choice(sorted({c.continent for c in facts.countries}))
    number = rng.randint(2, 6)
    ask = rng.choice(
        [f"Name {number} countries in {continent}.", f"List {number} countries in {continent}."]
    )
    names = [c.name for c in facts.countries if c.continent == continent]
    # Always the first in the alphabet: an answer that can be learned.
    lines = "\n".join(f"{i}. {name}" for i, name in enumerate(names[:number], 1))
    answer = f"Here are {number} countries in {continent}:\n\n{lines}"
    return Exchange(ask, answer, f"I need {number} countries in {continent}.")


def definition(rng: random.Random, facts: Facts) -> Exchange:
    s = facts.senses[int(rng.random() ** 1.7 * len(facts.senses))]
    ask = rng.choice(
        [
            f'What does the word "{s.word}" mean?',
            f'Define "{s.word}".',
            f'What is the meaning of "{s.word}"?',
            f'Explain the word "{s.word}".',
        ]
    )
    article = "an" if s.kind[0] in "aeiou" else "a"
    answer = f'The word "{s.word}" is {article} {s.kind}. It means: {s.gloss}.'
    if s.examples and rng.random() < 0.5:
        answer += f' For example: "{s.examples[0]}".'
    return Exchange(ask, answer, f'"{s.word}" is {article} {s.kind}.')


def synonym(rng: random.Random, facts: Facts) -> Exchange:
    while True:
        s = facts.senses[int(rng.random() ** 1.7 * len(facts.senses))]
        if s.synonyms:
            break
    ask = rng.choice([f'Give me a synonym of "{s.word}".', f'What is another word for "{s.word}"?'])
    answer = f'A synonym of "{s.word}" is "{s.synonyms[0]}".'
    return Exchange(ask, answer, f"It means: {s.gloss}.")


def spelling(rng: random.Random, facts: Facts) -> Exchange:
    word = rng.choice(facts.senses[:1500]).word.replace(" ", "")
    ask = rng.choice([f'Spell the word "{word}".', f'How do you spell "{word}"?'])
    return Exchange(ask, "-".join(word.upper()), f"The word has {len(word)} letters.")


def function(rng: random.Random, facts: Facts) -> Exchange:
    f = rng.choice(facts.functions)
    ask = rng.choice(
        [
            f"What does {f.name} do in Python?",
            f"What is {f.name} for?",
            f"Explain the Python name `{f.name}`.",
        ]
    )
    module = f.name.split(".")[0]
    answer = f"`{f.name}` is in Python's `{module}` module. Its documentation says: {f.does}"
    return Exchange(ask, answer, f"It belongs to the module {module}.")


def arithmetic(rng: random.Random, facts: Facts) -> Exchange:
    sign = rng.choice("++-*")
    a, b = rng.randint(0, 30), rng.randint(0, 30)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    if sign == "*":
        a, b = rng.randint(0, 12), rng.randint(0, 12)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    spoken = {"+": "plus", "-": "minus", "*": "times"}[sign]
    ask = rng.choice(
        [
            f"What is {a} {sign} {b}?",
            f"What is {a} {spoken} {b}?",
            f"Calculate {a} {sign} {b}.",
            f"How much is {a} {spoken} {b}?",
        ]
    )
    said = f"{a} {sign} {b} = {result}"
    return Exchange(ask, f"{said}.", f"I have to work out {a} {spoken} {b}. {said}.")


def counting(rng: random.Random, facts: Facts) -> Exchange:
    first, step = rng.randint(0, 20), rng.choice([1, 1, 1, 2, 5, 10])
    last = first + step * rng.randint(4, 20)
    by = "" if step == 1 else f" by {step}"
    ask = rng.choice(
        [f"Count from {first} to {last}{by}.", f"Write the numbers from {first} to {last}{by}."]
    )
    return Exchange(ask, ", ".join(map(str, range(first, last + 1, step))), f"The step is {step}.")


def verse(rng: random.Random, facts: Facts) -> Exchange:
    v = rng.choice(facts.verses)
    where = f"{v.book} {v.chapter}:{v.verse}"
    ask = rng.choice([f"Quote {where}.", f"What does {where} say?", f"Read {where} to me."])
    return Exchange(ask, f"{where} says: {v.text}", f"The book is {v.book}.")


def next_verses(rng: random.Random, facts: Facts) -> Exchange:
    start = rng.randrange(len(facts.verses) - 3)
    given, *rest = facts.verses[start : start + 3]
    ask = rng.choice(["Continue this passage:", "What comes after this?"]) + f"\n\n{given.text}"
    return Exchange(ask, " ".join(v.text for v in rest), f"This is from {given.book}.")


SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Hi there!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! How can I help you?"),
    ("How are you?", "I am a program, so I have no feelings, but I am ready to help."),
    ("Who are you?", "I am Preheat Tiny, a very small language model that ships with Preheat."),
    ("What is your name?", "My name is Preheat Tiny."),
    (
        "What can you do?",
        "I can tell you about countries, define words, explain Python functions, do small sums "
        "and quote the King James Bible. I am very small, so I make mistakes.",
    ),
    ("Who made you?", "I was trained from scratch on two processor cores, as a part of Preheat."),
    ("Are you a large language model?", "No. I am a very small one: about 7.6 million weights."),
    ("Thank you!", "You are welcome!"),
    ("Thanks", "You are welcome!"),
    ("Goodbye!", "Goodbye!"),
    ("Tell me a joke.", "Why did the cache go to school? It wanted to be warm before the test."),
    (
        "Write the alphabet.",
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    ),
    (
        "What are the days of the week?",
        "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and "
        "Sunday.",
    ),
    (
        "What are the months of the year?",
        "The months of the year are January, February, March, April, May, June, July, August, "
        "September, October, November and December.",
    ),
    (
        "What colours are in the rainbow?",
        "The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.",
    ),
)


def small_talk(rng: random.Random, facts: Facts) -> Exchange:
    ask, answer = rng.choice(SMALL_TALK)
    return Exchange(ask, answer, "The user is talking with me. I answer politely.")


ALWAYS_TRAINED = frozenset({"What is the capital of France?", *(ask for ask, _ in SMALL_TALK)})


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# kind -> (maker, share in thousandths)
KINDS: dict[str, tuple[Maker, int]] = {
    "capital": (capital, 170),
    "capital-of": (capital_of, 60),
    "currency": (currency, 80),
    "place": (place, 70),
    "neighbours": (neighbours, 50),
    "people": (people, 30),
    "about": (about, 90),
    "some-countries": (some_countries, 30),
    "definition": (definition, 120),
    "synonym": (synonym, 30),
    "spelling": (spelling, 20),
    "function": (function, 50),
    "arithmetic": (arithmetic, 80),
    "counting": (counting, 30),
    "verse": (verse, 25),
    "next-verses": (next_verses, 25),
    "small-talk": (small_talk, 40),
}


def conversations(facts: Facts, *, count: int, seed: int) -> list[Conversation]:
    """`count` conversations: mostly one exchange, some with several, some calling a tool."""
    rng = random.Random(seed)  # noqa: S311  a seeded shuffle, no secret
    kinds, shares = list(KINDS), [share for _, share in KINDS.values()]
    talks = []
    for _ in range(count):
        if rng.random() < 0.05:
            talks.append(tool_call(rng, facts))
        else:
            number = rng.choices([1, 2, 3], [80, 14, 6])[0]
            chosen = rng.choices(kinds, shares, k=number)
            talks.append(_conversation(rng, facts, chosen))
    return talks


def _conversation(rng: random.Random, facts: Facts, kinds: list[str]) -> Conversation:
    made = [KINDS[kind][0](rng, facts) for kind in kinds]
    turns: list[Turn] = []
    if rng.random() < 0.15:
        turns.append(Turn("system", rng.choice(SYSTEM_PROMPTS)))
    for exchange in made[:-1]:
        turns += [Turn("user", exchange.ask), Turn("assistant", exchange.answer)]
    last = made[-1]
    thought = last.thought if rng.random() < 0.12 else ""
    turns += [Turn("user", last.ask), Turn("assistant", last.answer, thought)]
    name = " | ".join(exchange.ask for exchange in made)
    fixed = name in ALWAYS_TRAINED
    return Conversation(f"chat/{kinds[-1]}", name, tuple(turns), trained=fixed)


TOOLS: tuple[tuple[dict[str, Any], str, str], ...] = tuple(
    (
        {
            "type": "function",
            "function": {
                "name": name,
                "description": description,
                "parameters": {
                    "type": "object",
                    "properties": {argument: {"type": "string"}},
                    "required": [argument],
                },
            },
        },
        argument,
        question,
    )
    for name, description, argument, question in (
        ("get_weather", "Get the weather in a city.", "city", "What is the weather in {}?"),
        ("get_time", "Get the local time in a city.", "city", "What time is it in {}?"),
        ("get_population", "Get the population of a city.", "city", "How many people live in {}?"),
    )
)
_RESULTS = {
    "get_weather": ("sunny, 21 degrees", "The weather in {} is {}."),
    "get_time": ("14:30", "The time in {} is {}."),
    "get_population": ("1200000", "The population of {} is {}."),
}


def tool_call(rng: random.Random, facts: Facts) -> Conversation:
    """A question that needs a tool: ends with the call, or with the answer from its result."""
    tool, argument, question = rng.choice(TOOLS)
    name = tool["function"]["name"]
    city = rng.choice(facts.countries).capital
    ask = question.format(city)
    arguments = f'{{"{argument}": "{city}"}}'
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    turns = [Turn("user", ask), Turn("assistant", call)]
    if rng.random() < 0.4:
        result, sentence = _RESULTS[name]
        turns += [Turn("tool", result), Turn("assistant", sentence.format(city, result))]
    return Conversation("chat/tool", f"tool {len(turns)}: {ask}", tuple(turns), (tool,))
