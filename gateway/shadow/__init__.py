"""A candidate revision beside the one in force: asked the same, enforced nowhere."""
