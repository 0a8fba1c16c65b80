"""Joins two tunnels: who holds a node's tunnel, whether both ends may, and how bytes get from one to the other."""
