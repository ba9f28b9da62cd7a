"""What every stage is built from: stages, journals, records, turns, and histories of users."""
