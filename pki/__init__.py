"""The authority: attests, issues, renews, revokes. `authority.py` leads."""
