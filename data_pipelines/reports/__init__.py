"""The data card: statistics on stage folders, and the Markdown that presents them."""
