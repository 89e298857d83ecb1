"""The ladder: several ways to train one student, compared over seeds."""
