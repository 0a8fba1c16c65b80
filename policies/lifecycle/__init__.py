"""How a draft becomes enforced: workspace, revision, gate."""
