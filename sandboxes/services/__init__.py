"""Writes: every change of a row is made by one function here, whoever asks for it."""
