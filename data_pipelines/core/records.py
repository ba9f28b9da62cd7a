"""Records that cross files: one typed definition each."""

SPLITS = ('train', 'heldout')  # the test split is for evaluation alone
