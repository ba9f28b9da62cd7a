"""Labels of follow-up turns, given by the teacher or by a trained head."""
