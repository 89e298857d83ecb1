"""One file a paper: each method reads like its paper's method section."""
