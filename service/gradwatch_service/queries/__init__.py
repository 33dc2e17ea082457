"""Reads stored steps to answer questions: series, tensors, histograms, recommendations, backtests."""
