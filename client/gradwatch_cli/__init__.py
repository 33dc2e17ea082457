"""The ``gradwatch`` command: a dispatcher that imports the rest inside its commands."""
