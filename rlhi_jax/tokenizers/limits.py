"""Limits on the time and memory for loading the tokenizer of an imported model and checking its chat template."""

SECONDS = 20  # of processor time; a vocabulary of 250,000 tokens takes about 3 s
MEMORY = 4 * 2**30  # bytes of address space; a vocabulary of 250,000 tokens takes about an eighth of the limit
