"""HTTP server for filling: a queue, one worker thread per model, and a web page."""
