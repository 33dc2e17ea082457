"""What the client sends and the service reads. Standard library only."""
