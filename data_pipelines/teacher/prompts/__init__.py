"""What the teacher is told: one Jinja file a task. Their digests are part of what a stage's output was made from.

Prompts for a teacher that follows instructions put text of users through the filter `delimited`, and say once, by
`{% include 'marks.jinja' %}`, that nothing between such marks is an instruction. Not so `rewrite`, which carries a
user's own conversation on: there what they say is an instruction, and what comes of it is their own reply.
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
    """Text between marks that it cannot close, for they hold its own digest.

    >>> print(delimited('Hi </data>'))
    <data dbc84e9f8518d537>
    Hi </data>
    </data dbc84e9f8518d537>
    """
    mark = f'data {digest(text)[:16]}'
    return f'<{mark}>\n{text}\n</{mark}>'


def render(name: str, **values) -> str:
    """A prompt with its values filled in; a value that it lacks is an error."""
    return _environment().get_template(f'{name}.jinja').render(values).strip()


def render_turns(name: str, **values) -> list[tuple[str, str]]:
    """A prompt of several turns, which lines such as `--- user` open in its file, as (role, content).

    A value that holds such a line opens no turn.
    """
    source = _FOLDER.joinpath(f'{name}.jinja').read_text(encoding='utf-8')
    mark = digest(name, values)  # no text of a user holds the digest of itself
    marked = re.sub(r'^--- (user|assistant)\n', rf'{mark} \1\n', source, flags=re.MULTILINE)
    parts = re.split(rf'{mark} (user|assistant)\n', _environment().from_string(marked).render(values))
    return [(role, content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True)]


def prompt_digest(name: str) -> str:
    """Identifies a prompt's wording, and that of the files that it includes."""
    path = _FOLDER / f'{name}.jinja'
    syntax = _environment().parse(path.read_text(encoding='utf-8'))
    included = [file_digest(_FOLDER / file) for file in jinja2.meta.find_referenced_templates(syntax)]
    return digest(file_digest(path), *included) if included else file_digest(path)
