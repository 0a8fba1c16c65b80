"""Who can reach what, by the compiled policy itself."""
