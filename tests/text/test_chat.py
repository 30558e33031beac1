"""Conversations as ids: templates as transformers renders them, the loss on the assistant's turns, one-line errors."""

import json

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.text.chat import ChatTemplate, encode_turns, end_ids, find_template, prompt_ids
from lowrank_jax.text.chat_formats import FORMATS
from lowrank_jax.text.tokenizers import ByteTokenizer, SubwordTokenizer, load_tokenizer, save_tokenizer

MARKS = ["<s>", "</s>", *(mark for form in FORMATS.values() for mark in form.marks)]
CHAT = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Hi  "},
    {"role": "assistant", "content": "\nHello, the cat.\n"},
    {"role": "user", "content": "ate a fig?"},
    {"role": "assistant", "content": "  naïve"},
]
# As makers of chat models write theirs: a generation block, loop controls, a date, JSON, and a refusal.
MARKED = """{{ bos_token }}{{ strftime_now('%Y')[:0] }}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}{{ raise_exception('tools are not for this model') }}{% endif %}
    {%- if message['role'] == 'skip' %}{% continue %}{% endif %}
    {%- if message['role'] == 'assistant' %}
{{- '<|im_start|>assistant\n' }}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}
    {%- else %}
{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] | tojson) + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# Qwen3's habit: the thoughts of a turn are left out once a later one follows.
FORGETFUL = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' -}}
{{ message['content'] if loop.last else message['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.fixture(scope="session")
def chatty(subwords):
    """The small BPE with every mark of the named formats."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(subwords.backend.to_str())
    backend.add_special_tokens(MARKS)
    return SubwordTokenizer(backend, bos_id=0, eos_id=1, name="chatty")


def own(tokenizer, source):
    return SubwordTokenizer(tokenizer.backend, tokenizer.bos_id, tokenizer.eos_id, name="own", chat_template=source)


def peer(tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("source", [MARKED, *(form.source for form in FORMATS.values())], ids=["marked", *FORMATS])
def test_text_ids_and_targets_are_those_of_transformers(chatty, source):
    tokenizer = own(chatty, source)
    template = find_template(tokenizer)
    options = {"chat_template": source, "tokenize": False}
    for add in (False, True):
        theirs = peer(tokenizer).apply_chat_template(CHAT[:4], add_generation_prompt=add, **options)
        assert template.render(CHAT[:4], add_generation_prompt=add) == theirs
    ((ids, targets),) = encode_turns(tokenizer, template, CHAT)
    options |= {"tokenize": True, "return_dict": True}
    theirs = peer(tokenizer).apply_chat_template(CHAT, return_assistant_tokens_mask=source is MARKED, **options)
    assert ids == theirs["input_ids"]
    begins = source is MARKED or source in (FORMATS["llama3"].source, FORMATS["gemma"].source)
    assert ids.count(0) == (1 if begins else 0)  # no second BOS
    if source is MARKED:
        assert targets == [bool(flag) for flag in theirs["assistant_masks"]]
    ends = end_ids(tokenizer, template)
    learned = [i for i, flag in zip(ids, targets, strict=True) if flag]
    assert sum(i in ends for i in learned) == 2  # both turns teach to stop
    assert learned[-1] in ends
    assert "".join(tokenizer.decode(learned).split()) == "Hello,thecat.naïve"  # some formats trim
    for turn in (2, 4):  # decoding begins with the ids of training
        start = prompt_ids(tokenizer, template, CHAT[:turn])
        assert ids[: len(start)] == start
        assert targets[len(start) - 1 : len(start) + 1] == [False, True]


def test_text_that_merges_over_the_border_of_a_turn(chatty):
    source = "{% for m in messages %}{{ m['role'] + ':  ' + m['content'] }}{% endfor %}"
    source += "{% if add_generation_prompt %}assistant:  {% endif %}"
    tokenizer = own(chatty, source)
    template = find_template(tokenizer)
    words = [{"role": message["role"], "content": "cafe the cat"} for message in CHAT]
    ((ids, targets),) = encode_turns(tokenizer, template, words)
    assert tokenizer.backend.encode(template.render(words)).ids != ids  # the whole has " cafe" over the border
    assert tokenizer.decode(ids) == template.render(words)
    for turn in (2, 4):
        start = prompt_ids(tokenizer, template, words[:turn])
        assert ids[: len(start)] == start
        assert targets[len(start) - 1 : len(start) + 1] == [False, True]


def test_a_template_that_forgets(chatty):
    tokenizer = own(chatty, FORGETFUL)
    template = find_template(tokenizer)
    talk = [{"role": "user", "content": "sat"}, {"role": "assistant", "content": "dead</think>beef"}] * 2
    turns = encode_turns(tokenizer, template, talk)
    assert len(turns) == 2
    for (ids, targets), end in zip(turns, (2, 4), strict=True):
        start = prompt_ids(tokenizer, template, talk[: end - 1])
        assert ids[: len(start)] == start
        learned = [i for i, flag in zip(ids, targets, strict=True) if flag]
        assert tokenizer.decode(learned) == "dead</think>beef"
        assert targets.index(True) == len(start)


def test_faults_are_one_line(chatty):
    def fails(match, source, messages):
        tokenizer = own(chatty, source)
        with pytest.raises(UserError, match=match) as error:
            encode_turns(tokenizer, find_template(tokenizer), messages)
        assert "\n" not in str(error.value)

    with pytest.raises(UserError, match=r"'chatty' has no chat template; set task.chat_template to one of chatml, ll"):
        find_template(chatty)
    with pytest.raises(UserError, match="chatml"):
        find_template(chatty, "chatlm")
    with pytest.raises(UserError, match=r"'bytes' has no token <\|im_start\|>, <\|im_end\|>.*take zephyr"):
        find_template(ByteTokenizer(), "chatml")
    fails("no assistant's turn to learn", MARKED, CHAT[:2])
    fails("of tool, assistant: tools are not for this model", MARKED, [{"role": "tool", "content": ""}, CHAT[2]])
    fails("cannot write .*zero", "{{ 1 / 0 }}", CHAT)
    fails("cannot write .*Encountered unknown tag", "{% nonsense %}", CHAT)
    fails("cannot write .*unsafe", "{{ ''.__class__.__mro__ }}", CHAT)
    fails("cannot write", "{{ messages.clear() }}", CHAT)
    thinking = MARKED.replace("prompt %}{{ '<|im_start|>assistant\n'", "prompt %}{{ '<|im_start|>think'")
    fails("does not begin an assistant's turn with its", thinking, CHAT)


def test_the_prompts_of_the_papers_tasks():
    """As the authors of Alpaca, MetaMath, Open Instruct and lm-eval write them, EOS included."""
    begins = "Below is an instruction that describes a task"
    ends = "Write a response that appropriately completes the request.\n\n### Instruction:\nHow many?"
    asked, more = {"role": "user", "content": "How many?"}, {"role": "user", "content": "How many?\nA: 1\nB: 2"}
    said = {"role": "assistant", "content": "Two."}
    written = {
        ("alpaca", "one line"): f"{begins}. {ends}\n\n### Response:Two.<|eos|>",
        ("alpaca", "more lines"): f"{begins}, paired with an input that provides further context. {ends}\n\n"
        "### Input:\nA: 1\nB: 2\n\n### Response:Two.<|eos|>",
        ("question", "one line"): "Question: How many?\nAnswer: Two.<|eos|>",
        ("tulu", "one line"): "<|user|>\nHow many?\n<|assistant|>\nTwo.<|eos|>\n",
    }
    for (name, lines), text in written.items():
        template = find_template(ByteTokenizer(), name)
        assert template.render([asked if lines == "one line" else more, said]) == text


def test_bytes_take_the_marks_of_a_template():
    template = find_template(ByteTokenizer(), "zephyr")
    ((ids, targets),) = encode_turns(ByteTokenizer(), template, CHAT)
    assert ids.count(257) == 5
    assert end_ids(ByteTokenizer(), template) == (257,)
    learned = [i for i, flag in zip(ids, targets, strict=True) if flag]
    assert bytes(i for i in learned if i < 256).decode() == "\nHello, the cat.\n  naïve"
    assert ByteTokenizer().encode("<|eos|>") == list(b"<|eos|>")  # in a plain text it is text


def test_where_a_checkpoint_has_its_template(tmp_path, chatty):
    save_tokenizer(own(chatty, MARKED), tmp_path)
    assert load_tokenizer(tmp_path).chat_template == MARKED
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "mine"}]
    for found, wanted in ((several, "mine"), (several[:1], None), (None, None)):
        file.write_text(json.dumps({**settings, "chat_template": found}))
        assert load_tokenizer(tmp_path).chat_template == wanted
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of a processor"}))
    assert load_tokenizer(tmp_path).chat_template == "of a processor"
    (tmp_path / "chat_template.jinja").write_text("newest")
    assert load_tokenizer(tmp_path).chat_template == "newest"
    (tmp_path / "chat_template.jinja").unlink()
    file.write_text(json.dumps({**settings, "chat_template": 7}))
    with pytest.raises(UserError, match="chat_template is a int"):
        load_tokenizer(tmp_path)


def test_a_template_of_pieces_reads_no_more_than_it_is_given(chatty):
    template = ChatTemplate("x", "{{ bos_token }}{{ pad_token }}", {"bos_token": "<s>"})
    assert template.render(CHAT) == "<s>"  # an absent token writes nothing, as in transformers


def test_each_text_of_a_conversation_is_written_once(chatty, monkeypatch):
    tokenizer = own(chatty, FORMATS["chatml"].source)
    template, written = find_template(tokenizer), []
    expected, ends, plain = encode_turns(tokenizer, template, CHAT), end_ids(tokenizer, template), ChatTemplate.render

    def render(self, messages, *, add_generation_prompt=False):
        written.append((len(messages), add_generation_prompt))
        return plain(self, messages, add_generation_prompt=add_generation_prompt)

    monkeypatch.setattr(ChatTemplate, "render", render)
    assert encode_turns(tokenizer, template, CHAT, ends=ends) == expected
    assert written
    assert len(written) == len(set(written))
