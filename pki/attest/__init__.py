"""Continuous re-attestation: a node proves every minute what it booted and runs."""
