"""Makes, checks and corrects claims about what users like, and makes personas from these claims."""
