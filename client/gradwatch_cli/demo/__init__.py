"""The demo: a real language model, real text, injected trouble, and what the service saw of it."""
