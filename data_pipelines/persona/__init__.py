"""Claims about what users like, their audit and corrections, and the personas made of them."""
