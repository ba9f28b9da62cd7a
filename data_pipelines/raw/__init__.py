"""Raw files → conversation records: formats, parallel scan, filters, near-duplicates, selection."""
