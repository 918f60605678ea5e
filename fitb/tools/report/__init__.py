"""Report of one run, or of several side by side: a self-contained page, and charts for papers."""
