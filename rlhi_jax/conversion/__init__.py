"""Hugging Face folders and GGUF files, to and from our parameters."""
