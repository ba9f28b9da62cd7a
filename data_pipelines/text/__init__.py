"""Properties of a text: its language, style and opening, and whether it is degenerate or spells control tokens."""
