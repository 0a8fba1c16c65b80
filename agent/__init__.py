"""The node's side: enrols by its TPM, renews, and calls through the gateway."""
