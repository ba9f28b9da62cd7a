"""Turns raw files into conversation records: formats, parallel scan, filters, near-duplicates, selection."""
