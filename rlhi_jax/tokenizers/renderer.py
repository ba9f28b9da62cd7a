"""Renders chat templates as `transformers` does, in Jinja's sandbox."""

import datetime
import functools
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlhi_jax.io.errors import UserError, one_line

LAYOUTS = Path(__file__).parent / 'layouts'
# Placeholders for the system text, the persona and the text of a message.
SLOTS = {name: f'\ue000{name}\ue001' for name in ('system', 'persona', 'content')}
FIXED_DATE = datetime.datetime(2024, 7, 26)  # the default date in Llama 3's templates

Roles = tuple[str, ...]


def layouts() -> dict[str, Path]:
    """Return the paths of our own chat templates, keyed by name.

    They are for models whose template is missing or changes the text of earlier turns.
    """
    return {path.stem: path for path in sorted(LAYOUTS.glob('*.jinja')) if '_in_' not in path.stem}


class _Generation(Extension):
    """Support for the `{% generation %}` tag, which encloses replies in some templates.

    The content between the tags is rendered unchanged.
    """

    tags = {'generation'}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(('name:endgeneration',), drop_needle=True)


class Renderer:
    """A compiled chat template and the special tokens that it can refer to.

    The template runs in Jinja's sandbox, with the settings that `transformers` uses.
    """

    def __init__(self, source: str, special: dict[str, str]):
        extensions = [loopcontrols, _Generation]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.globals.update(raise_exception=_raise_exception, strftime_now=FIXED_DATE.strftime)
        self._special = special
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(
                f'the chat template is not valid Jinja ({one_line(error)}): fix chat_template.jinja'
            ) from None

    def render(self, messages: list[dict[str, str]], persona: str = '', generation: bool = False) -> str:
        try:
            return self._template.render(
                messages=messages, persona=persona, add_generation_prompt=generation, **self._special
            )
        except Exception as error:  # a template's expressions can raise anything
            roles = ' > '.join(message['role'] for message in messages)
            raise UserError(
                f'the chat template rejects the turns {roles} ({one_line(error)}): import the model again with '
                f'--template=NAME (NAME is one of {", ".join(layouts())})'
            ) from None

    @functools.cache  # noqa: B019 - lives as long as its template
    def skeleton(self, roles: Roles, *, system: bool, persona: bool, generation: bool = False) -> str:
        """Render a conversation with the given roles, and placeholders for system text, persona and message texts."""
        messages = messages_of(roles, SLOTS['content'], SLOTS['system'] if system else '')
        return self.render(messages, SLOTS['persona'] if persona else '', generation)


def messages_of(roles: Roles, content: str, system: str) -> list[dict[str, str]]:
    opening = [{'role': 'system', 'content': system}] if system else []
    return opening + [{'role': role, 'content': content} for role in roles]


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
