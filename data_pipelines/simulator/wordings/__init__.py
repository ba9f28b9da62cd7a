"""Sentences about the tastes of simulated users, from the TOML files in this folder."""

import tomllib
from pathlib import Path
from typing import Any


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / f'{name}.toml').read_text(encoding='utf-8'))


PERSONAS: dict[str, dict[str, dict[str, list[str]]]] = _read('personas')  # taste → side → split → sentences
COMPLAINTS: dict[str, dict[str, dict[str, list[str]]]] = _read('complaints')  # taste → side → split → sentences
INSTRUCTIONS: dict[str, dict[str, str]] = _read('instructions')  # taste → side → sentence
