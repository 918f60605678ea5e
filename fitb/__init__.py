"""fitb distils BERT into TinyBERT on cluster schedulers, and resumes jobs that were preempted."""

__version__ = "0.1.0"
