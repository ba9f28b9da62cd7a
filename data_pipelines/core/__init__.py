"""Building blocks of every stage: the `Stage` class, journals, records, turns and user histories."""
