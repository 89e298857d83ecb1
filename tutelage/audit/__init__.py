"""The audit of pseudo labels: settings, counts, records, and the section of the report."""
