"""What one run did, or several side by side, as a page that stands alone and charts for papers."""
