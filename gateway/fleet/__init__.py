"""Regions, tiers, health, and what age does to trust."""
