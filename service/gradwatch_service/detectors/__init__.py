"""Detectors: pure functions from reported steps to findings. No clock, thread, HTTP or store."""
