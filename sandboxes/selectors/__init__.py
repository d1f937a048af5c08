"""Reads that several front doors use, always within the actor's organization."""
