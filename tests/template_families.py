"""Short equivalents of the real families' chat templates, and small tokenizers of the same kinds."""

import json
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rlhi_jax.io.files import write_json
from rlhi_jax.tokenizers.template import layouts

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
QWEN25 = r"""
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
LLAMA3 = r"""
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
LLAMA2 = r"""
{%- set system = namespace(text='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set system.text = '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' %}
    {%- elif message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + system.text + message['content'] + ' [/INST]' }}
        {%- set system.text = '' %}
    {%- else %}
        {{- ' ' + message['content'] + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_V3 = r"""
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "user" and loop.last and system_message is defined %}
        {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
    {%- elif message["role"] == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
QWEN3 = r"""
{%- set last = namespace(user=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < last.user %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
GEMMA2 = r"""
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('not alternating') }}{% endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}
"""
GEMMA3 = r"""
{{- bos_token }}
{%- set prefix = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set prefix = messages[0]['content'] + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('not alternating') }}{% endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}
"""
NO_SYSTEM = """{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"""


class Family(NamedTuple):
    """A template, the kind and control tokens of its tokenizer, and the token that ends a turn."""

    template: str
    kind: str
    bos: str
    end: str
    controls: tuple[str, ...]


CHATML = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
HEADERS = ('<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
TURNS = ('<pad>', '<eos>', '<bos>', '<unk>', '<start_of_turn>', '<end_of_turn>')
GEMMA_TEXT = ['\n', '\n\n', '▁▁', '▁▁▁', '<code>', '</code>']  # not special, and part of ordinary text
FAMILIES = {
    'smollm2': Family(SMOLLM2, 'digits', '<|im_start|>', '<|im_end|>', CHATML),
    'qwen25': Family(QWEN25, 'composed', '', '<|im_end|>', CHATML),
    'llama3': Family(LLAMA3, 'llama3', '<|begin_of_text|>', '<|eot_id|>', HEADERS),
    'llama2': Family(LLAMA2, 'prepend', '<s>', '</s>', ('<unk>', '<s>', '</s>')),
    'chatml': Family(layouts()['chatml'].read_text(), 'digits', '<|im_start|>', '<|im_end|>', CHATML),
    'llama3_layout': Family(layouts()['llama3'].read_text(), 'llama3', '<|begin_of_text|>', '<|eot_id|>', HEADERS),
    'gemma2': Family(GEMMA2, 'gemma', '<bos>', '<end_of_turn>', TURNS),
    'gemma3': Family(GEMMA3, 'gemma', '<bos>', '<end_of_turn>', TURNS),
    'gemma_layout': Family(layouts()['gemma'].read_text(), 'gemma', '<bos>', '<end_of_turn>', TURNS),
    'inst': Family(layouts()['inst'].read_text(), 'prepend', '<s>', '</s>', ('<unk>', '<s>', '</s>')),
}
# Markup of turns, thoughts and tool calls in published templates and tokenizers of models in use.
PUBLISHED = {
    'ChatML, Qwen, SmolLM': [*CHATML, '<think>', '</think>', '<tool_call>', '</tool_call>', '<tool_response>'],
    'Llama 2': ['<s>', '</s>', '<unk>', '[INST]', '[/INST]', '<<SYS>>', '<</SYS>>'],
    'Llama 3': [*HEADERS, '<|eom_id|>', '<|end_of_text|>', '<|python_tag|>', '<|reserved_special_token_0|>'],
    'Llama 4': ['<|header_start|>', '<|header_end|>', '<|eot|>', '<|eom|>', '<|python_start|>'],
    'Mistral': ['<s>', '</s>', '[INST]', '[/INST]', '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]', '[AVAILABLE_TOOLS]']
    + [
        '[/AVAILABLE_TOOLS]',
        '[TOOL_CALLS]',
        '[TOOL_RESULTS]',
        '[/TOOL_RESULTS]',
        '[TOOL_CONTENT]',
        '[THINK]',
        '[/THINK]',
    ]
    + ['[MODEL_SETTINGS]', '[/MODEL_SETTINGS]'],
    'Gemma 1 to 3': ['<bos>', '<eos>', '<pad>', '<unk>', '<start_of_turn>', '<end_of_turn>', '<start_of_image>'],
    'Gemma 4': ['<|turn>', '<turn|>', '<|channel>', '<channel|>', '<|think|>', '<|tool_call>', '<tool_call|>', '<|"|>'],
    'DeepSeek': ['<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜User｜>', '<｜Assistant｜>', '<|EOT|>']
    + ['<｜tool▁calls▁begin｜>', '<｜tool▁sep｜>', '<think>'],
    'Phi': ['<|system|>', '<|user|>', '<|assistant|>', '<|end|>', '<|endoftext|>', '<|im_sep|>'],
    'Command-R': ['<BOS_TOKEN>', '<EOS_TOKEN>', '<|START_OF_TURN_TOKEN|>', '<|END_OF_TURN_TOKEN|>', '<|USER_TOKEN|>']
    + ['<|CHATBOT_TOKEN|>', '<|SYSTEM_TOKEN|>', '<|START_THINKING|>'],
    'gpt-oss': ['<|start|>', '<|channel|>', '<|message|>', '<|end|>', '<|return|>', '<|call|>'],
    'Granite': ['<|start_of_role|>', '<|end_of_role|>', '<|end_of_text|>'],
    'ChatGLM': ['[gMASK]', '[sMASK]', '<sop>', '<eop>', '<|observation|>'],
    'EXAONE': ['[BOS]', '[|system|]', '[|user|]', '[|assistant|]', '[|tool|]', '[|endofturn|]'],
    'Kimi': ['[BOS]', '[EOS]', '<|im_user|>', '<|im_middle|>', '<|tool_calls_section_begin|>'],
    'MiniMax': [']~!b[', ']~b]', '[e~[', '<minimax:tool_call>', '<beginning_of_sentence>', '<end_of_sentence>'],
    'Nemotron': ['<extra_id_0>', '<extra_id_1>', '<SPECIAL_10>', '<SPECIAL_12>'],
    'Seed': ['<seed:bos>', '<seed:eos>', '<seed:think>', '</seed:think>'],
    'SmolVLM, OpenChat, Ling': [
        '<end_of_utterance>',
        '<|end_of_turn|>',
        '<role>HUMAN</role>',
        '<role>ASSISTANT</role>',
    ],
    'Baichuan, Pangu, Hunyuan': ['<reserved_106>', '<reserved_107>', '[unused9]', '[unused10]', '<｜hy_User｜>'],
}
WORDS = ['system', 'user', 'assistant', 'the', 'cat', 'About', 'me:', 'likes', 'INST', '<|im', '\n\n', '12', "'s"]
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r'|\s+(?!\S)|\s+'
)


def write_family(folder: Path, family: Family) -> None:
    """A small BPE of the family's kind, with every byte, and with merges across words and newlines where allowed."""
    prepend, pieces = family.kind == 'prepend', family.kind in ('prepend', 'gemma')
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token='<unk>' if pieces else None, byte_fallback=pieces))
    specials, alphabet = list(family.controls), pre_tokenizers.ByteLevel.alphabet()
    text = GEMMA_TEXT if family.kind == 'gemma' else []
    if pieces:
        specials, alphabet = [*specials, *text, *(f'<0x{i:02X}>' for i in range(256))], []
        first, last = ([normalizers.Prepend('▁')], [decoders.Strip(' ', 1, 0)]) if prepend else ([], [])
        tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(' ', '▁')])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *last]
        )
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(CL100K), 'isolated')
        first = {'digits': pre_tokenizers.Digits(individual_digits=True)}.get(family.kind, split)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family.kind == 'digits')
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        if family.kind == 'composed':
            tokenizer.normalizer = normalizers.NFC()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=specials, initial_alphabet=list(alphabet), show_progress=False
    )
    # Like Llama's, merges never cross word boundaries.
    tokenizer.train_from_iterator(WORDS * 5 if pieces else [' '.join(WORDS) + '\n\n', *WORDS] * 5, trainer)
    description = json.loads(tokenizer.to_str())
    added = description['added_tokens']
    kept = [*family.controls, *text]  # without the bytes
    added = [token | dict(special=token['content'] not in text) for token in added if token['content'] in kept]
    description['added_tokens'] = added
    write_json(folder / 'tokenizer.json', description)
    named = {'bos_token': family.bos, 'eos_token': family.end, 'pad_token': family.controls[0]}
    write_json(folder / 'tokenizer_config.json', {name: text for name, text in named.items() if text})
