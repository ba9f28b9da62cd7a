"""Crash-safe file writes, Hugging Face downloads, progress bars, and errors that users can fix."""
