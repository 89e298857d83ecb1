"""The manual: its pages, and what makes their generated parts."""
