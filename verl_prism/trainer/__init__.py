"""Subclasses of verl's trainers, engines and replay buffer."""
