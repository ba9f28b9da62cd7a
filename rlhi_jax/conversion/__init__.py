"""Converts Hugging Face folders and GGUF files to our parameters, and our parameters to Hugging Face folders."""
