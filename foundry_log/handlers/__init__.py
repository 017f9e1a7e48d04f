"""Handlers: where records go."""
