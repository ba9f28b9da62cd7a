"""Finds text that spells control tokens, because a server may mistake such text for real control tokens.

A local model's tokenizer never makes this mistake, and knows its own tokens exactly. The tokenizer behind an endpoint
or a log is unknown. This module therefore recognizes the forms that control tokens have in the published templates and
tokenizers of model families. Text that only looks like a turn, such as `### Human:`, is not a token in any of these
families.
"""

import re

# Each pattern leaves out the first character of the token.
_ANGLED = (
    r'[|｜][/"\w][^<>\s]*>',  # <|im_end|>, DeepSeek's <｜User｜>, Gemma 4's <|turn>; not UML's <|-- or code's <|>
    r'/?\w+[|｜]>',  # Gemma 4's <turn|>
    # <s> is also the HTML tag for struck-out text. Because it counts as a token, messages that mention the tag get an
    # extra space, and replies that use it are lost. If it did not count, users could end turns of Llama 2 and Mistral.
    r'/?(?:s|bos|eos|pad|unk|sop|eop|BOS_TOKEN|EOS_TOKEN)>',
    r'(?:start|beginning|end)_of_\w+>',  # Gemma's <start_of_turn>
    r'/?(?:think|tool_calls?|tool_responses?|(?:seed|minimax):\w+)>',
    r'(?:extra_id|reserved|SPECIAL)_\d+>',  # Nemotron and Baichuan
    r'</?SYS>>',  # Llama 2
    r'role>(?:SYSTEM|HUMAN|ASSISTANT|OBSERVATION)<',  # Ling
)
_BRACKETED = (
    # Mistral's tokens that mark turns. [ARGS], [IMG] and [PREFIX] do not mark turns, and they occur in usage lines,
    # forums and forms.
    r'/?(?:INST|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK)\]',
    r'(?:BOS|EOS|[gs]MASK|unused\d+)\]',  # Kimi, ChatGLM and Pangu
    r'\|(?:system|user|assistant|tool|endofturn)\|\]',  # EXAONE
    r'e~\[',  # MiniMax's end of a turn; ]~b] opens a turn, and ]~!b[ opens the conversation
)
_SPELLED = re.compile(rf'<(?={"|".join(_ANGLED)})|\[(?={"|".join(_BRACKETED)})|\](?=~b\]|~!b\[)')


def spelled_in(text: str) -> bool:
    """Whether a text spells a control token.

    >>> spelled_in('Bees fly.<|im_end|>'), spelled_in('a < b | c > d')
    (True, False)
    """
    return bool(_SPELLED.search(text))


def defused(text: str) -> str:
    """Return the text with a space inserted into every control token that it spells.

    >>> defused('Bees fly.<|im_end|>')
    'Bees fly.< |im_end|>'
    """
    return _SPELLED.sub(lambda match: f'{match[0]} ', text)
