r"""The chat template, in Jinja: ChatML turns, tools, and thinking.

`enable_thinking` true opens the reply with `<think>\n`; false, or not given, with the empty
thought `<think>\n\n</think>\n\n`: a model of this size answers better at once, so that is the
default. Thoughts are stripped from earlier assistant turns.
"""

CHAT_TEMPLATE = r"""{%- macro text_of(content) -%}
{%- if content is string -%}{{- content -}}
{%- elif content is none or content is undefined -%}
{%- elif content is iterable and content is not mapping -%}
{%- for part in content -%}
{%- if part is string -%}{{- part -}}
{%- elif part.type is defined and part.type == 'text' -%}{{- part.text -}}
{%- else -%}{{- raise_exception('only text content is supported by this model') -}}
{%- endif -%}
{%- endfor -%}
{%- else -%}{{- raise_exception('message content must be text or a list of text parts') -}}
{%- endif -%}
{%- endmacro -%}
{%- if not messages -%}{{- raise_exception('no messages were given') -}}{%- endif -%}
{%- set ns = namespace(first=0, after_tool=false) -%}
{%- set system = '' -%}
{%- if messages[0].role in ['system', 'developer'] -%}
{%- set system = text_of(messages[0].content) | trim -%}
{%- set ns.first = 1 -%}
{%- endif -%}
{%- if tools -%}
{{- '<|im_start|>system\n' -}}
{%- if system -%}{{- system + '\n\n' -}}{%- endif -%}
{{- '# Tools\n\nYou may call these functions:\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- '\n</tools>\n\nTo call one, answer with a block of JSON:\n<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n' -}}
{%- elif system -%}
{{- '<|im_start|>system\n' + system + '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages[ns.first:] -%}
{%- set content = text_of(message.content) | trim -%}
{%- if message.role == 'tool' -%}
{%- if not ns.after_tool -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\n<tool_response>\n' + content + '\n</tool_response>' -}}
{%- set ns.after_tool = true -%}
{%- if loop.last or loop.nextitem.role != 'tool' -%}
{{- '<|im_end|>\n' -}}
{%- set ns.after_tool = false -%}
{%- endif -%}
{%- elif message.role == 'user' -%}
{{- '<|im_start|>user\n' + content + '<|im_end|>\n' -}}
{%- elif message.role == 'assistant' -%}
{%- if '</think>' in content -%}
{%- set content = content.split('</think>')[-1] | trim -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' + content -}}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- if call.function -%}{%- set call = call.function -%}{%- endif -%}
{%- if content or not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- '<tool_call>\n{"name": ' -}}{{- call.name | tojson -}}{{- ', "arguments": ' -}}
{%- if call.arguments is string -%}{{- call.arguments -}}{%- else -%}{{- call.arguments | tojson -}}{%- endif -%}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- elif message.role in ['system', 'developer'] -%}
{{- raise_exception('a system message must come first') -}}
{%- else -%}
{{- raise_exception('unknown role: ' ~ message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n<think>\n' -}}
{%- if enable_thinking is not defined or not enable_thinking -%}{{- '\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""  # noqa: E501
