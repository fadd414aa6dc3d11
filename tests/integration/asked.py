"""What the recorded requests ask: JSON bodies by route and by what is special about them.

All greedy or seeded, and short: the same text whoever passes it on. No prompt fills a block of the
prefix cache, so that an answer does not depend on the one before.
"""

from typing import Any

Body = dict[str, Any]

QUESTION = "What is the capital of France?"
TALK = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "known": {"type": "boolean"}},
    "required": ["city", "known"],
    "additionalProperties": False,
}
REGEX = r'\{"city": "[A-Z][a-z]{2,9}", "known": (true|false)\}'
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "capital", "schema": SCHEMA}}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "The weather now", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = [
    *TALK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"},
]
CLAUDE_TOOL = {"name": "weather", "description": "The weather now", "input_schema": PARAMETERS}
CLAUDE_CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
CLAUDE_CALLED = [
    *TALK,
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "18"}]},
]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
# More than the model's 4096 tokens, and more than its whole context when generated.
ENDLESS = "word " * 5000

CHATS: dict[str, Body] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "seed": 7, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "two seeded choices": {"temperature": 0.8, "seed": 11, "n": 2},
    "history": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *TALK,
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And of Spain?"},
        ]
    },
    "content in parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    },
    "any script": {"messages": [{"role": "user", "content": "Größe? 你好 🙂 \u2028 \x7f"}]},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "logprobs of prompt tokens": {"prompt_logprobs": 1},
    "logprobs of given tokens": {"logprobs": True, "logprob_token_ids": [5, 9]},
    "token ids": {"return_token_ids": True},
    "tokens as ids": {"logprobs": True, "return_tokens_as_token_ids": True},
    "json_schema": {"response_format": JSON_SCHEMA, "max_tokens": 40},
    "json_object": {"response_format": {"type": "json_object"}},
    "regex": {"structured_outputs": {"regex": REGEX}, "max_tokens": 40},
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "json": {"structured_outputs": {"json": SCHEMA}, "max_tokens": 40},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}},
    "damaged grammar": {"structured_outputs": {"grammar": "root ::= ("}},
    "tools": {"tools": [TOOL]},
    "tools, none wanted": {"tools": [TOOL], "tool_choice": "none"},
    "tools, named": {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 40},
    "tools, required": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60},
    "tools, unknown": {"tools": [TOOL], "tool_choice": {**NAMED, "function": {"name": "x"}}},
    "a tool's answer": {"messages": CALLED},
    "stop": {"stop": ["is"], "include_stop_str_in_output": True},
    "stop token": {"stop_token_ids": [13]},
    "all tokens": {"ignore_eos": True, "min_tokens": 12},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "logit bias": {"logit_bias": {"42": 5, "43": -100}},
    "bad words": {"bad_words": ["Paris"]},
    "special tokens": {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    "template arguments": {"chat_template_kwargs": {"enable_thinking": True}},
    "a template of its own": {"chat_template": "{{ messages[0].content }}"},
    "continued": {
        "messages": [*TALK, {"role": "assistant", "content": "The capital"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "echo": {"echo": True},
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 5},
    "another name of the model": {"model": "tiny:seq8"},
    "no model": {"model": None},
    "unknown fields": {"metadata": {"a": [1, {"b": None}]}, "no_such_field": 1e400, "user": "me"},
    "beams": {"use_beam_search": True, "n": 2, "max_tokens": 4},
    "priority": {"priority": 3},
    "thinking budget": {"thinking_token_budget": 5},
    "unknown model": {"model": "gpt-unheard-of"},
    "no messages": {"messages": []},
    "an unknown role": {"messages": [{"role": "king", "content": "?"}]},
    "an image": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "a prompt that is too long": {"messages": [{"role": "user", "content": ENDLESS}]},
    "too many tokens": {"max_tokens": 100_000},
    "negative temperature": {"temperature": -1},
    "no choices": {"n": 0},
    "a number in words": {"max_tokens": "many"},
    "too many logprobs": {"logprobs": True, "top_logprobs": 1000},
    "usage without a stream": {"stream_options": {"include_usage": True}},
}
CHAT_STREAMS: dict[str, Body] = {
    "greedy": {},
    "one token": {"max_tokens": 1},
    "usage": {"stream_options": {"include_usage": True}},
    "continuous usage": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "two seeded choices": {"temperature": 0.8, "seed": 11, "n": 2, "max_tokens": 6},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "token ids": {"return_token_ids": True},
    "json_schema": {"response_format": JSON_SCHEMA, "max_tokens": 40},
    "tools, named": {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 40},
    "tools": {"tools": [TOOL]},
    "stop": {"stop": ["is"]},
    "any script": {"messages": [{"role": "user", "content": "Größe? 你好 🙂"}]},
    "unknown model": {"model": "gpt-unheard-of"},
    "negative temperature": {"temperature": -1},
    "damaged grammar": {"structured_outputs": {"grammar": "root ::= ("}},
}
BATCHES: dict[str, Body] = {
    "two talks": {},
    "logprobs": {"logprobs": True, "top_logprobs": 1},
    "a stream": {"stream": True},
    "two choices": {"n": 2},
    "nothing": {"messages": []},
}
COMPLETIONS: dict[str, Body] = {
    "greedy": {},
    "two seeded choices": {"temperature": 0.8, "seed": 3, "n": 2},
    "logprobs": {"logprobs": 2},
    "logprobs of prompt tokens": {"prompt_logprobs": 1},
    "echo": {"echo": True},
    "echo with logprobs": {"echo": True, "logprobs": 1},
    "echo alone": {"echo": True, "max_tokens": 0, "logprobs": 1},
    "two prompts": {"prompt": ["In the beginning", "The capital of Spain"]},
    "two prompts, twice": {"prompt": ["One", "Two"], "n": 2, "temperature": 0.8, "seed": 2},
    "prompt of token ids": {"prompt": [100, 200, 300]},
    "two prompts of token ids": {"prompt": [[994, 267, 3722], [994, 267]]},
    "token ids": {"return_token_ids": True},
    "stop": {"stop": [" the", "\n"]},
    "regex": {"structured_outputs": {"regex": "[0-9]{3}"}},
    "suffix": {"suffix": "the end"},
    "best of": {"best_of": 2},
    "no prompt": {"prompt": None},
    "an empty prompt": {"prompt": ""},
    "a token id that is none": {"prompt": [999_999_999]},
    "a negative token id": {"prompt": [-1]},
    "a prompt that is too long": {"prompt": ENDLESS},
    "unknown model": {"model": "gpt-unheard-of"},
    "unknown fields": {"no_such_field": [None]},
}
COMPLETION_STREAMS: dict[str, Body] = {
    "greedy": {},
    "echo": {"echo": True},
    "logprobs": {"logprobs": 1},
    "continuous usage": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "prompt of token ids": {"prompt": [100, 200, 300], "return_token_ids": True},
    "unknown model": {"model": "gpt-unheard-of"},
}
RESPONSES: dict[str, Body] = {
    "greedy": {},
    "items": {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
            {"type": "message", "role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And of Spain?"},
        ],
    },
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "json_schema": {
        "text": {"format": {"type": "json_schema", "name": "capital", "schema": SCHEMA}},
        "max_output_tokens": 40,
    },
    "tools": {"tools": [{"type": "function", **FUNCTION}]},
    "tools, named": {
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": {"type": "function", "name": "weather"},
        "max_output_tokens": 40,
    },
    "metadata": {"metadata": {"a": "b"}, "user": "me", "prompt_cache_key": "k"},
    "messages": {"enable_response_messages": True},
    "background": {"background": True},
    "after another": {"previous_response_id": "resp_unheard_of"},
    "after nonsense": {"previous_response_id": "nonsense"},
    "no input": {"input": None},
    "unknown model": {"model": "gpt-unheard-of"},
    "a prompt that is too long": {"input": ENDLESS},
}
RESPONSE_STREAMS: dict[str, Body] = {
    "greedy": {},
    "one token": {"max_output_tokens": 1},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "tools, named": RESPONSES["tools, named"],
    "unknown model": {"model": "gpt-unheard-of"},
}
MESSAGES: dict[str, Body] = {
    "greedy": {},
    "system": {"system": "Be brief."},
    "system in blocks": {"system": [{"type": "text", "text": "Be brief."}]},
    "content in blocks": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    },
    "stop sequence": {"stop_sequences": ["is"]},
    "top_k": {"temperature": 0, "top_k": 1, "top_p": 0.5},
    "tools": {"tools": [CLAUDE_TOOL]},
    "tools, any": {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "any"}, "max_tokens": 60},
    "tools, named": {
        "tools": [CLAUDE_TOOL],
        "tool_choice": {"type": "tool", "name": "weather"},
        "max_tokens": 40,
    },
    "a tool's answer": {"messages": CLAUDE_CALLED, "tools": [CLAUDE_TOOL]},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048},
    "no thinking": {"thinking": {"type": "disabled"}},
    "metadata": {"metadata": {"user_id": "me"}, "service_tier": "auto", "no_such_field": 1},
    "no max_tokens": {"max_tokens": None},
    "no tokens": {"max_tokens": 0},
    "no messages": {"messages": []},
    "unknown model": {"model": "claude-unheard-of"},
    "a prompt that is too long": {"messages": [{"role": "user", "content": ENDLESS}]},
}
MESSAGE_STREAMS: dict[str, Body] = {
    "greedy": {},
    "one token": {"max_tokens": 1},
    "stop sequence": {"stop_sequences": ["is"]},
    "tools, named": MESSAGES["tools, named"],
    "unknown model": {"model": "claude-unheard-of"},
}
COUNTS: dict[str, Body] = {
    "a question": {},
    "system and tools": {"system": "Be brief.", "tools": [CLAUDE_TOOL]},
    "unknown model": {"model": "claude-unheard-of"},
    "no messages": {"messages": None},
}
TOKENIZED: dict[str, Body] = {
    "a prompt": {"prompt": "In the beginning 你好 🙂"},
    "words": {"prompt": "In the beginning", "return_token_strs": True},
    "bare": {"prompt": "In the beginning", "add_special_tokens": False},
    "a talk": {"messages": TALK, "add_generation_prompt": True},
    "a talk with tools": {"messages": TALK, "tools": [TOOL]},
    "unknown model": {"prompt": "x", "model": "gpt-unheard-of"},
    "nothing": {},
}
DETOKENIZED: dict[str, Body] = {
    "ids": {"tokens": [100, 200, 300]},
    "none": {"tokens": []},
    "an id that is none": {"tokens": [999_999_999]},
    "words": {"tokens": ["In"]},
}
SCORINGS: dict[str, Body] = {
    "two items": {"query": "Is it big? ", "items": ["Paris", "Nice"], "label_token_ids": [10, 20]},
    "token ids": {"query": [5, 6], "items": [[7]], "label_token_ids": [10], "item_first": True},
    "no labels": {"query": "x", "items": ["y"], "label_token_ids": []},
    "nothing": {},
}
DECISIONS: dict[str, Body] = {
    "a choice": {
        "state": QUESTION,
        "questions": {
            "where": {"type": "choice", "instructions": "Which?", "criteria": {"a": "x", "b": "y"}}
        },
    },
    "an unknown type": {"state": "s", "questions": {"q": {"type": "unheard of"}}},
    "nothing": {},
}
INVOCATIONS: dict[str, Body] = {
    "a talk": {"model": "tiny", "messages": TALK, "max_tokens": 8, "temperature": 0},
    "a prompt": {"model": "tiny", "prompt": "In the", "max_tokens": 8, "temperature": 0},
    "an unknown model": {"model": "gpt-unheard-of", "prompt": "x", "temperature": 0},
    "nothing": {},
}
INVOCATION_STREAMS: dict[str, Body] = {"a talk": INVOCATIONS["a talk"]}
# For these the model has no such task, or the engine lacks a package.
MISSING: dict[str, Body] = {
    "/v1/embeddings": {"model": "tiny", "input": ["one", "two"]},
    "/v2/embed": {"model": "tiny", "texts": ["one"], "input_type": "search_query"},
    "/pooling": {"model": "tiny", "input": "one"},
    "/classify": {"model": "tiny", "input": "one"},
    "/score": {"model": "tiny", "text_1": "one", "text_2": "two"},
    "/v1/score": {"model": "tiny", "text_1": "one", "text_2": "two"},
    "/rerank": {"model": "tiny", "query": "one", "documents": ["two"]},
    "/v1/rerank": {"model": "tiny", "query": "one", "documents": ["two"]},
    "/v2/rerank": {"model": "tiny", "query": "one", "documents": ["two"]},
    "/cohere/v2/chat": {"model": "tiny", "messages": TALK},
    "/v1/audio/transcriptions": {"model": "tiny"},
    "/v1/audio/translations": {"model": "tiny"},
}

_CHAT: Body = {"model": "tiny", "messages": TALK, "max_tokens": 12, "temperature": 0}
_COMPLETION: Body = {
    "model": "tiny",
    "prompt": "In the beginning",
    "max_tokens": 12,
    "temperature": 0,
}
_RESPONSE: Body = {
    "model": "tiny",
    "input": QUESTION,
    "max_output_tokens": 12,
    "temperature": 0,
}
_STREAM: Body = {"stream": True}
# Route: what all its requests share, and what each adds or puts in its place.
WHOLE: dict[str, tuple[Body, dict[str, Body]]] = {
    "/v1/chat/completions": (_CHAT, CHATS),
    "/v1/chat/completions/batch": (_CHAT | {"messages": [TALK, TALK]}, BATCHES),
    "/v1/completions": (_COMPLETION, COMPLETIONS),
    "/v1/responses": (_RESPONSE, RESPONSES),
    "/v1/messages": (_CHAT, MESSAGES),
    "/v1/messages/count_tokens": ({"model": "tiny", "messages": TALK}, COUNTS),
    "/tokenize": ({}, TOKENIZED),
    "/detokenize": ({}, DETOKENIZED),
    "/generative_scoring": ({}, SCORINGS),
    "/v1/systemone": ({}, DECISIONS),
    "/invocations": ({}, INVOCATIONS),
    **{route: ({}, {"a request": body}) for route, body in MISSING.items()},
}
STREAMED: dict[str, tuple[Body, dict[str, Body]]] = {
    "/v1/chat/completions": (_CHAT | _STREAM, CHAT_STREAMS),
    "/v1/completions": (_COMPLETION | _STREAM, COMPLETION_STREAMS),
    "/v1/responses": (_RESPONSE | _STREAM, RESPONSE_STREAMS),
    "/v1/messages": (_CHAT | _STREAM, MESSAGE_STREAMS),
    "/invocations": (_STREAM, INVOCATION_STREAMS),
}


def bodies(table: dict[str, tuple[Body, dict[str, Body]]]) -> list[tuple[str, str, Body]]:
    """Route, name and body of every request in a table; a field that is None is left out."""
    return [
        (route, name, {key: value for key, value in (shared | own).items() if value is not None})
        for route, (shared, cases) in table.items()
        for name, own in cases.items()
    ]
