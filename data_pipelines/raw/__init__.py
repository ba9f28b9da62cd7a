"""Turns raw files into conversation records: parsing, parallel scan, filters, near-duplicate search and selection."""
