"""A run as one file that stands alone: what somebody attaches to a ticket."""
