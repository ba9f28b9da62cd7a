"""Files that are never half-written, the Hugging Face hub, progress, and errors that users can fix."""
