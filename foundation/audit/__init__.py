"""The audit log: every change of trust, in a Merkle tree, written before its effect."""
