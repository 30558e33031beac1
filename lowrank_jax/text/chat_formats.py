"""The chat templates that a run can name, for tokenizers without one of their own."""

from typing import NamedTuple


class Format(NamedTuple):
    """How conversations are written.

    Attributes:
      source: the Jinja template.
      marks: tokens that it writes and that the tokenizer must have, besides its end-of-text token.
    """

    source: str
    marks: tuple[str, ...]


_CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Gemma has no system role: a system message is put at the beginning of the first user's turn.
_GEMMA = """\
{{ bos_token }}
{%- set turns = namespace(system='') %}
{% for message in messages %}
{% if message['role'] == 'system' %}
{% set turns.system = message['content'] | trim + '\\n\\n' %}
{% else %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + turns.system + message['content'] | trim + '<end_of_turn>\\n' }}
{%- set turns.system = '' %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<start_of_turn>model\\n' }}
{%- endif %}
"""

_ZEPHYR = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\\n' }}
{%- endif %}
"""

FORMATS = {
    "chatml": Format(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": Format(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": Format(_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "zephyr": Format(_ZEPHYR, ()),
}
