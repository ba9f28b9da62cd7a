"""Files that are never half-written, Hugging Face downloads, progress bars, and errors that users can fix."""
