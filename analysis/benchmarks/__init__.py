"""One benchmark a file; the door is ``analysis.benchmark``."""
