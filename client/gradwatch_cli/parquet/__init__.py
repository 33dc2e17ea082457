"""Runs as Parquet files: one row per step, and everything that a service needs to take them back."""
