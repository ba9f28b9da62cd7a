"""Claims about what users like, how claims are checked and corrected, and the personas made from claims."""
