"""Ways to a certificate. `native` is ours; others speak other protocols to the same judgement."""
