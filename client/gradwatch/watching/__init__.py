"""A Watch: the optimizers it stands in front of, and what it tells about them."""
