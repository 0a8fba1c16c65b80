"""Rows that must survive: one database, SQLite by default, PostgreSQL for more than one gateway."""
