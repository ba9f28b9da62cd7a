"""What a text is: its language, its style, its opening, whether it degenerates or spells control tokens."""
