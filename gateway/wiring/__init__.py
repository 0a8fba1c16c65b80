"""What the main process is made of: the one place that joins gateway and authority. `gateway/orchestrator.py` leads."""
