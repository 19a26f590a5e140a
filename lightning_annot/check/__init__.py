"""``lightning-annot check``: what can be said of a run before it begins."""
