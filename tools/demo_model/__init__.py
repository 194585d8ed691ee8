"""Trains the networks of checkpoints/demo from scratch, on clips, drawn faces and synthetic speech."""
