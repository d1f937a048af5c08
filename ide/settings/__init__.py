"""Django's settings: `base` for every real process, `test` for the suite."""
