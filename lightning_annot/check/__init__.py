"""``lightning-annot check``: check the inputs of ``fit`` without running it."""
