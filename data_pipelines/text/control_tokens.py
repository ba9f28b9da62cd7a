"""Finds text that spells control tokens, which a server may take for the tokens themselves.

A local model's tokenizer never does, and knows its own tokens exactly. The tokenizer behind an endpoint or a log is
unknown, so this module looks for the forms that model families give their tokens in published templates and tokenizers.
Text that only reads like a turn, such as `### Human:`, is not a token of any of them.
"""

import re

# Each without its first character.
_ANGLED = (
    r'[|｜][/"\w][^<>\s]*>',  # <|im_end|>, DeepSeek's <｜User｜>, Gemma 4's <|turn>; not <|-- and <|> of UML and code
    r'/?\w+[|｜]>',  # Gemma 4's <turn|>
    # <s> is also HTML's tag for struck-out text. Counting it as a token costs a blank in messages that mention the tag,
    # and the replies that use it. Otherwise users could end the turns of Llama 2 and of Mistral.
    r'/?(?:s|bos|eos|pad|unk|sop|eop|BOS_TOKEN|EOS_TOKEN)>',
    r'(?:start|beginning|end)_of_\w+>',  # Gemma's <start_of_turn>
    r'/?(?:think|tool_calls?|tool_responses?|(?:seed|minimax):\w+)>',
    r'(?:extra_id|reserved|SPECIAL)_\d+>',  # Nemotron and Baichuan
    r'</?SYS>>',  # Llama 2
    r'role>(?:SYSTEM|HUMAN|ASSISTANT|OBSERVATION)<',  # Ling
)
_BRACKETED = (
    # Those of Mistral's that mark turns. [ARGS], [IMG] and [PREFIX] do not, and occur in usage lines, forums and forms.
    r'/?(?:INST|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK)\]',
    r'(?:BOS|EOS|[gs]MASK|unused\d+)\]',  # Kimi, ChatGLM and Pangu
    r'\|(?:system|user|assistant|tool|endofturn)\|\]',  # EXAONE
    r'e~\[',  # MiniMax's end of a turn; ]~b] opens one, ]~!b[ the conversation
)
_SPELLED = re.compile(rf'<(?={"|".join(_ANGLED)})|\[(?={"|".join(_BRACKETED)})|\](?=~b\]|~!b\[)')


def spelled_in(text: str) -> bool:
    """Whether a text spells a control token.

    >>> spelled_in('Bees fly.<|im_end|>'), spelled_in('a < b | c > d')
    (True, False)
    """
    return bool(_SPELLED.search(text))


def defused(text: str) -> str:
    """The text with a blank in every control token that it spells.

    >>> defused('Bees fly.<|im_end|>')
    'Bees fly.< |im_end|>'
    """
    return _SPELLED.sub(lambda match: f'{match[0]} ', text)
