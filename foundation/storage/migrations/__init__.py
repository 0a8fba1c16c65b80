"""The steps from no tables to the present ones."""
