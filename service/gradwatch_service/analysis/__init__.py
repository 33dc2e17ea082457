"""Following every run: what is found in its steps, kept as incidents and notices with their cards."""
