"""Text that spells control tokens as the chat templates in use do: a server may take it for the tokens themselves.

A local model's tokenizer never does, and knows its own tokens exactly. Which tokenizer is behind an endpoint, or was
behind a log, is unknown; so what is found here are the forms that families of models give their tokens, by the
templates and tokenizers that they publish. What reads like a turn, such as `### Human:`, is no token to any of them.
"""

import re

# What stands behind the first character of each.
_ANGLED = (
    r'[|｜][/"\w][^<>\s]*>',  # <|im_end|>, DeepSeek's <｜User｜>, Gemma 4's <|turn>; not <|-- and <|> of UML and code
    r'/?\w+[|｜]>',  # Gemma 4's <turn|>
    # <s> is a tag of HTML too, for text struck through. It goes with the tokens: that costs a blank in a message that
    # speaks of the tag, and a reply that uses it; the other way, users could end the turns of Llama 2 and of Mistral.
    r'/?(?:s|bos|eos|pad|unk|sop|eop|BOS_TOKEN|EOS_TOKEN)>',
    r'(?:start|beginning|end)_of_\w+>',  # Gemma's <start_of_turn>
    r'/?(?:think|tool_calls?|tool_responses?|(?:seed|minimax):\w+)>',
    r'(?:extra_id|reserved|SPECIAL)_\d+>',  # Nemotron and Baichuan
    r'</?SYS>>',  # Llama 2
    r'role>(?:SYSTEM|HUMAN|ASSISTANT|OBSERVATION)<',  # Ling
)
_BRACKETED = (
    # Mistral's that mark turns. [ARGS], [IMG] and [PREFIX] mark none, and stand in usage lines, forums and forms.
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
    return _SPELLED.sub(lambda first: f'{first[0]} ', text)
