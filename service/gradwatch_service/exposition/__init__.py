"""What Prometheus scrapes: the text format, the catalogue of metrics, and the page itself."""
