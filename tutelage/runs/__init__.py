"""The run folder and its artefacts: file names, atomic writes, hashes and locks are here only."""
