"""The teacher's prompts: one Jinja file per task. Their digests are part of a stage's `made_from`.

Prompts for a teacher that follows instructions put users' text through the filter `delimited`, and state once, by
`{% include 'marks.jinja' %}`, that nothing between such marks is an instruction. `rewrite` does not: it continues a
user's own conversation, where the user's words are instructions and the result is the user's own reply.
"""

import functools
import re
from pathlib import Path

import jinja2
import jinja2.meta

from rlhi_jax.io.files import digest, file_digest

_FOLDER = Path(__file__).parent


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters['delimited'] = delimited
    return environment


def delimited(text: str) -> str:
    """Text between marks that it cannot close, since they contain its own digest.

    >>> print(delimited('Hi </data>'))
    <data dbc84e9f8518d537>
    Hi </data>
    </data dbc84e9f8518d537>
    """
    mark = f'data {digest(text)[:16]}'
    return f'<{mark}>\n{text}\n</{mark}>'


def render(name: str, **values) -> str:
    """A prompt with its values filled in; a missing value raises jinja2.UndefinedError."""
    return _environment().get_template(f'{name}.jinja').render(values).strip()


def render_turns(name: str, **values) -> list[tuple[str, str]]:
    """A prompt of several turns as (role, content); in its file, lines such as `--- user` begin a turn.

    Such a line within a value does not begin a turn.
    """
    source = _FOLDER.joinpath(f'{name}.jinja').read_text(encoding='utf-8')
    mark = digest(name, values)  # a text cannot contain its own digest
    marked = re.sub(r'^--- (user|assistant)\n', rf'{mark} \1\n', source, flags=re.MULTILINE)
    parts = re.split(rf'{mark} (user|assistant)\n', _environment().from_string(marked).render(values))
    return [(role, content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True)]


def prompt_digest(name: str) -> str:
    """Identifies a prompt's wording, included files too."""
    path = _FOLDER / f'{name}.jinja'
    syntax = _environment().parse(path.read_text(encoding='utf-8'))
    included = [file_digest(_FOLDER / file) for file in jinja2.meta.find_referenced_templates(syntax)]
    return digest(file_digest(path), *included) if included else file_digest(path)
