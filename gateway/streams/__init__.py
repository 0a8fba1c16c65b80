"""Exchanges that are under way, and how they are cut."""
