"""Settings of the methods, one module a method; none of them imports torch."""
