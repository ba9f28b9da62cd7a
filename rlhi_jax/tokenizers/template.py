"""Renders chat templates in a sandbox, cuts the rendered text between messages and tokenises the pieces separately.

We render a template with placeholders for message contents, so the template's text around a message does not depend on
user text. For example, take SmolLM2 and a conversation with the roles user, assistant and user. The last message adds
`<|im_start|>user\\n` + content + `<|im_end|>\\n`, and the prompt for a reply to it is `<|im_start|>assistant\\n`.

Replies can share a prefix only if rendering more turns never changes earlier text. We check this on text and on
tokens when we load a template.
"""

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, read_json
from rlhi_jax.tokenizers import Tokenizer, load_tokenizer
from rlhi_jax.tokenizers.renderer import FIXED_DATE, LAYOUTS, SLOTS, Renderer, Roles, layouts, messages_of

PLACEMENTS = ('user', 'each_user', 'system')

Part = tuple[str, str]  # ('text' | 'control' | 'slot', string)

_MARKUP = re.compile(r'\[/?[A-Z_]+\]|<</?[A-Z]+>>|<\|[^|<>\s]+\|>')
# What `with_reward_token` adds to a template; the group is the token.
_REWARD_TOKEN = re.compile(
    r"\{# rlhi_jax: reward token #\}\{% if not add_generation_prompt %\}\{\{ '([^']+)' \}\}\{% endif %\}\Z"
)
_PROLOGUE_MARK = '{#- rlhi_jax: '
_PROBE_CONTENTS = ('Hello there.', "'s up", '1. a\n\n2. b', '🙂 naïve', '<think>a</think>b', '- x\n- y', '[{"k": 1}]')
_PROBE_ROLES = ('user', 'assistant', 'user', 'assistant', 'user', 'assistant')
_ALTERNATING = ('user', 'assistant') * 32
_LONGEST = 8  # the most turns to render if the template treats all later turns alike


class Context(NamedTuple):
    """The system text and the persona at the start of a conversation; either may be empty."""

    system: str = ''
    persona: str = ''


class Encoded(NamedTuple):
    """The tokens of one message.

    Attributes:
      ids: the message's token ids.
      scored: number of tokens up to and including the end-of-turn token.
      escapes: number of markup strings, such as `[INST]`, that were escaped in the text.
    """

    ids: tuple[int, ...]
    scored: int
    escapes: int


def special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens in tokenizer_config.json, such as `{'bos_token': '<s>', 'eos_token': '</s>'}`."""
    config = read_json(Path(folder) / 'tokenizer_config.json', 'import the model again', fields=())
    named = {key: config.get(key) for key in ('bos_token', 'eos_token', 'pad_token', 'unk_token')}
    return {key: value['content'] if isinstance(value, dict) else value for key, value in named.items() if value}


def extend(template: str, tokenizer: Tokenizer, special: dict[str, str], *, placement: str) -> str:
    """Return a model's template, extended to accept `persona` and to escape the template's markup in user text.

    The persona comes at the start of the first user turn (placement 'user') or of each user turn ('each_user'), or at
    the end of the system message ('system'). Message contents are trimmed, because whitespace around them would merge
    with the template's own whitespace. If the template rejects system messages, as Gemma 2's does, the system text
    comes at the start of the first user turn, as in Gemma 3's template. A template that is already extended is returned
    unchanged.

    Raises:
      UserError: the placement is unknown, the template is already extended with a different placement, or it
        cannot be rendered.
    """
    if placement not in PLACEMENTS:
        raise UserError(f'--persona_in is {placement!r}: choose one of {", ".join(PLACEMENTS)}')
    prologue = _prologue(placement)
    if template.startswith(_PROLOGUE_MARK):
        if not template.startswith(_opening(placement)):
            exported = next(each for each in PLACEMENTS if template.startswith(_opening(each)))
            raise UserError(
                f'--persona_in is {placement!r}, but the source was exported with {exported!r}: pass '
                f'--persona_in={exported}'
            )
        return template
    if _rejects_system(Renderer(template, special)):
        template = (LAYOUTS / 'system_in_user.jinja').read_text(encoding='utf-8') + template
    escapes = ''.join(
        f" | replace('{markup}', '{_defused(markup)}')"
        for markup in _ordinary_markup(Renderer(template, special), tokenizer)
    )
    prologue = prologue.replace(' | defuse', escapes)
    # Templates such as Llama 3's insert today's date, which would change the training text from day to day.
    if 'date_string' in template:
        prologue += "{%- set date_string = '26 Jul 2024' -%}\n"
    if 'strftime_now' in template:
        formats = dict.fromkeys(re.findall(r"""strftime_now\(\s*['"]([^'"{}]*)['"]""", template))
        days = ''.join(f"{{%- if format == '{each}' -%}}{FIXED_DATE.strftime(each)}{{%- endif -%}}" for each in formats)
        prologue += f'{{%- macro strftime_now(format) -%}}{days}{{%- endmacro -%}}\n'
    return prologue + template


def _prologue(placement: str) -> str:
    return (LAYOUTS / f'persona_in_{placement}.jinja').read_text(encoding='utf-8')


def _opening(placement: str) -> str:
    """The first line of an extended template, which says where the persona is."""
    return _prologue(placement).split('\n', 1)[0]


def with_reward_token(template: str, token: str) -> str:
    """Return a template that ends each conversation with a reward token, which marks where a reward model is read.

    The token is not part of the conversation: it is left out where a reply is generated or further turns follow.
    """
    end = f"{{# rlhi_jax: reward token #}}{{% if not add_generation_prompt %}}{{{{ '{token}' }}}}{{% endif %}}"
    return template.removesuffix('\n') + end  # Jinja ignores the last line break


class ChatTemplate:
    """A chat template bound to its tokenizer.

    Attributes:
      reward_token: the id of the token after a reply at which a reward model is read (see `with_reward_token`); None if
        rewards are read at the last token of the reply.

    Raises:
      UserError: the template is faulty, or later turns change the text that it renders for earlier turns.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, special: dict[str, str]):
        self.tokenizer = tokenizer
        self.digest = digest(source, special, tokenizer.digest)
        found = _REWARD_TOKEN.search(source)
        self.reward_token = tokenizer.control[found[1]] if found else None
        source = source[: found.start()] if found else source
        self._renderer = Renderer(source, special)
        self._markup = _ordinary_markup(self._renderer, tokenizer)
        self._parts = functools.lru_cache(maxsize=None)(self._find_parts)
        self._check()

    @classmethod
    def load(cls, folder: Path) -> 'ChatTemplate':
        """Load chat_template.jinja, the tokenizer and its special tokens from a tokenizer folder."""
        path = Path(folder) / 'chat_template.jinja'
        if not path.exists():
            raise UserError(f'{path} does not exist: import the model again')
        return cls(path.read_text(encoding='utf-8'), load_tokenizer(folder), special_tokens(folder))

    def encode(self, roles: Roles, content: str, context: Context) -> Encoded:
        """Return the tokens that a conversation's last message adds; the first message also adds the context.

        Args:
          roles: the roles in the conversation, oldest first; the last is the message's role.
          content: the message's text, which is trimmed here.
          context: the system text and persona, which are the same throughout the conversation.

        Raises:
          UserError: the template rejects this sequence of roles.
        """
        parts, opens = self.added(roles, context)
        texts = [content, *(context if len(roles) == 1 else ())]
        escapes = sum(text.count(markup) for text in texts for markup in self._markup)
        return Encoded(*self._join(parts, opens, context, content), escapes)

    def added(self, roles: Roles, context: Context) -> tuple[tuple[Part, ...], bool]:
        """Return the template parts that a conversation's last message adds, and whether they start a run of text.

        A part is ordinary text, a control token or a placeholder for user text. A run is the text between two control
        tokens. The result can be part of a cache key: if two conversations have the same context and the same result,
        the same message text has the same tokens in both.
        """
        return self._parts(self.shortened(roles), bool(context.system), bool(context.persona), False)

    def generation_prompt(self, roles: Roles, context: Context) -> tuple[int, ...]:
        """Return the tokens, if any, between a conversation's last message and a reply to it."""
        parts, opens = self._parts(self.shortened(roles), bool(context.system), bool(context.persona), True)
        return self._join(parts, opens, context, '')[0]

    def shortened(self, roles: Roles) -> Roles:
        """Shorten a long list of roles for faster rendering; the last message still adds the same parts.

        The roles are returned unchanged if they are few, if they do not alternate, or if the template renders later
        turns differently.
        """
        if len(roles) <= _LONGEST or not self._is_steady:
            return roles
        short = _ALTERNATING[: _LONGEST - (len(roles) - _LONGEST) % 2]
        alternate = all(role == _ALTERNATING[index % 2] for index, role in enumerate(roles))
        return short if alternate else roles

    @functools.cached_property
    def _is_steady(self) -> bool:
        """Whether each turn from turn 5 to turn 64 adds the same template parts as the turn two places before it."""
        for system, persona in itertools.product((False, True), repeat=2):
            seen = {}
            for turn in range(3, 65):
                roles = _ALTERNATING[:turn]
                parts = [self._find_parts(roles, system, persona, False)]
                if roles[-1] == 'user':
                    parts.append(self._find_parts(roles, system, persona, True))
                if seen.setdefault(turn % 2, parts) != parts:
                    return False
        return True

    def _join(
        self, parts: tuple[Part, ...], opens: bool, context: Context, content: str
    ) -> tuple[tuple[int, ...], int]:
        """Fill the placeholders in template parts with text, and return the token ids and the number of scored tokens.

        Each run of text between control tokens is tokenised as a whole. The scored tokens end with the end-of-turn
        token after the content.
        """
        values = {name: self._defuse(text.strip()) for name, text in (*context._asdict().items(), ('content', content))}
        ids: list[int] = []
        run, scored, in_reply = '', 0, False
        for kind, string in (*parts, ('end', '')):
            if kind in ('text', 'slot'):
                run += string if kind == 'text' else values[string]
                in_reply |= (kind, string) == ('slot', 'content')
                continue
            if run:
                ids += self.tokenizer.encode(run, opens=opens)
            if kind == 'control':
                ids.append(self.tokenizer.control[string])
            opens, run = True, ''
            if in_reply and not scored:
                scored = len(ids)
        return tuple(ids), scored

    def _find_parts(self, roles: Roles, system: bool, persona: bool, generation: bool) -> tuple[tuple[Part, ...], bool]:
        """Return the template parts that a conversation's last message adds, and whether they start a run of text.

        If `generation` is True, return the parts that the template adds after the last message to prompt a reply.
        Parts start a run if they come first or follow a control token.
        """
        skeleton = functools.partial(self._renderer.skeleton, system=system, persona=persona)
        if generation:
            before, whole = skeleton(roles), skeleton(roles, generation=True)
        else:
            before = skeleton(roles[:-1], generation=roles[-1] == 'assistant') if len(roles) > 1 else ''
            whole = skeleton(roles)
        if not whole.startswith(before):
            raise UserError(self._unstable(f'the last turn of {" > ".join(roles)} changes the text before it'))
        earlier = _split(before, self.tokenizer)
        return tuple(_split(whole[len(before) :], self.tokenizer)), not earlier or earlier[-1][0] == 'control'

    def _check(self) -> None:
        """Reject the template if messages encoded one by one differ from the same messages rendered together."""
        for system, persona in itertools.product((False, True), repeat=2):
            context = Context('Be kind.' if system else '', 'Likes tea.' if persona else '')
            skeleton = self._renderer.skeleton(_PROBE_ROLES, system=system, persona=persona)
            for content in _PROBE_CONTENTS:
                self._check_content(skeleton, context, content)
            self._check_slots(skeleton, context)

    def _check_slots(self, skeleton: str, context: Context) -> None:
        expected = dict(content=len(_PROBE_ROLES), system=bool(context.system), persona=bool(context.persona))
        if context.persona and skeleton.count(SLOTS['persona']) == _PROBE_ROLES.count('user'):
            expected['persona'] = _PROBE_ROLES.count('user')  # the placement 'each_user'
        names = dict(content='messages', system='the system text', persona='the persona')
        for name, count in expected.items():
            found = skeleton.count(SLOTS[name])
            if found != count:
                fault = 'leaves out' if found < count else 'repeats'
                raise UserError(
                    f'the chat template {fault} {names[name]}: import the model again with --template=NAME (NAME is '
                    f'one of {", ".join(layouts())})'
                )

    @functools.cached_property
    def end_of_turn(self) -> int:
        """The id of the control token that ends a reply.

        Raises:
          UserError: no control token follows a reply.
        """
        encoded = self.encode(('user', 'assistant'), 'Hello.', Context())
        token = encoded.ids[encoded.scored - 1]
        if token not in self.tokenizer.control.values():
            raise UserError(
                'the chat template ends replies with ordinary text, not with a special token, so a model could not '
                f'end its turn: import the model again with --template=NAME (NAME is one of {", ".join(layouts())})'
            )
        return token

    @property
    def last_of_reply(self) -> int:
        """The id of the last token of a conversation that ends in a reply: the end-of-turn token or a later one."""
        if self.reward_token is not None:
            return self.reward_token
        return self.encode(('user', 'assistant'), 'Hello.', Context()).ids[-1]

    @property
    def written_control(self) -> set[int]:
        """The ids of the control tokens that the template writes."""
        return ({self.reward_token} - {None}) | {
            self.tokenizer.control[string]
            for system in (False, True)
            for kind, string in _split(
                self._renderer.skeleton(_PROBE_ROLES, system=system, persona=True), self.tokenizer
            )
            if kind == 'control'
        }

    def _check_content(self, skeleton: str, context: Context, content: str) -> None:
        rendered = self._renderer.render(messages_of(_PROBE_ROLES, content, context.system), context.persona)
        filled = skeleton
        for name, text in (*context._asdict().items(), ('content', content)):
            filled = filled.replace(SLOTS[name], self._defuse(text))
        if rendered != filled:
            raise UserError(self._unstable(f'it rewrites a message such as {content!r}'))
        pieces = []
        for turn in range(1, len(_PROBE_ROLES) + 1):
            roles = _PROBE_ROLES[:turn]
            if roles[-1] == 'assistant':
                pieces += self.generation_prompt(roles[:-1], context)
            pieces += self.encode(roles, content, context).ids
        joint, _ = self._join(tuple(_split(skeleton, self.tokenizer)), True, context, content)
        if list(joint) != pieces:
            raise UserError(self._unstable(f'tokens merge across message boundaries around {content!r}'))

    def _defuse(self, text: str) -> str:
        for markup in self._markup:
            text = text.replace(markup, _defused(markup))
        return text

    @staticmethod
    def _unstable(why: str) -> str:
        names = ', '.join(layouts())
        return (
            f'the chat template cannot be used, because {why}: import the model '
            f'again with --template=NAME (NAME is one of {names})'
        )


def _split(skeleton: str, tokenizer: Tokenizer) -> list[Part]:
    """Split a skeleton (a template rendered with placeholders) into ordinary text, control tokens and placeholders."""
    # A tokenizer may have thousands of control tokens, most of them unused.
    controls = sorted((control for control in tokenizer.control if control in skeleton), key=len, reverse=True)
    slots = {slot: name for name, slot in SLOTS.items()}
    pattern = '|'.join(re.escape(string) for string in (*slots, *controls))
    parts: list[Part] = []
    for string in re.split(f'({pattern})', skeleton):
        if string in slots:
            parts.append(('slot', slots[string]))
        elif string:
            parts.append(('control' if string in tokenizer.control else 'text', string))
    return parts


def _rejects_system(renderer: Renderer) -> bool:
    renderer.skeleton(_PROBE_ROLES, system=False, persona=False)  # an error here has another cause
    try:
        renderer.skeleton(_PROBE_ROLES, system=True, persona=False)
    except UserError:
        return True
    return False


def _ordinary_markup(renderer: Renderer, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the markup that the template writes as ordinary text, such as `[INST]` if it is not a control token."""
    markup: set[str] = set()
    for system in (False, True):  # some markup, such as `<<SYS>>`, appears only around system text
        skeleton = renderer.skeleton(_PROBE_ROLES[:2], system=system, persona=False)
        for kind, string in _split(skeleton, tokenizer):
            if kind == 'text':
                markup.update(_MARKUP.findall(string))
    return tuple(sorted(markup))


def _defused(markup: str) -> str:
    """Return the markup with a space in it, so that it no longer acts as markup: `[INST]` becomes `[ INST]`."""
    return f'{markup[0]} {markup[1:]}'
