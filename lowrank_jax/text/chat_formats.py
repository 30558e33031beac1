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

# Open Instruct's, with which Tulu v2 was published.
_TULU = """\
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] | trim + eos_token + '\\n' }}
{%- else %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim + '\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\\n' }}
{%- endif %}
"""

# Alpaca's two prompts. As in MetaMath's training the first line of a user's turn is the instruction, and what follows
# it is the input; a system message stands before the next user's turn.
_ALPACA = """\
{% set turns = namespace(before='') %}
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '\\n\\n### Response:' + message['content'] + eos_token }}
{%- set turns.before = '\\n\\n' %}
{% elif message['role'] == 'system' %}
{% set turns.before = turns.before + message['content'] + '\\n\\n' %}
{% else %}
{% set parts = message['content'].split('\\n', 1) %}
{{ turns.before + 'Below is an instruction that describes a task' -}}
{% if parts[1] %}
{{ ', paired with an input that provides further context' -}}
{% endif %}
{{ '. Write a response that appropriately completes the request.\\n\\n### Instruction:\\n' + parts[0] -}}
{% if parts[1] %}
{{ '\\n\\n### Input:\\n' + parts[1] -}}
{% endif %}
{% set turns.before = '' %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '\\n\\n### Response:' }}
{%- endif %}
"""

# The prompt by which lm-eval scores GSM8K: a model tuned on it is asked as it was trained.
_QUESTION = """\
{% set turns = namespace(before='') %}
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '\\nAnswer: ' + message['content'] + eos_token }}
{%- set turns.before = '\\n\\n' %}
{% elif message['role'] == 'system' %}
{% set turns.before = turns.before + message['content'] + '\\n\\n' %}
{% else %}
{{ turns.before + 'Question: ' + message['content'] -}}
{% set turns.before = '' %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '\\nAnswer:' }}
{%- endif %}
"""

FORMATS = {
    "chatml": Format(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": Format(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": Format(_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "zephyr": Format(_ZEPHYR, ()),
    "tulu": Format(_TULU, ()),
    "alpaca": Format(_ALPACA, ()),
    "question": Format(_QUESTION, ()),
}
