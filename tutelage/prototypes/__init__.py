"""Features of nets class by class: means, anchors, mixtures of Gaussians, k-means, samples of rows.

Everything here remembers something: a statistic that is fitted once and lies in a file, or buffers that a method
updates while it trains. Losses that compare features with these statistics are pure functions in ``losses/``.
"""
