"""One file per framework, imported by name only: ``import gradwatch`` loads none of them."""
