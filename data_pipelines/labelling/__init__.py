"""Labels follow-up turns with the teacher, the policy or a small trained classifier (a head)."""
