"""Clipping thresholds from recorded steps, with their evidence. Pure: no clock, no store, no HTTP."""
