"""What a user may write: the schema of a recipe, and errors that name line and key."""
