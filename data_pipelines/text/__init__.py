"""Recognizes properties of text: language, style, openings, repetition, and text that spells control tokens."""
