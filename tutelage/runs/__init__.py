"""The run folder and its artefacts: the only code that knows file names, writes atomically, hashes and locks."""
