"""Labels follow-up turns with the teacher or with a trained head."""
