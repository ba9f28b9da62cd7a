"""Chooses the end-of-turn, pad and reward tokens, so that exported models behave as they did in training."""

import re
import sys
from pathlib import Path
from typing import Any

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_bytes, write_json
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.tokenizers.template import ChatTemplate, with_reward_token

# Patterns of suitable pad tokens, best first. The template must never write the chosen token.
_SPARE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r'(?<![a-z])pad(?![a-z])',
        r'reserved|unused|extra_id|placeholder',
        r'end_?of_?text',
        r'(?<![a-z])unk(?![a-z])',
    )
)


def finish_tokens(
    tokens: dict[str, Any], folder: Path, spec: ModelSpec, pad_token: str | None, source: str
) -> dict[str, Any]:
    """Return the special tokens of an imported model, after checking the tokenizer against the model.

    The chat template's end-of-turn token is added to `eos_token_id`, because sampling stops only at the tokens listed
    there.

    The pad token must differ from the last token of a rendered reply, because `transformers` takes the last non-pad
    token as the end of a padded reply. If the model has no such pad token, a special token that the template never
    writes becomes the pad token.

    Args:
      tokens: `bos_token_id`, `eos_token_id` (one id or a list of them) and `pad_token_id`, each possibly None.
      folder: the model's tokenizer folder. The pad token is written to its tokenizer_config.json.
      spec: the model.
      pad_token: the pad token that the user chose, or None.
      source: the name of the source that the model was imported from, for error messages.

    Raises:
      UserError: the tokenizer has more tokens than the model, a turn does not end in a special token, or `pad_token`
        is not a special token or ends a reply.
    """
    template = ChatTemplate.load(folder)
    control = template.tokenizer.control
    if template.tokenizer.vocab_size > spec.vocab_size:
        raise UserError(
            f'{source}: the tokenizer has {template.tokenizer.vocab_size} tokens, but the embedding has only '
            f'{spec.vocab_size}: use the tokenizer that the model was trained with'
        )
    texts = {token: text for text, token in control.items()}
    eos = tokens['eos_token_id']
    ends = [token for token in (eos if isinstance(eos, list) else [eos]) if token is not None]
    if template.end_of_turn not in ends:
        named = texts[template.end_of_turn]
        print(
            f'eos_token_id: added {named} ({template.end_of_turn}), which ends a turn of the template', file=sys.stderr
        )
        ends = [template.end_of_turn, *ends]
        tokens = tokens | dict(eos_token_id=ends if len(ends) > 1 else ends[0])
    pad = tokens['pad_token_id']
    if pad_token is not None:
        if pad_token not in control or control[pad_token] == template.last_of_reply:
            raise UserError(
                f'--pad_token={pad_token} must be a special token that does not end a reply: choose one of '
                f'{", ".join(text for text in control if control[text] != template.last_of_reply)}'
            )
        pad = control[pad_token]
    elif pad not in texts or pad == template.last_of_reply:
        pad = _spare(template, tokens)
        if pad is None:
            return tokens  # only a reward model needs a pad token; `rlhi_jax.training.model` checks that
        print(f'pad_token_id: chose {texts[pad]} ({pad}); --pad_token=TOKEN chooses another', file=sys.stderr)
    for name in ('tokenizer_config.json', 'special_tokens_map.json'):  # `transformers` pads with the token named there
        config = read_json(folder / name, 'import the model again', fields=()) if (folder / name).exists() else {}
        if 'pad_token' in config or name == 'tokenizer_config.json':
            write_json(folder / name, config | dict(pad_token=texts[pad]))
    return tokens | dict(pad_token_id=pad)


def add_reward_token(folder: Path, token: str | None, *, head: str, reads_cls: bool) -> None:
    """Add a reward token to the chat template of a tokenizer folder (see `with_reward_token`), if there is one.

    Args:
      folder: the tokenizer folder, with the model's chat template.
      token: the token that the user chose, or None.
      head: the model's head, 'lm' or 'reward'.
      reads_cls: whether the model's class reads rewards at the tokenizer's CLS token.

    Raises:
      UserError: the user chose a token that is not a special token, or chose one for a policy; or the tokenizer has no
        CLS token.
    """
    if token is not None and head != 'reward':
        raise UserError(f'--reward_token={token} applies to reward models only, and this model is a policy: remove it')
    if token is None and reads_cls:
        named = read_json(folder / 'tokenizer_config.json', 'import the model again', fields=()).get('cls_token')
        token = named['content'] if isinstance(named, dict) else named
        if token is None:
            raise UserError(
                'the model reads rewards at the token CLS, but its tokenizer_config.json has no cls_token: name the '
                'token with --reward_token=TOKEN'
            )
    if token is None:
        return
    path, template = folder / 'chat_template.jinja', ChatTemplate.load(folder)
    if template.reward_token is not None:  # an exported template already has it
        return
    if token not in template.tokenizer.control:
        raise UserError(f'--reward_token={token} is not a special token of the tokenizer: choose another token')
    write_bytes(path, with_reward_token(path.read_text(encoding='utf-8'), token).encode())


def _spare(template: ChatTemplate, tokens: dict[str, Any]) -> int | None:
    """Return a special token that the template never writes, or None."""
    taken = {tokens['bos_token_id'], *template.written_control}
    for pattern in _SPARE:
        for text, token in template.tokenizer.control.items():
            if pattern.search(text) and token not in taken:
                return token
    return None
